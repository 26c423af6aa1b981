//! JetStream's requests, and messages in bulk, on the oldest and the newest server.

use async_nats::jetstream::stream::Config;
use outjet::nats::{Api, Driven, Options, RequestError, Which};
use serde_json::Value;

use super::{open, options};
use crate::harness::Nats;

const VERSIONS: [&str; 2] = ["2.10", "2.15"];

fn stream() -> Config {
    Config {
        name: "S".to_owned(),
        subjects: vec!["s.>".to_owned()],
        ..Config::default()
    }
}

/// Its requests, while the connection is kept.
async fn api(options: &Options) -> (Api, Driven) {
    let driven = open(options).await.spawn();
    (Api::new(driven.requests(), options), driven)
}

#[tokio::test]
async fn streams_are_made_read_and_purged() {
    for version in VERSIONS {
        let server = Nats::builder().version(version).start().await;
        let options = options(server.url());
        let (api, _driven) = api(&options).await;
        let missing = api.stream("S").await.expect("an answer");
        assert!(missing.expect_err("no stream").missing());
        let made = api.create_stream(&stream()).await.expect("an answer");
        assert_eq!(made.expect("a stream").config.name, "S");
        let jetstream = server.jetstream().await;
        for subject in ["s.a", "s.b", "s.b"] {
            let published = jetstream.publish(subject, "body".into()).await;
            published.expect("sent").await.expect("stored");
        }
        let which = Which {
            last_by_subj: Some("s.a"),
            ..Which::default()
        };
        let found = api.message::<Value>("S", &which).await.expect("an answer");
        assert_eq!(found.expect("a message")["seq"], 1);
        assert_eq!(api.purge("S", "s.b").await.expect("an answer"), Ok(2));
        let left = api.stream("S").await.expect("an answer").expect("a stream");
        assert_eq!((left.state.messages, left.state.last_sequence), (1, 3));
        let gone = Which {
            seq: Some(2),
            ..Which::default()
        };
        let gone = api.message::<Value>("S", &gone).await.expect("an answer");
        assert_eq!(gone.expect_err("no message").err_code, 10037);
    }
}

#[tokio::test]
async fn put_is_a_compare_and_set() {
    let server = Nats::start().await;
    let options = options(server.url());
    let (api, _driven) = api(&options).await;
    let bucket = Config {
        name: "KV_B".to_owned(),
        subjects: vec!["$KV.B.>".to_owned()],
        max_messages_per_subject: 1,
        ..Config::default()
    };
    let made = api.create_stream(&bucket).await.expect("an answer");
    made.expect("a bucket");
    for (expected, answer) in [(0, "\"seq\":1"), (0, "10071"), (1, "\"seq\":2")] {
        let mut answers = api.put("$KV.B.key", expected, b"value").expect("asked");
        let found = answers.next().await.expect("an answer");
        let found = String::from_utf8_lossy(&found.body).into_owned();
        assert!(found.contains(answer), "{found}");
    }
}

#[tokio::test]
async fn server_without_jetstream_answers_nothing() {
    let server = Nats::builder().without_jetstream().start().await;
    let options = options(server.url());
    let (api, _driven) = api(&options).await;
    assert!(!api.requests().server().jetstream);
    let asked = api.stream("S").await;
    assert!(
        matches!(asked, Err(RequestError::NoResponders)),
        "{asked:?}"
    );
}

#[tokio::test]
async fn messages_in_bulk_are_stored_in_order_and_answered_each() {
    const MESSAGES: u64 = 20_000;
    for version in VERSIONS {
        let server = Nats::builder().version(version).start().await;
        let options = options(server.url());
        let (api, driven) = api(&options).await;
        let made = api.create_stream(&stream()).await.expect("an answer");
        made.expect("a stream");
        drop(api);
        driven.close().await;
        let mut connection = open(&options).await;
        let (mut published, mut replied) = (0, 0);
        while replied < MESSAGES {
            while published < MESSAGES && published - replied < 4096 && !connection.full() {
                let mut message = connection.message("s.a", Some(published));
                message.number("Nats-Expected-Last-Sequence", published);
                message.line("A", b"b");
                message.send(b"{\"some\":\"body\"}");
                published += 1;
            }
            connection.ready().await.expect("it lives");
            while let Some(reply) = connection.next_reply() {
                assert_eq!(reply.number, replied);
                let body = str::from_utf8(reply.body).expect("JSON");
                let stored: Value = serde_json::from_str(body).expect("JSON");
                replied += 1;
                assert_eq!(stored["seq"], replied, "{body}");
            }
        }
    }
}
