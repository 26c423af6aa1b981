//! A model of one nats-server with JetStream, as far as outjet meets it: streams with sequence
//! numbers, expectations, ids that are remembered for a while, and messages that vanish. Knows
//! nothing of outjet.
//!
//! Invariant: nothing here asks the world. Time is tokio's, and nothing is iterated in an order of
//! chance: the same calls at the same instants give the same bytes.

mod api;
mod connection;
mod message;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

pub(crate) use self::stream::Message;
use self::stream::{Clock, Stream};

/// A release of nats-server: what it says in INFO.
pub(crate) type Version = (u64, u64, u64);

/// Those that behave differently.
pub(crate) const VERSIONS: [Version; 3] = [(2, 10, 26), (2, 12, 1), (2, 15, 1)];

/// A server. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Nats {
    shared: Arc<Shared>,
}

struct Shared {
    version: Version,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    streams: BTreeMap<String, Stream>,
    clients: BTreeMap<u64, Client>,
    connected: u64,
    /// Counts the starts of the process.
    process: u64,
    /// No stream has a leader.
    leaderless: bool,
}

/// What a connection has subscribed to, and what it is still to be sent.
struct Client {
    /// By the number that the client gave: which subjects.
    subscriptions: BTreeMap<u64, String>,
    output: Vec<u8>,
    wake: Arc<Notify>,
}

impl Nats {
    pub(crate) fn new(version: Version) -> Self {
        Self {
            shared: Arc::new(Shared {
                version,
                clock: Clock::new(),
                state: Mutex::default(),
            }),
        }
    }

    /// Plays the server's side of one connection until it ends.
    pub(crate) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        connection::serve(self, stream).await;
    }

    /// `kill -9` and a start: every connection ends; what is stored, and the ids, stay.
    pub(crate) fn restart(&self) {
        let mut state = self.state();
        state.process += 1;
        for client in state.clients.values() {
            client.wake.notify_one();
        }
    }

    /// No stream takes or gives anything while this is so: nobody answers.
    pub(crate) fn leaderless(&self, leaderless: bool) {
        self.state().leaderless = leaderless;
    }

    /// Everything that was ever stored in the stream of this name, its predecessors included.
    pub(crate) fn stored(&self, stream: &str) -> Vec<Message> {
        let state = self.state();
        state
            .streams
            .get(stream)
            .map_or_else(Vec::new, Stream::ever)
    }

    /// Deletes a message. `false`: it is not there.
    pub(crate) fn delete(&self, stream: &str, sequence: u64) -> bool {
        let mut state = self.state();
        state
            .streams
            .get_mut(stream)
            .is_some_and(|stream| stream.delete(sequence))
    }

    /// Deletes all messages up to and including this one.
    pub(crate) fn purge(&self, stream: &str, up_to: u64) -> u64 {
        let mut state = self.state();
        state
            .streams
            .get_mut(stream)
            .map_or(0, |stream| stream.purge(|it| it.sequence <= up_to))
    }

    /// `kill -9` of a server that has not written its newest messages to disk: they are gone from
    /// this stream, and are returned.
    pub(crate) fn lose(&self, stream: &str, count: usize) -> Vec<Message> {
        self.restart();
        let mut state = self.state();
        let stream = state.streams.get_mut(stream);
        stream.map_or_else(Vec::new, |stream| stream.lose(count))
    }

    /// Somebody else publishes: these header lines and this body.
    pub(crate) fn publish(&self, subject: &str, lines: &str, body: &[u8]) {
        let block = format!("NATS/1.0\r\n{lines}\r\n");
        let message = message::Published {
            subject,
            headers: if lines.is_empty() {
                b""
            } else {
                block.as_bytes()
            },
            body,
            by: None,
        };
        let now = self.shared.clock.now();
        self.state().store(&message, (self.shared.version, now));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A history that panics with the lock held has failed already.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What the stream that listens answers; `None`: none does.
    fn store(
        &mut self,
        message: &message::Published<'_>,
        (version, now): (Version, u64),
    ) -> Option<String> {
        if self.leaderless {
            return None;
        }
        let mut streams = self.streams.values_mut();
        let stream = streams.find(|stream| stream.listens(message.subject))?;
        Some(stream.store(message, version, now))
    }

    /// Puts a message into the output of everybody who has subscribed.
    fn deliver(&mut self, subject: &str, headers: &[u8], body: &[u8]) -> bool {
        let mut delivered = false;
        for client in self.clients.values_mut() {
            let wanted = client
                .subscriptions
                .iter()
                .filter(|(_, pattern)| message::matches(pattern, subject));
            let wanted: Vec<u64> = wanted.map(|(number, _)| *number).collect();
            for number in wanted {
                message::deliver(&mut client.output, (subject, number), (headers, body));
                client.wake.notify_one();
                delivered = true;
            }
        }
        delivered
    }
}
