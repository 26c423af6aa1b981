//! Delayed events: kept by the server until they are due, as message schedules (ADR-51) in a stream
//! of their own, because the server itself writes into it what is due. So that stream has no chain,
//! and needs none: each event has a subject of its own there.
//!
//! A schedule is stored together with a mark, in one batch (ADR-50): both or none. The mark's
//! subject must not have a message yet, and the mark stays when the schedule is gone, because it
//! has fired or was cancelled. So whatever is sent again is refused by the server, and the mark
//! says that it was stored. That holds until the mark expires, [`MARK_KEPT`] behind the delivery.

use std::time::Duration;

use async_nats::jetstream::stream::Info;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::client::{Client, HEADER_BYTES_MAX};
use super::super::error::Error;
use super::super::headers::{Outgoing, block_bytes, push, push_number, push_with, row_lines, ttl};
use super::super::messages::Messages;
use super::super::names::{
    BATCH_COMMIT, BATCH_HEADER_BYTES, BATCH_ID, BATCH_SEQUENCE, EXPECTED_LAST_SUBJECT_SEQUENCE,
    NOT_DELAYED, PLAIN_ID, POSITION, SCHEDULE, SCHEDULE_TARGET, SCHEDULE_TTL, SOURCE,
    TARGET_PREFIX, TOO_LARGE, TTL, UNFIT_SUBJECT, mark_subject, schedule_subject,
};
use super::super::options::{Options, StreamOptions};
use super::super::reply::Reply;
use crate::event::lineage::Source;
use crate::event::route;
use crate::event::{Event, Rejected};
use crate::fault;

/// How long a mark outlives the delivery. Postgres sends again what was confirmed shortly before a
/// crash, or not at all: a week is longer than outjet is away unnoticed.
const MARK_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What schedules take beside the headers of a batch: names, times and the target's prefix.
const SCHEDULE_HEADER_BYTES: usize = 200;

/// When a schedule was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheduled {
    /// Just now, at this sequence number.
    Now(u64),
    /// Before: its mark is there.
    Before,
}

/// The stream of an `Options::delayed`, for one epoch.
pub(crate) struct Delayed {
    name: String,
    subjects: Vec<String>,
    bytes_max: usize,
    messages: Messages,
    batches: u64,
}

impl Delayed {
    /// Opens the stream, or creates it if told so.
    pub(crate) async fn open(client: &Client, stream: &StreamOptions) -> Result<Self, Error> {
        let found: Info = Box::pin(client.open_stream(stream)).await?;
        Ok(Self {
            bytes_max: client.message_bytes_max(&found),
            messages: client.messages(&stream.name),
            name: found.config.name,
            subjects: found.config.subjects,
            batches: 0,
        })
    }

    /// Stores the schedule of the event, and waits until it is.
    pub(crate) async fn store(
        &mut self,
        client: &Client,
        (event, source): (&Event, &str),
        options: &Options,
    ) -> Result<Scheduled, Error> {
        let subject = schedule_subject(&options.stream.name, event);
        let mark_subject = mark_subject(&options.stream.name, event);
        let mut schedule = self.schedule(event, source)?;
        self.check(event, (client, &mark_subject, &schedule))?;
        self.batches += 1;
        let batch = format!("{}-d{}", client.name, self.batches);
        let within = options.ack_timeout;
        let mut mark = mark((event, source), options.nats.network.now());
        push_batch(&mut mark, &batch, 1);
        // Of a batch only the answer to the last says anything.
        client.ask(Outgoing {
            subject: &mark_subject,
            lines: &mark,
            body: b"",
        })?;
        fault::point("schedule_in_part");
        push_batch(&mut schedule, &batch, 2);
        push(&mut schedule, BATCH_COMMIT, "1");
        let message = Outgoing {
            subject: &subject,
            lines: &schedule,
            body: &event.payload,
        };
        let answer = client.request(message, (&self.name, within));
        let reason = match answer.await? {
            Reply::Stored {
                sequence,
                together: 2,
            } => return Ok(Scheduled::Now(sequence)),
            Reply::Stored { together, .. } => format!("{together} messages stored instead of 2"),
            Reply::Duplicate(_) => "the server calls it a duplicate".to_owned(),
            Reply::Refused(reason) | Reply::Unclear(reason) => reason,
        };
        match Box::pin(self.messages.last_of(&mark_subject)).await? {
            Some(mark) if is_of_cluster(mark.header(SOURCE), source) => Ok(Scheduled::Before),
            Some(_) => {
                let error = "an event of another database has its place".to_owned();
                let reason = NOT_DELAYED;
                Err(Error::unsendable(event, Rejected { reason, error }))
            }
            None => Err(Error::Broken(format!(
                "the schedule of an event was not acknowledged as expected: {reason}"
            ))),
        }
    }

    fn schedule(&self, event: &Event, source: &str) -> Result<String, Error> {
        let due = event.deliver_at.expect("a delayed event is due some time");
        let mut lines = row_lines(event);
        bear(&mut lines, event, source);
        push(&mut lines, SCHEDULE, &format!("@at {}", rfc3339(due)));
        let target = format!("{TARGET_PREFIX}{}", event.subject);
        if !self.covers(&target) {
            return Err(Error::Uncovered {
                name: self.name.clone(),
                subjects: self.subjects.join(", "),
                subject: target,
            });
        }
        push(&mut lines, SCHEDULE_TARGET, &target);
        if let Some(expires) = event.expires_at {
            push(&mut lines, SCHEDULE_TTL, &ttl(expires - due));
        }
        Ok(lines)
    }

    fn check(
        &self,
        event: &Event,
        (client, subject, lines): (&Client, &str, &str),
    ) -> Result<(), Error> {
        let refuse = |reason, error| Err(Error::unsendable(event, Rejected { reason, error }));
        if let Err(why) = route::check_subject(subject) {
            return refuse(UNFIT_SUBJECT, format!("its schedule has no subject, {why}"));
        }
        // That of the schedule is shorter.
        let line = client.line(subject);
        if !line.fits() {
            return refuse(
                UNFIT_SUBJECT,
                format!("its schedule has no subject, {line}"),
            );
        }
        let headers = block_bytes(lines.len()) + BATCH_HEADER_BYTES + SCHEDULE_HEADER_BYTES;
        let (bytes, max) = (headers + event.payload.len(), self.bytes_max);
        if headers > HEADER_BYTES_MAX || bytes > max {
            let error = format!("{bytes} bytes with the headers of a schedule, at most {max}");
            return refuse(TOO_LARGE, error);
        }
        Ok(())
    }

    fn covers(&self, subject: &str) -> bool {
        let mut patterns = self.subjects.iter();
        patterns.any(|pattern| route::matches(pattern, subject))
    }
}

/// Whether the schedule of an event of this source was stored.
pub(crate) async fn is_marked(
    client: &Client,
    stream: &StreamOptions,
    (event, source): (&Event, &str),
) -> Result<bool, Error> {
    let delayed = client.messages(&stream.delayed().name);
    if delayed.last_sequence().await? == 0 {
        return Ok(false);
    }
    let subject = mark_subject(&stream.name, event);
    let mark = Box::pin(delayed.last_of(&subject)).await?;
    Ok(mark.is_some_and(|mark| is_of_cluster(mark.header(SOURCE), source)))
}

/// That events cannot be kept is no reason to stop the others: what one event makes of it.
pub(crate) fn refused(event: &Event, error: Error) -> Error {
    match error {
        Error::NoSchedules { .. }
        | Error::NotScheduling { .. }
        | Error::StreamMissing(_)
        | Error::StreamNotCreated { .. } => {
            let due = event.deliver_at.map(rfc3339).unwrap_or_default();
            let error = format!("it cannot be kept until {due}: {error}");
            let reason = NOT_DELAYED;
            Error::unsendable(event, Rejected { reason, error })
        }
        other => other,
    }
}

/// Says whose event it is. Not by `Nats-Msg-Id`, which the server drops when the event is due.
fn bear(lines: &mut String, event: &Event, source: &str) {
    push(lines, SOURCE, source);
    push_with(lines, POSITION, |lines| event.position.push_to(lines));
    push(lines, PLAIN_ID, &event.id);
}

/// Whether a mark was set by an event of our cluster: others that share the stream have positions
/// of their own, and may have the same ids.
fn is_of_cluster(mark: Option<&str>, source: &str) -> bool {
    let system = |source| Source::parse(source).map(|source| source.system);
    mark.is_some_and(|mark| system(mark) == system(source))
}

fn mark((event, source): (&Event, &str), now: OffsetDateTime) -> String {
    let due = event.deliver_at.expect("a delayed event is due some time");
    let left = (due - now).max(time::Duration::ZERO);
    let mut lines = String::new();
    bear(&mut lines, event, source);
    push_number(&mut lines, EXPECTED_LAST_SUBJECT_SEQUENCE, 0);
    push(&mut lines, TTL, &ttl(left + MARK_KEPT));
    lines
}

fn push_batch(lines: &mut String, batch: &str, sequence: u64) {
    push(lines, BATCH_ID, batch);
    push_number(lines, BATCH_SEQUENCE, sequence);
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_of_another_database_is_not_ours_with_the_same_id_and_position() {
        assert!(is_of_cluster(Some("7/1/a"), "7/2/b"));
        for other in [None, Some("8/1/a"), Some("x")] {
            assert!(!is_of_cluster(other, "7/1/a"), "{other:?}");
        }
    }
}
