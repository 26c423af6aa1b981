//! Somebody has moved the slot, or made it again: what was committed in between is in no slot. That
//! is noticed, and `outjet recover` closes the gap, or takes it as it is.

mod house;
mod nats;
mod put_back;
mod upgrade;

use std::ops::RangeInclusive;
use std::os::unix::process::ExitStatusExt;

use crate::harness::outjet::Output;
use crate::harness::process::Signal;
use crate::harness::stage::{QUICK, SOON, STREAM, Stage};
use crate::harness::{Nats, Outjet, Stop, drain};

const MAKE: &str = "SELECT pg_create_logical_replication_slot('outjet', 'pgoutput')";

const HALTED: &str = "halted: slot outjet was moved: events may be missing";

async fn types(stage: &Stage, typed: &str) -> Output {
    stage.outjet(typed.split(' ')).output().await
}

/// Commits events one by one, so that their order in the table is that of their commits.
async fn commit_each(stage: &Stage, numbers: RangeInclusive<u32>) {
    for number in numbers {
        stage.commit(number..=number).await;
    }
}

/// A halt is over as soon as its cause is.
const HALTING: &str = "
postgres: {takeover_after: 3s, halt_retry: 1s}
nats: {connect_timeout: 2s}
stream: {duplicate_window: 100ms}
publish: {ack_timeout: 1s}
";

/// A stage whose events 1 to 10 were published and confirmed by a leader that has ended.
async fn published() -> Stage {
    let yaml = format!("{HALTING}messages: {{prefixes: [outbox]}}\n");
    published_on(Nats::builder(), &yaml).await
}

/// The same on a server and with a configuration of the test.
async fn published_on(nats: crate::harness::nats::Builder, yaml: &str) -> Stage {
    let stage = Stage::on(nats, yaml).await;
    let mut outjet = stage.lead().await;
    commit_each(&stage, 1..=10).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    until_free(&stage).await;
    stage
}

async fn until_free(stage: &Stage) {
    let active = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'outjet' AND active";
    stage.session.until_text(active, "0", SOON).await;
}

/// `outjet run`, which halts: with the gap, and the way to close it.
async fn halts(stage: &Stage) -> Outjet {
    let mut outjet = stage.run();
    told(&mut outjet).await;
    outjet
}

async fn told(outjet: &mut Outjet) {
    let line = outjet.logged(HALTED, SOON).await;
    let cause = line["cause"].as_str().expect("a cause");
    assert!(cause.contains("bytes of WAL was not published"), "{line}");
    let fix = line["fix"].as_str().expect("a fix");
    assert!(fix.starts_with("`outjet recover` publishes"), "{line}");
    assert!(fix.contains("`outjet recover --accept` accepts"), "{line}");
}

/// Closes the gap, after which the copy that has halted goes on; each event is stored once.
async fn assert_closed(stage: &Stage, outjet: &mut Outjet, appended: u32) {
    let recovered = types(stage, "recover").await;
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    let appended = format!("appended  {appended} events\nkept      replication slot outjet, ");
    assert!(recovered.stdout.starts_with(&appended), "{recovered:?}");
    outjet.logged("leading", SOON).await;
    commit_each(stage, 91..=95).await;
    stage.assert_exact().await;
    let again = types(stage, "recover").await;
    assert_eq!(again.stdout, "exists    replication slot outjet\n");
}

#[tokio::test]
async fn slot_that_was_dropped_and_made_again_by_hand_is_noticed_and_recovered() {
    let stage = published().await;
    stage.drop_slot("outjet").await;
    commit_each(&stage, 11..=20).await;
    stage.session.run(MAKE).await;
    commit_each(&stage, 21..=25).await;
    let mut outjet = halts(&stage).await;
    assert_closed(&stage, &mut outjet, 10).await;
}

#[tokio::test]
async fn slot_that_was_advanced_is_noticed_and_what_it_holds_besides_is_not_lost() {
    let stage = published().await;
    commit_each(&stage, 11..=20).await;
    let advance = "SELECT pg_replication_slot_advance('outjet', pg_current_wal_flush_lsn())";
    stage.session.run(advance).await;
    commit_each(&stage, 21..=25).await;
    // No table has these: only the slot does.
    let emit = "SELECT outbox.emit_wal('order', '1', 'created')";
    stage.session.run(emit).await;
    let gone = "WITH gone AS (SELECT id FROM outbox.events ORDER BY created_at DESC LIMIT 1)
                DELETE FROM outbox.events WHERE id = (SELECT id FROM gone)";
    stage.session.run(gone).await;
    let mut outjet = halts(&stage).await;
    let recovered = types(&stage, "recover").await;
    assert!(
        recovered.stdout.starts_with("appended  10 events\nkept"),
        "{recovered:?}"
    );
    outjet.logged("leading", SOON).await;
    stage.confirmed().await;
    let stored = drain::ids(&stage.jetstream().await, STREAM).await;
    stage.judge.verdict(&stored).await.assert_exact();
    assert_eq!(stored.len(), 26);
}

#[tokio::test]
async fn slot_that_somebody_has_read_from_is_noticed_and_recovered() {
    let stage = published().await;
    commit_each(&stage, 11..=20).await;
    let consume = "SELECT count(*) FROM pg_logical_slot_get_binary_changes('outjet', NULL, NULL,
        'proto_version', '1', 'publication_names', 'outjet')";
    stage.session.run(consume).await;
    let mut outjet = halts(&stage).await;
    commit_each(&stage, 21..=25).await;
    assert_closed(&stage, &mut outjet, 10).await;
}

#[tokio::test]
async fn slot_that_was_made_again_under_a_leader_is_noticed_and_recovered() {
    let stage = published().await;
    let mut outjet = stage.lead().await;
    outjet.pause().await;
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
               WHERE slot_name = 'outjet'";
    stage.session.run(end).await;
    stage.drop_slot("outjet").await;
    commit_each(&stage, 11..=20).await;
    stage.session.run(MAKE).await;
    commit_each(&stage, 21..=25).await;
    outjet.resume();
    told(&mut outjet).await;
    assert_closed(&stage, &mut outjet, 10).await;
}

/// A leader that has reported a gap and gone on, because the record may be an older one.
async fn goes_on() -> (Stage, Outjet) {
    let mut stage = published().await;
    stage.drop_slot("outjet").await;
    commit_each(&stage, 11..=20).await;
    stage.session.run(MAKE).await;
    stage.world.nats.stop().await;
    stage.world.nats.start_again().await;
    let mut outjet = stage.run();
    let gap = "gap: slot outjet was moved: events may be missing";
    outjet.logged(gap, SOON).await;
    outjet.logged("leading", SOON).await;
    commit_each(&stage, 21..=25).await;
    stage.confirmed().await;
    (stage, outjet)
}

#[tokio::test]
async fn gap_that_was_reported_is_closed_once_nobody_leads() {
    let (stage, mut outjet) = goes_on().await;
    for typed in ["recover", "recover --accept"] {
        let refused = types(&stage, typed).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let holder = "is in use\n  cause: held by pid ";
        assert!(refused.stderr.contains(holder), "{refused:?}");
    }
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    until_free(&stage).await;
    let recovered = types(&stage, "recover").await;
    assert!(
        recovered.stdout.starts_with("appended  10 events\nkept"),
        "{recovered:?}"
    );
    let mut outjet = stage.lead().await;
    commit_each(&stage, 26..=30).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    let told: Vec<_> = outjet.log();
    let gaps = told
        .iter()
        .filter(|line| line["message"].to_string().contains("gap"));
    assert_eq!(gaps.count(), 0, "{told:?}");
    let stored = drain::ids(&stage.jetstream().await, STREAM).await;
    let verdict = stage.judge.verdict(&stored).await;
    // What was appended late stands late.
    assert_eq!((verdict.missing.len(), verdict.duplicated.len()), (0, 0));
    assert_eq!(stored.len(), 30);
}

#[tokio::test]
async fn what_was_stored_and_not_confirmed_is_not_stored_again_after_a_gap_was_closed() {
    let (mut stage, mut outjet) = goes_on().await;
    commit_each(&stage, 26..=30).await;
    stage.until_sequence(20).await;
    // What it has confirmed of them, if anything, is in the server's memory alone.
    outjet.kill().await;
    stage.world.postgres.restart(Stop::Immediate).await;
    stage.session = stage.world.postgres.connect().await;
    until_free(&stage).await;
    let recovered = types(&stage, "recover").await;
    assert!(
        recovered.stdout.contains("appended  10 events\n"),
        "{recovered:?}"
    );
    let _outjet = stage.lead().await;
    stage.confirmed().await;
    let stored = drain::ids(&stage.jetstream().await, STREAM).await;
    let verdict = stage.judge.verdict(&stored).await;
    assert_eq!((verdict.missing.len(), verdict.duplicated.len()), (0, 0));
}

#[tokio::test]
async fn gap_is_accepted_where_the_slot_exists_and_where_it_does_not() {
    let stage = published().await;
    stage.drop_slot("outjet").await;
    commit_each(&stage, 11..=20).await;
    stage.session.run(MAKE).await;
    commit_each(&stage, 21..=25).await;
    let mut outjet = halts(&stage).await;
    let accepted = types(&stage, "recover --accept").await;
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    assert!(
        accepted.stdout.starts_with("accepted  gap from 0/"),
        "{accepted:?}"
    );
    let bytes = " bytes of WAL were not published\nkept      replication slot outjet, ";
    assert!(accepted.stdout.contains(bytes), "{accepted:?}");
    outjet.logged("leading", SOON).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    stage.drop_slot("outjet").await;
    commit_each(&stage, 26..=30).await;
    let accepted = types(&stage, "recover --accept").await;
    assert!(
        accepted.stdout.starts_with("accepted  gap from 0/"),
        "{accepted:?}"
    );
    assert!(
        accepted
            .stdout
            .ends_with("\ncreated   replication slot outjet\n"),
        "{accepted:?}"
    );
    let _outjet = stage.lead().await;
    commit_each(&stage, 31..=35).await;
    stage.confirmed().await;
    let stored = numbers(&stage).await;
    let expected: Vec<u32> = (1..=10).chain(21..=25).chain(31..=35).collect();
    assert_eq!(stored, expected);
}

/// The numbers of the events in the stream.
async fn numbers(stage: &Stage) -> Vec<u32> {
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let number = |stored: &drain::Stored| String::from_utf8_lossy(&stored.payload).parse();
    let numbers = stored
        .iter()
        .map(|stored| number(stored).expect("a number"));
    numbers.collect()
}

#[tokio::test]
async fn recover_killed_at_every_step_before_a_slot_that_is_kept_loses_and_repeats_nothing() {
    let stage = published().await;
    stage.drop_slot("outjet").await;
    commit_each(&stage, 11..=20).await;
    stage.session.run(MAKE).await;
    commit_each(&stage, 21..=25).await;
    for point in [
        "slot made to recover:1",
        "row to recover:5",
        "published:3",
        "recovered rows appended:1",
        "recovered slot recorded:1",
    ] {
        let armed = stage.outjet(["recover"]).env("FAULT_POINT", point);
        let status = armed.spawn().exit(SOON).await;
        let signal = Some(Signal::ABORT.as_raw());
        assert_eq!(status.signal(), signal, "{point} {status}");
    }
    let recovered = types(&stage, "recover").await;
    assert_eq!(recovered.stdout, "exists    replication slot outjet\n");
    let _outjet = stage.lead().await;
    commit_each(&stage, 26..=30).await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn recover_goes_on_without_a_bucket_and_says_so_once() {
    let mut stage = Stage::ready().await;
    stage.configure(&QUICK.replace("stream: {", "stream: {manage: check, "));
    let jetstream = stage.jetstream().await;
    let deleted = jetstream.delete_stream("KV_OUTJET_OUTBOX").await;
    deleted.expect("deleted");
    stage.drop_slot("outjet").await;
    commit_each(&stage, 1..=3).await;
    let recovered = types(&stage, "recover").await;
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    let said = "appended  3 events\nrecord    not kept: bucket OUTJET_OUTBOX does not exist, ";
    assert!(recovered.stdout.starts_with(said), "{recovered:?}");
    assert_eq!(recovered.stdout.matches("record ").count(), 1);
    let _outjet = stage.lead().await;
    commit_each(&stage, 4..=6).await;
    stage.assert_exact().await;
}
