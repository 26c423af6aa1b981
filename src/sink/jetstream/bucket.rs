//! The bucket beside the stream, in which the leader keeps its record: a KV bucket as all clients
//! of NATS know them (ADR-8), with one key for each slot. Every write is a compare-and-set
//! (`Nats-Expected-Last-Subject-Sequence`), and every read asks the bucket's leader: a follower
//! gives stale answers (54 of 3000 reads of three replicas, nats-server 2.15.1).

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, StorageType};
use bytes::Bytes;

use super::client::Client;
use super::error::Error;
use super::headers::Outgoing;
use super::messages::Messages;
use super::names::{KV_OPERATION, record_bucket, record_entrance, record_key, record_stream};
use super::options::Options;
use super::reply::Reply;
use super::rights;
use crate::event::lineage::Source;
use crate::nats::{Answer, Answers, Message};
use crate::sink::{Kept, Write, Written};

/// The configuration that the missing bucket of a stream is created with, as the clients make them,
/// where the stream is.
pub(crate) fn config(stream: &str, beside: &Config) -> Config {
    Config {
        name: record_stream(stream),
        subjects: vec![format!("$KV.{}.>", record_bucket(stream))],
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

/// A bucket that exists.
pub(crate) struct Opened {
    pub(crate) config: Config,
    /// It was missing and was created.
    pub(crate) created: bool,
}

/// The bucket of a slot's record, created if told so; or why there is none.
pub(crate) async fn of_slot(
    client: &Client,
    (options, beside): (&Options, &Config),
    source: &Source,
) -> Result<Result<Bucket, String>, Error> {
    let opened = open(client, (options, beside)).await?;
    Ok(opened.map(|opened| {
        let replicas = opened.config.num_replicas;
        Bucket::new(client, (options, source), replicas)
    }))
}

/// Opens the bucket of the record of a stream, or creates it if told so; or says why there is none.
pub(crate) async fn open(
    client: &Client,
    (options, beside): (&Options, &Config),
) -> Result<Result<Opened, String>, Error> {
    let stream = &options.stream.name;
    let answered =
        |answer: Answer<Info>| answer.map_err(|error| Error::unanswered("open the bucket", error));
    let name = record_stream(stream);
    let read = async { answered(client.api.stream(&name).await) };
    let missing = match unless_denied(read).await? {
        Ok(found) => {
            return Ok(Ok(Opened {
                config: found.config,
                created: false,
            }));
        }
        Err(error) if error.missing() => {
            format!("bucket {} does not exist", record_bucket(stream))
        }
        Err(error) => return Ok(Err(error.to_string())),
    };
    if !options.stream.create {
        return Ok(Err(format!("{missing}, and stream.manage is check")));
    }
    let config = config(stream, beside);
    let create = async { answered(client.api.create_stream(&config).await) };
    Ok(match unless_denied(create).await? {
        Ok(made) => Ok(Opened {
            config: made.config,
            created: true,
        }),
        Err(error) => Err(format!("{missing}, and is not created: {error}")),
    })
}

/// Does something with the bucket, which we may lack the right to. Of a command: a sink, which
/// drives its connection itself, learns of the denial before this does (`without_it`).
pub(crate) async fn unless_denied<T>(
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match work.await {
        Err(Error::PublishDenied(why)) => Err(Error::BucketDenied(why)),
        done => done,
    }
}

/// What keeps a bucket from keeping a record as safe as the stream is.
pub(crate) fn warnings(bucket: &Config, stream: &Config) -> Vec<String> {
    let (kept, wanted) = (bucket.num_replicas, stream.num_replicas);
    let memory = |config: &Config| config.storage == StorageType::Memory;
    let warnings = [
        (
            kept < wanted,
            format!("it has {kept} of the {wanted} replicas that the stream has"),
        ),
        (
            memory(bucket) && !memory(stream),
            "memory storage: lost with the servers".to_owned(),
        ),
        (
            !bucket.max_age.is_zero(),
            "max_age: what is not written again for so long is dropped".to_owned(),
        ),
    ];
    let warnings = warnings.into_iter().filter(|(warned, _)| *warned);
    warnings.map(|(_, warning)| warning).collect()
}

/// The key of our slot.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    messages: Messages,
    stream: String,
    subject: String,
    /// Where to publish to it.
    entrance: String,
    pub(crate) replicas: usize,
}

impl Bucket {
    /// For the key of a slot in the bucket of a stream, whose replicas were read.
    pub(crate) fn new(
        client: &Client,
        (options, source): (&Options, &Source),
        replicas: usize,
    ) -> Self {
        let stream = &options.stream;
        let (key, bucket) = (
            record_key(stream.shared, source),
            record_bucket(&stream.name),
        );
        let subject = format!("$KV.{bucket}.{key}");
        Self {
            messages: client.messages(&record_stream(&stream.name)),
            stream: record_stream(&stream.name),
            entrance: record_entrance(options.nats.domain.as_deref(), &subject),
            subject,
            replicas,
        }
    }

    /// Tries to write, and to read, and changes nothing.
    pub(crate) async fn try_rights(&self, client: &Client, within: Duration) -> Result<(), Error> {
        let lines = rights::unheeded();
        let message = Outgoing {
            subject: &self.entrance,
            lines: &lines,
            body: b"",
        };
        let written = client.request(message, (&self.stream, within));
        rights::denied(unless_denied(written).await)?;
        rights::denied(unless_denied(self.read()).await)
    }

    /// What is kept.
    pub(crate) async fn read(&self) -> Result<Option<Kept>, Error> {
        let found = self.messages.last_whole_of(&self.subject).await?;
        Ok(found.map(|message| Kept {
            revision: message.stored.sequence,
            bytes: match message.stored.header(KV_OPERATION) {
                Some("DEL" | "PURGE") => Bytes::new(),
                _ => message.body.into(),
            },
        }))
    }

    /// Removes what is kept.
    pub(crate) async fn remove(&self) -> Result<(), Error> {
        self.messages.purge(&self.subject).await.map(drop)
    }

    /// Sends a write, and returns where its answers come.
    pub(crate) fn send(&self, client: &Client, write: &Write) -> Result<Answers, Error> {
        let put = client.api.put(&self.subject, write.expected, &write.bytes);
        put.map_err(|error| Error::unanswered("write the record", error))
    }

    /// What an answer to a write says.
    pub(crate) fn answer(&self, client: &Client, answer: &Message) -> Heard {
        match client.read((answer.headers(), &answer.body), &self.stream) {
            None => Heard::Twin,
            Some(Reply::Stored { sequence, .. }) => Heard::Known(Written::Stored(sequence)),
            Some(Reply::Refused(reason)) if answer.headers().status().is_some() => {
                Heard::Known(Written::Refused(reason))
            }
            Some(Reply::Refused(_) | Reply::Duplicate(_) | Reply::Unclear(_)) => Heard::Unknown,
        }
    }

    /// Writes, and waits for the outcome.
    pub(crate) async fn write(
        &self,
        client: &Client,
        write: &Write,
        within: Duration,
    ) -> Result<Written, Error> {
        let mut answers = self.send(client, write)?;
        let answered = async {
            loop {
                match self.answer(client, &answers.next().await?) {
                    Heard::Twin => {}
                    Heard::Known(written) => return Ok(written),
                    Heard::Unknown => return Ok(Written::Found(self.read().await?)),
                }
            }
        };
        let silent = |_| Error::Broken(format!("the record's bucket is silent for {within:?}"));
        let answered = tokio::time::timeout(within, Box::pin(answered));
        answered.await.map_err(silent)?
    }
}

/// What an answer to a write says.
pub(crate) enum Heard {
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
        assert_eq!(record_bucket("OUTBOX"), "OUTJET_OUTBOX");
        assert_eq!(record_bucket("my-out_box1"), "OUTJET_my-out_box1");
        let odd = [
            record_bucket("größe"),
            record_bucket("gr__e"),
            record_bucket("a/b"),
            record_bucket("a:b"),
        ];
        assert_eq!(odd[1], "OUTJET_gr__e");
        assert!(odd[0].starts_with("OUTJET_gr__e") && odd[0].len() == odd[1].len() + 8);
        assert_ne!(odd[2], odd[3]);
    }

    #[test]
    fn bucket_is_at_least_as_safe_as_its_stream_or_it_is_said() {
        let stream = Config {
            num_replicas: 3,
            ..Config::default()
        };
        let made = config("S", &stream);
        assert_eq!(warnings(&made, &stream), Vec::<String>::new());
        let worse = Config {
            num_replicas: 1,
            storage: StorageType::Memory,
            max_age: Duration::from_secs(60),
            ..made
        };
        let warned = warnings(&worse, &stream);
        assert_eq!(warned.len(), 3, "{warned:?}");
        assert_eq!(warned[0], "it has 1 of the 3 replicas that the stream has");
    }

    #[test]
    fn record_is_written_to_the_bucket_of_the_domain_that_is_named() {
        let subject = "$KV.OUTJET_S.outjet";
        assert_eq!(record_entrance(None, subject), subject);
        let there = record_entrance(Some("hub"), subject);
        assert_eq!(there, "$JS.hub.API.$KV.OUTJET_S.outjet");
    }

    #[test]
    fn slots_of_several_clusters_have_keys_of_their_own_in_a_shared_stream() {
        let source = Source::parse("7/1/outjet").expect("a source");
        assert_eq!(record_key(false, &source), "outjet");
        assert_eq!(record_key(true, &source), "7.outjet");
    }
}
