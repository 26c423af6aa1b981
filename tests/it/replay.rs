//! What is published again goes through whoever leads: the live stream stays whole, and each row
//! that was asked for goes out once more.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::delivery::{Delivery, SOON};
use crate::harness::drain::{self, Stored};
use crate::harness::outbox::{self, Load};
use crate::harness::postgres::Session;
use crate::harness::process::Signal;
use crate::harness::{Nats, Postgres, Verdict, World, outjet};

/// The servers' duplicate window cannot help, nor hinder.
const CONFIG: &str = "
stream: {duplicate_window: 100ms, subjects: ['events.>', 'again.>']}
publish: {in_flight_max: 64}
";

const LETTERS: &str = "OUTBOX_DLQ";

async fn call(delivery: &Delivery, arguments: &[&str]) -> outjet::Output {
    let arguments = arguments.iter().copied();
    delivery.outjet(arguments).output().await
}

/// What was published for the first time, and what again.
async fn parted(delivery: &Delivery) -> (Vec<Stored>, Vec<Stored>) {
    let stored = delivery.stored().await;
    let again = |message: &Stored| message.header("Outjet-Replay") == Some("1");
    stored.into_iter().partition(|message| !again(message))
}

fn ids(messages: &[Stored]) -> Vec<String> {
    let id = |message: &Stored| {
        let id = message.header("Outjet-Id");
        let id = id.or_else(|| message.header("Nats-Msg-Id"));
        id.expect("an id").to_owned()
    };
    messages.iter().map(id).collect()
}

/// The ids of rows in the order in which they are replayed.
async fn selected(delivery: &Delivery, condition: &str) -> Vec<String> {
    let sql = format!(
        "SELECT coalesce(string_agg(id::text, ' ' ORDER BY created_at, id), '')
         FROM outbox.events WHERE {condition}"
    );
    let ids = delivery.session.text(&sql).await;
    ids.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn replay_amid_a_load_and_kills_publishes_each_row_once_more_and_leaves_the_rest_whole() {
    let delivery = Delivery::configured(CONFIG).await;
    let jetstream = delivery.world.nats.jetstream().await;
    outbox::backlog(&delivery.session, 400).await;
    let old = "created_at < (SELECT max(created_at) FROM outbox.events WHERE type = 'created')";
    let wanted = selected(&delivery, old).await;
    let until_then = "SELECT max(created_at) FROM outbox.events WHERE type = 'created'";
    let until_then = delivery.session.text(until_then).await;
    let mut outjet = delivery.run();
    // Until it is told to stop: there must be something live beside the replay.
    let load = Load {
        pause: Duration::from_millis(5),
        transactions: u64::MAX,
        ..Load::mixed(3)
    };
    let writers = load.start(&delivery.world.postgres.url()).await;
    drain::until_stored(&jetstream, "OUTBOX", 420, SOON).await;
    let replay = ["replay", "--until", &until_then, "--rate", "1000/s"];
    let (replayed, ()) = tokio::join!(call(&delivery, &replay), async {
        for _ in 0..3 {
            let more = delivery.count().await + 120;
            drain::until_stored(&jetstream, "OUTBOX", more, SOON).await;
            outjet.kill().await;
            outjet = delivery.run();
        }
    });
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    assert_eq!(
        replayed.stdout,
        "handed over  399 rows; whoever leads publishes them in their turn\n"
    );
    writers.stop().await;
    delivery.confirmed().await;
    let (live, again) = parted(&delivery).await;
    delivery.judge.verdict(&ids(&live)).await.assert_exact();
    assert_eq!(wanted.len(), 399);
    Verdict::of(&wanted, &ids(&again)).assert_exact();
    // Both stand in one order of commits.
    let stored = delivery.stored().await;
    let positions: Vec<_> = stored.iter().map(|m| m.header("Outjet-Position")).collect();
    assert!(positions.is_sorted_by(|one, next| one < next));
    let (first, last) = (again[0].sequence, again[398].sequence);
    let between = live.iter().filter(|m| (first..last).contains(&m.sequence));
    assert!(between.count() > 0, "nothing was live meanwhile");
}

#[tokio::test]
async fn replayed_message_is_the_first_one_but_for_its_marks() {
    let delivery = Delivery::configured(CONFIG).await;
    let _outjet = delivery.run();
    delivery
        .session
        .run(
            "SELECT outbox.emit('order', '4 \"2', 'placed', '{\"a\": [1.50, \"ü\\\\n\"]}',
               headers => '{\"X\": [\"1\", true]}', tenant_id => 't', dedup_key => 'k');
             SELECT outbox.emit('order', '2', 'raw', payload_raw => '\\x00ff0a',
               topic => 'events.raw');
             SELECT outbox.emit('order', '3', 'null')",
        )
        .await;
    let replayed = call(&delivery, &["replay", "--all"]).await;
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    delivery.confirmed().await;
    let (first, again) = parted(&delivery).await;
    assert_eq!((first.len(), again.len()), (3, 3));
    let own = [
        "Outjet-Position",
        "Nats-Expected-Last-Sequence",
        "ce-recordedtime",
    ];
    let said = |message: &Stored| {
        let headers = message.headers.iter();
        let lines = headers.map(|(name, values)| format!("{name}: {values:?}"));
        let mut lines: Vec<_> = lines
            .filter(|line| !own.iter().any(|name| line.starts_with(name)))
            .map(|line| line.replace("Nats-Msg-Id", "Outjet-Id"))
            .collect();
        lines.sort();
        lines
    };
    for first in &first {
        let same = |m: &&Stored| m.header("ce-id") == first.header("ce-id");
        let again = again.iter().find(same).expect("it came again");
        assert_eq!(again.subject, first.subject);
        assert_eq!(again.payload, first.payload);
        let mut wanted = said(first);
        wanted.extend(
            said(again)
                .into_iter()
                .filter(|l| l.starts_with("Outjet-Replay")),
        );
        wanted.sort();
        assert_eq!(said(again), wanted);
        assert_eq!(again.header("Nats-Msg-Id"), None);
    }
}

#[tokio::test]
async fn rows_are_chosen_by_time_id_aggregate_and_sql_and_a_dry_run_publishes_nothing() {
    let delivery = Delivery::configured(CONFIG).await;
    let _outjet = delivery.run();
    let rows = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, created_at, payload)
        SELECT 'order', (n % 3)::text, 'it''s',
          timestamptz '2026-01-01 00:00Z' + n * interval '1 h', to_jsonb(n)
        FROM generate_series(0, 9) AS n";
    delivery.session.run(rows).await;
    let id = delivery
        .session
        .text("SELECT id FROM outbox.events WHERE payload = '7'")
        .await;
    let dry = call(&delivery, &["replay", "--all", "--dry-run"]).await;
    let lines: Vec<_> = dry.stdout.lines().collect();
    assert_eq!(lines.len(), 1 + 5, "{dry:?}");
    assert_eq!(lines[0], "10 rows");
    assert!(
        lines[1].ends_with("  2026-01-01 00:00:00+00  order  0  it's"),
        "{dry:?}"
    );
    let cases: [(&[&str], &str); 5] = [
        (
            &[
                "--since",
                "2026-01-01 02:00",
                "--until",
                "2026-01-01 04:00Z",
            ],
            "payload IN ('2', '3')",
        ),
        (&["--id", &id], "payload = '7'"),
        (&["--aggregate", "order:1"], "aggregateid = '1'"),
        (&["--where", "payload < '2' -- the oldest"], "payload < '2'"),
        (
            &[
                "--aggregate",
                "order:0",
                "--where",
                "payload = '3' OR payload = '4'",
            ],
            "payload = '3'",
        ),
    ];
    let mut wanted = Vec::new();
    for (arguments, condition) in cases {
        let replayed = call(&delivery, &[&["replay"], arguments].concat()).await;
        assert_eq!(replayed.code, Some(0), "{replayed:?}");
        wanted.extend(selected(&delivery, condition).await);
    }
    delivery.confirmed().await;
    let (first, again) = parted(&delivery).await;
    assert_eq!(first.len(), 10);
    assert_eq!(ids(&again), wanted);
}

#[tokio::test]
async fn replay_refuses_what_could_write_halt_or_be_in_vain() {
    let delivery = Delivery::configured(CONFIG).await;
    let mut outjet = delivery.run();
    let session = &delivery.session;
    session
        .run("SELECT outbox.emit('order', '1', 'placed')")
        .await;
    session
        .run(
            "CREATE FUNCTION grab() RETURNS boolean LANGUAGE sql AS
             $$ DELETE FROM outbox.events RETURNING true $$",
        )
        .await;
    for (arguments, told) in [
        (["--where", "grab()"], "read-only transaction"),
        (["--where", "true); DROP TABLE outbox.events; --"], "cannot"),
        (
            ["--subject-prefix", "elsewhere."],
            "no subject that begins with elsewhere. fits",
        ),
        (
            ["--subject-prefix", "again"],
            "no subject that begins with again fits",
        ),
        (["--table", "outbox.others"], "which table"),
    ] {
        let all = match arguments[0] {
            "--where" => &["replay"][..],
            _ => &["replay", "--all"],
        };
        let refused = call(&delivery, &[all, &arguments[..]].concat()).await;
        assert!(refused.code > Some(0), "{refused:?}");
        assert!(refused.stderr.contains(told), "{refused:?}");
    }
    assert_eq!(
        session.text("SELECT count(*) FROM outbox.events").await,
        "1"
    );
    let prefixed = ["replay", "--all", "--subject-prefix", "again."];
    assert_eq!(call(&delivery, &prefixed).await.code, Some(0));
    // Covered in part: what is not becomes a dead letter, and whoever leads goes on.
    session
        .run("SELECT outbox.emit('order', '2', 'placed', topic => 'again.x')")
        .await;
    let off = delivery
        .outjet(["replay", "--all"])
        .env("OUTJET_MESSAGES__PREFIXES", "[]");
    let off = off.output().await;
    assert_eq!(off.code, Some(78), "{off:?}");
    delivery.confirmed().await;
    let (first, again) = parted(&delivery).await;
    assert_eq!((first.len(), again.len()), (2, 1));
    assert_eq!(again[0].subject, "again.events.order.placed");
    assert_eq!(outjet.exited(), None);
}

#[tokio::test]
async fn replayed_event_that_the_stream_does_not_cover_is_a_dead_letter_and_no_halt() {
    let delivery = Delivery::configured("stream: {subjects: ['events.order.*']}").await;
    let _outjet = delivery.run();
    delivery
        .session
        .run("SELECT outbox.emit('order', '1', 'placed')")
        .await;
    let prefixed = ["replay", "--all", "--subject-prefix", "events."];
    assert_eq!(call(&delivery, &prefixed).await.code, Some(0));
    delivery
        .session
        .run("SELECT outbox.emit('order', '2', 'placed')")
        .await;
    delivery.confirmed().await;
    assert_eq!(delivery.count().await, 2);
    let letters = drain::messages(&delivery.world.nats.jetstream().await, LETTERS).await;
    assert_eq!(letters[0].header("Outjet-Reason"), Some("uncovered"));
    assert_eq!(letters[0].subject, "dlq._invalid.OUTBOX");
}

#[tokio::test]
async fn messages_and_replays_are_utf8_whatever_the_encoding_of_the_database() {
    let world = World::start().await;
    let create = "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'
        LC_COLLATE 'C' LC_CTYPE 'C'";
    world.postgres.connect().await.run(create).await;
    let url = world.postgres.url_as("postgres", "latin");
    let call = |arguments: &[&'static str]| {
        let call = world.outjet(arguments.iter().copied());
        call.env("DATABASE_URL", url.clone())
    };
    let setup = call(&["setup"]).output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let _outjet = call(&["run"]).spawn();
    let session = Session::connect(&url).await;
    let arguments = "'order', 'ä', 'placed', '{\"word\": \"grün\"}'";
    let emit = format!("SELECT outbox.emit({arguments}), outbox.emit_wal({arguments})");
    session.run(&emit).await;
    assert_eq!(call(&["replay", "--all"]).output().await.code, Some(0));
    let jetstream = world.nats.jetstream().await;
    drain::until_stored(&jetstream, "OUTBOX", 3, SOON).await;
    for stored in drain::messages(&jetstream, "OUTBOX").await {
        assert_eq!(stored.payload, "{\"word\": \"grün\"}");
        assert_eq!(stored.header("ce-subject"), Some("%C3%A4"));
    }
}

/// Small, so that a body that is too large is cheap.
const MAX_PAYLOAD: usize = 100_000;

async fn with_letters() -> Delivery {
    let nats = Nats::builder().config(&format!("max_payload: {MAX_PAYLOAD}"));
    let delivery = Delivery::on((Postgres::builder(), nats), CONFIG).await;
    for aggregate in ["mended", "gone", "worse", "later"] {
        let sql = format!(
            "SELECT outbox.emit('order', '{aggregate}', 'large',
               payload_raw => convert_to(repeat('x', {MAX_PAYLOAD}), 'UTF8'))"
        );
        delivery.session.run(&sql).await;
    }
    delivery
}

#[tokio::test]
async fn letters_are_retried_with_their_rows_as_they_are_now_and_deleted_when_that_is_stored() {
    let delivery = with_letters().await;
    let _outjet = delivery.run();
    let session = &delivery.session;
    session
        .run("SELECT pg_logical_emit_message(true, 'outbox', 'no event')")
        .await;
    delivery.confirmed().await;
    session
        .run(
            "UPDATE outbox.events SET payload_raw = 'small'
               WHERE aggregateid IN ('mended', 'later');
             DELETE FROM outbox.events WHERE aggregateid = 'gone'",
        )
        .await;
    let one = call(&delivery, &["dead-letters", "retry", "4", "77"]).await;
    assert_eq!(one.code, Some(1), "{one:?}");
    assert_eq!(
        one.stdout,
        "absent   dead letter 77\nretried  dead letter 4\n"
    );
    let (first, again) = parted(&delivery).await;
    assert_eq!(
        (first.len(), again.len()),
        (0, 1),
        "it is stored when the command ends"
    );
    assert_eq!(again[0].payload, "small");

    let all = call(&delivery, &["dead-letters", "retry", "--all"]).await;
    assert_eq!(all.code, Some(1), "{all:?}");
    let lines: Vec<_> = all.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{all:?}");
    assert!(
        lines[0].starts_with("kept     dead letter 2: outbox.events has no row"),
        "{all:?}"
    );
    assert!(
        lines[1].starts_with("kept     dead letter 5: outbox is no configured"),
        "{all:?}"
    );
    assert_eq!(
        lines[2..],
        ["retried  dead letter 1", "retried  dead letter 3"]
    );
    assert_eq!(delivery.count().await, 2);
    // Number 3 is as bad as before, and under a new number.
    let letters = drain::messages(&delivery.world.nats.jetstream().await, LETTERS).await;
    let left: Vec<_> = letters.iter().map(|letter| letter.sequence).collect();
    assert_eq!(left, [2, 5, 6]);
    assert_eq!(letters[2].header("Outjet-Reason"), Some("too_large"));
}

#[tokio::test]
async fn letter_stays_whenever_a_retry_is_killed_and_can_be_retried_again() {
    let delivery = with_letters().await;
    let mut outjet = delivery.run();
    delivery.confirmed().await;
    let session = &delivery.session;
    session
        .run("UPDATE outbox.events SET payload_raw = 'small'")
        .await;
    let jetstream = delivery.world.nats.jetstream().await;
    let letters = async || drain::messages(&jetstream, LETTERS).await.len();
    for (published, point) in ["handed_over:1", "retried:1"].into_iter().enumerate() {
        // Also while nobody leads.
        if point == "handed_over:1" {
            assert_eq!(outjet.terminate(SOON).await, Some(0));
        }
        let retry = delivery.outjet(["dead-letters", "retry", "1"]);
        let status = retry.env("FAULT_POINT", point).spawn().exit(SOON).await;
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{point}");
        assert_eq!(letters().await, 4, "{point}");
        if point == "handed_over:1" {
            outjet = delivery.run();
            delivery.confirmed().await;
        }
        assert_eq!(parted(&delivery).await.1.len(), published + 1, "{point}");
    }
    let again = call(&delivery, &["dead-letters", "retry", "1"]).await;
    assert_eq!(again.stdout, "retried  dead letter 1\n", "{again:?}");
    assert_eq!(letters().await, 3);
    assert_eq!(parted(&delivery).await.1.len(), 3);
}
