//! However outjet ends, and whoever follows: each event stands in the stream once, in commit order.
//!
//! The stream remembers message ids for 100 ms, the least that a server takes, so that it cannot
//! hide what is sent twice. `KILLS=500` kills more often than continuous integration does.

use std::time::Duration;

use async_nats::jetstream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::delivery::{Delivery, SOON, STREAM};
use crate::harness::outbox::{self, Load, Random};
use crate::harness::process::Signal;
use crate::harness::{Outjet, Wait, until};

/// How often outjet is killed if `KILLS` does not say.
const KILLS: u64 = 60;

/// At least this many kills must find it publishing, however slow the machine.
const HITS_MIN: u64 = 50;

/// Messages that a start may store before the kill: up to some windows.
const STORED_MAX: u64 = 1500;

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
                    transactions: 20,
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
    outbox::backlog(&delivery.session, 5_000).await;
    let writers = Writers::start(delivery.world.postgres.url());
    let mut random = Random(kills);
    let (mut hits, mut last) = (0, 0);
    for _ in 0..kills {
        let mut outjet = delivery.run();
        let beyond = last + random.below(STORED_MAX);
        let before = until_stored(&jetstream, beyond, &mut outjet).await;
        outjet.kill().await;
        last = until_calm(&jetstream).await;
        // It was in the middle of it: the stream grew between the last look and the end.
        hits += u64::from(last > before);
    }
    writers.finish().await;
    eprintln!("{kills} kills, {hits} hit a running stream, {last} messages by then");
    assert!(
        hits >= HITS_MIN.min(kills * 3 / 4),
        "{hits} of {kills} kills hit"
    );
    let _outjet = delivery.run();
    delivery.verdict().await.assert_exact();
}
