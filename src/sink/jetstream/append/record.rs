//! The record, as far as a sink has to do with it: bytes that are written on the same connection as
//! the events, one write at a time, and what is found when a term begins.

use async_nats::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::JetStream;
use super::super::bucket::{self, Answer, Bucket};
use super::super::client::{self, Connection};
use super::super::error::Error;
use super::super::inspection;
use super::super::messages::Messages;
use super::super::names::record_bucket;
use super::super::tail::{self, Bounds};
use super::epoch::epoch_mut;
use crate::error::Failure;
use crate::event::Position;
use crate::event::lineage::{Lineage, Mark, Place};
use crate::fault;
use crate::sink::{At, Kept, Past, Report, Write, Written};

/// The last token of the subject on which the answer to a write comes.
pub(crate) const REPLY: &str = ".record";

/// A new leader of a replicated stream may not have caught up yet; it does within an election or
/// two.
const BEHIND_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// How often it is asked meanwhile.
const BEHIND_POLL: std::time::Duration = std::time::Duration::from_millis(100);

/// The stream, when a term begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// When it was created, RFC 3339.
    pub created: String,
    /// Its last sequence number.
    pub last_sequence: u64,
    /// Its newest event of our lineage, if one is found near the end.
    pub newest: Option<Position>,
    /// Whether events are held back before they are confirmed.
    pub holds: bool,
    /// The same of the dead letters, and of what is delayed, as far as they were asked for.
    pub letters: Option<u64>,
    /// The same of what is delayed.
    pub delayed: Option<u64>,
    /// Copies of the record.
    pub record_replicas: usize,
    /// Names the process of the server that holds the record; empty if that is not known.
    pub server_id: String,
}

impl JetStream {
    /// What the stream is now, and what is delayed, if it is asked for. A stream that ends before a
    /// sequence number which it has reached is given a few seconds.
    pub async fn standing(&mut self, reached: u64, delayed: bool) -> Result<Standing, Failure> {
        let asked = Box::pin(self.ask_standing(reached, delayed)).await;
        asked.map_err(|error| error.failure(&self.options))
    }

    /// What is kept for our slot; or why nothing is.
    pub async fn kept(&mut self) -> Result<Result<Option<Kept>, String>, Failure> {
        let read = Box::pin(self.read_kept()).await;
        match read.map_err(|error| self.without_it(error)) {
            Err(Error::BucketDenied(why)) => {
                let opened = Box::pin(self.open_epoch()).await;
                opened.map_err(|error| error.failure(&self.options))?;
                Ok(Err(why))
            }
            read => read.map_err(|error| error.failure(&self.options)),
        }
    }

    async fn read_kept(&self) -> Result<Result<Option<Kept>, String>, Error> {
        let epoch = self.epoch.as_ref().expect("an epoch runs");
        match &epoch.bucket {
            Err(why) => Ok(Err(why.clone())),
            Ok(bucket) => {
                let read = epoch.connection.unless_broken(Box::pin(bucket.read()));
                Ok(Ok(read.await?))
            }
        }
    }

    /// Keeps bytes for our slot, before the sink runs.
    pub async fn keep(&mut self, write: Write) -> Result<Written, Failure> {
        let written = Box::pin(self.write(&write)).await;
        match written.map_err(|error| self.without_it(error)) {
            Err(Error::BucketDenied(why)) => {
                let opened = Box::pin(self.open_epoch()).await;
                opened.map_err(|error| error.failure(&self.options))?;
                Ok(Written::Refused(why))
            }
            written => written.map_err(|error| error.failure(&self.options)),
        }
    }

    /// What is found at the place of an event.
    pub async fn found_at(&self, place: &Place) -> Result<At, Failure> {
        let connection = &self.epoch.as_ref().expect("an epoch runs").connection;
        let read = Box::pin(connection.stream.at(place.sequence));
        let found = connection.unless_broken(read).await;
        let found = found.map_err(|error| error.failure(&self.options))?;
        Ok(tail::compare(found.as_ref(), place, self.lineage.source()))
    }

    /// Says what is known of the events that come. Once, before the sink runs.
    pub async fn begin(&mut self, past: Past) -> Result<(), Failure> {
        let begun = Box::pin(self.remember(past)).await;
        begun.map_err(|error| error.failure(&self.options))
    }

    async fn ask_standing(&mut self, reached: u64, delayed: bool) -> Result<Standing, Error> {
        let since = Instant::now();
        loop {
            let epoch = epoch_mut(&mut self.epoch);
            epoch.refresh().await?;
            let behind =
                epoch.last_sequence < reached && epoch.connection.info.config.num_replicas > 1;
            if !behind || since.elapsed() >= BEHIND_MAX {
                break;
            }
            tokio::time::sleep(BEHIND_POLL).await;
        }
        let epoch = epoch_mut(&mut self.epoch);
        let connection = &epoch.connection;
        let bounds = Bounds {
            last: epoch.last_sequence,
            ..Bounds::of(&connection.info)
        };
        let newest = Box::pin(tail::newest_marks(&connection.stream, bounds));
        let newest = connection.unless_broken(newest).await?;
        let delayed = match delayed {
            true => {
                let name = self.options.stream.delayed().name;
                let delayed = Messages::new(connection.context.clone(), &name);
                let asked = Box::pin(delayed.last_sequence());
                Some(connection.unless_broken(asked).await?)
            }
            false => None,
        };
        let cluster = connection.info.cluster.as_ref();
        let leader = cluster.and_then(|cluster| cluster.leader.clone());
        let (server_id, server_name) = connection.server();
        let letters = connection.letters.as_ref();
        Ok(Standing {
            created: client::created(&connection.info),
            last_sequence: epoch.last_sequence,
            newest: newest_of(&newest, &self.lineage),
            holds: !self.options.hold.is_zero(),
            letters: letters.map(|(_, info)| info.state.last_sequence),
            delayed,
            record_replicas: epoch.bucket.as_ref().map_or(0, |bucket| bucket.replicas),
            server_id: match leader {
                Some(leader) if leader != server_name => String::new(),
                _ => server_id,
            },
        })
    }

    async fn write(&mut self, write: &Write) -> Result<Written, Error> {
        let epoch = self.epoch.as_ref().expect("an epoch runs");
        match &epoch.bucket {
            Err(why) => Ok(Written::Refused(why.clone())),
            Ok(bucket) => {
                let within = self.options.ack_timeout;
                bucket.write(&epoch.connection, write, within).await
            }
        }
    }

    /// Refuses to append behind these newest events, unless ours have taken the place of those of
    /// another cluster: the record says so.
    pub(crate) async fn check_newest(
        &self,
        connection: &Connection,
        newest: &[Mark],
    ) -> Result<(), Error> {
        let ours = self.lineage.source();
        let checked = inspection::check_newest(&self.options.stream, newest, ours);
        let Err(error @ Error::OtherSource { .. }) = checked else {
            return checked;
        };
        if self.options.takes_over {
            return Ok(());
        }
        if !self.options.record || self.denied.is_some() {
            return Err(error);
        }
        // None is made beside a stream that may not be ours.
        let mut options = self.options.clone();
        options.stream.create = false;
        let kept = match bucket::of_slot(connection, &options, ours).await {
            Ok(Ok(bucket)) => connection.unless_broken(Box::pin(bucket.read())).await?,
            Ok(Err(_)) | Err(Error::BucketDenied(_)) => None,
            Err(error) => return Err(error),
        };
        let whose = kept.as_ref().and_then(self.options.whose);
        match whose.is_some_and(|whose| whose.same_slot(ours)) {
            true => Ok(()),
            false => Err(error),
        }
    }

    /// Opens the bucket, or creates it if told so; or says why there is none.
    pub(crate) async fn open_bucket(
        &self,
        connection: &Connection,
    ) -> Result<Result<Bucket, String>, Error> {
        if let Some(why) = &self.denied {
            return Ok(Err(why.clone()));
        }
        if !self.options.record {
            return Ok(Err("nothing is to be recorded".to_owned()));
        }
        bucket::of_slot(connection, &self.options, self.lineage.source()).await
    }

    /// What an error means that was caused by what we can do without, and may not use: the
    /// connection is made anew, and that is left alone.
    pub(crate) fn without_it(&mut self, error: Error) -> Error {
        match error {
            Error::PublishDenied(why)
                if self.options.delayed.is_none()
                    && why.contains(&self.options.stream.delayed().name) =>
            {
                self.schedules_denied = true;
                Error::Broken(why)
            }
            Error::PublishDenied(why)
                if why.contains(&record_bucket(&self.options.stream.name)) =>
            {
                self.denied = Some(why.clone());
                Error::BucketDenied(why)
            }
            Error::BucketDenied(why) => {
                self.denied = Some(why.clone());
                Error::BucketDenied(why)
            }
            error => error,
        }
    }

    /// There may be a bucket by now. Writes come seldom while there is none.
    async fn search_bucket(&mut self) -> Result<(), Error> {
        let epoch = self.epoch.as_ref().expect("an epoch runs");
        if epoch.bucket.is_ok() {
            return Ok(());
        }
        let opened = Box::pin(self.open_bucket(&epoch.connection)).await?;
        epoch_mut(&mut self.epoch).bucket = opened;
        Ok(())
    }

    /// Sends a write; its answer comes among the others.
    pub(crate) async fn send_write(
        &mut self,
        write: Write,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        assert!(self.writing.is_none(), "one write at a time");
        self.search_bucket().await?;
        let epoch = epoch_mut(&mut self.epoch);
        let bucket = match &epoch.bucket {
            Ok(bucket) => bucket,
            Err(why) => {
                let refused = Written::Refused(why.clone());
                let _ = reports.send(Report::Written(refused)).await;
                return Ok(());
            }
        };
        let (subject, headers, bytes) = bucket.message(&write);
        let reply = format!("{}{REPLY}", epoch.connection.inbox);
        self.writing = Some(write);
        let publish = epoch.connection.publish(
            (subject, Some(reply)),
            (headers, bytes),
            self.options.ack_timeout,
        );
        publish.await?;
        fault::point("record_sent");
        Ok(())
    }

    /// The answer to the write.
    pub(crate) async fn take_written(
        &mut self,
        message: &Message,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        fault::point("record_answered");
        let epoch = epoch_mut(&mut self.epoch);
        let answer = match &epoch.bucket {
            Ok(bucket) => bucket.answer(&epoch.connection, message),
            Err(why) => Answer::Known(Written::Refused(why.clone())),
        };
        match answer {
            Answer::Twin => Ok(()),
            Answer::Known(written) => {
                self.writing = None;
                let _ = reports.send(Report::Written(written)).await;
                Ok(())
            }
            Answer::Unknown => self.settle_write(reports).await,
        }
    }

    /// What became of a write whose answer was not heard, or not understood: what is there says it.
    pub(crate) async fn settle_write(
        &mut self,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        if self.writing.is_none() {
            return Ok(());
        }
        let epoch = epoch_mut(&mut self.epoch);
        let written = match &epoch.bucket {
            Ok(bucket) => {
                let read = Box::pin(bucket.read());
                Written::Found(epoch.connection.unless_broken(read).await?)
            }
            Err(why) => Written::Refused(why.clone()),
        };
        self.writing = None;
        let _ = reports.send(Report::Written(written)).await;
        Ok(())
    }
}

/// Where the newest event of a slot is in the commit order, unless it is of a dead timeline.
fn newest_of(newest: &[Mark], lineage: &Lineage) -> Option<Position> {
    let mut own = newest.iter();
    let own = own.find(|mark| mark.source.same_slot(lineage.source()))?;
    lineage.holds(own).then_some(own.position)
}
