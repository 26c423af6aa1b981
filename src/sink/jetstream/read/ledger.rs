//! Reads a whole stream, from its first message to the one that was the last when it was opened:
//! what it holds is compared with a table. Headers are all that is looked at.

use std::collections::VecDeque;

use async_nats::jetstream::stream::RetentionPolicy;
use time::OffsetDateTime;

use super::super::client::Desk;
use super::super::error::Error;
use super::super::messages::Stored;
use super::super::names::REPLAY;
use super::super::options::Options;
use super::super::tail::{Bounds, Reader, entry};
use crate::guard::Entry;

/// A stream that is read once.
pub struct Ledger {
    /// Kept because the reader asks on it.
    _desk: Desk,
    reader: Reader,
    read: VecDeque<Line>,
    /// How many it held when it was opened.
    pub messages: u64,
    /// Where it ended then.
    pub last_sequence: u64,
    /// What is known of messages that are there no more.
    pub past: Past,
}

/// What a stream says about messages that it held once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// All that it ever held is there.
    Whole,
    /// What was stored before this time is gone.
    Since(OffsetDateTime),
    /// Messages vanish when they are consumed, or all are gone.
    Unknown,
}

impl Ledger {
    /// Opens the stream of `options`; [`Error::StreamMissing`] if there is none.
    pub async fn open(options: &Options) -> Result<Self, Error> {
        let mut options = options.of_stream();
        options.stream.create = false;
        let desk = Box::pin(Desk::open(&options)).await?;
        let stream = desk.streams.stream.clone().of_all();
        let found = &desk.streams.info;
        let bounds = Bounds::of(found);
        let first = bounds.first.max(1);
        let past = if bounds.last == 0 {
            Past::Whole
        } else if found.config.retention != RetentionPolicy::Limits {
            Past::Unknown
        } else {
            match Box::pin(stream.from(first)).await? {
                None => Past::Unknown,
                Some(oldest) if oldest.sequence == 1 => Past::Whole,
                Some(oldest) => Past::Since(oldest.time),
            }
        };
        let messages = found.state.messages;
        let reader = Reader::new(stream, first, bounds.last);
        Ok(Self {
            _desk: desk,
            reader,
            read: VecDeque::new(),
            messages,
            last_sequence: bounds.last,
            past,
        })
    }

    /// The next message.
    pub async fn next(&mut self) -> Result<Option<Line>, Error> {
        if self.read.is_empty() {
            let batch = Box::pin(self.reader.fetch_on::<Stored>()).await?;
            self.read.extend(batch.iter().map(|message| Line {
                entry: entry(message),
                replay: message.header(REPLAY).is_some(),
            }));
        }
        Ok(self.read.pop_front())
    }
}

/// A message, as far as it is looked at.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it bears.
    pub entry: Entry,
    /// It was published again on purpose.
    pub replay: bool,
}
