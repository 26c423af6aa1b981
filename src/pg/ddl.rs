//! The statements that create and drop what outjet needs in Postgres, as text, so that a dry run
//! prints exactly what would be executed. All that depends on the server's version is here.

use postgres_protocol::escape::escape_literal;

use super::catalog::Server;
use super::name::{TableName, quote, quote_table};

/// Installs the schema `outbox`; see the file.
pub const INSTALL: &str = include_str!("../../sql/install.sql");

/// Removes the schema `outbox`; see the file.
pub const UNINSTALL: &str = include_str!("../../sql/uninstall.sql");

/// The version of the schema that `INSTALL` installs.
pub const SCHEMA_VERSION: i32 = 3;

/// Inserts alone: an outbox's updates and deletes are housekeeping. Rows of partitions go out as
/// rows of their root, whose name and columns the mapping knows.
pub fn create_publication(publication: &str, tables: &[TableName]) -> String {
    let tables: Vec<String> = tables.iter().map(quote_table).collect();
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} \
         WITH (publish = 'insert', publish_via_partition_root = true);",
        quote(publication),
        tables.join(", ")
    )
}

/// Takes effect for transactions after it; what was committed before is not published.
pub fn add_table(publication: &str, table: &TableName) -> String {
    let publication = quote(publication);
    format!(
        "ALTER PUBLICATION {publication} ADD TABLE {};",
        quote_table(table)
    )
}

/// `parameters` as in the documentation of `ALTER PUBLICATION`: `publish = 'insert'`.
pub fn set_publication(publication: &str, parameters: &str) -> String {
    format!(
        "ALTER PUBLICATION {} SET ({parameters});",
        quote(publication)
    )
}

/// A pgoutput slot that standbys keep in step where the server can do that (17). It waits for
/// every transaction that has written and is still open.
pub fn create_slot(slot: &str, server: &Server) -> String {
    let failover = if server.has_failover_slots() {
        ", failover => true"
    } else {
        ""
    };
    format!(
        "SELECT lsn::text FROM pg_create_logical_replication_slot({}, 'pgoutput'{failover});",
        literal(slot)
    )
}

/// A pgoutput slot with the snapshot of the moment at which it begins, as a command of a
/// replication session. In the old grammar, which every version understands.
pub fn create_slot_with_snapshot(slot: &str) -> String {
    let slot = quote(slot);
    format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput EXPORT_SNAPSHOT")
}

/// A pgoutput slot that vanishes with the replication session whose command this is. In the old
/// grammar, too.
pub fn create_temporary_slot(slot: &str) -> String {
    let slot = quote(slot);
    format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")
}

/// Another slot at the same place. It is not kept in step on standbys.
pub fn copy_slot(from: &str, to: &str) -> String {
    let (from, to) = (literal(from), literal(to));
    format!("SELECT pg_copy_logical_replication_slot({from}, {to});")
}

/// Has standbys keep the slot in step (17), as a command of a replication session.
pub fn alter_failover(slot: &str) -> String {
    format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", quote(slot))
}

/// Refused while somebody holds the slot (55006).
pub fn drop_slot(slot: &str) -> String {
    format!("SELECT pg_drop_replication_slot({});", literal(slot))
}

/// Only with the slot: a slot without its publication is no more good (42704).
pub fn drop_publication(publication: &str) -> String {
    format!("DROP PUBLICATION {};", quote(publication))
}

/// To turn the partitions of `outbox.events`.
pub fn grant_turning(role: &str) -> String {
    let role = quote(role);
    format!(
        "GRANT USAGE ON SCHEMA outbox TO {role}; GRANT EXECUTE ON FUNCTION \
         outbox.ensure_partitions, outbox.expire_partitions TO {role};"
    )
}

/// To delete old rows; a partition wants the second for itself.
pub fn grant_deleting(table: &TableName, role: &str) -> String {
    let (schema, role) = (quote(&table.schema), quote(role));
    format!(
        "GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT, DELETE ON {} TO {role};",
        quote_table(table)
    )
}

/// Ends the backend that holds a slot.
pub fn terminate(pid: i32) -> String {
    format!("SELECT pg_terminate_backend({pid});")
}

/// `escape_literal` sets a space before an `E'…'`, which has no place after a parenthesis.
fn literal(text: &str) -> String {
    escape_literal(text).trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_quoted_once_and_wholly() {
        assert_eq!(quote(r#"we"ird"#), r#""we""ird""#);
        assert_eq!(
            quote_table(&TableName::new(r#"we"ird"#, "Order.s")),
            r#""we""ird"."Order.s""#
        );
        assert_eq!(
            drop_slot("it's"),
            "SELECT pg_drop_replication_slot('it''s');"
        );
        assert_eq!(
            drop_slot(r"back\slash"),
            r"SELECT pg_drop_replication_slot(E'back\\slash');"
        );
    }

    #[test]
    fn publication_takes_inserts_alone_under_the_name_of_the_root() {
        let tables = [TableName::new("outbox", "events"), TableName::new("a", "b")];
        assert_eq!(
            create_publication("outjet", &tables),
            "CREATE PUBLICATION \"outjet\" FOR TABLE \"outbox\".\"events\", \"a\".\"b\" \
             WITH (publish = 'insert', publish_via_partition_root = true);"
        );
    }
}
