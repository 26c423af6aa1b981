//! Message schedules (ADR-51), as far as `@at` goes: a message that waits in the stream, and the
//! one that the server makes of it.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::accept::{Marks, ttl};
use super::config::Config;
use super::json::Refusal;
use super::store::Draft;
use super::stream::Stream;
use super::{Gone, Writer, header};

/// When a schedule is due, in nanoseconds since 1970.
pub(super) fn due(schedule: &[u8]) -> Option<i64> {
    let at = str::from_utf8(schedule.strip_prefix(b"@at ")?).ok()?;
    let at = OffsetDateTime::parse(at, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos()).ok()
}

/// Why a schedule is refused.
pub(super) fn check(config: &Config, marks: &Marks<'_>) -> Result<(), Refusal> {
    let Some(schedule) = marks.schedule else {
        return Ok(());
    };
    if !config.allow_msg_schedules {
        return Err(Refusal::new(400, 10188, "message schedules is disabled"));
    }
    if due(schedule).is_none() {
        return Err(Refusal::new(
            400,
            10189,
            "message schedules pattern is invalid",
        ));
    }
    if !marks
        .schedule_target
        .is_some_and(|target| config.listens(target))
    {
        return Err(Refusal::new(
            400,
            10190,
            "message schedules target is invalid",
        ));
    }
    if marks.schedule_ttl.is_some_and(|text| ttl(text).is_err()) {
        let text = "message schedules invalid per-message TTL";
        return Err(Refusal::new(400, 10191, text));
    }
    Ok(())
}

/// A schedule replaces the one that has its subject: the server adds what does that.
pub(super) fn with_rollup(block: &[u8], marks: &Marks<'_>) -> Vec<u8> {
    let mut rolled = block.to_vec();
    if marks.rollup.is_none() {
        rolled.truncate(block.len().saturating_sub(b"\r\n".len()));
        rolled.extend_from_slice(b"Nats-Rollup: sub\r\n\r\n");
    }
    rolled
}

/// What does not go from a schedule into what is made of it.
const DROPPED: [&str; 5] = [
    "Nats-Schedule",
    "Nats-Expected-",
    "Nats-Msg-Id:",
    "Nats-Rollup:",
    "Nats-TTL:",
];

impl Stream {
    /// A schedule is due: its message is stored, and it goes.
    pub(super) fn fire(&mut self, sequence: u64, now: i64) {
        let Some(schedule) = self.store.at(sequence).cloned() else {
            return;
        };
        let target = schedule.header("Nats-Schedule-Target").unwrap_or_default();
        let mut lines = header::without(&schedule.headers, &DROPPED);
        let from = String::from_utf8_lossy(&schedule.subject);
        lines.push_str(&format!(
            "Nats-Scheduler: {from}\r\nNats-Schedule-Next: purge\r\n"
        ));
        let kept = schedule.header("Nats-Schedule-TTL");
        if let Some(kept) = kept {
            lines.push_str(&format!("Nats-TTL: {}\r\n", String::from_utf8_lossy(kept)));
        }
        let headers = header::block(&lines);
        let made = self.append(Draft {
            subject: target,
            headers: &headers,
            body: &schedule.body,
            writer: Writer::Server,
            time: now,
        });
        if let Some(Ok(Some(nanos))) = kept.map(ttl) {
            self.store.end_at(made, self.store.last_time() + nanos);
        }
        self.store.remove(sequence, (now, Gone::Fired));
    }
}
