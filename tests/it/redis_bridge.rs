//! `examples/redis_bridge.rs` beside a real Redis.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use redis::{Value, cmd};
use tempfile::TempDir;

use crate::delivery::{Delivery, SOON, STREAM};
use crate::harness::outbox::Load;
use crate::harness::process::{Process, Signal};
use crate::harness::{Outjet, Wait, binaries, until};

/// A server of this test, on a socket.
struct Redis {
    connection: redis::aio::MultiplexedConnection,
    url: String,
    _process: Process,
    _home: TempDir,
}

impl Redis {
    async fn start() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let socket: PathBuf = home.path().join("redis.sock");
        let log = home.path().join("redis.log");
        let mut command = Command::new(binaries::redis_server());
        command
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .arg("--unixsocket")
            .arg(&socket)
            .current_dir(home.path())
            .stdout(File::create(&log).expect("create a log"))
            .stderr(Stdio::null());
        let process = Process::spawn("redis", command, Signal::KILL, home.path()).log(&log);
        let url = format!("redis+unix://{}", socket.display());
        let client = redis::Client::open(url.as_str()).expect("an address of Redis");
        let connection = until("Redis answers", SOON, async || {
            match client.get_multiplexed_async_connection().await {
                Ok(connection) => Wait::Ready(connection),
                Err(error) => Wait::NotYet(error.to_string()),
            }
        })
        .await;
        Self {
            connection,
            url,
            _process: process,
            _home: home,
        }
    }

    async fn length(&self, key: &str) -> u64 {
        let mut connection = self.connection.clone();
        let length = cmd("XLEN").arg(key).query_async(&mut connection).await;
        length.expect("a length")
    }

    /// Ids and values of all entries.
    async fn entries(&self, key: &str) -> Vec<(String, Vec<Vec<u8>>)> {
        let mut connection = self.connection.clone();
        let mut range = cmd("XRANGE");
        range.arg(&[key, "-", "+"]);
        let entries = range.query_async(&mut connection).await;
        let entries: Vec<(String, Vec<Vec<u8>>)> = entries.expect("entries");
        let values = |fields: Vec<Vec<u8>>| fields.into_iter().skip(1).step_by(2).collect();
        entries
            .into_iter()
            .map(|(id, fields)| (id, values(fields)))
            .collect()
    }
}

fn bridge(delivery: &Delivery, redis: &Redis) -> crate::harness::outjet::Builder {
    let examples = binaries::outjet().with_file_name("examples");
    Outjet::builder()
        .binary(examples.join("redis_bridge"))
        .env("NATS_URL", delivery.world.nats.url())
        .env("REDIS_URL", redis.url.clone())
}

#[tokio::test]
async fn bridge_to_redis_that_is_killed_again_and_again_adds_each_event_once_and_in_order() {
    let (delivery, redis) = tokio::join!(Delivery::ready(), Redis::start());
    let _outjet = delivery.run();
    Load::mixed(3).write(&delivery.world.postgres.url()).await;
    let sql = r#"SELECT outbox.emit('order', 'ü 100 %: 1', 'has spaces', '{"a": "\u00fc"}');
        SELECT outbox.emit('user', '1', 'UserCreated', payload_raw => '\x00ff')"#;
    delivery.session.run(sql).await;
    delivery.confirmed().await;
    let stored = delivery.stored().await;
    let orders = stored.len() as u64 - 1;
    let mut bridge_process = bridge(&delivery, &redis).spawn();
    for part in 1..=3 {
        let reached = orders * part / 4;
        until("the bridge has come further", SOON, async || {
            let length = redis.length("order:events").await;
            Wait::ready_if(length >= reached, length)
        })
        .await;
        bridge_process.kill().await;
        bridge_process = bridge(&delivery, &redis).spawn();
    }
    until("all is carried on", SOON, async || {
        let length = redis.length("user:events").await;
        Wait::ready_if(length == 1, length)
    })
    .await;
    for key in ["order", "user"] {
        let of_key = stored.iter().filter(|message| {
            let aggregate = message.header("ce-partitionkey").expect("an aggregate");
            aggregate.starts_with(key)
        });
        let ids = of_key
            .clone()
            .map(|message| format!("{}-0", message.sequence));
        let bodies = of_key.map(|message| message.payload.to_vec());
        let entries = redis.entries(&format!("{key}:events")).await;
        assert!(ids.eq(entries.iter().map(|(id, _)| id.clone())), "{key}");
        assert!(bodies.eq(entries.iter().map(|(_, values)| values[3].clone())));
    }
    let orders = redis.entries("order:events").await;
    let values = &orders.last().expect("the last order").1;
    let id = "SELECT id::text FROM outbox.events WHERE aggregateid = 'ü 100 %: 1'";
    let id = delivery.session.text(id).await;
    let said: Vec<_> = values
        .iter()
        .map(|value| String::from_utf8_lossy(value))
        .collect();
    assert_eq!(
        said,
        [id.as_str(), "has spaces", "ü 100 %: 1", r#"{"a": "ü"}"#]
    );
}

#[tokio::test]
async fn bridge_to_redis_refuses_a_stream_with_entries_of_others_and_a_stream_that_was_made_again()
{
    let (delivery, redis) = tokio::join!(Delivery::ready(), Redis::start());
    let mut connection = redis.connection.clone();
    let mut add = cmd("XADD");
    add.arg(&["user:events", "*", "a", "b"]);
    let added: Value = add.query_async(&mut connection).await.expect("an entry");
    let _outjet = delivery.run();
    let emit = "SELECT outbox.emit('user', '1', 'UserCreated')";
    delivery.session.run(emit).await;
    delivery.confirmed().await;
    let refused = bridge(&delivery, &redis).output().await;
    assert_eq!(refused.code, Some(1), "{refused:?} {added:?}");
    let told = "user:events has entries that are not of this stream";
    assert!(refused.stderr.contains(told), "{refused:?}");
    assert_eq!(redis.length("user:events").await, 1);

    let jetstream = delivery.world.nats.jetstream().await;
    let config = jetstream.get_stream(STREAM).await.expect("the stream");
    let config = config.cached_info().config.clone();
    jetstream.delete_stream(STREAM).await.expect("deleted");
    jetstream.create_stream(config).await.expect("made again");
    let refused = bridge(&delivery, &redis).output().await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let told = "stream OUTBOX was made again: delete the Redis streams";
    assert!(refused.stderr.contains(told), "{refused:?}");
}
