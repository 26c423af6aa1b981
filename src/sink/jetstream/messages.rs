//! Reads messages of the stream one at a time, from its leader. A header line that cannot be read
//! is passed over: a stream may hold such messages, of strangers above all, which must not keep us
//! from our place.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::Error;
use crate::nats::wire::Headers;
use crate::nats::{Api, Which};

/// Reads one stream.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    api: Api,
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
        let which = Which {
            seq: Some(seq),
            ..Which::default()
        };
        stream.ask(&which, Self::new).await
    }

    fn stored(&self) -> &Stored {
        &self.stored
    }
}

impl Messages {
    pub(crate) fn new(api: Api, stream: &str) -> Self {
        let stream = stream.to_owned();
        Self {
            api,
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
        self.ask_stored(&Which {
            seq: Some(seq),
            ..Which::default()
        })
        .await
    }

    /// The last message with this subject.
    pub(crate) async fn last_of(&self, subject: &str) -> Result<Option<Stored>, Error> {
        self.ask_stored(&Which {
            last_by_subj: Some(subject),
            ..Which::default()
        })
        .await
    }

    /// The first message at or behind a sequence number.
    pub(crate) async fn from(&self, seq: u64) -> Result<Option<Stored>, Error> {
        self.next_of(">", seq).await
    }

    /// The first message with this subject or pattern at or behind a sequence number.
    pub(crate) async fn next_of(&self, subject: &str, seq: u64) -> Result<Option<Stored>, Error> {
        self.ask_stored(&Which {
            seq: Some(seq),
            next_by_subj: Some(subject),
            ..Which::default()
        })
        .await
    }

    /// The first message at or behind a sequence number, with its body.
    pub(crate) async fn whole_from(&self, seq: u64) -> Result<Option<Whole>, Error> {
        let which = Which {
            seq: Some(seq),
            next_by_subj: Some(">"),
            ..Which::default()
        };
        self.ask(&which, Whole::new).await
    }

    /// The last message with this subject, with its body.
    pub(crate) async fn last_whole_of(&self, subject: &str) -> Result<Option<Whole>, Error> {
        let which = Which {
            last_by_subj: Some(subject),
            ..Which::default()
        };
        self.ask(&which, Whole::new).await
    }

    /// Deletes all messages with this subject or pattern, and returns how many there were.
    pub(crate) async fn purge(&self, subject: &str) -> Result<u64, Error> {
        let purged = self.api.purge(&self.stream, subject).await;
        let failed = || format!("purge {} of {subject}", self.stream);
        let purged = purged.map_err(|error| Error::unanswered(&failed(), error))?;
        purged.map_err(|error| Error::Broken(format!("{}: {error}", failed())))
    }

    /// Deletes the message at a sequence number. Says whether there was one.
    pub(crate) async fn delete(&self, seq: u64) -> Result<bool, Error> {
        let deleted = self.api.delete_message(&self.stream, seq).await;
        let failed = || format!("delete message {seq} of {}", self.stream);
        match deleted.map_err(|error| Error::unanswered(&failed(), error))? {
            Ok(()) => Ok(true),
            Err(error) if error.err_code == NO_SEQUENCE => Ok(false),
            Err(error) => Err(Error::Broken(format!("{}: {error}", failed()))),
        }
    }

    /// The first one at or behind a sequence number that may be ours.
    pub(crate) async fn ours_from(&self, seq: u64) -> Result<Option<Stored>, Error> {
        let Some(subjects) = &self.ours else {
            return self.from(seq).await;
        };
        let mut first: Option<Stored> = None;
        for subject in subjects.iter() {
            let next = self.next_of(subject, seq).await?;
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
        let looked = format!("look at {}", self.stream);
        let found = match self.api.stream_as::<Looked>(&self.stream).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) if error.missing() => return Ok(None),
            Ok(Err(error)) => return Err(Error::Broken(format!("{looked}: {error}"))),
            Err(error) => return Err(Error::unanswered(&looked, error)),
        };
        let Some(created) = time(&found.created) else {
            let why = format!("{looked}: {:?} is no time", found.created);
            return Err(Error::Broken(why));
        };
        Ok(Some(Standing {
            created,
            last_sequence: found.state.last_seq,
            now: time(&found.ts),
            domain: found.domain,
        }))
    }

    /// The name of the stream.
    pub(crate) fn name(&self) -> &str {
        &self.stream
    }

    async fn ask_stored(&self, which: &Which<'_>) -> Result<Option<Stored>, Error> {
        self.ask(which, Stored::new::<Length>).await
    }

    async fn ask<T: Text, M>(
        &self,
        which: &Which<'_>,
        keep: impl Fn(&RawMessage<T>) -> Option<M>,
    ) -> Result<Option<M>, Error> {
        let asked = || format!("read a message of {} ({which:?})", self.stream);
        let answer = self.api.message::<RawMessage<T>>(&self.stream, which).await;
        match answer.map_err(|error| Error::unanswered(&asked(), error))? {
            Ok(message) => match keep(&message) {
                Some(kept) => Ok(Some(kept)),
                None => {
                    let why = format!("{}: {:?} is no time", asked(), message.time);
                    Err(Error::Broken(why))
                }
            },
            Err(error) if error.err_code == NO_MESSAGE => Ok(None),
            Err(error) => Err(Error::Broken(format!("{}: {error}", asked()))),
        }
    }
}

/// `JSNoMessageFoundErr` and `JSSequenceNotFoundErrF` of nats-server.
const NO_MESSAGE: u64 = 10037;
const NO_SEQUENCE: u64 = 10043;

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

    /// The first value of a header that is text; lines that are no headers are passed over.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = Headers::new(&self.header_block).lines();
        let mut values = lines.filter(|(found, _)| *found == name.as_bytes());
        values.find_map(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// All headers, each with its value. What is no text is replaced.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        let lines = Headers::new(&self.header_block).lines();
        lines.map(|(name, value)| {
            (
                String::from_utf8_lossy(name),
                String::from_utf8_lossy(value),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_read_without_its_body_or_headers() {
        let message = r#"{"subject":"a","seq":2,"hdrs":"TkFUUw==",
            "data":"AAAAAAAA","time":"2026-11-21T16:14:02.125588175Z"}"#;
        let message: RawMessage<Length> = serde_json::from_str(message).expect("a message");
        let stored = Stored::new(&message).expect("a time");
        assert_eq!((stored.sequence, stored.body_bytes), (2, 6));
        assert_eq!(stored.header_block, b"NATS");
        let bare = r#"{"subject":"a","seq":3,"time":"2026-11-21T16:14:02Z"}"#;
        let message: RawMessage<Length> = serde_json::from_str(bare).expect("a message");
        let stored = Stored::new(&message).expect("a time");
        assert_eq!((stored.sequence, stored.body_bytes), (3, 0));
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
        let headers: Vec<String> = stored
            .headers()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(headers, ["\u{fffd}=x", "Outjet-Id=a:b", "Outjet-Id=c"]);
    }
}
