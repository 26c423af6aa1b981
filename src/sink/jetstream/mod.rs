//! Appends to one JetStream stream, of which this sink is the only writer: in order, each event
//! once, whatever breaks. Knows no LSN and no Postgres. What holds of it in a stream that others
//! write, too, says [`append::shared`].
//!
//! Every publish expects the sequence that its predecessor made, so whatever is refused or lost
//! takes everything behind it along, and what a dead connection still delivers late fits nowhere.
//! Every publish asks for its acknowledgement, and only the predicted one settles an event: a
//! stranger's message could otherwise stand in for ours (the chain proves a count, not an
//! identity). Anything else means that the outcome is unknown. Then the *epoch* ends, with its
//! connection; the next one asks the stream which of the unsettled events it holds ([`tail`],
//! [`crate::guard`]) and sends the others. There is no other way to recover.
//!
//! A stranger's message costs a round trip, and is told. It never halts the sink, however often it
//! comes: nothing is lost by it, and whoever may publish into the stream could otherwise stop the
//! outbox for good with two messages a minute.
//!
//! `Nats-Msg-Id` is sent for consumers. The server's answer `duplicate` is never believed: ids are
//! used again, and some servers call what they refused a duplicate.

mod answers;
pub(crate) mod append;
mod aside;
mod bucket;
pub mod client;
mod error;
mod headers;
mod ingress;
mod inspection;
mod messages;
mod names;
mod options;
mod read;
mod reply;
mod rights;
mod tail;

use tokio::sync::mpsc;
use tracing::warn;

use self::append::chain::Chain;
use self::append::epoch::Epoch;
use self::append::hold::{Hold, Seen};
use self::append::memory::Memory;
use self::append::past::Doubts;
pub use self::append::record::Standing;
use self::aside::letters::Buried;
pub use self::error::Error;
pub use self::inspection::{Inspection, inspect};
pub use self::options::{Buries, Ingress, NatsOptions, Options, Storage, StreamOptions};
pub use self::read::follower::Follower;
pub use self::read::ledger::{Ledger, Line, Past};
pub use self::read::letterbox::{DeadLetter, Letterbox};
pub use self::read::schedules::{Schedule, Schedules};
pub use self::read::shelf::{BucketFound, Shelf, bucket_config, inspect_bucket};
pub use self::read::transcript::{Message as StoredMessage, Transcript};
pub use self::rights::check_rights;
use crate::backoff::{self, Backoff};
use crate::error::Failure;
use crate::event::lineage::Lineage;
use crate::sink::{Order, Report, Write};

/// The sink of one term.
pub struct JetStream {
    options: Options,
    lineage: Lineage,
    source: String,
    chain: Chain,
    backoff: Backoff,
    epoch: Option<Epoch>,
    /// What may be stored already.
    memory: Memory,
    /// A write whose outcome is not known.
    writing: Option<Write>,
    /// Why the bucket cannot be used: we lack the rights.
    denied: Option<String>,
    /// We may not look for what was delayed.
    schedules_denied: bool,
    /// The stream and its dead letters, which must not become less than they were.
    seen: Seen,
    seen_letters: Seen,
    hold: Hold,
    buried: Buried,
    doubts: Doubts,
}

impl JetStream {
    /// Connects, checks the stream or creates it, and checks that it is ours to write.
    pub async fn open(options: Options, lineage: Lineage) -> Result<Self, Failure> {
        let mut sink = Self {
            source: lineage.source().to_string(),
            memory: Memory::new(&lineage, options.stream.shared),
            lineage,
            chain: Chain::new(options.stream.shared),
            backoff: Backoff::new(backoff::Options::default()),
            epoch: None,
            writing: None,
            denied: None,
            schedules_denied: false,
            seen: Seen::default(),
            seen_letters: Seen::default(),
            hold: Hold::new(options.hold),
            buried: Buried::default(),
            doubts: Doubts::default(),
            options,
        };
        sink.open_epoch()
            .await
            .map_err(|error| error.failure(&sink.options))?;
        Ok(sink)
    }

    /// Appends what comes until the channel is closed. Ends with a failure if a person must act.
    /// What is known of the events that come must have been said ([`begin`](Self::begin)).
    pub async fn run(
        mut self,
        mut orders: mpsc::Receiver<Order>,
        reports: mpsc::Sender<Report>,
    ) -> Result<(), Failure> {
        let mut down = false;
        loop {
            let ended = match self.epoch {
                Some(_) => self.run_epoch(&mut orders, &reports, &mut down).await,
                None => Box::pin(self.continue_in_a_new_epoch(&reports)).await,
            };
            match ended {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    let error = self.without_it(error);
                    self.epoch = None;
                    self.give_up_or_wait(&error, &reports, &mut down).await?;
                }
            }
        }
    }

    /// Ends the sink if a person must act or the stream is another one; waits otherwise.
    async fn give_up_or_wait(
        &mut self,
        error: &Error,
        reports: &mpsc::Sender<Report>,
        down: &mut bool,
    ) -> Result<(), Failure> {
        let failure = error.failure(&self.options);
        if let Error::StreamChanged { gap, .. } = *error
            && gap > 0
        {
            let problem = error.gap(&self.options);
            let _ = reports.send(Report::Gap(gap, problem)).await;
        }
        let lasting = !matches!(
            error,
            Error::Broken(_)
                | Error::BucketDenied(_)
                | Error::BodyRefused { .. }
                | Error::Connect(_)
                | Error::ConnectTimeout
        );
        if lasting {
            return Err(failure);
        }
        let pause = self.backoff.failed();
        let given_up = |max| pause.failing_for >= max;
        if self.options.give_up_after.is_some_and(given_up) {
            return Err(failure);
        }
        if pause.log {
            let cause = &failure.problem.cause;
            warn!(attempts = pause.attempts, %cause, "{}", failure.problem.problem);
        }
        if !std::mem::replace(down, true) {
            // The relay may be gone; then the next receive says so.
            let _ = reports.send(Report::Down(failure)).await;
        }
        tokio::time::sleep(pause.delay).await;
        Ok(())
    }
}
