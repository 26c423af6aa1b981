//! What cannot be published goes to the dead letters, once and in order, and keeps nobody waiting.

mod control_line;
mod mapped;

use std::collections::HashSet;
use std::time::Duration;

use crate::delivery::{Delivery, SOON, STREAM};
use crate::faults::die_at;
use crate::harness::drain::{self, Stored};
use crate::harness::outbox::Random;
use crate::harness::postgres::Stop;
use crate::harness::process::{Signal, signal_process};
use crate::harness::{Nats, Postgres, Verdict, Wait, outjet, until};

const LETTERS: &str = "OUTBOX_DLQ";

/// Small, so that a body that is too large is cheap.
const MAX_PAYLOAD: usize = 100_000;

/// The servers' duplicate window cannot help.
const CONFIG: &str = "
stream: {duplicate_window: 100ms}
publish: {in_flight_max: 64}
";

/// Rows whose type begins with `bad` cannot be published, each for another reason.
const BAD: [(&str, &str, &str); 4] = [
    (
        "bad-size",
        "too_large",
        "payload_raw => convert_to(repeat('x', 100000), 'UTF8')",
    ),
    (
        "bad-headers",
        "too_large",
        "headers => jsonb_build_object('X', repeat('x', 70000))",
    ),
    ("bad-header", "header", "headers => '[\"no object\"]'"),
    ("bad-subject", "subject", "topic => repeat('x', 2000)"),
];

async fn ready(yaml: &str) -> Delivery {
    let nats = Nats::builder().config(&format!("max_payload: {MAX_PAYLOAD}"));
    Delivery::on((Postgres::builder(), nats), yaml).await
}

/// A transaction of good rows with one of the bad ones among them.
fn transaction(number: usize) -> String {
    let (kind, _, argument) = BAD[number % BAD.len()];
    format!(
        "BEGIN;
         SELECT outbox.emit('order', n::text, 'good') FROM generate_series(1, 3) AS n;
         SELECT outbox.emit('order', '4', '{kind}', {argument});
         SELECT outbox.emit('order', n::text, 'good') FROM generate_series(5, 7) AS n;
         COMMIT"
    )
}

async fn letters(delivery: &Delivery) -> Vec<Stored> {
    drain::messages(&delivery.world.nats.jetstream().await, LETTERS).await
}

/// Each good row stands in the stream, each bad one among the dead letters, in commit order, once.
async fn assert_exact(delivery: &Delivery) {
    delivery.confirmed().await;
    let sql = "SELECT coalesce(string_agg(id::text, ' '), '') FROM outbox.events
        WHERE starts_with(type, 'bad')";
    let bad = delivery.session.text(sql).await;
    let bad: HashSet<&str> = bad.split_whitespace().collect();
    let committed = delivery.judge.committed().await;
    let (rejected, published): (Vec<_>, Vec<_>) = committed
        .into_iter()
        .partition(|id| bad.contains(id.as_str()));
    assert!(!rejected.is_empty());
    Verdict::of(&published, &delivery.ids().await).assert_exact();
    let letters: Vec<_> = letters(delivery)
        .await
        .iter()
        .map(|letter| letter.header("Outjet-Id").expect("an id").to_owned())
        .collect();
    Verdict::of(&rejected, &letters).assert_exact();
}

#[tokio::test]
async fn rows_that_cannot_be_published_become_dead_letters_and_the_others_go_on() {
    let delivery = ready(CONFIG).await;
    let _outjet = delivery.run();
    for number in 0..8 {
        delivery.session.run(&transaction(number)).await;
    }
    assert_exact(&delivery).await;
    let letters = letters(&delivery).await;
    for (letter, (kind, reason, _)) in letters.iter().zip(BAD) {
        assert_eq!(letter.header("Outjet-Reason"), Some(reason), "{letter:?}");
        assert_eq!(letter.header("Outjet-Table"), Some("outbox.events"));
        assert!(letter.header("Nats-Msg-Id").is_none());
        assert!(letter.header("Outjet-Position").is_some());
        let subject = match kind {
            "bad-subject" => "dlq._invalid.OUTBOX".to_owned(),
            kind => format!("dlq.events.order.{kind}"),
        };
        assert_eq!(letter.subject, subject);
    }
    let (size, headers) = (&letters[0], &letters[1]);
    assert_eq!(size.header("Outjet-Body-Bytes"), Some("100000"));
    assert!(size.payload.is_empty());
    let error = size.header("Outjet-Error").expect("an error");
    assert!(
        error.contains("the server takes 100000 (max_payload)"),
        "{error}"
    );
    assert!(headers.header("X").is_none());
    assert!(headers.header("Outjet-Body-Bytes").is_none());
}

#[tokio::test]
async fn dead_letters_are_stored_once_whatever_is_killed() {
    let mut delivery = ready(CONFIG).await;
    for number in 0..200 {
        delivery.session.run(&transaction(number)).await;
    }
    let jetstream = delivery.world.nats.jetstream().await;
    let mut random = Random(7);
    let mut last = 0;
    for round in 0..10 {
        let mut outjet = delivery.run();
        let enough = (last + random.below(20)).min(190);
        until("a letter is stored", SOON, async || {
            assert_eq!(outjet.exited(), None);
            let stream = jetstream.get_stream(LETTERS).await;
            let stored = stream.expect("the stream").cached_info().state.messages;
            last = stored;
            Wait::ready_if(stored > enough, stored)
        })
        .await;
        outjet.kill().await;
        if round % 4 == 3 {
            // What was confirmed since the last checkpoint is sent again.
            delivery.world.postgres.restart(Stop::Immediate).await;
            delivery.session = delivery.world.postgres.connect().await;
        }
    }
    let _outjet = delivery.run();
    assert_exact(&delivery).await;
}

#[tokio::test]
async fn killed_after_a_dead_letter_is_stored_before_it_is_counted_repeats_none() {
    let delivery = ready(CONFIG).await;
    for passage in [1, 2, 3, 5, 8] {
        for number in 0..10 {
            delivery.session.run(&transaction(number)).await;
        }
        die_at(&delivery, "letter_stored", passage).await;
    }
    let _outjet = delivery.run();
    assert_exact(&delivery).await;
}

#[tokio::test]
async fn dead_letter_is_not_published_when_its_row_is_sent_again_and_fits_by_then() {
    let mut delivery = ready(CONFIG).await;
    // It logs the running transactions every 15 s, by which the slot's xmin and restart_lsn move;
    // then the server writes down what was confirmed, and would not send it again.
    let writer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'";
    let writer = delivery.session.text(writer).await;
    let writer = writer.parse().expect("a process id");
    signal_process(writer, Signal::STOP);
    let mut outjet = delivery.run();
    delivery.session.run(&transaction(0)).await;
    assert_exact(&delivery).await;
    outjet.kill().await;
    signal_process(writer, Signal::CONT);
    delivery.world.postgres.restart(Stop::Immediate).await;
    delivery.session = delivery.world.postgres.connect().await;
    let left = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('outjet', NULL, NULL,
        'proto_version', '1', 'publication_names', 'outjet') WHERE get_byte(data, 0) = ascii('I')";
    assert_eq!(
        delivery.session.text(left).await,
        "7",
        "nothing is sent again"
    );
    let nats = &mut delivery.world.nats;
    let limit = format!("max_payload: {MAX_PAYLOAD}");
    let raised = nats.configuration().replace(&limit, "max_payload: 200000");
    nats.configure(&raised);
    nats.reload();
    let _outjet = delivery.run();
    delivery.session.run(&transaction(1)).await;
    assert_exact(&delivery).await;
}

#[tokio::test]
async fn dead_letters_are_listed_shown_and_dropped() {
    let delivery = ready(CONFIG).await;
    let call = async |arguments: &[&'static str]| {
        let called = delivery.outjet(arguments.iter().copied());
        called.output().await
    };
    let outjet::Output { code, stdout, .. } = call(&["dead-letters", "list"]).await;
    assert_eq!((code, stdout.as_str()), (Some(0), "no dead letters\n"));
    let _outjet = delivery.run();
    for number in 1..4 {
        delivery.session.run(&transaction(number)).await;
    }
    assert_exact(&delivery).await;

    let listed = call(&["dead-letters", "list", "--json"]).await.stdout;
    let reasons: Vec<String> = listed
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .map(|line| format!("{} {}", line["sequence"], line["reason"]))
        .collect();
    assert_eq!(
        reasons,
        ["1 \"too_large\"", "2 \"header\"", "3 \"subject\""]
    );
    let shown = call(&["dead-letters", "show", "2"]).await.stdout;
    assert!(
        shown.starts_with("subject: dlq.events.order.bad-header\n"),
        "{shown}"
    );
    let error = "\nOutjet-Error: headers is not a JSON object of texts: another type was found";
    assert!(shown.contains(error), "{shown}");

    let dropped = call(&["dead-letters", "drop", "2", "7"]).await;
    assert_eq!(dropped.code, Some(1), "{dropped:?}");
    assert_eq!(
        dropped.stdout,
        "dropped  dead letter 2\nabsent   dead letter 7\n"
    );
    let gone = call(&["dead-letters", "show", "2"]).await;
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(
        gone.stderr.contains("there is no dead letter 2"),
        "{gone:?}"
    );
    let status = call(&["status"]).await.stdout;
    assert!(status.contains("dead letters  2 ("), "{status}");
    let dropped = call(&["dead-letters", "drop", "--all"]).await;
    assert_eq!(
        dropped.stdout,
        "dropped  dead letter 1\ndropped  dead letter 3\n"
    );
    assert_eq!(delivery.stored().await.len(), 18, "{STREAM} is left alone");
}

#[tokio::test]
async fn missing_stream_for_dead_letters_is_told_before_one_is_needed() {
    let yaml = "stream: {manage: check}";
    let delivery = ready(CONFIG).await;
    let jetstream = delivery.world.nats.jetstream().await;
    jetstream.delete_stream(LETTERS).await.expect("a stream");
    let check = delivery.world.outjet(["check"]).config(yaml);
    let check = check.output().await;
    assert_eq!(check.code, Some(1), "{check:?}");
    assert!(
        check
            .stdout
            .contains("stream \"OUTBOX_DLQ\" does not exist"),
        "{check:?}"
    );
    let run = delivery
        .world
        .outjet(["run", "--exit-on-halt"])
        .config(yaml);
    let run = run.output().await;
    assert_eq!(run.code, Some(65), "{run:?}");
    assert!(
        run.stderr.contains("stream \"OUTBOX_DLQ\" does not exist"),
        "{run:?}"
    );
}

#[tokio::test]
async fn retention_of_dead_letters_is_what_their_stream_says() {
    let delivery = ready("").await;
    let jetstream = delivery.world.nats.jetstream().await;
    let stream = jetstream
        .get_stream("OUTBOX_DLQ")
        .await
        .expect("the letters");
    let mut config = stream.cached_info().config.clone();
    config.max_age = Duration::from_secs(30 * 24 * 60 * 60);
    jetstream.update_stream(&config).await.expect("edited");
    let again = delivery.outjet(["setup"]).output().await;
    assert_eq!(again.code, Some(0), "{again:?}");
    let mut outjet = delivery.run();
    outjet.logged("leading", SOON).await;
    let bad = r#"SELECT outbox.emit('order', '1', 'bad', headers => '["no object"]')"#;
    delivery.session.run(bad).await;
    delivery.confirmed().await;
    assert_eq!(letters(&delivery).await.len(), 1);
    let stream = jetstream
        .get_stream("OUTBOX_DLQ")
        .await
        .expect("the letters");
    assert_eq!(stream.cached_info().config.max_age, config.max_age);
}
