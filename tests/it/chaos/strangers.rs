//! What others do to the stream, and what a judge has to know of it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, message::StreamMessage, stream::Stream};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::STREAM;
use super::plan::StrangerFault;
use crate::harness::Verdict;
use crate::harness::drain::Stored;

/// A broker that is away takes nothing from strangers, either.
const PATIENCE: Duration = Duration::from_millis(500);

/// What they have done.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    /// How often they have copied the message of an id, at most.
    copied: HashMap<String, usize>,
    /// Ids of messages that they have deleted, or may have.
    deleted: Vec<String>,
    /// The sequence numbers of all these messages.
    sequences: HashSet<u64>,
    /// When they have purged the stream, or may have, and up to which sequence number.
    purged: Vec<(OffsetDateTime, u64)>,
}

impl Strangers {
    /// Does it, if the broker lets them. Nobody purges what lies behind `read_to`, which is not 0
    /// then: servers before 2.12.10 and 2.14.2 purge the whole stream where they are told to purge
    /// it up to 1 (nats-server 28c298b, "`PurgeEx` with sequence=1 is a noop").
    pub(crate) async fn strike(
        &mut self,
        jetstream: &jetstream::Context,
        fault: StrangerFault,
        read_to: u64,
    ) {
        let _ = timeout(PATIENCE, self.try_to(jetstream, fault, read_to)).await;
    }

    /// Whether this sequence number says nothing about events.
    pub(crate) fn had(&self, sequence: u64) -> bool {
        self.sequences.contains(&sequence)
    }

    /// When this sequence number was purged, if it was.
    pub(crate) fn purged_at(&self, sequence: u64) -> Option<OffsetDateTime> {
        let mut purges = self.purged.iter();
        purges
            .find(|(_, up_to)| sequence <= *up_to)
            .map(|(at, _)| *at)
    }

    /// What of the stream is to be compared with what was committed: the first message of each id,
    /// and what cannot be explained by copies.
    pub(crate) fn ours(&self, stored: Vec<Stored>) -> Vec<Stored> {
        let mut copies = self.copied.clone();
        let mut seen = HashMap::new();
        let ours = stored.into_iter().filter(|message| {
            if message.header("Outjet-Source").is_none() {
                return false;
            }
            let id = message.id().expect("an id").to_owned();
            let before = seen.insert(id.clone(), ()).is_some();
            let copy = before && copies.get(&id).is_some_and(|left| *left > 0);
            if copy {
                copies.entry(id).and_modify(|left| *left -= 1);
            }
            !copy
        });
        ours.collect()
    }

    /// Table and stream, but for events whose messages were deleted: they need not be there, and
    /// may come back.
    pub(crate) fn verdict(&self, mut committed: Vec<String>, mut stored: Vec<String>) -> Verdict {
        committed.retain(|id| self.left(id));
        stored.retain(|id| self.left(id));
        Verdict::of(&committed, &stored)
    }

    /// Whether they have left the message of an id alone.
    pub(crate) fn left(&self, id: &str) -> bool {
        !self.deleted.iter().any(|deleted| deleted == id)
    }

    async fn try_to(
        &mut self,
        jetstream: &jetstream::Context,
        fault: StrangerFault,
        read_to: u64,
    ) -> Option<()> {
        let stream = jetstream.get_stream(STREAM).await.ok()?;
        match fault {
            StrangerFault::Write => {
                let sequence = write(jetstream, HeaderMap::new()).await?;
                self.sequences.insert(sequence);
            }
            StrangerFault::WriteAndVanish => {
                let sequence = write(jetstream, HeaderMap::new()).await?;
                self.sequences.insert(sequence);
                stream.delete_message(sequence).await.ok()?;
            }
            StrangerFault::WriteExpiring => {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-TTL", "1s");
                self.sequences.insert(write(jetstream, headers).await?);
            }
            StrangerFault::Purge => {
                assert!(read_to > 0, "something was read");
                self.purged.push((OffsetDateTime::now_utc(), read_to));
                stream.purge().sequence(read_to + 1).await.ok()?;
            }
            StrangerFault::Copy => {
                let message = newest(&stream).await?;
                let id = row_id(&message)?;
                *self.copied.entry(id).or_default() += 1;
                let mut headers = HeaderMap::new();
                for (name, values) in message.headers.iter() {
                    let name: &str = name.as_ref();
                    let values = values.iter().filter(|_| !name.starts_with("Nats-"));
                    values.for_each(|value| headers.append(name, value.clone()));
                }
                headers.insert("Outjet-Id", message_id(&message)?);
                let subject = message.subject.to_string();
                let body = message.payload;
                let sent = jetstream.publish_with_headers(subject, headers, body).await;
                self.sequences.insert(sent.ok()?.await.ok()?.sequence);
            }
            StrangerFault::Delete => {
                let message = newest(&stream).await?;
                self.deleted.push(row_id(&message)?);
                self.sequences.insert(message.sequence);
                stream.delete_message(message.sequence).await.ok()?;
            }
        }
        Some(())
    }
}

async fn write(jetstream: &jetstream::Context, headers: HeaderMap) -> Option<u64> {
    let body = "stranger".into();
    let sent = jetstream.publish_with_headers("events.stranger", headers, body);
    Some(sent.await.ok()?.await.ok()?.sequence)
}

/// The last message, if it is one of outjet's.
async fn newest(stream: &Stream) -> Option<StreamMessage> {
    let last = stream.cached_info().state.last_sequence;
    let message = stream.get_raw_message(last).await.ok()?;
    message.headers.get("Outjet-Source")?;
    Some(message)
}

fn message_id(message: &StreamMessage) -> Option<&str> {
    let headers = &message.headers;
    let id = headers.get("Nats-Msg-Id").or(headers.get("Outjet-Id"))?;
    Some(id.as_str())
}

fn row_id(message: &StreamMessage) -> Option<String> {
    Some(message_id(message)?.to_owned())
}
