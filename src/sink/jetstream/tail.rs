//! Reads what stands at the end of the stream, for the guard. Asks the stream's leader, message by
//! message and many at a time: followers may lag behind.

use std::collections::VecDeque;

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use futures_util::future::join_all;

use super::error::Error;
use crate::event::Position;
use crate::guard::{Entry, Guard, Lineage, Mark, Source, Verdict};

/// The headers that the guard reads. `Outjet-Id` stands for `Nats-Msg-Id` where that was left out.
pub(super) const SOURCE: &str = "Outjet-Source";
pub(super) const POSITION: &str = "Outjet-Position";
pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";
pub(super) const PLAIN_ID: &str = "Outjet-Id";

/// Most requests at once.
const BATCH_MAX: u64 = 256;

/// About how many bytes of messages may be underway: the answers carry the bodies, too.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// The guard with its view of the stream, for one epoch.
#[derive(Debug)]
pub(super) struct Tail {
    stream: Stream<()>,
    guard: Guard,
    read: VecDeque<Entry>,
    next_sequence: u64,
    last_sequence: u64,
    batch: u64,
    strangers: u64,
}

impl Tail {
    /// Behind an acknowledgement: everything after `acknowledged` is what was sent since.
    pub(super) fn since(stream: Stream<()>, lineage: Lineage, range: Range) -> Self {
        let guard = Guard::new(lineage, range.acknowledged + 1, range.last).anchored();
        Self::new(stream, guard, range.acknowledged + 1, range.last)
    }

    /// Nothing is known: looks for an entry behind `first`, jumping back in growing steps.
    pub(super) async fn search(
        stream: Stream<()>,
        lineage: Lineage,
        bounds: Bounds,
        first: Position,
    ) -> Result<Self, Error> {
        let Bounds {
            first: oldest,
            last,
        } = bounds;
        let mut jump = 1;
        let mut at = last;
        while at >= oldest && at > 0 {
            let entry = fetch(&stream, at).await?.map(|message| entry(&message));
            let mark = entry
                .and_then(|entry| entry.mark)
                .filter(|mark| lineage.holds(mark));
            if mark.is_some_and(|mark| mark.position < first) {
                let guard = Guard::new(lineage, at, last);
                return Ok(Self::new(stream, guard, at, last));
            }
            at = at.saturating_sub(jump);
            jump *= 2;
        }
        let guard = Guard::new(lineage, 1, last);
        Ok(Self::new(stream, guard, oldest.max(1), last))
    }

    fn new(stream: Stream<()>, guard: Guard, next_sequence: u64, last_sequence: u64) -> Self {
        let read = VecDeque::new();
        Self {
            stream,
            guard,
            read,
            next_sequence,
            last_sequence,
            batch: 8,
            strangers: 0,
        }
    }

    /// Whether the next event in commit order stands in the stream.
    pub(super) async fn holds(&mut self, position: Position, id: &str) -> Result<bool, Error> {
        loop {
            match self.guard.judge(position, id) {
                Verdict::Stored => return Ok(true),
                Verdict::Absent => return Ok(false),
                Verdict::Unknown if self.guard.wants().is_none() => {}
                Verdict::Unknown => self.offer_next().await?,
            }
        }
    }

    /// Whether every further event is absent without asking.
    pub(super) fn finished(&self) -> bool {
        self.guard.finished()
    }

    /// Messages without our headers that were read so far.
    pub(super) fn strangers(&self) -> u64 {
        self.strangers
    }

    async fn offer_next(&mut self) -> Result<(), Error> {
        if self.read.is_empty() {
            self.read_on().await?;
        }
        match self.read.pop_front() {
            Some(entry) => {
                self.strangers += u64::from(entry.mark.is_none());
                self.guard.offer(entry);
            }
            None => self.guard.end(),
        }
        Ok(())
    }

    /// Reads the next batch of what is left; over a gap, with one request to its end.
    async fn read_on(&mut self) -> Result<(), Error> {
        while self.read.is_empty() && self.next_sequence <= self.last_sequence {
            let end = self.last_sequence.min(self.next_sequence + self.batch - 1);
            let sequences = self.next_sequence..=end;
            let messages = join_all(sequences.map(|at| fetch(&self.stream, at))).await;
            let mut largest = 1;
            for message in messages {
                if let Some(message) = message? {
                    largest = largest.max(message.payload.len());
                    self.read.push_back(entry(&message));
                }
            }
            self.next_sequence = end + 1;
            self.batch = (self.batch * 2)
                .min(BATCH_MAX)
                .min((BATCH_BYTES / largest) as u64)
                .max(1);
            if self.read.is_empty() {
                self.next_sequence = self.end_of_gap().await?;
            }
        }
        Ok(())
    }

    async fn end_of_gap(&self) -> Result<u64, Error> {
        let next = self
            .stream
            .get_first_raw_message_by_subject(">", self.next_sequence)
            .await;
        match next {
            Ok(message) => Ok(message.sequence),
            Err(error) if is_missing(&error.kind()) => Ok(self.last_sequence + 1),
            Err(error) => Err(Error::Broken(format!("read the stream: {error}"))),
        }
    }
}

/// What may have been sent since an acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) acknowledged: u64,
    pub(super) last: u64,
}

/// What a stream holds: the first and the last sequence number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// Whose event the newest message of ours is, if one is found near the end.
pub(super) async fn newest_source(
    stream: &Stream<()>,
    bounds: Bounds,
) -> Result<Option<Source>, Error> {
    // Enough to look past a few strangers; an older event of another source is found by the guard.
    const LOOK_BACK: u64 = 8;
    let oldest = bounds
        .first
        .max(bounds.last.saturating_sub(LOOK_BACK))
        .max(1);
    for sequence in (oldest..=bounds.last).rev() {
        let message = fetch(stream, sequence).await?;
        if let Some(mark) = message.and_then(|message| entry(&message).mark) {
            return Ok(Some(mark.source));
        }
    }
    Ok(None)
}

async fn fetch(stream: &Stream<()>, sequence: u64) -> Result<Option<StreamMessage>, Error> {
    match stream.get_raw_message(sequence).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if is_missing(&error.kind()) => Ok(None),
        Err(error) => Err(Error::Broken(format!("read message {sequence}: {error}"))),
    }
}

/// Whether an answer says that there is no such message (error 10037).
fn is_missing(kind: &LastRawMessageErrorKind) -> bool {
    match kind {
        LastRawMessageErrorKind::NoMessageFound => true,
        LastRawMessageErrorKind::JetStream(error) => {
            error.error_code() == async_nats::jetstream::ErrorCode::NO_MESSAGE_FOUND
        }
        LastRawMessageErrorKind::InvalidSubject | LastRawMessageErrorKind::Other => false,
    }
}

fn entry(message: &StreamMessage) -> Entry {
    Entry {
        sequence: message.sequence,
        mark: mark(&message.headers),
    }
}

fn mark(headers: &HeaderMap) -> Option<Mark> {
    let text = |name| headers.get(name).map(async_nats::HeaderValue::as_str);
    Some(Mark {
        source: Source::parse(text(SOURCE)?)?,
        position: text(POSITION)?.parse().ok()?,
        id: text(MESSAGE_ID).or_else(|| text(PLAIN_ID))?.to_owned(),
    })
}
