//! Bodies that no message holds go into the object store, and their events stand in the stream in
//! their turn, once, and say where: `publish.on_oversize`.

mod consumer;
mod refused;

use async_nats::Message;
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::delivery::{Delivery, SOON};
use crate::faults::die_at;
use crate::harness::drain::{self, Stored};
use crate::harness::nats::{self, BATCHING};
use crate::harness::postgres::Stop;
use crate::harness::{Nats, Postgres, Wait, until};

const BUCKET: &str = "OUTJET_BODIES";

/// Small, so that a body that no message holds is cheap.
const MAX_PAYLOAD: usize = 100_000;

/// The servers' duplicate window cannot help.
const CONFIG: &str = "
stream: {duplicate_window: 100ms}
publish: {in_flight_max: 64, on_oversize: object_store}
";

async fn ready(yaml: &str) -> Delivery {
    on(Nats::builder(), yaml).await
}

async fn on(nats: nats::Builder, yaml: &str) -> Delivery {
    let nats = nats.config(&format!("max_payload: {MAX_PAYLOAD}"));
    Delivery::on((Postgres::builder(), nats), yaml).await
}

/// The body of a message, read as a consumer does, and what its name says of it.
async fn body_of(delivery: &Delivery, stored: &Stored) -> Bytes {
    let message = Message {
        subject: stored.subject.clone().into(),
        reply: None,
        payload: stored.payload.clone(),
        headers: Some(stored.headers.clone()),
        status: None,
        description: None,
        length: 0,
    };
    let jetstream = delivery.world.nats.jetstream().await;
    let body = consumer::body(&jetstream, &message).await.expect("a body");
    if let Some(reference) = stored.header("ce-dataref") {
        let digest = Sha256::digest(&body);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(reference.ends_with(&format!("/{digest}")), "{reference}");
    }
    body
}

/// The bodies of the rows, in the order of their types, as they stand in the table.
async fn written(delivery: &Delivery) -> Vec<(String, Vec<u8>)> {
    let sql = "SELECT type, coalesce(payload_raw, convert_to(payload::text, 'UTF8'), '')
        FROM outbox.events ORDER BY type";
    let rows = delivery.session.query(sql, &[]).await.expect("rows");
    let row = |row: &tokio_postgres::Row| (row.get(0), row.get(1));
    rows.iter().map(row).collect()
}

/// The names of all objects.
async fn objects(delivery: &Delivery) -> Vec<String> {
    let jetstream = delivery.world.nats.jetstream().await;
    let bucket = jetstream.get_object_store(BUCKET).await.expect("a bucket");
    let listed = bucket.list().await.expect("a list");
    let listed: Vec<_> = listed.try_collect().await.expect("objects");
    listed.into_iter().map(|object| object.name).collect()
}

/// Rows of all kinds, small and large, in one transaction and on both sides of it.
const ROWS: &str = "
    SELECT outbox.emit('order', '1', 'a', '{\"n\": 1}');
    BEGIN;
    SELECT outbox.emit('order', '1', 'b', payload_raw => convert_to(repeat('b', 99000), 'UTF8'));
    SELECT outbox.emit('order', '1', 'c', payload_raw => decode(repeat('00ff7f', 100000), 'hex'));
    SELECT outbox.emit('order', '1', 'd', to_jsonb(repeat('\"d\\', 100000)));
    SELECT outbox.emit('order', '1', 'e');
    COMMIT;
    SELECT outbox.emit('order', '1', 'f', payload_raw => convert_to(repeat('ü', 100000), 'UTF8'),
        content_type => 'text/plain');
    SELECT outbox.emit('order', '1', 'g', '{\"n\": 2}');
";

#[tokio::test]
async fn body_that_no_message_holds_arrives_whole_through_the_bucket_in_commit_order() {
    for format in ["cloudevents", "minimal"] {
        let yaml = format!("publish: {{format: {format}, on_oversize: object_store}}");
        let delivery = ready(&yaml).await;
        let _outjet = delivery.run();
        delivery.session.run(ROWS).await;
        delivery.verdict().await.assert_exact();
        let stored = delivery.stored().await;
        let written = written(&delivery).await;
        assert_eq!(stored.len(), written.len());
        for (stored, (kind, row)) in stored.iter().zip(&written) {
            assert!(stored.subject.ends_with(kind), "{stored:?}");
            assert!(body_of(&delivery, stored).await == *row, "{format} {kind}");
            let referring = stored.header("ce-dataref").is_some();
            assert_eq!(referring, ["c", "d", "f"].contains(&kind.as_str()));
            assert!(!referring || stored.payload.is_empty(), "{format} {kind}");
        }
        assert_eq!(objects(&delivery).await.len(), 3);
        let jetstream = delivery.world.nats.jetstream().await;
        assert_eq!(drain::messages(&jetstream, "OUTBOX_DLQ").await.len(), 0);
    }
}

#[tokio::test]
async fn formats_that_wrap_the_payload_keep_what_stands_around_it_and_name_the_object() {
    for (format, member) in [("structured", "data"), ("envelope", "payload")] {
        let yaml = format!("publish: {{format: {format}, on_oversize: object_store}}");
        let delivery = ready(&yaml).await;
        let _outjet = delivery.run();
        delivery.session.run(ROWS).await;
        delivery.verdict().await.assert_exact();
        let stored = delivery.stored().await;
        for (stored, (kind, row)) in stored.iter().zip(&written(&delivery).await) {
            let json: Value = serde_json::from_slice(&stored.payload).expect("JSON");
            let name = if format == "structured" {
                "type"
            } else {
                "event"
            };
            assert_eq!(json[name], kind.as_str(), "{format}");
            let reference = stored.header("ce-dataref");
            assert_eq!(json["dataref"].as_str(), reference, "{format} {kind}");
            // What is large as bytes is larger in base64.
            let large = ["b", "c", "d", "f"].contains(&kind.as_str());
            assert_eq!(reference.is_some(), large, "{format} {kind}");
            if large {
                assert!(json[member].is_null(), "{format} {kind}");
                assert!(json.get(format!("{member}_base64")).is_none());
                assert!(body_of(&delivery, stored).await == *row, "{format} {kind}");
            }
        }
        assert_eq!(objects(&delivery).await.len(), 4, "{format}");
    }
}

#[tokio::test]
async fn body_of_many_windows_goes_alone_and_keeps_its_place() {
    let yaml = "publish: {on_oversize: object_store, in_flight_bytes_max: 1MiB}";
    let delivery = Delivery::configured(yaml).await;
    let _outjet = delivery.run();
    let sql = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload_raw)
        SELECT 'order', '1', to_char(n, 'FM00'), convert_to(repeat(chr(64 + n),
          CASE WHEN n % 6 = 0 THEN 9000001 ELSE 10 END), 'UTF8')
        FROM generate_series(1, 12) AS n";
    delivery.session.run(sql).await;
    delivery.verdict().await.assert_exact();
    let stored = delivery.stored().await;
    for (n, (stored, (_, row))) in stored.iter().zip(&written(&delivery).await).enumerate() {
        assert!(body_of(&delivery, stored).await == *row, "{n}");
    }
    assert_eq!((stored.len(), objects(&delivery).await.len()), (12, 2));
}

#[tokio::test]
async fn largest_message_of_the_stream_is_the_threshold() {
    let delivery = Delivery::configured("publish: {on_oversize: object_store}").await;
    let jetstream = delivery.world.nats.jetstream().await;
    let stream = jetstream.get_stream("OUTBOX").await.expect("the stream");
    let mut config = stream.cached_info().config.clone();
    config.max_message_size = 5000;
    jetstream.update_stream(&config).await.expect("edited");
    let _outjet = delivery.run();
    let sql = "SELECT outbox.emit('order', '1', 'x', to_jsonb(repeat('x', n)))
        FROM unnest(ARRAY[3000, 5000, 3000]) AS n";
    delivery.session.run(sql).await;
    delivery.verdict().await.assert_exact();
    let stored = delivery.stored().await;
    let referring = stored.iter().map(|s| s.header("ce-dataref").is_some());
    assert_eq!(referring.collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(body_of(&delivery, &stored[1]).await.len(), 5002);
}

/// One large row among small ones, each time another.
fn transaction(number: usize) -> String {
    format!(
        "BEGIN;
         SELECT outbox.emit('order', n::text, 'small') FROM generate_series(1, 3) AS n;
         SELECT outbox.emit('order', '4', 'large',
           payload_raw => convert_to(repeat('{}', 300000), 'UTF8'));
         SELECT outbox.emit('order', n::text, 'small') FROM generate_series(5, 7) AS n;
         COMMIT",
        char::from(b'a' + u8::try_from(number % 26).expect("a letter"))
    )
}

#[tokio::test]
async fn killed_between_the_body_and_its_reference_each_stands_there_once_and_whole() {
    let mut delivery = ready(CONFIG).await;
    let points = ["body_in_part", "body_stored", "published", "settled"];
    let mut transactions = 0;
    for (round, point) in [points, points].concat().into_iter().enumerate() {
        for _ in 0..4 {
            delivery.session.run(&transaction(transactions)).await;
            transactions += 1;
        }
        die_at(&delivery, point, 1 + 2 * (round / 4) as u64).await;
        if round % 3 == 2 {
            // What was confirmed since the last checkpoint is sent again.
            delivery.world.postgres.restart(Stop::Immediate).await;
            delivery.session = delivery.world.postgres.connect().await;
        }
    }
    let _outjet = delivery.run();
    delivery.verdict().await.assert_exact();
    let mut names = Vec::new();
    for stored in delivery.stored().await {
        if let Some(reference) = stored.header("ce-dataref") {
            assert_eq!(body_of(&delivery, &stored).await.len(), 300_000);
            names.push(reference.replace(&format!("nats-object://{BUCKET}/"), ""));
        }
    }
    assert_eq!(names.len(), transactions);
    let mut objects = objects(&delivery).await;
    objects.sort();
    names.sort();
    assert_eq!(objects, names);
}

#[tokio::test]
async fn event_that_goes_out_again_names_the_object_that_is_there() {
    let delivery = ready(CONFIG).await;
    let _outjet = delivery.run();
    delivery.session.run(&transaction(0)).await;
    delivery.confirmed().await;
    let there = objects(&delivery).await;
    let replay = delivery.outjet(["replay", "--all"]).output().await;
    assert_eq!(replay.code, Some(0), "{replay:?}");
    delivery.confirmed().await;
    let stored = delivery.stored().await;
    let references: Vec<_> = stored
        .iter()
        .filter_map(|s| s.header("ce-dataref"))
        .collect();
    assert_eq!((stored.len(), references.len()), (14, 2));
    assert_eq!(references[0], references[1]);
    assert_eq!((objects(&delivery).await, there.len()), (there, 1));
}

#[tokio::test]
async fn object_that_a_consumer_has_deleted_is_there_again_when_its_event_is_replayed() {
    let delivery = ready(CONFIG).await;
    let _outjet = delivery.run();
    delivery.session.run(&transaction(0)).await;
    delivery.confirmed().await;
    let [name] = &objects(&delivery).await[..] else {
        panic!("one object");
    };
    let jetstream = delivery.world.nats.jetstream().await;
    let bucket = jetstream.get_object_store(BUCKET).await.expect("a bucket");
    bucket.delete(name).await.expect("deleted");
    let replay = delivery.outjet(["replay", "--all"]).output().await;
    assert_eq!(replay.code, Some(0), "{replay:?}");
    delivery.confirmed().await;
    let stored = delivery.stored().await;
    let last = stored.iter().rfind(|s| s.header("ce-dataref").is_some());
    let body = body_of(&delivery, last.expect("a reference")).await;
    assert_eq!(body.len(), 300_000);
}

#[tokio::test]
async fn replayed_event_renews_its_object_where_objects_vanish_after_a_time() {
    let delivery = ready("publish: {on_oversize: object_store, claim_check: {max_age: 1h}}").await;
    let _outjet = delivery.run();
    delivery.session.run(&transaction(0)).await;
    delivery.confirmed().await;
    let jetstream = delivery.world.nats.jetstream().await;
    let state = async || {
        let stream = jetstream.get_stream(format!("OBJ_{BUCKET}")).await;
        stream.expect("a bucket").cached_info().state.clone()
    };
    let before = state().await;
    let replay = delivery.outjet(["replay", "--all"]).output().await;
    assert_eq!(replay.code, Some(0), "{replay:?}");
    delivery.confirmed().await;
    let after = state().await;
    assert_eq!(after.messages, before.messages, "the object is there once");
    assert!(
        after.first_sequence > before.last_sequence,
        "none of it is old"
    );
    let stored = delivery.stored().await;
    for stored in stored.iter().filter(|s| s.header("ce-dataref").is_some()) {
        assert_eq!(body_of(&delivery, stored).await.len(), 300_000);
    }
}

#[tokio::test]
async fn dead_letter_that_was_too_large_is_published_by_a_retry_through_the_bucket() {
    let mut delivery = ready("").await;
    let mut before = delivery.run();
    delivery.session.run(&transaction(0)).await;
    delivery.confirmed().await;
    assert_eq!(before.terminate(SOON).await, Some(0));
    assert_eq!(delivery.count().await, 6, "the default has not changed");
    delivery.configure(CONFIG);
    let _outjet = delivery.run();
    let retry = delivery.outjet(["dead-letters", "retry", "--all"]);
    let retry = retry.output().await;
    assert_eq!(retry.stdout, "retried  dead letter 1\n", "{retry:?}");
    let stored = delivery.stored().await;
    assert_eq!(body_of(&delivery, &stored[6]).await.len(), 300_000);
}

#[tokio::test]
async fn transaction_that_appears_at_once_has_its_large_bodies_in_the_bucket_before() {
    let yaml = CONFIG.replace("in_flight_max: 64", "transactions: atomic");
    let delivery = on(Nats::builder().version(BATCHING), &yaml).await;
    for number in 0..3 {
        delivery.session.run(&transaction(number)).await;
    }
    die_at(&delivery, "published_in_part", 4).await;
    assert_eq!(delivery.count().await, 0);
    assert_eq!(objects(&delivery).await.len(), 1);
    let _outjet = delivery.run();
    delivery.verdict().await.assert_exact();
    for stored in delivery.stored().await {
        let large = stored.header("ce-dataref").is_some();
        let bytes = body_of(&delivery, &stored).await.len();
        assert_eq!(bytes, if large { 300_000 } else { 0 });
    }
    assert_eq!(objects(&delivery).await.len(), 3);
}

#[tokio::test]
async fn delayed_event_refers_to_its_body_when_it_is_due() {
    let delivery = on(Nats::builder().version(BATCHING), CONFIG).await;
    let _outjet = delivery.run();
    let sql =
        "SELECT outbox.emit('order', '1', 'later', deliver_at => now() + interval '3 seconds',
        payload_raw => convert_to(repeat('x', 200000), 'UTF8'))";
    delivery.session.run(sql).await;
    let jetstream = delivery.world.nats.jetstream().await;
    let due = until("it is due", SOON, async || {
        let mut kept = drain::messages(&jetstream, "OUTBOX_DELAYED").await;
        kept.retain(|message| message.subject.starts_with("delayed."));
        kept.pop()
            .map_or(Wait::NotYet("not yet".to_owned()), Wait::Ready)
    });
    let due = due.await;
    assert!(due.payload.is_empty());
    assert_eq!(body_of(&delivery, &due).await, vec![b'x'; 200_000]);
}
