//! `outjet inspect TABLE`: how a table that is there already can be read, as lines for
//! `outjet.yaml`, and what its newest row would become. What is no configuration is a comment, so
//! that all of it can go into the file.

use tokio_postgres::Client;

use crate::cli;
use crate::command::rows::{self, Rows};
use crate::command::{Out, connect, unwritten};
use crate::config::{self, Config};
use crate::error::{Exit, Failure, Problem};
use crate::event::assemble::{Options, Unsent};
use crate::event::mapping::{Detected, Field, Mapping, Origin, detect};
use crate::event::{Event, Position};
use crate::pg::catalog::{Facts, StatementError, Table};
use crate::pg::name::TableName;
use crate::pg::params::Params;
use crate::preflight::{self, RequiredColumn, TableRequirement};

/// Whoever waits for a sample does not wait long.
const PATIENCE: &str = "SET statement_timeout = '5s'";

/// A body is shown up to here.
const BODY_CHARACTERS_MAX: usize = 1000;

/// Looks at the table, and writes what was found.
pub(in crate::command) async fn inspect(
    typed: &cli::Inspect,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<(), Failure> {
    let name: config::TableName = typed.table.parse().map_err(|fix: String| {
        let problem = format!("{:?} is not the name of a table", typed.table);
        let cause = "a table is named by its schema and its name";
        Failure::halt(Exit::Usage, Problem::new(problem, cause, fix))
    })?;
    let control = connect(params).await?;
    let mut wanted = preflight::Options {
        slot: config.postgres.slot.clone(),
        publication: config.postgres.publication.clone(),
        tables: vec![TableRequirement {
            name: TableName::new(&name.schema, &name.table),
            columns: Vec::new(),
            expires: false,
        }],
        prefixes: Vec::new(),
        turns_partitions: false,
    };
    let (client, slot, publication) = (control.client(), &wanted.slot, &wanted.publication);
    let facts = Facts::read(client, slot, publication, &wanted.table_names()).await;
    let facts = facts.map_err(|error| error.failure())?;
    judge(&facts, &wanted)?;
    let table = facts.tables.first().and_then(Option::as_ref);
    let table = table.expect("a table that does not exist fails the check");
    let (mapping, lines) = choose(&name, table)?;
    wanted.tables[0].columns = RequiredColumn::of(&mapping);
    judge(&facts, &wanted)?;
    let mut options = config.assemble_options(&facts.server.database)?;
    options.tables = vec![mapping];
    let shown = sample(client, &options, table).await?;
    let comments = shown.lines().map(|line| format!("# {line}"));
    let comments: String = comments
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    write!(out, "{lines}#\n{comments}").map_err(unwritten)?;
    control.close().await;
    Ok(())
}

fn judge(facts: &Facts, wanted: &preflight::Options) -> Result<(), Failure> {
    let checks = preflight::judge_tables(facts, wanted);
    match preflight::first_failure(&checks) {
        Some(failure) => Err(failure.clone()),
        None => Ok(()),
    }
}

/// How the table is to be read, and the lines that say so.
fn choose(name: &config::TableName, table: &Table) -> Result<(Mapping, String), Failure> {
    let columns = table.columns.iter();
    let columns: Vec<&str> = columns.map(|column| column.name.as_str()).collect();
    let (mapping, told, mapped) = match detect(&columns) {
        Detected::Preset(preset) => {
            let told = format!("has the columns of {}", preset.word());
            let mapping = preset.mapping(&name.schema, &name.table);
            (mapping, told, format!("preset: {}", preset.word()))
        }
        Detected::Columns(found) => {
            let told = "has columns with the usual names, of no preset".to_owned();
            let mut mapping = Mapping::new(&name.schema, &name.table);
            let pairs = found.into_iter().map(|(field, column)| {
                let pair = format!("{}: {column}", field.key());
                mapping.set(field, Origin::Column(column));
                pair
            });
            let pairs: Vec<String> = pairs.collect();
            let mapped = format!("preset: none\n    columns: {{{}}}", pairs.join(", "));
            (mapping, told, mapped)
        }
        Detected::Ambiguous(several) => return Err(ambiguous(name, &several)),
        Detected::Lacks(fields) => return Err(lacking(name, &fields, &columns)),
    };
    let quoted = yaml(&name.to_string());
    let mut lines = format!("# {name} {told}.\ntables:\n  - name: {quoted}\n    {mapped}\n");
    let unread = columns.into_iter().filter(|column| !mapping.reads(column));
    let unread: Vec<&str> = unread.collect();
    if !unread.is_empty() {
        lines += &format!("# Not read: {}.\n", unread.join(", "));
    }
    Ok((mapping, lines))
}

fn ambiguous(name: &config::TableName, several: &[(Field, Vec<String>)]) -> Failure {
    let candidates = several.iter().map(|(field, columns)| {
        let columns = columns.join(" or ");
        format!("{} could be {columns}", field.key())
    });
    let candidates: Vec<String> = candidates.collect();
    refused(
        format!("{name} can be read in more than one way"),
        candidates.join("; "),
        "choose: write `preset: none` and `columns` for this table in `tables`",
    )
}

fn lacking(name: &config::TableName, fields: &[Field], columns: &[&str]) -> Failure {
    let fields: Vec<&str> = fields.iter().map(|field| field.key()).collect();
    refused(
        format!(
            "{name} has no column that is known to be {}",
            fields.join(" or ")
        ),
        format!("its columns are {}", columns.join(", ")),
        "say what is what: write `preset: none` and `columns` for this table in `tables`",
    )
}

fn refused(problem: String, cause: String, fix: &str) -> Failure {
    Failure::halt(Exit::CheckFailed, Problem::new(problem, cause, fix))
}

/// A scalar of YAML.
fn yaml(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.$".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "''")),
    }
}

/// What the newest row would become, or why that cannot be told.
async fn sample(client: &Client, options: &Options, table: &Table) -> Result<String, Failure> {
    let doing = format!("read a row of {}", table.name);
    let wrap = |error| StatementError::new(doing.clone(), error);
    client
        .batch_execute(&(rows::settings("SET") + PATIENCE))
        .await
        .map_err(|error| wrap(error).failure())?;
    let rows = Rows::open(client, &options.tables[0]).await?;
    let newest = rows.column(Field::CreatedAt);
    let newest = newest.unwrap_or_else(|| "ctid".to_owned());
    let newest = rows.select(&format!("ORDER BY {newest} DESC LIMIT 1"));
    let row = match rows.query(&newest).await {
        Ok(mut rows) => rows.pop(),
        Err(error) if error.as_db_error().is_some() => {
            let cause = wrap(error).cause();
            return Ok(format!("No sample: the newest row cannot be read, {cause}"));
        }
        Err(error) => return Err(wrap(error).failure()),
    };
    let Some(row) = row else {
        return Ok("No sample: there is no row.".to_owned());
    };
    let unsent = Unsent::new(options, &options.tables[0], &rows.columns()).map_err(|error| {
        let fix = "run it again: the table has changed meanwhile";
        refused(format!("{doing} in vain"), error.to_string(), fix)
    })?;
    // At no place and no time.
    let nowhere = Position {
        commit: 0,
        index: 0,
    };
    let values = row.iter().map(Option::as_deref).collect();
    Ok(match unsent.event(nowhere, "", values) {
        Ok(event) => format!("The newest row would be:\n{}", shown(&event)),
        Err(rejection) => {
            let reason = rejection.reason;
            format!("The newest row would be a dead letter: {reason}")
        }
    })
}

fn shown(event: &Event) -> String {
    let mut text = format!("{}\nNats-Msg-Id: {}\n", event.subject, event.id);
    for (name, value) in event.headers.iter() {
        text += &format!("{name}: {value}\n");
    }
    text.push('\n');
    let body = String::from_utf8_lossy(&event.payload);
    text.extend(body.chars().take(BODY_CHARACTERS_MAX));
    let left = body.chars().count().saturating_sub(BODY_CHARACTERS_MAX);
    match left {
        0 => text,
        left => format!("{text}\n... and {left} characters more"),
    }
}
