//! What is delayed and not due yet, as a person looks at it: listed, and cancelled by its id.

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};

use super::super::aside::delayed::schedule_target;
use super::super::client::Connection;
use super::super::error::Error;
use super::super::names::{PLAIN_ID, TARGET_PREFIX, schedules_of, schedules_prefix};
use super::super::options::Options;
use crate::error::chain;

/// The stream of what is delayed.
pub struct Schedules {
    connection: Connection,
    stream: Stream<()>,
    /// The stream whose events these are.
    of: String,
}

/// An event that is not due yet.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its sequence number among what is delayed.
    pub sequence: u64,
    headers: HeaderMap,
}

impl Schedule {
    /// The event's id.
    pub fn id(&self) -> &str {
        self.header(PLAIN_ID)
    }

    /// When it is due, in RFC 3339.
    pub fn due(&self) -> &str {
        self.header("Outjet-Deliver-At")
    }

    /// The subject on which it will appear, without what says that it was delayed.
    pub fn subject(&self) -> &str {
        let target = schedule_target(&self.headers).unwrap_or_default();
        target.strip_prefix(TARGET_PREFIX).unwrap_or(target)
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.as_str())
    }
}

impl Schedules {
    /// Opens it; [`Error::StreamMissing`] if nothing ever was delayed.
    pub async fn open(options: &Options) -> Result<Self, Error> {
        let of = options.stream.name.clone();
        let mut options = options.of_delayed();
        options.stream.create = false;
        let connection = Connection::open(&options).await?;
        let stream = connection.context.get_stream_no_info(&options.stream.name);
        let stream = stream.await.map_err(|error| broken(&error))?;
        Ok(Self {
            connection,
            stream,
            of,
        })
    }

    /// The first at or behind a sequence number.
    pub async fn next(&self, sequence: u64) -> Result<Option<Schedule>, Error> {
        let all = format!("{}.*.*", schedules_prefix(&self.of));
        let read = async {
            let found = self.stream.get_first_raw_message_by_subject(&all, sequence);
            match found.await {
                Ok(message) => Ok(Some(Schedule {
                    sequence: message.sequence,
                    headers: message.headers,
                })),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
                Err(error) => Err(broken(&error)),
            }
        };
        self.connection.unless_broken(Box::pin(read)).await
    }

    /// Removes what is delayed of the events with this id. Says whether there was anything.
    pub async fn cancel(&self, id: &str) -> Result<bool, Error> {
        let purge = self.stream.purge().filter(schedules_of(&self.of, id));
        let purged = async {
            let purged = purge.await.map_err(|error| broken(&error))?;
            Ok(purged.purged > 0)
        };
        self.connection.unless_broken(Box::pin(purged)).await
    }
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Broken(chain(error))
}
