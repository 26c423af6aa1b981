//! The dead letters as a person looks at them: one by one, oldest first.

use std::borrow::Cow;

use time::OffsetDateTime;

use super::super::client::Desk;
use super::super::error::Error;
use super::super::messages::Whole;
use super::super::names::{ERROR, PLAIN_ID, POSITION, REASON, TABLE};
use super::super::options::Options;

/// The stream of the dead letters.
pub struct Letterbox {
    desk: Desk,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub struct DeadLetter(Whole);

impl DeadLetter {
    /// Its sequence number among the dead letters.
    pub fn sequence(&self) -> u64 {
        self.0.stored.sequence
    }

    /// When it was stored.
    pub fn stored(&self) -> OffsetDateTime {
        self.0.stored.time
    }

    /// `dlq.` and the subject that it should have had.
    pub fn subject(&self) -> &str {
        &self.0.subject
    }

    /// What it says about itself, and the headers of the event as far as they fit, each with its
    /// value.
    pub fn headers(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        self.0.stored.headers()
    }

    /// The event's body as far as it fits.
    pub fn body(&self) -> &[u8] {
        &self.0.body
    }

    /// `schema.table` of the row.
    pub fn table(&self) -> &str {
        self.header(TABLE)
    }

    /// The event's id.
    pub fn id(&self) -> &str {
        self.header(PLAIN_ID)
    }

    /// Its place in the commit order.
    pub fn position(&self) -> &str {
        self.header(POSITION)
    }

    /// What is wrong with it, in a word.
    pub fn reason(&self) -> &str {
        self.header(REASON)
    }

    /// What is wrong with it, in a sentence.
    pub fn error(&self) -> &str {
        self.header(ERROR)
    }

    fn header(&self, name: &str) -> &str {
        self.0.stored.header(name).unwrap_or_default()
    }
}

impl Letterbox {
    /// Opens it; [`Error::StreamMissing`] if there never were dead letters.
    pub async fn open(options: &Options) -> Result<Self, Error> {
        let mut options = options.of_dead_letters();
        options.stream.create = false;
        let desk = Box::pin(Desk::open(&options)).await?;
        Ok(Self { desk })
    }

    /// The first dead letter at or behind a sequence number.
    pub async fn next(&self, sequence: u64) -> Result<Option<DeadLetter>, Error> {
        let found = self.desk.streams.stream.whole_from(sequence).await?;
        Ok(found.map(DeadLetter))
    }

    /// The sequence number of the newest dead letter when it was opened.
    pub fn last_sequence(&self) -> u64 {
        self.desk.streams.info.state.last_sequence
    }

    /// Deletes a dead letter. Says whether there was one.
    pub async fn drop_letter(&self, sequence: u64) -> Result<bool, Error> {
        let stream = &self.desk.streams.stream;
        match stream.at(sequence).await? {
            None => Ok(false),
            Some(_) => stream.delete(sequence).await,
        }
    }
}
