//! Carries events on into Redis Streams, for those who must stay there: each once, in the order of
//! the stream, to `<aggregatetype>:events`, with the fields `event_id`, `event_type`,
//! `aggregate_id` and `payload`.
//!
//! ```text
//! NATS_URL=nats://127.0.0.1:4222 REDIS_URL=redis://127.0.0.1 cargo run --example redis_bridge
//! ```
//!
//! `STREAM` (OUTBOX) and `SUBJECTS` (all) say what is read, `MAXLEN` about how many entries a Redis
//! stream keeps. An entry's id is the event's place in the JetStream stream, `<sequence>-0`: Redis
//! refuses one that it has, or that is older than the newest, so what is sent twice stands there
//! once. The consumer hands out one message at a time: nothing is sent before its predecessor
//! stands in Redis.

use std::process::ExitCode;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, AckKind, Message, stream::Stream};
use futures_util::StreamExt;
use redis::aio::ConnectionManager;
use redis::{RedisResult, Value, cmd};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The name under which the stream remembers how far the bridge has come.
const NAME: &str = "redis-bridge";

/// After a bridge was killed, the message that it had comes again so much later.
const ACK_WITHIN: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("redis_bridge: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Failure> {
    let nats = setting("NATS_URL", "nats://127.0.0.1:4222");
    let jetstream = jetstream::new(async_nats::connect(nats).await?);
    let stream = jetstream.get_stream(setting("STREAM", "OUTBOX")).await?;
    let client = redis::Client::open(setting("REDIS_URL", "redis://127.0.0.1"))?;
    let mut bridge = Bridge {
        redis: ConnectionManager::new(client).await?,
        maxlen: std::env::var("MAXLEN").ok(),
        stream,
    };
    bridge.refuse_another_stream().await?;
    let consumer = consumer(&bridge.stream).await?;
    let mut messages = consumer.messages().await?;
    println!("carrying on");
    while let Some(message) = messages.next().await {
        let message = message?;
        bridge.add(&message).await?;
        // Only now. If this is lost, the message comes again, and Redis refuses it.
        message.ack_with(AckKind::Ack).await?;
    }
    Err("the consumer ended".into())
}

/// Durable, and one message at a time: the next comes when the one before is acknowledged, and one
/// that was not comes again before any other. With more under way, what comes again would come
/// behind newer ones, and Redis would refuse it for good.
async fn consumer(stream: &Stream) -> Result<PullConsumer, Failure> {
    let config = pull::Config {
        durable_name: Some(NAME.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WITHIN,
        max_ack_pending: 1,
        filter_subject: setting("SUBJECTS", ""),
        ..pull::Config::default()
    };
    Ok(stream.get_or_create_consumer(NAME, config).await?)
}

struct Bridge {
    redis: ConnectionManager,
    maxlen: Option<String>,
    stream: Stream,
}

impl Bridge {
    /// Sequence numbers are those of one stream: in another, or in one that was made again, they
    /// begin anew, and Redis would refuse events that it lacks.
    async fn refuse_another_stream(&mut self) -> Result<(), Failure> {
        let told = self.stream.cached_info();
        let key = format!("{NAME}:{}", told.config.name);
        let made = told.created.unix_timestamp_nanos().to_string();
        let known: (Value, String) = redis::pipe()
            .cmd("SET")
            .arg(&[&key, &made, "NX"])
            .cmd("GET")
            .arg(&key)
            .query_async(&mut self.redis)
            .await?;
        match known.1 == made {
            true => Ok(()),
            false => {
                let stream = &told.config.name;
                let fix = format!("delete the Redis streams that it filled, and the key {key}");
                Err(format!("stream {stream} was made again: {fix}").into())
            }
        }
    }

    /// Adds the event, unless it stands there already.
    async fn add(&mut self, message: &Message) -> Result<(), Failure> {
        let told = message.info().map_err(|error| error.to_string())?;
        let header = |name: &str| {
            let value = message.headers.as_ref()?.get(name)?;
            Some(decoded(value.as_str()))
        };
        let text = |name: &str| header(name).unwrap_or_default();
        let aggregate_id = text("ce-subject");
        let aggregate = text("ce-partitionkey");
        let suffix = format!(":{aggregate_id}");
        let key = aggregate.strip_suffix(&suffix).unwrap_or("other");
        let key = format!("{key}:events");
        let mut add = cmd("XADD");
        add.arg(&key);
        if let Some(maxlen) = &self.maxlen {
            add.arg(&["MAXLEN", "~", maxlen]);
        }
        add.arg(format!("{}-0", told.stream_sequence));
        add.arg("event_id").arg(text("ce-id"));
        add.arg("event_type").arg(text("ce-type"));
        add.arg("aggregate_id").arg(aggregate_id);
        add.arg("payload").arg(message.payload.as_ref());
        loop {
            let added: RedisResult<Value> = add.query_async(&mut self.redis).await;
            match added {
                Ok(_) => return Ok(()),
                Err(error) if error.is_io_error() || error.is_timeout() => {
                    // Whether it was added shows when it is added again.
                    eprintln!("redis_bridge: {error}");
                    message.ack_with(AckKind::Progress).await?;
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) if refused(&error) => return self.refuse_strangers(&key).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What Redis refuses it has, if only we write there. Entries that others added with `XADD *`
    /// bear the time as their id, which is beyond every sequence number.
    async fn refuse_strangers(&mut self, key: &str) -> Result<(), Failure> {
        let newest: Vec<(String, Value)> = cmd("XREVRANGE")
            .arg(&[key, "+", "-", "COUNT", "1"])
            .query_async(&mut self.redis)
            .await?;
        let newest = newest.first().and_then(|(id, _)| id.split_once('-'));
        let newest: u64 = newest.map_or(Ok(0), |(sequence, _)| sequence.parse())?;
        let last = self.stream.info().await?.state.last_sequence;
        match newest <= last {
            true => Ok(()),
            false => Err(format!(
                "{key} has entries that are not of this stream, the newest is {newest}-…: rename \
                 it, and let consumers read the old one to its end"
            )
            .into()),
        }
    }
}

/// "The ID specified in XADD is equal or smaller than the target stream top item"
fn refused(error: &redis::RedisError) -> bool {
    error.code() == Some("ERR") && error.to_string().contains("equal or smaller")
}

/// As the CloudEvents binding for NATS encodes the values of headers.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}
