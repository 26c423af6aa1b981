//! Others who publish into our stream: another outjet, or anybody.

use std::collections::HashSet;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{BRISK, Contender, LEADING, STANDING_BY, pair, text};
use crate::harness::drain::{self, Stored};
use crate::harness::outbox::Random;
use crate::harness::stage::{SOON, STREAM, Stage};
use crate::harness::{Nats, Outjet};
use crate::shared::calm;
use crate::sink::more_stored;
use crate::sink::strangers::{NOTICED, assert_each_once};

/// A slot of its own, and nothing else.
const OTHER_SLOT: &str = "
postgres: {slot: other}
stream: {duplicate_window: 100ms}
";

/// A call of outjet through the slot `other` of this database.
fn rival(stage: &Stage, database: &str, argument: &str) -> crate::harness::outjet::Builder {
    stage
        .outjet([argument])
        .args(["--log-format", "json"])
        .config(OTHER_SLOT)
        .env(
            "DATABASE_URL",
            stage.world.postgres.url_as("postgres", database),
        )
}

/// `outjet run`, set up.
async fn start_rival(stage: &Stage, database: &str) -> Outjet {
    let output = rival(stage, database, "setup").output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    rival(stage, database, "run").spawn()
}

/// The one that leads does so undisturbed while another one is pointed at its stream.
async fn is_refused(database: &str) {
    let stage = Stage::on(Nats::builder(), &calm(BRISK)).await;
    if database != "postgres" {
        stage
            .session
            .run(&format!("CREATE DATABASE {database}"))
            .await;
    }
    let leader = stage.lead().await;
    let writers = stage.write(3).await;
    more_stored(&stage, 200).await;
    let mut rival = start_rival(&stage, database).await;
    let halted = "halted: stream \"OUTBOX\" is written by another source";
    let halted = rival.logged(halted, SOON).await;
    let cause = text(&halted, "cause");
    assert!(cause.contains("through slot \"outjet\""), "{cause}");
    assert!(cause.contains("we use slot \"other\""), "{cause}");
    more_stored(&stage, 200).await;
    writers.finish().await;
    stage.assert_exact().await;
    let lines = leader.log();
    let messages: Vec<&str> = lines.iter().map(|line| text(line, "message")).collect();
    assert_eq!(messages, ["starting", LEADING], "it was disturbed");
}

#[tokio::test]
async fn outjet_of_another_slot_is_refused_and_does_not_disturb_the_leader() {
    is_refused("postgres").await;
}

#[tokio::test]
async fn outjet_of_another_database_is_refused_and_does_not_disturb_the_leader() {
    is_refused("elsewhere").await;
}

/// Waits until this slot has passed all that was committed so far.
async fn until_stored(stage: &Stage, slot: &str) {
    let flushed = "SELECT pg_current_wal_flush_lsn()";
    let flushed = stage.session.text(flushed).await;
    let sql = format!(
        "SELECT confirmed_flush_lsn >= '{flushed}' FROM pg_replication_slots
         WHERE slot_name = '{slot}'"
    );
    stage.session.until_text(&sql, "t", SOON).await;
}

fn is_of(message: &Stored, slot: &str) -> bool {
    let source = message.header("Outjet-Source").expect("a source");
    source.ends_with(&format!("/{slot}"))
}

/// The ids, each once.
fn ids<'a>(stored: impl Iterator<Item = &'a Stored>) -> HashSet<String> {
    let mut ids = HashSet::new();
    for message in stored {
        let id = message.id().expect("an id").to_owned();
        assert!(ids.insert(id.clone()), "{id} stands there twice");
    }
    ids
}

/// A stream that holds nothing does not tell who writes it. Both lead then; each event of either
/// stands there once, and both logs say that somebody else writes.
#[tokio::test]
async fn outjet_that_found_our_stream_empty_is_noticed_and_costs_no_event() {
    let stage = Stage::on(Nats::builder(), BRISK).await;
    let mut leader = stage.lead().await;
    stage.commit(1..=50).await;
    stage.confirmed().await;
    stage.session.run("CREATE DATABASE elsewhere").await;
    stage.stream().await.purge().await.expect("purged");
    let mut rival = start_rival(&stage, "elsewhere").await;
    rival.logged(LEADING, SOON).await;
    let url = stage.world.postgres.url_as("postgres", "elsewhere");
    let elsewhere = crate::harness::postgres::Session::connect(&url).await;
    let insert = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
                  VALUES ('order', '1', 'created', '{}')";
    // In turn, so that each of them finds the place taken that it expects to be free.
    for number in 51..=60 {
        stage.commit(number..=number).await;
        until_stored(&stage, "outjet").await;
        elsewhere.run(insert).await;
        until_stored(&stage, "other").await;
    }
    leader.logged(NOTICED, SOON).await;
    rival.logged(NOTICED, SOON).await;
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let (ours, theirs): (Vec<_>, Vec<_>) =
        stored.iter().partition(|stored| is_of(stored, "outjet"));
    assert_eq!(ids(ours.into_iter()).len(), 10);
    assert_eq!(ids(theirs.into_iter()).len(), 10);
}

/// Publishes ten bursts of up to 40 messages at random moments.
async fn bursts(client: async_nats::Client, seed: u64) {
    let mut random = Random(seed);
    for _ in 0..10 {
        for _ in 0..1 + random.below(40) {
            let sent = client.publish("events.order.stray", "stray".into()).await;
            sent.expect("sent");
        }
        client.flush().await.expect("sent");
        let pause = Duration::from_millis(random.below(200));
        tokio::time::sleep(pause).await;
    }
}

/// What is promised (DESIGN §5): a foreign message is noticed, and each of our events stands there
/// once. Commit order holds but for events whose place a stranger took: those of the same window
/// may stand before them, so none is late by more than a window.
#[tokio::test]
async fn hundreds_of_foreign_messages_over_takeovers_are_noticed_and_cost_no_event() {
    let small = BRISK.replace("publish: {", "publish: {in_flight_max: 64, ");
    let stage = Stage::on(Nats::builder(), &small).await;
    let (mut leader, mut standby) = pair(&stage).await;
    let writers = stage.write(2).await;
    let mut strangers = JoinSet::new();
    for (seed, killed) in [false, true, false, true].into_iter().enumerate() {
        let client = stage.world.nats.connect().await;
        strangers.spawn(bursts(client, seed as u64));
        leader.says(NOTICED).await;
        if killed {
            leader.outjet.kill().await;
            standby.says(LEADING).await;
            leader = Contender::start(&stage);
            leader.says(STANDING_BY).await;
        } else {
            leader.outjet.pause().await;
            standby.says(LEADING).await;
            leader.outjet.resume();
            leader.stands_by().await;
        }
        more_stored(&stage, 200).await;
        std::mem::swap(&mut leader, &mut standby);
    }
    while let Some(published) = strangers.join_next().await {
        published.expect("a stranger");
    }
    writers.finish().await;
    let strangers = assert_each_once(&stage, 64).await;
    assert!(strangers >= 200, "{strangers}");
}
