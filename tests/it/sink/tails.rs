//! A new leader, or a new connection, finds less in the stream than was stored: consumers and
//! limits take messages away. What is gone may have been stored: as long as the server remembers
//! its id, it is not stored again; later it is, and is counted.

use async_nats::jetstream::{self, consumer, stream};
use futures_util::StreamExt;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{cut_at_random, more_stored, swallow_acks};
use crate::harness::drain;
use crate::harness::stage::{QUICK, SOON, STREAM, Stage};
use crate::harness::{Direction, Mode, Nats, Outjet, Verdict, Wait, nats, until};

/// The stream remembers ids for as long as a test takes.
async fn remembering(nats: nats::Builder) -> Stage {
    let yaml = QUICK.replace("duplicate_window: 100ms", "duplicate_window: 2m");
    Stage::on(nats, &yaml).await
}

/// Commits `numbers` and kills the leader when they are stored, before it can confirm them.
async fn stored_unconfirmed(
    stage: &Stage,
    outjet: &mut Outjet,
    numbers: std::ops::RangeInclusive<u32>,
) {
    stage.confirmed().await;
    stage.proxy.set(Mode::Stall(Direction::ToClient));
    let last = u64::from(*numbers.end());
    stage.commit(numbers).await;
    stage.until_sequence(last).await;
    outjet.kill().await;
    stage.proxy.set(Mode::Forward);
}

/// The bodies, which are numbers, in the stream's order.
async fn numbers(stage: &Stage) -> Vec<u32> {
    let messages = drain::messages(&stage.jetstream().await, STREAM).await;
    let number = |message: &drain::Stored| {
        let body = std::str::from_utf8(&message.payload).expect("UTF-8");
        body.parse().expect("a number")
    };
    messages.iter().map(number).collect()
}

async fn ends_with(stage: &Stage, more: std::ops::RangeInclusive<u32>) -> Vec<u32> {
    let last = u64::from(*more.end());
    stage.commit(more).await;
    stage.confirmed().await;
    assert_eq!(stage.last_sequence().await, last);
    numbers(stage).await
}

#[tokio::test]
async fn deleted_messages_at_the_end_are_not_sent_again() {
    let stage = remembering(Nats::builder()).await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=10).await;
    stored_unconfirmed(&stage, &mut outjet, 11..=30).await;
    let stream = stage.stream().await;
    for sequence in [15, 16, 28, 29, 30] {
        let deleted = stream.delete_message(sequence).await;
        assert!(deleted.expect("deleted"));
    }
    let _outjet = stage.lead().await;
    let expected: Vec<u32> = (1..=35)
        .filter(|number| ![15, 16, 28, 29, 30].contains(number))
        .collect();
    assert_eq!(ends_with(&stage, 31..=35).await, expected);
}

/// Twice rather than lost: nobody remembers what the vacant numbers were, a stranger's perhaps.
#[tokio::test]
async fn deleted_messages_that_nobody_remembers_are_sent_again_and_counted() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=10).await;
    stored_unconfirmed(&stage, &mut outjet, 11..=30).await;
    let stream = stage.stream().await;
    for sequence in [15, 29, 30] {
        let deleted = stream.delete_message(sequence).await;
        assert!(deleted.expect("deleted"));
    }
    let mut outjet = stage.lead().await;
    let uncertain = "an event was sent that may have been stored before: its message vanished, \
                     or it never was";
    outjet.logged(uncertain, SOON).await;
    stage.commit(31..=32).await;
    stage.confirmed().await;
    let there = (1..=28).filter(|number| *number != 15);
    let expected: Vec<u32> = there.chain([15, 29, 30, 31, 32]).collect();
    assert_eq!(numbers(&stage).await, expected);
}

#[tokio::test]
async fn stream_purged_but_for_its_end_gets_nothing_back() {
    let stage = remembering(Nats::builder()).await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=10).await;
    stored_unconfirmed(&stage, &mut outjet, 11..=300).await;
    stage.stream().await.purge().keep(1).await.expect("purged");
    let _outjet = stage.lead().await;
    assert_eq!(
        ends_with(&stage, 301..=302).await,
        [300, 301, 302],
        "what was purged is not sent again"
    );
}

#[tokio::test]
async fn deleted_messages_of_a_lost_connection_are_not_sent_again() {
    let stage = remembering(Nats::builder()).await;
    let _outjet = stage.lead().await;
    stage.commit(1..=10).await;
    stage.confirmed().await;
    // Twice, without an ack in between.
    for numbers in [11..=20, 21..=30] {
        let last = *numbers.end();
        stage.proxy.set(Mode::Stall(Direction::ToClient));
        stage.commit(numbers).await;
        stage.until_sequence(u64::from(last)).await;
        stage.stream().await.purge().await.expect("purged");
        stage.proxy.cut();
        stage.proxy.set(Mode::Forward);
        stage.confirmed().await;
    }
    assert_eq!(
        ends_with(&stage, 31..=45).await,
        (31..=45).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn what_was_not_sent_when_the_stream_was_emptied_is_sent() {
    let stage = remembering(Nats::builder()).await;
    let _outjet = stage.lead().await;
    stage.commit(1..=10).await;
    stage.confirmed().await;
    stage.proxy.set(Mode::Stall(Direction::ToClient));
    stage.commit(11..=20).await;
    stage.until_sequence(20).await;
    stage.stream().await.purge().await.expect("purged");
    stage.proxy.cut();
    stage.proxy.set(Mode::Forward);
    // Settled without a single ack since; the next break must not count these places again.
    stage.confirmed().await;
    stage.proxy.set(Mode::Stall(Direction::Both));
    stage.commit(21..=40).await;
    stage.proxy.cut();
    stage.proxy.set(Mode::Forward);
    stage.confirmed().await;
    assert_eq!(numbers(&stage).await, (21..=40).collect::<Vec<_>>());
}

/// A consumer that acks whatever it gets; the ids, in the order of arrival.
struct Worker {
    tasks: JoinSet<()>,
    ids: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Worker {
    async fn start(jetstream: jetstream::Context) -> Self {
        let stream = jetstream.get_stream(STREAM).await.expect("the stream");
        let worker = consumer::pull::Config {
            durable_name: Some("worker".to_owned()),
            ..Default::default()
        };
        let consumer = stream.create_consumer(worker).await.expect("a consumer");
        let (sender, ids) = mpsc::channel(100_000);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut messages = consumer.messages().await.expect("messages");
            while let Some(message) = messages.next().await {
                let message = message.expect("a message");
                let id = message.headers.as_ref().and_then(|headers| {
                    let id = headers.get("Nats-Msg-Id").or(headers.get("Outjet-Id"));
                    id.map(ToString::to_string)
                });
                message.ack().await.expect("acked");
                let id = id.unwrap_or_else(|| "stranger".to_owned());
                sender.send(id).await.expect("the test goes on");
            }
        });
        Self {
            tasks,
            ids,
            seen: Vec::new(),
        }
    }

    async fn until_seen(&mut self, events: usize) {
        until("the worker has seen all", SOON, async || {
            while let Ok(id) = self.ids.try_recv() {
                self.seen.push(id);
            }
            Wait::ready_if(self.seen.len() >= events, self.seen.len())
        })
        .await;
    }
}

/// A stream from which messages vanish as soon as they are consumed.
async fn work_queue() -> Stage {
    let stage = Stage::ready().await;
    let jetstream = stage.jetstream().await;
    jetstream.delete_stream(STREAM).await.expect("deleted");
    let queue = stream::Config {
        name: STREAM.to_owned(),
        subjects: vec!["events.>".to_owned()],
        retention: stream::RetentionPolicy::WorkQueue,
        discard: stream::DiscardPolicy::New,
        // Where nothing is left to compare with, the ids are all that helps a new leader.
        duplicate_window: Duration::from_secs(120),
        ..Default::default()
    };
    jetstream.create_stream(queue).await.expect("a work queue");
    stage
}

#[tokio::test]
async fn work_queue_hands_out_each_event_once_whatever_breaks() {
    let stage = work_queue().await;
    let _outjet = stage.lead().await;
    let mut worker = Worker::start(stage.jetstream().await).await;
    let writers = stage.write(3).await;
    cut_at_random(&stage, 5).await;
    for _ in 0..5 {
        more_stored(&stage, 20).await;
        swallow_acks(&stage).await;
    }
    let committed = writers.finish().await;
    stage.confirmed().await;
    worker.until_seen(committed as usize).await;
    let verdict = Verdict::of(&stage.judge.committed().await, &worker.seen);
    verdict.assert_exact();
    worker.tasks.shutdown().await;
}

#[tokio::test]
async fn leader_of_an_emptied_work_queue_may_be_killed() {
    let stage = work_queue().await;
    let mut outjet = stage.lead().await;
    let mut worker = Worker::start(stage.jetstream().await).await;
    stage.commit(1..=10).await;
    stored_unconfirmed(&stage, &mut outjet, 11..=30).await;
    worker.until_seen(30).await;
    until("the queue is empty", SOON, async || {
        let messages = stage.stream().await.cached_info().state.messages;
        Wait::ready_if(messages == 0, messages)
    })
    .await;
    // Nothing is left to compare with: within the duplicate window the ids help.
    let _outjet = stage.lead().await;
    stage.commit(31..=35).await;
    stage.confirmed().await;
    worker.until_seen(35).await;
    Verdict::of(&stage.judge.committed().await, &worker.seen).assert_exact();
}

#[tokio::test]
async fn stranger_whose_message_was_consumed_costs_no_event() {
    let stage = work_queue().await;
    let _outjet = stage.lead().await;
    let mut worker = Worker::start(stage.jetstream().await).await;
    stage.commit(1..=10).await;
    worker.until_seen(10).await;
    let jetstream = stage.jetstream().await;
    let stored = jetstream.publish("events.stray", "stray".into()).await;
    stored.expect("sent").await.expect("stored");
    worker.until_seen(11).await;
    stage.commit(11..=13).await;
    stage.confirmed().await;
    worker.until_seen(14).await;
    stage.commit(14..=20).await;
    stage.confirmed().await;
    worker.until_seen(21).await;
    worker.seen.retain(|id| id != "stranger");
    let verdict = Verdict::of(&stage.judge.committed().await, &worker.seen);
    assert_eq!((verdict.committed, verdict.stored), (20, 20));
    // 11 was refused, and what was under way with it stands before it.
    assert_eq!(verdict.missing, Vec::<String>::new(), "{verdict}");
    assert!(verdict.out_of_order.len() <= 1, "{verdict}");
}

#[tokio::test]
async fn leader_finds_its_place_on_the_oldest_server() {
    let stage = remembering(Nats::builder().version("2.10")).await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=10).await;
    stored_unconfirmed(&stage, &mut outjet, 11..=300).await;
    let stream = stage.stream().await;
    for sequence in 100..=200 {
        stream.delete_message(sequence).await.expect("deleted");
    }
    let _outjet = stage.lead().await;
    let expected: Vec<u32> = (1..100).chain(201..=305).collect();
    assert_eq!(ends_with(&stage, 301..=305).await, expected);
}
