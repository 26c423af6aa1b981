//! However outjet ends, and whoever follows: each event stands in the stream once, in commit order.
//!
//! The stream remembers message ids for 100 ms, the least that a server takes, so that it cannot
//! hide what is sent twice. `KILLS=500` kills more often than continuous integration does.

use std::time::Duration;

use async_nats::jetstream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::delivery::{Delivery, SOON, STREAM};
use crate::harness::outbox::{self, Load, Random};
use crate::harness::postgres::Session;
use crate::harness::process::Signal;
use crate::harness::proxy::Upstream;
use crate::harness::{Outjet, Proxy, Wait, until};

/// How often outjet is killed if `KILLS` does not say.
const KILLS: u64 = 60;

/// At least this many kills must find it publishing, however slow the machine.
const HITS_MIN: u64 = 50;

/// Messages that a start may store before the kill: up to about a window.
const STORED_MAX: u64 = 300;

/// With what the writers add, more than all runs publish: none of them runs dry.
const BACKLOG: u64 = 10_000;

const CONFIG: &str = "
stream: {duplicate_window: 100ms}
publish: {in_flight_max: 512}
";

/// Writers that go on until they are told to stop.
struct Writers {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// One mixed load after the other.
    fn start(url: String) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            for seed in 0.. {
                let load = Load {
                    writers: 2,
                    transactions: 20,
                    pause: Duration::from_millis(20),
                    ..Load::mixed(seed)
                };
                load.write(&url).await;
                if *stopped.borrow() {
                    break;
                }
            }
        });
        Self { stop, tasks }
    }

    async fn finish(mut self) {
        self.stop.send_replace(true);
        while let Some(finished) = self.tasks.join_next().await {
            finished.expect("the writers");
        }
    }
}

/// The stream's last sequence number; nothing is ever removed from it.
async fn stored(jetstream: &jetstream::Context) -> u64 {
    let stream = jetstream.get_stream(STREAM).await;
    stream
        .expect("the stream")
        .cached_info()
        .state
        .last_sequence
}

/// Whether Postgres will send the newest message of the stream again: it was stored, and the end of
/// its transaction was not confirmed. Its position tells of no more than which commit it was.
async fn is_sent_again(delivery: &Delivery, jetstream: &jetstream::Context, last: u64) -> bool {
    let stream = jetstream.get_stream_no_info(STREAM).await;
    let newest = stream.expect("the stream").get_raw_message(last).await;
    let newest = newest.expect("the newest message");
    let position = newest
        .headers
        .get("Outjet-Position")
        .expect("a position")
        .as_str();
    let commit_lsn = format!("{}/{}", &position[..8], &position[8..16]);
    let sql = format!(
        "SELECT confirmed_flush_lsn <= '{commit_lsn}' FROM pg_replication_slots
         WHERE slot_name = 'outjet'"
    );
    delivery.session.text(&sql).await == "t"
}

/// Waits until the stream has grown beyond this; broken if outjet ends.
async fn until_stored(jetstream: &jetstream::Context, beyond: u64, outjet: &mut Outjet) -> u64 {
    until("outjet publishes", SOON, async || {
        if let Some(status) = outjet.exited() {
            return Wait::Broken(format!("outjet ended: {status}"));
        }
        match stored(jetstream).await {
            now if now > beyond => Wait::Ready(now),
            now => Wait::NotYet(format!("{now} messages, {beyond} are not enough")),
        }
    })
    .await
}

/// Waits until the server has worked off what the dead left it.
async fn until_calm(jetstream: &jetstream::Context) -> u64 {
    let mut before = stored(jetstream).await;
    until("the stream grows no more", SOON, async || {
        let now = stored(jetstream).await;
        let calm = now == before;
        before = now;
        match calm {
            true => Wait::Ready(now),
            false => Wait::NotYet(now.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn kills_at_any_moment_lose_nothing_repeat_nothing_and_keep_the_order() {
    let kills = std::env::var("KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let delivery = Delivery::configured(CONFIG).await;
    let jetstream = delivery.world.nats.jetstream().await;
    outbox::backlog(&delivery.session, BACKLOG).await;
    let writers = Writers::start(delivery.world.postgres.url());
    let mut random = Random(kills);
    let (mut hits, mut grew, mut last) = (0, 0, 0);
    for _ in 0..kills {
        let mut outjet = delivery.run();
        let beyond = last + random.below(STORED_MAX);
        let before = until_stored(&jetstream, beyond, &mut outjet).await;
        outjet.kill().await;
        last = until_calm(&jetstream).await;
        hits += u64::from(is_sent_again(&delivery, &jetstream, last).await);
        grew += u64::from(last > before);
    }
    writers.finish().await;
    eprintln!(
        "{kills} kills; {hits} hit a running stream: what it had stored was not confirmed yet; \
         in {grew} cases more was stored after the last look; {last} messages by then"
    );
    assert!(
        hits >= HITS_MIN.min(kills * 3 / 4),
        "{hits} of {kills} kills hit"
    );
    let _outjet = delivery.run();
    delivery.verdict().await.assert_exact();
}

/// How many events the slot has still to send.
pub(crate) const LEFT: &str = "
SELECT count(*) FROM pg_logical_slot_peek_binary_changes('outjet', NULL, NULL,
  'proto_version', '1', 'publication_names', 'outjet') WHERE get_byte(data, 0) = ascii('I')";

/// The server notices a client that is gone a moment later.
pub(crate) async fn until_free(session: &Session) {
    let active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'outjet'";
    session.until_text(active, "f", SOON).await;
}

#[tokio::test]
async fn sigterm_under_load_confirms_all_that_is_stored_and_nothing_is_read_again() {
    let delivery = Delivery::configured(CONFIG).await;
    let jetstream = delivery.world.nats.jetstream().await;
    let mut last = 0;
    for round in 0..6 {
        // More than a window and the sockets hold: it ends with data that it has not read.
        outbox::backlog(&delivery.session, 4_000).await;
        let mut outjet = delivery.run();
        until_stored(&jetstream, last + 300 * round, &mut outjet).await;
        assert_eq!(outjet.terminate(SOON).await, Some(0));
        last = stored(&jetstream).await;
        let committed = delivery.judge.committed().await.len() as u64;
        assert!(last < committed, "it was not under load any more");
        until_free(&delivery.session).await;
        // Neither less, which would be read again, nor more, which would be lost.
        let left = delivery.session.text(LEFT).await;
        assert_eq!(left, (committed - last).to_string());
    }
    let _outjet = delivery.run();
    delivery.verdict().await.assert_exact();
}

#[tokio::test]
async fn second_sigterm_ends_it_at_once() {
    let mut delivery = Delivery::configured(CONFIG).await;
    let jetstream = delivery.world.nats.jetstream().await;
    outbox::backlog(&delivery.session, 5_000).await;
    let mut outjet = delivery.run();
    until_stored(&jetstream, 100, &mut outjet).await;
    // Nothing is acknowledged any more: an orderly end would wait for drain_timeout, 20 s.
    delivery.world.nats.process().pause().await;
    outjet.signal(Signal::TERM);
    let stopping = "stopping: what is under way is stored and confirmed first";
    outjet.logged(stopping, SOON).await;
    let asked_again = Instant::now();
    outjet.terminate(SOON).await;
    let took = asked_again.elapsed();
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    delivery.world.nats.process().resume();
    let _outjet = delivery.run();
    delivery.verdict().await.assert_exact();
}

#[tokio::test]
async fn standby_takes_over_from_a_leader_that_is_killed_or_told_to_stop() {
    let delivery = Delivery::configured(CONFIG).await;
    let jetstream = delivery.world.nats.jetstream().await;
    let writers = Writers::start(delivery.world.postgres.url());
    let mut leader = delivery.run();
    leader.logged("leading", SOON).await;
    for killed in [true, false, true, false] {
        let mut standby = delivery.run();
        standby
            .logged("standing by: another copy leads", SOON)
            .await;
        let now = stored(&jetstream).await;
        until_stored(&jetstream, now, &mut leader).await;
        let ended = Instant::now();
        if killed {
            leader.kill().await;
        } else {
            assert_eq!(leader.terminate(SOON).await, Some(0));
        }
        standby.logged("leading", SOON).await;
        eprintln!("killed: {killed}, taken over after {:?}", ended.elapsed());
        leader = standby;
    }
    writers.finish().await;
    delivery.verdict().await.assert_exact();
}

#[tokio::test]
async fn standby_whose_connections_went_silent_takes_over_all_the_same() {
    let delivery = Delivery::ready().await;
    let mut leader = delivery.run();
    leader.logged("leading", SOON).await;
    let link = Proxy::start(Upstream::Unix(delivery.world.postgres.socket()));
    let url = format!("postgres://postgres@{}/postgres", link.address());
    let standby = delivery.outjet(["run", "--log-format", "json"]);
    let mut standby = standby.env("DATABASE_URL", url).spawn();
    standby
        .logged("standing by: another copy leads", SOON)
        .await;
    // As behind a firewall that has forgotten them: nothing arrives, and nobody is told.
    link.freeze();
    leader.kill().await;
    standby.logged("leading", SOON).await;
    outbox::one_transaction(&delivery.session, 10).await;
    delivery.verdict().await.assert_exact();
}
