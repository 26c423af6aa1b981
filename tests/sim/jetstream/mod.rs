//! A model of nats-server with JetStream: what it does, as far as outjet can tell, and every
//! trouble that it can make. One [`Nats`] stands for a server, or for a cluster of three that all
//! clients reach at one address. It runs on the caller's tasks, knows no clock but tokio's, and
//! leaves every choice to the caller: the same calls at the same times give the same bytes.
//!
//! What is asked of it over a connection is answered in the bytes of the real server
//! ([`conformance`] compares them). What vanishes in time (`max_age`, `Nats-TTL`) or appears in
//! time (schedules) does so when the model is next asked for anything, with the time at which it
//! was due.

mod accept;
mod api;
mod batch;
mod config;
mod conformance;
mod connection;
mod header;
mod hub;
mod json;
mod rules;
mod schedule;
mod serve;
mod sink;
mod store;
mod stream;
mod subject;
mod talk;
mod tests;
mod trouble;
mod version;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use hub::Hub;
pub(crate) use version::Version;

/// When the simulation begins: 2026-01-01T00:00:00Z, in nanoseconds since 1970.
pub(crate) const BASE: i64 = 1_767_225_600_000_000_000;

/// What a server is.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Which nats-server it behaves like.
    pub(crate) version: Version,
    /// 1, or 3: then streams may have three replicas, of which this is all there is to see.
    pub(crate) servers: usize,
    /// Its JetStream domain, which it then names in each acknowledgement.
    pub(crate) domain: Option<String>,
    /// As INFO says it.
    pub(crate) max_payload: usize,
    /// Longest line of a client, in bytes.
    pub(crate) max_control_line: usize,
    /// The time at [`Nats::new`], in nanoseconds since 1970.
    pub(crate) base: i64,
}

impl Options {
    /// One server without a domain, at [`BASE`].
    pub(crate) fn new(version: Version) -> Self {
        Self {
            version,
            servers: 1,
            domain: None,
            max_payload: 1024 * 1024,
            max_control_line: 4096,
            base: BASE,
        }
    }
}

/// The server. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Nats(Arc<Mutex<Hub>>);

impl Nats {
    /// Starts it, without streams. Needs tokio's clock.
    pub(crate) fn new(options: Options) -> Self {
        Self(Arc::new(Mutex::new(Hub::new(options))))
    }

    /// Plays one client's connection until one side closes it; dropped, the connection is dead.
    /// What was read from `stream` before has been processed. Connections are numbered from 1 in
    /// the order in which they are first polled.
    pub(crate) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        serve::serve(self.0, stream).await;
    }

    /// From now on, asks what becomes of each answer to a publish and to a request of JetStream.
    /// What was asked has happened by then.
    pub(crate) fn decide(&self, decide: impl FnMut(&Answer<'_>) -> Fate + Send + 'static) {
        self.hub().decide = Box::new(decide);
    }

    /// Shows all that was ever stored: each incarnation of each stream in the order in which they
    /// ended, then those that are there, by name; a twin's last.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&[&Incarnation]) -> T) -> T {
        let mut hub = self.hub();
        hub.advance();
        look(&hub.incarnations())
    }

    /// The same of the streams of one name, copied. Headers and bodies are shared.
    pub(crate) fn stored(&self, stream: &str) -> Vec<Incarnation> {
        self.read(|all| {
            let named = all.iter().filter(|one| one.stream == stream && !one.twin);
            named.map(|one| Incarnation::clone(one)).collect()
        })
    }

    /// Publishes or asks as somebody else: the first answer to `subject`, which needs no rights and
    /// is not delayed. `lines` are headers, `Name: value\r\n` each. `None`: nobody answers.
    pub(crate) fn ask(&self, subject: &str, lines: &str, body: &[u8]) -> Option<Vec<u8>> {
        let mut hub = self.hub();
        hub.advance();
        hub.ask(subject, lines, body)
    }

    /// Nanoseconds since 1970.
    pub(crate) fn now(&self) -> i64 {
        self.hub().now()
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes out at once.
    Now,
    /// It goes out later: after those of the same connection that are due before it, to the
    /// nanosecond, although tokio wakes us each millisecond only.
    After(Duration),
    /// It is lost.
    Never,
}

/// An answer that is about to go out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer<'a> {
    /// Whom it is for.
    pub(crate) connection: u64,
    /// Of which stream, if of any.
    pub(crate) stream: &'a str,
    /// What it says.
    pub(crate) kind: Kind,
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stored at this sequence number.
    Stored(u64),
    /// A duplicate of this one.
    Duplicate(u64),
    /// Refused, with this `err_code`.
    Refused(u16),
    /// Taken into a batch.
    Staged,
    /// Nobody listens: 503.
    Nobody,
    /// What answers a request of the API.
    Api,
    /// What a twin of the domain says.
    Twin,
}

/// A stream from its creation to its end.
#[derive(Clone, Debug)]
pub(crate) struct Incarnation {
    /// Its name.
    pub(crate) stream: String,
    /// It is that of another domain.
    pub(crate) twin: bool,
    /// When it was created, in nanoseconds since 1970.
    pub(crate) created: i64,
    /// When it ended.
    pub(crate) ended: Option<i64>,
    /// All that was stored, in that order. A sequence number comes twice where the tail was lost.
    pub(crate) messages: Vec<Stored>,
}

/// A message that was stored.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    pub(crate) subject: Bytes,
    /// From `NATS/1.0` to the empty line; empty without headers.
    pub(crate) headers: Bytes,
    pub(crate) body: Bytes,
    /// When it was stored, in nanoseconds since 1970.
    pub(crate) time: i64,
    pub(crate) writer: Writer,
    /// When and how it vanished.
    pub(crate) gone: Option<(i64, Gone)>,
}

impl Stored {
    /// The first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        header::value(&self.headers, name)
    }
}

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// A connection, by its number.
    Connection(u64),
    /// Whoever called a method of [`Nats`].
    Stranger,
    /// The server: a schedule was due.
    Server,
}

/// How a message vanished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// Somebody deleted it.
    Deleted,
    /// Somebody purged it.
    Purged,
    /// `max_age`, or [`Nats::expire`].
    Aged,
    /// `Nats-TTL`.
    Ttl,
    /// A limit of the stream, with discard old.
    Limit,
    /// A newer one with its subject: `max_msgs_per_subject`, or `Nats-Rollup`.
    Replaced,
    /// It was consumed.
    Consumed,
    /// Nobody was to consume it.
    NoInterest,
    /// Its schedule was due.
    Fired,
    /// The server lost it after it had acknowledged it, and whatever became of it until then.
    Lost,
    /// With its stream.
    Stream,
}

/// Whether a stream, or all of JetStream, has a leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Leader {
    /// It has one.
    #[default]
    Present,
    /// It seems to have one, which does nothing: no answer to anything.
    Silent,
    /// Publishes get 503; requests are not answered.
    NoResponders,
    /// Its cluster has lost its quorum: publishes are not answered; of requests, `STREAM.INFO` says
    /// what was and names no leader, and the others get error 10008.
    NoQuorum,
}
