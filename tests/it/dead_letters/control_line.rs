//! A server that takes shorter control lines than others says so only when one was too long. Events
//! whose subjects fit are published, the others are dead letters, and nothing waits for them.

use super::{LETTERS, assert_exact, letters};
use crate::delivery::{Delivery, STREAM};
use crate::harness::drain::Stored;
use crate::harness::nats::BATCHING;
use crate::harness::{Nats, Postgres, nats};

const LINE_BYTES_MAX: usize = 512;

/// What the line of an event among the first ten has beside the subject: two spaces, an inbox
/// (`_INBOX.`, 22 characters and a dot), its number, and the lengths.
const BESIDE_BYTES: usize = 2 + 30 + 1 + 14;

/// Where letters go whose own subject does not fit.
const INVALID: &str = "dlq._invalid.OUTBOX";

fn server() -> nats::Builder {
    let limits = format!("max_control_line: {LINE_BYTES_MAX}\nmax_payload: 100000");
    Nats::builder().config(&limits)
}

async fn ready(nats: nats::Builder, yaml: &str) -> Delivery {
    Delivery::on((Postgres::builder(), nats), yaml).await
}

/// A call that emits an event to a subject of so many bytes.
fn emit(kind: &str, subject_bytes: usize, payload: &str) -> String {
    let rest = subject_bytes - "events.".len();
    format!(
        "SELECT outbox.emit('order', '1', '{kind}', payload_raw => convert_to({payload}, 'UTF8'),
           topic => 'events.' || repeat('x', {rest}));"
    )
}

/// Transactions of short subjects with a longer one among each, the longest first and last.
async fn write(delivery: &Delivery) {
    for long in [900, 500, 700, 600, 1000] {
        let (short, long) = (emit("good", 20, "'1'"), emit("bad", long, "'2'"));
        let transaction = format!("BEGIN; {short} {short} {long} {short} COMMIT");
        delivery.session.run(&transaction).await;
    }
}

fn assert_unfit(letter: &Stored) {
    assert_eq!(letter.header("Outjet-Reason"), Some("subject"));
    let error = letter.header("Outjet-Error").expect("an error");
    assert!(error.contains("(max_control_line)"), "{error}");
    assert_eq!(letter.subject, INVALID);
    assert_eq!(&letter.payload[..], b"2");
}

async fn subjects_that_do_not_fit_become_dead_letters(nats: nats::Builder, yaml: &str) {
    let delivery = ready(nats, yaml).await;
    write(&delivery).await;
    let _outjet = delivery.run();
    assert_exact(&delivery).await;
    // What was learnt holds, and what was sent before is not sent again.
    write(&delivery).await;
    assert_exact(&delivery).await;
    let letters = letters(&delivery).await;
    assert_eq!(letters.len(), 10);
    letters.iter().for_each(assert_unfit);
}

#[tokio::test]
async fn subjects_that_are_too_long_for_the_server_become_dead_letters_and_the_others_go_on() {
    let yaml = "stream: {duplicate_window: 100ms}";
    subjects_that_do_not_fit_become_dead_letters(server(), yaml).await;
}

#[tokio::test]
async fn one_subject_that_is_too_long_leaves_the_rest_of_its_transaction_whole() {
    let yaml = "publish: {transactions: atomic}";
    subjects_that_do_not_fit_become_dead_letters(server().version(BATCHING), yaml).await;
}

#[tokio::test]
async fn subjects_that_are_too_long_keep_nobody_waiting_in_a_shared_stream() {
    let yaml = "stream: {shared: true}";
    subjects_that_do_not_fit_become_dead_letters(server(), yaml).await;
}

#[tokio::test]
async fn subject_that_just_fits_is_published_and_one_byte_more_is_a_dead_letter() {
    let delivery = ready(server(), "").await;
    let fits = LINE_BYTES_MAX - BESIDE_BYTES;
    for (kind, bytes) in [("good", fits), ("bad", fits + 1), ("good", fits)] {
        delivery.session.run(&emit(kind, bytes, "'2'")).await;
    }
    let _outjet = delivery.run();
    assert_exact(&delivery).await;
    let letters = letters(&delivery).await;
    assert_eq!(letters.len(), 1);
    assert_unfit(&letters[0]);
    let error = letters[0].header("Outjet-Error").expect("an error");
    assert!(
        error.contains("of 513 bytes, the server takes 512"),
        "{error}"
    );
}

#[tokio::test]
async fn dead_letter_whose_own_subject_does_not_fit_is_stored_under_another() {
    let delivery = ready(server(), "").await;
    let fits = LINE_BYTES_MAX - BESIDE_BYTES;
    let large = "repeat('x', 100000)";
    delivery.session.run(&emit("bad", fits, large)).await;
    delivery.session.run(&emit("good", fits, "'1'")).await;
    let _outjet = delivery.run();
    assert_exact(&delivery).await;
    let letters = letters(&delivery).await;
    assert_eq!(letters[0].header("Outjet-Reason"), Some("too_large"));
    assert_eq!(letters[0].subject, INVALID);
    assert_eq!(
        (letters.len(), delivery.count().await),
        (1, 1),
        "{STREAM}, {LETTERS}"
    );
}
