//! What `outjet bench` has seen of its events, and what that amounts to. Knows no server.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use crate::cli;
use crate::command::{Out, unwritten};
use crate::error::Failure;

/// A transaction that was committed.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) connection: u16,
    pub(super) events: u64,
    /// When COMMIT was sent.
    pub(super) sent: Instant,
    /// When it returned.
    pub(super) returned: Instant,
}

/// The id of an event: how ids of the call begin, the connection, the number in it; together a UUID
/// of version 8 (RFC 9562: whatever its maker wants).
pub(super) fn id(run: &str, connection: u16, number: u64) -> String {
    format!("{run}-8{connection:03x}-8000-{number:012x}")
}

/// Connection and number of one that [`id`] made for this call.
fn place(run: &str, id: &str) -> Option<(usize, u64)> {
    let rest = id.strip_prefix(run)?.strip_prefix("-8")?;
    let (connection, number) = rest.split_once("-8000-")?;
    Some((
        usize::from_str_radix(connection, 16).ok()?,
        u64::from_str_radix(number, 16).ok()?,
    ))
}

/// All that was committed and all that arrived.
pub(super) struct Measured {
    typed: cli::Bench,
    run: String,
    subject: String,
    started: Instant,
    connections: Vec<Connection>,
    committed: u64,
    arrived: u64,
    doubled: u64,
    out_of_order: u64,
    /// When something arrived last, or nothing was outstanding.
    quiet_since: Instant,
    last_arrival: Instant,
    /// It was told to end early.
    pub(super) interrupted: bool,
}

#[derive(Default)]
struct Connection {
    commits: Vec<Commit>,
    committed: u64,
    /// By number.
    arrivals: Vec<Option<Instant>>,
}

impl Measured {
    /// Begins now.
    pub(super) fn new(typed: cli::Bench, run: String, subject: String) -> Self {
        let now = Instant::now();
        let connections = (0..typed.connections).map(|_| Connection::default());
        Self {
            run,
            subject,
            started: now,
            connections: connections.collect(),
            typed,
            committed: 0,
            arrived: 0,
            doubled: 0,
            out_of_order: 0,
            quiet_since: now,
            last_arrival: now,
            interrupted: false,
        }
    }

    /// Counts a transaction of a connection, in its order.
    pub(super) fn commit(&mut self, commit: Commit) {
        if !self.outstanding() {
            self.quiet_since = Instant::now();
        }
        self.committed += commit.events;
        let connection = &mut self.connections[usize::from(commit.connection)];
        connection.committed += commit.events;
        connection.commits.push(commit);
    }

    /// Counts a message, if it is one of ours.
    pub(super) fn arrive(&mut self, id: &str, now: Instant) {
        let Some((connection, number)) = place(&self.run, id) else {
            return;
        };
        let Some(connection) = self.connections.get_mut(connection) else {
            return;
        };
        if number >= self.typed.events {
            return;
        }
        (self.quiet_since, self.last_arrival) = (now, now);
        let number = number as usize;
        let arrivals = &mut connection.arrivals;
        let ends = arrivals.len();
        if number < ends && arrivals[number].is_some() {
            self.doubled += 1;
            return;
        }
        self.out_of_order += u64::from(number < ends);
        arrivals.resize(ends.max(number + 1), None);
        arrivals[number] = Some(now);
        self.arrived += 1;
    }

    /// When the first transaction might begin.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Something that was committed has not arrived.
    pub(super) fn outstanding(&self) -> bool {
        self.arrived < self.committed
    }

    /// For how long nothing has arrived that should have.
    pub(super) fn quiet(&self) -> Duration {
        match self.outstanding() {
            true => self.quiet_since.elapsed(),
            false => Duration::ZERO,
        }
    }

    /// How many events arrived.
    pub(super) fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Each event arrived once and in order, and all that was to be committed was.
    pub(super) fn is_exact(&self) -> bool {
        let whole = self.interrupted || self.committed == self.typed.events;
        whole && self.missing() == 0 && self.doubled == 0 && self.out_of_order == 0
    }

    /// What was committed and did not arrive. Whether a COMMIT without an answer took place is not
    /// known; its events are none of these.
    fn missing(&self) -> u64 {
        let missing = self.connections.iter().map(|connection| {
            let committed = connection
                .arrivals
                .iter()
                .take(connection.committed as usize);
            connection.committed - committed.flatten().count() as u64
        });
        missing.sum()
    }

    /// From COMMIT to its return, and from COMMIT to the arrival.
    fn latencies(&self) -> [Latency; 2] {
        let (mut commits, mut deliveries) = (Vec::new(), Vec::new());
        for connection in &self.connections {
            let times = connection.commits.iter().map(|c| c.returned - c.sent);
            commits.extend(times);
            let per_transaction = self.typed.per_transaction as usize;
            for (number, arrival) in connection.arrivals.iter().enumerate() {
                let commit = connection.commits.get(number / per_transaction);
                deliveries.extend(commit.zip(*arrival).map(|(commit, at)| at - commit.sent));
            }
        }
        [Latency::of(commits), Latency::of(deliveries)]
    }

    /// Says all of it.
    pub(super) fn print(&self, out: Out<'_>) -> Result<(), Failure> {
        let commits = self.connections.iter().flat_map(|one| &one.commits);
        let transactions = commits.clone().count();
        let returned = commits.map(|commit| commit.returned).max();
        let returned = returned.unwrap_or(self.started);
        let seconds = |until: Instant| (until - self.started).as_secs_f64();
        let per_second = |events: u64, until| events as f64 / seconds(until).max(1e-6);
        let took = seconds(self.last_arrival.max(returned));
        let committed_rate = per_second(self.committed, returned);
        let arrived_rate = per_second(self.arrived, self.last_arrival);
        let [commit, delivery] = self.latencies();
        let Self {
            run,
            subject,
            committed,
            arrived,
            doubled,
            out_of_order,
            interrupted,
            ..
        } = self;
        let missing = self.missing();
        let text = if self.typed.json {
            let report = json!({
                "run": run, "subject": subject,
                "exact": self.is_exact(), "interrupted": interrupted,
                "events": committed, "transactions": transactions, "seconds": took,
                "committed_per_second": committed_rate,
                "arrived": arrived, "arrived_per_second": arrived_rate,
                "commit_seconds": commit, "delivery_seconds": delivery,
                "missing": missing, "doubled": doubled, "out_of_order": out_of_order,
            });
            format!("{report:#}")
        } else {
            let early = if *interrupted { ", interrupted" } else { "" };
            format!(
                "committed  {committed} events in {transactions} transactions, \
                 {committed_rate:.0} events/s\n\
                 arrived    {arrived} events, {arrived_rate:.0} events/s; {took:.1} s{early}\n\
                 commit     {commit}, from COMMIT to its return\n\
                 delivery   {delivery}, from COMMIT to the message here\n\
                 wrong      {missing} missing, {doubled} doubled, {out_of_order} out of order\n\
                 The events stay in outbox.events and, under {subject}, in the stream until \
                 retention removes them; their ids begin with {run}."
            )
        };
        writeln!(out, "{text}").map_err(unwritten)
    }
}

/// How long something took, in seconds: nearest ranks, 0 of nothing.
#[derive(Debug, PartialEq, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Latency {
    fn of(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let rank = |percent: usize| {
            let rank = (took.len() * percent).div_ceil(100);
            let took = rank
                .checked_sub(1)
                .map_or(Duration::ZERO, |rank| took[rank]);
            took.as_secs_f64()
        };
        Self {
            p50: rank(50),
            p90: rank(90),
            p99: rank(99),
            max: rank(100),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p90, p99, max] = [self.p50, self.p90, self.p99, self.max].map(|s| s * 1000.0);
        write!(
            f,
            "p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "0a1b2c3d-4e5f";

    /// Two connections with two events in each transaction.
    fn measured(events: u64) -> Measured {
        let typed = cli::Bench {
            events,
            rate: None,
            per_transaction: 2,
            connections: 2,
            bytes: 2,
            wait: Duration::ZERO,
            json: false,
        };
        Measured::new(typed, RUN.to_owned(), "events.x".to_owned())
    }

    fn committed(measured: &mut Measured, connection: u16) {
        let (events, now) = (2, Instant::now());
        measured.commit(Commit {
            connection,
            events,
            sent: now,
            returned: now,
        });
    }

    fn arrive(measured: &mut Measured, connection: u16, number: u64) {
        measured.arrive(&id(RUN, connection, number), Instant::now());
    }

    #[test]
    fn ids_are_uuids_that_say_where_an_event_belongs() {
        let made = id(RUN, 0xfff, 0xab_cdef);
        assert_eq!(made, "0a1b2c3d-4e5f-8fff-8000-000000abcdef");
        assert_eq!(place(RUN, &made), Some((0xfff, 0xab_cdef)));
        assert_eq!(place("0a1b2c3d-4e5e", &made), None);
        assert_eq!(place(RUN, "0a1b2c3d-4e5f-4fff-8000-000000abcdef"), None);
        assert_eq!(place(RUN, "0a1b2c3d-4e5f-8fff"), None);
    }

    #[test]
    fn each_event_once_and_in_the_order_of_its_connection_is_exact() {
        let mut measured = measured(4);
        committed(&mut measured, 0);
        for (connection, number) in [(1, 0), (0, 0), (1, 1), (0, 1)] {
            assert!(!measured.is_exact());
            arrive(&mut measured, connection, number);
        }
        // The other COMMIT returns when its events are here already.
        assert!(!measured.is_exact());
        committed(&mut measured, 1);
        assert!(measured.is_exact());
        assert!(!measured.outstanding());
    }

    #[test]
    fn missing_doubled_and_late_events_are_counted_and_those_of_others_are_not() {
        let mut measured = measured(4);
        committed(&mut measured, 0);
        committed(&mut measured, 1);
        for (connection, number) in [(0, 1), (0, 0), (0, 0), (1, 1), (2, 0), (0, 4)] {
            arrive(&mut measured, connection, number);
        }
        measured.arrive(&id("0a1b2c3d-4e5e", 1, 0), Instant::now());
        let Measured {
            doubled,
            out_of_order,
            arrived,
            ..
        } = measured;
        assert_eq!((doubled, out_of_order, arrived), (1, 1, 3));
        assert_eq!(measured.missing(), 1);
        assert!(measured.outstanding());
    }

    #[test]
    fn what_was_not_committed_is_missed_unless_it_was_interrupted() {
        let mut measured = measured(4);
        committed(&mut measured, 0);
        arrive(&mut measured, 0, 0);
        arrive(&mut measured, 0, 1);
        assert!(!measured.is_exact());
        measured.interrupted = true;
        assert!(measured.is_exact());
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let latency = |seconds: Vec<u64>| {
            let took = seconds.into_iter().map(Duration::from_secs);
            let Latency { p50, p90, p99, max } = Latency::of(took.collect());
            [p50, p90, p99, max]
        };
        assert_eq!(
            latency((1..=100).rev().collect()),
            [50.0, 90.0, 99.0, 100.0]
        );
        assert_eq!(latency(vec![3, 1, 2]), [2.0, 3.0, 3.0, 3.0]);
        assert_eq!(latency(vec![7]), [7.0; 4]);
        assert_eq!(latency(Vec::new()), [0.0; 4]);
    }
}
