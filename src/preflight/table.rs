//! The outbox tables and their columns.

use super::{Check, Options, RequiredColumn, TableRequirement, Verdict, nearest};
use crate::pg::catalog::{Column, Facts, Table};
use crate::pg::ddl;
use crate::pg::name::{TableName, quote, quote_table};

/// The columns only of tables that exist.
pub(super) fn judge(facts: &Facts, options: &Options) -> Vec<Check> {
    let check = |name, verdict| Check {
        group: "table",
        name,
        verdict,
    };
    let mut checks = Vec::new();
    for (wanted, table) in options.tables.iter().zip(&facts.tables) {
        match table {
            None => checks.push(check("exists", missing(&wanted.name, facts))),
            Some(table) => {
                checks.push(check("exists", kind(table)));
                checks.push(check("columns", columns(wanted, table)));
                checks.extend(outbox(wanted, facts, options));
                if wanted.expires {
                    checks.push(check("keep", deleting(table, facts)));
                }
            }
        }
    }
    checks
}

/// Of the native outbox alone: what becomes of others is their owner's concern.
fn outbox(wanted: &TableRequirement, facts: &Facts, options: &Options) -> Vec<Check> {
    let (table, partitions) = (&wanted.name, &facts.partitions);
    let (true, Some(until)) = (facts.server.schema_installed, &partitions.until) else {
        return Vec::new();
    };
    if *table != TableName::new("outbox", "events") {
        return Vec::new();
    }
    let turning = partitions.may_turn.filter(|_| options.turns_partitions);
    let verdicts = [
        ("partitions", Some(reach(table, until, partitions.short))),
        (
            "default",
            (partitions.default_rows > 0).then(|| strays(table, partitions.default_rows)),
        ),
        (
            "retention",
            turning.map(|may| turned(may, &facts.server.role)),
        ),
    ];
    let checks = verdicts.into_iter().filter_map(|(name, verdict)| {
        verdict.map(|verdict| Check {
            group: "table",
            name,
            verdict,
        })
    });
    checks.collect()
}

fn reach(table: &TableName, until: &str, short: bool) -> Verdict {
    match short {
        false => Verdict::Pass(format!("{table} has partitions until {until}")),
        true => Verdict::warn(
            format!("{table} has no partition for tomorrow"),
            format!(
                "the last one ends at {until}; later rows are published from \
                 outbox.events_default, and are slow to be removed"
            ),
            "SELECT outbox.ensure_partitions(); once a day, by cron or pg_cron",
        ),
    }
}

/// A day that has rows there can have no partition any more.
fn strays(table: &TableName, rows: i64) -> Verdict {
    Verdict::warn(
        format!("about {rows} rows of {table} are in its default partition"),
        "there was no partition for their day: they are published, and slow to be removed",
        "SELECT outbox.ensure_partitions(); for the days ahead; these rows go when they are old \
         enough: SELECT outbox.expire_partitions();",
    )
}

fn turned(may: bool, role: &str) -> Verdict {
    match may {
        true => Verdict::Pass(format!("role {role} may turn the partitions")),
        false => Verdict::warn(
            format!("role {} may not turn the partitions", quote(role)),
            "retention.manage is on: without them rows go to the default partition, and old ones \
             stay",
            format!(
                "{} or set retention.manage: false",
                ddl::grant_turning(role)
            ),
        ),
    }
}

fn deleting(table: &Table, facts: &Facts) -> Verdict {
    let (name, role) = (&table.name, &facts.server.role);
    match table.may_delete {
        true => Verdict::Pass(format!("role {role} may delete old rows of {name}")),
        false => Verdict::warn(
            format!("role {} may not delete rows of {name}", quote(role)),
            "tables has keep for it, and old rows stay",
            format!(
                "{} (and on its partitions), or remove its keep",
                ddl::grant_deleting(name, role)
            ),
        ),
    }
}

fn missing(wanted: &TableName, facts: &Facts) -> Verdict {
    let problem = format!("table {wanted} does not exist");
    if *wanted == TableName::new("outbox", "events") {
        return Verdict::halt(
            problem,
            format!(
                "the schema outbox is not installed in {}",
                facts.server.database
            ),
            "`outjet setup`, or name your own outbox table in `tables`",
        );
    }
    let names: Vec<String> = facts
        .other_tables
        .iter()
        .map(TableName::to_string)
        .collect();
    // In another schema first: that is what a wrong search_path makes of it.
    let same = facts
        .other_tables
        .iter()
        .find(|table| table.name == wanted.name);
    let meant = same.map(TableName::to_string).or_else(|| {
        nearest(&wanted.to_string(), names.iter().map(String::as_str)).map(str::to_owned)
    });
    let cause = format!("database {} has no such table", facts.server.database);
    match meant {
        Some(meant) => Verdict::halt(
            problem,
            cause,
            format!("did you mean {meant}? put it into `tables`"),
        ),
        None => Verdict::halt(
            problem,
            cause,
            "name the outbox table in `tables` as schema.table, or connect to its database",
        ),
    }
}

fn kind(table: &Table) -> Verdict {
    let name = &table.name;
    if !matches!(table.kind, 'r' | 'p') {
        let kind = match table.kind {
            'v' => "a view",
            'm' => "a materialized view",
            'f' => "a foreign table",
            _ => "no table",
        };
        return Verdict::halt(
            format!("{name} cannot be published"),
            format!("it is {kind}: its rows are not in the write-ahead log under its name"),
            "name the table that is inserted into",
        );
    }
    if table.persistence == 'p' && table.unlogged_partitions.is_empty() {
        return Verdict::Pass(format!("table {name} exists"));
    }
    let quoted = quote_table(name);
    let (cause, fix) = match (table.persistence, table.unlogged_partitions.first()) {
        ('t', _) => (
            "it is temporary".to_owned(),
            "use a permanent table".to_owned(),
        ),
        (_, Some(partition)) if table.kind == 'p' => (
            format!("its partition {partition} is unlogged"),
            format!("ALTER TABLE {partition} SET LOGGED;"),
        ),
        _ => (
            "it is unlogged".to_owned(),
            format!("ALTER TABLE {quoted} SET LOGGED;"),
        ),
    };
    Verdict::halt(format!("{name} is not in the write-ahead log"), cause, fix)
}

fn columns(wanted: &TableRequirement, table: &Table) -> Verdict {
    let find = |required: &RequiredColumn| table.columns.iter().find(|c| c.name == required.column);
    let missing: Vec<&RequiredColumn> = wanted
        .columns
        .iter()
        .filter(|required| find(required).is_none())
        .collect();
    if !missing.is_empty() {
        return no_columns(&missing, wanted, table);
    }
    for required in &wanted.columns {
        if let Some(column) = find(required)
            && let Some(usable) = unusable(&required.field, column)
        {
            return Verdict::halt(
                format!(
                    "column {} of {} cannot be the event's {}",
                    column.name, table.name, required.field
                ),
                format!("it is of type {}, and {usable} is needed", column.type_name),
                format!("map another column to {} in `tables`", required.field),
            );
        }
    }
    Verdict::Pass(format!(
        "{} has the {} mapped columns",
        table.name,
        wanted.columns.len()
    ))
}

fn no_columns(missing: &[&RequiredColumn], wanted: &TableRequirement, table: &Table) -> Verdict {
    let mapped: Vec<&str> = missing.iter().map(|m| m.column.as_str()).collect();
    let columns: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
    // What is read already is meant already.
    let used = |name: &str| {
        wanted
            .columns
            .iter()
            .any(|required| required.column == name)
    };
    let unused = columns.iter().copied().filter(|name| !used(name));
    let meant: Vec<String> = missing
        .iter()
        .filter_map(|required| {
            let meant = nearest(&required.column, unused.clone())?;
            Some(format!("{}: {meant}", required.field))
        })
        .collect();
    let fix = if meant.is_empty() {
        "map its own columns in `tables`".to_owned()
    } else {
        format!(
            "did you mean {{{}}}? put it into `columns` of this table",
            meant.join(", ")
        )
    };
    Verdict::halt(
        format!("table {} has no column {}", table.name, mapped.join(", ")),
        format!("its columns are {}", columns.join(", ")),
        fix,
    )
}

/// What is needed instead, if an event's field cannot come from a column of this type. Rows arrive
/// as text, so that nearly everything will do; the oids are those of `pg_type.dat`.
fn unusable(field: &str, column: &Column) -> Option<&'static str> {
    const BYTEA: u32 = 17;
    const JSON: [u32; 2] = [114, 3802];
    const TEXT: [u32; 3] = [25, 1042, 1043];
    const TIME: [u32; 2] = [1114, 1184];
    let among = |groups: &[&[u32]]| groups.iter().any(|g| g.contains(&column.type_oid));
    let (usable, needed) = match field {
        "created_at" | "deliver_at" | "expires_at" => (among(&[&TIME]), "a timestamp"),
        "headers" | "metadata" | "carrier" => (among(&[&JSON, &TEXT]), "json or jsonb"),
        "payload" | "payload_raw" => (true, ""),
        _ => (column.type_oid != BYTEA, "text or a number"),
    };
    (!usable).then_some(needed)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{facts, options, text};
    use super::*;

    fn first(facts: &mut Facts) -> &mut Table {
        facts.tables[0].as_mut().expect("the table exists")
    }

    #[test]
    fn missing_schema_is_set_up() {
        let mut facts = facts();
        facts.tables = vec![None];
        assert_eq!(
            text(&facts),
            "table outbox.events does not exist\n  \
             cause: the schema outbox is not installed in app\n  \
             fix:   `outjet setup`, or name your own outbox table in `tables`"
        );
    }

    #[test]
    fn missing_table_is_looked_for_in_other_schemas_and_spellings() {
        let mut facts = facts();
        facts.tables = vec![None];
        let wanted = TableName::new("public", "outbox_events");
        let fix = |facts: &Facts| match missing(&wanted, facts) {
            Verdict::Fail(failure) => failure.problem.fix,
            other => panic!("{other:?}"),
        };
        assert!(fix(&facts).starts_with("name the outbox table in `tables`"));
        facts.other_tables = vec![TableName::new("public", "outbox_event")];
        let meant = "did you mean public.outbox_event? put it into `tables`";
        assert_eq!(fix(&facts), meant);
        facts
            .other_tables
            .push(TableName::new("app", "outbox_events"));
        let meant = "did you mean app.outbox_events? put it into `tables`";
        assert_eq!(fix(&facts), meant);
    }

    #[test]
    fn unlogged_table_fails() {
        let mut facts = facts();
        first(&mut facts).kind = 'r';
        first(&mut facts).persistence = 'u';
        assert_eq!(
            text(&facts),
            "outbox.events is not in the write-ahead log\n  \
             cause: it is unlogged\n  \
             fix:   ALTER TABLE \"outbox\".\"events\" SET LOGGED;"
        );
    }

    #[test]
    fn unlogged_partition_fails() {
        let mut facts = facts();
        first(&mut facts).unlogged_partitions = vec!["outbox.events_default".to_owned()];
        let text = text(&facts);
        assert!(
            text.ends_with("fix:   ALTER TABLE outbox.events_default SET LOGGED;"),
            "{text}"
        );
    }

    #[test]
    fn view_fails() {
        let mut facts = facts();
        first(&mut facts).kind = 'v';
        assert!(text(&facts).contains("cause: it is a view:"));
    }

    #[test]
    fn missing_columns_are_told_together_with_what_was_meant() {
        let mut facts = facts();
        for (column, name) in [(1, "aggregate_type"), (2, "event_type"), (3, "body")] {
            first(&mut facts).columns[column].name = name.to_owned();
        }
        assert_eq!(
            text(&facts),
            "table outbox.events has no column aggregatetype, type, payload\n  \
             cause: its columns are id, aggregate_type, event_type, body, created_at\n  \
             fix:   did you mean {aggregatetype: aggregate_type, type: event_type}? put it into \
             `columns` of this table"
        );
    }

    #[test]
    fn column_of_a_type_that_cannot_be_the_field_fails() {
        let mut facts = facts();
        let id = &mut first(&mut facts).columns[4];
        id.type_oid = 20;
        id.type_name = "bigint".to_owned();
        assert_eq!(
            text(&facts),
            "column created_at of outbox.events cannot be the event's created_at\n  \
             cause: it is of type bigint, and a timestamp is needed\n  \
             fix:   map another column to created_at in `tables`"
        );
    }

    #[test]
    fn every_table_is_judged() {
        let mut facts = facts();
        let mut options = options();
        options.tables.push(options.tables[0].clone());
        facts.tables.push(None);
        assert_eq!(judge(&facts, &options).len(), 3);
    }
}
