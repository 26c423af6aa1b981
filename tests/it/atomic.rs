//! `publish.transactions: atomic`: a transaction stands in the stream as a whole or not at all,
//! whoever looks and whatever is killed; and all that holds otherwise holds, too.

use std::collections::BTreeMap;

use async_nats::jetstream;

use crate::delivery::{Delivery, SOON, STREAM};
use crate::faults::die_at;
use crate::harness::drain::{self, Stored};
use crate::harness::nats::BATCHING;
use crate::harness::outbox::Random;
use crate::harness::postgres::Session;
use crate::harness::{Nats, Postgres, Wait, until};

/// The servers' duplicate window cannot help. Nothing stalls here: who is to die at an instant gets
/// there only if no busy machine is taken for a stalled server before.
const CONFIG: &str = "
stream: {duplicate_window: 100ms}
publish: {transactions: atomic, ack_timeout: 60s}
";

/// Numbers of events that are told apart: alone, together, too many.
const SIZES: [u64; 10] = [1, 2, 3, 3, 17, 17, 100, 250, 1000, 1001];

/// Most messages in a batch (ADR-50).
const TOGETHER_MAX: u64 = 1000;

/// One transaction; each of its events says how many they are.
async fn commit(session: &Session, events: u64) {
    let sql = format!(
        "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
         SELECT 'order', n::text, '{events}', to_jsonb(repeat('word ', n % 40))
         FROM generate_series(1, {events}) AS n"
    );
    session.run(&sql).await;
}

/// The events of each transaction, by what their positions begin with.
fn transactions(stored: &[Stored]) -> BTreeMap<&str, Vec<&Stored>> {
    let mut transactions: BTreeMap<&str, Vec<&Stored>> = BTreeMap::new();
    for message in stored {
        let position = message.header("Outjet-Position").expect("a position");
        let (commit, _) = position.split_once('-').expect("a position");
        transactions.entry(commit).or_default().push(message);
    }
    transactions
}

/// Of the transactions of up to `together_max` events, every one that is there must be there as a
/// whole, one event behind the other; returns how many were sent together.
fn batches(stored: &[Stored], together_max: u64) -> Result<usize, String> {
    let mut batches = 0;
    for (commit, events) in transactions(stored) {
        let size = events[0].subject.rsplit('.').next();
        let size: u64 = size.and_then(|size| size.parse().ok()).expect("a size");
        if size > together_max {
            continue;
        }
        let there = events.len() as u64;
        if there != size {
            return Err(format!("transaction {commit}: {there} events of {size}"));
        }
        let (first, last) = (events[0].sequence, events[events.len() - 1].sequence);
        if last - first + 1 != size {
            return Err(format!("others within transaction {commit}"));
        }
        let name = events[0].header("Nats-Batch-Id");
        assert_eq!(name.is_some(), size > 1, "transaction {commit} of {size}");
        assert!(events.iter().all(|e| e.header("Nats-Batch-Id") == name));
        batches += usize::from(name.is_some());
    }
    Ok(batches)
}

/// What stands in the stream once every transaction is there as a whole. The server moves a batch
/// into the stream message by message, and its state and its consumers tell of some before the
/// others are there; but it does so whatever becomes of outjet.
pub(crate) async fn settled<T>(
    delivery: &Delivery,
    judged: impl Fn(&[Stored]) -> Result<T, String>,
) -> Vec<Stored> {
    until("each transaction is whole", SOON, async || {
        let stored = delivery.stored().await;
        match judged(&stored) {
            Ok(_) => Wait::Ready(stored),
            Err(error) => Wait::NotYet(error),
        }
    })
    .await
}

/// Whoever reads the last message, which the server keeps apart from its writes, reads the last
/// one of a transaction.
async fn assert_end_is_whole(jetstream: &jetstream::Context, together_max: u64) {
    let stream = jetstream
        .get_stream_no_info(STREAM)
        .await
        .expect("a stream");
    let last = stream.get_last_raw_message_by_subject(">").await;
    let last = last.expect("a last message");
    let size = last.subject.rsplit('.').next();
    let size: u64 = size.and_then(|size| size.parse().ok()).expect("a size");
    let ends = last.headers.get("Nats-Batch-Commit").is_some();
    assert_eq!(ends, (2..=together_max).contains(&size), "{last:?}");
}

/// Exact by the judge, and whole.
async fn assert_exact(delivery: &Delivery, together_max: u64) -> Vec<Stored> {
    delivery.confirmed().await;
    let stored = delivery.stored().await;
    let id = |message: &Stored| message.id().expect("an id").to_owned();
    let ids: Vec<String> = stored.iter().map(id).collect();
    delivery.judge.verdict(&ids).await.assert_exact();
    let batches = batches(&stored, together_max).expect("whole transactions");
    eprintln!("{} events, {batches} batches", stored.len());
    assert!(batches > 0);
    stored
}

async fn until_stored(jetstream: &jetstream::Context, messages: u64) {
    until("more is stored", SOON, async || {
        let stream = jetstream.get_stream(STREAM).await;
        let last = stream.map(|stream| stream.cached_info().state.last_sequence);
        let enough = last.as_ref().is_ok_and(|last| *last >= messages);
        Wait::ready_if(enough, last)
    })
    .await;
}

#[tokio::test]
async fn transaction_of_2_to_1000_events_appears_as_a_whole_and_others_as_usual() {
    let delivery = Delivery::batching(CONFIG).await;
    for events in SIZES {
        commit(&delivery.session, events).await;
    }
    let _outjet = delivery.run();
    for events in SIZES {
        commit(&delivery.session, events).await;
    }
    let stored = assert_exact(&delivery, TOGETHER_MAX).await;
    for events in transactions(&stored).into_values() {
        let expects = |event: &&Stored| event.header("Nats-Expected-Last-Sequence").is_some();
        let chained = events.iter().filter(|event| expects(event)).count();
        let together = (2..=1000).contains(&events.len());
        assert_eq!(chained, if together { 1 } else { events.len() });
        assert!(expects(&events[0]));
    }
}

#[tokio::test]
async fn nobody_sees_a_part_of_a_transaction_while_outjet_and_the_server_are_killed() {
    let mut delivery = Delivery::batching(CONFIG).await;
    let mut random = Random(11);
    let mut last = 0;
    for round in 0..6 {
        for _ in 0..3 {
            let size = SIZES[random.below(SIZES.len() as u64) as usize];
            commit(&delivery.session, size).await;
        }
        // So much that no round runs dry.
        commit(&delivery.session, 1000).await;
        let mut outjet = delivery.run();
        let jetstream = delivery.world.nats.jetstream().await;
        until_stored(&jetstream, last + 1 + random.below(600)).await;
        assert_end_is_whole(&jetstream, TOGETHER_MAX).await;
        if round % 3 == 2 {
            delivery.world.nats.kill().await;
            delivery.world.nats.start_again().await;
        }
        outjet.kill().await;
        let stored = settled(&delivery, |stored| batches(stored, TOGETHER_MAX)).await;
        last = stored.last().map_or(0, |message| message.sequence);
    }
    let _outjet = delivery.run();
    assert_exact(&delivery, TOGETHER_MAX).await;
}

#[tokio::test]
async fn killed_in_the_middle_of_a_batch_nothing_of_it_appears_and_all_of_it_later() {
    let delivery = Delivery::batching(CONFIG).await;
    for (point, passage) in [
        ("published_in_part", 1),
        ("published_in_part", 2),
        ("published_in_part", 250),
        ("published_in_part", 500),
        ("answered", 1),
        ("answered", 3),
        ("published", 2),
        ("settled", 1),
    ] {
        for events in [2, 300, 1, 300, 3] {
            commit(&delivery.session, events).await;
        }
        die_at(&delivery, point, passage).await;
        settled(&delivery, |stored| batches(stored, TOGETHER_MAX)).await;
    }
    let _outjet = delivery.run();
    assert_exact(&delivery, TOGETHER_MAX).await;
}

#[tokio::test]
async fn transaction_larger_than_half_the_window_is_sent_in_parts_and_blocks_nothing() {
    let yaml = CONFIG.replace("atomic,", "atomic, in_flight_max: 64,");
    let delivery = Delivery::batching(&yaml).await;
    let _outjet = delivery.run();
    for events in [32, 33, 64, 65, 2, 300, 3] {
        commit(&delivery.session, events).await;
    }
    assert_exact(&delivery, 32).await;
}

#[tokio::test]
async fn rest_of_a_transaction_with_dead_letters_appears_as_a_whole() {
    let nats = Nats::builder().version(BATCHING);
    let nats = nats.config("max_payload: 100000");
    let delivery = Delivery::on((Postgres::builder(), nats), CONFIG).await;
    let large = "payload_raw => convert_to(repeat('x', 100000), 'UTF8')";
    let transaction = format!(
        "BEGIN;
         SELECT outbox.emit('order', '0', 'bad', {large});
         SELECT outbox.emit('order', n::text, '5') FROM generate_series(1, 3) AS n;
         SELECT outbox.emit('order', '4', 'bad', {large});
         SELECT outbox.emit('order', n::text, '5') FROM generate_series(5, 6) AS n;
         SELECT outbox.emit('order', '7', 'bad', {large});
         COMMIT"
    );
    // Behind a letter; between two of them; with one that is known.
    for passage in [1, 2, 3] {
        delivery.session.run(&transaction).await;
        die_at(&delivery, "letter_stored", passage).await;
        settled(&delivery, |stored| batches(stored, TOGETHER_MAX)).await;
    }
    let _outjet = delivery.run();
    delivery.confirmed().await;
    let published = delivery.stored().await;
    assert_eq!(
        (published.len(), batches(&published, TOGETHER_MAX)),
        (15, Ok(3))
    );
    let jetstream = delivery.world.nats.jetstream().await;
    assert_eq!(drain::messages(&jetstream, "OUTBOX_DLQ").await.len(), 9);
}

#[tokio::test]
async fn transaction_with_one_id_twice_is_stored_as_a_whole_without_message_ids() {
    let delivery = Delivery::batching("publish: {transactions: atomic}").await;
    let _outjet = delivery.run();
    let twice = "
        INSERT INTO outbox.events (id, created_at, aggregatetype, aggregateid, type, payload)
        SELECT 'd0000000-0000-4000-8000-000000000001', now() + n * interval '1 s', 'order', '1',
               '2', '{}' FROM generate_series(1, 2) AS n";
    delivery.session.run(twice).await;
    commit(&delivery.session, 3).await;
    let stored = assert_exact(&delivery, TOGETHER_MAX).await;
    let named = stored.iter().filter(|m| m.header("Nats-Msg-Id").is_some());
    assert_eq!((stored.len(), named.count()), (5, 3));
}
