//! The rows of an outbox table, with their values as the slot sends them.

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::error::{Exit, Failure, Problem};
use crate::mapping::{Field, Mapping};
use crate::pg::catalog::{self, Error, TableName};
use crate::pg::ddl::quote;
use crate::pg::replication::REPLICATION_STARTUP;

/// An outbox table to read rows from.
pub(super) struct Rows<'a> {
    client: &'a Client,
    mapping: Mapping,
    /// Names and oids of the types, as pgoutput describes them.
    columns: Vec<(String, u32)>,
}

/// The values of a row in text form, in the order of the columns.
pub(super) type Row = Vec<Option<String>>;

/// Statements by which a session prints values as the replication session does. `set`: `SET`, or
/// `SET LOCAL`.
pub(super) fn settings(set: &str) -> String {
    let settings = REPLICATION_STARTUP.iter();
    let settings = settings.filter(|(name, _)| *name != "replication");
    settings
        .map(|(name, value)| format!("{set} {name} = '{value}'; "))
        .collect()
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
        let columns: Vec<_> = self.columns.iter().map(|(name, _)| quote(name)).collect();
        let (schema, table) = (quote(self.mapping.schema()), quote(self.mapping.table()));
        format!("SELECT {} FROM {schema}.{table} {rest}", columns.join(", "))
    }

    /// The rows that a statement returns. By the simple protocol: it gives all values as text.
    pub(super) async fn read(&self, doing: &str, sql: &str) -> Result<Vec<Row>, Failure> {
        let failed = |error| Error::new(doing, error).failure();
        let answer = self.client.simple_query(sql).await.map_err(failed)?;
        let rows = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let rows = rows.map(|row| {
            let values = (0..row.len()).map(|at| Ok(row.try_get(at)?.map(str::to_owned)));
            values.collect()
        });
        rows.collect::<Result<_, _>>().map_err(failed)
    }

    /// The value of the column that a field comes from.
    pub(super) fn value<'r>(&self, row: &'r Row, field: Field) -> Option<&'r str> {
        let column = self.mapping.column_of(field)?;
        let at = self.columns.iter().position(|(name, _)| name == column)?;
        row.get(at)?.as_deref()
    }
}
