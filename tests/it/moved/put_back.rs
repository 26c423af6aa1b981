//! A copy of the data directory is put back, on the same timeline: the server knows nothing of what
//! it has confirmed since, and writes other rows at the same positions.

use super::{commit_each, numbers, published, types, until_free};
use crate::harness::Stop;
use crate::harness::drain;
use crate::harness::stage::{SOON, STREAM, Stage};

/// Events 1 to 10 are in the copy that is put back, 11 to 20 were published since.
async fn put_back() -> Stage {
    let mut stage = published().await;
    stage.world.postgres.stop(Stop::Fast).await;
    stage.world.postgres.save();
    stage.world.postgres.start_again().await;
    stage.session = stage.world.postgres.connect().await;
    let mut outjet = stage.lead().await;
    commit_each(&stage, 11..=20).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    stage.world.postgres.stop(Stop::Fast).await;
    stage.world.postgres.put_back();
    stage.world.postgres.start_again().await;
    stage.session = stage.world.postgres.connect().await;
    until_free(&stage).await;
    stage
}

#[tokio::test]
async fn server_that_was_put_back_halts_and_recover_gets_out_of_it() {
    let stage = put_back().await;
    let mut outjet = stage.run();
    let halted = "halted: the server was put back to an earlier state";
    let line = outjet.logged(halted, SOON).await;
    let fix = line["fix"].as_str().expect("a fix");
    assert!(
        fix.contains("`outjet recover` publishes the rows"),
        "{line}"
    );
    let recovered = types(&stage, "recover").await;
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    let kept = "appended  0 events\nkept      replication slot outjet, ";
    assert!(recovered.stdout.starts_with(kept), "{recovered:?}");
    outjet.logged("leading", SOON).await;
    // Some of them at positions of events that were published before.
    commit_each(&stage, 21..=60).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, (1..=60).collect::<Vec<_>>());
}

#[tokio::test]
async fn rows_at_the_positions_of_others_that_were_published_are_published() {
    let stage = put_back().await;
    let confirmed = record(&stage).await;
    commit_each(&stage, 21..=22).await;
    let passed = format!("SELECT pg_current_wal_flush_lsn() > '{confirmed}'");
    let mut number = 22;
    while stage.session.text(&passed).await == "f" {
        number += 1;
        commit_each(&stage, number..=number).await;
    }
    let mut outjet = stage.lead().await;
    commit_each(&stage, number + 1..=number + 5).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, (1..=number + 5).collect::<Vec<_>>());
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    let ids = drain::ids(&stage.jetstream().await, STREAM).await;
    assert_eq!(ids.len(), number as usize + 5);
}

/// What the record says was confirmed.
async fn record(stage: &Stage) -> String {
    let bucket = stage.jetstream().await.get_stream("KV_OUTJET_OUTBOX").await;
    let bucket = bucket.expect("a bucket");
    let kept = bucket.get_last_raw_message_by_subject("$KV.OUTJET_OUTBOX.outjet");
    let kept = kept.await.expect("a record").payload;
    let record: serde_json::Value = serde_json::from_slice(&kept).expect("JSON");
    record["confirmed"].as_str().expect("a position").to_owned()
}
