//! Somebody else publishes into our stream: noticed, and it costs none of our events.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cut_at_random;
use crate::harness::drain::{self, Stored};
use crate::harness::outjet::Outjet;
use crate::harness::stage::{QUICK, SOON, STREAM, Stage};
use crate::harness::{Direction, Mode, Nats, Verdict};
use crate::restart::{LEFT, until_free};

/// What the log says of strangers.
pub(crate) const NOTICED: &str = "the stream holds messages that are not ours";

/// Most events that may be under way at once, and so stand before a refused one.
pub(super) const IN_FLIGHT_MAX: usize = 4096;

/// Publishes now and then until it is told to stop; returns how often.
async fn stranger(jetstream: jetstream::Context, stop: CancellationToken) -> u64 {
    let mut published = 0;
    while !stop.is_cancelled() {
        let subject = "events.stranger.was.here";
        let stored = jetstream.publish(subject, "stray".into()).await;
        if stored.expect("sent").await.is_ok() {
            published += 1;
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    published
}

fn is_ours(message: &Stored) -> bool {
    message.header("Outjet-Source").is_some()
}

/// Each of ours stands there once; one that a stranger displaced may come late, by one window.
/// Returns how many messages of strangers stand there.
pub(crate) async fn assert_each_once(stage: &Stage, window: usize) -> u64 {
    stage.confirmed().await;
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let (ours, others): (Vec<Stored>, Vec<Stored>) = stored.into_iter().partition(is_ours);
    let strangers = others.len() as u64;
    let id = |message: &Stored| message.id().expect("an id").to_owned();
    let ids: Vec<String> = ours.iter().map(id).collect();
    let committed = stage.judge.committed().await;
    let verdict = Verdict::of(&committed, &ids);
    eprintln!("{strangers} strangers\n{verdict}");
    assert!(verdict.committed > 0);
    assert_eq!(verdict.missing, Vec::<String>::new(), "{verdict}");
    assert_eq!(verdict.duplicated, Vec::<String>::new(), "{verdict}");
    assert_eq!(verdict.uncommitted, Vec::<String>::new(), "{verdict}");
    let places = committed.iter().enumerate();
    let due: HashMap<&String, usize> = places.map(|(place, id)| (id, place)).collect();
    for (place, id) in ids.iter().enumerate() {
        let late = place.saturating_sub(due[id]);
        assert!(late <= window, "{id} is {late} events late");
    }
    strangers
}

/// Troubles while somebody else publishes, too.
async fn among_strangers(stage: &Stage, troubles: impl AsyncFnOnce(&Stage)) {
    let writers = stage.write(3).await;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(stranger(stage.jetstream().await, stop.clone()));
    troubles(stage).await;
    stop.cancel();
    let strangers = tasks.join_next().await.expect("a task").expect("its end");
    writers.finish().await;
    assert!(strangers > 0);
    assert_eq!(assert_each_once(stage, IN_FLIGHT_MAX).await, strangers);
}

async fn noticed(outjet: &mut Outjet) {
    outjet.logged(NOTICED, SOON).await;
}

#[tokio::test]
async fn stranger_is_noticed_and_costs_no_event() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    among_strangers(&stage, async |_| {
        for _ in 0..5 {
            noticed(&mut outjet).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn stranger_and_a_bad_connection_cost_no_event() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    among_strangers(&stage, async |stage| cut_at_random(stage, 4).await).await;
    noticed(&mut outjet).await;
}

#[tokio::test]
async fn stranger_and_killed_leaders_cost_no_event() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    among_strangers(&stage, async |stage| {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            stage.proxy.set(Mode::Stall(Direction::ToClient));
            tokio::time::sleep(Duration::from_millis(20)).await;
            outjet.kill().await;
            stage.proxy.set(Mode::Forward);
            outjet = stage.lead().await;
        }
    })
    .await;
}

/// Makes the stream anew with these of its messages, in this order; 0 is a stranger's.
async fn rearrange(stage: &Stage, order: &[usize]) {
    let jetstream = stage.jetstream().await;
    let config = stage.stream().await.cached_info().config.clone();
    let messages = drain::messages(&jetstream, STREAM).await;
    jetstream.delete_stream(STREAM).await.expect("deleted");
    jetstream.create_stream(config).await.expect("created");
    for number in order {
        let Some(message) = number.checked_sub(1).map(|at| messages[at].clone()) else {
            let sent = jetstream.publish("events.stray", "stray".into()).await;
            sent.expect("sent").await.expect("stored");
            continue;
        };
        let mut headers = async_nats::HeaderMap::new();
        for name in ["Outjet-Source", "Outjet-Position", "Nats-Msg-Id"] {
            headers.insert(name, message.header(name).expect("a header of ours"));
        }
        let (subject, payload) = (message.subject, message.payload);
        let sent = jetstream.publish_with_headers(subject, headers, payload);
        sent.await.expect("sent").await.expect("stored");
    }
}

/// Commits 20 events and kills the leader; the slot is left behind event `confirmed`.
async fn abandoned(stage: &Stage, confirmed: u32) {
    let mut outjet = stage.lead().await;
    for number in 1..=20 {
        stage.commit(number..=number).await;
        if number == confirmed {
            stage.confirmed().await;
            stage.proxy.set(Mode::Stall(Direction::ToClient));
        }
    }
    stage.until_sequence(20).await;
    outjet.kill().await;
    stage.proxy.set(Mode::Forward);
    until_free(&stage.session).await;
    let left = (20 - confirmed).to_string();
    assert_eq!(stage.session.text(LEFT).await, left);
}

#[tokio::test]
async fn new_leader_finds_displaced_events_where_they_stand() {
    // 5 and 9 were refused; 6 to 8 and 10 to 20 fitted behind the strangers. 5 and 9 come last.
    let order: Vec<usize> = (1..=4)
        .chain([0, 6, 7, 8, 0])
        .chain(10..=20)
        .chain([5, 9])
        .collect();
    // From before the first of them, and from behind where both should stand.
    for confirmed in [3, 14] {
        let stage = Stage::ready().await;
        abandoned(&stage, confirmed).await;
        rearrange(&stage, &order).await;
        let _outjet = stage.lead().await;
        stage.commit(21..=25).await;
        assert_eq!(assert_each_once(&stage, IN_FLIGHT_MAX).await, 2);
    }
}

#[tokio::test]
async fn displaced_event_is_found_behind_hundreds_of_strangers() {
    // 5 was refused until the crowd had passed; 6 to 20 were under way with it.
    let order: Vec<usize> = (1..=4)
        .chain([0])
        .chain(6..=20)
        .chain([0; 300])
        .chain([5])
        .collect();
    for confirmed in [3, 14] {
        let small = QUICK.replace("publish: {", "publish: {in_flight_max: 32, ");
        let stage = Stage::on(Nats::builder(), &small).await;
        abandoned(&stage, confirmed).await;
        rearrange(&stage, &order).await;
        let _outjet = stage.lead().await;
        stage.commit(21..=25).await;
        assert_eq!(assert_each_once(&stage, 32).await, 301);
    }
}
