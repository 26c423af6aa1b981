//! Transactions that appear in the stream as a whole or not at all: atomic batches of nats-server
//! 2.12.1 and newer (ADR-50).
//!
//! The events that go together are judged and checked one by one as all others are, and staged;
//! when the last of them has passed, what is staged goes out without a pause, so that the server
//! forgets no half of it (it does so after 10 s). Those that are known or dead-lettered by then are
//! not among them. The first expects the sequence before the batch, which the server compares when
//! the last has come; only that one is answered. So a batch has the place in the chain that its
//! events would have one by one.

use async_nats::HeaderMap;
use bytes::Bytes;

/// The messages of the events that are staged, without the headers of a batch.
#[derive(Default)]
pub(crate) struct Batch(Vec<(String, HeaderMap, Bytes)>);

impl Batch {
    /// One more message.
    pub(crate) fn push(&mut self, subject: String, headers: HeaderMap, payload: Bytes) {
        self.0.push((subject, headers, payload));
    }

    /// All of them, in order.
    pub(crate) fn take(&mut self) -> Vec<(String, HeaderMap, Bytes)> {
        std::mem::take(&mut self.0)
    }
}
