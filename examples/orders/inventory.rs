//! The inventory: consumes `OrderPlaced` and takes the books from stock, each order once, however
//! often its message comes. It remembers the message in the transaction that does the work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, Message};
use futures_util::StreamExt;
use tokio_postgres::Client;

use crate::Failure;
use crate::api::OrderPlaced;

/// The name under which the stream remembers how far it has come, and messages are remembered.
const NAME: &str = "inventory";

const STREAM: &str = "OUTBOX";

/// How long it waits for messages before it asks again.
const BATCH_WITHIN: Duration = Duration::from_secs(1);

/// What it has done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) applied: AtomicUsize,
    pub(crate) skipped: AtomicUsize,
}

/// Consumes for ever.
pub(crate) async fn consume(
    jetstream: jetstream::Context,
    mut client: Client,
    tally: Arc<Tally>,
) -> Result<(), Failure> {
    loop {
        let consumer = consumer(&jetstream).await?;
        let batch = consumer.fetch().max_messages(100).expires(BATCH_WITHIN);
        let mut batch = batch.messages().await?;
        while let Some(message) = batch.next().await {
            // A consumer that was taken away is made again.
            let Ok(message) = message else { break };
            match apply(&mut client, &message).await? {
                true => tally.applied.fetch_add(1, Ordering::SeqCst),
                false => tally.skipped.fetch_add(1, Ordering::SeqCst),
            };
            // Only now, and what is lost of it comes again and is skipped then.
            let _ = message.ack().await;
        }
    }
}

/// Lets all that the stream has be delivered again, with the same ids.
pub(crate) async fn replay(jetstream: &jetstream::Context) -> Result<(), Failure> {
    let stream = jetstream.get_stream(STREAM).await?;
    stream.delete_consumer(NAME).await?;
    consumer(jetstream).await?;
    Ok(())
}

/// Durable: it goes on where it was. Without an acknowledgement a message is delivered again.
async fn consumer(jetstream: &jetstream::Context) -> Result<PullConsumer, Failure> {
    let stream = jetstream.get_stream(STREAM).await?;
    let config = pull::Config {
        durable_name: Some(NAME.to_owned()),
        ack_policy: AckPolicy::Explicit,
        filter_subject: "events.order.OrderPlaced".to_owned(),
        ..pull::Config::default()
    };
    Ok(stream.get_or_create_consumer(NAME, config).await?)
}

/// Whether the message was new. Memory and work are committed together, or neither is.
async fn apply(client: &mut Client, message: &Message) -> Result<bool, Failure> {
    let headers = message.headers.as_ref();
    // One or the other: a replayed event has its id in the second.
    let id = ["Nats-Msg-Id", "Outjet-Id"];
    let id = headers.and_then(|headers| id.iter().find_map(|name| headers.get(*name)));
    let id = id.ok_or("a message without an id")?.as_str();
    let placed: OrderPlaced = serde_json::from_slice(&message.payload)?;

    let transaction = client.transaction().await?;
    let first = "SELECT outbox.first_time($1, $2)";
    let first: bool = transaction.query_one(first, &[&NAME, &id]).await?.get(0);
    if !first {
        println!("SKIPPING  {id}");
        return Ok(false);
    }
    let take = "UPDATE inventory SET in_stock = in_stock - $2 WHERE sku = $1";
    transaction
        .execute(take, &[&placed.sku, &placed.quantity])
        .await?;
    transaction.commit().await?;
    println!("APPLIED   {id}");
    Ok(true)
}
