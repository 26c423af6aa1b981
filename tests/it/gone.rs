//! The slot is gone, and something tells that there was one: then nobody makes another in silence,
//! because what was committed in between is in no slot.

use crate::harness::outjet::Output;
use crate::harness::stage::{SOON, Stage};

async fn types(stage: &Stage, typed: &str) -> Output {
    stage.outjet(typed.split(' ')).output().await
}

/// Commits events one by one, so that their order in the table is that of their commits.
async fn commit_each(stage: &Stage, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        stage.commit(number..=number).await;
    }
}

/// How many slots feed an outjet.
async fn slots(stage: &Stage) -> String {
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'outjet%'";
    stage.session.text(sql).await
}

/// A stage on which this was published, by a leader that has ended.
async fn published(numbers: std::ops::RangeInclusive<u32>) -> Stage {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(numbers).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    stage
}

/// None of the ways to make a slot makes one; each points to `outjet recover`.
async fn assert_refused(stage: &Stage, says: &str) {
    for typed in ["setup", "setup --dry-run", "run --setup --exit-on-halt"] {
        let refused = types(stage, typed).await;
        assert_ne!(refused.code, Some(0), "{typed}: {refused:?}");
        assert!(refused.stderr.contains(says), "{typed}: {refused:?}");
        let fix = refused.stderr.contains("`outjet recover`");
        assert!(fix, "{typed}: {refused:?}");
    }
    let checked = types(stage, "check").await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.stdout.contains(says), "{checked:?}");
    assert!(checked.stdout.contains("`outjet recover`"), "{checked:?}");
    for proposal in ["`outjet setup`", "pg_create_logical_replication_slot"] {
        assert!(!checked.stdout.contains(proposal), "{checked:?}");
    }
    assert_eq!(slots(stage).await, "0");
}

async fn recovers(stage: &Stage, typed: &str, events: u32) {
    let recovered = types(stage, typed).await;
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    let appended = format!("appended  {events} events\n");
    assert!(recovered.stdout.contains(&appended), "{recovered:?}");
    // There is nothing left to be set up.
    let again = types(stage, "setup").await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stdout.contains("exists   replication slot outjet\n"));
}

#[tokio::test]
async fn no_slot_is_made_where_the_stream_holds_its_events() {
    let stage = published(1..=5).await;
    stage.drop_slot("outjet").await;
    commit_each(&stage, 6..=8).await;
    assert_refused(
        &stage,
        "slot outjet is missing, but stream OUTBOX holds events from it",
    )
    .await;
    recovers(&stage, "recover", 3).await;
    let _outjet = stage.lead().await;
    stage.commit(9..=10).await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn no_slot_is_made_where_the_record_alone_shows_that_there_was_one() {
    let stage = published(1..=5).await;
    stage.stream().await.purge().await.expect("purged");
    stage.drop_slot("outjet").await;
    let cut = stage.session.text("SELECT clock_timestamp()").await;
    commit_each(&stage, 6..=8).await;
    assert_refused(
        &stage,
        "slot outjet is missing, but the record beside stream OUTBOX shows that it was in use",
    )
    .await;
    // The run that is no setup, too.
    let halted = types(&stage, "run --exit-on-halt").await;
    assert!(halted.stderr.contains("`outjet recover`"), "{halted:?}");
    let recover = stage.outjet(["recover", "--since", &cut]).output().await;
    assert!(
        recover.stdout.contains("appended  3 events\n"),
        "{recover:?}"
    );
}

#[tokio::test]
async fn no_slot_is_made_or_proposed_while_nobody_can_tell_whether_there_was_one() {
    let mut stage = published(1..=5).await;
    stage.drop_slot("outjet").await;
    stage.world.nats.stop().await;
    let refused = types(&stage, "setup").await;
    assert_eq!(refused.code, Some(69), "{refused:?}");
    assert_eq!(slots(&stage).await, "0");
    let checked = types(&stage, "check").await;
    let halted = types(&stage, "run --exit-on-halt").await;
    let unknown = "whether it has fed the stream before is not known: ";
    for said in [checked.stdout, halted.stderr] {
        assert!(said.contains(unknown), "{said}");
        let proposes = said.contains("pg_create_logical_replication_slot");
        assert!(!proposes, "{said}");
    }
}

#[tokio::test]
async fn drop_removes_the_record_and_what_follows_it_is_recover() {
    let stage = published(1..=5).await;
    let dropped = types(&stage, "drop --yes").await;
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    let record = "dropped  record of slot outjet in bucket OUTJET_OUTBOX\n";
    assert!(dropped.stdout.ends_with(record), "{dropped:?}");
    let again = types(&stage, "drop --yes").await;
    let record = "absent   record of slot outjet in bucket OUTJET_OUTBOX\n";
    assert!(again.stdout.ends_with(record), "{again:?}");
    commit_each(&stage, 6..=8).await;
    let refused = types(&stage, "setup").await;
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.stderr.contains("`outjet recover`"), "{refused:?}");
    recovers(&stage, "recover", 3).await;
    let _outjet = stage.lead().await;
    stage.commit(9..=10).await;
    // The judge's own slot goes on; its publication is of another name.
    stage.assert_exact().await;
}

#[tokio::test]
async fn drop_without_nats_drops_the_slot_and_says_what_it_left() {
    let mut stage = published(1..=5).await;
    stage.world.nats.process().pause().await;
    let dropped = types(&stage, "drop --yes").await;
    stage.world.nats.process().resume();
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    assert_eq!(slots(&stage).await, "0");
    let kept = "kept     record of slot outjet, if there is one: ";
    assert!(dropped.stdout.contains(kept), "{dropped:?}");
    let again = types(&stage, "drop --yes").await;
    assert!(again.stdout.contains("dropped  record of "), "{again:?}");
}
