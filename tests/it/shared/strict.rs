//! A server that refuses an event and takes later ones: those of one window may stand before it,
//! and none does where only one is under way.

use std::collections::HashMap;

use async_nats::jetstream;

use super::{SHARED, assert_ours_exact, stored_through};
use crate::harness::drain::Stored;
use crate::harness::stage::{SOON, STREAM, Stage};
use crate::harness::{Nats, Verdict, Wait, until};

/// What fills the stream: room for some dozen events each.
const STRAY_BYTES: usize = 64 * 1024;

const EVENTS: usize = 500;

fn full(in_flight_max: usize) -> String {
    let stream = "stream: {max_bytes: 2MiB, ";
    let window = format!("publish: {{in_flight_max: {in_flight_max}, ");
    SHARED
        .replace("stream: {", stream)
        .replace("publish: {", &window)
}

/// A stranger publishes until the stream is full; returns what it has stored.
async fn fill(jetstream: &jetstream::Context) -> Vec<u64> {
    let mut stored = Vec::new();
    loop {
        let stray = jetstream.publish("events.stranger", vec![b'x'; STRAY_BYTES].into());
        match stray.await.expect("sent").await {
            Ok(ack) => stored.push(ack.sequence),
            Err(refused) => {
                assert!(refused.to_string().contains("maximum bytes"), "{refused}");
                return stored;
            }
        }
    }
}

/// Each of ours stands there once, behind so many at most that it should stand before.
pub(super) async fn assert_late_at_most(stage: &Stage, window: usize) {
    stage.confirmed().await;
    let stored = stored_through(stage, "outjet").await;
    let id = |message: &Stored| message.id().expect("an id").to_owned();
    let ids: Vec<String> = stored.iter().map(id).collect();
    let committed = stage.judge.committed().await;
    assert_each_late_at_most(&committed, &ids, window);
}

/// The same of what was read.
pub(crate) fn assert_each_late_at_most(committed: &[String], ids: &[String], window: usize) {
    let verdict = Verdict::of(committed, ids);
    eprintln!("{verdict}");
    let each_once = Verdict {
        out_of_order: Vec::new(),
        ..verdict
    };
    each_once.assert_exact();
    let places = committed.iter().enumerate();
    let due: HashMap<&String, usize> = places.map(|(place, id)| (id, place)).collect();
    for (place, id) in ids.iter().enumerate() {
        let late = place.saturating_sub(due[id]);
        assert!(late <= window, "{id} is {late} events late");
    }
}

/// Large events and small ones come into a full stream, in which room is made bit by bit: a large
/// one is refused where a small one behind it is not.
async fn through_a_full_stream(in_flight_max: usize) -> Stage {
    let stage = Stage::on(Nats::builder(), &full(in_flight_max)).await;
    let jetstream = stage.jetstream().await;
    let strangers = fill(&jetstream).await;
    assert!(strangers.len() > 25, "{}", strangers.len());
    let outjet = stage.lead().await;
    for _ in 0..EVENTS / 50 {
        stage
            .session
            .run(
                "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
                 SELECT 'order', n::text, 'created', to_jsonb(repeat('x', n % 11 * n % 11 * 300))
                 FROM generate_series(1, 50) AS n",
            )
            .await;
    }
    let stream = jetstream.get_stream(STREAM).await.expect("the stream");
    let ours = async || stored_through(&stage, "outjet").await.len();
    for stray in &strangers[1..] {
        let before = ours().await;
        if before == EVENTS {
            break;
        }
        assert!(stream.delete_message(*stray).await.expect("deleted"));
        until("more events are stored", SOON, async || {
            let stored = ours().await;
            Wait::ready_if(stored > before, stored)
        })
        .await;
    }
    stage.confirmed().await;
    drop(outjet);
    stage
}

#[tokio::test]
async fn refused_event_of_a_shared_stream_is_late_by_one_window_at_most() {
    let stage = through_a_full_stream(64).await;
    assert_late_at_most(&stage, 64).await;
}

#[tokio::test]
async fn one_event_under_way_at_a_time_keeps_the_order_of_a_shared_stream_whatever_is_refused() {
    let stage = through_a_full_stream(1).await;
    assert_ours_exact(&stage).await;
}
