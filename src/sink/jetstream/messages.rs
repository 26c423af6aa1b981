//! Reads messages of the stream one at a time, from its leader. By requests of our own: the
//! client's refuses a whole message for a single header line that it cannot read, and a stream may
//! hold such messages, of strangers above all, which must not keep us from our place.

use std::sync::Arc;

use async_nats::jetstream::context::Context;
use async_nats::jetstream::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Map;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::Error;

/// Reads one stream.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    context: Context,
    stream: String,
    /// Where others write, too: the subjects that our messages have.
    ours: Option<Arc<[String]>>,
}

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    /// About how long its body is.
    pub(crate) body_bytes: usize,
    /// When it was stored, by the server's clock.
    pub(crate) time: OffsetDateTime,
    header_block: Vec<u8>,
}

/// A stored message with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) stored: Stored,
    pub(crate) subject: String,
    pub(crate) body: Vec<u8>,
}

/// What is kept of a message that is read.
pub(crate) trait Kept: Sized {
    /// The message at a sequence number; `None` if there is none.
    async fn at(stream: &Messages, seq: u64) -> Result<Option<Self>, Error>;

    /// The message but for its body.
    fn stored(&self) -> &Stored;
}

impl Kept for Stored {
    async fn at(stream: &Messages, seq: u64) -> Result<Option<Self>, Error> {
        stream.at(seq).await
    }

    fn stored(&self) -> &Stored {
        self
    }
}

impl Kept for Whole {
    async fn at(stream: &Messages, seq: u64) -> Result<Option<Self>, Error> {
        let question = Question {
            seq: Some(seq),
            ..Question::default()
        };
        stream.ask(&question, Self::new).await
    }

    fn stored(&self) -> &Stored {
        &self.stored
    }
}

impl Messages {
    pub(crate) fn new(context: Context, stream: &str) -> Self {
        let stream = stream.to_owned();
        Self {
            context,
            stream,
            ours: None,
        }
    }

    /// The same of a stream that others write, too: ours have these subjects.
    pub(crate) fn among_others(self, ours: &[String]) -> Self {
        let ours = Some(ours.into());
        Self { ours, ..self }
    }

    /// All of them, whosever they are.
    pub(crate) fn of_all(self) -> Self {
        Self { ours: None, ..self }
    }

    /// Whether messages of others are to be expected.
    pub(crate) fn shared(&self) -> bool {
        self.ours.is_some()
    }

    /// The message at a sequence number; `None` if there is none.
    pub(crate) async fn at(&self, seq: u64) -> Result<Option<Stored>, Error> {
        self.ask_stored(&Question {
            seq: Some(seq),
            ..Question::default()
        })
        .await
    }

    /// The last message with this subject.
    pub(crate) async fn last_of(&self, subject: &str) -> Result<Option<Stored>, Error> {
        self.ask_stored(&Question {
            last_by_subj: Some(subject),
            ..Question::default()
        })
        .await
    }

    /// The first message at or behind a sequence number.
    pub(crate) async fn from(&self, seq: u64) -> Result<Option<Stored>, Error> {
        self.ask_stored(&Question {
            seq: Some(seq),
            next_by_subj: Some(">"),
            ..Question::default()
        })
        .await
    }

    /// The last message with this subject, with its body.
    pub(crate) async fn last_whole_of(&self, subject: &str) -> Result<Option<Whole>, Error> {
        let question = Question {
            last_by_subj: Some(subject),
            ..Question::default()
        };
        self.ask(&question, Whole::new).await
    }

    /// Deletes all messages with this subject.
    pub(crate) async fn purge(&self, subject: &str) -> Result<(), Error> {
        let broken =
            |error: &(dyn std::error::Error + 'static)| Error::Broken(crate::error::chain(error));
        let stream = self.context.get_stream_no_info(&self.stream).await;
        let stream = stream.map_err(|error| broken(&error))?;
        let purged = stream.purge().filter(subject).await;
        purged.map(|_| ()).map_err(|error| broken(&error))
    }

    /// The first one at or behind a sequence number that may be ours.
    pub(crate) async fn ours_from(&self, seq: u64) -> Result<Option<Stored>, Error> {
        let Some(subjects) = &self.ours else {
            return self.from(seq).await;
        };
        let mut first: Option<Stored> = None;
        for subject in subjects.iter() {
            let question = Question {
                seq: Some(seq),
                next_by_subj: Some(subject),
                ..Question::default()
            };
            let next = self.ask_stored(&question).await?;
            let found = first.into_iter().chain(next);
            first = found.min_by_key(|message| message.sequence);
        }
        Ok(first)
    }

    /// The last one with each of the subjects that ours have.
    pub(crate) async fn last_of_ours(&self) -> Result<Vec<Stored>, Error> {
        let mut last = Vec::new();
        for subject in self.ours.iter().flat_map(|subjects| subjects.iter()) {
            last.extend(self.last_of(subject).await?);
        }
        Ok(last)
    }

    /// The last sequence number of the stream; 0 if there is no such stream.
    pub(crate) async fn last_sequence(&self) -> Result<u64, Error> {
        Ok(self.look().await?.map_or(0, |found| found.last_sequence))
    }

    /// What the stream is at this moment.
    pub(crate) async fn standing(&self) -> Result<Standing, Error> {
        let missing = || Error::Broken(format!("look at {}: it is gone", self.stream));
        self.look().await?.ok_or_else(missing)
    }

    async fn look(&self) -> Result<Option<Standing>, Error> {
        let broken = |why: String| Error::Broken(format!("look at {}: {why}", self.stream));
        let subject = format!("STREAM.INFO.{}", self.stream);
        let answer = self.context.request(subject, &Map::new()).await;
        let answer: Response<Looked> =
            answer.map_err(|error| broken(crate::error::chain(&error)))?;
        match answer {
            Response::Ok(found) => Ok(Some(Standing {
                created: time(&found.created)
                    .ok_or_else(|| broken("created is no time".to_owned()))?,
                last_sequence: found.state.last_seq,
                now: time(&found.ts),
                domain: found.domain,
            })),
            Response::Err { error } if error.code() == 404 => Ok(None),
            Response::Err { error } => Err(broken(error.to_string())),
        }
    }

    /// The name of the stream.
    pub(crate) fn name(&self) -> &str {
        &self.stream
    }

    async fn ask_stored(&self, question: &Question<'_>) -> Result<Option<Stored>, Error> {
        self.ask(question, Stored::new::<Length>).await
    }

    async fn ask<T: Text, M>(
        &self,
        question: &Question<'_>,
        keep: impl Fn(&RawMessage<T>) -> Option<M>,
    ) -> Result<Option<M>, Error> {
        let broken = |why: String| Error::Broken(format!("read a message ({question:?}): {why}"));
        let subject = format!("STREAM.MSG.GET.{}", self.stream);
        let answer = self.context.request(subject, question).await;
        let answer: Answer<T> = answer.map_err(|error| broken(crate::error::chain(&error)))?;
        match (answer.message, answer.error) {
            (Some(message), _) => match keep(&message) {
                Some(kept) => Ok(Some(kept)),
                None => Err(broken(format!("{:?} is no time", message.time))),
            },
            (None, Some(error)) if error.error_code() == NO_MESSAGE => Ok(None),
            (None, Some(error)) => Err(broken(error.to_string())),
            (None, None) => Err(broken("an answer without a message".to_owned())),
        }
    }
}

const NO_MESSAGE: async_nats::jetstream::ErrorCode =
    async_nats::jetstream::ErrorCode::NO_MESSAGE_FOUND;

/// What tells a stream from one that was put in its place.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) created: OffsetDateTime,
    pub(crate) last_sequence: u64,
    /// By the server's clock.
    pub(crate) now: Option<OffsetDateTime>,
    /// The JetStream domain of the server, if it has one.
    pub(crate) domain: Option<String>,
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
    domain: Option<String>,
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

/// `JSApiMsgGetResponse`. No `Response`: an untagged enum is read twice, and of a long tail there
/// are many.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: Text")]
struct Answer<T> {
    message: Option<RawMessage<T>>,
    error: Option<async_nats::jetstream::Error>,
}

/// As much of `StoredMsg` as is needed.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: Text")]
struct RawMessage<T> {
    seq: u64,
    #[serde(default)]
    subject: T,
    #[serde(default)]
    hdrs: String,
    /// The body in base64.
    #[serde(default, rename = "data")]
    body: T,
    time: String,
}

/// What is kept of a text.
trait Text: DeserializeOwned + Default {
    /// How many bytes it has.
    fn len(&self) -> usize;
}

impl Text for String {
    fn len(&self) -> usize {
        self.as_str().len()
    }
}

/// A text of which nothing is kept but how long it is.
#[derive(Debug, Default)]
struct Length(usize);

impl Text for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        struct Counter;

        impl Visitor<'_> for Counter {
            type Value = Length;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Length, E> {
                Ok(Length(text.len()))
            }
        }

        text.deserialize_str(Counter)
    }
}

impl Whole {
    fn new(message: &RawMessage<String>) -> Option<Self> {
        Some(Self {
            stored: Stored::new(message)?,
            subject: message.subject.clone(),
            body: STANDARD.decode(&message.body).unwrap_or_default(),
        })
    }
}

impl Stored {
    fn new<T: Text>(message: &RawMessage<T>) -> Option<Self> {
        Some(Self {
            sequence: message.seq,
            body_bytes: message.body.len() / 4 * 3,
            time: time(&message.time)?,
            header_block: STANDARD.decode(&message.hdrs).unwrap_or_default(),
        })
    }

    /// The first value of a header; lines that are no headers are passed over.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.header_block.split(|byte| *byte == b'\n');
        let mut values = lines.filter_map(|line| {
            let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
            Some(std::str::from_utf8(value).ok()?.trim())
        });
        values.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_a_message_or_an_error() {
        let message = r#"{"type":"x","message":{"subject":"a","seq":2,"hdrs":"TkFUUw==",
            "data":"AAAAAAAA","time":"2026-11-21T16:14:02.125588175Z"}}"#;
        let answer: Answer<Length> = serde_json::from_str(message).expect("an answer");
        let stored = Stored::new(&answer.message.expect("a message")).expect("a time");
        assert_eq!((stored.sequence, stored.body_bytes), (2, 6));
        assert_eq!(stored.header_block, b"NATS");
        let bare = r#"{"message":{"subject":"a","seq":3,"time":"2026-11-21T16:14:02Z"}}"#;
        let answer: Answer<Length> = serde_json::from_str(bare).expect("an answer");
        let stored = Stored::new(&answer.message.expect("a message")).expect("a time");
        assert_eq!((stored.sequence, stored.body_bytes), (3, 0));
        let none = r#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#;
        let answer: Answer<Length> = serde_json::from_str(none).expect("an answer");
        let error = answer.error.expect("an error");
        assert_eq!(error.error_code(), NO_MESSAGE);
    }

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
