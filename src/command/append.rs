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
use crate::sink::Report;
use crate::sink::jetstream::{JetStream, Options};

/// Batches that wait for the sink.
const BATCHES_MAX: usize = 2;

/// Reports that wait for us.
const REPORTS_MAX: usize = 64;

/// How long NATS may take no event before the command ends: a server has restarted by then, and
/// somebody who waits at a terminal wants to know. What is stored is found by the next call.
const DOWN_MAX: Duration = Duration::from_secs(30);

/// The sink at work, and what it has not settled.
pub(super) struct Append {
    events: mpsc::Sender<Vec<Event>>,
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
        let sink = Box::pin(JetStream::open(options, lineage)).await?;
        Ok(Self::start(limits, REPORTS_MAX, |batches, reported| {
            sink.run(batches, reported)
        }))
    }

    /// Starts a sink that has room for so many reports.
    fn start<Run>(
        limits: Limits,
        reports_max: usize,
        run: impl FnOnce(mpsc::Receiver<Vec<Event>>, mpsc::Sender<Report>) -> Run,
    ) -> Self
    where
        Run: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let (events, batches) = mpsc::channel(BATCHES_MAX);
        let (reported, reports) = mpsc::channel(reports_max);
        let mut task = JoinSet::new();
        task.spawn(run(batches, reported));
        let mut window = Window::new(limits, Lsn::ZERO);
        window.begin();
        Self {
            events,
            reports,
            task,
            sent: 0,
            window,
        }
    }

    /// Sends events in order; waits while too much is under way.
    pub(super) async fn send(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        self.sent += events.len() as u64;
        for event in &events {
            self.window.hand_over(event.size(), 0);
        }
        self.hand_over(events).await?;
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

    /// Waits for room in the channel, and takes reports meanwhile: a sink that waits for room for
    /// its next report takes no events. Waiting for one of the two alone, each would wait for the
    /// other.
    async fn hand_over(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        loop {
            // Cancel-safe, both: a report or a place that was not returned is still there.
            let report = tokio::select! {
                biased;
                report = self.reports.recv() => report,
                room = self.events.reserve() => match room {
                    Ok(room) => {
                        room.send(events);
                        return Ok(());
                    }
                    Err(_) => None,
                },
            };
            self.take(report).await?;
        }
    }

    async fn settle(&mut self) -> Result<(), Failure> {
        let report = self.reports.recv().await;
        self.take(report).await
    }

    /// Books what the sink says; `None`: it has ended.
    async fn take(&mut self, report: Option<Report>) -> Result<(), Failure> {
        match report {
            Some(Report::Settled {
                stored,
                known,
                dead_lettered,
                delayed,
            }) => self.window.settle(stored + known + dead_lettered + delayed),
            Some(Report::Down(failure)) => {
                let problem = failure.problem;
                warn!(cause = problem.cause, "{}", problem.problem);
            }
            Some(Report::Up | Report::Held | Report::Released | Report::Gap(..)) => {}
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::event::{Headers, Position};

    /// What `publish.in_flight_max` allows at most.
    const LIMITS: Limits = Limits {
        events_max: 16_384,
        bytes_max: usize::MAX,
    };

    /// Longer than any of our own limits. The clock of these tests goes on only when all wait.
    const LONG: Duration = Duration::from_secs(24 * 3600);

    fn event(index: u32) -> Event {
        Event {
            position: Position { commit: 1, index },
            id: index.to_string(),
            subject: "s".to_owned(),
            headers: Headers::default(),
            payload: Bytes::new(),
            wrapped: None,
            table: "outbox.events".into(),
            deliver_at: None,
            expires_at: None,
            replayed: false,
            rejected: None,
            followers: 0,
        }
    }

    fn stored(events: usize) -> Report {
        Report::Settled {
            stored: events,
            known: 0,
            dead_lettered: 0,
            delayed: 0,
        }
    }

    /// Sends so many events, in batches as `recover` does, and waits until they are stored.
    async fn append(mut append: Append, events: u32) -> Result<u64, Failure> {
        let events: Vec<_> = (0..events).map(event).collect();
        for batch in events.chunks(64) {
            append.send(batch.to_vec()).await?;
        }
        append.finish().await
    }

    /// Says of each event that it is stored, and takes no more before it has said so.
    async fn reports_each(
        mut batches: mpsc::Receiver<Vec<Event>>,
        reports: mpsc::Sender<Report>,
    ) -> Result<(), Failure> {
        while let Some(batch) = batches.recv().await {
            for _ in batch {
                let _ = reports.send(stored(1)).await;
            }
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn sink_that_waits_for_room_to_report_does_not_wait_for_ever() {
        let sink = Append::start(LIMITS, 1, reports_each);
        let appended = tokio::time::timeout(LONG, append(sink, 20_000)).await;
        assert_eq!(appended.expect("each waits for the other"), Ok(20_000));
    }
}
