//! Housekeeping while this copy leads: partitions of `outbox.events` are made ahead and expired,
//! old rows of other tables are deleted if that was asked for. On a connection of its own, beside
//! publishing, which needs none of it: without it rows go to the default partition, and old ones
//! stay. What it may do is decided in the SQL: nothing goes that the slot has not confirmed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use tracing::{debug, info, warn};

use crate::error::{Failure, Problem};
use crate::pg::catalog::StatementError;
use crate::pg::control::Control;
use crate::pg::ddl::{grant_deleting, grant_turning};
use crate::pg::name::{TableName, quote, quote_table};
use crate::pg::params::Params;
use crate::watch::vitals::{State, Vitals, unix_seconds};

/// What is kept, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it has confirmed may go.
    pub slot: String,
    /// The partitions of `outbox.events`; `None`: they are somebody else's.
    pub partitions: Option<Partitions>,
    /// Other tables.
    pub tables: Vec<Table>,
}

/// Daily partitions.
#[derive(Clone, Copy, Debug)]
pub struct Partitions {
    /// How long after its end one is dropped.
    pub keep: Duration,
    /// Days to come that have one.
    pub ahead_days: u32,
}

/// A table whose old rows are deleted.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// The column that tells a row's age.
    pub created_at: String,
    /// The age at which it goes.
    pub keep: Duration,
}

/// Partitions are days: an hour is soon enough, also for what was in use the last time.
const INTERVAL: Duration = Duration::from_secs(3600);

/// After a failure, which may be a connection that broke.
const RETRY: Duration = Duration::from_secs(60);

/// How often it looks whether it leads.
const LEADER_POLL: Duration = Duration::from_millis(500);

/// A pass that takes longer is begun anew on a new connection: each statement stands for itself.
const PASS_MAX: Duration = Duration::from_secs(600);

/// How long a statement may wait for a lock, and writers behind it.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '200ms'";

/// SQLSTATE insufficient_privilege.
const NOT_PERMITTED: &str = "42501";

/// SQLSTATE lock_not_available.
const IN_USE: &str = "55P03";

/// Keeps house for ever.
pub async fn run(params: &Params, options: &Options, vitals: &Arc<Vitals>) {
    if options.partitions.is_none() && options.tables.is_empty() {
        return std::future::pending().await;
    }
    let mut known = Vec::new();
    loop {
        while vitals.read().state != State::Streaming {
            tokio::time::sleep(LEADER_POLL).await;
        }
        let pass = Box::pin(pass(params, options));
        let Ok(problems) = tokio::time::timeout(PASS_MAX, pass).await else {
            continue;
        };
        let metrics = &vitals.metrics;
        if problems.is_empty() {
            let now = unix_seconds(SystemTime::now());
            metrics.retention_last_success.set(now);
        } else {
            metrics.retention_failures.inc();
        }
        // Once each: what is wrong here stays so until somebody has time for it.
        for problem in problems.iter().filter(|problem| !known.contains(*problem)) {
            let Problem {
                problem,
                cause,
                fix,
            } = problem;
            warn!(%cause, %fix, "{problem}");
        }
        let pause = if problems.is_empty() { INTERVAL } else { RETRY };
        known = problems;
        tokio::time::sleep(pause).await;
    }
}

/// All there is to do, each part whether or not the others can be done. Returns what went wrong.
async fn pass(params: &Params, options: &Options) -> Vec<Problem> {
    let control = match Control::connect(params).await {
        Ok(control) => control,
        Err(error) => return vec![error.failure(params).problem],
    };
    let client = control.client();
    let role = &params.user;
    let mut problems = Vec::new();
    if let Some(partitions) = &options.partitions
        && let Err(error) = turn(client, partitions, &options.slot).await
    {
        problems.push(unturned(&error, role));
    }
    for table in &options.tables {
        match delete(client, table, &options.slot).await {
            Err(error) if error.sqlstate() == Some(IN_USE) => {
                debug!(table = %table.name, "rows in use are left for the next time");
            }
            Err(error) => problems.push(undeleted(&error, &table.name, role)),
            Ok(0) => {}
            Ok(rows) => info!(table = %table.name, rows, "old rows deleted"),
        }
    }
    control.close().await;
    problems
}

/// Makes partitions and expires old ones.
async fn turn(client: &Client, partitions: &Partitions, slot: &str) -> Result<(), StatementError> {
    let sql = include_str!("../../sql/retention/installed.sql");
    let row = client.query_one(sql, &[]).await.map_err(failed)?;
    if !row.try_get::<_, bool>(0).map_err(failed)? {
        // A table that somebody else made.
        return Ok(());
    }
    let mut made = 0;
    // One more day with each call, because each locks the default partition until it is done.
    for ahead in 0..=partitions.ahead_days.cast_signed() {
        made += count(client, "SELECT outbox.ensure_partitions($1)", &[&ahead]).await?;
    }
    let sql = "SELECT outbox.expire_partitions($1::text::interval, $2::text::name)";
    let dropped = count(client, sql, &[&interval(partitions.keep), &slot]).await?;
    if made > 0 || dropped > 0 {
        info!(made, dropped, "partitions turned");
    }
    Ok(())
}

async fn count(
    client: &Client,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<i32, StatementError> {
    let row = client.query_one(sql, values).await;
    row.and_then(|row| row.try_get(0)).map_err(failed)
}

fn failed(source: tokio_postgres::Error) -> StatementError {
    StatementError::new("turn the partitions of outbox.events", source)
}

/// Deletes old rows, batch by batch, and returns how many.
async fn delete(client: &Client, table: &Table, slot: &str) -> Result<u64, StatementError> {
    let doing = || format!("delete old rows of {}", table.name);
    let failed = |source| StatementError::new(doing(), source);
    client.batch_execute(LOCK_TIMEOUT).await.map_err(failed)?;
    let leaves = include_str!("../../sql/retention/leaves.sql");
    let leaves = client.query(leaves, &[&quote_table(&table.name)]).await;
    let mut deleted = 0;
    for leaf in leaves.map_err(failed)? {
        let column = |name| leaf.try_get::<_, String>(name).map_err(failed);
        let leaf = TableName::new(column("schema")?, column("name")?);
        let sql = include_str!("../../sql/retention/delete.sql")
            .replace("{table}", &quote_table(&leaf))
            .replace("{created_at}", &quote(&table.created_at));
        loop {
            let batch = client.execute(&sql, &[&slot, &interval(table.keep)]).await;
            match batch.map_err(failed)? {
                0 => break,
                rows => deleted += rows,
            }
        }
    }
    Ok(deleted)
}

/// For SQL.
fn interval(duration: Duration) -> String {
    format!("{} seconds", duration.as_secs())
}

fn unturned(error: &StatementError, role: &str) -> Problem {
    let Failure { problem, .. } = error.failure();
    match error.sqlstate() {
        Some(NOT_PERMITTED) => Problem {
            fix: format!(
                "run `outjet setup` as the owner, then {} or set retention.manage: false",
                grant_turning(role)
            ),
            ..problem
        },
        _ => problem,
    }
}

fn undeleted(error: &StatementError, table: &TableName, role: &str) -> Problem {
    let Failure { problem, .. } = error.failure();
    match error.sqlstate() {
        Some(NOT_PERMITTED) => Problem {
            fix: format!(
                "{} (and on its partitions), or remove its keep",
                grant_deleting(table, role)
            ),
            ..problem
        },
        _ => problem,
    }
}
