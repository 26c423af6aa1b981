//! The troubles that the caller can make.

use std::time::Duration;

use super::stream::Stream;
use super::{Gone, Leader, Nats, header};

impl Nats {
    /// Creates a stream as an owner does, with the JSON of a configuration.
    pub(crate) fn create(&self, name: &str, config: &str) {
        let subject = format!("$JS.API.STREAM.CREATE.{name}");
        let answer = self.ask(&subject, "", config.as_bytes());
        let answer = answer.expect("JetStream answers");
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("\"error\":"), "{answer}");
    }

    /// Somebody publishes. Where it is stored; `None`: it is not.
    pub(crate) fn publish(&self, subject: &str, lines: &str, body: &[u8]) -> Option<u64> {
        let answer = self.ask(subject, lines, body)?;
        header::sequence(&answer)
    }

    /// Somebody publishes what stands at a sequence number once more, as consumers do when they
    /// try again: with its headers but what it expected; with its id only if so told.
    pub(crate) fn copy(&self, stream: &str, sequence: u64, with_id: bool) -> Option<u64> {
        let (subject, lines, body) = {
            let mut hub = self.hub();
            hub.advance();
            let stream = hub.home.streams.get(stream)?;
            let found = stream.at(sequence)?;
            let subject = stream.entrance(&found.subject)?;
            (
                subject,
                header::copied(&found.headers, with_id),
                found.body.clone(),
            )
        };
        self.publish(&subject, &lines, &body)
    }

    /// Somebody deletes a message. Whether there was one.
    pub(crate) fn delete(&self, stream: &str, sequence: u64) -> bool {
        self.remove_where(stream, Gone::Deleted, |at| at == sequence) > 0
    }

    /// Somebody purges all up to a sequence number. How many there were.
    pub(crate) fn purge(&self, stream: &str, up_to: u64) -> u64 {
        self.remove_where(stream, Gone::Purged, |at| at <= up_to)
    }

    /// A consumer takes a message and acknowledges it: where messages vanish by that, it does.
    pub(crate) fn consume(&self, stream: &str, sequence: u64) -> bool {
        let consumed = |found: &Stream| found.config.vanishes_when_consumed();
        let vanishes = self.with(stream, |found, _| consumed(found));
        vanishes.unwrap_or(false)
            && self.remove_where(stream, Gone::Consumed, |at| at == sequence) > 0
    }

    /// How many consumers a stream has: with interest retention, none store nothing.
    pub(crate) fn set_consumers(&self, stream: &str, consumers: usize) {
        self.with(stream, |found, _| found.consumers = consumers);
    }

    /// What was stored longer ago than this vanishes, as with a `max_age` that was just set. How
    /// many.
    pub(crate) fn expire(&self, stream: &str, older_than: Duration) -> u64 {
        let nanos = i64::try_from(older_than.as_nanos()).unwrap_or(i64::MAX);
        let expired = self.with(stream, |found, now| {
            found.expire_before(now.saturating_sub(nanos), now)
        });
        expired.unwrap_or(0)
    }

    /// What was stored behind a sequence number is lost, and so are its ids, as when power fails
    /// before the server has written it. The stream goes on from there, and what was replaced by
    /// what is lost is there again: of a bucket, the older revision.
    pub(crate) fn truncate(&self, stream: &str, last: u64) {
        self.with(stream, |found, now| found.truncate(last, now));
    }

    /// Somebody deletes a stream.
    pub(crate) fn remove(&self, stream: &str) {
        let mut hub = self.hub();
        hub.advance();
        let now = hub.now();
        hub.home.remove(stream, now);
    }

    /// Somebody deletes a stream and makes it again, the same and empty.
    pub(crate) fn recreate(&self, stream: &str) {
        let mut hub = self.hub();
        hub.advance();
        let now = hub.now();
        if let Some(config) = hub.home.remove(stream, now) {
            hub.home.create(config, now);
        }
    }

    /// The owner edits a stream, or somebody seals it: with fields of its configuration.
    pub(crate) fn configure(&self, stream: &str, change: impl FnOnce(&mut super::config::Config)) {
        self.with(stream, |found, now| found.configure(change, now));
    }

    /// Whether a stream refuses everything for want of room (10077).
    pub(crate) fn set_full(&self, stream: &str, full: bool) {
        self.with(stream, |found, _| found.full = full);
    }

    /// Whether a stream has a leader; `None`: all of them, and the API.
    pub(crate) fn set_leader(&self, stream: Option<&str>, leader: Leader) {
        let mut hub = self.hub();
        hub.advance();
        match stream {
            None => hub.leader = leader,
            Some(name) => {
                if let Some(found) = hub.home.streams.get_mut(name) {
                    found.leader = leader;
                }
            }
        }
    }

    /// What clients may not publish to and not subscribe to, as patterns; methods of [`Nats`] may.
    /// Subscriptions that are denied now end, as when the server's configuration is reloaded.
    pub(crate) fn deny(&self, publish: &[&str], subscribe: &[&str]) {
        let owned = |patterns: &[&str]| patterns.iter().map(|it| (*it).to_owned()).collect();
        let mut hub = self.hub();
        hub.deny(owned(publish), owned(subscribe));
    }

    /// A stream of another domain, behind a leaf node, that listens on the subjects of a
    /// configuration: it stores and answers whatever ours does, in this order or after a delay of
    /// [`Fate`](super::Fate). Where it was before, it goes.
    pub(crate) fn set_twin(&self, domain: &str, config: Option<&str>) {
        let mut hub = self.hub();
        hub.advance();
        hub.set_twin(domain, config);
    }

    /// While paused, connections are accepted, and nothing is read or written.
    pub(crate) fn pause(&self, paused: bool) {
        let mut hub = self.hub();
        hub.paused = paused;
        hub.wake_all();
    }

    /// The server restarts, all of a cluster's at once: connections end, batches and what is in
    /// memory are gone, ids are those of the messages that are there.
    pub(crate) fn restart(&self) {
        let mut hub = self.hub();
        hub.advance();
        hub.restart();
    }

    /// Connections end, and nothing else; those to come are accepted.
    pub(crate) fn disconnect(&self) {
        self.hub().disconnect();
    }

    /// Lame duck mode: connections are told, publishes get 503.
    pub(crate) fn lame_duck(&self) {
        let mut hub = self.hub();
        hub.lame_duck = true;
        hub.tell_info();
    }

    /// Another `max_payload`: connections are told.
    pub(crate) fn set_max_payload(&self, bytes: usize) {
        let mut hub = self.hub();
        hub.options.max_payload = bytes;
        hub.tell_info();
    }

    /// Whether JetStream runs. Without it INFO does not name it, and everything gets 503.
    pub(crate) fn set_jetstream(&self, runs: bool) {
        let mut hub = self.hub();
        hub.jetstream = runs;
        hub.tell_info();
    }

    /// The next schedule, message with an end or `max_age` that is due, in nanoseconds since 1970;
    /// for a caller that wants the model to be asked then.
    pub(crate) fn next_due(&self) -> Option<i64> {
        let hub = self.hub();
        hub.home.streams.values().filter_map(Stream::next_due).min()
    }

    fn remove_where(&self, stream: &str, gone: Gone, which: impl Fn(u64) -> bool) -> u64 {
        let removed = self.with(stream, |found, now| found.remove_where(&which, (now, gone)));
        removed.unwrap_or(0)
    }

    fn with<T>(&self, stream: &str, work: impl FnOnce(&mut Stream, i64) -> T) -> Option<T> {
        let mut hub = self.hub();
        hub.advance();
        let now = hub.now();
        let found = hub.home.streams.get_mut(stream)?;
        Some(work(found, now))
    }
}
