//! What a term finds changed in Postgres: it halts where rows may be missing, with the size of the
//! gap and the fix, and goes on where none is.

use crate::harness::stage::{SOON, Stage};
use crate::harness::{Wait, until};

/// What `run` halts with, and that nothing was stored by it.
async fn halts(stage: &Stage) -> String {
    let before = stage.last_sequence().await;
    let output = stage.outjet(["run", "--exit-on-halt"]).output().await;
    assert_eq!(output.code, Some(65), "{output:?}");
    assert_eq!(stage.last_sequence().await, before);
    output.stderr
}

#[tokio::test]
async fn slot_that_is_lost_while_nobody_leads_halts_the_next_term_with_the_gap() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    let limit = "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'";
    stage.session.run(limit).await;
    stage.session.run("SELECT pg_reload_conf()").await;
    stage.commit(6..=10).await;
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'outjet'";
    until("the slot is lost", SOON, async || {
        let write = "SELECT pg_switch_wal(), pg_logical_emit_message(false, 'x', repeat('x', 99))";
        stage.session.run(write).await;
        stage.session.run("CHECKPOINT").await;
        let status = stage.session.text(status).await;
        Wait::ready_if(status == "lost", status)
    })
    .await;
    let told = halts(&stage).await;
    assert!(
        told.contains("replication slot \"outjet\" is lost"),
        "{told}"
    );
    assert!(told.contains("bytes of WAL before"), "{told}");
    assert!(told.contains("fix:   `outjet recover`"), "{told}");
}

#[tokio::test]
async fn slot_of_another_plugin_or_database_is_not_streamed_from() {
    let stage = Stage::ready().await;
    stage.drop_slot("outjet").await;
    let other = "SELECT pg_create_logical_replication_slot('outjet', 'test_decoding')";
    stage.session.run(other).await;
    let told = halts(&stage).await;
    assert!(
        told.contains("its output plugin is test_decoding, not pgoutput"),
        "{told}"
    );
    stage.drop_slot("outjet").await;
    stage.session.run("CREATE DATABASE elsewhere").await;
    let elsewhere = stage.world.postgres.url_as("postgres", "elsewhere");
    let elsewhere = crate::harness::postgres::Session::connect(&elsewhere).await;
    let other = "SELECT pg_create_logical_replication_slot('outjet', 'pgoutput')";
    elsewhere.run(other).await;
    let told = halts(&stage).await;
    assert!(told.contains("belongs to another database"), "{told}");
}

#[tokio::test]
async fn publication_that_was_made_again_before_the_next_row_is_streamed_on() {
    let stage = Stage::ready().await;
    let _outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.session.run("DROP PUBLICATION outjet").await;
    let again = "CREATE PUBLICATION outjet FOR TABLE outbox.events \
                 WITH (publish = 'insert', publish_via_partition_root = true)";
    stage.session.run(again).await;
    stage.commit(6..=10).await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn publication_without_the_table_halts_the_next_term() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    let without = "ALTER PUBLICATION outjet DROP TABLE outbox.events";
    stage.session.run(without).await;
    let told = halts(&stage).await;
    assert!(
        told.contains("ALTER PUBLICATION \"outjet\" ADD TABLE"),
        "{told}"
    );
}

#[tokio::test]
async fn table_that_is_taken_out_of_the_publication_under_a_leader_halts_it() {
    let mut stage = Stage::ready().await;
    stage.configure("postgres: {halt_retry: 1s}");
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    let without = "ALTER PUBLICATION outjet DROP TABLE outbox.events";
    stage.session.run(without).await;
    // Nothing is written: no row could tell.
    let halted = "halted: publication \"outjet\" does not publish outbox.events";
    outjet.logged(halted, SOON).await;
    let with = "ALTER PUBLICATION outjet ADD TABLE outbox.events";
    stage.session.run(with).await;
    stage.commit(6..=10).await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn column_that_gets_another_type_under_a_leader_keeps_its_rows_coming() {
    let stage = Stage::ready().await;
    let _outjet = stage.lead().await;
    stage.commit(1..=5).await;
    // One that none of the indexes and no partition key is made of.
    let change = "ALTER TABLE outbox.events ALTER COLUMN dedup_key TYPE varchar(99)";
    stage.session.run(change).await;
    let change = "ALTER TABLE outbox.events ALTER COLUMN payload TYPE json";
    stage.session.run(change).await;
    stage.commit(6..=10).await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn table_that_was_made_again_halts_the_next_term_until_it_is_published() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    let again = "CREATE TABLE outbox.fresh (LIKE outbox.events INCLUDING ALL) \
                 PARTITION BY RANGE (created_at); \
                 CREATE TABLE outbox.fresh_default PARTITION OF outbox.fresh DEFAULT; \
                 ALTER TABLE outbox.events RENAME TO stale; \
                 ALTER TABLE outbox.fresh RENAME TO events";
    for statement in again.split("; ") {
        stage.session.run(statement).await;
    }
    let told = halts(&stage).await;
    let (_, fix) = told.split_once("ALTER PUBLICATION").expect("a statement");
    let fix = format!(
        "ALTER PUBLICATION{}",
        fix.split(';').next().expect("a statement")
    );
    stage.session.run(&fix).await;
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'events'";
    assert_eq!(stage.session.text(published).await, "1");
    stage
        .session
        .run("ALTER PUBLICATION outjet DROP TABLE outbox.stale")
        .await;
    let _outjet = stage.lead().await;
    stage.commit(6..=10).await;
    stage.until_sequence(10).await;
}
