//! Transactions that appear in the stream as a whole or not at all: atomic batches of nats-server
//! 2.12.1 and newer (ADR-50).
//!
//! The events that go together are judged and checked one by one as all others are, and staged;
//! when the last of them has passed, what is staged goes out without a pause, so that the server
//! forgets no half of it (it does so after 10 s). Those that are known or dead-lettered by then are
//! not among them. The first expects the sequence before the batch, which the server compares when
//! the last has come; only that one is answered. So a batch has the place in the chain that its
//! events would have one by one.

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use tokio::time::Instant;

use super::super::IN_FLIGHT_BYTES_MAX;
use super::super::JetStream;
use super::super::epoch_mut;
use super::super::error::Error;
use super::super::names::{BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, EXPECTED_LAST_SEQUENCE};
use super::chain::Chain;
use crate::fault;

/// The messages of the events that are staged, without the headers of a batch.
#[derive(Default)]
pub(crate) struct Batch(Vec<(String, HeaderMap, Bytes)>);

impl Batch {
    /// One more message.
    pub(crate) fn push(&mut self, subject: String, headers: HeaderMap, payload: Bytes) {
        self.0.push((subject, headers, payload));
    }
}

impl JetStream {
    /// Whether the waiting event may go out, and those that go with it: all of them or none.
    pub(crate) fn has_room(&self) -> bool {
        let (in_flight, staged) = (self.chain.in_flight(), self.chain.staged());
        if staged > 0 {
            return true;
        }
        if self.hold.wants_look() {
            return false;
        }
        if in_flight == 0 {
            return true;
        }
        let Some(waiting) = self.chain.waiting() else {
            return true;
        };
        let followers = waiting.event.followers;
        let room = if self.memory.is_careful(&self.chain) {
            1
        } else {
            self.options.in_flight_max
        };
        let full = self.chain.in_flight_bytes() >= IN_FLIGHT_BYTES_MAX;
        in_flight + usize::from(followers) < room && !full
    }

    /// Passes the waiting event; if it was the last of those that go together, they go.
    pub(crate) async fn pass(&mut self, how: impl FnOnce(&mut Chain)) -> Result<(), Error> {
        let waiting = self.chain.waiting().expect("an event waits");
        let last = waiting.event.followers == 0;
        how(&mut self.chain);
        if last && self.chain.staged() > 0 {
            self.send_staged().await?;
        }
        Ok(())
    }

    async fn send_staged(&mut self) -> Result<(), Error> {
        let epoch = epoch_mut(&mut self.epoch);
        if self.chain.in_flight() == 0 {
            epoch.progress_at = Instant::now();
        }
        let messages = std::mem::take(&mut epoch.batch.0);
        let (number, expected) = self.chain.send_staged();
        let connection = &epoch.connection;
        let reply = format!("{}.{number}", connection.inbox);
        // Unique, as the inbox is; its last token is short enough.
        let name = connection.inbox.rsplit('.').next().unwrap_or_default();
        let id = format!("{name}-{number}");
        let size = messages.len();
        for (index, (subject, mut headers, payload)) in messages.into_iter().enumerate() {
            let last = index + 1 == size;
            if index == 0 {
                headers.insert(EXPECTED_LAST_SEQUENCE, HeaderValue::from(expected));
            }
            if size > 1 {
                headers.insert(BATCH_ID, id.as_str());
                headers.insert(BATCH_SEQUENCE, HeaderValue::from(index as u64 + 1));
            }
            if size > 1 && last {
                headers.insert(BATCH_COMMIT, "1");
            }
            let publish = connection.publish(
                (subject, last.then(|| reply.clone())),
                (headers, payload),
                self.options.ack_timeout,
            );
            publish.await?;
            fault::point(if last {
                "published"
            } else {
                "published_in_part"
            });
        }
        Ok(())
    }
}
