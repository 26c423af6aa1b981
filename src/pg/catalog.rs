//! What SQL knows about the server, the slot, the publication and the tables, as typed facts, read
//! through a normal connection. Judges nothing (that is `preflight`) and changes nothing (that is
//! `ddl`). Differences between versions are settled in the queries, `sql/catalog/`.

use std::fmt;
use std::time::SystemTime;

use tokio_postgres::types::{PgLsn, ToSql};
use tokio_postgres::{Client, Row};

mod leading;
mod standbys;

pub use self::leading::{Leading, slot_used};
pub use self::standbys::{Partitions, Standbys};
use super::name::{TableName, quote};
use crate::error::{self, Exit, Failure, Problem};
use crate::lsn::Lsn;

/// All that is known, as of one moment or nearly so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The server and the role we are on it.
    pub server: Server,
    /// `None`: no slot of that name, in any database.
    pub slot: Option<Slot>,
    /// `None`: no publication of that name in this database.
    pub publication: Option<Publication>,
    /// In the order asked for; `None`: no such table.
    pub tables: Vec<Option<Table>>,
    /// Tables of this database, for "did you mean"; read only if one asked for does not exist.
    pub other_tables: Vec<TableName>,
    /// Who would go on after a failover.
    pub standbys: Standbys,
    /// How far the partitions of `outbox.events` reach.
    pub partitions: Partitions,
}

impl Facts {
    /// Reads everything about this slot, this publication and these tables.
    pub async fn read(
        client: &Client,
        slot: &str,
        publication: &str,
        names: &[TableName],
    ) -> Result<Facts, StatementError> {
        let mut tables = Vec::with_capacity(names.len());
        for name in names {
            tables.push(Table::read(client, name, publication).await?);
        }
        let other_tables = if tables.contains(&None) {
            other_tables(client).await?
        } else {
            Vec::new()
        };
        Ok(Facts {
            server: Server::read(client).await?,
            slot: Slot::read(client, slot).await?,
            publication: Publication::read(client, publication).await?,
            standbys: Standbys::read(client, slot).await?,
            partitions: Partitions::read(client).await?,
            tables,
            other_tables,
        })
    }
}

/// The server, the database we are connected to, and our role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `server_version_num`: 150018 is 15.18.
    pub version_num: i32,
    /// `server_version` without the packager's addition.
    pub version: String,
    /// The database we are connected to.
    pub database: String,
    /// `replica`, `logical`, …
    pub wal_level: String,
    /// `wal_level` was changed, but the server has not been restarted since.
    pub wal_level_pending_restart: bool,
    /// A standby.
    pub in_recovery: bool,
    /// The end of what is written; on a standby, of what is replayed.
    pub current: Lsn,
    /// `max_replication_slots`.
    pub slots_max: i32,
    /// Slots of all databases, physical ones too.
    pub slots_used: i32,
    /// `max_wal_senders`.
    pub wal_senders_max: i32,
    /// Connected WAL senders, base backups too.
    pub wal_senders_used: i32,
    /// Names the cluster; a promoted standby keeps it.
    pub system_identifier: String,
    /// `session_user`: what a replication connection with the same credentials runs as.
    pub role: String,
    /// May everything.
    pub superuser: bool,
    /// Has the REPLICATION attribute.
    pub replication: bool,
    /// Is a member of Amazon's `rds_replication`.
    pub rds_replication: bool,
    /// How long a slot may be idle before it is invalidated (18 and newer), in the server's words;
    /// `None`: for ever.
    pub idle_slot_timeout: Option<String>,
    /// Every role may write logical messages, as after `initdb`.
    pub anybody_emits: bool,
    /// The table `outbox.schema_version` exists.
    pub schema_installed: bool,
    /// We may do with it what its owner may.
    pub schema_owned: bool,
}

impl Server {
    /// The major version: 14, 15, ….
    pub fn major(&self) -> i32 {
        self.version_num / 10_000
    }

    /// From 17 on a slot can be kept in step on standbys.
    pub fn has_failover_slots(&self) -> bool {
        self.major() >= 17
    }

    /// Reads them.
    pub async fn read(client: &Client) -> Result<Server, StatementError> {
        let sql = include_str!("../../sql/catalog/server.sql");
        let doing = || "read the settings of the server".to_owned();
        let row = client.query_one(sql, &[]).await;
        row.and_then(|row| Self::parse(&row)).map_err(wrap(doing))
    }

    fn parse(row: &Row) -> Result<Server, tokio_postgres::Error> {
        Ok(Server {
            version_num: row.try_get("version_num")?,
            version: row.try_get("version")?,
            database: row.try_get("database")?,
            wal_level: row.try_get("wal_level")?,
            wal_level_pending_restart: row.try_get("wal_level_pending_restart")?,
            in_recovery: row.try_get("in_recovery")?,
            current: lsn(row, "current_lsn")?.unwrap_or(Lsn::ZERO),
            slots_max: row.try_get("slots_max")?,
            slots_used: row.try_get("slots_used")?,
            wal_senders_max: row.try_get("wal_senders_max")?,
            wal_senders_used: row.try_get("wal_senders_used")?,
            system_identifier: row.try_get("system_identifier")?,
            role: row.try_get("role")?,
            superuser: row.try_get("superuser")?,
            replication: row.try_get("replication")?,
            rds_replication: row.try_get("rds_replication")?,
            idle_slot_timeout: row.try_get("idle_slot_timeout")?,
            anybody_emits: row.try_get("anybody_emits")?,
            schema_installed: row.try_get("schema_installed")?,
            schema_owned: row.try_get("schema_owned")?,
        })
    }
}

/// A row of `pg_replication_slots`, and who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// The output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// The database it decodes; `None` for a physical slot.
    pub database: Option<String>,
    /// Somebody streams from it, or it is being made.
    pub active: bool,
    /// `None` if nobody holds it.
    pub holder: Option<Holder>,
    /// `reserved`, `extended`, `unreserved` or `lost`; `None` while it is being made.
    pub wal_status: Option<String>,
    /// Why it was lost (17 and newer).
    pub invalidation_reason: Option<String>,
    /// Since when nobody streams from it (17 and newer).
    pub inactive_since: Option<SystemTime>,
    /// What decoding has cost the server.
    pub decoding: Decoding,
    /// Decodes prepared transactions at PREPARE.
    pub two_phase: bool,
    /// Is kept in step on standbys (17 and newer).
    pub failover: bool,
    /// WAL from here on is retained; `None` once lost.
    pub restart: Option<Lsn>,
    /// Everything that ends before it is settled. In memory: not proof against a crash.
    pub confirmed_flush: Option<Lsn>,
    /// Bytes of WAL that may still be written before it may be lost; `None`: no limit, or lost.
    pub safe_wal_size: Option<i64>,
}

impl Slot {
    /// Reads one slot by name, of whatever kind and database.
    pub async fn read(client: &Client, name: &str) -> Result<Option<Slot>, StatementError> {
        let sql = include_str!("../../sql/catalog/slot.sql");
        let doing = || format!("read replication slot \"{name}\"");
        let row = client.query_opt(sql, &[&name]).await;
        row.and_then(|row| row.map(|row| Self::parse(&row, name)).transpose())
            .map_err(wrap(doing))
    }

    /// Decoding from it is over for good.
    pub fn lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation_reason.is_some()
    }

    /// Bytes written and not confirmed, where the server stands at `current`.
    pub fn lag_bytes(&self, current: Lsn) -> Option<u64> {
        self.confirmed_flush.map(|lsn| current.bytes_since(lsn))
    }

    /// Bytes of WAL that it makes the server keep, where the server stands at `current`.
    pub fn retained_wal_bytes(&self, current: Lsn) -> Option<u64> {
        self.restart.map(|lsn| current.bytes_since(lsn))
    }

    /// Bytes of WAL that are confirmed and kept all the same, for transactions that are still open
    /// (`restart_lsn` goes on when they end, and then some seconds later).
    pub fn pinned_wal_bytes(&self) -> Option<u64> {
        Some(self.confirmed_flush?.bytes_since(self.restart?))
    }

    fn parse(row: &Row, name: &str) -> Result<Slot, tokio_postgres::Error> {
        let pid: Option<i32> = row.try_get("active_pid")?;
        let holder = match pid {
            Some(pid) => Some(Holder {
                pid,
                application_name: row.try_get("application_name")?,
                client_addr: row.try_get("client_addr")?,
                since: row.try_get("holder_since")?,
            }),
            None => None,
        };
        Ok(Slot {
            name: name.to_owned(),
            plugin: row.try_get("plugin")?,
            database: row.try_get("database")?,
            active: row.try_get("active")?,
            holder,
            wal_status: row.try_get("wal_status")?,
            invalidation_reason: row.try_get("invalidation_reason")?,
            inactive_since: row.try_get("inactive_since")?,
            decoding: Decoding::parse(row)?,
            two_phase: row.try_get("two_phase")?,
            failover: row.try_get::<_, Option<bool>>("failover")? == Some(true),
            restart: lsn(row, "restart_lsn")?,
            confirmed_flush: lsn(row, "confirmed_flush_lsn")?,
            safe_wal_size: row.try_get("safe_wal_size")?,
        })
    }
}

/// A row of `pg_stat_replication_slots`: transactions that were too large for
/// `logical_decoding_work_mem`, and what became of them. Starts again when statistics are reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoding {
    /// Transactions that were written to the server's disk.
    pub spill_transactions: u64,
    /// Their bytes, each time they were written.
    pub spill_bytes: u64,
    /// Transactions that were sent before they were committed: none of ours.
    pub stream_transactions: u64,
    /// Their bytes.
    pub stream_bytes: u64,
}

impl Decoding {
    fn parse(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let count = |name| {
            let count: Option<i64> = row.try_get(name)?;
            Ok::<_, tokio_postgres::Error>(count.and_then(|n| n.try_into().ok()).unwrap_or(0))
        };
        Ok(Self {
            spill_transactions: count("spill_txns")?,
            spill_bytes: count("spill_bytes")?,
            stream_transactions: count("stream_txns")?,
            stream_bytes: count("stream_bytes")?,
        })
    }
}

/// The backend that holds a slot. What we may not see of it is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id on the server.
    pub pid: i32,
    /// What the client calls itself.
    pub application_name: Option<String>,
    /// `None` also for a unix socket.
    pub client_addr: Option<String>,
    /// When it connected.
    pub since: Option<String>,
}

impl Holder {
    /// Calls itself as we do (`params`: the default of `application_name`); what it is called at
    /// other roles we may not see.
    pub fn outjet(&self) -> bool {
        let name = self.application_name.as_deref();
        name.is_some_and(|name| name.starts_with(super::params::APPLICATION_NAME))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if let Some(name) = self.application_name.as_deref().filter(|n| !n.is_empty()) {
            write!(f, ", application \"{name}\"")?;
        }
        if let Some(addr) = &self.client_addr {
            write!(f, ", client {addr}")?;
        }
        if let Some(since) = &self.since {
            write!(f, ", connected since {since}")?;
        }
        Ok(())
    }
}

/// A publication and what it publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Its name.
    pub name: String,
    /// `FOR ALL TABLES`.
    pub all_tables: bool,
    /// Inserts are published.
    pub insert: bool,
    /// Rows of partitions are published as rows of their root.
    pub via_root: bool,
    /// What it publishes, partitions given as their root.
    pub tables: Vec<TableName>,
}

impl Publication {
    async fn read(client: &Client, name: &str) -> Result<Option<Publication>, StatementError> {
        let sql = include_str!("../../sql/catalog/publication.sql");
        let doing = || format!("read publication \"{name}\"");
        let row = client.query_opt(sql, &[&name]).await;
        row.and_then(|row| row.map(|row| Self::parse(&row, name)).transpose())
            .map_err(wrap(doing))
    }

    fn parse(row: &Row, name: &str) -> Result<Publication, tokio_postgres::Error> {
        let schemas: Vec<String> = row.try_get("schemas")?;
        let names: Vec<String> = row.try_get("names")?;
        Ok(Publication {
            name: name.to_owned(),
            all_tables: row.try_get("all_tables")?,
            insert: row.try_get("insert")?,
            via_root: row.try_get("via_root")?,
            tables: schemas
                .into_iter()
                .zip(names)
                .map(|(schema, name)| TableName { schema, name })
                .collect(),
        })
    }
}

/// A table, and what the publication publishes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// Its oid: a table made again under its old name has another one.
    pub oid: u32,
    /// `pg_class.relkind`: `r` a table, `p` a partitioned one, `v` a view, …
    pub kind: char,
    /// `pg_class.relpersistence`: `p`, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// Its partitions that are unlogged.
    pub unlogged_partitions: Vec<String>,
    /// We may delete its rows, and those of its partitions.
    pub may_delete: bool,
    /// The publication publishes it under its own name.
    pub published: bool,
    /// The publication publishes partitions of it under theirs.
    pub published_by_partition: bool,
    /// The publication's row filter (15 and newer).
    pub row_filter: Option<String>,
    /// The columns that are published; `None` where the server does not tell (14: all).
    pub published_columns: Option<Vec<String>>,
    /// In the table's own order.
    pub columns: Vec<Column>,
}

impl Table {
    /// Reads one table, and what `publication` publishes of it.
    pub async fn read(
        client: &Client,
        name: &TableName,
        publication: &str,
    ) -> Result<Option<Table>, StatementError> {
        let doing = || format!("read table {name}");
        let sql = include_str!("../../sql/catalog/table.sql");
        let params: [&(dyn ToSql + Sync); 3] = [&name.schema, &name.name, &publication];
        let row = client.query_opt(sql, &params).await.map_err(wrap(doing))?;
        let Some(row) = row else { return Ok(None) };
        let oid: u32 = row.try_get("oid").map_err(wrap(doing))?;
        let sql = include_str!("../../sql/catalog/columns.sql");
        let columns = client.query(sql, &[&oid]).await.map_err(wrap(doing))?;
        Self::parse(&row, name, &columns)
            .map(Some)
            .map_err(wrap(doing))
    }

    fn parse(row: &Row, name: &TableName, columns: &[Row]) -> Result<Table, tokio_postgres::Error> {
        Ok(Table {
            name: name.clone(),
            oid: row.try_get("oid")?,
            kind: letter(row, "kind")?,
            persistence: letter(row, "persistence")?,
            unlogged_partitions: row.try_get("unlogged_partitions")?,
            may_delete: row.try_get("may_delete")?,
            published: row.try_get("published")?,
            published_by_partition: row.try_get("published_by_partition")?,
            row_filter: row.try_get("row_filter")?,
            published_columns: row.try_get("published_columns")?,
            columns: columns
                .iter()
                .map(Column::parse)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type; of a domain, what that is made of.
    pub type_oid: u32,
    /// Its type as SQL spells it.
    pub type_name: String,
    /// Cannot be NULL.
    pub not_null: bool,
    /// Computed by the server: not published before 18.
    pub generated: bool,
}

impl Column {
    fn parse(row: &Row) -> Result<Column, tokio_postgres::Error> {
        Ok(Column {
            name: row.try_get("name")?,
            type_oid: row.try_get("type_oid")?,
            type_name: row.try_get("type_name")?,
            not_null: row.try_get("not_null")?,
            generated: row.try_get("generated")?,
        })
    }
}

/// The columns of a table with the oids of their types, as an Insert's description has them.
pub async fn described(
    client: &Client,
    name: &TableName,
) -> Result<Vec<(String, u32)>, StatementError> {
    let sql = include_str!("../../sql/catalog/described.sql");
    let doing = || format!("read the columns of table {name}");
    let rows = client.query(sql, &[&name.schema, &name.name]).await;
    let parse = |row: &Row| Ok((row.try_get("name")?, row.try_get("type_oid")?));
    rows.and_then(|rows| rows.iter().map(parse).collect())
        .map_err(wrap(doing))
}

/// An open transaction that has written: creating a slot waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenWriter {
    /// Its process id on the server.
    pub pid: i32,
    /// What the client calls itself.
    pub application_name: Option<String>,
    /// When the transaction began.
    pub since: Option<String>,
}

/// The open transactions that have written, oldest first, ten at most.
pub async fn open_writers(client: &Client) -> Result<Vec<OpenWriter>, StatementError> {
    let sql = include_str!("../../sql/catalog/open_writers.sql");
    let doing = || "look for open transactions".to_owned();
    let rows = client.query(sql, &[]).await.map_err(wrap(doing))?;
    let parse = |row: &Row| {
        Ok(OpenWriter {
            pid: row.try_get("pid")?,
            application_name: row.try_get("application_name")?,
            since: row.try_get("since")?,
        })
    };
    rows.iter()
        .map(parse)
        .collect::<Result<_, _>>()
        .map_err(wrap(doing))
}

/// The version of the schema `outbox`; `None`: not installed.
pub async fn schema_version(
    client: &Client,
    server: &Server,
) -> Result<Option<i32>, StatementError> {
    if !server.schema_installed {
        return Ok(None);
    }
    let sql = "SELECT max(version) FROM outbox.schema_version";
    let doing = || "read outbox.schema_version".to_owned();
    let row = client.query_one(sql, &[]).await;
    row.and_then(|row| row.try_get(0)).map_err(wrap(doing))
}

/// What lies in a slot and is not confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    /// Changes looked at, of every kind.
    pub changes: i64,
    /// Inserts and messages of transactions among them.
    pub events: i64,
}

/// Looks into a slot without consuming anything, until about `changes_max` changes were seen. The
/// slot must be free, and the publication must exist: without it 18 reports nothing at all.
pub async fn unconfirmed(
    client: &Client,
    slot: &str,
    publication: &str,
    changes_max: i32,
) -> Result<Unconfirmed, StatementError> {
    let sql = include_str!("../../sql/catalog/unconfirmed.sql");
    let doing = || format!("look into replication slot \"{slot}\"");
    let publication = quote(publication);
    let row = client
        .query_one(sql, &[&slot, &publication, &changes_max])
        .await;
    let parse = |row: Row| {
        Ok(Unconfirmed {
            changes: row.try_get("changes")?,
            events: row.try_get("events")?,
        })
    };
    row.and_then(parse).map_err(wrap(doing))
}

async fn other_tables(client: &Client) -> Result<Vec<TableName>, StatementError> {
    let sql = include_str!("../../sql/catalog/similar_tables.sql");
    let doing = || "read the names of the tables".to_owned();
    let rows = client.query(sql, &[]).await.map_err(wrap(doing))?;
    let parse = |row: &Row| {
        Ok(TableName {
            schema: row.try_get("schema")?,
            name: row.try_get("name")?,
        })
    };
    rows.iter()
        .map(parse)
        .collect::<Result<_, _>>()
        .map_err(wrap(doing))
}

fn lsn(row: &Row, column: &str) -> Result<Option<Lsn>, tokio_postgres::Error> {
    let lsn: Option<PgLsn> = row.try_get(column)?;
    Ok(lsn.map(|lsn| Lsn::new(lsn.into())))
}

/// A `"char"` that was cast to text.
fn letter(row: &Row, column: &str) -> Result<char, tokio_postgres::Error> {
    let text: &str = row.try_get(column)?;
    Ok(text.chars().next().unwrap_or(' '))
}

/// A statement failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
pub struct StatementError {
    /// Present tense: "read table outbox.events".
    doing: String,
    #[source]
    source: tokio_postgres::Error,
}

impl StatementError {
    /// Says what was being done.
    pub fn new(doing: impl Into<String>, source: tokio_postgres::Error) -> Self {
        Self {
            doing: doing.into(),
            source,
        }
    }

    /// The server's code, if the server refused the statement.
    pub fn sqlstate(&self) -> Option<&str> {
        self.source.code().map(|code| code.code())
    }

    /// The server's own words, or those of the connection's end.
    pub fn cause(&self) -> String {
        let Some(error) = self.source.as_db_error() else {
            return error::chain(&self.source);
        };
        let detail = error.detail().map(|d| format!(" ({d})"));
        format!(
            "{} [{}]{}",
            error.message(),
            error.code().code(),
            detail.unwrap_or_default()
        )
    }

    /// The connection ended.
    fn disconnected(&self) -> bool {
        let io = std::error::Error::source(&self.source).is_some_and(|e| e.is::<std::io::Error>());
        self.source.is_closed() || io
    }

    /// What an operator is told. A statement that fails on a live connection is not tried again.
    pub fn failure(&self) -> Failure {
        let hint = self.source.as_db_error().and_then(|e| e.hint());
        let fix = |fix: &str| hint.unwrap_or(fix).to_owned();
        let problem = |fix| Problem::new(self.to_string(), self.cause(), fix);
        // Classes of SQLSTATE: Postgres documentation, appendix A. 08: connection, 53: out of
        // something, 57: an operator intervened, 42501: insufficient privilege.
        match self.sqlstate() {
            None if self.disconnected() => {
                Failure::retry(problem(fix("check that the server is up and reachable")))
            }
            // The answer is not what the query promises.
            None => Failure::halt(Exit::Bug, problem(fix("report it as a bug in outjet"))),
            Some("42501") => Failure::halt(
                Exit::NotPermitted,
                problem(fix("grant it to this role, or connect as the owner")),
            ),
            Some(code)
                if ["08", "53", "57"]
                    .iter()
                    .any(|class| code.starts_with(class)) =>
            {
                Failure::retry(problem(fix("look into the server's log")))
            }
            Some(_) => Failure::halt(
                Exit::CheckFailed,
                problem(fix(
                    "look into the server's log; if it says no more, report a bug",
                )),
            ),
        }
    }
}

fn wrap(doing: impl Fn() -> String) -> impl Fn(tokio_postgres::Error) -> StatementError {
    move |source| StatementError::new(doing(), source)
}
