//! Memory is bounded by the window, however long the backlog and however large the transaction.
//!
//! Continuous integration runs these with 100 000 events, where an unbounded buffer shows already;
//! `EVENTS=1000000 cargo test --test it million:: -- --nocapture --test-threads 1` is the real size
//! and prints rate and memory. It is the release build that is measured: `scripts/test` makes it
//! beforehand.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::{Delivery, STREAM};
use crate::harness::outbox;
use crate::harness::postgres::Stop;
use crate::harness::process::run;

const EVENTS: u64 = 100_000;

/// What guarantee 6 allows (DESIGN §11).
const RESIDENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// For a million on a busy machine.
const EVENTUALLY: Duration = Duration::from_secs(600);

fn events() -> u64 {
    std::env::var("EVENTS").map_or(EVENTS, |events| events.parse().expect("a number"))
}

/// The release build; nothing happens if it is up to date.
pub(crate) fn release() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--release",
        "--locked",
        "--bin",
        "outjet",
        "--message-format",
        "json",
    ]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    // What the test runner says of this crate makes ring's build script run again.
    for (name, _) in std::env::vars_os() {
        let of_ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
        if of_ours
            .iter()
            .any(|prefix| name.to_string_lossy().starts_with(prefix))
        {
            cargo.env_remove(name);
        }
    }
    let messages = run(cargo);
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let mut executables = messages
        .filter_map(|message: serde_json::Value| message["executable"].as_str().map(PathBuf::from));
    executables.next_back().expect("the executable's path")
}

/// Publishes what was committed, and looks at time, memory, and the stream.
async fn publish_within_64_mib(delivery: Delivery, what: &str) {
    let events = events();
    let binary = release();
    let started = Instant::now();
    let outjet = delivery
        .outjet(["run", "--log-format", "json"])
        .binary(binary)
        .spawn();
    delivery.confirmed_within(EVENTUALLY).await;
    let took = started.elapsed();
    let resident = outjet.resident_bytes_max();
    let rate = events as f64 / took.as_secs_f64();
    eprintln!(
        "{what}: {events} events, {took:?}, {rate:.0}/s, VmHWM {} KiB",
        resident / 1024
    );
    let verdict = delivery.judge.verdict(&delivery.ids().await).await;
    verdict.assert_exact();
    assert_eq!(verdict.stored as u64, events);
    assert!(
        resident <= RESIDENT_BYTES_MAX,
        "{} KiB resident",
        resident / 1024
    );
}

#[tokio::test]
async fn backlog_of_many_transactions_is_published_within_64_mib() {
    let delivery = Delivery::ready().await;
    outbox::backlog(&delivery.session, events()).await;
    publish_within_64_mib(delivery, "backlog").await;
}

#[tokio::test]
async fn one_transaction_of_many_events_is_published_within_64_mib() {
    let delivery = Delivery::ready().await;
    outbox::one_transaction(&delivery.session, events()).await;
    publish_within_64_mib(delivery, "one transaction").await;
}

/// What the record knows is not looked for: the stream is emptied, and nothing is sent again.
/// Prints how long it takes until all is confirmed again.
#[tokio::test]
async fn events_that_the_record_knows_are_passed_without_a_look_at_the_stream() {
    let mut delivery = Delivery::ready().await;
    delivery.session.run("CHECKPOINT").await;
    outbox::backlog(&delivery.session, events()).await;
    let run = |delivery: &Delivery| {
        let run = delivery.outjet(["run", "--log-format", "json"]);
        run.binary(release()).spawn()
    };
    let mut outjet = run(&delivery);
    delivery.confirmed_within(EVENTUALLY).await;
    outjet.kill().await;
    let jetstream = delivery.world.nats.jetstream().await;
    let stream = jetstream.get_stream(STREAM).await.expect("the stream");
    stream.purge().await.expect("purged");
    // The slot is where it was at the checkpoint.
    delivery.world.postgres.restart(Stop::Immediate).await;
    delivery.session = delivery.world.postgres.connect().await;
    let started = Instant::now();
    let outjet = run(&delivery);
    delivery.confirmed_within(EVENTUALLY).await;
    let took = started.elapsed();
    let resident = outjet.resident_bytes_max();
    eprintln!(
        "{} events sent again: {took:?}, VmHWM {} KiB",
        events(),
        resident / 1024
    );
    let stream = jetstream.get_stream(STREAM).await.expect("the stream");
    assert_eq!(stream.cached_info().state.last_sequence, events());
    assert!(resident <= RESIDENT_BYTES_MAX, "{resident} bytes");
}
