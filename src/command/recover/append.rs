//! Appends events to the stream without a relay: for what comes from a table, not from a slot.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::command::progress::Progress;
use crate::error::{Failure, Problem};
use crate::event::Event;
use crate::event::lineage::Lineage;
use crate::lead::window::{Limits, Window};
use crate::lsn::Lsn;
use crate::sink::jetstream::{JetStream, Options};
use crate::sink::running::Running;
use crate::sink::{Order, Past, Report};

/// How long NATS may take no event before the command ends: a server has restarted by then, and
/// somebody who waits at a terminal wants to know. What is stored is found by the next call.
const DOWN_MAX: Duration = Duration::from_secs(30);

/// How long nothing at all may be settled while we wait. A sink that fails says so long before,
/// after [`DOWN_MAX`]; what takes longest without failing is a body of 1 GB, the largest value that
/// Postgres has, on its way into an object store at 4 MB/s.
const STILL_MAX: Duration = Duration::from_secs(300);

/// How many times what is configured or was measured is allowed on top. The sink waits for an
/// acknowledgement and for a connection before its first failed attempt, and again in its last one;
/// and the guard reads a stream that holds none of our events twice, back to its beginning and from
/// there, which is half as fast on a busy machine.
const TIMES: u32 = 4;

/// The sink at work, and what it has not settled.
pub(super) struct Append {
    sink: Running,
    progress: Progress,
    sent: u64,
    /// One transaction that never ends: only its room counts.
    window: Window,
    /// How long nothing may be settled.
    patience: Duration,
    /// When we began to wait, or something was settled since.
    still_since: Instant,
}

impl Append {
    /// Connects, and starts; shows how many events are stored. It took `reading` to read the whole
    /// stream, which the guard may have to do, too.
    pub(super) async fn open(
        (mut options, limits): (Options, Limits),
        lineage: Lineage,
        (progress, reading): (Progress, Duration),
    ) -> Result<Self, Failure> {
        options.give_up_after = Some(DOWN_MAX);
        options.record = false;
        let patience = patience(&options, reading);
        let mut sink = Box::pin(JetStream::open(options, lineage)).await?;
        Box::pin(sink.begin(Past::NONE)).await?;
        let sink = sink.start(limits.events_max);
        Ok(Self::new((sink, limits), (progress, patience)))
    }

    fn new((sink, limits): (Running, Limits), (progress, patience): (Progress, Duration)) -> Self {
        let mut window = Window::new(limits, Lsn::ZERO);
        window.begin();
        Self {
            sink,
            progress,
            sent: 0,
            window,
            patience,
            still_since: Instant::now(),
        }
    }

    /// Sends events in order; waits while too much is under way.
    pub(super) async fn send(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        // What is done between two calls is none of the sink's time.
        self.still_since = Instant::now();
        self.sent += events.len() as u64;
        for event in &events {
            self.window.hand_over(event.size(), 0);
        }
        self.sink.order(Order::Append(events));
        while !self.window.has_room() {
            self.settle().await?;
        }
        Ok(())
    }

    /// Waits until all is stored; returns how many events that were.
    pub(super) async fn finish(mut self) -> Result<u64, Failure> {
        self.still_since = Instant::now();
        while self.window.events() > 0 {
            self.settle().await?;
        }
        self.progress.end();
        Ok(self.sent)
    }

    async fn settle(&mut self) -> Result<(), Failure> {
        let still_until = self.still_since + self.patience;
        match timeout_at(still_until, self.sink.report()).await {
            Ok(report) => self.take(report?),
            Err(_) => return Err(self.stalled()),
        }
        Ok(())
    }

    /// Books what the sink says.
    fn take(&mut self, report: Report) {
        match report {
            Report::Settled(settled) => {
                self.window.settle(settled.events());
                self.still_since = Instant::now();
                let stored = self.sent - self.window.events() as u64;
                self.progress.show(stored);
            }
            Report::Down(failure) => {
                let Problem { problem, cause, .. } = failure.problem;
                let seconds = DOWN_MAX.as_secs();
                let down = format!("{problem}: {cause}; it is tried again for {seconds} s");
                self.progress.say(&down);
            }
            Report::Up => self.progress.say("events get through to NATS again"),
            Report::Held | Report::Released | Report::Written(_) | Report::Gap(..) => {}
        }
    }

    /// Nothing is settled, and nothing fails.
    fn stalled(&self) -> Failure {
        let events = self.window.events();
        Failure::retry(Problem::new(
            format!("no event was stored for {} s", self.patience.as_secs()),
            format!(
                "{events} are handed over, and neither an acknowledgement nor an error has come"
            ),
            "look at the log of the NATS server and at `nats stream report`, then type the command \
             again: it appends only what the stream lacks; please report this if it repeats",
        ))
    }
}

fn patience(options: &Options, reading: Duration) -> Duration {
    STILL_MAX + TIMES * (options.ack_timeout + options.nats.connect_timeout + reading)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::error::Exit;
    use crate::event::{Headers, Position};
    use crate::sink::Settled;

    const PATIENCE: Duration = Duration::from_secs(300);

    /// As many events as `publish.in_flight_max` allows at most.
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
            known: false,
        }
    }

    fn stored(events: usize) -> Report {
        Report::Settled(Settled {
            stored: events,
            ..Settled::default()
        })
    }

    /// As `recover` reads them.
    const BATCH: usize = 64;

    /// Sends so many events, and waits until they are stored.
    async fn append(mut append: Append, events: u32) -> Result<u64, Failure> {
        let events: Vec<_> = (0..events).map(event).collect();
        for batch in events.chunks(BATCH) {
            append.send(batch.to_vec()).await?;
        }
        append.finish().await
    }

    type Batches = mpsc::Receiver<Order>;
    type Reports = mpsc::Sender<Report>;

    fn start<Run>(run: impl FnOnce(Batches, Reports) -> Run) -> Append
    where
        Run: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let sink = Running::start(LIMITS.events_max, run);
        Append::new((sink, LIMITS), (Progress::unseen(), PATIENCE))
    }

    /// Says of each event that it is stored, and takes no more before it has said so.
    async fn reports_each(mut batches: Batches, reports: Reports) -> Result<(), Failure> {
        while let Some(Order::Append(batch)) = batches.recv().await {
            for _ in batch {
                let _ = reports.send(stored(1)).await;
            }
        }
        Ok(())
    }

    async fn is_slow(mut batches: Batches, reports: Reports) -> Result<(), Failure> {
        while let Some(Order::Append(batch)) = batches.recv().await {
            for _ in batch {
                tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
                let _ = reports.send(stored(1)).await;
            }
        }
        Ok(())
    }

    async fn takes_nothing(_batches: Batches, _reports: Reports) -> Result<(), Failure> {
        std::future::pending().await
    }

    async fn settles_nothing(mut batches: Batches, reports: Reports) -> Result<(), Failure> {
        let away = Problem::new("NATS is away", "it is tried again", "wait");
        loop {
            let _ = timeout(PATIENCE / 10, batches.recv()).await;
            let down = Report::Down(Failure::retry(away.clone()));
            let _ = reports.send(down).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sink_that_waits_for_room_to_report_does_not_wait_for_ever() {
        let appended = append(start(reports_each), 20_000);
        let appended = timeout(LONG, appended).await;
        assert_eq!(appended.expect("each waits for the other"), Ok(20_000));
    }

    #[tokio::test(start_paused = true)]
    async fn sink_that_is_slow_is_waited_for() {
        let appended = append(start(is_slow), 1_000);
        assert_eq!(appended.await, Ok(1_000));
    }

    /// After how long a command fails, and how.
    async fn fails(started: Append, events: u32) -> (Duration, Failure) {
        let begun = Instant::now();
        let ended = timeout(LONG, append(started, events)).await;
        let failure = ended.expect("it ends").expect_err("nothing is stored");
        (begun.elapsed(), failure)
    }

    async fn assert_stalled(started: Append, events: u32, handed_over: usize) {
        let (after, failure) = fails(started, events).await;
        // Timers are as fine as a millisecond.
        let late = after.abs_diff(PATIENCE);
        assert!(late <= Duration::from_millis(1), "{after:?}");
        assert_eq!(failure.exit, Exit::Unavailable);
        let Problem { problem, cause, .. } = failure.problem;
        assert_eq!(problem, "no event was stored for 300 s");
        let handed_over = format!("{handed_over} are handed over, ");
        assert!(cause.starts_with(&handed_over), "{cause}");
    }

    #[tokio::test(start_paused = true)]
    async fn sink_that_takes_no_events_ends_the_command() {
        // A full window.
        assert_stalled(start(takes_nothing), 20_000, 16_384).await;
    }

    #[tokio::test(start_paused = true)]
    async fn sink_that_settles_nothing_ends_the_command_whatever_else_it_says() {
        // A full window, and the end.
        for (events, handed_over) in [(20_000, 16_384), (100, 100)] {
            let started = start(settles_nothing);
            assert_stalled(started, events, handed_over).await;
        }
    }
}
