//! The publication, and what it publishes of the tables.

use super::{Check, Options, TableRequirement, Verdict};
use crate::pg::catalog::{Facts, Publication, Server, Table};
use crate::pg::ddl;
use crate::pg::name::{TableName, quote, quote_table};

/// Nothing about the tables if there is no publication: one thing to put right at a time.
pub(super) fn judge(facts: &Facts, options: &Options) -> Vec<Check> {
    let check = |name, verdict| Check {
        group: "publication",
        name,
        verdict,
    };
    let Some(publication) = &facts.publication else {
        return vec![check("exists", missing(facts, options))];
    };
    let mut checks = vec![
        check(
            "exists",
            Verdict::Pass(format!("publication {} exists", publication.name)),
        ),
        check("inserts", inserts(publication)),
    ];
    for (wanted, table) in options.tables.iter().zip(&facts.tables) {
        // A missing table has failed already.
        let Some(table) = table else { continue };
        checks.push(check("tables", member(publication, table)));
        if table.published {
            checks.push(check("rows", rows(publication, table)));
            checks.push(check(
                "columns",
                columns(publication, wanted, table, &facts.server),
            ));
        }
    }
    checks.push(check("strangers", strangers(publication, options)));
    checks
}

/// Without the publication 14 to 17 fail on the first row, and 18 skips rows with no more than a
/// warning; made after the slot, it does not help with what was written before.
fn missing(facts: &Facts, options: &Options) -> Verdict {
    let name = &options.publication;
    let problem = format!(
        "publication \"{name}\" does not exist in database {}",
        facts.server.database
    );
    if facts.slot.is_some() {
        return Verdict::halt(
            problem,
            format!(
                "slot \"{}\" exists: the publication was dropped, or never made; what was written \
                 since cannot be decoded",
                options.slot
            ),
            "`outjet drop --force && outjet recover`: what the stream lacks is published from the \
             tables; events without a row are lost",
        );
    }
    Verdict::halt(
        problem,
        "no publication, so that no table would be published",
        format!(
            "`outjet setup`, or {}",
            ddl::create_publication(name, &options.table_names())
        ),
    )
}

fn inserts(publication: &Publication) -> Verdict {
    if publication.insert {
        return Verdict::Pass("inserts are published".to_owned());
    }
    let name = &publication.name;
    Verdict::halt(
        format!("publication \"{name}\" does not publish inserts"),
        "its parameter publish lacks insert",
        ddl::set_publication(name, "publish = 'insert'"),
    )
}

fn member(publication: &Publication, table: &Table) -> Verdict {
    let name = &publication.name;
    if table.published {
        return Verdict::Pass(format!("{} is published", table.name));
    }
    if table.published_by_partition && !publication.via_root {
        return Verdict::halt(
            format!(
                "publication \"{name}\" publishes the partitions of {} one by one",
                table.name
            ),
            "publish_via_partition_root is false: rows arrive under the names of partitions",
            ddl::set_publication(name, "publish_via_partition_root = true"),
        );
    }
    Verdict::halt(
        format!("publication \"{name}\" does not publish {}", table.name),
        "the table is not in it (a table that was dropped and made again is not, either); what \
         was inserted meanwhile is not published later",
        format!(
            "`outjet setup`, or {} and then `outjet verify`: it names the rows that the stream \
             lacks, and `outjet replay --id` sends them",
            ddl::add_table(name, &table.name)
        ),
    )
}

fn rows(publication: &Publication, table: &Table) -> Verdict {
    let Some(filter) = &table.row_filter else {
        return Verdict::Pass(format!("all rows of {} are published", table.name));
    };
    Verdict::halt(
        format!(
            "publication \"{}\" hides rows of {}",
            publication.name, table.name
        ),
        format!("it has the row filter {filter}"),
        remake(publication, &table.name),
    )
}

fn columns(
    publication: &Publication,
    wanted: &TableRequirement,
    table: &Table,
    server: &Server,
) -> Verdict {
    let exists = |name: &str| table.columns.iter().any(|column| column.name == *name);
    // Before 18 generated columns are never published, although attnames lists them.
    let never = |name: &str| {
        let generated = table.columns.iter().any(|c| c.name == *name && c.generated);
        generated && server.major() < 18
    };
    let unlisted = |name: &str| {
        let published = table.published_columns.as_ref();
        published.is_some_and(|published| !published.iter().any(|column| column == name))
    };
    let hidden = |name: &str| never(name) || unlisted(name);
    let hidden: Vec<&str> = wanted
        .columns
        .iter()
        .map(|required| required.column.as_str())
        .filter(|name| exists(name) && hidden(name))
        .collect();
    if hidden.is_empty() {
        return Verdict::Pass(format!(
            "all mapped columns of {} are published",
            table.name
        ));
    }
    let generated = table
        .columns
        .iter()
        .any(|column| column.generated && hidden.contains(&column.name.as_str()));
    let problem = format!(
        "publication \"{}\" hides columns of {}: {}",
        publication.name,
        table.name,
        hidden.join(", ")
    );
    if generated {
        return Verdict::halt(
            problem,
            "generated columns are not published",
            "map plain columns; Postgres 18 and newer can publish stored ones: ALTER PUBLICATION … \
             SET (publish_generated_columns = stored);",
        );
    }
    Verdict::halt(
        problem,
        "its column list lacks them",
        remake(publication, &table.name),
    )
}

/// A halt would come anyway, at the first row: the mapping does not know the table.
fn strangers(publication: &Publication, options: &Options) -> Verdict {
    let strangers: Vec<String> = publication
        .tables
        .iter()
        .filter(|table| !options.tables.iter().any(|wanted| wanted.name == **table))
        .take(5)
        .map(TableName::to_string)
        .collect();
    if strangers.is_empty() {
        return Verdict::Pass("no other tables are published".to_owned());
    }
    let name = &publication.name;
    let (cause, fix) = if publication.all_tables {
        (
            "it was made FOR ALL TABLES; outjet halts at the first row of a table it does not know",
            "choose another name in postgres.publication and in postgres.slot, then `outjet setup`"
                .to_owned(),
        )
    } else {
        (
            "they are in the publication alone; outjet halts at the first row of theirs",
            format!(
                "add them to `tables`, or ALTER PUBLICATION {} DROP TABLE …;",
                quote(name)
            ),
        )
    };
    Verdict::warn(
        format!(
            "publication \"{name}\" publishes tables that no mapping knows: {}",
            strangers.join(", ")
        ),
        cause,
        fix,
    )
}

/// `DROP TABLE` and `ADD TABLE` in one transaction, so that no row falls in between.
fn remake(publication: &Publication, table: &TableName) -> String {
    let (name, quoted) = (quote(&publication.name), quote_table(table));
    format!(
        "BEGIN; ALTER PUBLICATION {name} DROP TABLE {quoted}; ALTER PUBLICATION {name} ADD TABLE \
         {quoted}; COMMIT;"
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{facts, text, warning};
    use super::*;

    fn first(facts: &mut Facts) -> &mut Table {
        facts.tables[0].as_mut().expect("the table exists")
    }

    #[test]
    fn missing_publication_comes_with_the_statement_that_makes_it() {
        let mut facts = facts();
        facts.slot = None;
        facts.publication = None;
        assert_eq!(
            text(&facts),
            "publication \"outjet\" does not exist in database app\n  \
             cause: no publication, so that no table would be published\n  \
             fix:   `outjet setup`, or CREATE PUBLICATION \"outjet\" FOR TABLE \
             \"outbox\".\"events\" WITH (publish = 'insert', publish_via_partition_root = true);"
        );
    }

    #[test]
    fn publication_missing_beside_a_slot_is_not_just_made() {
        let mut facts = facts();
        facts.publication = None;
        let text = text(&facts);
        assert!(text.contains("cause: slot \"outjet\" exists:"), "{text}");
        assert!(!text.contains("CREATE PUBLICATION"), "{text}");
    }

    #[test]
    fn publication_without_inserts_fails() {
        let mut facts = facts();
        if let Some(publication) = &mut facts.publication {
            publication.insert = false;
        }
        assert_eq!(
            text(&facts),
            "publication \"outjet\" does not publish inserts\n  \
             cause: its parameter publish lacks insert\n  \
             fix:   ALTER PUBLICATION \"outjet\" SET (publish = 'insert');"
        );
    }

    #[test]
    fn table_that_is_not_published_comes_with_the_statement_that_adds_it() {
        let mut facts = facts();
        first(&mut facts).published = false;
        let text = text(&facts);
        let problem = "publication \"outjet\" does not publish outbox.events\n";
        assert!(text.starts_with(problem), "{text}");
        let fix =
            "`outjet setup`, or ALTER PUBLICATION \"outjet\" ADD TABLE \"outbox\".\"events\";";
        assert!(text.contains(fix), "{text}");
    }

    #[test]
    fn partitions_published_one_by_one_fail() {
        let mut facts = facts();
        first(&mut facts).published = false;
        first(&mut facts).published_by_partition = true;
        if let Some(publication) = &mut facts.publication {
            publication.via_root = false;
        }
        let text = text(&facts);
        let problem = "publication \"outjet\" publishes the partitions of outbox.events one by one";
        assert!(text.starts_with(problem), "{text}");
        let fix = "ALTER PUBLICATION \"outjet\" SET (publish_via_partition_root = true);";
        assert!(text.ends_with(fix), "{text}");
    }

    #[test]
    fn row_filter_fails_whatever_it_is() {
        let mut facts = facts();
        first(&mut facts).row_filter = Some("(type <> 'x'::text)".to_owned());
        assert_eq!(
            text(&facts),
            "publication \"outjet\" hides rows of outbox.events\n  \
             cause: it has the row filter (type <> 'x'::text)\n  \
             fix:   BEGIN; ALTER PUBLICATION \"outjet\" DROP TABLE \"outbox\".\"events\"; ALTER \
             PUBLICATION \"outjet\" ADD TABLE \"outbox\".\"events\"; COMMIT;"
        );
    }

    #[test]
    fn column_list_may_lack_what_is_not_mapped() {
        let mut facts = facts();
        let mut list: Vec<String> = ["id", "aggregatetype", "type", "payload"]
            .map(str::to_owned)
            .to_vec();
        first(&mut facts).published_columns = Some(list.clone());
        let text = text(&facts);
        let problem = "publication \"outjet\" hides columns of outbox.events: created_at\n";
        assert!(text.starts_with(problem), "{text}");
        list.push("created_at".to_owned());
        first(&mut facts).published_columns = Some(list);
        let checks = super::super::judge(&facts, &super::super::tests::options());
        assert_eq!(super::super::first_failure(&checks), None);
    }

    #[test]
    fn generated_column_is_not_published() {
        let mut facts = facts();
        first(&mut facts).columns[2].generated = true;
        facts.server.version_num = 170_010;
        let text = text(&facts);
        assert!(
            text.contains("hides columns of outbox.events: type\n"),
            "{text}"
        );
        assert!(
            text.contains("cause: generated columns are not published\n"),
            "{text}"
        );
    }

    #[test]
    fn tables_without_a_mapping_are_warned_about() {
        let mut facts = facts();
        if let Some(publication) = &mut facts.publication {
            publication.all_tables = true;
            publication.tables.push(TableName::new("public", "users"));
        }
        let text = warning(&facts);
        let problem = "publication \"outjet\" publishes tables that no mapping knows: public.users";
        assert!(text.starts_with(problem), "{text}");
        assert!(
            text.contains("cause: it was made FOR ALL TABLES;"),
            "{text}"
        );
    }
}
