//! What is delayed and not due yet, as a person looks at it: listed, and cancelled by its id.

use super::super::client::Desk;
use super::super::error::Error;
use super::super::messages::Stored;
use super::super::names::{
    PLAIN_ID, SCHEDULE_TARGET, TARGET_PREFIX, schedules_of, schedules_prefix,
};
use super::super::options::Options;

/// The stream of what is delayed.
pub struct Schedules {
    desk: Desk,
    /// The stream whose events these are.
    of: String,
}

/// An event that is not due yet.
#[derive(Clone, Debug)]
pub struct Schedule(Stored);

impl Schedule {
    /// Its sequence number among what is delayed.
    pub fn sequence(&self) -> u64 {
        self.0.sequence
    }

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
        let target = self.header(SCHEDULE_TARGET);
        target.strip_prefix(TARGET_PREFIX).unwrap_or(target)
    }

    fn header(&self, name: &str) -> &str {
        self.0.header(name).unwrap_or_default()
    }
}

impl Schedules {
    /// Opens it; [`Error::StreamMissing`] if nothing ever was delayed.
    pub async fn open(options: &Options) -> Result<Self, Error> {
        let of = options.stream.name.clone();
        let mut options = options.of_delayed();
        options.stream.create = false;
        let desk = Box::pin(Desk::open(&options)).await?;
        Ok(Self { desk, of })
    }

    /// The first at or behind a sequence number.
    pub async fn next(&self, sequence: u64) -> Result<Option<Schedule>, Error> {
        let all = format!("{}.*.*", schedules_prefix(&self.of));
        let found = self.desk.streams.stream.next_of(&all, sequence).await?;
        Ok(found.map(Schedule))
    }

    /// Removes what is delayed of the events with this id. Says whether there was anything.
    pub async fn cancel(&self, id: &str) -> Result<bool, Error> {
        let schedules = schedules_of(&self.of, id);
        Ok(self.desk.streams.stream.purge(&schedules).await? > 0)
    }
}
