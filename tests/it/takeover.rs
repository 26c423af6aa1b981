//! Two copies, one of which is killed again and again. `KILLS=60` goes on for a minute.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::harness::stage::{QUICK, SOON, Stage};
use crate::harness::{Nats, Outjet, Wait, until};
use crate::sink::more_stored;

/// How often the leader is killed if `KILLS` does not say.
const KILLS: u64 = 10;

/// Whether the last thing that a copy said of its role is that it leads.
fn leads(copy: &Outjet) -> bool {
    let log = copy.log();
    let roles = log.iter().rev().filter_map(|line| line["message"].as_str());
    let mut roles = roles.filter(|message| {
        let roles = ["leading", "standing by", "retrying", "halted"];
        roles.iter().any(|role| message.starts_with(role))
    });
    roles.next() == Some("leading")
}

#[tokio::test]
async fn leader_that_is_killed_every_second_is_succeeded_each_time_and_the_order_is_kept() {
    let kills = std::env::var("KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let stage = Stage::on(Nats::builder(), QUICK).await;
    let writers = stage.write(3).await;
    let mut copies = [stage.run(), stage.run()];
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut terms = [0, 0];
    for _ in 0..kills {
        let leader = until("a copy leads", SOON, async || {
            match copies.iter().position(leads) {
                Some(leader) => Wait::Ready(leader),
                None => Wait::NotYet("none".to_owned()),
            }
        })
        .await;
        // It must have stored something, or the kill proves nothing.
        more_stored(&stage, 1).await;
        second.tick().await;
        copies[leader].kill().await;
        copies[leader] = stage.run();
        terms[leader] += 1;
    }
    let committed = writers.finish().await;
    eprintln!("{kills} kills, {terms:?} of each copy, {committed} events");
    assert!(terms.iter().all(|terms| *terms > 0), "{terms:?}");
    stage.assert_exact().await;
}
