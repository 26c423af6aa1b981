//! Rows that are to go out again, on their way to whoever leads: written into the log as messages.
//! Nothing is published here (one publisher, always): slot, chain and guard see these events as
//! they see all others.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::command::rows::{self, Row, Rows};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::event::assemble::{HANDOVER, Handover, Text};
use crate::event::mapping::{Field, Mapping};
use crate::lsn::Lsn;
use crate::pg::catalog::{Slot, StatementError};

/// How long the slot may take to pass what was handed over, before that is left to itself.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(60);

/// How often it is asked.
const POLL: Duration = Duration::from_millis(50);

/// Makes the session print values as the replication session does.
pub(super) async fn prepare(client: &Client) -> Result<(), Failure> {
    // What was handed over is waited for by the LSN up to which the log is on disk.
    let sql = rows::settings("SET") + "SET synchronous_commit = 'local'";
    let set = client.batch_execute(&sql).await;
    set.map_err(|error| StatementError::new("set up the session", error).failure())
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

/// The row as whoever leads gets it.
pub(super) fn handover(
    rows: &Rows<'_>,
    (mapping, row): (&Mapping, Row),
    (slot, prefix): (&str, &str),
) -> Handover {
    let id = rows.value(&row, Field::Id).unwrap_or_default().into_owned();
    let columns = rows.columns().into_iter().zip(row);
    Handover {
        slot: slot.to_owned(),
        schema: mapping.schema().to_owned(),
        table: mapping.table().to_owned(),
        id,
        subject_prefix: prefix.to_owned(),
        row: columns
            .map(|((name, oid), value)| (name.to_owned(), oid, value.map(Text)))
            .collect(),
    }
}

/// Commits the rows as messages, in order, in one transaction.
pub(super) async fn hand_over(client: &Client, rows: &[Handover]) -> Result<(), Failure> {
    let contents = rows.iter().map(serde_json::to_vec);
    let contents: Vec<Vec<u8>> = contents
        .collect::<Result<_, _>>()
        .expect("texts and numbers");
    let sql = include_str!("../../../sql/hand_over.sql");
    let done = client.query(sql, &[&HANDOVER, &contents]).await;
    done.map(drop).map_err(|error| {
        let error = StatementError::new("hand rows over by pg_logical_emit_message", error);
        error.failure()
    })
}

/// Waits until the slot has passed all that was committed so far: then it is stored.
pub(super) async fn until_published(client: &Client, slot: &str) -> Result<(), Failure> {
    let lsn = client.query_one("SELECT pg_current_wal_flush_lsn()", &[]);
    let lsn = lsn.await.and_then(|row| row.try_get::<_, PgLsn>(0));
    let lsn =
        lsn.map_err(|error| StatementError::new("read the end of the log", error).failure())?;
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
