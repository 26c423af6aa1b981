//! What is settled is known, not guessed: executions in which messages vanish, strangers write,
//! copies come, settings change and Postgres sends again. Each lost events or stored them twice
//! before there was a record.

use std::ops::RangeInclusive;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;

use crate::delivery::Delivery;
use crate::faults::die_at;
use crate::harness::drain;
use crate::harness::nats::BATCHING;
use crate::harness::postgres::Stop;
use crate::harness::stage::{QUICK, SOON, STREAM, Stage};
use crate::harness::{Direction, Mode, Nats, Outjet, Postgres, Wait, until};

/// Commits `numbers` and kills the leader when they are stored, before it hears of it.
async fn stored_unheard(stage: &Stage, outjet: &mut Outjet, numbers: RangeInclusive<u32>) {
    stage.confirmed().await;
    let events = u64::from(numbers.end() - numbers.start() + 1);
    let last = stage.last_sequence().await + events;
    stage.proxy.set(Mode::Stall(Direction::ToClient));
    stage.commit(numbers).await;
    stage.until_sequence(last).await;
    outjet.kill().await;
    stage.proxy.set(Mode::Forward);
}

/// The bodies, which are numbers, in the stream's order; those of strangers are 0.
async fn numbers(stage: &Stage) -> Vec<u32> {
    let messages = drain::messages(&stage.jetstream().await, STREAM).await;
    let number = |message: &drain::Stored| {
        let body = std::str::from_utf8(&message.payload).expect("UTF-8");
        body.parse().unwrap_or(0)
    };
    messages.iter().map(number).collect()
}

/// Waits until Postgres has sent all that was committed.
async fn until_read(stage: &Stage) {
    let flushed = stage
        .session
        .text("SELECT pg_current_wal_flush_lsn()")
        .await;
    let sent = format!(
        "SELECT sent_lsn >= '{flushed}' FROM pg_stat_replication
         WHERE application_name = 'outjet'"
    );
    stage.session.until_text(&sent, "t", SOON).await;
}

/// A message of somebody else; its sequence number.
async fn stray(stage: &Stage) -> u64 {
    let jetstream = stage.jetstream().await;
    let sent = jetstream.publish("events.stray", "stray".into()).await;
    sent.expect("sent").await.expect("stored").sequence
}

/// Somebody publishes a message of ours again, as it is, as consumers do that retry.
async fn copy(stream: &Stream, stage: &Stage, sequence: u64) {
    let original = stream.get_raw_message(sequence).await.expect("a message");
    let mut headers = HeaderMap::new();
    for (name, values) in original.headers.iter() {
        let name = name.to_string();
        if !name.starts_with("Nats-") {
            values
                .iter()
                .for_each(|value| headers.append(name.as_str(), value.clone()));
        }
    }
    let id = original.headers.get("Nats-Msg-Id").expect("an id").clone();
    headers.insert("Outjet-Id", id);
    let jetstream = stage.jetstream().await;
    let subject = original.subject.to_string();
    let sent = jetstream
        .publish_with_headers(subject, headers, original.payload)
        .await;
    sent.expect("sent").await.expect("stored");
}

/// At most so many events are under way.
fn window(in_flight_max: u32) -> String {
    let publish = format!("publish: {{in_flight_max: {in_flight_max}, ack_timeout: 1s}}");
    QUICK.replace("publish: {ack_timeout: 1s}", &publish)
}

/// Where the record of the slot is kept.
const KEY: &str = "$KV.OUTJET_OUTBOX.outjet";

async fn record(stage: &Stage) -> Bytes {
    let bucket = stage.jetstream().await.get_stream("KV_OUTJET_OUTBOX").await;
    let bucket = bucket.expect("the bucket");
    let kept = bucket.get_last_raw_message_by_subject(KEY).await;
    kept.expect("a record").payload
}

async fn put_back(stage: &Stage, record: Bytes) {
    let jetstream = stage.jetstream().await;
    let put = jetstream.publish(KEY, record).await;
    put.expect("sent").await.expect("stored");
}

async fn deleted(stage: &Stage, sequences: impl IntoIterator<Item = u64>) {
    let stream = stage.stream().await;
    for sequence in sequences {
        let deleted = stream.delete_message(sequence).await;
        assert!(deleted.expect("deleted"));
    }
}

/// Events that died with a timeline vanish from the stream, and their vacant
/// numbers were taken for new events of the next timeline.
#[tokio::test]
async fn vacant_numbers_of_a_dead_timeline_hide_no_new_event() {
    let mut stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stored_unheard(&stage, &mut outjet, 6..=8).await;
    stage.world.postgres.stop(Stop::Fast).await;
    let mut promoted = stage.world.postgres.copy();
    stage.world.postgres.start_again().await;
    stage.session = stage.world.postgres.connect().await;
    // Never reach the standby.
    let mut outjet = stage.lead().await;
    stage.commit(9..=10).await;
    stage.confirmed().await;
    outjet.kill().await;
    stage.world.postgres.stop(Stop::Immediate).await;
    deleted(&stage, [9, 10]).await;

    promoted.start_again().await;
    promoted.promote().await;
    stage.world.postgres = promoted;
    stage.session = stage.world.postgres.connect().await;
    stage.commit(109..=110).await;
    let _outjet = stage.lead().await;
    stage.confirmed().await;
    let expected: Vec<u32> = (1..=8).chain([109, 110]).collect();
    assert_eq!(numbers(&stage).await, expected);
}

/// A stranger's message that vanishes was taken for an event.
#[tokio::test]
async fn stranger_that_vanishes_hides_no_event_after_a_restart_of_postgres() {
    let mut stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.confirmed().await;
    outjet.kill().await;
    let stray = stray(&stage).await;
    deleted(&stage, [stray]).await;
    // 14 to 16 send confirmed events again even after a clean restart.
    stage.world.postgres.restart(Stop::Fast).await;
    stage.session = stage.world.postgres.connect().await;
    stage.commit(6..=6).await;
    let _outjet = stage.lead().await;
    stage.confirmed().await;
    stage.commit(7..=8).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, (1..=8).collect::<Vec<_>>());
}

/// Without any restart: the stranger takes the place of what is under way.
#[tokio::test]
async fn stranger_that_takes_an_events_place_and_vanishes_costs_no_event() {
    let stage = Stage::ready().await;
    let _outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.confirmed().await;
    stage.proxy.set(Mode::Stall(Direction::ToServer));
    stage.commit(6..=6).await;
    until_read(&stage).await;
    let stray = stray(&stage).await;
    deleted(&stage, [stray]).await;
    stage.proxy.cut();
    stage.proxy.set(Mode::Forward);
    stage.confirmed().await;
    stage.commit(7..=8).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, (1..=8).collect::<Vec<_>>());
}

/// A stranger displaces an event, those behind it are stored; the stranger
/// vanishes, and the leader dies before the event goes out again.
#[tokio::test]
async fn displaced_event_is_sent_when_the_stranger_vanishes_before_it_goes_again() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=2).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    // The fourth message that it sends is event 3 for the second time.
    let armed = stage.outjet(["run", "--log-format", "json"]);
    let mut armed = armed.env("FAULT_POINT", "judged:4").spawn();
    armed.logged("leading", SOON).await;
    stage.proxy.set(Mode::Stall(Direction::ToServer));
    stage.commit(3..=5).await;
    until_read(&stage).await;
    let stray = stray(&stage).await;
    stage.proxy.set(Mode::Forward);
    armed.exit(SOON).await;
    deleted(&stage, [stray]).await;
    let _outjet = stage.lead().await;
    stage.confirmed().await;
    stage.commit(6..=6).await;
    stage.confirmed().await;
    let mut there = numbers(&stage).await;
    there.sort_unstable();
    assert_eq!(there, (1..=6).collect::<Vec<_>>());
}

/// The server remembers the id of a message that is gone: another event has it,
/// too.
#[tokio::test]
async fn id_of_a_message_that_vanished_hides_no_other_event_with_it() {
    let yaml = QUICK.replace("duplicate_window: 100ms", "duplicate_window: 2m");
    let stage = Stage::on(Nats::builder(), &yaml).await;
    let insert = |seconds: u32| {
        format!(
            "INSERT INTO outbox.events (id, created_at, aggregatetype, aggregateid, type, payload)
             VALUES ('d0000000-0000-4000-8000-000000000001', now() + {seconds} * interval '1 s',
                     'order', '1', 'created', to_jsonb({seconds}))"
        )
    };
    let mut outjet = stage.lead().await;
    stage.session.run(&insert(1)).await;
    stage.commit(2..=2).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    deleted(&stage, [1]).await;
    // One that was committed while nobody ran, one that comes later.
    stage.session.run(&insert(3)).await;
    let _outjet = stage.lead().await;
    stage.confirmed().await;
    stage.session.run(&insert(4)).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, [2, 3, 4]);
}

/// A copy of an old message at the end of the stream misled the search backwards.
#[tokio::test]
async fn copy_of_an_old_message_at_the_end_lets_nothing_be_stored_twice() {
    let mut stage = Stage::on(Nats::builder(), &window(16)).await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.confirmed().await;
    stage.session.run("CHECKPOINT").await;
    stage.commit(6..=300).await;
    stage.confirmed().await;
    stored_unheard(&stage, &mut outjet, 301..=310).await;
    copy(&stage.stream().await, &stage, 1).await;
    stage.world.postgres.restart(Stop::Immediate).await;
    stage.session = stage.world.postgres.connect().await;
    let _outjet = stage.lead().await;
    stage.confirmed().await;
    stage.commit(311..=312).await;
    stage.confirmed().await;
    let expected: Vec<u32> = (1..=310).chain([1, 311, 312]).collect();
    assert_eq!(numbers(&stage).await, expected);
}

/// A copy proves that its event was stored, even if the original is gone.
#[tokio::test]
async fn copy_of_an_event_that_vanished_settles_it() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=3).await;
    stored_unheard(&stage, &mut outjet, 4..=6).await;
    copy(&stage.stream().await, &stage, 5).await;
    deleted(&stage, [5]).await;
    let _outjet = stage.lead().await;
    stage.confirmed().await;
    stage.commit(7..=7).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, [1, 2, 3, 4, 6, 5, 7]);
}

/// A dead letter that somebody dropped let all later ones be stored twice.
#[tokio::test]
async fn dropped_dead_letter_lets_no_other_be_stored_twice() {
    let nats = Nats::builder().config("max_payload: 100000");
    let servers = (Postgres::builder(), nats);
    let mut delivery = Delivery::on(servers, "stream: {duplicate_window: 100ms}").await;
    let outjet = delivery.run();
    let large = "SELECT outbox.emit('order', n::text, 'bad',
                 payload_raw => convert_to(repeat('x', 100000), 'UTF8'))
                 FROM generate_series(1, 21) AS n";
    delivery.session.run(large).await;
    delivery.confirmed().await;
    let jetstream = delivery.world.nats.jetstream().await;
    let letters = async || drain::messages(&jetstream, "OUTBOX_DLQ").await.len();
    assert_eq!(letters().await, 21);
    let dropped = delivery
        .outjet(["dead-letters", "drop", "1"])
        .output()
        .await;
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    drop(outjet);
    delivery.world.postgres.restart(Stop::Fast).await;
    delivery.session = delivery.world.postgres.connect().await;
    let _outjet = delivery.run();
    delivery
        .session
        .run("SELECT outbox.emit('order', '22', 'good')")
        .await;
    delivery.confirmed().await;
    assert_eq!(letters().await, 20);
}

/// What was kept until it is due was published at once when the setting changed.
#[tokio::test]
async fn delayed_events_are_stored_once_whatever_publish_delayed_says_later() {
    const KEPT: &str = "stream: {duplicate_window: 100ms}\npublish: {delayed: schedule}";
    const IGNORED: &str = "stream: {duplicate_window: 100ms}\npublish: {delayed: now}";
    let nats = Nats::builder().version(BATCHING);
    let mut delivery = Delivery::on((Postgres::builder(), nats), KEPT).await;
    let emit = "SELECT outbox.emit('order', '1', 'placed', '{}',
                deliver_at => now() + interval '1 hour') FROM generate_series(1, 3)";
    delivery.session.run(emit).await;
    let outjet = delivery.run();
    delivery.confirmed().await;
    drop(outjet);
    delivery.world.postgres.restart(Stop::Fast).await;
    delivery.session = delivery.world.postgres.connect().await;
    delivery.configure(IGNORED);
    let outjet = delivery.run();
    delivery.session.run("CHECKPOINT").await;
    delivery.confirmed().await;
    assert_eq!(delivery.stored().await.len(), 0);
    // And the other way round.
    delivery.session.run(emit).await;
    delivery.confirmed().await;
    assert_eq!(delivery.stored().await.len(), 3);
    drop(outjet);
    delivery.world.postgres.restart(Stop::Fast).await;
    delivery.session = delivery.world.postgres.connect().await;
    delivery.configure(KEPT);
    let _outjet = delivery.run();
    delivery
        .session
        .run("SELECT outbox.emit('order', '2', 'placed')")
        .await;
    delivery.confirmed().await;
    assert_eq!(delivery.stored().await.len(), 4);
    let jetstream = delivery.world.nats.jetstream().await;
    let kept = drain::messages(&jetstream, "OUTBOX_DELAYED").await;
    let schedules = kept.iter().filter(|m| m.header("Nats-Schedule").is_some());
    assert_eq!(schedules.count(), 3);
}

/// The same, where the first leader died before it had recorded any, whatever became of the record.
#[tokio::test]
async fn schedules_of_a_leader_that_died_are_known_whatever_publish_delayed_says_later() {
    const KEPT: &str = "stream: {duplicate_window: 100ms}\npublish: {delayed: schedule}";
    const IGNORED: &str = "stream: {duplicate_window: 100ms}\npublish: {delayed: now}";
    for deleted in [None, Some("OUTBOX"), Some("KV_OUTJET_OUTBOX")] {
        let nats = Nats::builder().version(BATCHING);
        let mut delivery = Delivery::on((Postgres::builder(), nats), KEPT).await;
        let emit = "SELECT outbox.emit('order', '1', 'placed', '{}', deliver_at =>
                    CASE WHEN n > 0 THEN now() + interval '1 hour' END)
                    FROM generate_series(0, 5) AS n";
        delivery.session.run(emit).await;
        die_at(&delivery, "schedule_stored", 3).await;
        let jetstream = delivery.world.nats.jetstream().await;
        if let Some(deleted) = deleted {
            jetstream.delete_stream(deleted).await.expect("deleted");
        }
        delivery.configure(IGNORED);
        let _outjet = delivery.run();
        delivery.confirmed().await;
        assert_eq!(delivery.stored().await.len(), 3, "without {deleted:?}");
        let kept = drain::messages(&jetstream, "OUTBOX_DELAYED").await;
        let schedules = kept.iter().filter(|m| m.header("Nats-Schedule").is_some());
        assert_eq!(schedules.count(), 3, "without {deleted:?}");
    }
}

/// What strangers displaced under a large window was missed under a small one.
#[tokio::test]
async fn smaller_window_after_a_restart_lets_nothing_be_stored_twice() {
    let mut stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=5).await;
    stage.confirmed().await;
    stage.proxy.set(Mode::Stall(Direction::ToServer));
    stage.commit(6..=205).await;
    let stray = stray(&stage).await;
    stage.proxy.set(Mode::Forward);
    stage.until_sequence(stray + 200).await;
    outjet.kill().await;
    stage.world.postgres.restart(Stop::Immediate).await;
    stage.session = stage.world.postgres.connect().await;
    stage.configure(&window(1));
    let _outjet = stage.lead().await;
    stage.confirmed().await;
    let mut there = numbers(&stage).await;
    there.sort_unstable();
    assert_eq!(there, (0..=205).collect::<Vec<_>>());
}

/// What a leader settled is not read from the stream again, whatever has become of it.
#[tokio::test]
async fn emptied_stream_gets_nothing_back_that_was_recorded() {
    let mut stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=500).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    stage.stream().await.purge().await.expect("purged");
    stage.world.postgres.restart(Stop::Fast).await;
    stage.session = stage.world.postgres.connect().await;
    let _outjet = stage.lead().await;
    stage.commit(501..=502).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, [501, 502]);
}

/// The bucket is deleted under a leader: nothing more is confirmed without a record, and the next
/// term makes it anew.
#[tokio::test]
async fn bucket_that_is_deleted_under_a_leader_is_made_again_and_nothing_is_lost() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=10).await;
    stage.confirmed().await;
    let jetstream = stage.jetstream().await;
    jetstream
        .delete_stream("KV_OUTJET_OUTBOX")
        .await
        .expect("deleted");
    stage.commit(11..=20).await;
    let unwritten = "retrying: the record of what is settled cannot be written";
    outjet.logged(unwritten, SOON).await;
    stage.confirmed().await;
    stage.commit(21..=30).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, (1..=30).collect::<Vec<_>>());
    jetstream
        .get_stream("KV_OUTJET_OUTBOX")
        .await
        .expect("the bucket");
}

/// An older record is put in its place, under a leader and while none runs.
#[tokio::test]
async fn record_that_was_put_back_loses_and_doubles_nothing() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=10).await;
    stage.confirmed().await;
    let old = record(&stage).await;
    stage.commit(11..=20).await;
    stage.confirmed().await;
    put_back(&stage, old.clone()).await;
    stage.commit(21..=30).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    put_back(&stage, old).await;
    let mut outjet = stage.lead().await;
    stage.commit(31..=40).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, (1..=40).collect::<Vec<_>>());
    // The slot stands above what it says: nobody can tell whether anything lies between.
    let gap = "gap: slot outjet was moved: events may be missing";
    outjet.logged(gap, SOON).await;
}

/// The record is written before what it says is confirmed, and the events up to it are known.
#[tokio::test]
async fn dying_around_the_write_of_the_record_loses_and_doubles_nothing() {
    let delivery = Delivery::configured("stream: {duplicate_window: 100ms}").await;
    for point in ["record_written", "record_sent", "record_answered"] {
        for passage in [1, 2] {
            let numbers = "SELECT outbox.emit('order', n::text, 'created')
                           FROM generate_series(1, 200) AS n";
            delivery.session.run(numbers).await;
            die_at(&delivery, point, passage).await;
        }
    }
    let _outjet = delivery.run();
    delivery.confirmed().await;
    let ids = delivery.ids().await;
    delivery.judge.verdict(&ids).await.assert_exact();
}

/// Two instances, one paused: the other claims a higher term, and the first writes nothing more.
#[tokio::test]
async fn paused_leader_that_wakes_up_writes_no_record() {
    let stage = Stage::ready().await;
    let mut paused = stage.lead().await;
    stage.commit(1..=10).await;
    stage.confirmed().await;
    paused.pause().await;
    let mut second = stage.run();
    second.logged("leading", SOON).await;
    stage.commit(11..=20).await;
    stage.confirmed().await;
    paused.resume();
    stage.commit(21..=30).await;
    stage.confirmed().await;
    let term = async || {
        let kept = record(&stage).await;
        let record: serde_json::Value = serde_json::from_slice(&kept).expect("JSON");
        record["term"].as_u64().expect("a term")
    };
    assert_eq!(term().await, 2);
    second.kill().await;
    until("the first leads again", SOON, async || {
        let term = term().await;
        Wait::ready_if(term == 3, term)
    })
    .await;
    stage.commit(31..=31).await;
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, (1..=31).collect::<Vec<_>>());
}
