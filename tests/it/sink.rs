//! The connection to NATS breaks in every way that we can think of, while events are published.

mod domains;
mod ingress;
mod replicas;
pub(crate) mod strangers;
mod streams;
mod tails;

use std::time::Duration;

use crate::harness::outbox::Random;
use crate::harness::stage::{QUICK, SOON, STREAM, Stage};
use crate::harness::{Direction, Mode, Nats, Wait, until};

/// Chosen anew for each test; what it chooses is printed.
fn random(seed: u64) -> Random {
    eprintln!("seed {seed}");
    Random(seed)
}

/// How often the connection is cut; SINK_CUTS asks for more.
fn cuts() -> u64 {
    let asked = std::env::var("SINK_CUTS").ok();
    asked.map_or(25, |asked| asked.parse().expect("SINK_CUTS is a number"))
}

/// Resets the connections once some bytes have passed, most often in the middle of a message, and
/// often enough in the middle of a header. Every now and then events may get through in between:
/// otherwise most cuts would only ever meet a guard that reads.
pub(crate) async fn cut_at_random(stage: &Stage, seed: u64) {
    let mut random = random(seed);
    for cut in 0..cuts() {
        if cut % 5 == 0 {
            more_stored(stage, 20).await;
        }
        let direction = match random.below(3) {
            0 => Direction::ToClient,
            1 => Direction::ToServer,
            _ => Direction::Both,
        };
        let bytes = 1 + random.below(30_000);
        stage.proxy.set(Mode::Cut(direction, bytes));
        stage.proxy.until_cut(SOON).await;
    }
}

/// Waits until this many more messages are stored.
pub(crate) async fn more_stored(stage: &Stage, messages: u64) {
    let before = stage.last_sequence().await;
    stage.until_sequence(before + messages).await;
}

#[tokio::test]
async fn connections_cut_anywhere_cost_no_event_no_order_and_no_duplicate() {
    let stage = Stage::ready().await;
    let _outjet = stage.lead().await;
    let writers = stage.write(3).await;
    cut_at_random(&stage, 1).await;
    writers.finish().await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn connections_cut_anywhere_on_the_oldest_server() {
    let stage = Stage::on(Nats::builder().version("2.10"), QUICK).await;
    let _outjet = stage.lead().await;
    let writers = stage.write(3).await;
    cut_at_random(&stage, 2).await;
    writers.finish().await;
    stage.assert_exact().await;
}

/// Lets events through and swallows their acks, until outjet must have given the connection up.
pub(crate) async fn swallow_acks(stage: &Stage) {
    stage.proxy.set(Mode::Stall(Direction::ToClient));
    // Fewer come if the last connection had not recovered yet.
    let more = more_stored(stage, 20);
    let _ = tokio::time::timeout(Duration::from_secs(2), more).await;
    stage.proxy.cut();
    stage.proxy.set(Mode::Forward);
}

#[tokio::test]
async fn events_whose_acks_were_swallowed_are_not_stored_twice() {
    let stage = Stage::ready().await;
    let _outjet = stage.lead().await;
    let writers = stage.write(3).await;
    for _ in 0..8 {
        swallow_acks(&stage).await;
        more_stored(&stage, 20).await;
    }
    writers.finish().await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn what_a_dead_connection_delivers_late_is_not_stored_twice() {
    let stage = Stage::ready().await;
    let _outjet = stage.lead().await;
    let writers = stage.write(3).await;
    for _ in 0..4 {
        more_stored(&stage, 20).await;
        stage.proxy.freeze();
        let connections = stage.proxy.accepted();
        // The watchdog gives the connection up, and the next one is not frozen.
        until("a new connection", SOON, async || {
            let accepted = stage.proxy.accepted();
            Wait::ready_if(accepted > connections, accepted)
        })
        .await;
        more_stored(&stage, 20).await;
        stage.proxy.thaw();
    }
    writers.finish().await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn what_arrives_late_while_the_guard_reads_is_not_stored_twice() {
    let stage = Stage::ready().await;
    let _outjet = stage.lead().await;
    let writers = stage.write(3).await;
    for round in 0..10 {
        more_stored(&stage, 20).await;
        stage.proxy.freeze();
        let connections = stage.proxy.accepted();
        until("a new connection", SOON, async || {
            let accepted = stage.proxy.accepted();
            Wait::ready_if(accepted > connections, accepted)
        })
        .await;
        // Now and then at once, now and then while the new connection is at work already.
        tokio::time::sleep(Duration::from_millis(3 * round)).await;
        stage.proxy.thaw();
    }
    writers.finish().await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn nats_may_be_killed_under_load() {
    nats_is_killed(Nats::builder()).await;
}

#[tokio::test]
async fn nats_may_be_killed_under_load_on_the_oldest_server() {
    nats_is_killed(Nats::builder().version("2.10")).await;
}

async fn nats_is_killed(nats: crate::harness::nats::Builder) {
    let mut stage = Stage::on(nats, QUICK).await;
    let _outjet = stage.lead().await;
    let writers = stage.write(3).await;
    for _ in 0..5 {
        more_stored(&stage, 200).await;
        stage.world.nats.kill().await;
        stage.world.nats.start_again().await;
    }
    writers.finish().await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn leader_that_is_killed_behind_a_bad_connection_is_continued_exactly() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    let writers = stage.write(3).await;
    let mut random = random(3);
    for _ in 0..6 {
        stage
            .proxy
            .set(Mode::Cut(Direction::Both, 1 + random.below(60_000)));
        stage.proxy.until_cut(SOON).await;
        tokio::time::sleep(Duration::from_millis(random.below(80))).await;
        stage.proxy.set(Mode::Stall(Direction::ToClient));
        tokio::time::sleep(Duration::from_millis(random.below(80))).await;
        outjet.kill().await;
        stage.proxy.set(Mode::Forward);
        outjet = stage.run();
    }
    outjet.logged("leading", SOON).await;
    writers.finish().await;
    stage.assert_exact().await;
    assert_eq!(stage.stream().await.cached_info().config.name, STREAM);
}
