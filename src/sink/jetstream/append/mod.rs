//! Appends events in order, each once: the ring and what it may expect of the stream, what a new
//! term or connection must know of the past, the record, and what takes an event aside.

pub(crate) mod batch;
pub(crate) mod detour;
pub(crate) mod epoch;
pub(crate) mod hold;
pub(crate) mod lines;
pub(crate) mod memory;
pub(crate) mod past;
pub(crate) mod places;
pub(crate) mod record;
pub(crate) mod ring;
pub(crate) mod run;
pub(crate) mod send;
pub(crate) mod shared;
pub(crate) mod witness;

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::warn;

use self::hold::{Hold, Seen};
use self::lines::Lines;
use self::memory::Memory;
use self::past::Doubts;
use self::ring::Ring;
use self::witness::Witness;
use super::aside::letters::Buried;
use super::error::Error;
use super::options::Options;
use crate::backoff::{self, Backoff};
use crate::error::{Exit, Failure};
use crate::event::lineage::Lineage;
use crate::sink::{Report, Write};

/// What outlives a connection.
pub(crate) struct Appender {
    pub(crate) options: Arc<Options>,
    pub(crate) lineage: Lineage,
    source: String,
    ring: Ring,
    backoff: Backoff,
    /// What may be stored already.
    memory: Memory,
    /// How long a subject may be.
    lines_taken: Lines,
    /// A write whose outcome is not known.
    writing: Option<Write>,
    /// Why the bucket cannot be used: we lack the rights.
    denied: Option<String>,
    /// We may not look for what was delayed.
    schedules_denied: bool,
    /// The stream and its dead letters, which must not become less than they were.
    seen: Seen,
    seen_letters: Seen,
    /// The newest message that is known to be ours.
    newest: Witness,
    hold: Hold,
    buried: Buried,
    doubts: Doubts,
    /// It was reported that nothing gets through.
    down: bool,
    /// What is added to the headers of an event, for one at a time.
    lines: String,
}

impl Appender {
    pub(crate) fn new(options: Options, lineage: Lineage) -> Self {
        Self {
            source: lineage.source().to_string(),
            memory: Memory::new(&lineage, options.stream.shared),
            lineage,
            ring: Ring::new(options.stream.shared),
            backoff: Backoff::new(
                backoff::Options::default(),
                options.nats.network.unique().as_u128(),
            ),
            lines_taken: Lines::default(),
            writing: None,
            denied: None,
            schedules_denied: false,
            seen: Seen::default(),
            seen_letters: Seen::default(),
            newest: Witness::default(),
            hold: Hold::new(options.hold),
            buried: Buried::default(),
            doubts: Doubts::default(),
            down: false,
            lines: String::new(),
            options: Arc::new(options),
        }
    }

    /// Which timelines are no part of our history, and up to where they shared it.
    pub(crate) fn learn(&mut self, dead: Vec<(u32, u64)>) {
        self.lineage.learn(dead);
        self.memory = Memory::new(&self.lineage, self.options.stream.shared);
    }

    /// After the end of an epoch. Ends the sink if a person must act or the stream is another one;
    /// waits otherwise.
    pub(crate) async fn give_up_or_wait(
        &mut self,
        error: Error,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Failure> {
        let error = self.without_it(error);
        if let Error::LineTooLong(bytes) = error {
            self.lines_taken.too_long(bytes);
            self.memory.refused(&self.ring);
        }
        let failure = error.failure(&self.options);
        if let Error::StreamChanged { gap, .. } = error
            && gap > 0
        {
            let problem = error.gap(&self.options);
            let _ = reports.send(Report::Gap(gap, problem)).await;
        }
        let passing = matches!(
            error,
            Error::Broken(_)
                | Error::BucketDenied(_)
                | Error::LineTooLong(_)
                | Error::BodyRefused { .. }
                | Error::Connect(_)
        );
        // What is configured wrong does not pass.
        if !passing || failure.exit == Exit::Config {
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
        if !std::mem::replace(&mut self.down, true) {
            // The relay may be gone; then the next receive says so.
            let _ = reports.send(Report::Down(failure)).await;
        }
        tokio::time::sleep(pause.delay).await;
        Ok(())
    }
}
