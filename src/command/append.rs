//! Appends events to the stream without a relay: for what comes from a table, not from a slot.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

use crate::error::{Exit, Failure, Problem};
use crate::event::Event;
use crate::event::lineage::Lineage;
use crate::lead::window::{Limits, Window};
use crate::lsn::Lsn;
use crate::sink::jetstream::{JetStream, Options};
use crate::sink::{Order, Past, Report};

/// Batches that wait for the sink.
const BATCHES_MAX: usize = 2;

/// Reports that wait for us.
const REPORTS_MAX: usize = 64;

/// How long NATS may take no event before the command ends: a server has restarted by then, and
/// somebody who waits at a terminal wants to know. What is stored is found by the next call.
const DOWN_MAX: Duration = Duration::from_secs(30);

/// The sink at work, and what it has not settled.
pub(super) struct Append {
    events: mpsc::Sender<Order>,
    reports: mpsc::Receiver<Report>,
    task: JoinSet<Result<(), Failure>>,
    sent: u64,
    /// One transaction that never ends: only its room counts.
    window: Window,
}

impl Append {
    /// Connects, and starts.
    pub(super) async fn open(
        (mut options, limits): (Options, Limits),
        lineage: Lineage,
    ) -> Result<Self, Failure> {
        options.give_up_after = Some(DOWN_MAX);
        options.record = false;
        let mut sink = Box::pin(JetStream::open(options, lineage)).await?;
        Box::pin(sink.begin(Past::NONE)).await?;
        let (events, batches) = mpsc::channel(BATCHES_MAX);
        let (reported, reports) = mpsc::channel(REPORTS_MAX);
        let mut task = JoinSet::new();
        task.spawn(sink.run(batches, reported));
        let mut window = Window::new(limits, Lsn::ZERO);
        window.begin();
        Ok(Self {
            events,
            reports,
            task,
            sent: 0,
            window,
        })
    }

    /// Sends events in order; waits while too much is under way.
    pub(super) async fn send(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        self.sent += events.len() as u64;
        for event in &events {
            self.window.hand_over(event.size(), 0);
        }
        if self.events.send(Order::Append(events)).await.is_err() {
            return Err(self.ended().await);
        }
        while !self.window.has_room() {
            self.settle().await?;
        }
        Ok(())
    }

    /// Waits until all is stored; returns how many events that were.
    pub(super) async fn finish(mut self) -> Result<u64, Failure> {
        while self.window.events() > 0 {
            self.settle().await?;
        }
        Ok(self.sent)
    }

    async fn settle(&mut self) -> Result<(), Failure> {
        match self.reports.recv().await {
            Some(Report::Settled(settled)) => self.window.settle(settled.events()),
            Some(Report::Down(failure)) => {
                let problem = failure.problem;
                warn!(cause = problem.cause, "{}", problem.problem);
            }
            Some(
                Report::Up | Report::Held | Report::Released | Report::Written(_) | Report::Gap(..),
            ) => {}
            None => return Err(self.ended().await),
        }
        Ok(())
    }

    async fn ended(&mut self) -> Failure {
        match self.task.join_next().await {
            Some(Ok(Err(failure))) => failure,
            _ => Failure::halt(
                Exit::Bug,
                Problem::new(
                    "the sink ended",
                    "its task is gone",
                    "type the command again; please report this if it repeats",
                ),
            ),
        }
    }
}
