//! Streams that are full, deleted, changed, or not what the events need; and ids that are used
//! again.

use async_nats::jetstream::stream;

use crate::harness::drain::{self, Stored};
use crate::harness::stage::{QUICK, SOON, STREAM, Stage};
use crate::harness::{Nats, Outjet, Verdict, Wait, until};

/// An event that does not fit stops everything behind it.
const HALTING: &str = "
postgres: {takeover_after: 3s}
nats: {connect_timeout: 2s}
stream: {duplicate_window: 100ms}
publish: {ack_timeout: 1s, on_reject: halt}
";

/// The stream's configuration, changed.
async fn change(stage: &Stage, change: impl FnOnce(&mut stream::Config)) {
    let mut config = stage.stream().await.cached_info().config.clone();
    change(&mut config);
    let updated = stage.jetstream().await.update_stream(config).await;
    updated.expect("updated");
}

async fn numbers(stage: &Stage) -> Vec<u32> {
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let number = |message: &Stored| String::from_utf8_lossy(&message.payload).parse();
    stored
        .iter()
        .map(number)
        .map(|n| n.expect("a number"))
        .collect()
}

/// Waits for a trouble whose cause says so.
async fn troubled(outjet: &mut Outjet, cause: &str) {
    let what = format!("outjet logs a cause with {cause:?}");
    until(&what, SOON, async || {
        let log = outjet.log();
        let causes = log.iter().filter_map(|line| line["cause"].as_str());
        let found = causes.clone().any(|found| found.contains(cause));
        Wait::ready_if(found, causes.collect::<Vec<_>>())
    })
    .await;
}

/// Runs until it halts, and returns what it then said.
async fn halts(stage: &Stage) -> String {
    let arguments = ["run", "--exit-on-halt", "--log-format", "json"];
    let output = stage.outjet(arguments).output().await;
    assert_eq!(output.code, Some(65), "{output:?}");
    output.stderr
}

#[tokio::test]
async fn full_stream_is_waited_for_and_goes_on_where_it_stopped() {
    full_stream(Nats::builder()).await;
}

#[tokio::test]
async fn full_stream_is_waited_for_on_the_oldest_server() {
    full_stream(Nats::builder().version("2.10")).await;
}

async fn full_stream(nats: crate::harness::nats::Builder) {
    let stage = Stage::on(nats, QUICK).await;
    change(&stage, |config| config.max_messages = 50).await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=70).await;
    stage.commit(71..=170).await;
    let mut seen = Vec::new();
    while seen.len() < 150 {
        stage.until_sequence(seen.len() as u64 + 50).await;
        troubled(&mut outjet, "maximum messages exceeded").await;
        seen.extend(numbers(&stage).await);
        stage.stream().await.purge().await.expect("purged");
    }
    stage.confirmed().await;
    seen.extend(numbers(&stage).await);
    assert_eq!(seen, (1..=170).collect::<Vec<_>>());
}

#[tokio::test]
async fn stream_deleted_under_load_starts_anew_without_losing_what_comes() {
    let stage = Stage::ready().await;
    let _outjet = stage.lead().await;
    let writers = stage.write(2).await;
    stage.until_sequence(200).await;
    let jetstream = stage.jetstream().await;
    jetstream.delete_stream(STREAM).await.expect("deleted");
    until("the stream is there again", SOON, async || {
        let found = jetstream.get_stream(STREAM).await;
        Wait::ready_if(found.is_ok(), found.err())
    })
    .await;
    stage.until_sequence(200).await;
    writers.finish().await;
    stage.confirmed().await;
    let stored = drain::ids(&jetstream, STREAM).await;
    let verdict = stage.judge.verdict(&stored).await;
    assert_eq!(verdict.duplicated, Vec::<String>::new());
    assert_eq!(verdict.out_of_order, Vec::<String>::new());
    assert_eq!(verdict.uncommitted, Vec::<String>::new());
    // What is missing went with the stream: all of it was committed before what is there.
    let committed = stage.judge.committed().await;
    assert_eq!(committed[verdict.missing.len()..], stored);
}

#[tokio::test]
async fn stream_deleted_that_is_not_ours_to_make_halts() {
    let mut stage = Stage::ready().await;
    stage.configure("stream: {manage: check}\n");
    let jetstream = stage.jetstream().await;
    jetstream.delete_stream(STREAM).await.expect("deleted");
    let said = halts(&stage).await;
    assert!(said.contains("does not exist"), "{said}");
    assert!(said.contains("outjet setup"), "{said}");
}

#[tokio::test]
async fn subject_that_the_stream_does_not_cover_stops_everything_behind_it() {
    let stage = Stage::ready().await;
    stage.commit(1..=5).await;
    let astray = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload, topic)
                  VALUES ('order', '6', 'created', '6', 'orders.created')";
    stage.session.run(astray).await;
    stage.commit(7..=10).await;
    let said = halts(&stage).await;
    assert!(said.contains("does not cover"), "{said}");
    assert!(said.contains("orders.created"), "{said}");
    assert_eq!(numbers(&stage).await, (1..=5).collect::<Vec<_>>());
    change(&stage, |config| config.subjects.push("orders.*".to_owned())).await;
    let _outjet = stage.lead().await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn subject_taken_from_the_stream_under_way_halts_with_the_subject() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.until_sequence(5).await;
    change(&stage, |config| {
        config.subjects = vec!["other.>".to_owned()]
    })
    .await;
    stage.commit(6..=9).await;
    let halted = "halted: stream \"OUTBOX\" does not cover subject \"events.order.created\"";
    outjet.logged(halted, SOON).await;
    outjet.terminate(SOON).await;
    change(&stage, |config| config.subjects.push("events.>".to_owned())).await;
    let _outjet = stage.lead().await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn message_that_the_stream_is_too_narrow_for_stops_everything_behind_it() {
    let stage = Stage::on(Nats::builder(), HALTING).await;
    change(&stage, |config| config.max_message_size = 2000).await;
    stage.commit(1..=5).await;
    let large = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
                 VALUES ('order', '6', 'created', to_jsonb(repeat('x', 2000)))";
    stage.session.run(large).await;
    stage.commit(7..=10).await;
    let said = halts(&stage).await;
    assert!(said.contains("2000"), "{said}");
    assert_eq!(numbers(&stage).await, (1..=5).collect::<Vec<_>>());
    change(&stage, |config| config.max_message_size = 4000).await;
    let _outjet = stage.lead().await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn limit_that_is_lowered_under_way_halts_and_loses_nothing() {
    let mut stage = Stage::on(Nats::builder(), HALTING).await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.until_sequence(5).await;
    let usual = stage.world.nats.configuration();
    stage
        .world
        .nats
        .configure(&format!("max_payload: 2000\n{usual}"));
    stage.world.nats.reload();
    let client = stage.world.nats.connect().await;
    until("the limit is lower", SOON, async || {
        client.force_reconnect().await.expect("reconnected");
        let max = client.server_info().max_payload;
        Wait::ready_if(max == 2000, max)
    })
    .await;
    let large = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
                 VALUES ('order', '6', 'created', to_jsonb(repeat('x', 3000)))";
    stage.session.run(large).await;
    stage.commit(7..=10).await;
    until("it halts", SOON, async || {
        let log = outjet.log();
        let said = |line: &serde_json::Value| {
            let message = line["message"].as_str().unwrap_or_default();
            message.starts_with("halted: ") && message.contains("cannot be sent")
        };
        Wait::ready_if(log.iter().any(said), log.len())
    })
    .await;
    outjet.terminate(SOON).await;
    assert_eq!(numbers(&stage).await, (1..=5).collect::<Vec<_>>());
    stage.world.nats.configure(&usual);
    stage.world.nats.stop().await;
    stage.world.nats.start_again().await;
    let _outjet = stage.lead().await;
    stage.assert_exact().await;
}

/// Commits rows with these ids, one transaction each.
async fn commit_ids(stage: &Stage, ids: &[u32]) {
    for id in ids {
        let sql = format!(
            "INSERT INTO outbox.events (id, aggregatetype, aggregateid, type, payload)
             VALUES (lpad('{id}', 32, '0')::uuid, 'order', '1', 'created', '{id}')"
        );
        stage.session.run(&sql).await;
    }
}

#[tokio::test]
async fn ids_that_are_used_again_are_all_stored_and_those_of_later_rows_are_no_message_ids() {
    ids_used_again(Nats::builder()).await;
}

#[tokio::test]
async fn ids_that_are_used_again_are_all_stored_on_the_oldest_server() {
    ids_used_again(Nats::builder().version("2.10")).await;
}

async fn ids_used_again(nats: crate::harness::nats::Builder) {
    // A window that is open all the time: the server calls every later row a duplicate.
    let stage = Stage::on(nats, "stream: {duplicate_window: 60s}\n").await;
    let mut outjet = stage.lead().await;
    commit_ids(&stage, &[1, 2, 1, 3, 2, 1]).await;
    stage.until_sequence(6).await;
    stage.confirmed().await;
    // A new leader, too, knows nothing of what the ids were used for.
    outjet.terminate(SOON).await;
    let _outjet = stage.lead().await;
    commit_ids(&stage, &[4, 3, 5]).await;
    stage.until_sequence(9).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, [1, 2, 1, 3, 2, 1, 4, 3, 5]);
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let named = |message: &Stored| message.header("Nats-Msg-Id").is_some();
    let plain = |message: &Stored| message.header("Outjet-Id").is_some();
    let names: Vec<bool> = stored.iter().map(named).collect();
    assert_eq!(
        names,
        [true, true, false, true, false, false, true, false, true]
    );
    assert!(
        stored
            .iter()
            .all(|message| named(message) != plain(message))
    );
    let id = |message: &Stored| message.id().map(str::to_owned);
    let ids: Option<Vec<String>> = stored.iter().map(id).collect();
    let verdict = Verdict::of(&stage.judge.committed().await, &ids.expect("an id each"));
    verdict.assert_exact();
}
