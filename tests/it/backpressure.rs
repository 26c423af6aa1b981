//! NATS is away for a while, in every way, with and without writers: the slot is held and looked
//! after for as long as a copy elsewhere could not do better, memory is bounded, nothing is lost,
//! and afterwards the backlog arrives in order, each event once.
//!
//! OUTAGE_SECONDS makes the outages longer (a minute, for the record).

use rustix::process::Signal;
use std::ops::RangeInclusive;
use std::time::Duration;
use tokio::time::Instant;

use crate::harness::stage::{SOON, STREAM, Stage};
use crate::harness::{Direction, Mode, Nats, Wait, drain, until};
use crate::million::release;

/// `takeover_after` and `ack_timeout` of these tests.
const TAKEOVER_AFTER: Duration = Duration::from_secs(3);
const ACK_TIMEOUT: Duration = Duration::from_secs(2);

/// The server has two seconds to close the connection, and a busy machine some more.
const GOOD_BYE: Duration = Duration::from_secs(2);

const YAML: &str = "
postgres: {takeover_after: 3s}
nats: {connect_timeout: 2s}
stream: {duplicate_window: 100ms}
publish: {ack_timeout: 2s}
";

/// After an outage: the longest pause between two attempts, and a connection that hangs.
const AGAIN_WITHIN: Duration = Duration::from_secs(5 + 2 + 5);

/// What guarantee 6 allows (DESIGN §11).
const RESIDENT_BYTES_MAX: u64 = 64 << 20;

fn outage() -> Duration {
    let asked = std::env::var("OUTAGE_SECONDS").ok();
    let seconds = asked.map_or(10, |asked| asked.parse().expect("a number of seconds"));
    Duration::from_secs(seconds)
}

/// How NATS is away.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    /// The network swallows what is sent, either way.
    Stalled,
    /// The server hangs.
    Hung,
    /// The server does not run.
    Stopped,
    /// The server does not run, and the port says so at once.
    Refused,
}

impl Outage {
    async fn begin(self, stage: &mut Stage) {
        match self {
            Self::Stalled => stage.proxy.set(Mode::Stall(Direction::Both)),
            Self::Hung => stage.world.nats.process().pause().await,
            Self::Stopped => stage.world.nats.stop().await,
            Self::Refused => stage.proxy.set(Mode::Refuse),
        }
    }

    async fn end(self, stage: &mut Stage) {
        match self {
            Self::Stalled | Self::Refused => stage.proxy.set(Mode::Forward),
            Self::Hung => stage.world.nats.process().resume(),
            Self::Stopped => stage.world.nats.start_again().await,
        }
    }
}

/// What was seen of the slot during an outage.
#[derive(Debug, Default)]
struct Seen {
    /// The oldest status update that was ever the newest while the slot was held.
    status_age_max: Duration,
    /// When the slot was given up first, and how often.
    given_up_at: Option<Instant>,
    given_up: u32,
}

/// Who holds the slot, and how long ago the holder was last heard of.
const HOLDER: &str = "
SELECT coalesce(
  (SELECT extract(epoch FROM clock_timestamp() - coalesce(reply_time, backend_start))::text
   FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid
   WHERE slot_name = 'outjet'), 'nobody')";

/// Looks at the slot for as long as the outage lasts.
async fn watch(stage: &Stage, outage: Duration) -> Seen {
    let began = Instant::now();
    let mut seen = Seen::default();
    let mut held = true;
    while began.elapsed() < outage {
        let holder = stage.session.text(HOLDER).await;
        let age = holder.parse().map(|age: f64| age.max(0.0));
        match age {
            Ok(age) => {
                seen.status_age_max = seen.status_age_max.max(Duration::from_secs_f64(age));
                held = true;
            }
            Err(_) if std::mem::take(&mut held) => {
                seen.given_up += 1;
                seen.given_up_at.get_or_insert(Instant::now());
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    seen
}

impl Seen {
    /// Status updates come three times as often as the server would want them, the slot is held for
    /// `takeover_after` and then given up, once. The outage began somewhere in `began`: a server
    /// that stops closes its connections some time before it is gone.
    fn assert_looked_after(&self, began: RangeInclusive<Instant>, outage: Duration) {
        let after = |at: &Instant| self.given_up_at.map(|given_up| given_up - *at);
        let (longest, shortest) = (after(began.start()), after(began.end()));
        eprintln!("{self:?}: given up after {shortest:?} to {longest:?}");
        assert!(self.status_age_max < TAKEOVER_AFTER * 2 / 3, "{self:?}");
        assert!(self.given_up <= 1, "{self:?}");
        let latest = ACK_TIMEOUT + TAKEOVER_AFTER + GOOD_BYE + GOOD_BYE;
        assert!(outage > latest, "it was over too soon");
        assert!(shortest.unwrap_or(outage) <= latest, "{shortest:?}");
        assert!(
            longest.is_none_or(|longest| longest >= TAKEOVER_AFTER),
            "{longest:?}"
        );
    }
}

/// An idle connection is only found dead by pings: nobody holds the slot for less.
const PINGS: Duration = Duration::from_secs(15);

async fn survive(outage: Outage, writing: bool) {
    let mut stage = Stage::on(Nats::builder(), YAML).await;
    let outjet = stage.lead().await;
    stage.commit(1..=100).await;
    stage.confirmed().await;
    let writers = match writing {
        true => Some(stage.write(3).await),
        false => None,
    };
    let lasting = self::outage();
    let before = stage.last_sequence().await;
    stage
        .until_sequence(before + u64::from(writing) * 100)
        .await;
    let beginning = Instant::now();
    outage.begin(&mut stage).await;
    let began = beginning..=Instant::now();
    let seen = watch(&stage, lasting).await;
    if writing || outage == Outage::Stopped || outage == Outage::Refused {
        seen.assert_looked_after(began, lasting);
    } else {
        assert!(seen.status_age_max < TAKEOVER_AFTER * 2 / 3, "{seen:?}");
        assert!(seen.given_up <= 1, "{seen:?}");
        if lasting > PINGS + ACK_TIMEOUT + TAKEOVER_AFTER + Duration::from_secs(5) {
            assert!(seen.given_up_at.is_some(), "{seen:?}");
        }
    }
    stage.commit(101..=200).await;
    outage.end(&mut stage).await;
    // Without writers these are the only ones; some may come out of a server's own buffers.
    let first = match writing {
        true => stage.last_sequence().await + 1,
        false => before + 1,
    };
    drains_at_once(&stage, first).await;
    if let Some(writers) = writers {
        let committed = writers.finish().await;
        eprintln!("{committed} events were written beside it");
    }
    // A debug build beside writers and servers on two cores may need a few times as long.
    stage.confirmed_within(SOON + lasting * 5).await;
    stage.assert_exact().await;
    assert_never_timed_out(&stage);
    drop(outjet);
}

/// Waits for the first event after an outage.
async fn drains_at_once(stage: &Stage, first: u64) {
    let ended = Instant::now();
    stage.until_sequence(first).await;
    let waited = ended.elapsed();
    eprintln!("the first event was stored {waited:?} after the outage");
    assert!(waited < AGAIN_WITHIN, "{waited:?}");
}

/// The server never had to throw a holder of the slot out.
fn assert_never_timed_out(stage: &Stage) {
    let log = std::fs::read_to_string(stage.world.postgres.log()).expect("the server's log");
    let thrown_out: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("due to replication timeout"))
        .collect();
    assert_eq!(thrown_out, Vec::<&str>::new());
}

#[tokio::test]
async fn stalled_network_under_load() {
    survive(Outage::Stalled, true).await;
}

#[tokio::test]
async fn stalled_network_without_writers() {
    survive(Outage::Stalled, false).await;
}

#[tokio::test]
async fn hung_server_under_load() {
    survive(Outage::Hung, true).await;
}

#[tokio::test]
async fn hung_server_without_writers() {
    survive(Outage::Hung, false).await;
}

#[tokio::test]
async fn stopped_server_under_load() {
    survive(Outage::Stopped, true).await;
}

#[tokio::test]
async fn stopped_server_without_writers() {
    survive(Outage::Stopped, false).await;
}

#[tokio::test]
async fn refused_connections_under_load() {
    survive(Outage::Refused, true).await;
}

/// Commits `transactions` of `megabytes` in rows of `kilobytes`, which are the event's body or in
/// a column that no event needs.
async fn large_backlog(stage: &Stage, (transactions, megabytes): (u32, u32), rows: &Rows) {
    let count = megabytes * 1000 / rows.kilobytes;
    let repeats = rows.kilobytes * 1000 / 32;
    let values = match rows.large {
        "payload" => "to_jsonb(large), NULL",
        _ => "to_jsonb(1), large",
    };
    for _ in 0..transactions {
        let sql = format!(
            "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload, note)
             SELECT 'order', n::text, 'created', {values}
             FROM generate_series(1, {count}) AS n, repeat(md5(n::text), {repeats}) AS large"
        );
        stage.session.run(&sql).await;
    }
}

/// What a backlog is made of.
struct Rows {
    kilobytes: u32,
    large: &'static str,
}

async fn memory_is_bounded(kilobytes: u32, large: &'static str) {
    let rows = &Rows { kilobytes, large };
    let mut stage = Stage::on(Nats::builder(), YAML).await;
    let note = "ALTER TABLE outbox.events ADD COLUMN note text";
    stage.session.run(note).await;
    let run = stage.outjet(["run", "--log-format", "json"]);
    let mut outjet = run.binary(release()).spawn();
    outjet.logged("leading", SOON).await;
    large_backlog(&stage, (2, 1), rows).await;
    stage.confirmed().await;
    let before = outjet.resident_bytes_max();
    Outage::Stalled.begin(&mut stage).await;
    // Five windows of 32 MiB; one of them in a single transaction.
    large_backlog(&stage, (128, 1), rows).await;
    large_backlog(&stage, (1, 36), rows).await;
    watch(&stage, outage()).await;
    Outage::Stalled.end(&mut stage).await;
    stage.confirmed().await;
    // Without the bodies, which are more than a server hands out at once.
    let ids = drain::ids(&stage.jetstream().await, STREAM).await;
    stage.judge.verdict(&ids).await.assert_exact();
    let after = outjet.resident_bytes_max();
    eprintln!("{} MiB before, {} MiB after", before >> 20, after >> 20);
    assert!(after <= RESIDENT_BYTES_MAX, "{after} bytes");
}

#[tokio::test]
async fn memory_is_bounded_whatever_waits_behind_an_outage() {
    memory_is_bounded(8, "payload").await;
}

/// What is kept of an event keeps the row that it was read from.
#[tokio::test]
async fn memory_is_bounded_for_small_events_of_large_rows() {
    memory_is_bounded(30, "note").await;
}

#[tokio::test]
async fn memory_is_bounded_for_events_of_hundreds_of_kilobytes() {
    memory_is_bounded(500, "payload").await;
}

#[tokio::test]
async fn copy_that_reaches_nats_takes_over_from_one_that_does_not() {
    let stage = Stage::on(Nats::builder(), YAML).await;
    let mut first = stage.lead().await;
    let elsewhere = stage.outjet(["run", "--log-format", "json"]);
    let mut second = elsewhere.env("NATS_URL", stage.world.nats.url()).spawn();
    second.logged("standing by: another copy leads", SOON).await;
    let writers = stage.write(3).await;
    stage.until_sequence(100).await;
    stage.proxy.set(Mode::Stall(Direction::Both));
    let began = Instant::now();
    second.logged("leading", SOON).await;
    let waited = began.elapsed();
    eprintln!("taken over {waited:?} after the network went");
    assert!(waited < ACK_TIMEOUT + TAKEOVER_AFTER + Duration::from_secs(3));
    let before = stage.last_sequence().await;
    stage.until_sequence(before + 200).await;
    // What the first has sent is delivered now, and it comes back as a standby.
    stage.proxy.set(Mode::Forward);
    first.logged("standing by: another copy leads", SOON).await;
    let before = stage.last_sequence().await;
    stage.until_sequence(before + 200).await;
    writers.finish().await;
    stage.assert_exact().await;
    second.signal(Signal::TERM);
    assert_never_timed_out(&stage);
}

#[tokio::test]
async fn server_that_is_not_read_from_is_not_taken_for_a_silent_one() {
    let full = "
        postgres: {takeover_after: 1s}
        publish: {ack_timeout: 20s, in_flight_max: 16}";
    let stage = Stage::on(Nats::builder(), full).await;
    let outjet = stage.lead().await;
    stage.proxy.set(Mode::Stall(Direction::Both));
    // More than the window holds, and each can be confirmed by itself.
    for number in 1..=50 {
        stage.commit(number..=number).await;
    }
    // Longer than a server may be silent that was asked, three times `takeover_after`.
    let seen = watch(&stage, Duration::from_secs(5)).await;
    assert_eq!(seen.given_up, 0, "{seen:?}");
    stage.proxy.set(Mode::Forward);
    stage.assert_exact().await;
    let log = outjet.log();
    let troubles: Vec<_> = log.iter().filter(|line| line["level"] == "WARN").collect();
    assert!(troubles.is_empty(), "{troubles:?}");
}

/// The server reads what we say in the middle of a transaction only now and then.
#[tokio::test]
async fn huge_transaction_into_a_stalled_sink_does_not_cost_the_slot() {
    let patient = "
        postgres: {takeover_after: 3s}
        publish: {ack_timeout: 60s}";
    let stage = Stage::on(Nats::builder(), patient).await;
    let outjet = stage.lead().await;
    stage.commit(1..=30_000).await;
    stage.until_sequence(1).await;
    stage.proxy.set(Mode::Stall(Direction::Both));
    let seen = watch(&stage, Duration::from_secs(8)).await;
    assert_eq!(seen.given_up, 0, "{seen:?}");
    assert!(stage.last_sequence().await < 30_000, "it was over too soon");
    stage.proxy.set(Mode::Forward);
    // A debug build on busy cores stores some hundreds a second.
    stage.confirmed_within(SOON * 3).await;
    stage.assert_exact().await;
    let log = outjet.log();
    let terms = log.iter().filter(|line| line["message"] == "leading");
    assert_eq!(terms.count(), 1, "{log:?}");
    assert_never_timed_out(&stage);
}

#[tokio::test]
async fn slow_network_slows_and_does_no_more() {
    let stage = Stage::on(Nats::builder(), YAML).await;
    let mut outjet = stage.lead().await;
    stage.proxy.set(Mode::Delay(Duration::from_millis(300)));
    let writers = stage.write(2).await;
    let seen = watch(&stage, outage()).await;
    assert!(seen.status_age_max < TAKEOVER_AFTER * 2 / 3, "{seen:?}");
    writers.finish().await;
    stage.proxy.set(Mode::Forward);
    stage.assert_exact().await;
    let troubles = |line: &serde_json::Value| line["level"] == "WARN";
    let log = outjet.log();
    let troubles: Vec<_> = log.iter().filter(|line| troubles(line)).collect();
    assert!(troubles.is_empty(), "{troubles:?}");
    until("it stops in order", SOON, async || {
        outjet.signal(Signal::TERM);
        Wait::ready_if(outjet.exited().is_some(), "running")
    })
    .await;
}
