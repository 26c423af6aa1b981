//! Transactions that appear in the stream as a whole or not at all: atomic batches of nats-server
//! 2.12.1 and newer (ADR-50).
//!
//! The events that go together are judged and checked one by one as all others are, and staged;
//! when the last of them has passed, what is staged goes out without a pause, so that the server
//! forgets no half of it (it does so after 10 s). Those that are known or dead-lettered by then are
//! not among them. The first expects the sequence before the batch, which the server compares when
//! the last has come; only that one is answered. So a batch has the place in the chain that its
//! events would have one by one.

use tokio::time::Instant;

use super::super::headers::{Composed, push};
use super::super::names::{BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, EXPECTED_LAST_SEQUENCE};
use super::Appender;
use super::epoch::Epoch;
use crate::fault;

impl Appender {
    /// Sends what is staged.
    pub(crate) fn send_staged(&mut self, epoch: &mut Epoch) {
        if self.ring.in_flight() == 0 {
            epoch.progress_at = Instant::now();
        }
        let (number, expected) = self.ring.send_staged();
        let id = format!("{}-{number}", epoch.client.name);
        let staged = std::mem::take(&mut epoch.staged);
        let size = staged.len();
        for (index, message) in staged.into_iter().enumerate() {
            let Composed {
                subject,
                mut lines,
                body,
            } = message;
            let last = index + 1 == size;
            if index == 0 {
                push(&mut lines, EXPECTED_LAST_SEQUENCE, &expected.to_string());
            }
            if size > 1 {
                push(&mut lines, BATCH_ID, &id);
                push(&mut lines, BATCH_SEQUENCE, &(index + 1).to_string());
                if last {
                    push(&mut lines, BATCH_COMMIT, "1");
                }
            }
            let mut draft = epoch.link.message(&subject, last.then_some(number));
            draft.lines(lines.as_bytes());
            draft.send(&body);
            fault::point(if last {
                "published"
            } else {
                "published_in_part"
            });
        }
    }
}
