//! The slot is moved, made again or dropped while no copy runs. The next copy must report what is
//! missing, and `outjet recover` closes the gap: then the judge expects everything.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::arena::{Copy, Operator};
use super::plan::Moving;
use super::{LOOK, contents};
use crate::harness::outbox::Random;
use crate::harness::postgres::Session;

/// For each step, while servers come and go: a copy that was refused by both for long looks every
/// 5 s, one that has halted every 30 s.
const STEP_WITHIN: Duration = Duration::from_secs(90);

impl Moving {
    /// What a copy says that finds it so. While NATS is away, nobody knows whether there was a
    /// slot.
    fn reports(self) -> &'static [&'static str] {
        match self {
            Self::Advance | Self::Recreate => &["slot outjet was moved: events may be missing"],
            Self::Drop => &[
                "slot outjet is missing, but ",
                r#"replication slot \"outjet\" does not exist"#,
            ],
        }
    }

    fn sql(self) -> &'static str {
        match self {
            Self::Advance => {
                "SELECT pg_replication_slot_advance('outjet', pg_current_wal_flush_lsn())"
            }
            Self::Recreate => "SELECT pg_create_logical_replication_slot('outjet', 'pgoutput')",
            Self::Drop => "",
        }
    }
}

/// Whether a line of the log says that the slot was moved or is gone.
pub(crate) fn is_report(line: &str) -> bool {
    let mut reports = [Moving::Advance, Moving::Drop]
        .iter()
        .flat_map(|m| m.reports());
    reports.any(|report| line.contains(report))
}

/// Does it, sees it reported by one copy, and recovers. `Err`: what went wrong.
pub(crate) async fn strike(
    (operator, url): (&Operator, &str),
    copies: &mut [Copy],
    (moving, random): (Moving, &mut Random),
) -> Result<(), String> {
    join_all(copies.iter_mut().map(|copy| copy.end(false))).await;
    let moved = patiently(async || {
        let moved = displace(url, moving, &random.uuid()).await;
        moved.ok_or_else(|| format!("{moving}: not done"))
    });
    moved.await?;
    copies[0].start_again();
    let reports = moving.reports();
    let reported = patiently(async || {
        let says = reports.iter().any(|report| copies[0].says(report));
        says.then_some(())
            .ok_or_else(|| format!("{moving}: no copy has reported it"))
    });
    let reported = reported.await;
    copies[0].end(false).await;
    let recovered = patiently(async || match operator.types("recover").await {
        output if output.code == Some(0) => Ok(()),
        output => Err(format!("{output:?}")),
    });
    let recovered = recovered.await;
    copies.iter_mut().for_each(Copy::start_again);
    reported?;
    recovered.map_err(|error| format!("recover: {error}"))
}

/// Tries until it is done, or for too long.
async fn patiently(mut step: impl AsyncFnMut() -> Result<(), String>) -> Result<(), String> {
    let deadline = Instant::now() + STEP_WITHIN;
    loop {
        match step().await {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => sleep(LOOK).await,
            Ok(()) => return Ok(()),
        }
    }
}

/// Commits the event of an id, which the slot then passes over. Whatever a crash leaves of it, the
/// next try makes it whole.
async fn displace(url: &str, moving: Moving, id: &str) -> Option<()> {
    let session = Session::try_connect(url).await.ok()?;
    // Whoever was cut off from his client may have it still.
    let release = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
        WHERE slot_name = 'outjet' AND active";
    session.batch_execute(release).await.ok()?;
    if moving != Moving::Advance {
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
            WHERE slot_name = 'outjet'";
        session.batch_execute(drop).await.ok()?;
    }
    session.batch_execute(&contents::insert(id)).await.ok()?;
    let before = "SELECT pg_current_wal_flush_lsn()::text";
    let before: String = session.query_one(before, &[]).await.ok()?.get(0);
    session.batch_execute(moving.sql()).await.ok()?;
    // Only then it outlives a crash.
    session.batch_execute("CHECKPOINT").await.ok()?;
    let stands = format!(
        "SELECT count(*) FROM pg_replication_slots
         WHERE slot_name = 'outjet' AND confirmed_flush_lsn >= '{before}'"
    );
    let stands: i64 = session.query_one(&stands, &[]).await.ok()?.get(0);
    ((stands > 0) == (moving != Moving::Drop)).then_some(())
}
