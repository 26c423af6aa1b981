//! `expires_at`.

use super::{CONFIG, DELAYED, MOMENT, emit};
use crate::delivery::{Delivery, STREAM};
use crate::harness::postgres::Stop;
use crate::harness::{Nats, Postgres, Wait, until};

/// Waits until the stream holds so many messages only.
async fn until_left(delivery: &Delivery, messages: u64) {
    until("they have come to their end", MOMENT, async || {
        let left = delivery.count().await;
        Wait::ready_if(left == messages, left)
    })
    .await;
}

#[tokio::test]
async fn event_is_dropped_when_it_has_come_to_its_end() {
    let delivery = Delivery::batching(CONFIG).await;
    let _outjet = delivery.run();
    let long = emit(&delivery, "expires_at => now() + interval '1 hour'").await;
    let ever = emit(&delivery, "expires_at => 'infinity'").await;
    emit(&delivery, "expires_at => now() + interval '1 second'").await;
    emit(&delivery, "expires_at => now() - interval '1 hour'").await;
    delivery.confirmed().await;
    until_left(&delivery, 2).await;
    assert_eq!(delivery.ids().await, [long, ever]);
    let jetstream = delivery.world.nats.jetstream().await;
    let stream = jetstream.get_stream(STREAM).await.expect("the stream");
    assert_eq!(
        stream.cached_info().state.last_sequence,
        4,
        "all were there"
    );
    let stored = delivery.stored().await;
    let seconds = stored[0].header("Nats-TTL").expect("an end");
    let seconds: u32 = seconds.trim_end_matches('s').parse().expect("seconds");
    assert!((3000..=3600).contains(&seconds), "{seconds}");
    assert!(stored[0].header("ce-expirytime").is_some());
    assert_eq!(
        stored[0].header("Outjet-Expires-At"),
        stored[0].header("ce-expirytime")
    );
    assert!(stored[1].header("Nats-TTL").is_none());
}

#[tokio::test]
async fn events_that_are_sent_again_are_known_although_those_around_them_have_expired() {
    let mut delivery = Delivery::batching(CONFIG).await;
    let mut outjet = delivery.run();
    for n in 0..40 {
        let end = if n % 4 == 1 {
            "'infinity'"
        } else {
            "now() + interval '1 second'"
        };
        emit(&delivery, &format!("expires_at => {end}")).await;
    }
    delivery.confirmed().await;
    until_left(&delivery, 10).await;
    let left = delivery.ids().await;
    outjet.kill().await;
    // Sends all of it again.
    delivery.world.postgres.restart(Stop::Immediate).await;
    delivery.session = delivery.world.postgres.connect().await;
    let _outjet = delivery.run();
    let last = emit(&delivery, "expires_at => NULL").await;
    delivery.confirmed().await;
    let expected: Vec<_> = left.into_iter().chain([last]).collect();
    assert_eq!(delivery.ids().await, expected);
    let jetstream = delivery.world.nats.jetstream().await;
    let stream = jetstream.get_stream(STREAM).await.expect("the stream");
    assert_eq!(
        stream.cached_info().state.last_sequence,
        41,
        "none was sent twice"
    );
}

#[tokio::test]
async fn delayed_event_is_dropped_when_it_has_come_to_its_end() {
    let delivery = Delivery::batching(CONFIG).await;
    let _outjet = delivery.run();
    let soon = "deliver_at => now() + interval '1 second', \
                expires_at => now() + interval '2 seconds'";
    emit(&delivery, soon).await;
    let kept = "deliver_at => now() + interval '1 second'";
    let kept = emit(&delivery, kept).await;
    delivery.confirmed().await;
    let jetstream = delivery.world.nats.jetstream().await;
    until("one has come to its end", MOMENT, async || {
        let stream = jetstream.get_stream(DELAYED).await.expect("the stream");
        // Two schedules with their marks, and what they were for, of which one is gone soon.
        let stored = stream.cached_info().state.last_sequence;
        let left = super::ids(&super::fired(&delivery).await);
        Wait::ready_if(stored == 6 && left == [kept.as_str()], (stored, left))
    })
    .await;
}

#[tokio::test]
async fn server_that_drops_nothing_gets_the_end_as_a_header() {
    let old = Nats::builder().version("2.10");
    let delivery = Delivery::on((Postgres::builder(), old), CONFIG).await;
    let check = delivery.outjet(["check"]).output().await;
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(
        check
            .stdout
            .contains("keeps events beyond their expires_at"),
        "{check:?}"
    );
    let _outjet = delivery.run();
    emit(&delivery, "expires_at => now() + interval '1 hour'").await;
    delivery.confirmed().await;
    let stored = delivery.stored().await;
    assert!(stored[0].header("Nats-TTL").is_none(), "{stored:?}");
    assert!(
        stored[0].header("Outjet-Expires-At").is_some(),
        "{stored:?}"
    );
}
