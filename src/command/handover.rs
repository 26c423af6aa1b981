//! Rows that are to go out again, on their way to whoever leads: read from their table as an Insert
//! would show them, and written into the log as messages. Nothing is published here (one publisher,
//! always): slot, chain and guard see these events as they see all others.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::assemble::{HANDOVER, Handover};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::lsn::Lsn;
use crate::mapping::{Field, Mapping};
use crate::pg::catalog::{self, Error, Slot, TableName};
use crate::pg::ddl::quote;
use crate::pg::replication::REPLICATION_STARTUP;

/// How long the slot may take to pass what was handed over, before that is left to itself.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(60);

/// How often it is asked.
const POLL: Duration = Duration::from_millis(50);

/// An outbox table to read rows from.
pub(super) struct Rows<'a> {
    client: &'a Client,
    mapping: &'a Mapping,
    columns: Vec<(String, u32)>,
}

/// The values of a row in text form, in the order of the columns.
pub(super) type Row = Vec<Option<String>>;

/// Makes the session print values as the replication session does.
pub(super) async fn prepare(client: &Client) -> Result<(), Failure> {
    let settings = REPLICATION_STARTUP.iter();
    let settings = settings.filter(|(name, _)| *name != "replication");
    let mut sql: String = settings
        .map(|(name, value)| format!("SET {name} = '{value}'; "))
        .collect();
    // What was handed over is waited for by the LSN up to which the log is on disk.
    sql += "SET synchronous_commit = 'local'";
    let set = client.batch_execute(&sql).await;
    set.map_err(|error| Error::new("set up the session", error).failure())
}

/// Refuses to hand over what would be rejected.
pub(super) fn refuse_without_messages(config: &Config) -> Result<(), Failure> {
    match config.messages.prefixes.is_empty() {
        false => Ok(()),
        true => Err(Failure::halt(
            Exit::Config,
            Problem::new(
                "nothing can be handed to whoever leads",
                "it goes as a logical message, and messages.prefixes is empty",
                "set messages.prefixes to [outbox], and start `outjet run` again",
            ),
        )),
    }
}

impl<'a> Rows<'a> {
    pub(super) async fn open(client: &'a Client, mapping: &'a Mapping) -> Result<Self, Failure> {
        let name = TableName::new(mapping.schema(), mapping.table());
        let columns = catalog::described(client, &name).await;
        let columns = columns.map_err(|error| error.failure())?;
        if columns.is_empty() {
            let cause = "it was dropped or renamed, or it is in another database";
            let problem = Problem::new(
                format!("table {name} does not exist"),
                cause,
                "`outjet check`",
            );
            return Err(Failure::halt(Exit::CheckFailed, problem));
        }
        Ok(Self {
            client,
            mapping,
            columns,
        })
    }

    /// The quoted column that a field comes from.
    pub(super) fn column(&self, field: Field) -> Option<String> {
        self.mapping.column_of(field).map(quote)
    }

    /// A query for rows; `rest` is what follows the table's name.
    pub(super) fn select(&self, rest: &str) -> String {
        let columns: Vec<_> = self.columns.iter().map(|(name, _)| quote(name)).collect();
        let (schema, table) = (quote(self.mapping.schema()), quote(self.mapping.table()));
        format!("SELECT {} FROM {schema}.{table} {rest}", columns.join(", "))
    }

    /// The rows that a statement returns. By the simple protocol: it gives all values as text.
    pub(super) async fn read(&self, doing: &str, sql: &str) -> Result<Vec<Row>, Failure> {
        let answer = self.client.simple_query(sql).await;
        let answer = answer.map_err(|error| Error::new(doing, error).failure())?;
        let rows = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let values = (0..row.len()).map(|at| row.get(at).map(str::to_owned));
                Some(values.collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The value of the column that a field comes from.
    pub(super) fn value<'r>(&self, row: &'r Row, field: Field) -> Option<&'r str> {
        let column = self.mapping.column_of(field)?;
        let at = self.columns.iter().position(|(name, _)| name == column)?;
        row.get(at)?.as_deref()
    }

    /// The row as whoever leads gets it.
    pub(super) fn handover(&self, row: Row, subject_prefix: &str) -> Handover {
        let id = self.value(&row, Field::Id).unwrap_or_default().to_owned();
        let columns = self.columns.iter().zip(row);
        Handover {
            schema: self.mapping.schema().to_owned(),
            table: self.mapping.table().to_owned(),
            id,
            subject_prefix: subject_prefix.to_owned(),
            row: columns
                .map(|((name, oid), value)| (name.clone(), *oid, value))
                .collect(),
        }
    }
}

/// Commits the rows as messages, in order, in one transaction.
pub(super) async fn hand_over(client: &Client, rows: &[Handover]) -> Result<(), Failure> {
    let contents = rows.iter().map(serde_json::to_vec);
    let contents: Vec<Vec<u8>> = contents
        .collect::<Result<_, _>>()
        .expect("texts and numbers");
    let sql = include_str!("../../sql/hand_over.sql");
    let done = client.query(sql, &[&HANDOVER, &contents]).await;
    done.map(drop).map_err(|error| {
        let error = Error::new("hand rows over by pg_logical_emit_message", error);
        error.failure()
    })
}

/// Waits until the slot has passed all that was committed so far: then it is stored.
pub(super) async fn until_published(client: &Client, slot: &str) -> Result<(), Failure> {
    let lsn = client.query_one("SELECT pg_current_wal_flush_lsn()", &[]);
    let lsn = lsn.await.and_then(|row| row.try_get::<_, PgLsn>(0));
    let lsn = lsn.map_err(|error| Error::new("read the end of the log", error).failure())?;
    let handed_over = Lsn::new(lsn.into());
    let started = Instant::now();
    loop {
        let found = Slot::read(client, slot).await;
        let found = found.map_err(|error| error.failure())?;
        let confirmed = found.as_ref().and_then(|slot| slot.confirmed_flush);
        if confirmed.is_some_and(|confirmed| confirmed >= handed_over) {
            return Ok(());
        }
        if started.elapsed() >= PUBLISHED_WITHIN {
            let cause = match found {
                Some(slot) if slot.active => "whoever leads has not come so far",
                Some(_) => "nobody leads",
                None => "the slot does not exist",
            };
            return Err(Failure::retry(Problem::new(
                format!("it is handed over, and not published within {PUBLISHED_WITHIN:?}"),
                cause,
                "see `outjet status`; it is published in its turn, so do not retry it, and then \
                 `outjet dead-letters drop`",
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}
