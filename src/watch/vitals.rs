//! How this copy is doing: what it last said of itself, for those who ask. The term and the relay
//! say it, HTTP answers with it; nothing is decided by it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tokio::time::Instant;

use super::metrics::{Metrics, ReasonLabel, SlotLabel, StateLabel, WalStatusLabel};
use crate::error::Problem;

/// What a copy may be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It gets ready for the first time.
    Starting,
    /// It could lead, and another copy does.
    Standby,
    /// It leads.
    Streaming,
    /// Something failed that may pass by itself.
    Retrying,
    /// A person must act.
    Halted,
    /// It was told to stop.
    Draining,
}

impl State {
    const ALL: [Self; 6] = [
        Self::Starting,
        Self::Standby,
        Self::Streaming,
        Self::Retrying,
        Self::Halted,
        Self::Draining,
    ];

    /// For labels and for JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Standby => "standby",
            Self::Streaming => "streaming",
            Self::Retrying => "retrying",
            Self::Halted => "halted",
            Self::Draining => "draining",
        }
    }
}

/// The slot as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSample {
    /// Its name.
    pub name: String,
    /// Whether it exists.
    pub exists: bool,
    /// Whether somebody streams from it.
    pub active: bool,
    /// Who does.
    pub leader: Option<String>,
    /// `None` while it is being made.
    pub wal_status: Option<String>,
    /// Written and not confirmed.
    pub lag_bytes: Option<u64>,
    /// What the server keeps for it.
    pub retained_wal_bytes: Option<u64>,
    /// What may still be written before it may be lost; `None`: no limit.
    pub safe_wal_bytes: Option<i64>,
    /// For how long something has waited to be confirmed, as far as this copy has seen.
    pub lag: Option<Duration>,
    /// Confirmed, and kept for transactions that are still open.
    pub pinned_wal_bytes: Option<u64>,
    /// Since when nobody streams from it.
    pub inactive_since: Option<SystemTime>,
    /// Why it was lost.
    pub invalidation_reason: Option<String>,
    /// Transactions that the server wrote to disk to decode them, and their bytes.
    pub spilled: (u64, u64),
    /// Transactions that the server sent before they were committed, and their bytes.
    pub streamed: (u64, u64),
    /// When it was looked at.
    pub at: SystemTime,
}

impl SlotSample {
    /// There was no such slot.
    pub fn missing(name: &str, at: SystemTime) -> Self {
        Self {
            name: name.to_owned(),
            exists: false,
            active: false,
            leader: None,
            wal_status: None,
            lag_bytes: None,
            retained_wal_bytes: None,
            safe_wal_bytes: None,
            lag: None,
            pinned_wal_bytes: None,
            inactive_since: None,
            invalidation_reason: None,
            spilled: (0, 0),
            streamed: (0, 0),
            at,
        }
    }
}

/// Shared by all tasks of the process.
#[derive(Debug)]
pub struct Vitals {
    /// What is counted.
    pub metrics: Metrics,
    inner: Mutex<Inner>,
    states: watch::Sender<State>,
    /// How long the loop may be silent and count as alive.
    stall_max: Duration,
}

#[derive(Debug)]
struct Inner {
    state: State,
    since: SystemTime,
    /// Retrying since; a short trouble is none.
    troubled: Option<Instant>,
    problem: Option<Problem>,
    /// Everything in Postgres was found in order once.
    started: bool,
    /// It has led or stood by.
    served: bool,
    beat: Instant,
    slot: Option<SlotSample>,
    gap: Option<Gap>,
    /// The part of the log that nobody has read.
    slot_gap: Option<Gap>,
    record: Option<Recorded>,
}

/// What a leader keeps beside the stream of what it has settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Whether anything is: without it nothing is known of the other fields but the term.
    pub kept: bool,
    /// Counts stints of leading.
    pub term: u64,
    /// The position up to which everything is settled, as text.
    pub settled: Option<String>,
    /// The highest LSN that may have been confirmed, as text.
    pub confirmed: Option<String>,
}

/// Confirmed events that the stream has lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// About how many, of all such losses.
    pub events: u64,
    /// When the last was found.
    pub at: SystemTime,
    /// What is to be done about it.
    pub problem: Problem,
}

/// A copy of everything, for an answer.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What it is doing.
    pub state: State,
    /// Since when.
    pub since: SystemTime,
    /// What keeps it from it.
    pub problem: Option<Problem>,
    /// The slot, once it was looked at.
    pub slot: Option<SlotSample>,
    /// What is lost, as far as this process knows.
    pub gap: Option<Gap>,
    /// The record, while it leads.
    pub record: Option<Recorded>,
    /// Whether the loop turns.
    pub alive: bool,
    /// Whether it does its part, or could.
    pub ready: bool,
    /// Whether everything in Postgres was found in order once, and it is not halted now.
    pub started: bool,
}

impl Reading {
    /// Whether it holds the slot.
    pub fn leads(&self) -> bool {
        matches!(self.state, State::Streaming | State::Draining)
    }
}

/// The causes that Postgres knows (`SlotInvalidationCauses`, slot.c).
const INVALIDATION_REASONS: [&str; 4] = [
    "wal_removed",
    "rows_removed",
    "wal_level_insufficient",
    "idle_timeout",
];

/// A trouble that is over within this time need not be shown to whoever rolls out a version.
const TROUBLE_MAX: Duration = Duration::from_secs(60);

/// An attempt may take as long as the longest time limits of connecting.
const STALL_MIN: Duration = Duration::from_secs(90);

impl Vitals {
    /// `takeover_after`: how long a connection may be silent before it is given up.
    pub fn new(takeover_after: Duration) -> Self {
        let inner = Inner {
            state: State::Starting,
            since: SystemTime::now(),
            troubled: None,
            problem: None,
            started: false,
            served: false,
            beat: Instant::now(),
            slot: None,
            gap: None,
            slot_gap: None,
            record: None,
        };
        let vitals = Self {
            metrics: Metrics::default(),
            inner: Mutex::new(inner),
            states: watch::Sender::new(State::Starting),
            // A silent connection is given up after three of them (relay).
            stall_max: STALL_MIN.max(takeover_after * 4),
        };
        vitals.show(State::Starting);
        vitals
    }

    /// It is in another state now, or in the same one for another reason.
    pub fn set(&self, state: State, problem: Option<Problem>) {
        let mut inner = self.lock();
        inner.beat = Instant::now();
        inner.problem = problem;
        inner.served |= matches!(state, State::Standby | State::Streaming);
        inner.troubled = match state {
            State::Retrying => inner.troubled.or(Some(Instant::now())),
            _ => None,
        };
        let before = std::mem::replace(&mut inner.state, state);
        if before != state {
            inner.since = SystemTime::now();
            drop(inner);
            self.show(state);
            self.states.send_replace(state);
        }
    }

    /// Everything in Postgres is in order; of NATS nothing is said.
    pub fn started(&self) {
        self.lock().started = true;
    }

    /// What keeps events from getting through while it leads, or that nothing does any more.
    pub fn held_up(&self, problem: Option<Problem>) {
        self.lock().problem = problem;
    }

    /// To wait for the next change of state.
    pub fn states(&self) -> watch::Receiver<State> {
        self.states.subscribe()
    }

    /// The loop turns: something was read, or a connection was tried.
    pub fn beat(&self) {
        self.lock().beat = Instant::now();
    }

    /// The stream has lost about as many confirmed events.
    pub fn gap(&self, events: u64, problem: Problem) {
        self.metrics.gap_events.inc_by(events);
        self.lock().gap = Some(Gap {
            events: self.metrics.gap_events.get(),
            at: SystemTime::now(),
            problem,
        });
    }

    /// No outjet has read so many bytes of the log before the slot; `None`: not known of any.
    pub fn slot_gap(&self, found: Option<(u64, Problem)>) {
        let bytes = found.as_ref().map_or(0, |(bytes, _)| *bytes);
        let gauge = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.slot_gap_bytes.set(gauge);
        self.lock().slot_gap = found.map(|(_, problem)| Gap {
            events: 0,
            at: SystemTime::now(),
            problem,
        });
    }

    /// The record was written, or could not be.
    pub fn recorded(&self, record: Recorded) {
        self.metrics.record_kept.set(record.kept.into());
        self.lock().record = Some(record);
    }

    /// Nothing is with the sink any more, and nothing is recorded.
    pub fn end_of_term(&self) {
        self.metrics.end_of_term();
        self.lock().record = None;
    }

    /// The slot was looked at.
    pub fn sampled(&self, sample: SlotSample) {
        let metrics = &self.metrics.slot;
        let slot = SlotLabel {
            slot: sample.name.clone(),
        };
        metrics
            .active
            .get_or_create(&slot)
            .set(i64::from(sample.active));
        let set = |family: &Family<SlotLabel, Gauge>, bytes: Option<i64>| match bytes {
            Some(bytes) => {
                family.get_or_create(&slot).set(bytes);
            }
            None => {
                family.remove(&slot);
            }
        };
        let signed = |bytes: Option<u64>| bytes.and_then(|bytes| i64::try_from(bytes).ok());
        set(&metrics.lag_bytes, signed(sample.lag_bytes));
        set(
            &metrics.retained_wal_bytes,
            signed(sample.retained_wal_bytes),
        );
        set(&metrics.safe_wal_bytes, sample.safe_wal_bytes);
        set(&metrics.pinned_wal_bytes, signed(sample.pinned_wal_bytes));
        self.sampled_trouble(&sample, &slot);
        for status in ["reserved", "extended", "unreserved", "lost"] {
            let label = WalStatusLabel {
                slot: sample.name.clone(),
                status,
            };
            let has = sample.wal_status.as_deref() == Some(status);
            metrics.wal_status.get_or_create(&label).set(i64::from(has));
        }
        metrics
            .last_poll
            .get_or_create(&slot)
            .set(unix_seconds(sample.at));
        // A rate needs a zero to start from.
        drop(metrics.poll_failures.get_or_create(&slot));
        self.lock().slot = Some(sample);
    }

    fn sampled_trouble(&self, sample: &SlotSample, slot: &SlotLabel) {
        let metrics = &self.metrics.slot;
        let set =
            |family: &Family<SlotLabel, Gauge<f64, AtomicU64>>, seconds: Option<f64>| match seconds
            {
                Some(seconds) => {
                    family.get_or_create(slot).set(seconds);
                }
                None => {
                    family.remove(slot);
                }
            };
        set(&metrics.lag, sample.lag.map(|lag| lag.as_secs_f64()));
        set(
            &metrics.inactive_since,
            sample.inactive_since.map(unix_seconds),
        );
        for reason in INVALIDATION_REASONS {
            let label = ReasonLabel {
                slot: sample.name.clone(),
                reason,
            };
            let has = sample.invalidation_reason.as_deref() == Some(reason);
            metrics
                .invalidated
                .get_or_create(&label)
                .set(i64::from(has));
        }
        // Counted by the server, and shown as it counts.
        let count = |family: &Family<SlotLabel, Counter>, total: u64| {
            let counter = family.get_or_create(slot);
            counter.inner().store(total, Ordering::Relaxed);
        };
        count(&metrics.spill_transactions, sample.spilled.0);
        count(&metrics.spill_bytes, sample.spilled.1);
        count(&metrics.stream_transactions, sample.streamed.0);
        count(&metrics.stream_bytes, sample.streamed.1);
    }

    /// Everything, as it is now.
    pub fn read(&self) -> Reading {
        let inner = self.lock();
        let patient = inner
            .troubled
            .is_none_or(|since| since.elapsed() < TROUBLE_MAX);
        Reading {
            state: inner.state,
            since: inner.since,
            problem: inner.problem.clone(),
            slot: inner.slot.clone(),
            gap: inner.gap.clone().or_else(|| inner.slot_gap.clone()),
            record: inner.record.clone(),
            // Halted it looks as seldom as it was told, and a restart cures nothing.
            alive: inner.state == State::Halted || inner.beat.elapsed() < self.stall_max,
            ready: match inner.state {
                State::Standby | State::Streaming => true,
                State::Retrying => inner.served && patient,
                State::Starting | State::Halted | State::Draining => false,
            },
            started: inner.started && inner.state != State::Halted,
        }
    }

    fn show(&self, state: State) {
        for each in State::ALL {
            let label = StateLabel { state: each.name() };
            let gauge = self.metrics.state.get_or_create_owned(&label);
            gauge.set(i64::from(each == state));
        }
        let leads = i64::from(matches!(state, State::Streaming | State::Draining));
        if self.metrics.leader.set(leads) != leads {
            self.metrics.leader_transitions.inc();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vitals() -> Vitals {
        Vitals::new(Duration::from_secs(10))
    }

    fn problem() -> Option<Problem> {
        Some(Problem::new("problem", "cause", "fix"))
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_counts_as_ready_for_a_minute_and_only_after_a_start() {
        let vitals = vitals();
        vitals.set(State::Retrying, problem());
        assert!(!vitals.read().ready);
        vitals.set(State::Streaming, None);
        vitals.set(State::Retrying, problem());
        tokio::time::advance(TROUBLE_MAX - Duration::from_secs(1)).await;
        vitals.set(State::Retrying, problem());
        assert!(vitals.read().ready);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!vitals.read().ready);
    }

    #[tokio::test(start_paused = true)]
    async fn loop_that_stands_still_is_not_alive_until_it_turns_again() {
        let vitals = vitals();
        tokio::time::advance(STALL_MIN - Duration::from_secs(1)).await;
        assert!(vitals.read().alive);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!vitals.read().alive);
        vitals.beat();
        assert!(vitals.read().alive);
    }

    #[test]
    fn gap_of_the_slot_is_told_until_a_term_finds_none_and_what_the_stream_lost_for_good() {
        let vitals = vitals();
        let told = || {
            vitals
                .read()
                .gap
                .map(|gap| (gap.events, gap.problem.problem))
        };
        vitals.slot_gap(problem().map(|problem| (5, problem)));
        assert_eq!(vitals.metrics.slot_gap_bytes.get(), 5);
        assert_eq!(told(), Some((0, "problem".to_owned())));
        vitals.slot_gap(None);
        assert_eq!(vitals.metrics.slot_gap_bytes.get(), 0);
        assert_eq!(told(), None);
        vitals.gap(3, Problem::new("lost", "cause", "fix"));
        vitals.slot_gap(None);
        assert_eq!(told(), Some((3, "lost".to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn each_change_of_leading_is_counted_once() {
        let vitals = vitals();
        for state in [
            State::Standby,
            State::Streaming,
            State::Streaming,
            State::Draining,
            State::Retrying,
            State::Halted,
        ] {
            vitals.set(state, None);
        }
        assert_eq!(vitals.metrics.leader_transitions.get(), 2);
    }
}
