//! The server that streams to us, as another session sees it.

use tokio_postgres::{Client, Row};

use super::{StatementError, lsn, wrap};
use crate::lsn::Lsn;

/// What a leader asks of the server once the slot is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leading {
    /// Where the slot stands.
    pub confirmed: Option<Lsn>,
    /// Up to where the server has flushed, or a standby replayed: nothing behind was ever sent.
    pub flushed: Lsn,
    /// Whether it is a standby.
    pub standby: bool,
    /// Whether commits may wait for a standby (`synchronous_standby_names`), which we can be.
    pub synchronous: bool,
}

impl Leading {
    /// `None` if the slot is not in use on the server that the client is connected to.
    pub async fn read(client: &Client, slot: &str) -> Result<Option<Self>, StatementError> {
        let sql = include_str!("../../../sql/catalog/leading.sql");
        let row = client.query_opt(sql, &[&slot]).await;
        row.and_then(|row| row.map(|row| Self::parse(&row)).transpose())
            .map_err(wrap(|| format!("read the position of slot {slot}")))
    }

    fn parse(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            confirmed: lsn(row, "confirmed")?,
            flushed: lsn(row, "flushed")?.unwrap_or(Lsn::ZERO),
            standby: row.try_get("standby")?,
            synchronous: row.try_get("synchronous")?,
        })
    }
}

/// Whether anything was ever read from a slot, as far as the server's statistics remember.
pub async fn slot_used(client: &Client, slot: &str) -> Result<bool, StatementError> {
    let sql = include_str!("../../../sql/catalog/slot_used.sql");
    let row = client.query_opt(sql, &[&slot]).await;
    let used = row.and_then(|row| row.map(|row| row.try_get(0)).transpose());
    let used = used.map_err(wrap(|| format!("read the statistics of slot {slot}")))?;
    Ok(used.unwrap_or(false))
}
