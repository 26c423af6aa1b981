//! The stream is rolled back under us: an older copy of the store, a purge, a deletion. What the
//! slot still has is sent again, in order and once; what it has not is told.

use std::time::Duration;

use async_nats::jetstream::stream;
use serde_json::Value;
use tokio::time::Instant;

use crate::harness::nats::Backup;
use crate::harness::postgres::Stop;
use crate::harness::proxy::Mode;
use crate::harness::stage::{QUICK, SOON, STREAM, Stage};
use crate::harness::{Outjet, Verdict, Wait, drain, until};
use crate::sink::more_stored;

/// Nothing is confirmed while a test runs.
const FOR_LONG: &str = "1h";

async fn stage(hold: &str) -> Stage {
    let yaml = QUICK.replace("stream: {", &format!("stream: {{hold: {hold}, "));
    assert!(yaml.contains(hold));
    Stage::on(crate::harness::Nats::builder(), &yaml).await
}

/// Stops the server for it, so that all is on disk.
async fn back_up(stage: &mut Stage) -> Backup {
    stage.world.nats.stop().await;
    let backup = stage.world.nats.back_up();
    stage.world.nats.start_again().await;
    backup
}

async fn put_back(stage: &mut Stage, backup: Backup) {
    stage.world.nats.stop().await;
    stage.world.nats.put_back(backup);
    stage.world.nats.start_again().await;
}

/// All that was committed has been stored; then outjet stops, so that nothing more can come.
async fn verdict(stage: &Stage, mut outjet: Outjet) -> Verdict {
    let committed = stage.judge.committed().await;
    let last = committed.last().expect("something was committed").clone();
    // Some have 20 000 before it, which a debug build on busy cores stores in more than a minute.
    until("the last event is stored", SOON * 3, async || {
        let stream = stage.stream().await;
        let newest = stream.cached_info().state.last_sequence;
        let message = stream.get_raw_message(newest).await;
        let headers = message.as_ref().map(|message| &message.headers).ok();
        let id = headers.and_then(|headers| headers.get("Nats-Msg-Id"));
        Wait::ready_if(id.is_some_and(|id| id.as_str().ends_with(&last)), newest)
    })
    .await;
    let code = outjet.terminate(SOON).await;
    assert_eq!(code, Some(0));
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let altered = drain::altered(&stage.session, "outbox.events", &stored).await;
    assert_eq!(altered, Vec::<String>::new());
    let ids: Vec<String> = stored.iter().map(drain::Stored::row_id).collect();
    stage.judge.verdict(&ids).await
}

/// How many confirmed events outjet says are lost.
fn gap(outjet: &Outjet) -> u64 {
    let gaps = outjet
        .log()
        .into_iter()
        .filter(|line| line["level"] == "ERROR");
    let events = gaps.filter_map(|line| line["events"].as_u64());
    events.sum()
}

async fn until_gap(outjet: &mut Outjet) -> Value {
    let message = "gap: stream \"OUTBOX\" lacks events that were confirmed to Postgres";
    let line = outjet.logged(message, SOON).await;
    let fix = line["fix"].as_str().expect("a fix");
    assert!(fix.contains("outjet verify"), "{fix}");
    line
}

async fn is_confirmed(stage: &Stage) -> bool {
    let sql = "SELECT confirmed_flush_lsn >= pg_current_wal_insert_lsn() \
               FROM pg_replication_slots WHERE slot_name = 'outjet'";
    stage.session.text(sql).await == "t"
}

#[tokio::test]
async fn older_copy_of_the_stream_gets_back_exactly_what_it_lacks() {
    let mut stage = stage(FOR_LONG).await;
    let outjet = stage.lead().await;
    let writers = stage.write(2).await;
    more_stored(&stage, 50).await;
    let backup = back_up(&mut stage).await;
    more_stored(&stage, 100).await;
    put_back(&mut stage, backup).await;
    more_stored(&stage, 50).await;
    writers.finish().await;
    assert_eq!(gap(&outjet), 0);
    let verdict = verdict(&stage, outjet).await;
    assert!(verdict.committed > 200, "{verdict}");
    verdict.assert_exact();
}

#[tokio::test]
async fn what_is_held_is_confirmed_though_something_is_always_under_way() {
    let stage = stage("200ms").await;
    let slot = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'outjet'";
    let start = stage.session.text(slot).await;
    let transactions = "DO $$ BEGIN FOR n IN 1..20000 LOOP
        INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
        VALUES ('order', n, 'created', '{}');
        COMMIT;
    END LOOP; END $$";
    stage.session.run(transactions).await;
    stage.proxy.set(Mode::Delay(Duration::from_millis(20)));
    let outjet = stage.lead().await;
    let confirmed = format!("SELECT ({slot}) > '{start}'");
    stage.session.until_text(&confirmed, "t", SOON).await;
    assert!(stage.last_sequence().await < 20_000, "it was over too soon");
    stage.proxy.set(Mode::Forward);
    verdict(&stage, outjet).await.assert_exact();
}

#[tokio::test]
async fn older_copy_of_the_stream_without_hold_is_told_as_a_gap() {
    let mut stage = stage("0s").await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=20).await;
    stage.confirmed().await;
    let backup = back_up(&mut stage).await;
    stage.commit(21..=50).await;
    stage.confirmed().await;
    put_back(&mut stage, backup).await;
    let line = until_gap(&mut outjet).await;
    assert_eq!(line["events"], 30, "{line}");
    stage.commit(51..=60).await;
    let verdict = verdict(&stage, outjet).await;
    assert_eq!(
        (verdict.missing.len(), verdict.stored),
        (30, 30),
        "{verdict}"
    );
    assert!(
        verdict.duplicated.is_empty() && verdict.out_of_order.is_empty(),
        "{verdict}"
    );
}

#[tokio::test]
async fn older_copy_under_load_without_hold_loses_no_more_than_is_told() {
    let mut stage = stage("0s").await;
    let mut outjet = stage.lead().await;
    let writers = stage.write(2).await;
    more_stored(&stage, 50).await;
    let backup = back_up(&mut stage).await;
    more_stored(&stage, 100).await;
    // What is only stored, and not confirmed, would be no gap.
    stage.confirmed().await;
    put_back(&mut stage, backup).await;
    until_gap(&mut outjet).await;
    more_stored(&stage, 50).await;
    writers.finish().await;
    let told = gap(&outjet);
    let verdict = verdict(&stage, outjet).await;
    assert!(
        verdict.missing.len() as u64 <= told,
        "{told} told, {verdict}"
    );
    assert!(
        verdict.duplicated.is_empty() && verdict.out_of_order.is_empty(),
        "{verdict}"
    );
}

/// Deletes the stream and makes it again, as empty as it was once.
async fn recreate(stage: &Stage) {
    let jetstream = stage.jetstream().await;
    let config = stage.stream().await.cached_info().config.clone();
    jetstream.delete_stream(STREAM).await.expect("deleted");
    let made = jetstream.create_stream(stream::Config { ..config }).await;
    made.expect("made again");
}

#[tokio::test]
async fn stream_made_again_under_load_gets_back_what_is_held() {
    let stage = stage(FOR_LONG).await;
    let outjet = stage.lead().await;
    let writers = stage.write(2).await;
    more_stored(&stage, 50).await;
    recreate(&stage).await;
    more_stored(&stage, 50).await;
    writers.finish().await;
    assert_eq!(gap(&outjet), 0);
    verdict(&stage, outjet).await.assert_exact();
}

#[tokio::test]
async fn stream_made_again_is_noticed_by_an_idle_leader() {
    let stage = stage("0s").await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=20).await;
    stage.confirmed().await;
    recreate(&stage).await;
    let line = until_gap(&mut outjet).await;
    assert_eq!(line["events"], 20, "{line}");
    stage.commit(21..=25).await;
    let verdict = verdict(&stage, outjet).await;
    assert_eq!(
        (verdict.missing.len(), verdict.stored),
        (20, 5),
        "{verdict}"
    );
}

#[tokio::test]
async fn stream_made_again_is_filled_by_an_idle_leader_that_holds() {
    let stage = stage(FOR_LONG).await;
    let outjet = stage.lead().await;
    stage.commit(1..=20).await;
    stage.until_sequence(20).await;
    recreate(&stage).await;
    stage.until_sequence(20).await;
    assert_eq!(gap(&outjet), 0);
    verdict(&stage, outjet).await.assert_exact();
}

#[tokio::test]
async fn what_somebody_purges_under_load_is_not_sent_again() {
    let stage = stage(FOR_LONG).await;
    let outjet = stage.lead().await;
    let writers = stage.write(2).await;
    more_stored(&stage, 50).await;
    stage.stream().await.purge().await.expect("purged");
    let purged = stage.stream().await.cached_info().state.first_sequence - 1;
    more_stored(&stage, 50).await;
    let events = writers.finish().await;
    let told = gap(&outjet);
    let verdict = verdict(&stage, outjet).await;
    let missing = verdict.missing.len() as u64;
    assert!(
        (50..=purged).contains(&missing),
        "{purged} purged, {verdict}"
    );
    assert_eq!(
        (verdict.stored as u64 + missing, told),
        (events, 0),
        "{verdict}"
    );
    assert!(
        verdict.duplicated.is_empty() && verdict.out_of_order.is_empty(),
        "{verdict}"
    );
}

#[tokio::test]
async fn dead_letters_made_again_get_back_what_is_held() {
    let stage = stage(FOR_LONG).await;
    let outjet = stage.lead().await;
    let letters = "OUTBOX_DLQ";
    let insert = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload, headers) \
                  VALUES ('order', '1', 'created', '1', '{\"bad name\": \"x\"}')";
    stage.session.run(insert).await;
    let jetstream = stage.jetstream().await;
    drain::until_stored(&jetstream, letters, 1, SOON).await;
    let config = jetstream
        .get_stream(letters)
        .await
        .expect("letters")
        .cached_info()
        .config
        .clone();
    jetstream.delete_stream(letters).await.expect("deleted");
    jetstream.create_stream(config).await.expect("made again");
    drain::until_stored(&jetstream, letters, 1, SOON).await;
    drop(outjet);
}

#[tokio::test]
async fn event_is_confirmed_once_it_has_been_held() {
    let hold = Duration::from_secs(3);
    let stage = stage("3s").await;
    let _outjet = stage.lead().await;
    let begun = Instant::now();
    stage.commit(1..=100).await;
    stage.confirmed().await;
    assert!(
        begun.elapsed() >= hold,
        "confirmed after {:?}",
        begun.elapsed()
    );
    // Idle again: keepalives are confirmed at once, whatever else is written.
    stage
        .session
        .run("CREATE TABLE other AS SELECT 1 AS n")
        .await;
    stage.confirmed().await;
}

#[tokio::test]
async fn what_a_new_leader_finds_stored_is_held_by_its_age_in_the_stream() {
    let mut stage = stage(FOR_LONG).await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=20).await;
    stage.until_sequence(20).await;
    outjet.kill().await;
    // Too young: it is skipped, and not confirmed with that.
    let mut outjet = stage.lead().await;
    stage.commit(21..=22).await;
    stage.until_sequence(22).await;
    assert!(!is_confirmed(&stage).await);
    outjet.kill().await;
    // Old enough from the first moment on.
    let messages = drain::messages(&stage.jetstream().await, STREAM).await;
    let stored_at = messages.last().expect("22 events").stored_at;
    until("the last event is two seconds old", SOON, async || {
        let age = time::OffsetDateTime::now_utc() - stored_at;
        Wait::ready_if(age > time::Duration::seconds(2), age)
    })
    .await;
    stage.configure(&QUICK.replace("stream: {", "stream: {hold: 1500ms, "));
    let _outjet = stage.lead().await;
    stage.confirmed().await;
    assert_eq!(stage.last_sequence().await, 22);
}

#[tokio::test]
async fn stop_does_not_wait_for_what_is_held() {
    let stage = stage(FOR_LONG).await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=20).await;
    stage.until_sequence(20).await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    assert!(!is_confirmed(&stage).await);
    let outjet = stage.lead().await;
    stage.commit(21..=30).await;
    verdict(&stage, outjet).await.assert_exact();
}

#[tokio::test]
async fn fast_stop_of_postgres_does_not_wait_for_what_is_held() {
    let mut stage = stage(FOR_LONG).await;
    let mut outjet = stage.lead().await;
    // Until something is confirmed, the server is content with what was received.
    stage
        .session
        .run("CREATE TABLE other AS SELECT 1 AS n")
        .await;
    stage.confirmed().await;
    stage.commit(1..=20).await;
    stage.until_sequence(20).await;
    // Within the harness's limit for a stop.
    stage.world.postgres.restart(Stop::Fast).await;
    let waits = |line: &Value| {
        line["message"]
            .as_str()
            .is_some_and(|m| m.contains("waits for"))
    };
    assert!(outjet.log().iter().any(waits), "it gave the slot up");
    outjet.logged("recovered", SOON).await;
    stage.session = stage.world.postgres.connect().await;
    stage.commit(21..=30).await;
    stage.until_sequence(30).await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    assert_eq!(stage.last_sequence().await, 30);
}
