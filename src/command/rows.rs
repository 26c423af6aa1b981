//! The rows of an outbox table, with their values as the slot sends them.

use std::borrow::Cow;
use std::error::Error as StdError;

use tokio_postgres::Client;
use tokio_postgres::types::{FromSql, Type};

use crate::error::{Exit, Failure, Problem};
use crate::event::mapping::{Field, Mapping};
use crate::pg::catalog::{self, StatementError};
use crate::pg::name::TableName;
use crate::pg::name::quote;
use crate::pg::replication::{ANY_BYTES, REPLICATION_STARTUP};

/// An outbox table to read rows from.
pub(super) struct Rows<'a> {
    client: &'a Client,
    mapping: Mapping,
    /// Names and oids of the types, as pgoutput describes them.
    columns: Vec<(String, u32)>,
}

/// The values of a row in text form, in the order of the columns.
pub(super) type Row = Vec<Option<Vec<u8>>>;

/// Text as the server sends it, whatever its encoding.
struct Raw(Vec<u8>);

impl FromSql<'_> for Raw {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(raw.to_owned()))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT
    }
}

/// Statements by which a session prints values as the replication session does. `set`: `SET`, or
/// `SET LOCAL`.
pub(super) fn settings(set: &str) -> String {
    let settings = REPLICATION_STARTUP.iter();
    let settings = settings.filter(|(name, _)| *name != "replication");
    let settings = settings.map(|(name, value)| format!("{set} {name} = '{value}'; "));
    settings.chain([format!("{ANY_BYTES}; ")]).collect()
}

impl<'a> Rows<'a> {
    pub(super) async fn open(client: &'a Client, mapping: &Mapping) -> Result<Self, Failure> {
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
        let has = |wanted: &str| columns.iter().any(|(name, _)| name == wanted);
        Ok(Self {
            client,
            mapping: mapping.clone().of_columns(has),
            columns,
        })
    }

    /// The columns, in their order.
    pub(super) fn columns(&self) -> Vec<(&str, u32)> {
        let columns = self.columns.iter();
        columns.map(|(name, oid)| (name.as_str(), *oid)).collect()
    }

    /// The quoted column that a field comes from.
    pub(super) fn column(&self, field: Field) -> Option<String> {
        self.mapping.column_of(field).map(quote)
    }

    /// A query for rows; `rest` is what follows the table's name.
    pub(super) fn select(&self, rest: &str) -> String {
        // By the output functions, which a cast to text is not for all types; composite values with
        // a NULL inside are none, and so `IS NOT NULL` is not asked.
        let text = |(name, _): &(String, u32)| {
            let column = quote(name);
            format!(
                "CASE WHEN {column} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {column}) \
                 END"
            )
        };
        let columns: Vec<_> = self.columns.iter().map(text).collect();
        let (schema, table) = (quote(self.mapping.schema()), quote(self.mapping.table()));
        format!("SELECT {} FROM {schema}.{table} {rest}", columns.join(", "))
    }

    /// The rows of such a query, or of its cursor.
    pub(super) async fn read(&self, doing: &str, sql: &str) -> Result<Vec<Row>, Failure> {
        let read = self.query(sql).await;
        read.map_err(|error| StatementError::new(doing, error).failure())
    }

    /// The same with the error as it came.
    pub(super) async fn query(&self, sql: &str) -> Result<Vec<Row>, tokio_postgres::Error> {
        let rows = self.client.query_typed(sql, &[]).await?;
        let rows = rows.iter().map(|row| {
            let raw = |at| Ok(row.try_get::<_, Option<Raw>>(at)?.map(|Raw(bytes)| bytes));
            (0..row.len()).map(raw).collect()
        });
        rows.collect()
    }

    /// The value of the column that a field comes from, as text for people.
    pub(super) fn value<'r>(&self, row: &'r Row, field: Field) -> Option<Cow<'r, str>> {
        let column = self.mapping.column_of(field)?;
        let at = self.columns.iter().position(|(name, _)| name == column)?;
        row.get(at)?.as_deref().map(String::from_utf8_lossy)
    }
}
