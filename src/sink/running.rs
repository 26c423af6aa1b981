//! A sink at work: what it is told, what it says, and how it ends. Whoever has events to append
//! owns one. Dropped, the sink ends.

use std::panic;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{Order, Report};
use crate::error::{Disposition, Exit, Failure, Problem};

/// Most reports that wait for the owner, who takes all there are at each turn.
const REPORTS_MAX: usize = 64;

/// How long a sink that has closed its channels may take to end: it has nothing left to do.
const END_MAX: Duration = Duration::from_secs(10);

/// A sink on a task of its own.
pub struct Running {
    orders: mpsc::Sender<Order>,
    reports: mpsc::Receiver<Report>,
    /// One task. A set, because dropping it ends the task.
    task: JoinSet<Result<(), Failure>>,
    /// Its channels are closed: by then its task must be over.
    end_by: Option<Instant>,
}

impl Running {
    /// Starts a sink that `run` runs. Its owner hands over no more while `events_max` events are
    /// with it.
    pub fn start<Run>(
        events_max: usize,
        run: impl FnOnce(mpsc::Receiver<Order>, mpsc::Sender<Report>) -> Run,
    ) -> Self
    where
        Run: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        // A batch has at least one event; and there is one write at a time.
        let (orders, taken) = mpsc::channel(events_max + 1);
        let (reported, reports) = mpsc::channel(REPORTS_MAX);
        let mut task = JoinSet::new();
        task.spawn(run(taken, reported));
        Self {
            orders,
            reports,
            task,
            end_by: None,
        }
    }

    /// Tells it the next thing. There is always room: an owner that waited for some would not take
    /// reports meanwhile, and a sink that waits for room to report takes no orders. If it has
    /// ended, the next [`report`](Self::report) says so.
    pub fn order(&self, order: Order) {
        match self.orders.try_send(order) {
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => unreachable!("more batches than there may be events"),
        }
    }

    /// The next thing it says, or why it has ended. Goes on with its panic, if that was it.
    /// Cancel-safe, as `recv` of a channel and `join_next` are.
    pub async fn report(&mut self) -> Result<Report, Failure> {
        match self.reports.recv().await {
            Some(report) => Ok(report),
            None => Err(self.failure().await),
        }
    }

    /// The next thing, if it has said it already.
    pub fn try_report(&mut self) -> Option<Report> {
        self.reports.try_recv().ok()
    }

    async fn failure(&mut self) -> Failure {
        let end_by = *self.end_by.get_or_insert_with(|| Instant::now() + END_MAX);
        let cause = match timeout_at(end_by, self.task.join_next()).await {
            Ok(Some(Ok(Err(failure)))) => return failure,
            Ok(Some(Err(error))) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            Ok(_) => "it does not say why".to_owned(),
            Err(_) => format!("its channels are closed, its task is not over after {END_MAX:?}"),
        };
        // It could be started again, so `run` does that.
        let fix = "`run` starts it again by itself, any other command can be typed again; please \
                   report this";
        Failure {
            disposition: Disposition::Retry,
            exit: Exit::Bug,
            problem: Problem::new("the sink ended", cause, fix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Orders = mpsc::Receiver<Order>;
    type Reports = mpsc::Sender<Report>;

    async fn fails(_orders: Orders, reports: Reports) -> Result<(), Failure> {
        let _ = reports.send(Report::Up).await;
        let away = Problem::new("NATS is away", "nobody answers", "wait");
        Err(Failure::retry(away))
    }

    async fn panics(_orders: Orders, _reports: Reports) -> Result<(), Failure> {
        panic!("a sink with a bug");
    }

    async fn ends_too_late(orders: Orders, reports: Reports) -> Result<(), Failure> {
        drop((orders, reports));
        std::future::pending().await
    }

    #[tokio::test]
    async fn sink_that_fails_says_why_behind_its_reports() {
        let mut sink = Running::start(1, fails);
        assert_eq!(sink.report().await, Ok(Report::Up));
        let failure = sink.report().await.expect_err("it has failed");
        assert_eq!(failure.problem.problem, "NATS is away");
        sink.order(Order::Append(Vec::new()));
    }

    #[tokio::test]
    #[should_panic(expected = "a sink with a bug")]
    async fn panic_of_the_sink_is_its_owners() {
        let _ = Running::start(1, panics).report().await;
    }

    #[tokio::test(start_paused = true)]
    async fn sink_that_closes_its_channels_and_does_not_end_is_not_waited_for() {
        let mut sink = Running::start(1, ends_too_late);
        let begun = Instant::now();
        // An owner who does something else between.
        for _ in 0..3 {
            let waited = timeout_at(Instant::now() + END_MAX / 4, sink.report()).await;
            assert!(waited.is_err(), "{waited:?}");
        }
        let failure = sink.report().await.expect_err("it is not waited for");
        assert_eq!(begun.elapsed().as_secs(), END_MAX.as_secs());
        assert_eq!(failure.exit, Exit::Bug);
        let cause = failure.problem.cause;
        assert!(cause.ends_with("is not over after 10s"), "{cause}");
    }
}
