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
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::client::{Connection, HEADER_BYTES_MAX};
use super::super::error::Error;
use super::super::headers::{row_headers, ttl, wire_len};
use super::super::messages::Messages;
use super::super::names::{
    BATCH_COMMIT, BATCH_HEADER_BYTES, BATCH_ID, BATCH_SEQUENCE, EXPECTED_LAST_SUBJECT_SEQUENCE,
    NOT_DELAYED, PLAIN_ID, POSITION, SCHEDULE, SCHEDULE_TARGET, SCHEDULE_TTL, SOURCE,
    TARGET_PREFIX, TOO_LARGE, TTL, mark_subject, schedule_subject,
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
    pub(crate) async fn open(
        connection: &Connection,
        stream: &StreamOptions,
    ) -> Result<Self, Error> {
        let opened = Box::pin(connection.open_stream(stream));
        let found: Info = connection.unless_broken(opened).await?;
        Ok(Self {
            bytes_max: connection.message_bytes_max(&found),
            messages: Messages::new(connection.context.clone(), &stream.name),
            name: found.config.name,
            subjects: found.config.subjects,
            batches: 0,
        })
    }

    /// Stores the schedule of the event, and waits until it is.
    pub(crate) async fn store(
        &mut self,
        connection: &Connection,
        (event, source): (&Event, &str),
        options: &Options,
    ) -> Result<Scheduled, Error> {
        let subject = schedule_subject(&options.stream.name, event);
        let mark_subject = mark_subject(&options.stream.name, event);
        let schedule = self.schedule(event, source)?;
        self.check(event, (&mark_subject, &schedule))?;
        self.batches += 1;
        let name = connection.inbox.rsplit('.').next().unwrap_or_default();
        let batch = format!("{name}-d{}", self.batches);
        let within = options.ack_timeout;
        let mark = in_batch(mark(event, source), &batch, 1);
        let mark_to = (mark_subject.clone(), None);
        connection
            .publish(mark_to, (mark, Bytes::new()), within)
            .await?;
        fault::point("schedule_in_part");
        let mut schedule = in_batch(schedule, &batch, 2);
        schedule.insert(BATCH_COMMIT, "1");
        let request = (subject, schedule, event.payload.clone());
        let answer = connection.request(request, (&self.name, within));
        let reason = match answer.await? {
            Reply::Stored {
                sequence,
                together: 2,
            } => return Ok(Scheduled::Now(sequence)),
            Reply::Stored { together, .. } => format!("{together} messages stored instead of 2"),
            Reply::Duplicate(_) => "the server calls it a duplicate".to_owned(),
            Reply::Refused(reason) | Reply::Unclear(reason) => reason,
        };
        let marked = Box::pin(self.messages.last_of(&mark_subject));
        match connection.unless_broken(marked).await? {
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

    fn schedule(&self, event: &Event, source: &str) -> Result<HeaderMap, Error> {
        let due = event.deliver_at.expect("a delayed event is due some time");
        let mut headers = row_headers(event);
        bear(&mut headers, event, source);
        headers.insert(SCHEDULE, format!("@at {}", rfc3339(due)));
        let target = format!("{TARGET_PREFIX}{}", event.subject);
        if !self.covers(&target) {
            return Err(Error::Uncovered {
                name: self.name.clone(),
                subjects: self.subjects.join(", "),
                subject: target,
            });
        }
        headers.insert(SCHEDULE_TARGET, target);
        if let Some(expires) = event.expires_at {
            headers.insert(SCHEDULE_TTL, ttl(expires - due));
        }
        Ok(headers)
    }

    fn check(&self, event: &Event, (subject, headers): (&str, &HeaderMap)) -> Result<(), Error> {
        let refuse = |reason, error| Err(Error::unsendable(event, Rejected { reason, error }));
        if let Err(why) = route::check_subject(subject) {
            return refuse("subject", format!("its schedule has no subject, {why}"));
        }
        let headers = wire_len(headers) + BATCH_HEADER_BYTES + SCHEDULE_HEADER_BYTES;
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
    connection: &Connection,
    stream: &StreamOptions,
    (event, source): (&Event, &str),
) -> Result<bool, Error> {
    let delayed = Messages::new(connection.context.clone(), &stream.delayed().name);
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

/// Where a schedule says that its event will appear.
pub(crate) fn schedule_target(headers: &HeaderMap) -> Option<&str> {
    headers.get(SCHEDULE_TARGET).map(HeaderValue::as_str)
}

/// Says whose event it is. Not by `Nats-Msg-Id`, which the server drops when the event is due.
fn bear(headers: &mut HeaderMap, event: &Event, source: &str) {
    headers.insert(SOURCE, source);
    headers.insert(POSITION, event.position.to_string());
    headers.insert(PLAIN_ID, event.id.as_str());
}

/// Whether a mark was set by an event of our cluster: others that share the stream have positions
/// of their own, and may have the same ids.
fn is_of_cluster(mark: Option<&str>, source: &str) -> bool {
    let system = |source| Source::parse(source).map(|source| source.system);
    mark.is_some_and(|mark| system(mark) == system(source))
}

fn mark(event: &Event, source: &str) -> HeaderMap {
    let due = event.deliver_at.expect("a delayed event is due some time");
    let left = (due - OffsetDateTime::now_utc()).max(time::Duration::ZERO);
    let mut headers = HeaderMap::new();
    bear(&mut headers, event, source);
    headers.insert(EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(0_u64));
    headers.insert(TTL, ttl(left + MARK_KEPT));
    headers
}

fn in_batch(mut headers: HeaderMap, batch: &str, sequence: u64) -> HeaderMap {
    headers.insert(BATCH_ID, batch);
    headers.insert(BATCH_SEQUENCE, HeaderValue::from(sequence));
    headers
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
