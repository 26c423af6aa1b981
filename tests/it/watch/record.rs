//! The record of what is settled, as people see it: made by `setup`, checked by `check`, shown by
//! `status`, `/status` and the metrics, and held against the servers by `verify`.

use async_nats::jetstream::{self, stream::Config};
use serde_json::Value;

use super::Copy;
use crate::delivery::{Delivery, SOON};
use crate::harness::outjet::Output;
use crate::harness::postgres::Stop;
use crate::harness::{Nats, Postgres, Wait, World, until};

const STREAM: &str = "KV_OUTJET_OUTBOX";

const EMIT: &str = "SELECT outbox.emit('order', '1', 'created', '{}') FROM generate_series(1, 5)";

async fn context(delivery: &Delivery) -> jetstream::Context {
    delivery.world.nats.jetstream().await
}

/// Changes the configuration of a stream.
async fn edit(delivery: &Delivery, stream: &str, change: impl FnOnce(&mut Config)) {
    let context = context(delivery).await;
    let found = context.get_stream(stream).await.expect("the stream");
    let mut config = found.cached_info().config.clone();
    change(&mut config);
    context.update_stream(config).await.expect("changed");
}

async fn delete(delivery: &Delivery, stream: &str) {
    let deleted = context(delivery).await.delete_stream(stream).await;
    deleted.expect("deleted");
}

async fn json(delivery: &Delivery, command: [&str; 2]) -> (Option<i32>, Value) {
    let output = delivery.outjet(command).output().await;
    let value = serde_json::from_str(&output.stdout);
    (output.code, value.unwrap_or_else(|_| panic!("{output:?}")))
}

/// Publishes five events and stops in good order.
async fn publish(delivery: &Delivery) {
    let mut leader = delivery.run();
    leader.logged("leading", SOON).await;
    delivery.session.run(EMIT).await;
    delivery.confirmed().await;
    leader.terminate(SOON).await;
}

/// Somebody advances the slot over events that nobody has read.
async fn move_slot(delivery: &Delivery) {
    delivery.session.run(EMIT).await;
    let released = "SELECT count(*) FROM pg_replication_slots WHERE active";
    delivery.session.until_text(released, "0", SOON).await;
    let advance = "SELECT pg_replication_slot_advance('outjet', pg_current_wal_insert_lsn())";
    delivery.session.run(advance).await;
}

#[tokio::test]
async fn setup_creates_the_bucket_once_and_says_what_is_missing_where_it_may_not() {
    let world = World::with(Postgres::builder(), Nats::builder()).await;
    let setup = async |arguments: &[&str], yaml: &str| {
        let arguments = ["setup"].iter().chain(arguments).copied();
        let Output { code, stdout, .. } = world.outjet(arguments).config(yaml).output().await;
        assert_eq!(code, Some(0), "{stdout}");
        stdout
    };
    let printed = setup(&["--dry-run"], "").await;
    let (_, bucket) = printed
        .split_once("-- bucket OUTJET_OUTBOX, unless it exists\n")
        .unwrap_or_else(|| panic!("{printed}"));
    let bucket: Value = serde_json::from_str(bucket).expect("JSON");
    assert_eq!(bucket["name"], STREAM);
    assert_eq!(bucket["subjects"][0], "$KV.OUTJET_OUTBOX.>");
    assert_eq!(bucket["max_msgs_per_subject"], 1);
    let context = world.nats.jetstream().await;
    assert!(context.get_stream(STREAM).await.is_err(), "it was created");
    assert!(
        setup(&[], "")
            .await
            .contains("created  bucket OUTJET_OUTBOX\n")
    );
    assert!(
        setup(&[], "")
            .await
            .contains("exists   bucket OUTJET_OUTBOX\n")
    );
    context.delete_stream(STREAM).await.expect("deleted");
    let printed = setup(&[], "stream: {manage: check}").await;
    let missing = "missing  bucket OUTJET_OUTBOX: bucket OUTJET_OUTBOX does not exist, and \
                   stream.manage is check; `nats kv add OUTJET_OUTBOX --history 1 --replicas 1`\n";
    assert!(printed.contains(missing), "{printed}");
    assert!(context.get_stream(STREAM).await.is_err(), "it was created");
}

#[tokio::test]
async fn check_warns_of_a_bucket_that_is_missing_or_forgets_and_of_ids_that_are_forgotten() {
    let mut delivery = Delivery::ready().await;
    let check = async |delivery: &Delivery| {
        let output = delivery.outjet(["check"]).output().await;
        assert_eq!(output.code, Some(0), "{output:?}");
        output.stdout
    };
    let said = check(&delivery).await;
    let written = "ok    stream record         bucket OUTJET_OUTBOX, may be written and read\n";
    assert!(said.contains(written), "{said}");
    assert!(!said.contains("stream ids"), "{said}");
    edit(&delivery, "OUTBOX", |config| {
        config.duplicate_window = std::time::Duration::from_secs(14);
    })
    .await;
    edit(&delivery, STREAM, |config| {
        config.max_age = std::time::Duration::from_secs(3600);
    })
    .await;
    let said = check(&delivery).await;
    let ids = "warn  stream ids            stream OUTBOX forgets the ids of messages after 14s";
    assert!(said.contains(ids), "{said}");
    assert!(said.contains("--dupe-window 15s`"), "{said}");
    let forgets = "warn  stream record         bucket OUTJET_OUTBOX: max_age";
    assert!(said.contains(forgets), "{said}");
    // Where nothing vanishes, they may be.
    edit(&delivery, "OUTBOX", |config| {
        config.max_messages_per_subject = 1
    })
    .await;
    assert!(check(&delivery).await.contains(ids));
    delete(&delivery, STREAM).await;
    let said = check(&delivery).await;
    let missing = "bucket OUTJET_OUTBOX is missing; setup and run create it\n";
    assert!(said.contains(missing), "{said}");
    delivery.configure("stream: {manage: check}");
    let said = check(&delivery).await;
    assert!(
        said.contains("warn  stream record         bucket OUTJET_OUTBOX does"),
        "{said}"
    );
    assert!(
        said.contains("`nats kv add OUTJET_OUTBOX --history 1"),
        "{said}"
    );
}

#[tokio::test]
async fn status_shows_what_is_settled_and_says_where_there_is_no_record() {
    let mut delivery = Delivery::ready().await;
    let text = async |delivery: &Delivery| {
        let output = delivery.outjet(["status"]).output().await;
        assert_eq!(output.code, Some(0), "{output:?}");
        output.stdout
    };
    let said = text(&delivery).await;
    assert!(
        said.contains("record        none: nobody has led yet\n"),
        "{said}"
    );
    publish(&delivery).await;
    let (_, status) = json(&delivery, ["status", "--json"]).await;
    let record = &status["record"];
    assert_eq!(record["stored_sequence"], 5, "{status}");
    assert_eq!(record["term"], 1, "{status}");
    assert_eq!(record["gap"], Value::Null, "{status}");
    let lsn = record["settled_lsn"].as_str().expect("an LSN");
    let position = record["settled_position"].as_str().expect("a position");
    assert!(position.ends_with("-00000004"), "{status}");
    assert_eq!(
        record["confirmed_lsn"],
        status["postgres"]["slot_status"]["confirmed_flush_lsn"]
    );
    let said = text(&delivery).await;
    let line =
        format!("record        settled up to {position} (commit {lsn}), stored at sequence 5\n");
    assert!(said.contains(&line), "{said}");
    delete(&delivery, STREAM).await;
    delivery.configure("stream: {manage: check}");
    let (_, status) = json(&delivery, ["status", "--json"]).await;
    assert_eq!(status["record"], Value::Null);
    let why = status["no_record"].as_str().expect("a reason");
    assert!(
        why.contains("bucket OUTJET_OUTBOX does not exist"),
        "{status}"
    );
}

#[tokio::test]
async fn moved_slot_is_a_gap_for_verify_status_and_the_metrics_with_its_fix() {
    let delivery = Delivery::ready().await;
    publish(&delivery).await;
    let (code, verified) = json(&delivery, ["verify", "--json"]).await;
    assert_eq!(code, Some(0), "{verified}");
    assert_eq!(verified["contradictions"], Value::Array(Vec::new()));
    assert_eq!(verified["record"]["stored_sequence"], 5);
    move_slot(&delivery).await;
    let (code, verified) = json(&delivery, ["verify", "--json"]).await;
    assert_eq!(code, Some(1), "{verified}");
    let moved = "slot outjet was moved: events may be missing";
    assert_eq!(
        verified["contradictions"][0]["problem"], moved,
        "{verified}"
    );
    let output = delivery.outjet(["verify"]).output().await;
    assert_eq!(output.code, Some(1), "{output:?}");
    let text = format!("record      {moved}\n");
    assert!(output.stdout.contains(&text), "{output:?}");
    // Behind the record somebody has published: it need not be the newest, so outjet goes on.
    let context = context(&delivery).await;
    let stranger = context.publish("events.strange", "".into()).await;
    stranger.expect("sent").await.expect("stored");
    let copy = Copy::run(&delivery).await;
    copy.until_metric("outjet_slot_gap_bytes", |bytes| bytes > 0.0)
        .await;
    let (_, status) = json(&delivery, ["status", "--json"]).await;
    let gap = &status["record"]["gap"];
    assert_eq!(gap["problem"], moved, "{status}");
    assert!(
        gap["fix"].to_string().contains("`outjet recover`"),
        "{status}"
    );
    assert!(gap["bytes"].as_u64() > Some(0), "{status}");
    let said = delivery.outjet(["status"]).output().await.stdout;
    assert!(
        said.contains(&format!("\ngap           {moved}\n")),
        "{said}"
    );
    assert_eq!(copy.status().await["gap"]["problem"]["problem"], moved);
}

#[tokio::test]
async fn stream_that_was_created_anew_contradicts_the_record() {
    let delivery = Delivery::ready().await;
    publish(&delivery).await;
    delete(&delivery, "OUTBOX").await;
    let setup = delivery.outjet(["setup"]).output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let (code, verified) = json(&delivery, ["verify", "--json"]).await;
    assert_eq!(code, Some(1), "{verified}");
    let cause = &verified["contradictions"][0]["cause"];
    assert_eq!(cause, "the stream was created anew", "{verified}");
    assert_eq!(verified["missing"]["count"], 5, "{verified}");
}

#[tokio::test]
async fn record_begins_within_a_term_as_soon_as_there_is_a_bucket_and_ends_with_the_term() {
    let mut delivery = Delivery::ready().await;
    delete(&delivery, STREAM).await;
    delivery.configure("stream: {manage: check}");
    let copy = Copy::run(&delivery).await;
    copy.until_probes([200, 200, 200, 200]).await;
    delivery.session.run(EMIT).await;
    delivery.confirmed().await;
    assert_eq!(copy.metrics().await["outjet_record_kept"], 0.0);
    let record = copy.status().await["record"].clone();
    assert_eq!(record["kept"], false, "{record}");
    delivery.configure("");
    let setup = delivery.outjet(["setup"]).output().await;
    assert!(
        setup.stdout.contains("created  bucket OUTJET_OUTBOX\n"),
        "{setup:?}"
    );
    delivery.session.run(EMIT).await;
    copy.until_metric("outjet_record_kept", |kept| kept == 1.0)
        .await;
    let record = copy.status().await["record"].clone();
    assert_eq!(record["kept"], true, "{record}");
    until("the record has all events", SOON, async || {
        let (_, status) = json(&delivery, ["status", "--json"]).await;
        let record = &status["record"];
        Wait::ready_if(
            record["stored_sequence"] == 10 && record["term"] == 1,
            status,
        )
    })
    .await;
    let led = copy.outjet.stderr().matches("\"leading\"").count();
    assert_eq!(led, 1, "{}", copy.outjet.stderr());
    delivery.world.postgres.stop(Stop::Immediate).await;
    copy.until_metric("outjet_record_kept", |kept| kept == 0.0)
        .await;
    assert_eq!(copy.status().await["record"], Value::Null);
}
