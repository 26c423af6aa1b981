//! Dead letters: events that cannot be published, appended to a stream of their own so that nobody
//! waits for them. One at a time, when everything before them is stored, and nothing behind them is
//! sent meanwhile: they are rare, and so both streams together hold what came before any event.
//!
//! The same chain keeps them in order, and what lies beyond the record is found by the same set.
//! Without a record the guard knows only what it sees: a letter that was dropped leaves nothing
//! behind, so it returns if Postgres sends its row again.

use async_nats::jetstream::stream::Info;
use bytes::Bytes;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

use super::super::client::{Client, HEADER_BYTES_MAX};
use super::super::error::Error;
use super::super::headers::{Composed, push, push_with, row_lines};
use super::super::messages::Messages;
use super::super::names::{
    BODY_BYTES, ERROR, EXPECTED_LAST_SEQUENCE, PLAIN_ID, POSITION, REASON, SOURCE, TABLE,
    invalid_subject,
};
use super::super::options::StreamOptions;
use super::super::reply::Reply;
use super::super::tail::{Bounds, Search, Start};
use crate::event::lineage::Lineage;
use crate::event::route;
use crate::event::{Event, Rejected, header_is_sound};

/// An error's text in a header is cut after this many characters.
const ERROR_CHARS_MAX: usize = 500;

/// What the expectation takes at most.
const EXPECTATION_BYTES_MAX: usize = 64;

/// The stream of an `Options::dead_letters`, for one epoch.
pub(crate) struct Letters {
    name: String,
    subjects: Vec<String>,
    bytes_max: usize,
    search: Search,
    last_sequence: u64,
}

impl Letters {
    pub(crate) fn new(info: &Info, message_bytes_max: usize) -> Self {
        let bounds = Bounds::of(info);
        Self {
            name: info.config.name.clone(),
            subjects: info.config.subjects.clone(),
            bytes_max: message_bytes_max,
            search: Search::new(bounds),
            last_sequence: bounds.last,
        }
    }

    /// The stream.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where the stream ends.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// Whether the guard has nothing more to say of them.
    pub(crate) fn is_searched(&self) -> bool {
        self.search.is_finished()
    }

    /// Where the next event in commit order was dead-lettered before.
    pub(crate) async fn place_of(
        &mut self,
        messages: &Messages,
        lineage: &Lineage,
        event: &Event,
    ) -> Result<Option<u64>, Error> {
        if self.search.is_finished() {
            return Ok(None);
        }
        let start = |bounds| Start {
            bounds,
            first: event.position,
            events_max: 0,
            bytes_max: 0,
        };
        let place = self.search.place_of(messages, lineage, start, event);
        let place = Box::pin(place).await?;
        self.search.finish();
        Ok(place)
    }

    /// What appends the event behind the others.
    pub(crate) fn compose(
        &self,
        letter: &Letter<'_>,
        way: (&Client, &StreamOptions),
    ) -> Result<Composed, Error> {
        let subject = self.entrance(letter, way)?;
        let mut message = letter.fit(self.bytes_max)?;
        message.subject = subject;
        let expected = self.last_sequence.to_string();
        push(&mut message.lines, EXPECTED_LAST_SEQUENCE, &expected);
        Ok(message)
    }

    /// It is appended.
    pub(crate) fn appended(&mut self) {
        self.last_sequence += 1;
    }

    /// Of `dlq.<subject>`; of `dlq._invalid.<STREAM>` for what never had a place in the stream, and
    /// where the first is too long for the server.
    fn entrance(
        &self,
        letter: &Letter<'_>,
        (client, stream): (&Client, &StreamOptions),
    ) -> Result<String, Error> {
        let event = letter.event;
        let covered = |subject: &String| {
            let mut patterns = self.subjects.iter();
            patterns.any(|pattern| route::matches(pattern, subject))
        };
        let own = Some(format!("dlq.{}", event.subject)).filter(|_| !event.subject.is_empty());
        let invalid = invalid_subject(&stream.name);
        let subjects = own.into_iter().chain([invalid.clone()]);
        let mut subjects = subjects.filter(covered).peekable();
        if subjects.peek().is_none() {
            return Err(Error::Uncovered {
                name: self.name.clone(),
                subjects: self.subjects.join(", "),
                subject: invalid,
            });
        }
        let mut entrances = subjects.map(|subject| stream.ingress.entrance(&self.name, &subject));
        let fitting = entrances.find(|subject| client.line(subject).fits());
        fitting.ok_or_else(|| letter.unfit("no subject of a dead letter fits, either"))
    }
}

/// An event on its way to the dead letters.
pub(crate) struct Letter<'a> {
    pub(crate) event: &'a Event,
    pub(crate) rejected: &'a Rejected,
    /// `Outjet-Source`.
    pub(crate) source: &'a str,
}

impl Letter<'_> {
    /// As much of the event as the server takes, for no subject yet.
    fn fit(&self, bytes_max: usize) -> Result<Composed, Error> {
        let payload = &self.event.payload;
        let compose = |lines: String, body: &Bytes| {
            let (subject, body) = (String::new(), body.clone());
            let message = Composed {
                subject,
                lines: self.describe(lines),
                body,
            };
            let (headers, all) = message.bytes();
            let expected = EXPECTATION_BYTES_MAX;
            let fits = headers + expected <= HEADER_BYTES_MAX && all + expected <= bytes_max;
            fits.then_some(message)
        };
        let bare = |body: &Bytes| compose(String::new(), body);
        let without_body = || {
            let mut lines = String::new();
            push(&mut lines, BODY_BYTES, &payload.len().to_string());
            compose(lines, &Bytes::new())
        };
        compose(row_lines(self.event), payload)
            .or_else(|| bare(payload))
            .or_else(without_body)
            .ok_or_else(|| self.unfit("too large for a dead letter"))
    }

    /// It cannot be sent, and there is no letter for it.
    fn unfit(&self, why: &str) -> Error {
        let error = format!("{}, and {why}", self.rejected.error);
        let reason = self.rejected.reason;
        Error::unsendable(self.event, Rejected { reason, error })
    }

    fn describe(&self, mut lines: String) -> String {
        let Event {
            position,
            id,
            table,
            ..
        } = self.event;
        let (table, error) = (header_text(table), header_text(&self.rejected.error));
        push(&mut lines, SOURCE, self.source);
        push_with(&mut lines, POSITION, |lines| position.push_to(lines));
        // Not as Nats-Msg-Id: two rows with one id are two letters.
        push(&mut lines, PLAIN_ID, id);
        push(&mut lines, TABLE, &table);
        push(&mut lines, REASON, self.rejected.reason);
        push(&mut lines, ERROR, &error);
        lines
    }
}

/// Appends a letter to the stream of this name, behind its last sequence number, and waits until it
/// is stored.
pub(crate) async fn append(
    client: &Client,
    message: &Composed,
    (name, last_sequence): (&str, u64),
    within: Duration,
) -> Result<(), Error> {
    let expected = last_sequence + 1;
    let answer = client.request(message.outgoing(), (name, within));
    let reason = match answer.await? {
        Reply::Stored { sequence, .. } if sequence == expected => return Ok(()),
        Reply::Stored { sequence, .. } => format!("stored at {sequence} instead of {expected}"),
        Reply::Duplicate(_) => "the server calls it a duplicate".to_owned(),
        Reply::Refused(reason) | Reply::Unclear(reason) => reason,
    };
    Err(Error::Broken(format!(
        "a dead letter was not acknowledged as expected: {reason}"
    )))
}

/// Says that events are dead-lettered: at once, then now and then.
#[derive(Default)]
pub(crate) struct Buried {
    events: u64,
    logged_at: Option<Instant>,
}

impl Buried {
    /// A mapping that does not fit rejects every row.
    const LOG_INTERVAL: Duration = Duration::from_secs(30);

    pub(crate) fn log(&mut self, event: &Event, rejected: &Rejected) {
        self.events += 1;
        let due = |at: Instant| at.elapsed() >= Self::LOG_INTERVAL;
        if self.logged_at.is_none_or(due) {
            self.logged_at = Some(Instant::now());
            let Event {
                position,
                id,
                table,
                ..
            } = event;
            let (events, cause) = (self.events, &rejected.error);
            warn!(%table, id, %position, events, cause, "an event went to the dead letters");
        }
    }
}

/// Text that quotes what was rejected, as a header takes it.
fn header_text(text: &str) -> String {
    let plain = text.chars().take(ERROR_CHARS_MAX);
    let plain: String = plain
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if header_is_sound(ERROR, &plain) {
        plain
    } else {
        plain.replace(EXPECTED_LAST_SEQUENCE, "Nats-Expected-…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_that_quotes_anything_is_a_sound_header() {
        for (text, header) in [
            ("plain: text, größe 1", "plain: text, größe 1"),
            ("a\r\nNats-Rollup: all\0", "a  Nats-Rollup: all "),
            (
                "header \"X-Nats-Expected-Last-Sequence\"",
                "header \"X-Nats-Expected-…\"",
            ),
        ] {
            assert_eq!(header_text(text), header);
            assert!(header_is_sound(ERROR, header));
        }
        let long = "ü".repeat(ERROR_CHARS_MAX + 1);
        assert_eq!(header_text(&long).chars().count(), ERROR_CHARS_MAX);
    }
}
