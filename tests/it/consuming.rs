//! What docs/consumers.md says, and that `examples/orders` shows it.

use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::{AckKind, Message};
use futures_util::StreamExt;

use crate::harness::stage::SOON;
use crate::harness::{Outjet, Stage, binaries};

#[tokio::test]
async fn shop_of_the_example_ends_in_balance_and_skips_what_is_delivered_again() {
    let examples = binaries::outjet().with_file_name("examples");
    let shop = Outjet::builder().binary(examples.join("orders"));
    let output = shop.output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let lines = |what: &str| {
        let lines = output.stdout.lines();
        lines.filter(|line| line.starts_with(what)).count()
    };
    assert_eq!(
        (lines("APPLIED"), lines("SKIPPING")),
        (50, 50),
        "{output:?}"
    );
}

/// The next message, and what else came with it.
async fn next(consumer: &PullConsumer) -> (Message, usize) {
    let batch = consumer
        .fetch()
        .max_messages(10)
        .expires(Duration::from_secs(1));
    let batch = batch.messages().await.expect("messages");
    let mut batch: Vec<_> = batch
        .map(|message| message.expect("a message"))
        .collect()
        .await;
    assert!(!batch.is_empty(), "no message within a second");
    let first = batch.remove(0);
    (first, batch.len())
}

#[tokio::test]
async fn consumer_that_takes_one_at_a_time_keeps_the_order_over_a_redelivery() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage.commit(1..=3).await;
    stage.confirmed().await;
    let config = pull::Config {
        durable_name: Some("one".to_owned()),
        max_ack_pending: 1,
        ..pull::Config::default()
    };
    let consumer = stage.stream().await.create_consumer(config).await;
    let consumer = consumer.expect("a consumer");
    let (first, others) = next(&consumer).await;
    assert_eq!((first.payload.as_ref(), others), (b"1".as_slice(), 0));
    first.ack_with(AckKind::Nak(None)).await.expect("a refusal");
    for number in ["1", "2", "3"] {
        let (message, others) = next(&consumer).await;
        assert_eq!((message.payload.as_ref(), others), (number.as_bytes(), 0));
        message.double_ack().await.expect("an acknowledgement");
    }
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}
