//! `outjet tail` shows what is published, and nothing else changes by that.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::delivery::{Delivery, SOON};
use crate::harness::outbox::Load;
use crate::harness::process::Signal;
use crate::harness::{Nats, Outjet, Postgres, Wait, binaries, until, until_sync};

/// A call that has begun to follow.
async fn follow(delivery: &Delivery, arguments: &[&str]) -> Outjet {
    let words = ["tail"].into_iter().chain(arguments.iter().copied());
    let tail = delivery.outjet(words).spawn();
    until_follows(|| tail.stderr()).await;
    tail
}

async fn until_follows(stderr: impl Fn() -> String) {
    until_sync("it follows", SOON, || {
        let said = stderr();
        Wait::ready_if(said.contains("following from "), said)
    })
    .await;
}

/// Waits until only the real slot is left.
async fn until_slot_vanished(delivery: &Delivery) {
    let slots = "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots
        WHERE plugin = 'pgoutput'";
    delivery.session.until_text(slots, "outjet", SOON).await;
}

async fn run(delivery: &Delivery, sql: &str) {
    delivery.session.run(sql).await;
}

#[tokio::test]
async fn tail_shows_each_event_once_in_commit_order_and_leaves_the_real_slot_alone() {
    let delivery = Delivery::ready().await;
    let mut tail = follow(&delivery, &[]).await;
    let written = Load::mixed(7).write(&delivery.world.postgres.url()).await;
    let shown = until("every event is shown", SOON, async || {
        let printed = tail.stdout();
        let lines = printed.lines().count() as u64;
        match lines >= written.committed {
            true => Wait::Ready(printed),
            false => Wait::NotYet(format!("{lines} of {}", written.committed)),
        }
    })
    .await;
    // Nobody has published yet: what was shown did not come from the real slot.
    assert_eq!(delivery.count().await, 0);
    let mut outjet = delivery.run();
    delivery.verdict().await.assert_exact();
    let stored = delivery.stored().await;
    let expected = stored.iter().map(|message| {
        let position = message.header("Outjet-Position").expect("a position");
        let id = message.header("Nats-Msg-Id").expect("an id");
        let bytes = message.payload.len();
        format!("  {position}  {}  {id}  {bytes} B", message.subject)
    });
    let lines = shown.lines().map(|line| {
        let (committed, rest) = line.split_once("  ").expect("a time");
        assert!(committed.ends_with('Z'), "{line}");
        format!("  {rest}")
    });
    assert_eq!(lines.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    // It lets go of the log that it has read, though it has nothing more to show.
    delivery.confirmed().await;
    tail.signal(Signal::INT);
    assert_eq!(tail.exit(SOON).await.code(), Some(0));
    until_slot_vanished(&delivery).await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}

#[tokio::test]
async fn filtered_tail_in_json_has_headers_and_body_and_ends_at_its_limit() {
    let delivery = Delivery::ready().await;
    let arguments = ["--json", "--subject", "events.*.shown", "--limit", "4"];
    let mut tail = follow(&delivery, &arguments).await;
    run(
        &delivery,
        r#"SELECT outbox.emit('order', '1', 'hidden');
           SELECT outbox.emit('order', '2', 'shown', '{"a": [1.50, "\n"]}',
             headers => '{"X": ["1", true]}');
           SELECT outbox.emit('order', '3', 'shown', payload_raw => 'a "b"');
           SELECT outbox.emit('order', '4', 'shown', payload_raw => '\x00ff');
           SELECT outbox.emit('order', '5', 'shown', headers => '{"a b": "no name"}');
           SELECT outbox.emit('order', '6', 'shown', '"beyond"')"#,
    )
    .await;
    assert_eq!(tail.exit(SOON).await.code(), Some(0));
    until_slot_vanished(&delivery).await;
    let shown = tail.stdout();
    let shown: Vec<Value> = shown
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON on each line"))
        .collect();
    assert_eq!(shown.len(), 4, "{shown:?}");
    assert_eq!(shown[0]["subject"], "events.order.shown");
    assert_eq!(shown[0]["table"], "outbox.events");
    assert_eq!(shown[0]["payload"], json!({"a": [1.5, "\n"]}));
    assert_eq!(shown[0]["headers"]["X"], json!(["1", "true"]));
    assert_eq!(shown[0]["headers"]["ce-type"], json!(["shown"]));
    assert_eq!(shown[0]["rejected"], Value::Null);
    assert_eq!(shown[1]["payload_text"], "a \"b\"");
    assert_eq!(shown[2]["payload_base64"], "AP8=");
    assert_eq!(shown[2]["bytes"], 2);
    assert_eq!(shown[3]["rejected"]["reason"], "header");
    let id = "SELECT id::text FROM outbox.events WHERE aggregateid = '5'";
    assert_eq!(shown[3]["id"], delivery.session.text(id).await);
}

#[tokio::test]
async fn rejected_row_is_shown_with_its_reason() {
    let delivery = Delivery::ready().await;
    let mut tail = follow(&delivery, &["--limit", "1"]).await;
    let sql = r#"SELECT outbox.emit('order', '5', 'shown', headers => '{"a b": "no name"}')"#;
    run(&delivery, sql).await;
    assert_eq!(tail.exit(SOON).await.code(), Some(0));
    let shown = tail.stdout();
    let reason = "REJECTED header: header \"a b\" has a name or a value that NATS cannot carry\n";
    assert!(shown.ends_with(reason), "{shown}");
}

/// The program with a pipe of ours at its standard output.
fn piped(delivery: &Delivery, home: &tempfile::TempDir) -> Command {
    let errors = std::fs::File::create(home.path().join("stderr")).expect("create a log");
    let mut command = Command::new(binaries::outjet());
    command
        .args(["tail", "--json"])
        .env("DATABASE_URL", delivery.world.postgres.url())
        .env("NATS_URL", delivery.world.nats.url())
        .current_dir(home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors);
    command
}

fn errors(home: &tempfile::TempDir) -> String {
    std::fs::read_to_string(home.path().join("stderr")).expect("a log")
}

#[tokio::test]
async fn tail_ends_quietly_when_its_reader_closes_the_pipe_even_if_nothing_comes() {
    let delivery = Delivery::ready().await;
    let home = tempfile::tempdir().expect("a directory");
    let mut tail = piped(&delivery, &home).spawn().expect("outjet");
    until_follows(|| errors(&home)).await;
    drop(tail.stdout.take());
    let status = tokio::task::spawn_blocking(move || tail.wait()).await;
    let status = status.expect("waited").expect("a status");
    let said = errors(&home);
    assert_eq!(status.code(), Some(0), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    until_slot_vanished(&delivery).await;
}

#[tokio::test]
async fn tail_whose_reader_has_stopped_holds_its_place_and_can_be_ended() {
    let delivery = Delivery::ready().await;
    let home = tempfile::tempdir().expect("a directory");
    let mut child = piped(&delivery, &home).spawn().expect("outjet");
    let unread = child.stdout.take();
    until_follows(|| errors(&home)).await;
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE temporary";
    run(
        &delivery,
        "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
         SELECT 'order', n::text, 'created', to_jsonb(repeat('x', 1000))
         FROM generate_series(1, 20000) AS n",
    )
    .await;
    let end = delivery
        .session
        .text("SELECT pg_current_wal_flush_lsn()")
        .await;
    // The server has sent what the buffers between take, and is stuck in that transaction.
    let stuck = "SELECT bool_and(wait_event = 'WalSenderWriteData') FROM pg_stat_activity
        WHERE application_name = 'outjet-tail'";
    delivery.session.until_text(stuck, "t", SOON).await;
    let passed = format!("SELECT ({confirmed}) >= '{end}'");
    assert_eq!(delivery.session.text(&passed).await, "f");
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, Signal::TERM).expect("signal our own child");
    let status = tokio::task::spawn_blocking(move || child.wait()).await;
    assert_eq!(status.expect("waited").expect("a status").code(), Some(0));
    until_slot_vanished(&delivery).await;
    drop(unread);
}

#[tokio::test]
async fn killed_tail_leaves_no_slot_and_no_commit_waits_for_a_tail() {
    let postgres = Postgres::builder().setting("synchronous_standby_names", "outjet");
    let postgres = postgres.setting("synchronous_commit", "local");
    let delivery = Delivery::on((postgres, Nats::builder()), "").await;
    let mut tail = follow(&delivery, &[]).await;
    let state = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'outjet-tail'";
    delivery.session.until_text(state, "async", SOON).await;
    tail.kill().await;
    until_slot_vanished(&delivery).await;
}

#[tokio::test]
async fn tail_of_a_role_that_may_not_replicate_says_what_to_grant() {
    let delivery = Delivery::ready().await;
    run(&delivery, "CREATE ROLE reader LOGIN").await;
    let url = delivery.world.postgres.url_as("reader", "postgres");
    let call = delivery.outjet(["tail"]).env("DATABASE_URL", url);
    let refused = call.output().await;
    assert_eq!(refused.code, Some(77), "{refused:?}");
    assert!(
        refused.stderr.contains("ALTER ROLE \"reader\" REPLICATION"),
        "{refused:?}"
    );
}
