//! Reads a stream of anybody's with subjects and bodies, from its first message, or from a time on,
//! to the one that was the last when it was opened: two of them are compared.

use std::collections::VecDeque;

use async_nats::jetstream::stream::RetentionPolicy;
use time::OffsetDateTime;

use super::super::client;
use super::super::error::Error;
use super::super::messages::{Messages, Whole};
use super::super::names::{MESSAGE_ID, PLAIN_ID, REPLAY};
use super::super::options::Options;
use super::super::tail::{Bounds, Reader, mark};
use crate::nats::Driven;

/// A stream that is read once.
pub struct Transcript {
    stream: Messages,
    /// Kept because the reader asks on it.
    _connection: Driven,
    bounds: Bounds,
    reader: Reader,
    read: VecDeque<Whole>,
    /// Its messages stay when they are consumed.
    pub keeps: bool,
    /// When it was opened, by the server's clock; servers before 2.10 do not tell.
    pub opened: Option<OffsetDateTime>,
}

impl Transcript {
    /// Opens the stream of `options`; [`Error::StreamMissing`] if there is none.
    pub async fn open(options: &Options) -> Result<Self, Error> {
        let mut options = options.of_stream();
        options.stream.create = false;
        let (stream, found, connection) = Box::pin(client::open_any(&options)).await?;
        let standing = stream.standing().await?;
        let bounds = Bounds::of(&found);
        Ok(Self {
            reader: Reader::new(stream.clone(), bounds.first.max(1), bounds.last),
            stream,
            _connection: connection,
            bounds,
            read: VecDeque::new(),
            keeps: found.config.retention == RetentionPolicy::Limits,
            opened: standing.now,
        })
    }

    /// Leaves out what was stored before, with a request for each halving of the stream.
    pub async fn skip_to(&mut self, time: OffsetDateTime) -> Result<(), Error> {
        let (mut low, mut high) = (self.bounds.first.max(1), self.bounds.last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match Box::pin(self.stream.from(middle)).await? {
                Some(found) if found.time < time => low = found.sequence + 1,
                _ => high = middle,
            }
        }
        self.reader = Reader::new(self.stream.clone(), low, self.bounds.last);
        Ok(())
    }

    /// The next message.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        if self.read.is_empty() {
            let batch = Box::pin(self.reader.fetch_on::<Whole>()).await?;
            self.read.extend(batch);
        }
        Ok(self.read.pop_front().map(Message))
    }
}

/// A message, whoever wrote it.
#[derive(Clone, Debug)]
pub struct Message(Whole);

impl Message {
    /// Its sequence number.
    pub fn sequence(&self) -> u64 {
        self.0.stored.sequence
    }

    /// When it was stored.
    pub fn time(&self) -> OffsetDateTime {
        self.0.stored.time
    }

    /// What it was stored under.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// Its bytes.
    pub fn body(&self) -> &[u8] {
        &self.0.body
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.0.stored.header(name)
    }

    /// The id that servers and consumers know it by.
    pub fn id(&self) -> Option<&str> {
        self.header(MESSAGE_ID).or_else(|| self.header(PLAIN_ID))
    }

    /// An outjet has published it, for the first time.
    pub fn is_event(&self) -> bool {
        mark(&self.0.stored).is_some() && self.header(REPLAY).is_none()
    }
}
