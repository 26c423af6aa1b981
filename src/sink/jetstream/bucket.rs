//! The bucket beside the stream, in which the leader keeps its record: a KV bucket as all clients
//! of NATS know them (ADR-8), with one key for each slot. Every write is a compare-and-set
//! (`Nats-Expected-Last-Subject-Sequence`), and every read asks the bucket's leader: a follower
//! gives stale answers (54 of 3000 reads of three replicas, nats-server 2.15.1).

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::{HeaderMap, HeaderValue, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};

use super::client::Connection;
use super::error::Error;
use super::messages::Messages;
use super::options::Options;
use super::reply::Reply;
use crate::event::lineage::Source;
use crate::sink::{Kept, Write, Written};

const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";

/// What tells that a key was deleted.
const OPERATION: &str = "KV-Operation";

/// How the name of a bucket's stream begins.
const KV: &str = "KV_";

/// The bucket of a stream: `OUTJET_<STREAM>`. Names of buckets have fewer characters than names of
/// streams; the hash keeps two streams apart that would have the same.
pub(super) fn name(stream: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if stream.chars().all(plain) {
        return format!("OUTJET_{stream}");
    }
    let replaced: String = stream
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    let hash = Sha256::digest(stream.as_bytes());
    let digits: String = hash
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("OUTJET_{replaced}{digits}")
}

/// The stream that a bucket is.
pub(super) fn stream_name(stream: &str) -> String {
    format!("{KV}{}", name(stream))
}

/// The key of a slot. Streams that are shared may have writers of several clusters.
fn key(shared: bool, source: &Source) -> String {
    match shared {
        true => format!("{}.{}", source.system, source.slot),
        false => source.slot.clone(),
    }
}

/// The configuration that the missing bucket of a stream is created with, as the clients make them,
/// where the stream is.
pub(super) fn config(stream: &str, beside: &Config) -> Config {
    Config {
        name: stream_name(stream),
        subjects: vec![format!("$KV.{}.>", name(stream))],
        max_messages_per_subject: 1,
        num_replicas: beside.num_replicas,
        placement: beside.placement.clone(),
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        allow_direct: true,
        deny_delete: true,
        max_message_size: -1,
        max_bytes: -1,
        description: Some(format!("what outjet has settled in {stream}")),
        ..Config::default()
    }
}

/// The key of our slot.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    messages: Messages,
    stream: String,
    subject: String,
    /// Where to publish to it.
    entrance: String,
    pub(super) replicas: usize,
}

impl Bucket {
    /// For the key of a slot in the bucket of a stream, whose replicas were read.
    pub(super) fn new(
        connection: &Connection,
        (options, source): (&Options, &Source),
        replicas: usize,
    ) -> Self {
        let stream = &options.stream;
        let (key, bucket) = (key(stream.shared, source), name(&stream.name));
        let subject = format!("$KV.{bucket}.{key}");
        Self {
            messages: Messages::new(connection.context.clone(), &stream_name(&stream.name)),
            stream: stream_name(&stream.name),
            // No twin in another domain answers this (nats.go, kv.go: useJSPfx).
            entrance: match &options.nats.domain {
                Some(domain) => format!("$JS.{domain}.API.{subject}"),
                None => subject.clone(),
            },
            subject,
            replicas,
        }
    }

    /// What is kept.
    pub(super) async fn read(&self) -> Result<Option<Kept>, Error> {
        let found = self.messages.last_whole_of(&self.subject).await?;
        Ok(found.map(|message| Kept {
            revision: message.stored.sequence,
            bytes: match message.stored.header(OPERATION) {
                Some("DEL" | "PURGE") => Bytes::new(),
                _ => message.body.into(),
            },
        }))
    }

    /// Removes what is kept.
    pub(super) async fn remove(&self) -> Result<(), Error> {
        self.messages.purge(&self.subject).await
    }

    /// Where to publish a write, and with which headers.
    pub(super) fn message(&self, write: &Write) -> (String, HeaderMap, Bytes) {
        let mut headers = HeaderMap::new();
        let expected = HeaderValue::from(write.expected);
        headers.insert(EXPECTED_LAST_SUBJECT_SEQUENCE, expected);
        (self.entrance.clone(), headers, write.bytes.clone())
    }

    /// What an answer to a write says.
    pub(super) fn answer(&self, connection: &Connection, answer: &Message) -> Answer {
        match connection.read(answer, &self.stream) {
            None => Answer::Twin,
            Some(Reply::Stored { sequence, .. }) => Answer::Known(Written::Stored(sequence)),
            Some(Reply::Refused(reason)) if answer.status.is_some() => {
                Answer::Known(Written::Refused(reason))
            }
            Some(Reply::Refused(_) | Reply::Duplicate(_) | Reply::Unclear(_)) => Answer::Unknown,
        }
    }

    /// Writes, and waits for the outcome.
    pub(super) async fn write(
        &self,
        connection: &Connection,
        write: &Write,
        within: Duration,
    ) -> Result<Written, Error> {
        let mut answers = Box::pin(connection.ask(self.message(write), within)).await?;
        let answered = async {
            while let Some(answer) = answers.next().await {
                match self.answer(connection, &answer) {
                    Answer::Twin => {}
                    Answer::Known(written) => return Ok(written),
                    Answer::Unknown => break,
                }
            }
            Ok(Written::Found(self.read().await?))
        };
        let answered = tokio::time::timeout(within, Box::pin(answered));
        let silent = |_| Error::Broken(format!("the record's bucket is silent for {within:?}"));
        let answered = async { answered.await.map_err(silent)? };
        connection.unless_broken(Box::pin(answered)).await
    }
}

/// What an answer to a write says.
pub(super) enum Answer {
    /// It is not our bucket's.
    Twin,
    Known(Written),
    /// What is there must be read.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_has_a_name_that_clients_take_and_that_no_other_stream_has() {
        assert_eq!(name("OUTBOX"), "OUTJET_OUTBOX");
        assert_eq!(name("my-out_box1"), "OUTJET_my-out_box1");
        let odd = [name("größe"), name("gr__e"), name("a/b"), name("a:b")];
        assert_eq!(odd[1], "OUTJET_gr__e");
        assert!(odd[0].starts_with("OUTJET_gr__e") && odd[0].len() == odd[1].len() + 8);
        assert_ne!(odd[2], odd[3]);
    }

    #[test]
    fn slots_of_several_clusters_have_keys_of_their_own_in_a_shared_stream() {
        let source = Source::parse("7/1/outjet").expect("a source");
        assert_eq!(key(false, &source), "outjet");
        assert_eq!(key(true, &source), "7.outjet");
    }
}
