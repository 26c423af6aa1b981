//! What an event costs outjet, counted by callgrind: the same on any machine and however busy it
//! is. `scripts/bench --instructions` counts longer, and on a backlog of its own.

use std::time::Duration;

use crate::delivery::Delivery;
use crate::harness::{binaries, outbox};
use crate::million::release;

/// A tenth more than the 20 000 that an event may take: a new compiler may cost something, too.
const INSTRUCTIONS_MAX: u64 = 22_000;

/// Under callgrind everything takes fifty times as long.
const EVENTUALLY: Duration = Duration::from_secs(300);

/// The instructions of outjet's whole life, in which it publishes so many events.
async fn collected(events: u64) -> u64 {
    let delivery = Delivery::ready().await;
    outbox::backlog(&delivery.session, events).await;
    let (valgrind, program) = (binaries::valgrind(), release().display().to_string());
    let counted = ["--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let mut outjet = delivery
        .outjet([counted[0], counted[1], &program, "run"])
        .binary(valgrind)
        .spawn();
    delivery.confirmed_within(EVENTUALLY).await;
    assert_eq!(outjet.terminate(EVENTUALLY).await, Some(0));
    delivery.verdict().await.assert_exact();
    let stderr = outjet.stderr();
    let mut lines = stderr.lines();
    let count = lines.find_map(|line| line.split_once("Collected : "));
    let (_, count) = count.unwrap_or_else(|| panic!("nothing was counted: {stderr}"));
    count.trim().parse().expect("a number of instructions")
}

/// Starting and stopping are in both, so that the difference is the events' alone.
#[tokio::test]
async fn event_takes_no_more_instructions_than_it_may() {
    let (few, many) = (1_000, 5_000);
    let (shorter, longer) = (collected(few).await, collected(many).await);
    let each = (longer - shorter) / (many - few);
    eprintln!("{each} instructions per event");
    assert!(each <= INSTRUCTIONS_MAX, "{each} instructions per event");
}
