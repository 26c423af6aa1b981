//! Reads messages of the stream one at a time, from its leader. By requests of our own: the
//! client's refuses a whole message for a single header line that it cannot read, and a stream may
//! hold such messages, of strangers above all, which must not keep us from our place.

use async_nats::jetstream::context::Context;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Map;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::Error;

/// Reads one stream.
#[derive(Clone, Debug)]
pub(super) struct Messages {
    context: Context,
    stream: String,
}

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    /// About how long its body is.
    pub(super) body_bytes: usize,
    /// When it was stored, by the server's clock.
    pub(super) time: OffsetDateTime,
    header_block: Vec<u8>,
}

impl Messages {
    pub(super) fn new(context: Context, stream: &str) -> Self {
        let stream = stream.to_owned();
        Self { context, stream }
    }

    /// The message at a sequence number; `None` if there is none.
    pub(super) async fn at(&self, seq: u64) -> Result<Option<Stored>, Error> {
        self.ask(&Question {
            seq: Some(seq),
            ..Question::default()
        })
        .await
    }

    /// The last message with this subject.
    pub(super) async fn last_of(&self, subject: &str) -> Result<Option<Stored>, Error> {
        self.ask(&Question {
            last_by_subj: Some(subject),
            ..Question::default()
        })
        .await
    }

    /// The first message at or behind a sequence number.
    pub(super) async fn from(&self, seq: u64) -> Result<Option<Stored>, Error> {
        self.ask(&Question {
            seq: Some(seq),
            next_by_subj: Some(">"),
            ..Question::default()
        })
        .await
    }

    /// What the stream is at this moment.
    pub(super) async fn standing(&self) -> Result<Standing, Error> {
        let broken = |why: String| Error::Broken(format!("look at {}: {why}", self.stream));
        let subject = format!("STREAM.INFO.{}", self.stream);
        let answer = self.context.request(subject, &Map::new()).await;
        let answer: Response<Looked> =
            answer.map_err(|error| broken(crate::error::chain(&error)))?;
        match answer {
            Response::Ok(found) => Ok(Standing {
                created: time(&found.created)
                    .ok_or_else(|| broken("created is no time".to_owned()))?,
                last_sequence: found.state.last_seq,
                now: time(&found.ts),
            }),
            Response::Err { error } => Err(broken(error.to_string())),
        }
    }

    /// The name of the stream.
    pub(super) fn name(&self) -> &str {
        &self.stream
    }

    async fn ask(&self, question: &Question<'_>) -> Result<Option<Stored>, Error> {
        let broken = |why: String| Error::Broken(format!("read a message ({question:?}): {why}"));
        let subject = format!("STREAM.MSG.GET.{}", self.stream);
        let answer = self.context.request(subject, question).await;
        let answer: Response<Answer> =
            answer.map_err(|error| broken(crate::error::chain(&error)))?;
        match answer {
            Response::Ok(Answer { message }) => Ok(Some(Stored::new(&message))),
            Response::Err { error } if error.error_code() == NO_MESSAGE => Ok(None),
            Response::Err { error } => Err(broken(error.to_string())),
        }
    }
}

const NO_MESSAGE: async_nats::jetstream::ErrorCode =
    async_nats::jetstream::ErrorCode::NO_MESSAGE_FOUND;

/// What tells a stream from one that was put in its place.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) created: OffsetDateTime,
    pub(super) last_sequence: u64,
    /// By the server's clock.
    pub(super) now: Option<OffsetDateTime>,
}

fn time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// As much of `JSApiStreamInfoResponse` as is needed.
#[derive(Debug, Deserialize)]
struct Looked {
    created: String,
    state: State,
    #[serde(default)]
    ts: String,
}

#[derive(Debug, Deserialize)]
struct State {
    last_seq: u64,
}

/// `JSApiMsgGetRequest` of nats-server.
#[derive(Debug, Default, Serialize)]
struct Question<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<&'a str>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    message: RawMessage,
}

impl Stored {
    fn new(message: &RawMessage) -> Self {
        let block = message
            .headers
            .as_ref()
            .and_then(|block| STANDARD.decode(block).ok());
        Self {
            sequence: message.sequence,
            body_bytes: message.payload.len() / 4 * 3,
            time: message.time,
            header_block: block.unwrap_or_default(),
        }
    }

    /// The first value of a header; lines that are no headers are passed over.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.header_block.split(|byte| *byte == b'\n');
        let mut values = lines.filter_map(|line| {
            let line = std::str::from_utf8(line).ok()?;
            let (found, value) = line.split_once(':')?;
            (found == name).then(|| value.trim())
        });
        values.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_header_does_not_hide_the_others() {
        let block = b"NATS/1.0\r\nno header\r\n\xff: x\r\nOutjet-Id:  a:b \r\nOutjet-Id: c\r\n\r\n";
        let stored = Stored {
            sequence: 1,
            body_bytes: 0,
            time: OffsetDateTime::UNIX_EPOCH,
            header_block: block.to_vec(),
        };
        assert_eq!(stored.header("Outjet-Id"), Some("a:b"));
        assert_eq!(stored.header("Nats-Msg-Id"), None);
    }
}
