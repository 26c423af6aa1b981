//! What would be there after a failover: standbys of the server, copies of ours, and how far the
//! outbox's partitions reach.

use tokio_postgres::{Client, Row};

use super::{StatementError, wrap};

/// Standbys of the server, and copies of outjet that stand by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standbys {
    /// Physical slots that last, by name.
    pub slots: Vec<String>,
    /// Those of them that nobody streams from.
    pub inactive: Vec<String>,
    /// What failover slots wait for (17 and newer): `synchronized_standby_slots`.
    pub synchronized: Vec<String>,
    /// Copies that stand by, as far as our role may see them.
    pub copies: i32,
}

impl Standbys {
    /// Those of outjet stand by for `slot`.
    pub async fn read(client: &Client, slot: &str) -> Result<Self, StatementError> {
        let sql = include_str!("../../../sql/catalog/standbys.sql");
        let name = crate::pg::params::APPLICATION_NAME;
        let row = client.query_one(sql, &[&slot, &name]).await;
        row.and_then(|row| Self::parse(&row))
            .map_err(wrap(|| "read the standbys".to_owned()))
    }

    fn parse(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let synchronized: String = row.try_get("synchronized")?;
        let names = synchronized
            .split(',')
            .map(|name| name.trim().trim_matches('"'));
        let names = names.filter(|name| !name.is_empty());
        Ok(Self {
            slots: row.try_get("slots")?,
            inactive: row.try_get("inactive")?,
            synchronized: names.map(str::to_owned).collect(),
            copies: row.try_get("copies")?,
        })
    }
}

/// How far the partitions of `outbox.events` reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partitions {
    /// Where the last one ends; `None`: there are none.
    pub until: Option<String>,
    /// That is too soon for a row of tomorrow.
    pub short: bool,
    /// About how many rows are in none of them, but in the default partition.
    pub default_rows: i64,
    /// Whether we may make and drop them; `None`: there are no functions for it.
    pub may_turn: Option<bool>,
}

impl Partitions {
    /// Reads it.
    pub async fn read(client: &Client) -> Result<Self, StatementError> {
        let sql = include_str!("../../../sql/catalog/partitions.sql");
        let row = client.query_one(sql, &[]).await;
        let parse = |row: Row| {
            Ok(Self {
                until: row.try_get("until")?,
                short: row.try_get::<_, Option<bool>>("short")? == Some(true),
                default_rows: row.try_get("default_rows")?,
                may_turn: row.try_get("may_turn")?,
            })
        };
        row.and_then(parse)
            .map_err(wrap(|| "read the outbox's partitions".to_owned()))
    }
}
