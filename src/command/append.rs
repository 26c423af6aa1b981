//! Appends events to the stream without a relay: for what comes from a table, not from a slot.

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

use crate::error::{Exit, Failure, Problem};
use crate::event::Event;
use crate::guard::Lineage;
use crate::sink::Report;
use crate::sink::jetstream::{JetStream, Options};

/// Batches that wait for the sink: with what it has, no more than a few hundred events.
const BATCHES_MAX: usize = 2;

/// Reports that wait for us.
const REPORTS_MAX: usize = 64;

/// The sink at work, and what it has not settled.
pub(super) struct Append {
    events: mpsc::Sender<Vec<Event>>,
    reports: mpsc::Receiver<Report>,
    task: JoinSet<Result<(), Failure>>,
    sent: u64,
    outstanding: usize,
    outstanding_max: usize,
}

impl Append {
    /// Connects, and starts.
    pub(super) async fn open(options: Options, lineage: Lineage) -> Result<Self, Failure> {
        let outstanding_max = options.in_flight_max.div_ceil(2);
        let sink = Box::pin(JetStream::open(options, lineage)).await?;
        let (events, batches) = mpsc::channel(BATCHES_MAX);
        let (reported, reports) = mpsc::channel(REPORTS_MAX);
        let mut task = JoinSet::new();
        task.spawn(sink.run(batches, reported));
        Ok(Self {
            events,
            reports,
            task,
            sent: 0,
            outstanding: 0,
            outstanding_max,
        })
    }

    /// Sends events in order; waits while too many are under way.
    pub(super) async fn send(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        self.sent += events.len() as u64;
        self.outstanding += events.len();
        if self.events.send(events).await.is_err() {
            return Err(self.ended().await);
        }
        self.settle(self.outstanding_max).await
    }

    /// Waits until all is stored; returns how many events that were.
    pub(super) async fn finish(mut self) -> Result<u64, Failure> {
        self.settle(0).await?;
        Ok(self.sent)
    }

    async fn settle(&mut self, outstanding_max: usize) -> Result<(), Failure> {
        while self.outstanding > outstanding_max {
            match self.reports.recv().await {
                Some(Report::Settled {
                    stored,
                    known,
                    dead_lettered,
                    delayed,
                }) => self.outstanding -= stored + known + dead_lettered + delayed,
                Some(Report::Down(failure)) => {
                    let problem = failure.problem;
                    warn!(cause = problem.cause, "{}", problem.problem);
                }
                Some(Report::Up | Report::Held | Report::Released | Report::Gap(..)) => {}
                None => return Err(self.ended().await),
            }
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
