//! A stream as `nats stream backup` takes it and `nats stream restore` puts it back, a KV bucket
//! included: JetStream's API of snapshots (ADR-2 and nats-server, `jetstream_api.go`).

use std::time::Duration;

use async_nats::{Client, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};

/// How long the server may take for the next answer.
const WITHIN: Duration = Duration::from_secs(30);

/// A stream, whole.
#[derive(Clone)]
pub(crate) struct Snapshot {
    stream: String,
    config: Value,
    state: Value,
    chunks: Vec<Bytes>,
}

/// Takes a snapshot of a stream.
pub(crate) async fn take(client: &Client, stream: &str) -> Snapshot {
    let inbox = client.new_inbox();
    let mut parts = client.subscribe(inbox.clone()).await.expect("subscribed");
    let wanted = json!({"deliver_subject": inbox, "no_consumers": true, "chunk_size": 65536});
    let told = ask(
        client,
        &format!("$JS.API.STREAM.SNAPSHOT.{stream}"),
        &wanted,
    )
    .await;
    let mut chunks = Vec::new();
    loop {
        let next = tokio::time::timeout(WITHIN, parts.next()).await;
        let part = next.expect("a chunk in time").expect("a chunk");
        if part.payload.is_empty() {
            let status = part.status.map(|status| status.as_u16());
            assert!(matches!(status, None | Some(204)), "{part:?}");
            break;
        }
        // The server sends no more than a window of what is not acknowledged.
        if let Some(reply) = part.reply {
            client.publish(reply, Bytes::new()).await.expect("sent");
        }
        chunks.push(part.payload);
    }
    Snapshot {
        stream: stream.to_owned(),
        config: told["config"].clone(),
        state: told["state"].clone(),
        chunks,
    }
}

impl Snapshot {
    /// Puts it back where there is no stream of that name.
    pub(crate) async fn restore(&self, client: &Client) {
        let wanted = json!({"config": self.config, "state": self.state});
        let subject = format!("$JS.API.STREAM.RESTORE.{}", self.stream);
        let told = ask(client, &subject, &wanted).await;
        let to = told["deliver_subject"].as_str().expect("a subject");
        for chunk in &self.chunks {
            let taken = request(client, to, chunk.clone()).await;
            assert!(taken.payload.is_empty(), "{taken:?}");
        }
        let restored = request(client, to, Bytes::new()).await;
        checked(&restored.payload);
    }

    /// How many messages it has.
    pub(crate) fn messages(&self) -> u64 {
        self.state["messages"].as_u64().expect("a number")
    }
}

async fn ask(client: &Client, subject: &str, wanted: &Value) -> Value {
    let wanted = serde_json::to_vec(wanted).expect("JSON");
    checked(&request(client, subject, wanted.into()).await.payload)
}

async fn request(client: &Client, subject: &str, payload: Bytes) -> Message {
    let answer = client.request(subject.to_owned(), payload);
    let answer = tokio::time::timeout(WITHIN, answer).await;
    answer.expect("an answer in time").expect("an answer")
}

fn checked(answer: &[u8]) -> Value {
    let answer: Value = serde_json::from_slice(answer).expect("JSON");
    assert_eq!(answer["error"], Value::Null, "{answer}");
    answer
}
