//! NATS moves: to a cluster or an account that is empty, to a stream of another name, to copies of
//! stream and record of whatever age. outjet goes on where the stream shows what was confirmed,
//! says where it may lack some of it, and halts where nothing shows anything.

use async_nats::jetstream::stream::{Config, Source};
use serde_json::Value;

use super::{HALTING, commit_each, numbers, published, published_on, types, until_free};
use crate::harness::outjet::Output;
use crate::harness::snapshot::{self, Snapshot};
use crate::harness::stage::{SOON, STREAM, Stage};
use crate::harness::{Nats, Outjet, Proxy, Stop, Wait, drain, until};

const BUCKET: &str = "KV_OUTJET_OUTBOX";

const UNKNOWN: &str = "halted: nothing shows that slot outjet has fed this stream";

const LACKING: &str = "gap: the stream may lack events that slot outjet has confirmed";

const MOVED: &str = "slot outjet was moved: events may be missing";

/// Another server in the place of the one that there was.
fn move_to(stage: &mut Stage, nats: Nats) {
    stage.world.nats = nats;
    stage.proxy = Proxy::before_port(stage.world.nats.port());
}

async fn take(stage: &Stage, stream: &str) -> Snapshot {
    snapshot::take(&stage.world.nats.connect().await, stream).await
}

async fn restore(stage: &Stage, snapshot: &Snapshot) {
    snapshot.restore(&stage.world.nats.connect().await).await;
}

async fn delete(stage: &Stage, stream: &str) {
    let deleted = stage.jetstream().await.delete_stream(stream).await;
    deleted.expect("deleted");
}

/// Publishes these from a leader that ends.
async fn publish(stage: &Stage, numbers: std::ops::RangeInclusive<u32>) {
    let mut outjet = stage.lead().await;
    commit_each(stage, numbers).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    until_free(stage).await;
}

/// Where the slot stands.
async fn slot(stage: &Stage) -> String {
    let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'outjet'";
    stage.session.text(sql).await
}

/// Nothing shows what the slot has fed: none of the ways to lead publishes or confirms anything.
async fn assert_unknown(stage: &Stage) -> Outjet {
    let before = slot(stage).await;
    for typed in ["run --exit-on-halt", "run --setup --exit-on-halt"] {
        let halted = types(stage, typed).await;
        assert_eq!(halted.code, Some(65), "{typed}: {halted:?}");
        for named in [
            "`outjet recover`",
            "`outjet recover --accept`",
            "nats.url",
            &before,
        ] {
            assert!(halted.stderr.contains(named), "{typed}: {halted:?}");
        }
    }
    let checked = types(stage, "check").await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let problem = UNKNOWN.trim_start_matches("halted: ");
    assert!(checked.stdout.contains(problem), "{checked:?}");
    let mut outjet = stage.run();
    outjet.logged(UNKNOWN, SOON).await;
    assert_eq!(slot(stage).await, before);
    assert_eq!(stage.last_sequence().await, 0);
    outjet
}

/// Leads, and says that the stream may lack something, with what helps.
async fn reports(stage: &Stage) -> Outjet {
    let mut outjet = stage.run();
    let line = outjet.logged(LACKING, SOON).await;
    let fix = line["fix"].as_str().expect("a fix");
    assert!(fix.contains("`outjet recover` publishes"), "{line}");
    outjet.logged("leading", SOON).await;
    outjet
}

/// `outjet recover`, once nobody leads.
async fn recovers(stage: &Stage, mut outjet: Outjet, appended: u32) {
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    until_free(stage).await;
    let recovered = types(stage, "recover").await;
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    assert_appended(&recovered, appended);
    let again = types(stage, "recover").await;
    assert_eq!(again.stdout, "exists    replication slot outjet\n");
}

fn assert_appended(recovered: &Output, appended: u32) {
    let said = format!("appended  {appended} events\nkept      replication slot outjet, ");
    assert!(recovered.stdout.starts_with(&said), "{recovered:?}");
}

/// Leads, and reports nothing.
async fn leads_in_silence(stage: &Stage) -> Outjet {
    let outjet = stage.lead().await;
    let told = outjet.log();
    let told = told
        .iter()
        .filter(|line| line["message"].to_string().contains("gap"));
    assert_eq!(told.count(), 0, "{:?}", outjet.log());
    outjet
}

/// The stream holds these, each once, in whatever order: what is appended late is stored late.
async fn assert_each_once(stage: &Stage, expected: std::ops::RangeInclusive<u32>) {
    stage.confirmed().await;
    let mut stored = numbers(stage).await;
    stored.sort_unstable();
    assert_eq!(stored, expected.collect::<Vec<_>>());
}

async fn assert_in_order(stage: &Stage, expected: std::ops::RangeInclusive<u32>) {
    stage.confirmed().await;
    assert_eq!(numbers(stage).await, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn new_cluster_that_is_empty_halts_and_gets_what_the_tables_have() {
    let mut stage = published().await;
    commit_each(&stage, 11..=13).await;
    move_to(&mut stage, Nats::start().await);
    let mut outjet = assert_unknown(&stage).await;
    let recovered = types(&stage, "recover").await;
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    // The others are still to come through the slot.
    assert_appended(&recovered, 10);
    outjet.logged("leading", SOON).await;
    commit_each(&stage, 14..=16).await;
    assert_in_order(&stage, 1..=16).await;
    let again = types(&stage, "recover").await;
    assert_eq!(again.stdout, "exists    replication slot outjet\n");
}

#[tokio::test]
async fn return_from_a_new_cluster_halts_and_gets_what_was_published_there() {
    let mut stage = published().await;
    let old = std::mem::replace(&mut stage.world.nats, Nats::start().await);
    stage.proxy = Proxy::before_port(stage.world.nats.port());
    let accepted = types(&stage, "recover --accept").await;
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    publish(&stage, 11..=15).await;
    move_to(&mut stage, old);
    let mut outjet = stage.run();
    outjet.logged(&format!("halted: {MOVED}"), SOON).await;
    let recovered = types(&stage, "recover").await;
    assert_appended(&recovered, 5);
    outjet.logged("leading", SOON).await;
    commit_each(&stage, 16..=17).await;
    assert_in_order(&stage, 1..=17).await;
}

/// One server, two accounts; who gives no name is in the first, then in the second.
#[tokio::test]
async fn new_account_that_is_empty_halts_and_begins_there_if_that_is_accepted() {
    const FIRST: &str = "no_auth_user: first";
    let accounts = "accounts {
        FIRST: {jetstream: enabled, users: [{user: first, password: one}]}
        SECOND: {jetstream: enabled, users: [{user: second, password: two}]}
    }";
    let nats = Nats::builder().config(&format!("{accounts}\n{FIRST}"));
    let mut stage = published_on(nats, HALTING).await;
    commit_each(&stage, 11..=13).await;
    stage.world.nats.stop().await;
    let moved = stage.world.nats.configuration();
    let moved = moved.replace(FIRST, "no_auth_user: second");
    stage.world.nats.configure(&moved);
    stage.world.nats.start_again().await;
    let mut outjet = assert_unknown(&stage).await;
    let accepted = types(&stage, "recover --accept").await;
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    let said = "accepted  gap of unknown size, up to ";
    assert!(accepted.stdout.starts_with(said), "{accepted:?}");
    outjet.logged("leading", SOON).await;
    commit_each(&stage, 14..=16).await;
    assert_in_order(&stage, 11..=16).await;
}

#[tokio::test]
async fn stream_of_another_name_halts_and_leaves_the_old_one_and_its_record_alone() {
    let mut stage = published().await;
    let record = take(&stage, BUCKET).await;
    let other = HALTING.replace("stream: {", "stream: {name: OTHER, ");
    stage.configure(&other);
    let halted = types(&stage, "run --exit-on-halt").await;
    assert_eq!(halted.code, Some(65), "{halted:?}");
    assert!(halted.stderr.contains("overlap"), "{halted:?}");
    let other = other.replace("name: OTHER, ", "name: OTHER, subjects: [\"other.>\"], ");
    stage.configure(&other.replace("publish: {", "publish: {subject_prefix: other, "));
    let mut outjet = stage.run();
    outjet.logged(UNKNOWN, SOON).await;
    assert_appended(&types(&stage, "recover").await, 10);
    outjet.logged("leading", SOON).await;
    commit_each(&stage, 11..=13).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    until_free(&stage).await;
    let jetstream = stage.jetstream().await;
    assert_eq!(drain::ids(&jetstream, "OTHER").await.len(), 13);
    assert_eq!(drain::ids(&jetstream, STREAM).await.len(), 10);
    assert_eq!(take(&stage, BUCKET).await.messages(), record.messages());
    // And back: what was confirmed elsewhere is a gap here.
    stage.configure(HALTING);
    let mut outjet = stage.run();
    outjet.logged(&format!("halted: {MOVED}"), SOON).await;
    assert_appended(&types(&stage, "recover").await, 3);
    outjet.logged("leading", SOON).await;
    commit_each(&stage, 14..=15).await;
    assert_in_order(&stage, 1..=15).await;
}

#[tokio::test]
async fn stream_and_record_that_were_copied_to_a_new_cluster_go_on_there() {
    let mut stage = published().await;
    let (stream, record) = (take(&stage, STREAM).await, take(&stage, BUCKET).await);
    move_to(&mut stage, Nats::start().await);
    restore(&stage, &stream).await;
    restore(&stage, &record).await;
    // Postgres has forgotten what was confirmed, and sends it again.
    stage.world.postgres.restart(Stop::Immediate).await;
    stage.session = stage.world.postgres.connect().await;
    commit_each(&stage, 11..=13).await;
    let _outjet = leads_in_silence(&stage).await;
    commit_each(&stage, 14..=16).await;
    assert_in_order(&stage, 1..=16).await;
}

#[tokio::test]
async fn stream_that_was_copied_to_a_new_cluster_without_its_record_is_reported() {
    let mut stage = published().await;
    let stream = take(&stage, STREAM).await;
    move_to(&mut stage, Nats::start().await);
    restore(&stage, &stream).await;
    commit_each(&stage, 11..=13).await;
    let outjet = reports(&stage).await;
    assert_in_order(&stage, 1..=13).await;
    recovers(&stage, outjet, 0).await;
    let _outjet = leads_in_silence(&stage).await;
    commit_each(&stage, 14..=16).await;
    assert_in_order(&stage, 1..=16).await;
}

#[tokio::test]
async fn copy_without_a_record_that_was_taken_too_early_gets_the_rest_from_the_tables() {
    let mut stage = published().await;
    let stream = take(&stage, STREAM).await;
    publish(&stage, 11..=20).await;
    move_to(&mut stage, Nats::start().await);
    restore(&stage, &stream).await;
    let outjet = reports(&stage).await;
    commit_each(&stage, 21..=23).await;
    stage.confirmed().await;
    let expected: Vec<u32> = (1..=10).chain(21..=23).collect();
    assert_eq!(numbers(&stage).await, expected);
    recovers(&stage, outjet, 10).await;
    let _outjet = leads_in_silence(&stage).await;
    commit_each(&stage, 24..=25).await;
    assert_each_once(&stage, 1..=25).await;
}

/// What is known of both comes from before 11 to 20; the same server, or another one.
async fn both_are_put_back(elsewhere: bool) -> Stage {
    let mut stage = published().await;
    let (stream, record) = (take(&stage, STREAM).await, take(&stage, BUCKET).await);
    publish(&stage, 11..=20).await;
    if elsewhere {
        move_to(&mut stage, Nats::start().await);
    } else {
        delete(&stage, STREAM).await;
        delete(&stage, BUCKET).await;
    }
    restore(&stage, &stream).await;
    restore(&stage, &record).await;
    stage
}

#[tokio::test]
async fn stream_and_record_that_were_restored_from_a_backup_halt() {
    let stage = both_are_put_back(false).await;
    let mut outjet = stage.run();
    let line = outjet.logged(&format!("halted: {MOVED}"), SOON).await;
    let cause = line["cause"].as_str().expect("a cause");
    assert!(cause.contains("or an older record was put back"), "{line}");
    assert_appended(&types(&stage, "recover").await, 10);
    outjet.logged("leading", SOON).await;
    commit_each(&stage, 21..=23).await;
    assert_in_order(&stage, 1..=23).await;
}

#[tokio::test]
async fn copies_of_both_that_were_taken_too_early_get_the_rest_from_the_tables() {
    let stage = both_are_put_back(true).await;
    let mut outjet = stage.run();
    outjet.logged(&format!("gap: {MOVED}"), SOON).await;
    outjet.logged("leading", SOON).await;
    recovers(&stage, outjet, 10).await;
    let _outjet = leads_in_silence(&stage).await;
    commit_each(&stage, 21..=23).await;
    assert_in_order(&stage, 1..=23).await;
}

#[tokio::test]
async fn stream_that_was_restored_beside_a_newer_record_is_reported() {
    let stage = published().await;
    let stream = take(&stage, STREAM).await;
    publish(&stage, 11..=20).await;
    delete(&stage, STREAM).await;
    restore(&stage, &stream).await;
    let verified = types(&stage, "verify --json").await;
    let verified: Value = serde_json::from_str(&verified.stdout).expect("JSON");
    assert_eq!(verified["missing"]["count"], 10, "{verified}");
    let contradictions = &verified["contradictions"];
    let cause = "the stream was created anew";
    assert_eq!(contradictions[0]["cause"], cause, "{verified}");
    let problem = LACKING.trim_start_matches("gap: ");
    assert_eq!(contradictions[1]["problem"], problem, "{verified}");
    let outjet = reports(&stage).await;
    commit_each(&stage, 21..=23).await;
    stage.confirmed().await;
    recovers(&stage, outjet, 10).await;
    let _outjet = leads_in_silence(&stage).await;
    commit_each(&stage, 24..=25).await;
    assert_each_once(&stage, 1..=25).await;
}

#[tokio::test]
async fn gap_of_a_restored_stream_is_closed_before_anything_is_published_behind_it() {
    let stage = published().await;
    let stream = take(&stage, STREAM).await;
    publish(&stage, 11..=20).await;
    delete(&stage, STREAM).await;
    restore(&stage, &stream).await;
    commit_each(&stage, 21..=23).await;
    assert_appended(&types(&stage, "recover").await, 10);
    let _outjet = leads_in_silence(&stage).await;
    assert_in_order(&stage, 1..=23).await;
}

#[tokio::test]
async fn record_that_was_restored_beside_a_newer_stream_doubles_nothing() {
    let stage = published().await;
    let record = take(&stage, BUCKET).await;
    publish(&stage, 11..=20).await;
    delete(&stage, BUCKET).await;
    restore(&stage, &record).await;
    commit_each(&stage, 21..=23).await;
    let mut outjet = stage.run();
    outjet.logged(&format!("gap: {MOVED}"), SOON).await;
    outjet.logged("leading", SOON).await;
    assert_in_order(&stage, 1..=23).await;
    recovers(&stage, outjet, 0).await;
    let _outjet = leads_in_silence(&stage).await;
    commit_each(&stage, 24..=25).await;
    assert_in_order(&stage, 1..=25).await;
}

#[tokio::test]
async fn stream_that_was_made_again_under_a_leader_gets_back_what_the_tables_have() {
    let stage = published().await;
    let mut outjet = stage.lead().await;
    let jetstream = stage.jetstream().await;
    let config = stage.stream().await.cached_info().config.clone();
    delete(&stage, STREAM).await;
    jetstream.create_stream(config).await.expect("made again");
    outjet.logged(LACKING, SOON).await;
    commit_each(&stage, 11..=13).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, [11, 12, 13]);
    recovers(&stage, outjet, 10).await;
    let _outjet = leads_in_silence(&stage).await;
    assert_each_once(&stage, 1..=13).await;
}

/// A slot that somebody makes by hand for a new stream is a new one, until it was read.
#[tokio::test]
async fn slot_that_was_made_by_hand_begins_in_an_empty_stream() {
    let stage = Stage::ready().await;
    delete(&stage, STREAM).await;
    delete(&stage, BUCKET).await;
    stage.drop_slot("outjet").await;
    stage.session.run(super::MAKE).await;
    commit_each(&stage, 1..=3).await;
    let checked = types(&stage, "check").await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let mut outjet = leads_in_silence(&stage).await;
    assert_in_order(&stage, 1..=3).await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    until_free(&stage).await;
    delete(&stage, STREAM).await;
    delete(&stage, BUCKET).await;
    stage.run().logged(UNKNOWN, SOON).await;
}

/// How a second stream follows the first.
#[derive(Clone, Copy)]
enum Follows {
    Mirror,
    Source,
}

/// Stream COPY, which followed OUTBOX, takes its place: OUTBOX is deleted, and COPY takes what its
/// subjects bring. Events 11 to 13 wait.
async fn promoted(version: &str, follows: Follows) -> Stage {
    let mut stage = published_on(Nats::builder().version(version), HALTING).await;
    let jetstream = stage.jetstream().await;
    let outbox = || Source {
        name: STREAM.to_owned(),
        ..Source::default()
    };
    let alone = Config {
        name: "COPY".to_owned(),
        ..Config::default()
    };
    let following = match follows {
        Follows::Mirror => Config {
            mirror: Some(outbox()),
            ..alone.clone()
        },
        Follows::Source => Config {
            sources: Some(vec![outbox()]),
            ..alone.clone()
        },
    };
    jetstream.create_stream(following).await.expect("created");
    until("the copy is whole", SOON, async || {
        let copy = jetstream.get_stream("COPY").await.expect("the copy");
        let last = copy.cached_info().state.last_sequence;
        Wait::ready_if(last == 10, last)
    })
    .await;
    commit_each(&stage, 11..=13).await;
    // The dead letters have subjects of their own, which the next ones take.
    delete(&stage, STREAM).await;
    delete(&stage, "OUTBOX_DLQ").await;
    let subjects = vec!["events.>".to_owned()];
    let taking = Config { subjects, ..alone };
    jetstream.update_stream(taking).await.expect("promoted");
    stage.configure(&HALTING.replace("stream: {", "stream: {name: COPY, "));
    stage
}

/// The record of OUTBOX, as that of COPY.
async fn copy_the_record(stage: &Stage) {
    let jetstream = stage.jetstream().await;
    let bucket = jetstream.get_stream(BUCKET).await.expect("a bucket");
    let record = bucket.get_last_raw_message_by_subject("$KV.OUTJET_OUTBOX.outjet");
    let record = record.await.expect("a record").payload;
    let config = Config {
        name: "KV_OUTJET_COPY".to_owned(),
        subjects: vec!["$KV.OUTJET_COPY.>".to_owned()],
        ..bucket.cached_info().config.clone()
    };
    jetstream.create_stream(config).await.expect("created");
    let put = jetstream.publish("$KV.OUTJET_COPY.outjet", record).await;
    put.expect("sent").await.expect("stored");
}

/// What COPY holds, once all is confirmed.
async fn assert_copy_holds(stage: &Stage, expected: std::ops::RangeInclusive<u32>) {
    stage.confirmed().await;
    let stored = drain::messages(&stage.jetstream().await, "COPY").await;
    let number = |stored: &drain::Stored| String::from_utf8_lossy(&stored.payload).into_owned();
    let stored: Vec<_> = stored.iter().map(number).collect();
    let expected: Vec<_> = expected.map(|number| number.to_string()).collect();
    assert_eq!(stored, expected);
}

/// The first that lets a mirror become a stream.
const PROMOTING: &str = ">= 2.12.0";

#[tokio::test]
async fn mirror_that_was_promoted_goes_on_with_the_record() {
    let mut stage = promoted(PROMOTING, Follows::Mirror).await;
    copy_the_record(&stage).await;
    stage.world.postgres.restart(Stop::Immediate).await;
    stage.session = stage.world.postgres.connect().await;
    let _outjet = leads_in_silence(&stage).await;
    commit_each(&stage, 14..=16).await;
    assert_copy_holds(&stage, 1..=16).await;
}

#[tokio::test]
async fn mirror_that_was_promoted_without_the_record_is_reported() {
    let stage = promoted(PROMOTING, Follows::Mirror).await;
    let outjet = reports(&stage).await;
    commit_each(&stage, 14..=16).await;
    assert_copy_holds(&stage, 1..=16).await;
    recovers(&stage, outjet, 0).await;
    let _outjet = leads_in_silence(&stage).await;
    assert_copy_holds(&stage, 1..=16).await;
}

#[tokio::test]
async fn stream_that_sourced_ours_and_took_its_place_goes_on() {
    let stage = promoted("2.10", Follows::Source).await;
    copy_the_record(&stage).await;
    let _outjet = leads_in_silence(&stage).await;
    commit_each(&stage, 14..=16).await;
    assert_copy_holds(&stage, 1..=16).await;
}
