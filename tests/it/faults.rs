//! Killed at the instants that chance hardly meets, again and again: each event stands in the
//! stream once, in commit order. The instants are named in the program (`fault::point`), in debug
//! builds only.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::delivery::{Delivery, SOON};
use crate::harness::outbox;
use crate::harness::postgres::Stop;
use crate::harness::process::Signal;
use crate::million::release;

/// Small, so that a large transaction is settled in parts; and nothing is hidden by the servers'
/// memory of ids.
const CONFIG: &str = "
stream: {duplicate_window: 100ms}
publish: {in_flight_max: 64}
";

/// The passages at which it dies, run after run: the first ones, and some in full swing.
const PASSAGES: [u64; 6] = [1, 2, 3, 17, 64, 65];

/// Of what happens once for many events.
const RARE_PASSAGES: [u64; 6] = [1, 2, 3, 1, 2, 3];

/// Runs it until it dies at this passage of the point.
pub(crate) async fn die_at(delivery: &Delivery, point: &str, passage: u64) {
    let armed = delivery.outjet(["run", "--log-format", "json"]);
    let armed = armed.env("FAULT_POINT", format!("{point}:{passage}"));
    let status = armed.spawn().exit(SOON).await;
    let aborted = Some(Signal::ABORT.as_raw());
    assert_eq!(status.signal(), aborted, "{point}:{passage} {status}");
}

/// Dies at each of these passages with single events, a transaction of several windows, and events
/// that came meanwhile before it. Every third time Postgres crashes, too, and sends again what was
/// confirmed since its last checkpoint.
async fn stream_is_exact_after_deaths_at(point: &str, passages: [u64; 6]) {
    let mut delivery = Delivery::configured(CONFIG).await;
    for (round, passage) in passages.into_iter().enumerate() {
        outbox::backlog(&delivery.session, 50).await;
        outbox::one_transaction(&delivery.session, 300).await;
        outbox::backlog(&delivery.session, 50).await;
        die_at(&delivery, point, passage).await;
        if round % 3 == 2 {
            delivery.world.postgres.restart(Stop::Immediate).await;
            delivery.session = delivery.world.postgres.connect().await;
        }
    }
    let _outjet = delivery.run();
    delivery.verdict().await.assert_exact();
}

#[tokio::test]
async fn killed_between_the_guards_word_and_the_publish_loses_and_repeats_nothing() {
    stream_is_exact_after_deaths_at("judged", PASSAGES).await;
}

#[tokio::test]
async fn killed_after_a_publish_before_its_ack_loses_and_repeats_nothing() {
    stream_is_exact_after_deaths_at("published", PASSAGES).await;
}

#[tokio::test]
async fn killed_with_an_ack_in_hand_that_was_not_booked_loses_and_repeats_nothing() {
    stream_is_exact_after_deaths_at("answered", PASSAGES).await;
}

#[tokio::test]
async fn killed_after_an_ack_before_it_is_confirmed_loses_and_repeats_nothing() {
    stream_is_exact_after_deaths_at("settled", RARE_PASSAGES).await;
}

#[tokio::test]
async fn killed_between_two_status_updates_loses_and_repeats_nothing() {
    stream_is_exact_after_deaths_at("status_queued", RARE_PASSAGES).await;
}

#[tokio::test]
async fn killed_in_the_middle_of_a_transaction_loses_and_repeats_nothing() {
    stream_is_exact_after_deaths_at("settled_in_part", RARE_PASSAGES).await;
}

/// Once it has panicked there.
async fn bug_ends_the_process_at(point: &str) {
    let delivery = Delivery::configured(CONFIG).await;
    outbox::backlog(&delivery.session, 50).await;
    let armed = delivery.outjet(["run", "--log-format", "json"]);
    let armed = armed.env("FAULT_POINT", format!("{point}:3:panic"));
    let output = armed.output().await;
    assert_eq!(output.code, Some(70), "{output:?}");
    let said = &output.stderr;
    for words in [
        "FAULT_POINT asks for it",
        "outjet: outjet has a bug\n",
        "cause: it panicked at src/fault.rs:",
        "fix:   please report this",
    ] {
        assert!(said.contains(words), "{words:?} in {said}");
    }
    let _outjet = delivery.run();
    delivery.verdict().await.assert_exact();
}

#[tokio::test]
async fn panic_of_the_sink_ends_the_process_as_a_bug() {
    bug_ends_the_process_at("published").await;
}

#[tokio::test]
async fn panic_of_the_relay_ends_the_process_as_a_bug() {
    bug_ends_the_process_at("status_queued").await;
}

#[test]
fn release_build_has_no_fault_points() {
    let traces = |binary: &[u8]| {
        let names = ["FAULT_POINT", "settled_in_part", "letter_stored"];
        names.map(|name| binary.windows(name.len()).any(|at| at == name.as_bytes()))
    };
    let debug = fs::read(crate::harness::binaries::outjet()).expect("the debug build");
    assert_eq!(traces(&debug), [true; 3], "what is searched for");
    let release = fs::read(release()).expect("the release build");
    assert_eq!(traces(&release), [false; 3]);
}
