//! What a stream does with what is published to it: the checks of nats-server in its order
//! (`processJetStreamMsg`, `processClusteredInboundMsg`), then it stores.

use super::config::Config;
use super::header::number;
use super::json::Refusal;
use super::schedule;
use super::store::Draft;
use super::stream::Stream;
use super::version::Version;

/// The headers that mean something to the server; of each the first counts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks<'a> {
    pub(super) id: Option<&'a [u8]>,
    pub(super) expected_stream: Option<&'a [u8]>,
    pub(super) expected_last: Option<&'a [u8]>,
    pub(super) expected_last_of_subject: Option<&'a [u8]>,
    pub(super) expected_last_id: Option<&'a [u8]>,
    pub(super) ttl: Option<&'a [u8]>,
    pub(super) rollup: Option<&'a [u8]>,
    pub(super) increment: Option<&'a [u8]>,
    pub(super) batch: Option<&'a [u8]>,
    pub(super) batch_sequence: Option<&'a [u8]>,
    pub(super) batch_commit: Option<&'a [u8]>,
    pub(super) schedule: Option<&'a [u8]>,
    pub(super) schedule_target: Option<&'a [u8]>,
    pub(super) schedule_ttl: Option<&'a [u8]>,
}

impl<'a> Marks<'a> {
    pub(super) fn read(block: &'a [u8]) -> Self {
        let mut marks = Self::default();
        let mut rest = block;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            if let Some(line) = rest[..end].strip_prefix(b"Nats-") {
                marks.note(line);
            }
            rest = &rest[end + 1..];
        }
        marks
    }

    fn note(&mut self, line: &'a [u8]) {
        let Some(colon) = memchr::memchr(b':', line) else {
            return;
        };
        let mark = match &line[..colon] {
            b"Msg-Id" => &mut self.id,
            b"Expected-Stream" => &mut self.expected_stream,
            b"Expected-Last-Sequence" => &mut self.expected_last,
            b"Expected-Last-Subject-Sequence" => &mut self.expected_last_of_subject,
            b"Expected-Last-Msg-Id" => &mut self.expected_last_id,
            b"TTL" => &mut self.ttl,
            b"Rollup" => &mut self.rollup,
            b"Incr" => &mut self.increment,
            b"Batch-Id" => &mut self.batch,
            b"Batch-Sequence" => &mut self.batch_sequence,
            b"Batch-Commit" => &mut self.batch_commit,
            b"Schedule" => &mut self.schedule,
            b"Schedule-Target" => &mut self.schedule_target,
            b"Schedule-TTL" => &mut self.schedule_ttl,
            _ => return,
        };
        let value = line[colon + 1..].trim_ascii();
        if !value.is_empty() {
            mark.get_or_insert(value);
        }
    }
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Stored(u64),
    /// The last of a batch: its id, and how many there were.
    Committed(u64, String, usize),
    Duplicate(u64),
    Refused(Refusal),
    /// It waits for the rest of its batch.
    Staged,
    /// Nothing is said.
    Silence,
}

/// With its header line; more is refused.
const HEADER_BYTES_MAX: usize = 64 * 1024 - 1;

impl Stream {
    /// Takes a message, whose subject is the one that it is to be stored under.
    pub(super) fn accept(&mut self, draft: Draft<'_>, version: Version) -> Outcome {
        self.advance(draft.time);
        if self.config.sealed {
            return Outcome::Refused(Refusal::sealed());
        }
        let marks = Marks::read(draft.headers);
        if marks.batch.is_some() && version.has_batches() {
            return self.accept_in_batch(draft, &marks, version);
        }
        let checked = self.check(&draft, &marks, version);
        match checked.and_then(|()| Ok(self.check_size(&draft)?)) {
            Err(Stop::Refused(refusal)) => Outcome::Refused(refusal),
            Err(Stop::Duplicate(sequence)) => Outcome::Duplicate(sequence),
            Err(Stop::Silence) => Outcome::Silence,
            Ok(()) => match self.check_room(draft.subject, (1, self.size_of(&draft)), version) {
                Err(refusal) => Outcome::Refused(refusal),
                Ok(()) => Outcome::Stored(self.store_with(draft, &marks, version)),
            },
        }
    }

    fn check(
        &mut self,
        draft: &Draft<'_>,
        marks: &Marks<'_>,
        version: Version,
    ) -> Result<(), Stop> {
        if draft.headers.is_empty() {
            return Ok(());
        }
        check_features(&self.config, marks, version)?;
        let replicated = self.config.num_replicas > 1;
        let ids_first = replicated || version.compares_ids_first();
        if ids_first {
            self.check_id(marks, draft.time, version)?;
        }
        if let Err(refusal) = self.check_expected(draft.subject, marks) {
            // It was staged before this was found out (nats-server 2.10, 2.11).
            if replicated
                && version.stages_ids()
                && let Some(id) = marks.id
            {
                self.remember_id(id, 0, draft.time);
            }
            return Err(refusal.into());
        }
        if !ids_first {
            self.check_id(marks, draft.time, version)?;
        }
        self.check_last_id(marks)?;
        check_rollup(&self.config, marks, version)
    }

    fn check_id(&self, marks: &Marks<'_>, now: i64, version: Version) -> Result<(), Stop> {
        match marks.id.and_then(|id| self.known_id(id, now)) {
            None => Ok(()),
            Some(0) if !version.calls_staged_duplicate() => {
                let text = "duplicate message id is in process";
                Err(Refusal::new(409, 10158, text).into())
            }
            Some(sequence) => Err(Stop::Duplicate(sequence)),
        }
    }

    /// What no number is, is the wrong one.
    fn check_expected(&self, subject: &[u8], marks: &Marks<'_>) -> Result<(), Refusal> {
        if let Some(expected) = marks.expected_last_of_subject {
            let last = self.store.last_of(subject);
            let last = last.map_or(0, |stored| stored.sequence);
            if number(expected) != Some(last) {
                return Err(Refusal::wrong_sequence(last));
            }
        }
        let last = self.store.last();
        match marks.expected_last {
            Some(expected) if number(expected) != Some(last) => Err(Refusal::wrong_sequence(last)),
            _ => Ok(()),
        }
    }

    fn check_last_id(&self, marks: &Marks<'_>) -> Result<(), Stop> {
        let Some(expected) = marks.expected_last_id else {
            return Ok(());
        };
        let last = self.store.at(self.store.last());
        let last = last.and_then(|stored| stored.header("Nats-Msg-Id"));
        let last = last.unwrap_or_default();
        if last == expected {
            return Ok(());
        }
        let text = format!("wrong last msg ID: {}", String::from_utf8_lossy(last));
        Err(Refusal::said(400, 10070, text).into())
    }

    pub(super) fn check_size(&self, draft: &Draft<'_>) -> Result<(), Refusal> {
        let bytes = draft.headers.len() + draft.body.len();
        let most = usize::try_from(self.config.max_msg_size);
        if most.is_ok_and(|most| bytes > most) {
            let text = "message size exceeds maximum allowed";
            return Err(Refusal::new(400, 10054, text));
        }
        if draft.headers.len() > HEADER_BYTES_MAX {
            let text = "header size exceeds maximum allowed of 64k";
            return Err(Refusal::new(400, 10097, text));
        }
        Ok(())
    }

    pub(super) fn size_of(&self, draft: &Draft<'_>) -> u64 {
        let lengths = (draft.subject.len(), draft.headers.len(), draft.body.len());
        self.store.size(lengths)
    }

    /// Stores what has passed, and does what its headers want done.
    pub(super) fn store_with(
        &mut self,
        draft: Draft<'_>,
        marks: &Marks<'_>,
        version: Version,
    ) -> u64 {
        let scheduled = marks.schedule.filter(|_| self.config.allow_msg_schedules);
        let rolled = scheduled.map(|_| schedule::with_rollup(draft.headers, marks));
        let headers = rolled.as_deref().unwrap_or(draft.headers);
        let sequence = self.append(Draft { headers, ..draft });
        let now = self.store.last_time();
        if let Some(id) = marks.id {
            self.remember_id(id, sequence, now);
        }
        if let Some(Ok(Some(nanos))) = marks.ttl.map(ttl)
            && self.config.has_ttl()
            && scheduled.is_none()
            && version.has_ttl()
        {
            self.store.end_at(sequence, now + nanos);
        }
        if let Some(due) = scheduled.and_then(schedule::due) {
            self.schedules.insert((due.max(now), sequence));
        }
        match marks.rollup {
            _ if scheduled.is_some() => self.roll_up(Some(draft.subject), (sequence, now)),
            Some(b"sub") => self.roll_up(Some(draft.subject), (sequence, now)),
            Some(b"all") => self.roll_up(None, (sequence, now)),
            _ => {}
        }
        sequence
    }
}

/// Why a message is not stored.
pub(super) enum Stop {
    Refused(Refusal),
    Duplicate(u64),
    Silence,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What a stream of this configuration is not asked for.
pub(super) fn check_features(
    config: &Config,
    marks: &Marks<'_>,
    version: Version,
) -> Result<(), Refusal> {
    if marks
        .expected_stream
        .is_some_and(|expected| expected != config.name.as_bytes())
    {
        return Err(Refusal::new(400, 10060, "expected stream does not match"));
    }
    if let Some(text) = marks.ttl.filter(|_| version.has_ttl()) {
        if !config.has_ttl() {
            return Err(Refusal::new(400, 10166, "per-message TTL is disabled"));
        }
        ttl(text).map_err(|()| Refusal::new(400, 10165, "invalid per-message TTL"))?;
    }
    if version.has_batches() {
        if marks.increment.is_some() && !config.allow_msg_counter {
            return Err(Refusal::new(400, 10168, "message counters is disabled"));
        }
        schedule::check(config, marks)?;
    }
    Ok(())
}

fn check_rollup(config: &Config, marks: &Marks<'_>, version: Version) -> Result<(), Stop> {
    match marks.rollup {
        None => Ok(()),
        Some(_) if !config.allow_rollup_hdrs || config.deny_purge => {
            Err(Refusal::new(500, 10111, "rollup not permitted").into())
        }
        Some(b"sub" | b"all") => Ok(()),
        // Nothing is said, and nothing stored (nats-server 2.10.26).
        Some(_) if version.ignores_odd_rollups() => Err(Stop::Silence),
        Some(other) => {
            let text = format!("rollup value invalid: {:?}", String::from_utf8_lossy(other));
            Err(Refusal::said(500, 10111, text).into())
        }
    }
}

/// How long a message is kept; `None`: for ever. Whole seconds, or as Go writes a duration.
pub(super) fn ttl(text: &[u8]) -> Result<Option<i64>, ()> {
    if text.eq_ignore_ascii_case(b"never") {
        return Ok(None);
    }
    const SECOND: i64 = 1_000_000_000;
    let text = str::from_utf8(text).map_err(|_| ())?;
    let nanos = match text.parse::<i64>() {
        Ok(seconds) => seconds.checked_mul(SECOND).ok_or(())?,
        Err(_) => duration(text)?,
    };
    if nanos < SECOND {
        Err(())
    } else {
        Ok(Some(nanos))
    }
}

fn duration(text: &str) -> Result<i64, ()> {
    let mut rest = text;
    let mut nanos = 0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (digits, tail) = rest.split_at(digits.ok_or(())?);
        let unit = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let factor = match unit {
            "h" => 3600e9,
            "m" => 60e9,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" => 1e3,
            "ns" => 1.0,
            _ => return Err(()),
        };
        nanos += digits.parse::<f64>().map_err(|_| ())? * factor;
        rest = tail;
    }
    #[expect(clippy::cast_possible_truncation, reason = "far below 2^63")]
    Ok(nanos as i64)
}
