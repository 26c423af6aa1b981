//! `outjet verify`: compares the rows that the outbox tables still have with the stream and the
//! dead letters, by id, and names what is missing, what stands there twice, and what stands in the
//! wrong order. Changes nothing; makes a temporary table in Postgres ([`crate::command::stored`]).
//!
//! Rows are read first, in one snapshot, then outjet is given time to confirm what they were
//! written with, and then the stream is read: a row that is not there has been lost, unless the
//! slot is not that far yet.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use tokio_postgres::{Client, Row};

use super::record::{RecordRead, RecordStatus};
use crate::cli;
use crate::command::set_up::drop;
use crate::command::stored::{self, NAMED_MAX, Outbox, Tally};
use crate::command::{Out, connect, facts, unwritten};
use crate::config::Config;
use crate::error::{Failure, Problem};
use crate::event::lineage::Source;
use crate::pg::catalog::{Facts, Slot, StatementError};
use crate::pg::params::Params;
use crate::preflight::{self, Options};

/// How often the slot is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(50);

/// Most places in the stream that are named of one id.
const PLACES_MAX: usize = 10;

/// After this long an asynchronous commit is on disk (three times `wal_writer_delay`); what is not
/// flushed then is no commit, and no slot ever confirms it.
const FLUSHED_AFTER: Duration = Duration::from_millis(600);

/// Compares and prints. `false`: something is wrong.
pub(in crate::command) async fn verify(
    typed: &cli::Verify,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<bool, Failure> {
    let control = connect(params).await?;
    let compared = Box::pin(compare(control.client(), typed, config)).await;
    control.close().await;
    let report = compared?;
    if typed.json {
        writeln!(out, "{:#}", report.json()).map_err(unwritten)?;
    } else {
        report.print(out)?;
    }
    Ok(report.is_exact())
}

async fn compare(client: &Client, typed: &cli::Verify, config: &Config) -> Result<Report, Failure> {
    let wanted = config.preflight_options();
    let names = wanted.table_names();
    let facts = Facts::read(client, &wanted.slot, &wanted.publication, &names).await;
    let facts = facts.map_err(|error| error.failure())?;
    if let Some(failure) = preflight::first_failure(&preflight::judge_tables(&facts, &wanted)) {
        return Err(failure.clone());
    }
    let tables = config.assemble_options(&facts.server.database)?.tables;
    let outboxes = Outbox::all(&tables, &facts)?;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL TimeZone = 'UTC'; \
                 SET LOCAL statement_timeout = 0; \
                 SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL row_security = off";
    stored::execute(client, "begin a transaction", begin).await?;
    // The first query takes the snapshot.
    let rows = client
        .query_one("SELECT count(*) FROM pg_catalog.pg_class", &[])
        .await;
    rows.map_err(|error| StatementError::new("take a snapshot", error).failure())?;
    let confirmed = wait_confirmed(client, &facts, &wanted, typed.wait).await?;
    let ours = Source {
        system: facts.server.system_identifier.clone(),
        timeline: 0,
        slot: wanted.slot.clone(),
    };
    let slot = facts::confirmed(client, &wanted.slot).await?;
    let found = RecordRead::read(config, &ours.system).await?;
    let contradictions = Box::pin(found.contradictions(client, slot)).await?;
    let tally = stored::load(client, &config.sink_options(), &ours).await?;
    let since = stored::horizon(&tally, typed.since.as_deref())?;
    let mut report = Report {
        confirmed,
        duplicated: duplicated(client, &outboxes).await?,
        rows: 0,
        missing: Vec::new(),
        missing_count: 0,
        since,
        tally,
        record: found
            .record
            .map(|record| RecordStatus::new(&record, &wanted.slot)),
        contradictions,
    };
    for outbox in &outboxes {
        report.look_for(client, outbox).await?;
    }
    stored::execute(client, "end a transaction", "ROLLBACK").await?;
    Ok(report)
}

/// Waits until the slot has passed all that the snapshot sees. Without a slot nothing more comes,
/// nor from one that nobody uses and that holds nothing.
async fn wait_confirmed(
    client: &Client,
    facts: &Facts,
    wanted: &Options,
    wait: Duration,
) -> Result<bool, Failure> {
    let begun = Instant::now();
    let mut target = lsn(client, "pg_current_wal_insert_lsn").await?;
    let mut looked = facts.publication.is_none();
    loop {
        let found = Slot::read(client, &wanted.slot).await;
        let found = found.map_err(|error| error.failure())?;
        let Some(found) = found.filter(|found| !found.lost()) else {
            return Ok(true);
        };
        if found.confirmed_flush >= Some(target) {
            return Ok(true);
        }
        if !found.active && !std::mem::replace(&mut looked, true) {
            // An error would end the transaction.
            stored::execute(client, "set a savepoint", "SAVEPOINT look").await?;
            let nothing = drop::holds_nothing(client, &wanted.slot, &wanted.publication).await;
            stored::execute(client, "go on", "ROLLBACK TO SAVEPOINT look").await?;
            if nothing {
                return Ok(true);
            }
        }
        if begun.elapsed() >= FLUSHED_AFTER {
            target = target.min(lsn(client, "pg_current_wal_flush_lsn").await?);
        }
        if begun.elapsed() >= wait {
            return Ok(false);
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn lsn(client: &Client, function: &str) -> Result<crate::lsn::Lsn, Failure> {
    let row = client
        .query_one(&format!("SELECT {function}()::text"), &[])
        .await;
    let text = row.and_then(|row| row.try_get::<_, String>(0));
    let text =
        text.map_err(|error| StatementError::new("read the end of the WAL", error).failure())?;
    Ok(text.parse().unwrap_or(crate::lsn::Lsn::ZERO))
}

/// What stands in the stream more often than rows bear its id.
async fn duplicated(client: &Client, outboxes: &[Outbox]) -> Result<Duplicated, Failure> {
    let rows = outboxes.iter().map(|outbox| {
        format!(
            "SELECT {} AS id FROM {}",
            outbox.message_id(),
            outbox.from()
        )
    });
    let rows = rows.collect::<Vec<_>>().join(" UNION ALL ");
    let sql = format!(
        "WITH several AS MATERIALIZED (SELECT id, array_agg(sequence ORDER BY sequence) AS at \
           FROM pg_temp.outjet_stored WHERE NOT again GROUP BY id HAVING count(*) > 1), \
         written AS (SELECT r.id, count(*) AS n FROM ({rows}) r \
           WHERE r.id IN (SELECT id FROM several) GROUP BY r.id) \
         SELECT s.id, s.at[1:{PLACES_MAX}], count(*) OVER () \
         FROM several s LEFT JOIN written w USING (id) \
         WHERE cardinality(s.at) > greatest(1, coalesce(w.n, 1)) ORDER BY s.at LIMIT {NAMED_MAX}"
    );
    let found = client.query(&sql, &[]).await.and_then(|rows| {
        let mut duplicated = Duplicated::default();
        for row in rows {
            duplicated.count = row.try_get(2)?;
            duplicated.first.push(Duplicate {
                id: row.try_get(0)?,
                sequences: row.try_get(1)?,
            });
        }
        Ok(duplicated)
    });
    found.map_err(|error| StatementError::new("look for duplicates", error).failure())
}

struct Report {
    /// Whether the slot has passed all rows that were compared.
    confirmed: bool,
    rows: i64,
    missing: Vec<Missing>,
    missing_count: i64,
    duplicated: Duplicated,
    since: Option<String>,
    tally: Tally,
    /// What the leader says of itself, or why it says nothing.
    record: Result<RecordStatus, String>,
    /// What of it does not agree with the servers.
    contradictions: Vec<Problem>,
}

#[derive(serde::Serialize)]
struct Missing {
    table: String,
    id: String,
    created_at: Option<String>,
}

#[derive(Default, serde::Serialize)]
struct Duplicated {
    count: i64,
    first: Vec<Duplicate>,
}

#[derive(serde::Serialize)]
struct Duplicate {
    id: String,
    sequences: Vec<i64>,
}

impl Report {
    async fn look_for(&mut self, client: &Client, outbox: &Outbox) -> Result<(), Failure> {
        let since = self.since.as_deref();
        let doing = || format!("compare {} with the stream", outbox.name);
        let (from, lacking) = (outbox.from(), outbox.lacking(since));
        let count = format!(
            "SELECT (SELECT count(*) FROM {from} WHERE {}), \
             (SELECT count(*) FROM {from} WHERE {lacking})",
            outbox.compared(since)
        );
        let counts = client.query_one(&count, &[]).await;
        let counts = counts.and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        let (rows, missing): (i64, i64) =
            counts.map_err(|error| StatementError::new(doing(), error).failure())?;
        self.rows += rows;
        self.missing_count += missing;
        if missing == 0 {
            return Ok(());
        }
        let sql = format!(
            "SELECT {} FROM {from} WHERE {lacking} ORDER BY {} LIMIT {NAMED_MAX}",
            outbox.shown(),
            outbox.order()
        );
        let found = client.query(&sql, &[]).await;
        let read = |row: &Row| {
            Ok(Missing {
                table: outbox.name.to_string(),
                id: row.try_get(0)?,
                created_at: row.try_get(1)?,
            })
        };
        let found = found.and_then(|rows| rows.iter().map(read).collect::<Result<Vec<_>, _>>());
        self.missing
            .extend(found.map_err(|error| StatementError::new(doing(), error).failure())?);
        Ok(())
    }

    fn is_exact(&self) -> bool {
        self.missing_count == 0
            && self.duplicated.count == 0
            && self.tally.misplaced_count == 0
            && self.contradictions.is_empty()
    }

    fn json(&self) -> serde_json::Value {
        let contradictions = self
            .contradictions
            .iter()
            .map(|found| json!({"problem": found.problem, "cause": found.cause, "fix": found.fix}));
        json!({
            "exact": self.is_exact(),
            "confirmed": self.confirmed,
            "rows": self.rows,
            "since": self.since,
            "messages": self.tally.messages,
            "foreign": self.tally.foreign,
            "missing": {"count": self.missing_count, "first": self.missing},
            "duplicated": self.duplicated,
            "out_of_order": {"count": self.tally.misplaced_count, "first": self.tally.misplaced},
            "record": self.record.as_ref().ok(),
            "contradictions": contradictions.collect::<Vec<_>>(),
        })
    }

    fn print(&self, out: Out<'_>) -> Result<(), Failure> {
        for Missing {
            table,
            id,
            created_at,
        } in &self.missing
        {
            let created = created_at.as_deref().unwrap_or("at an unknown time");
            let waits = if self.confirmed {
                ""
            } else {
                " (not confirmed yet)"
            };
            writeln!(out, "missing     {table} {id}, created {created}{waits}")
                .map_err(unwritten)?;
        }
        for Duplicate { id, sequences } in &self.duplicated.first {
            writeln!(out, "duplicate   {id}, at {sequences:?}").map_err(unwritten)?;
        }
        for misplaced in &self.tally.misplaced {
            let (id, sequence) = (&misplaced.id, misplaced.sequence);
            writeln!(out, "late        {id}, at {sequence}").map_err(unwritten)?;
        }
        for problem in &self.contradictions {
            let problem = problem.to_string().replace('\n', "\n            ");
            writeln!(out, "record      {problem}").map_err(unwritten)?;
        }
        if let Err(why) = &self.record {
            writeln!(out, "no record   {why}").map_err(unwritten)?;
        }
        let Tally {
            messages,
            foreign,
            misplaced_count,
            ..
        } = &self.tally;
        let since = self.since.as_ref().map(|since| format!(" (since {since})"));
        writeln!(
            out,
            "{} rows{}, {messages} messages, {foreign} of others: {} missing, {} duplicates, \
             {misplaced_count} out of order",
            self.rows,
            since.unwrap_or_default(),
            self.missing_count,
            self.duplicated.count,
        )
        .map_err(unwritten)?;
        if !self.confirmed && self.missing_count > 0 {
            let note = "the slot has not passed them yet: they may still come; see `outjet status`";
            writeln!(out, "{note}").map_err(unwritten)?;
        }
        Ok(())
    }
}
