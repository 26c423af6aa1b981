//! The end of a round, when nothing fails any more: all is confirmed, and each copy can lead.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::arena::Copy;
use super::{LOOK, contents, watch};
use crate::harness::outbox::Random;
use crate::harness::postgres::Session;

/// After the last fault: the longest pause of a copy that has failed often or has halted is 30 s.
const DRAIN_WITHIN: Duration = Duration::from_secs(120);

/// For a takeover in peace: the longest pause of a copy that has failed often is 5 s.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(20);

/// Waits until all that was committed is confirmed; `None`: it never was.
pub(crate) async fn drain(session: &Session) -> Option<Duration> {
    within(session, DRAIN_WITHIN).await
}

/// Waits until the slot has passed all that was committed; says how long that took.
async fn within(session: &Session, limit: Duration) -> Option<Duration> {
    let started = Instant::now();
    let flushed = session.text("SELECT pg_current_wal_flush_lsn()").await;
    let sql = format!(
        "SELECT confirmed_flush_lsn >= '{flushed}' FROM pg_replication_slots
         WHERE slot_name = 'outjet'"
    );
    while session.text(&sql).await != "t" {
        if started.elapsed() > limit {
            return None;
        }
        sleep(LOOK).await;
    }
    Some(started.elapsed())
}

/// Ends whoever leads, until nobody is left: each copy must be able to take over, whatever it went
/// through. A copy that hangs would else be covered by the others.
pub(crate) async fn call(session: &Session, copies: &mut [Copy]) -> Vec<String> {
    let mut random = Random(0);
    let mut left: Vec<usize> = (0..copies.len()).collect();
    while !left.is_empty() {
        contents::write_one(session, &mut random).await;
        let published = within(session, TAKEOVER_WITHIN).await;
        let holder = watch::holder(session).await.expect("a server at peace");
        let leader = holder.map(|(_, copy)| copy);
        match leader.filter(|_| published.is_some()) {
            Some(leader) => {
                copies[leader].terminate().await;
                left.retain(|copy| *copy != leader);
            }
            None => {
                return vec![format!(
                    "of the copies {left:?} none takes over ({leader:?})"
                )];
            }
        }
    }
    Vec::new()
}
