//! What nats-server itself takes for the same messages: a bare socket that writes them in large
//! chunks, as many unacknowledged as outjet may have, and checks nothing but that all are stored.

use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::Stream;
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How much is written at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Most messages without an answer: `publish.in_flight_max`.
const UNANSWERED_MAX: u64 = 4096;

/// Messages as a client writes them, each with the place where it ends.
pub(super) struct Messages {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Messages {
    /// All of a stream, as whoever published them wrote them.
    pub(super) async fn of(stream: &Stream) -> Self {
        let count = stream.cached_info().state.messages;
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::All,
            ..pull::OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await.expect("a consumer");
        let mut messages = consumer.messages().await.expect("messages");
        let mut read = Self {
            bytes: Vec::new(),
            ends: Vec::new(),
        };
        for number in 0..count {
            let message = messages
                .next()
                .await
                .expect("a message")
                .expect("a message");
            let mut headers = b"NATS/1.0\r\n".to_vec();
            for (name, values) in message.headers.iter().flat_map(|headers| headers.iter()) {
                for value in values {
                    headers.extend(format!("{name}: {value}\r\n").bytes());
                }
            }
            headers.extend(b"\r\n");
            let (subject, body) = (&message.subject, &message.payload);
            let (first, whole) = (headers.len(), headers.len() + body.len());
            let line = format!("HPUB {subject} _INBOX.raw.{number} {first} {whole}\r\n");
            for part in [line.as_bytes(), &headers, body, b"\r\n"] {
                read.bytes.extend_from_slice(part);
            }
            read.ends.push(read.bytes.len());
        }
        read
    }

    /// Publishes them all to the server at `address`, and waits for all answers.
    pub(super) async fn publish(&self, address: &str) {
        let mut socket = TcpStream::connect(address).await.expect("connect");
        socket.set_nodelay(true).expect("no delay");
        let hello = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\
                     \"lang\":\"raw\",\"version\":\"0\"}\r\nSUB _INBOX.raw.* 1\r\n";
        socket.write_all(hello.as_bytes()).await.expect("written");
        let (mut reader, mut writer) = socket.split();
        let (mut sent, mut answered, mut from) = (0, 0, 0);
        let mut answers = vec![0; CHUNK_BYTES];
        while answered < self.ends.len() as u64 {
            let room = usize::try_from(UNANSWERED_MAX - (sent - answered)).expect("small");
            let first = usize::try_from(sent).expect("a count");
            let fitting = self.ends[first..].iter().take(room);
            let fitting = fitting
                .take_while(|end| **end - from <= CHUNK_BYTES)
                .count();
            if fitting > 0 {
                let to = self.ends[first + fitting - 1];
                writer
                    .write_all(&self.bytes[from..to])
                    .await
                    .expect("written");
                (from, sent) = (to, sent + fitting as u64);
            }
            // Each answer is one object of JSON, an error two: the stream is counted afterwards.
            let patience = Duration::from_secs(60);
            let read = tokio::time::timeout(patience, reader.read(&mut answers)).await;
            let read = read.expect("an answer").expect("an answer");
            assert_ne!(read, 0, "the server has closed the connection");
            answered += answers[..read].iter().filter(|byte| **byte == b'{').count() as u64;
        }
    }
}
