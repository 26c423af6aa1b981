//! What other writers may do to us, and what outjet then says or leaves alone.

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;

use super::strict::assert_late_at_most;
use super::{Elsewhere, SHARED, stored_through, widen};
use crate::harness::drain::{self, Stored};
use crate::harness::nats::BATCHING;
use crate::harness::stage::{SOON, Stage};
use crate::harness::{Nats, Wait, until};

fn id(message: &Stored) -> &str {
    message.id().expect("an id")
}

/// A stranger's message bears an id that an event gets afterwards. The server calls the event a
/// duplicate, and it is none.
#[tokio::test]
async fn event_whose_id_another_writer_has_used_is_stored_all_the_same() {
    let stage = Stage::on(Nats::builder(), SHARED).await;
    let _outjet = stage.lead().await;
    stage.commit(1..=5).await;
    let used = "763d1194-f10d-47c8-bb05-46e09074c682";
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", used);
    let jetstream = stage.jetstream().await;
    let sent = jetstream.publish_with_headers("events.stranger", headers, "stray".into());
    sent.await.expect("sent").await.expect("stored");
    let insert = format!(
        "INSERT INTO outbox.events (id, aggregatetype, aggregateid, type, payload)
         VALUES ('{used}', 'order', '1', 'created', '{{}}')"
    );
    stage.session.run(&insert).await;
    stage.commit(6..=10).await;
    assert_late_at_most(&stage, 5).await;
    let stored = stored_through(&stage, "outjet").await;
    let renamed = stored.iter().filter(|m| m.header("Outjet-Id").is_some());
    assert_eq!(renamed.map(id).collect::<Vec<_>>(), [used]);
}

/// The end of the stream is full of others, as it always may be.
#[tokio::test]
async fn slot_that_is_missing_beside_our_events_in_a_shared_stream_halts() {
    let stage = Stage::on(Nats::builder(), SHARED).await;
    widen(&stage).await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.confirmed().await;
    outjet.terminate(SOON).await;
    let jetstream = stage.jetstream().await;
    for _ in 0..50 {
        let sent = jetstream.publish("audit.stranger", "stray".into()).await;
        sent.expect("sent").await.expect("stored");
    }
    stage.drop_slot("outjet").await;
    let mut outjet = stage
        .outjet(["run", "--setup", "--log-format", "json"])
        .spawn();
    let halted = "halted: slot outjet is missing, but stream OUTBOX holds events from it";
    outjet.logged(halted, SOON).await;
}

/// Another outjet has stored an event with the id of one of our rows: that row is not there.
#[tokio::test]
async fn rows_that_only_another_outjet_has_stored_are_missing_and_recovered() {
    let stage = Stage::on(Nats::builder(), SHARED).await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.confirmed().await;
    outjet.terminate(SOON).await;
    stage.drop_slot("outjet").await;
    stage.commit(6..=10).await;
    let newest = "SELECT id::text FROM outbox.events ORDER BY created_at DESC LIMIT 1";
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Outjet-Source", "7000000000000000001/1/billing");
    headers.insert("Outjet-Position", "00000000FFFFFFFF-00000000");
    headers.insert("Outjet-Id", stage.session.text(newest).await);
    let jetstream = stage.jetstream().await;
    let sent = jetstream.publish_with_headers("events.other", headers, "{}".into());
    sent.await.expect("sent").await.expect("stored");
    let output = stage.outjet(["recover"]).output().await;
    assert!(output.stdout.contains("appended  5 events"), "{output:?}");
    let _outjet = stage.lead().await;
    stage.commit(11..=15).await;
    // Rows of one moment come back in the order of their ids.
    assert_late_at_most(&stage, 5).await;
    let output = stage.outjet(["verify"]).output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
}

/// What is looked for in the stream is looked for under our subjects.
#[tokio::test]
async fn subject_that_is_not_among_ours_halts_although_the_shared_stream_takes_it() {
    let stage = Stage::on(Nats::builder(), SHARED).await;
    widen(&stage).await;
    let mut outjet = stage.lead().await;
    stage
        .session
        .text("SELECT outbox.emit('a', '1', 'b', '{}', topic => 'audit.x')")
        .await;
    let halted = "halted: stream \"OUTBOX\" does not cover subject \"audit.x\"";
    let halted = outjet.logged(halted, SOON).await;
    let fix = halted["fix"].as_str().expect("a fix");
    assert!(fix.contains("add \"audit.x\" to stream.subjects"), "{fix}");
    assert!(
        !fix.contains("--subjects"),
        "it would take the others' away: {fix}"
    );
}

/// Nothing but the ids would keep it from being stored twice.
#[tokio::test]
async fn short_memory_of_a_shared_stream_is_warned_of() {
    let stage = Stage::on(Nats::builder(), SHARED).await;
    let output = stage.outjet(["check"]).output().await;
    assert!(!output.stdout.contains("duplicate window"), "{output:?}");
    let config = Config {
        duplicate_window: std::time::Duration::from_secs(59),
        ..stage.stream().await.cached_info().config.clone()
    };
    let jetstream: jetstream::Context = stage.jetstream().await;
    jetstream.update_stream(config).await.expect("edited");
    let output = stage.outjet(["check"]).output().await;
    assert!(
        output
            .stdout
            .contains("duplicate window of less than a minute"),
        "{output:?}"
    );
}

/// Both kept in one stream of what is delayed, and both dead letters in one of those.
#[tokio::test]
async fn delayed_events_and_dead_letters_of_two_outjets_arrive_once_each() {
    let batching = Nats::builder().version(BATCHING);
    let stage = Stage::on(batching, SHARED).await;
    let _ours = stage.lead().await;
    let elsewhere = Elsewhere::start(&stage).await;
    let emit = "SELECT outbox.emit('order', n::text, 'created', '{}',
                deliver_at => now() + interval '2 seconds') FROM generate_series(1, 5) AS n";
    let large = "SELECT outbox.emit('order', n::text, 'large',
                 payload_raw => convert_to(repeat('x', 1100000), 'UTF8'))
                 FROM generate_series(1, 3) AS n";
    for _ in 0..3 {
        for sql in [emit, large] {
            stage.session.run(sql).await;
            elsewhere.session.run(sql).await;
        }
    }
    stage.commit(1..=5).await;
    stage.confirmed().await;
    assert_eq!(stored_through(&stage, "outjet").await.len(), 5);
    let jetstream = stage.jetstream().await;
    until("all are due", SOON, async || {
        let mut kept = drain::messages(&jetstream, "OUTBOX_DELAYED").await;
        kept.retain(|message| message.subject.starts_with("delayed."));
        Wait::ready_if(kept.len() >= 30, kept.len())
    })
    .await;
    until("all are dead letters", SOON, async || {
        let letters = drain::messages(&jetstream, "OUTBOX_DLQ").await;
        Wait::ready_if(letters.len() >= 18, letters.len())
    })
    .await;
    for (stream, events) in [("OUTBOX_DELAYED", 30), ("OUTBOX_DLQ", 18)] {
        let mut stored = drain::messages(&jetstream, stream).await;
        stored.retain(|message| !message.subject.starts_with("_outjet."));
        let mut ids: Vec<&str> = stored.iter().map(id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((ids.len(), stored.len()), (events, events), "{stream}");
    }
}
