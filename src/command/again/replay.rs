//! `outjet replay`: rows of the outbox go out once more, through whoever leads.

use std::time::Duration;

use postgres_protocol::escape::escape_literal;
use tokio::time::Instant;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::handover::{hand_over, handover, prepare, refuse_without_messages};
use crate::cli;
use crate::command::progress::Progress;
use crate::command::rows::{Row, Rows};
use crate::command::{Out, connect, unwritten};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::event::mapping::{Field, Mapping};
use crate::event::route;
use crate::pg::catalog::StatementError;
use crate::pg::params::Params;
use crate::sink::jetstream;

/// Most rows that are read, and written in one transaction: enough for round trips not to count,
/// few enough for large rows.
const BATCH_MAX: u32 = 50;

/// Rows that a dry run shows.
const SAMPLE: u32 = 5;

/// What is shown of them.
const SHOWN: [Field; 5] = [
    Field::Id,
    Field::CreatedAt,
    Field::AggregateType,
    Field::AggregateId,
    Field::Type,
];

/// Hands the rows that were asked for to whoever leads.
pub(in crate::command) async fn replay(
    typed: &cli::Replay,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<(), Failure> {
    refuse_without_messages(config)?;
    let tables = config.assemble_options(&params.dbname)?.tables;
    let mapping = table(typed, &tables)?;
    let control = connect(params).await?;
    let client = control.client();
    prepare(client).await?;
    let rows = Rows::open(client, mapping).await?;
    let selected = select(client, &rows.select(&selection(typed, &rows)?)).await?;
    if typed.dry_run {
        writeln!(out, "{selected} rows").map_err(unwritten)?;
        for row in fetch(&rows, SAMPLE).await? {
            let shown = SHOWN.map(|field| rows.value(&row, field).unwrap_or("-".into()));
            writeln!(out, "{}", shown.join("  ")).map_err(unwritten)?;
        }
        return Ok(());
    }
    if !typed.subject_prefix.is_empty() {
        refuse_uncovered(typed, config).await?;
    }
    let slot = &config.postgres.slot;
    let mut pace = Pace::new(typed.rate, selected);
    loop {
        let batch = fetch(&rows, pace.batch()).await?;
        if batch.is_empty() {
            break;
        }
        let batch = batch.into_iter();
        let batch: Vec<_> = batch
            .map(|row| handover(&rows, (mapping, row), (slot, &typed.subject_prefix)))
            .collect();
        hand_over(client, &batch).await?;
        pace.sent(batch.len()).await;
    }
    pace.progress.end();
    let sent = pace.sent;
    writeln!(
        out,
        "handed over  {sent} rows; whoever leads publishes them in their turn"
    )
    .map_err(unwritten)
}

/// The table that was named, or the only one.
fn table<'t>(typed: &cli::Replay, tables: &'t [Mapping]) -> Result<&'t Mapping, Failure> {
    let name = |mapping: &Mapping| format!("{}.{}", mapping.schema(), mapping.table());
    let names: Vec<_> = tables.iter().map(name).collect();
    let found = match &typed.table {
        Some(wanted) => tables.iter().find(|mapping| name(mapping) == *wanted),
        None if tables.len() == 1 => tables.first(),
        None => None,
    };
    found.ok_or_else(|| {
        let problem = Problem::new(
            "it is not clear which table to replay",
            format!("those that are configured are {}", names.join(", ")),
            format!("name one of them: --table {}", names[0]),
        );
        Failure::halt(Exit::Usage, problem)
    })
}

/// What follows the table's name: the conditions, and the order of publishing.
fn selection(typed: &cli::Replay, rows: &Rows<'_>) -> Result<String, Failure> {
    let column = |field: Field, flag: &str| {
        rows.column(field).ok_or_else(|| {
            let problem = Problem::new(
                format!("{flag} cannot be used with this table"),
                format!("no column is mapped to {}", field.key()),
                "say it in SQL: --where",
            );
            Failure::halt(Exit::Usage, problem)
        })
    };
    let compare = |(field, flag): (Field, &str), operator: &str, value: &str| {
        let value = escape_literal(value);
        Ok(format!("{} {operator} {value}", column(field, flag)?))
    };
    let mut conditions: Vec<String> = Vec::new();
    if let Some(since) = &typed.since {
        conditions.push(compare((Field::CreatedAt, "--since"), ">=", since)?);
    }
    if let Some(until) = &typed.until {
        conditions.push(compare((Field::CreatedAt, "--until"), "<", until)?);
    }
    if let Some((kind, id)) = &typed.aggregate {
        let flag = "--aggregate";
        conditions.push(compare((Field::AggregateType, flag), "=", kind)?);
        conditions.push(compare((Field::AggregateId, flag), "=", id)?);
    }
    if !typed.id.is_empty() {
        let ids: Vec<_> = typed.id.iter().map(|id| escape_literal(id)).collect();
        let column = column(Field::Id, "--id")?;
        conditions.push(format!("{column} IN ({})", ids.join(", ")));
    }
    // On lines of its own, so that a comment in it ends there.
    conditions.extend(typed.condition.iter().map(|sql| format!("(\n{sql}\n)")));
    let order = [Field::CreatedAt, Field::Id];
    let order: Vec<_> = order
        .iter()
        .filter_map(|field| rows.column(*field))
        .collect();
    let conditions = match conditions.is_empty() {
        true => "true".to_owned(),
        false => conditions.join(" AND "),
    };
    // An id from inside a column, and no time: as they lie.
    let order = match order.is_empty() {
        true => "ctid".to_owned(),
        false => order.join(", "),
    };
    Ok(format!("WHERE {conditions} ORDER BY {order}"))
}

/// Makes the selection, in a transaction that cannot write, and says how many rows it has. They are
/// kept in the server's temporary files, so that no snapshot is held while they go out.
async fn select(client: &Client, sql: &str) -> Result<u64, Failure> {
    let failed = |error| StatementError::new("select the rows", error).failure();
    let begin = client.batch_execute("BEGIN READ ONLY").await;
    begin.map_err(failed)?;
    // Prepared, and so one statement: what was typed after --where cannot begin another.
    let declare = format!("DECLARE replay SCROLL CURSOR WITH HOLD FOR {sql}");
    client.execute(&declare, &[]).await.map_err(failed)?;
    let moved = client.simple_query("COMMIT; MOVE FORWARD ALL IN replay");
    let moved = moved.await.map_err(failed)?;
    let rows = moved.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
        _ => None,
    });
    let back = client.batch_execute("MOVE ABSOLUTE 0 IN replay").await;
    back.map_err(failed)?;
    Ok(rows.unwrap_or_default())
}

async fn fetch(rows: &Rows<'_>, count: u32) -> Result<Vec<Row>, Failure> {
    let sql = format!("FETCH FORWARD {count} FROM replay");
    rows.read("read the rows", &sql).await
}

/// The subjects are not known here, but no event with this prefix may be in vain.
async fn refuse_uncovered(typed: &cli::Replay, config: &Config) -> Result<(), Failure> {
    let options = config.sink_options();
    let mut looking = options.of_stream();
    looking.stream.create = false;
    let found = jetstream::inspect(&looking).await;
    let found = found.map_err(|error| error.failure(&options))?;
    let pattern = format!("{}>", typed.subject_prefix);
    let mut subjects = found.subjects.iter();
    let sound = route::check_subject(&format!("{}x", typed.subject_prefix)).is_ok();
    let covered = sound
        && typed.subject_prefix.ends_with('.')
        && subjects.any(|subject| route::overlap(subject, &pattern));
    match covered {
        true => Ok(()),
        false => Err(Failure::halt(
            Exit::Usage,
            Problem::new(
                format!("no subject that begins with {} fits", typed.subject_prefix),
                format!(
                    "stream \"{}\" listens on {}",
                    found.name,
                    found.subjects.join(", ")
                ),
                "end the prefix with a dot, and begin it as one of these; or add a subject to the \
                 stream",
            ),
        )),
    }
}

/// Not more than so many a second, and a bar for who watches.
struct Pace {
    rate: Option<u32>,
    sent: u64,
    started: Instant,
    progress: Progress,
}

impl Pace {
    fn new(rate: Option<u32>, selected: u64) -> Self {
        Self {
            rate,
            sent: 0,
            started: Instant::now(),
            progress: Progress::of(selected, "rows handed over"),
        }
    }

    /// Ten batches a second, or full ones.
    fn batch(&self) -> u32 {
        self.rate
            .map_or(BATCH_MAX, |rate| (rate / 10).clamp(1, BATCH_MAX))
    }

    async fn sent(&mut self, rows: usize) {
        self.sent += rows as u64;
        self.progress.show(self.sent);
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.sent as f64 / f64::from(rate));
            tokio::time::sleep_until(self.started + due).await;
        }
    }
}
