//! Names of what is in a database, for people and for SQL.

use std::fmt;

use postgres_protocol::escape::escape_identifier;

/// A table's schema and name, as the catalog spells them. `Display` is for messages; SQL takes
/// [`quote_table`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table in it.
    pub name: String,
}

impl TableName {
    /// Takes both parts unquoted.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// An identifier for SQL. Always quoted: which words are reserved differs between versions.
pub fn quote(identifier: &str) -> String {
    escape_identifier(identifier)
}

/// `"schema"."table"`.
pub fn quote_table(table: &TableName) -> String {
    format!("{}.{}", quote(&table.schema), quote(&table.name))
}
