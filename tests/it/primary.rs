//! What outjet does to the server that it reads from: it does not keep it from shutting down, can
//! be its synchronous standby, and holds nothing back while it stands by.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::postgres::{Session, Stop};
use crate::harness::proxy::{Direction, Mode};
use crate::harness::stage::{QUICK, SOON, Stage};
use crate::harness::{Nats, Wait, until};

/// NATS's silence is noticed long after a server that shuts down has been let go.
const PATIENT: &str = "
postgres: {takeover_after: 15s}
stream: {duplicate_window: 100ms}
publish: {ack_timeout: 60s, drain_timeout: 3s}
";

#[tokio::test]
async fn fast_shutdown_with_unpublished_events_takes_no_longer_than_a_drain() {
    let mut stage = Stage::on(Nats::builder(), PATIENT).await;
    let mut outjet = stage.lead().await;
    // Before the first event is confirmed the server takes what was read for what was stored.
    stage.commit(1..=5).await;
    stage.confirmed().await;
    stage.world.nats.process().pause().await;
    stage.commit(1..=5).await;
    let flushed = "SELECT pg_current_wal_flush_lsn()";
    let flushed = stage.session.text(flushed).await;
    let sent = format!(
        "SELECT sent_lsn >= '{flushed}' FROM pg_stat_replication WHERE state = 'streaming'"
    );
    stage.session.until_text(&sent, "t", SOON).await;
    let asked = Instant::now();
    stage.world.postgres.begin_stop(Stop::Fast);
    stage.world.postgres.stopped().await;
    let took = asked.elapsed();
    eprintln!("the server was down after {took:?}");
    assert!(
        took >= Duration::from_secs(3),
        "{took:?}: it did not wait for them"
    );
    assert!(took < Duration::from_secs(13), "{took:?}");
    let waits = |line: &serde_json::Value| {
        let message = line["message"].as_str().unwrap_or_default();
        message.ends_with(" waits for events that cannot be confirmed yet")
    };
    assert!(outjet.log().iter().any(waits), "{:?}", outjet.log());
    stage.world.nats.process().resume();
    stage.world.postgres.start_again().await;
    stage.session = stage.world.postgres.connect().await;
    stage.assert_exact().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}

#[tokio::test]
async fn synchronous_commit_returns_when_its_events_are_stored_and_waits_while_nats_is_away() {
    let mut stage = Stage::on(Nats::builder(), QUICK).await;
    let _outjet = stage.lead().await;
    stage
        .world
        .postgres
        .set("synchronous_standby_names", "outjet");
    stage.world.postgres.reload();
    let state = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'";
    stage.session.until_text(state, "sync", SOON).await;
    for number in 1..=20 {
        stage.commit(number..=number).await;
        assert_eq!(stage.last_sequence().await, u64::from(number));
        // What concerns nobody does not wait for anybody's next event.
        let sql = format!("CREATE TABLE other_{number} ()");
        stage.session.run(&sql).await;
    }
    stage.proxy.set(Mode::Stall(Direction::Both));
    let url = stage.world.postgres.url();
    let mut held = JoinSet::new();
    held.spawn(async move {
        let emit = "SELECT outbox.emit('order', '1', 'created')";
        Session::connect(&url).await.run(emit).await;
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    stage.session.until_text(waits, "1", SOON).await;
    // Also when the leader has given the slot up for want of NATS.
    let free = "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'outjet'";
    stage.session.until_text(free, "t", SOON).await;
    let returned = held.try_join_next();
    assert!(returned.is_none(), "a commit returned before it was stored");
    assert_eq!(stage.session.text(waits).await, "1");
    stage.proxy.set(Mode::Forward);
    held.join_next().await.expect("one").expect("a commit");
    assert_eq!(stage.last_sequence().await, 21);
    stage.assert_exact().await;
}

/// A backend of the standby's that could hold back the removal of dead rows: in a transaction, or
/// with a snapshot, for longer than one look at the slot takes.
const HOLDS_BACK: &str = "
SELECT coalesce(string_agg(a::text, E'\\n'), '') FROM pg_stat_activity a
WHERE application_name = 'outjet-standby' AND (
  state LIKE 'idle in transaction%'
  OR state <> 'active' AND coalesce(backend_xmin, backend_xid) IS NOT NULL
  OR xact_start < clock_timestamp() - interval '5 s')";

#[tokio::test]
async fn standby_holds_no_snapshot_back() {
    let stage = Stage::on(Nats::builder(), QUICK).await;
    let _leader = stage.lead().await;
    let url = format!(
        "{}?application_name=outjet-standby",
        stage.world.postgres.url()
    );
    let standby = stage.outjet(["run", "--log-format", "json"]);
    let mut standby = standby.env("DATABASE_URL", url).spawn();
    standby
        .logged("standing by: another copy leads", SOON)
        .await;
    let looks = "SELECT coalesce(max(state_change)::text, '') FROM pg_stat_activity
        WHERE application_name = 'outjet-standby' AND query LIKE '%pg_replication_slots%'";
    let mut last = stage.session.text(looks).await;
    let mut seen = 0;
    let mut held = String::new();
    until("it has looked at the slot 20 times", SOON, async || {
        // State and snapshot are not read at one instant: a backend that has begun its next
        // statement in between is another row at the next look.
        let holds = stage.session.text(HOLDS_BACK).await;
        if !holds.is_empty() && holds == held {
            return Wait::Broken(holds);
        }
        held = holds;
        let look = stage.session.text(looks).await;
        seen += u64::from(look != last);
        last = look;
        Wait::ready_if(seen >= 20, seen)
    })
    .await;
    assert_eq!(standby.terminate(SOON).await, Some(0));
}
