//! A conversation with a server, byte by byte, whatever stands behind it.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// How long an answer is waited for.
const SILENCE: Duration = Duration::from_millis(400);

/// One connection.
pub(super) struct Talk<S> {
    stream: S,
    received: Vec<u8>,
    asked: u32,
}

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A message: its subject, and its headers and body.
    Message(String, String),
    /// Anything else.
    Line(String),
    /// Nothing within some time.
    Silence,
    /// The connection ended.
    End,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    /// Signs in, and subscribes to what [`ask`](Self::ask) is answered to.
    pub(super) async fn open(stream: S) -> Self {
        let mut talk = Self {
            stream,
            received: Vec::new(),
            asked: 0,
        };
        let Heard::Line(info) = talk.next().await else {
            panic!("the server does not say what it is");
        };
        assert!(info.starts_with("INFO {"), "{info}");
        talk.say(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\
              \"no_responders\":true,\"protocol\":1,\"lang\":\"rust\",\"version\":\"0\"}\r\n\
              SUB _INBOX.talk.* 1\r\nPING\r\n",
        )
        .await;
        while talk.next().await != Heard::Line("PONG".to_owned()) {}
        talk
    }

    pub(super) async fn say(&mut self, bytes: &[u8]) {
        // What is closed is noticed by the next answer.
        drop(self.stream.write_all(bytes).await);
        drop(self.stream.flush().await);
    }

    /// Publishes, and returns the answer.
    pub(super) async fn ask(&mut self, subject: &str, lines: &str, body: &[u8]) -> String {
        self.asked += 1;
        let inbox = format!("_INBOX.talk.{}", self.asked);
        let mut message = Vec::new();
        if lines.is_empty() {
            let line = format!("PUB {subject} {inbox} {}\r\n", body.len());
            message.extend_from_slice(line.as_bytes());
        } else {
            let block = format!("NATS/1.0\r\n{lines}\r\n");
            let (headers, all) = (block.len(), block.len() + body.len());
            let line = format!("HPUB {subject} {inbox} {headers} {all}\r\n{block}");
            message.extend_from_slice(line.as_bytes());
        }
        message.extend_from_slice(body);
        message.extend_from_slice(b"\r\n");
        self.say(&message).await;
        loop {
            match self.next().await {
                Heard::Message(subject, said) if subject == inbox => return said,
                // It describes itself again when somebody has signed in.
                Heard::Line(line) if line.starts_with("INFO ") => {}
                Heard::Line(line) => return line,
                Heard::Silence => return "silence".to_owned(),
                Heard::End => return "the connection ended".to_owned(),
                Heard::Message(_, _) => {}
            }
        }
    }

    /// The next thing that it says, but for what only keeps the connection alive.
    pub(super) async fn next(&mut self) -> Heard {
        let until = Instant::now() + SILENCE;
        loop {
            if let Some(heard) = self.take() {
                if heard == Heard::Line("PING".to_owned()) {
                    self.say(b"PONG\r\n").await;
                    continue;
                }
                return heard;
            }
            let read = self.stream.read_buf(&mut self.received);
            match timeout_at(until, read).await {
                Err(_) => return Heard::Silence,
                Ok(Ok(0) | Err(_)) => return Heard::End,
                Ok(Ok(_)) => {}
            }
        }
    }

    fn take(&mut self) -> Option<Heard> {
        let end = self.received.windows(2).position(|two| two == b"\r\n")?;
        let line = String::from_utf8_lossy(&self.received[..end]).into_owned();
        let fields: Vec<&str> = line.split(' ').collect();
        if !matches!(fields[0], "MSG" | "HMSG") {
            self.received.drain(..end + 2);
            return Some(Heard::Line(line.trim_end().to_owned()));
        }
        let bytes: usize = fields.last()?.parse().expect("a length");
        let (start, whole) = (end + 2, end + 2 + bytes + 2);
        if self.received.len() < whole {
            return None;
        }
        let said = &self.received[start..start + bytes];
        let heard = Heard::Message(
            fields[1].to_owned(),
            String::from_utf8_lossy(said).into_owned(),
        );
        self.received.drain(..whole);
        Some(heard)
    }
}
