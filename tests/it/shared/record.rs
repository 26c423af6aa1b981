//! What the record knows of a stream that others write, too.

use std::time::Duration;

use super::SHARED;
use crate::harness::Nats;
use crate::harness::drain;
use crate::harness::postgres::Stop;
use crate::harness::stage::{SOON, STREAM, Stage};

/// The messages are gone, and the server has forgotten their ids: the record alone knows them.
#[tokio::test]
async fn what_vanished_from_a_shared_stream_is_not_stored_again_once_it_is_recorded() {
    const WINDOW: Duration = Duration::from_millis(100);
    let mut stage = Stage::on(Nats::builder(), SHARED).await;
    let mut config = stage.stream().await.cached_info().config.clone();
    config.duplicate_window = WINDOW;
    let edited = stage.jetstream().await.update_stream(config).await;
    edited.expect("it forgets soon");
    let mut outjet = stage.lead().await;
    stage.commit(1..=300).await;
    stage.confirmed().await;
    outjet.terminate(SOON).await;
    stage.stream().await.purge().await.expect("purged");
    tokio::time::sleep(2 * WINDOW).await;
    // It forgets what was confirmed to it since its last checkpoint, and sends all again.
    stage.world.postgres.restart(Stop::Immediate).await;
    stage.session = stage.world.postgres.connect().await;
    let outjet = stage.lead().await;
    stage.commit(301..=302).await;
    stage.confirmed().await;
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let bodies: Vec<_> = stored.iter().map(|message| &message.payload[..]).collect();
    assert_eq!(bodies, [b"301", b"302"]);
    assert!(!outjet.stderr().contains("may have been stored before"));
}
