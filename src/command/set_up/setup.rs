//! `outjet setup`, the part in Postgres: schema, publication, slot, in this order. The publication
//! comes before the slot, as rows written between slot and publication cannot be decoded.
//!
//! A pure plan is made first; a dry run prints it, a run executes the same text.

use tokio_postgres::Client;

use super::birth;
use crate::command::facts::{read, refuse, source, tell_open_writers};
use crate::command::{Out, connect, unwritten};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::lead::traces::Traces;
use crate::pg::catalog::{self, Facts, Publication, StatementError};
use crate::pg::ddl;
use crate::pg::name::TableName;
use crate::pg::params::Params;
use crate::preflight::{self, Options};
use crate::sink::jetstream;

/// Sets up Postgres, then the stream. Never makes a slot where one has fed the stream: what was
/// committed since that went is in no slot.
pub async fn setup_all(
    config: &Config,
    params: &Params,
    dry_run: bool,
    out: Out<'_>,
) -> Result<(), Failure> {
    let control = connect(params).await?;
    let (client, wanted) = (control.client(), config.preflight_options());
    let options = config.sink_options();
    let done = async {
        // What is wrong in Postgres is told first.
        let nowhere = &mut std::io::sink();
        setup(client, &wanted, true, nowhere).await?;
        let new = refuse_new_slot(client, config, &wanted).await?;
        if dry_run || !new {
            setup(client, &wanted, dry_run, out).await?;
            return set_up_streams(&options, dry_run, out).await;
        }
        // A slot is made once it can be recorded.
        let mut streams = Vec::new();
        set_up_streams(&options, dry_run, &mut streams).await?;
        setup(client, &wanted, dry_run, out).await?;
        out.write_all(&streams).map_err(unwritten)?;
        match Box::pin(birth::record(client, config, params)).await {
            Ok(()) => Ok(()),
            // Until it is read, the slot counts as a new one all the same.
            Err(Failure { problem, .. }) => {
                let Problem { problem, cause, .. } = problem;
                writeln!(out, "missing  record of the slot: {problem}: {cause}").map_err(unwritten)
            }
        }
    };
    let done = Box::pin(done).await;
    control.close().await;
    done
}

/// Whether there is a slot to be made. Refuses where the record or the stream shows that there was
/// one.
async fn refuse_new_slot(
    client: &Client,
    config: &Config,
    wanted: &Options,
) -> Result<bool, Failure> {
    let facts = read(client, wanted).await?;
    if facts.slot.is_some() {
        return Ok(false);
    }
    let options = config.sink_options();
    let traces = Box::pin(Traces::find(&options, &source(&facts, wanted))).await;
    let traces = traces.map_err(|error| error.failure(&options.of_stream()))?;
    traces.slot_gone(&facts, wanted).map_or(Ok(true), Err)
}

pub(in crate::command) async fn set_up_streams(
    options: &jetstream::Options,
    dry_run: bool,
    out: Out<'_>,
) -> Result<(), Failure> {
    set_up_stream(&options.of_stream(), dry_run, out).await?;
    if options.dead_letters.is_some() {
        set_up_stream(&options.of_dead_letters(), dry_run, out).await?;
    }
    if let Some(bodies) = options.of_bodies() {
        set_up_stream(&bodies, dry_run, out).await?;
    }
    if options.delayed.is_some() {
        set_up_stream(&options.of_delayed(), dry_run, out).await?;
    }
    set_up_bucket(options, dry_run, out).await
}

/// The bucket of the record. outjet works without one, so that its lack stops nothing.
async fn set_up_bucket(
    options: &jetstream::Options,
    dry_run: bool,
    out: Out<'_>,
) -> Result<(), Failure> {
    if dry_run {
        let (name, bucket) = jetstream::bucket_config(options);
        let json = serde_json::to_string_pretty(&bucket).unwrap_or_default();
        return writeln!(out, "-- bucket {name}, unless it exists\n{json}").map_err(unwritten);
    }
    let found = jetstream::inspect_bucket(options).await;
    let found = found.map_err(|error| error.failure(&options.of_stream()))?;
    let name = &found.name;
    match &found.created {
        Ok(true) => writeln!(out, "created  bucket {name}"),
        Ok(false) => writeln!(out, "exists   bucket {name}"),
        Err(why) => writeln!(out, "missing  bucket {name}: {why}; `{}`", found.command),
    }
    .map_err(unwritten)
}

async fn set_up_stream(
    options: &jetstream::Options,
    dry_run: bool,
    out: Out<'_>,
) -> Result<(), Failure> {
    let name = &options.stream.name;
    if dry_run {
        let stream = jetstream::streams::config(&options.stream);
        let json = serde_json::to_string_pretty(&stream).unwrap_or_default();
        return writeln!(out, "-- stream {name}, unless it exists\n{json}").map_err(unwritten);
    }
    let found = match jetstream::inspect(options).await {
        // Whoever delays nothing needs none; `outjet check` says it, too.
        Err(error @ jetstream::Error::NoSchedules { .. }) => {
            return writeln!(out, "skipped  stream {name}: {error}").map_err(unwritten);
        }
        found => found.map_err(|error| error.failure(options))?,
    };
    let done = if found.created { "created" } else { "exists " };
    writeln!(out, "{done}  stream {name}").map_err(unwritten)
}

/// What a slot must find when it is made.
pub(in crate::command) async fn all_but_the_slot(
    client: &Client,
    options: &Options,
    out: Out<'_>,
) -> Result<(), Failure> {
    let how = How {
        dry_run: false,
        slot: false,
    };
    set_up(client, options, how, out).await
}

/// Sets up what is missing, or only prints the SQL that would do it. What is found wrong stops it
/// before anything is changed.
pub async fn setup(
    client: &Client,
    options: &Options,
    dry_run: bool,
    out: Out<'_>,
) -> Result<(), Failure> {
    let slot = true;
    set_up(client, options, How { dry_run, slot }, out).await
}

/// What of it is done.
#[derive(Clone, Copy)]
struct How {
    dry_run: bool,
    /// Whether a missing slot is made.
    slot: bool,
}

async fn set_up(client: &Client, options: &Options, how: How, out: Out<'_>) -> Result<(), Failure> {
    let How { dry_run, slot } = how;
    let facts = read(client, options).await?;
    refuse(&preflight::judge_server(&facts))?;
    let native = options
        .table_names()
        .contains(&TableName::new("outbox", "events"));
    let version = if native {
        let version = catalog::schema_version(client, &facts.server).await;
        version.map_err(|error| error.failure())?
    } else {
        None
    };
    for step in plan(&facts, version, options)? {
        match step {
            Step::Exists(what) if dry_run => writeln!(out, "-- {what}: exists"),
            Step::Exists(what) => writeln!(out, "exists   {what}"),
            Step::Execute { what, .. } if !slot && what.starts_with(SLOT) => continue,
            Step::Execute { what, sql } if dry_run => writeln!(out, "-- {what}\n{}", sql.trim()),
            Step::Execute { what, sql } => {
                if what.starts_with(SLOT) {
                    tell_open_writers(client, out).await?;
                }
                let done = execute(client, &what, &sql).await?;
                writeln!(out, "{done}  {what}")
            }
        }
        .map_err(unwritten)?;
    }
    if dry_run {
        return Ok(());
    }
    let mut checks = preflight::judge(&read(client, options).await?, options);
    checks.retain(|check| slot || check.group != "slot");
    refuse(&checks)
}

/// One thing that setup sees to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do.
    Exists(String),
    /// `sql` is executed as it stands.
    Execute {
        /// What it creates.
        what: String,
        /// One statement or several, each with its semicolon.
        sql: String,
    },
}

/// How the step that makes the slot begins.
const SLOT: &str = "replication slot";

/// What there is to do, in order; `version` is the installed one of the schema `outbox`.
pub fn plan(facts: &Facts, version: Option<i32>, options: &Options) -> Result<Vec<Step>, Failure> {
    refuse(&preflight::judge_server(facts))?;
    let schema = plan_schema(facts, version, options)?;
    let (facts, installed) = after_install(facts, options, &schema);
    refuse(&preflight::judge_tables(&facts, &installed))?;
    let publication = plan_publication(&facts, options, &installed)?;
    let slot = plan_slot(&facts, options)?;
    Ok([schema, publication, slot].concat())
}

fn plan_schema(
    facts: &Facts,
    version: Option<i32>,
    options: &Options,
) -> Result<Vec<Step>, Failure> {
    let ours = TableName::new("outbox", "events");
    let Some(place) = options.tables.iter().position(|t| t.name == ours) else {
        return Ok(Vec::new());
    };
    let known = ddl::SCHEMA_VERSION;
    match version {
        None if facts.tables[place].is_some() => Ok(vec![Step::Exists(format!(
            "table {ours}, made by somebody else"
        ))]),
        Some(version) if version > known => Err(Failure::halt(
            Exit::CheckFailed,
            Problem::new(
                format!("schema outbox is at version {version}"),
                format!("this outjet knows version {known}"),
                "use the outjet that installed it, or a newer one",
            ),
        )),
        Some(version) if version == known => {
            let mut steps = vec![Step::Exists(format!("schema outbox, version {version}"))];
            if facts.server.schema_owned {
                steps.push(Step::Execute {
                    what: "partitions of the days ahead".to_owned(),
                    sql: "SELECT outbox.ensure_partitions();".to_owned(),
                });
            }
            Ok(steps)
        }
        None | Some(_) => Ok(vec![Step::Execute {
            what: format!("schema outbox, version {known}"),
            sql: ddl::INSTALL.to_owned(),
        }]),
    }
}

/// Facts and options without the table that the first steps are about to make: it will be as it
/// should be, and nothing can be said of it yet.
fn after_install(facts: &Facts, options: &Options, schema: &[Step]) -> (Facts, Options) {
    let (mut facts, mut options) = (facts.clone(), options.clone());
    let made = TableName::new("outbox", "events");
    if let Some(place) = options.tables.iter().position(|t| t.name == made)
        && facts.tables[place].is_none()
        && schema.iter().any(|s| matches!(s, Step::Execute { .. }))
    {
        facts.tables.remove(place);
        options.tables.remove(place);
    }
    (facts, options)
}

/// `options` names all tables, `installed` those that exist, as `facts` has them.
fn plan_publication(
    facts: &Facts,
    options: &Options,
    installed: &Options,
) -> Result<Vec<Step>, Failure> {
    let name = &options.publication;
    let what = format!("publication {name}");
    let Some(publication) = &facts.publication else {
        if facts.slot.is_some() {
            // Without its publication the slot is no more good, and a new publication no help.
            refuse(&preflight::judge_publication(facts, installed))?;
        }
        return Ok(vec![Step::Execute {
            what,
            sql: ddl::create_publication(name, &options.table_names()),
        }]);
    };
    let mut steps = vec![Step::Exists(what)];
    let mut then = facts.clone();
    for wanted in options.table_names() {
        let found = then.tables.iter_mut().flatten().find(|t| t.name == wanted);
        match found {
            Some(table) if table.published || by_partition(publication, table) => {}
            found => {
                if let Some(table) = found {
                    table.published = true;
                }
                steps.push(Step::Execute {
                    what: format!(
                        "{wanted} in publication {name}, for what is inserted from now on"
                    ),
                    sql: ddl::add_table(name, &wanted),
                });
            }
        }
    }
    // Whatever else is wrong with a publication that somebody made is theirs to mend.
    refuse(&preflight::judge_publication(&then, installed))?;
    Ok(steps)
}

/// Adding the table would not help: its partitions come under their own names.
fn by_partition(publication: &Publication, table: &catalog::Table) -> bool {
    table.published_by_partition && !publication.via_root
}

fn plan_slot(facts: &Facts, options: &Options) -> Result<Vec<Step>, Failure> {
    let name = &options.slot;
    let mut checks = preflight::judge_slot(facts, options);
    if facts.slot.is_some() {
        refuse(&checks)?;
        return Ok(vec![Step::Exists(format!("{SLOT} {name}"))]);
    }
    // The first is that it does not exist.
    refuse(&checks.split_off(1))?;
    Ok(vec![Step::Execute {
        what: format!("{SLOT} {name}"),
        sql: ddl::create_slot(name, &facts.server),
    }])
}

/// Says what became of it: two copies may set up at once, and the later finds it there.
async fn execute(client: &Client, what: &str, sql: &str) -> Result<&'static str, Failure> {
    let Err(error) = client.batch_execute(sql).await else {
        return Ok("created");
    };
    // install.sql has a transaction of its own, which is open still. If this fails, too, the
    // connection is gone, which `error` says better.
    let _gone = client.batch_execute("ROLLBACK").await;
    let error = StatementError::new(format!("create {what}"), error);
    // duplicate_object; or unique_violation, in the catalog, if it came just between Postgres's own
    // look and its insert. If it is another thing under our name, the checks afterwards say so.
    if matches!(error.sqlstate(), Some("42710" | "23505")) {
        return Ok("exists ");
    }
    let mut failure = error.failure();
    if failure.exit == Exit::NotPermitted {
        "`outjet setup --dry-run` prints the SQL: have the owner of the database execute it"
            .clone_into(&mut failure.problem.fix);
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::{facts, options};

    /// A server on which nothing is set up.
    fn empty() -> Facts {
        let mut facts = facts();
        facts.server.schema_installed = false;
        facts.tables = vec![None];
        facts.publication = None;
        facts.slot = None;
        facts
    }

    fn whats(steps: &[Step]) -> Vec<String> {
        let what = |step: &Step| match step {
            Step::Exists(what) => format!("= {what}"),
            Step::Execute { what, .. } => format!("+ {what}"),
        };
        steps.iter().map(what).collect()
    }

    #[test]
    fn publication_comes_before_the_slot() {
        let steps = plan(&empty(), None, &options()).expect("a plan");
        assert_eq!(
            whats(&steps),
            [
                "+ schema outbox, version 3",
                "+ publication outjet",
                "+ replication slot outjet"
            ]
        );
    }

    #[test]
    fn second_setup_looks_after_the_partitions_alone() {
        let steps = plan(&facts(), Some(ddl::SCHEMA_VERSION), &options()).expect("a plan");
        assert_eq!(
            whats(&steps),
            [
                "= schema outbox, version 3",
                "+ partitions of the days ahead",
                "= publication outjet",
                "= replication slot outjet"
            ]
        );
    }

    #[test]
    fn held_slot_is_no_reason_not_to_set_up() {
        let mut facts = facts();
        if let Some(slot) = &mut facts.slot {
            slot.active = true;
        }
        assert!(plan(&facts, Some(ddl::SCHEMA_VERSION), &options()).is_ok());
    }

    #[test]
    fn table_that_the_publication_lacks_is_added() {
        let mut facts = facts();
        if let Some(table) = &mut facts.tables[0] {
            table.published = false;
        }
        let steps = plan(&facts, Some(ddl::SCHEMA_VERSION), &options()).expect("a plan");
        let add = "ALTER PUBLICATION \"outjet\" ADD TABLE \"outbox\".\"events\";";
        assert!(
            steps
                .iter()
                .any(|step| matches!(step, Step::Execute { sql, .. } if sql == add)),
            "{steps:?}"
        );
    }

    #[test]
    fn publication_is_not_made_beside_an_older_slot() {
        let mut facts = facts();
        facts.publication = None;
        let failure = plan(&facts, Some(ddl::SCHEMA_VERSION), &options()).expect_err("no plan");
        assert!(failure.problem.cause.contains("slot \"outjet\" exists"));
    }

    #[test]
    fn publication_of_somebody_else_is_not_altered() {
        let mut facts = facts();
        if let Some(publication) = &mut facts.publication {
            publication.insert = false;
        }
        let failure = plan(&facts, Some(ddl::SCHEMA_VERSION), &options()).expect_err("no plan");
        assert!(failure.problem.problem.contains("does not publish inserts"));
    }

    #[test]
    fn missing_table_that_is_not_ours_stops_before_anything_is_made() {
        let mut options = options();
        options.tables[0].name = TableName::new("public", "outboxes");
        let failure = plan(&empty(), None, &options).expect_err("no plan");
        assert_eq!(
            failure.problem.problem,
            "table public.outboxes does not exist"
        );
    }

    #[test]
    fn older_schema_is_brought_up() {
        let steps = plan(&facts(), Some(1), &options()).expect("a plan");
        assert_eq!(whats(&steps)[0], "+ schema outbox, version 3");
    }

    #[test]
    fn newer_schema_is_left_alone() {
        let failure =
            plan(&facts(), Some(ddl::SCHEMA_VERSION + 1), &options()).expect_err("no plan");
        assert_eq!(
            failure.problem.problem,
            format!("schema outbox is at version {}", ddl::SCHEMA_VERSION + 1)
        );
    }

    #[test]
    fn no_room_for_a_slot_stops_before_anything_is_made() {
        let mut facts = empty();
        facts.server.slots_used = facts.server.slots_max;
        let failure = plan(&facts, None, &options()).expect_err("no plan");
        assert!(failure.problem.problem.contains("no room"), "{failure}");
    }
}
