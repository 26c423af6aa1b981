//! The outbox moves by `pg_upgrade`, the real one: from 15, which keeps no slot, and from 17, which
//! keeps the slot once it has nothing more to send.

use super::house::{Houses, emit, publish, published_from};
use crate::harness::{Nats, Postgres, Stop, binaries};

/// The version that is upgraded to.
const NEW: u32 = 18;

/// A house of this version, with all its programs.
async fn old_house(major: u32) -> Postgres {
    let build = binaries::whole_postgres(major);
    Postgres::builder().bin(&build.bin).start().await
}

/// The old house is upgraded, and then started again, as by somebody who goes on using it.
async fn upgraded(mut old: Postgres, nats: Nats) -> Houses {
    old.stop(Stop::Fast).await;
    let mut new = old.upgraded(NEW).expect("upgraded");
    new.start_again().await;
    old.start_again().await;
    Houses { old, new, nats }
}

async fn slots(houses: &Houses) -> String {
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'outjet'";
    houses.new.connect().await.text(slots).await
}

#[tokio::test]
async fn upgrade_that_keeps_no_slot_publishes_what_waited() {
    let old = old_house(15).await;
    let nats = published_from(&old).await;
    emit(&old.connect().await, 11..=13).await;
    let houses = upgraded(old, nats).await;
    assert_eq!(slots(&houses).await, "0");
    houses.assert_refused().await;
    let says = "appended  3 events\ncreated   replication slot outjet\n";
    houses.moves(says).await;
    let _outjet = houses.leads().await;
    emit(&houses.new.connect().await, 14..=16).await;
    houses.assert_stored(1..=16).await;
}

#[tokio::test]
async fn upgrade_keeps_the_slot_once_nothing_waits_and_recover_goes_on_with_it() {
    let mut old = old_house(17).await;
    let nats = published_from(&old).await;
    emit(&old.connect().await, 11..=13).await;
    old.stop(Stop::Fast).await;
    let refused = old.upgraded(NEW).err().expect("refused");
    assert!(
        refused.contains("has not consumed the WAL yet"),
        "{refused}"
    );
    old.start_again().await;
    publish(&old, &nats, 14..=15).await;
    let houses = upgraded(old, nats).await;
    assert_eq!(slots(&houses).await, "1");
    houses.assert_refused().await;
    houses
        .moves("appended  0 events\nkept      replication slot outjet, which begins at ")
        .await;
    let _outjet = houses.leads().await;
    emit(&houses.new.connect().await, 16..=18).await;
    houses.assert_stored(1..=18).await;
}
