//! The dead letters as a person looks at them: one by one, oldest first.

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind, Stream};
use bytes::Bytes;
use time::OffsetDateTime;

use super::super::client::Connection;
use super::super::error::Error;
use super::super::names::{ERROR, PLAIN_ID, POSITION, REASON, TABLE};
use super::super::options::Options;
use crate::error::chain;

/// The stream of the dead letters.
pub struct Letterbox {
    connection: Connection,
    stream: Stream<()>,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Its sequence number among the dead letters.
    pub sequence: u64,
    /// When it was stored.
    pub stored: OffsetDateTime,
    /// `dlq.` and the subject that it should have had.
    pub subject: String,
    /// What it says about itself, and the headers of the event as far as they fit.
    pub headers: HeaderMap,
    /// The event's body as far as it fits.
    pub body: Bytes,
}

impl DeadLetter {
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
        self.headers.get(name).map_or("", |value| value.as_str())
    }
}

impl Letterbox {
    /// Opens it; [`Error::StreamMissing`] if there never were dead letters.
    pub async fn open(options: &Options) -> Result<Self, Error> {
        let mut options = options.of_dead_letters();
        options.stream.create = false;
        let connection = Connection::open(&options).await?;
        let stream = connection.context.get_stream_no_info(&options.stream.name);
        let stream = stream.await.map_err(|error| broken(&error))?;
        Ok(Self { connection, stream })
    }

    /// The first dead letter at or behind a sequence number.
    pub async fn next(&self, sequence: u64) -> Result<Option<DeadLetter>, Error> {
        let read = async {
            let found = self.stream.get_first_raw_message_by_subject(">", sequence);
            match found.await {
                Ok(message) => Ok(Some(DeadLetter {
                    sequence: message.sequence,
                    stored: message.time,
                    subject: message.subject.to_string(),
                    headers: message.headers,
                    body: message.payload,
                })),
                Err(error) if is_empty(&error) => Ok(None),
                Err(error) => Err(broken(&error)),
            }
        };
        self.connection.unless_broken(Box::pin(read)).await
    }

    /// The sequence number of the newest dead letter when it was opened.
    pub fn last_sequence(&self) -> u64 {
        self.connection.info.state.last_sequence
    }

    /// Deletes a dead letter. Says whether there was one.
    pub async fn drop_letter(&self, sequence: u64) -> Result<bool, Error> {
        let letter = self.next(sequence).await?;
        if letter.is_none_or(|letter| letter.sequence != sequence) {
            return Ok(false);
        }
        let delete = async {
            let deleted = self.stream.delete_message(sequence).await;
            deleted.map_err(|error| broken(&error))
        };
        self.connection.unless_broken(Box::pin(delete)).await
    }
}

fn is_empty(error: &LastRawMessageError) -> bool {
    error.kind() == LastRawMessageErrorKind::NoMessageFound
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Broken(chain(error))
}
