//! What `publish.transactions: atomic` takes, and who does not have it.

use async_nats::jetstream;
use outjet::error::Problem;

use super::{CONFIG, Site};
use crate::harness::nats::BATCHING;
use crate::harness::{Nats, Postgres, World};
use crate::setup;

const ATOMIC: &str = "publish: {transactions: atomic}\n";

#[tokio::test]
async fn server_that_is_too_old_for_atomic_transactions_is_refused_and_gets_no_stream() {
    let old = Nats::builder().version("2.10");
    let world = World::with(Postgres::builder(), old).await;
    let site = Site::of(&world).config(ATOMIC);
    let jetstream = world.nats.jetstream().await;
    let version = jetstream.client().server_info().version;
    let problem = Problem::new(
        format!("nats-server {version} stores no transaction as a whole"),
        "publish.transactions is atomic, which takes nats-server 2.12.1",
        "upgrade the server, or set publish.transactions to pipelined",
    );
    site.refuses("setup", CONFIG, &problem).await;
    let client = world.postgres.connect().await;
    let done = setup::set_up(&client, &setup::native()).await;
    done.expect("the slot, too");
    let found = jetstream.get_stream("OUTBOX").await;
    assert!(found.is_err(), "a stream that cannot be used was made");
    site.fails_and_halts("nats reachable", &problem).await;
}

#[tokio::test]
async fn stream_that_was_made_without_atomic_transactions_is_refused_until_it_is_changed() {
    let batching = Nats::builder().version(BATCHING);
    let world = World::with(Postgres::builder(), batching).await;
    Site::of(&world).sets_up().await;
    let site = Site::of(&world).config(ATOMIC);
    let problem = Problem::new(
        "stream \"OUTBOX\" takes no transaction as a whole",
        "publish.transactions is atomic, and the stream was made without allow_atomic",
        "`nats stream edit OUTBOX --allow-batch`, or set publish.transactions to pipelined",
    );
    site.fails_and_halts("nats reachable", &problem).await;
    let jetstream = world.nats.jetstream().await;
    let stream = jetstream.get_stream("OUTBOX").await.expect("the stream");
    let edited = jetstream::stream::Config {
        allow_atomic_publish: true,
        ..stream.cached_info().config.clone()
    };
    jetstream.update_stream(edited).await.expect("edited");
    site.passes().await;
}
