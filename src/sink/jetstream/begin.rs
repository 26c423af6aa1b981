//! What a term asks of the stream and of the record before its first event.

use std::time::Duration;

use tokio::time::Instant;

use super::JetStream;
use super::append::epoch::Epoch;
use super::error::Error;
use super::options::BEHIND_MAX;
use super::streams;
use super::tail::{self, Bounds};
use crate::error::Failure;
use crate::event::Position;
use crate::event::lineage::{Lineage, Mark, Place};
use crate::sink::{At, Kept, Past, Write, Written};

/// How often it is asked meanwhile.
const BEHIND_POLL: Duration = Duration::from_millis(100);

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
        asked.map_err(|error| error.failure(&self.appender.options))
    }

    /// What is kept for our slot; or why nothing is.
    pub async fn kept(&mut self) -> Result<Result<Option<Kept>, String>, Failure> {
        let read = Box::pin(self.read_kept()).await;
        match read.map_err(|error| self.appender.without_it(error)) {
            Err(Error::BucketDenied(why)) => {
                self.reopen().await?;
                Ok(Err(why))
            }
            read => read.map_err(|error| error.failure(&self.appender.options)),
        }
    }

    async fn read_kept(&mut self) -> Result<Result<Option<Kept>, String>, Error> {
        match &self.epoch.bucket {
            Err(why) => Ok(Err(why.clone())),
            Ok(bucket) => Ok(Ok(self.epoch.link.during(Box::pin(bucket.read())).await?)),
        }
    }

    /// Keeps bytes for our slot, before the sink runs.
    pub async fn keep(&mut self, write: Write) -> Result<Written, Failure> {
        let written = Box::pin(self.write(&write)).await;
        match written.map_err(|error| self.appender.without_it(error)) {
            Err(Error::BucketDenied(why)) => {
                self.reopen().await?;
                Ok(Written::Refused(why))
            }
            written => written.map_err(|error| error.failure(&self.appender.options)),
        }
    }

    /// What is found at the place of an event.
    pub async fn found_at(&mut self, place: &Place) -> Result<At, Failure> {
        let read = Box::pin(self.epoch.streams.stream.at(place.sequence));
        let found = self.epoch.link.during(read).await;
        let found = found.map_err(|error| error.failure(&self.appender.options))?;
        Ok(tail::compare(
            found.as_ref(),
            place,
            self.appender.lineage.source(),
        ))
    }

    /// Says which timelines are no part of our history, and up to where they shared it. Before
    /// anything is read.
    pub fn learn(&mut self, dead: Vec<(u32, u64)>) {
        self.appender.learn(dead);
    }

    /// Says what is known of the events that come. Once, before the sink runs.
    pub async fn begin(&mut self, past: Past) -> Result<(), Failure> {
        let begun = Box::pin(self.appender.remember(&mut self.epoch, past)).await;
        begun.map_err(|error| error.failure(&self.appender.options))
    }

    async fn ask_standing(&mut self, reached: u64, delayed: bool) -> Result<Standing, Error> {
        let since = Instant::now();
        loop {
            self.epoch.refresh().await?;
            let behind = self.epoch.last_sequence < reached
                && self.epoch.streams.info.config.num_replicas > 1;
            if !behind || since.elapsed() >= BEHIND_MAX {
                break;
            }
            tokio::time::sleep(BEHIND_POLL).await;
        }
        let Epoch {
            link,
            client,
            streams,
            bucket,
            last_sequence,
            ..
        } = &mut self.epoch;
        let (options, lineage) = (&self.appender.options, &self.appender.lineage);
        let bounds = Bounds {
            last: *last_sequence,
            ..Bounds::of(&streams.info)
        };
        let newest = Box::pin(tail::newest_marks(&streams.stream, bounds));
        let newest = link.during(newest).await?;
        let delayed = match delayed {
            true => {
                let delayed = client.messages(&options.stream.delayed().name);
                Some(link.during(Box::pin(delayed.last_sequence())).await?)
            }
            false => None,
        };
        let cluster = streams.info.cluster.as_ref();
        let leader = cluster.and_then(|cluster| cluster.leader.clone());
        let (server_id, server_name) = client.server();
        let letters = streams.letters.as_ref();
        Ok(Standing {
            created: streams::created(&streams.info),
            last_sequence: *last_sequence,
            newest: newest_of(&newest, lineage),
            holds: !options.hold.is_zero(),
            letters: letters.map(|(_, info)| info.state.last_sequence),
            delayed,
            record_replicas: bucket.as_ref().map_or(0, |bucket| bucket.replicas),
            server_id: match leader {
                Some(leader) if leader != server_name => String::new(),
                _ => server_id,
            },
        })
    }

    async fn write(&mut self, write: &Write) -> Result<Written, Error> {
        match &self.epoch.bucket {
            Err(why) => Ok(Written::Refused(why.clone())),
            Ok(bucket) => {
                let within = self.appender.options.ack_timeout;
                let written = bucket.write(&self.epoch.client, write, within);
                self.epoch.link.during(Box::pin(written)).await
            }
        }
    }

    /// A connection that was refused something is of no more use.
    async fn reopen(&mut self) -> Result<(), Failure> {
        let opened = Box::pin(self.appender.open_epoch()).await;
        self.epoch = opened.map_err(|error| error.failure(&self.appender.options))?;
        Ok(())
    }
}

/// Where the newest event of a slot is in the commit order, unless it is of a dead timeline.
fn newest_of(newest: &[Mark], lineage: &Lineage) -> Option<Position> {
    let mut own = newest.iter();
    let own = own.find(|mark| mark.source.same_slot(lineage.source()))?;
    lineage.holds(own).then_some(own.position)
}
