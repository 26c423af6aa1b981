//! What is asked of JetStream (ADR-31): JSON there and back, or the server's reason why not.

use async_nats::jetstream::stream::{Config, Info};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

use super::error::RequestError;
use super::options::Options;
use super::requests::{Answers, Message, Request, Requests};

/// JetStream behind a connection that somebody drives.
#[derive(Clone, Debug)]
pub struct Api {
    requests: Requests,
    prefix: String,
    domain: Option<String>,
    within: Duration,
}

/// What was asked, or why the server did not do it; or why nobody knows.
pub type Answer<T> = Result<Result<T, ApiError>, RequestError>;

/// The server's reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, thiserror::Error)]
#[serde(default)]
#[error("{description} ({err_code})")]
pub struct ApiError {
    /// As in HTTP.
    pub code: u16,
    /// Which one (`server/errors.json`, nats-server).
    pub err_code: u64,
    /// In its words.
    pub description: String,
}

/// `JSClusterNotAvailErr` of nats-server.
const LEADERLESS: u64 = 10008;

/// Only what does not pass by itself is an answer.
fn refused<T>(error: ApiError) -> Answer<T> {
    match error.err_code {
        LEADERLESS => Err(RequestError::Leaderless(error.to_string())),
        _ => Ok(Err(error)),
    }
}

impl ApiError {
    /// What was asked for is not there.
    pub fn missing(&self) -> bool {
        self.code == 404
    }
}

/// Which message of a stream, of those that are there.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Which<'a> {
    /// At this sequence number; or from it on, with `next_by_subj`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The first with this subject or pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_by_subj: Option<&'a str>,
    /// The last with this subject or pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_by_subj: Option<&'a str>,
}

/// What makes a put a compare-and-set.
const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";

impl Api {
    /// As the options name it. Each request has their `connect_timeout`.
    pub fn new(requests: Requests, options: &Options) -> Self {
        Self {
            requests,
            prefix: options.api(),
            domain: options.domain.clone(),
            within: options.connect_timeout,
        }
    }

    /// The requests of the connection.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Asks what the subject behind the prefix stands for.
    pub async fn request<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        subject: &str,
        question: &Q,
    ) -> Answer<A> {
        let answer = self.exchange(subject, question).await?;
        let refusal: Refusal = serde_json::from_slice(&answer.body).map_err(not_understood)?;
        match refusal.error {
            Some(error) => refused(error),
            None => {
                let answer = serde_json::from_slice(&answer.body);
                Ok(Ok(answer.map_err(not_understood)?))
            }
        }
    }

    /// What a stream is.
    pub async fn stream(&self, name: &str) -> Answer<Info> {
        self.stream_as(name).await
    }

    /// The same, as much of it as `A` takes.
    pub async fn stream_as<A: DeserializeOwned>(&self, name: &str) -> Answer<A> {
        self.of_stream("STREAM.INFO", name, &Nothing {}).await
    }

    /// Makes a stream; one that is there and is the same already will do.
    pub async fn create_stream(&self, config: &Config) -> Answer<Info> {
        self.of_stream("STREAM.CREATE", &config.name, config).await
    }

    /// Deletes the messages with this subject or pattern, and returns how many there were.
    pub async fn purge(&self, stream: &str, filter: &str) -> Answer<u64> {
        let purge = Purge { filter };
        let purged = self.of_stream::<_, Purged>("STREAM.PURGE", stream, &purge);
        Ok(purged.await?.map(|purged| purged.purged))
    }

    /// Deletes the message at a sequence number; an error if there is none.
    pub async fn delete_message(&self, stream: &str, seq: u64) -> Answer<()> {
        let delete = Delete { seq };
        let deleted = self.of_stream::<_, Nothing>("STREAM.MSG.DELETE", stream, &delete);
        Ok(deleted.await?.map(|Nothing {}| ()))
    }

    /// One message, from the stream's leader; of `StoredMsg` (nats-server) as much as `A` takes.
    pub async fn message<A: DeserializeOwned>(&self, stream: &str, which: &Which<'_>) -> Answer<A> {
        let subject = about("STREAM.MSG.GET", stream)?;
        let answer = self.exchange(&subject, which).await?;
        // Read once: it may be large, and there may be many.
        let found: Found<A> = serde_json::from_slice(&answer.body).map_err(not_understood)?;
        match (found.message, found.error) {
            (Some(message), _) => Ok(Ok(message)),
            (None, Some(error)) => refused(error),
            (None, None) => Err(not_understood(serde::de::Error::missing_field("message"))),
        }
    }

    /// Puts a value into a bucket if the subject of its key still has this revision, 0 for none.
    /// Another domain's stream may answer first, so that whose answer it is remains to be judged.
    pub fn put(&self, subject: &str, expected: u64, body: &[u8]) -> Result<Answers, RequestError> {
        let entrance = match self.domain {
            // No twin in another domain answers this (nats.go, kv.go: useJSPfx).
            Some(_) => format!("{}.{subject}", self.prefix),
            None => subject.to_owned(),
        };
        let lines = format!("{EXPECTED_LAST_SUBJECT_SEQUENCE}: {expected}\r\n");
        self.requests.ask(Request {
            subject: &entrance,
            lines: lines.as_bytes(),
            body,
        })
    }

    async fn of_stream<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        request: &str,
        stream: &str,
        question: &Q,
    ) -> Answer<A> {
        self.request(&about(request, stream)?, question).await
    }

    async fn exchange<Q: Serialize + ?Sized>(
        &self,
        subject: &str,
        question: &Q,
    ) -> Result<Message, RequestError> {
        let subject = format!("{}.{subject}", self.prefix);
        let body = serde_json::to_vec(question).map_err(not_understood)?;
        let request = Request {
            subject: &subject,
            lines: b"",
            body: &body,
        };
        let answer = self.requests.request(request, self.within).await?;
        match answer.headers().status() {
            Some(NO_RESPONDERS) => Err(RequestError::NoResponders),
            _ => Ok(answer),
        }
    }
}

/// The subject of a request that is about a stream.
fn about(request: &str, stream: &str) -> Result<String, RequestError> {
    // A wildcard or a dot would ask something else.
    if stream.is_empty() || stream.contains(['.', '*', '>', '/', '\\']) {
        return Err(RequestError::Subject(stream.to_owned()));
    }
    Ok(format!("{request}.{stream}"))
}

/// Nobody listens: no JetStream, or no leader.
const NO_RESPONDERS: u16 = 503;

fn not_understood(error: serde_json::Error) -> RequestError {
    RequestError::Answer(Arc::new(error))
}

#[derive(Deserialize, Serialize)]
struct Nothing {}

#[derive(Serialize)]
struct Delete {
    seq: u64,
}

#[derive(Serialize)]
struct Purge<'a> {
    filter: &'a str,
}

#[derive(Deserialize)]
struct Purged {
    purged: u64,
}

#[derive(Deserialize)]
struct Refusal {
    error: Option<ApiError>,
}

/// No untagged enum, which would be read twice.
#[derive(Deserialize)]
#[serde(bound = "A: DeserializeOwned")]
struct Found<A> {
    message: Option<A>,
    error: Option<ApiError>,
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::nats::Connection;
    use crate::nats::wire::Server;

    /// What is asked, and what becomes of this answer.
    async fn ask<T>(answer: &str, ask: impl AsyncFnOnce(Api) -> T) -> (String, T) {
        let options = Options {
            domain: Some("hub".to_owned()),
            ..Options::of_servers(Vec::new())
        };
        let (ours, mut theirs) = duplex(1 << 16);
        let connection = Connection::over(ours, Server::default(), None);
        let inbox = connection.inbox().to_owned();
        let driven = connection.spawn();
        let asked = ask(Api::new(driven.requests(), &options));
        let answered = async {
            let mut seen = Vec::new();
            while !seen.ends_with(b"}\r\n") && !seen.ends_with(b"value\r\n") {
                theirs.read_buf(&mut seen).await.expect("a request");
            }
            let answer = format!("MSG {inbox}.r0 1 {}\r\n{answer}\r\n", answer.len());
            theirs.write_all(answer.as_bytes()).await.expect("sent");
            let seen = String::from_utf8(seen).expect("text");
            let (_, request) = seen.split_once("SUB ").expect("a subscription");
            request
                .replace(&inbox, "INBOX")
                .split_once("\r\n")
                .expect("more")
                .1
                .to_owned()
        };
        let (asked, seen) = tokio::join!(asked, answered);
        (seen, asked)
    }

    #[tokio::test]
    async fn request_goes_to_the_domain_and_its_refusal_is_told_from_its_failure() {
        let refused = r#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        let (seen, asked) = ask(refused, async |api| api.stream("S").await).await;
        assert_eq!(seen, "PUB $JS.hub.API.STREAM.INFO.S INBOX.r0 2\r\n{}\r\n");
        let error = asked.expect("an answer").expect_err("refused");
        assert_eq!(error.to_string(), "stream not found (10059)");
        assert!(error.missing());
        let (_, asked) = ask("{}", async |api| api.stream("S").await).await;
        assert!(matches!(asked, Err(RequestError::Answer(_))), "{asked:?}");
    }

    #[tokio::test]
    async fn purge_and_message_name_what_they_are_about() {
        let (seen, asked) = ask(r#"{"purged":3}"#, async |api| api.purge("S", "a.>").await).await;
        let expected = "PUB $JS.hub.API.STREAM.PURGE.S INBOX.r0 16\r\n{\"filter\":\"a.>\"}\r\n";
        assert_eq!(seen, expected);
        assert_eq!(asked.expect("an answer"), Ok(3));
        let which = Which {
            seq: Some(7),
            next_by_subj: Some(">"),
            ..Which::default()
        };
        let answer = r#"{"message":{"seq":8}}"#;
        let ask_it = async |api: Api| api.message::<serde_json::Value>("S", &which).await;
        let (seen, asked) = ask(answer, ask_it).await;
        assert!(
            seen.ends_with("{\"seq\":7,\"next_by_subj\":\">\"}\r\n"),
            "{seen}"
        );
        let found = asked.expect("an answer").expect("a message");
        assert_eq!(found["seq"], 8);
        let deleted = ask(r#"{"success":true}"#, async |api| {
            api.delete_message("S", 7).await
        });
        let (seen, asked) = deleted.await;
        assert_eq!(
            seen,
            "PUB $JS.hub.API.STREAM.MSG.DELETE.S INBOX.r0 9\r\n{\"seq\":7}\r\n"
        );
        assert_eq!(asked.expect("an answer"), Ok(()));
    }

    #[tokio::test]
    async fn message_that_is_missing_is_told_from_an_answer_without_one() {
        let read = async |api: Api| {
            let which = Which::default();
            api.message::<serde_json::Value>("S", &which).await
        };
        let none = r#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#;
        let (_, asked) = ask(none, read).await;
        let error = asked.expect("an answer").expect_err("no message");
        assert_eq!(error.err_code, 10037);
        let (_, asked) = ask("{}", read).await;
        assert!(matches!(asked, Err(RequestError::Answer(_))), "{asked:?}");
    }

    #[tokio::test]
    async fn put_expects_the_revision_that_it_was_told() {
        let put = async |api: Api| {
            let mut answers = api.put("$KV.B.key", 5, b"value").expect("asked");
            answers.next().await.expect("an answer").body
        };
        let (seen, answer) = ask(r#"{"stream":"KV_B","seq":6}"#, put).await;
        let expected = "HPUB $JS.hub.API.$KV.B.key INBOX.r0    52       57\r\nNATS/1.0\r\n\
            Nats-Expected-Last-Subject-Sequence: 5\r\n\r\nvalue\r\n";
        assert_eq!(seen, expected);
        assert_eq!(&answer[..], br#"{"stream":"KV_B","seq":6}"#);
    }

    #[tokio::test]
    async fn name_that_is_none_asks_nothing() {
        let (ours, _theirs) = duplex(64);
        let connection = Connection::over(ours, Server::default(), None);
        let api = Api::new(connection.requests(), &Options::of_servers(Vec::new()));
        for name in ["", "a.b", "*", ">", "a b"] {
            let refused = api.stream(name).await;
            assert!(matches!(refused, Err(RequestError::Subject(_))), "{name:?}");
        }
    }
}
