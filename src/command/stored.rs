//! What stands in the stream, among the dead letters and among what is delayed, put into a
//! temporary table beside the outbox tables, so that Postgres compares them, whatever their size.
//! Reading takes time with the length of the stream, some ten thousand messages a second; memory
//! is constant here, and the table (a few dozen bytes a message) is Postgres's, which writes it
//! to disk if it is large.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::Client;

use super::progress::Progress;
use crate::error::{Exit, Failure, Problem};
use crate::event::Position;
use crate::event::lineage::{Mark, Source};
use crate::event::mapping::{Field, Mapping, Marker};
use crate::guard::Entry;
use crate::pg::catalog::{Facts, StatementError, Table};
use crate::pg::name::{TableName, quote, quote_table};
use crate::sink::jetstream::{self, Ledger, Line, Past};

/// Messages in one insert.
const BATCH_MAX: usize = 2000;

/// Most findings of a kind that are named.
pub(super) const NAMED_MAX: usize = 1000;

/// What was seen while reading.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) messages: u64,
    /// The last sequence number of the stream when that was opened.
    pub(super) read_to: u64,
    /// Of others, and of other slots.
    pub(super) foreign: u64,
    /// Stored after one that was committed later; the first of them.
    pub(super) misplaced: Vec<Misplaced>,
    pub(super) misplaced_count: u64,
    /// Rows that were created before cannot be compared: RFC 3339.
    pub(super) since: Option<String>,
    /// What was gone before cannot be told.
    pub(super) unknown_past: bool,
    /// Other outjets may write into the stream, too.
    shared: bool,
    highest: Option<(u32, Position)>,
}

#[derive(Debug, serde::Serialize)]
pub(super) struct Misplaced {
    pub(super) sequence: u64,
    pub(super) id: String,
}

/// Reads the streams into `pg_temp.outjet_stored`, in the open transaction.
pub(super) async fn load(
    client: &Client,
    options: &jetstream::Options,
    ours: &Source,
) -> Result<Tally, Failure> {
    let create = "CREATE TEMP TABLE outjet_stored (id text NOT NULL, sequence bigint NOT NULL, \
                  again boolean NOT NULL) ON COMMIT DROP";
    execute(client, "make a temporary table", create).await?;
    let shared = options.stream.shared;
    let new = || Tally {
        shared,
        ..Tally::default()
    };
    let mut tally = new();
    copy(client, options, ours, (false, &mut tally)).await?;
    let letters = options.dead_letters.as_ref();
    let letters = letters.map(|_| options.of_dead_letters());
    let delayed = options.delayed.as_ref().map(|_| options.of_delayed());
    for beside in letters.iter().chain(&delayed) {
        let mut uncounted = new();
        copy(client, beside, ours, (true, &mut uncounted)).await?;
    }
    let index = "CREATE INDEX ON pg_temp.outjet_stored (id); ANALYZE pg_temp.outjet_stored";
    execute(client, "index a temporary table", index).await?;
    Ok(tally)
}

async fn copy(
    client: &Client,
    options: &jetstream::Options,
    ours: &Source,
    (beside, tally): (bool, &mut Tally),
) -> Result<(), Failure> {
    let mut ledger = match Ledger::open(options).await {
        Ok(ledger) => ledger,
        Err(jetstream::Error::StreamMissing(_) | jetstream::Error::NoSchedules { .. }) => {
            return Ok(());
        }
        Err(error) => return Err(error.failure(options)),
    };
    tally.read_to = ledger.last_sequence;
    match ledger.past {
        Past::Whole => {}
        Past::Since(time) => tally.since = rfc3339(time),
        Past::Unknown => tally.unknown_past = true,
    }
    let mut progress = Progress::or_lines(ledger.messages, "messages read");
    let (mut ids, mut sequences, mut again) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let line = ledger
            .next()
            .await
            .map_err(|error| error.failure(options))?;
        let ended = line.is_none();
        progress.show(tally.messages);
        if let Some(Line { entry, replay }) = line
            && let Some((sequence, mark)) = tally.take(entry, ours)
        {
            ids.push(mark.id);
            sequences.push(i64::try_from(sequence).unwrap_or(i64::MAX));
            // A letter may be published later, what is delayed has a mark besides, and a replay is
            // meant to be the second.
            again.push(beside || replay);
        }
        if ids.len() == BATCH_MAX || ended {
            let insert = "INSERT INTO pg_temp.outjet_stored \
                          SELECT * FROM unnest($1::text[], $2::bigint[], $3::boolean[])";
            let inserted = client.execute(insert, &[&ids, &sequences, &again]).await;
            inserted
                .map_err(|error| StatementError::new("fill a temporary table", error).failure())?;
            ids.clear();
            sequences.clear();
            again.clear();
        }
        if ended {
            return Ok(());
        }
    }
}

impl Tally {
    fn take(&mut self, entry: Entry, ours: &Source) -> Option<(u64, Mark)> {
        self.messages += 1;
        let Some(mark) = entry.mark else {
            self.foreign += 1;
            return None;
        };
        if !mark.source.same_slot(ours) {
            self.foreign += 1;
            // Elsewhere it is a slot that we had before; here its rows are others, and may bear the
            // same numbers.
            return (!self.shared).then_some((entry.sequence, mark));
        }
        // LSNs are used again on another timeline.
        let place = (mark.source.timeline, mark.position);
        if self
            .highest
            .is_some_and(|highest| highest.0 == place.0 && highest.1 > place.1)
        {
            self.misplaced_count += 1;
            if self.misplaced.len() < NAMED_MAX {
                self.misplaced.push(Misplaced {
                    sequence: entry.sequence,
                    id: mark.id.clone(),
                });
            }
        } else {
            self.highest = Some(place);
        }
        Some((entry.sequence, mark))
    }
}

/// An outbox table, as it is compared.
pub(super) struct Outbox {
    pub(super) mapping: Mapping,
    pub(super) name: TableName,
    id: String,
    created: Option<String>,
    expires: Option<String>,
    /// A column that numbers the rows.
    numbered: Option<String>,
    /// Whether a poller has marked a row as published.
    published: String,
}

impl Outbox {
    /// The configured tables; those that do not exist were refused before.
    pub(super) fn all(tables: &[Mapping], facts: &Facts) -> Result<Vec<Self>, Failure> {
        let tables = tables.iter().zip(&facts.tables);
        tables
            .map(|(table, found)| Self::new(table, found.as_ref()))
            .collect()
    }

    fn new(mapping: &Mapping, found: Option<&Table>) -> Result<Self, Failure> {
        let columns = found.map_or(&[][..], |found| &found.columns);
        let has = |wanted: &str| columns.iter().any(|column| column.name == wanted);
        let there = mapping.clone().of_columns(has);
        let quoted = |name: &str| format!("t.{}", quote(name));
        let name = TableName::new(mapping.schema(), mapping.table());
        let Some(id) = there.column_of(Field::Id).map(quoted) else {
            return Err(Failure::halt(
                Exit::CheckFailed,
                Problem::new(
                    format!("the rows of {name} cannot be compared with the stream"),
                    "their id is taken from inside a column",
                    "give the table a column for it, a generated one for instance, and map it",
                ),
            ));
        };
        let published = published(&there, &name, has)?;
        Ok(Self {
            mapping: mapping.clone(),
            name,
            id,
            created: there.column_of(Field::CreatedAt).map(quoted),
            expires: there.column_of(Field::ExpiresAt).map(quoted),
            numbered: has(NUMBERED).then(|| quoted(NUMBERED)),
            published,
        })
    }

    /// `schema.table t`.
    pub(super) fn from(&self) -> String {
        format!("{} t", quote_table(&self.name))
    }

    /// The message id of a row, as `assemble` makes it.
    pub(super) fn message_id(&self) -> String {
        let id = &self.id;
        let table = postgres_protocol::escape::escape_literal(&format!("{}:", self.name));
        format!(
            "CASE WHEN {id}::text ~ '^[0-9A-Fa-f]{{8}}(-[0-9A-Fa-f]{{4}}){{3}}-[0-9A-Fa-f]{{12}}$' \
             THEN {id}::text ELSE btrim({table} || {id}::text, E' \\t\\r\\n') END"
        )
    }

    /// The rows that are compared: not those that the stream has dropped in their time.
    pub(super) fn compared(&self, since: Option<&str>) -> String {
        let mut compared = format!("{} IS NOT NULL", self.id);
        if let (Some(created), Some(since)) = (&self.created, since) {
            let since = postgres_protocol::escape::escape_literal(since);
            compared.push_str(&format!(" AND {created} >= {since}"));
        }
        if let Some(expires) = &self.expires {
            // Until the stream has been read, a little time passes.
            let soon = "clock_timestamp() + interval '1 minute'";
            compared.push_str(&format!(" AND coalesce({expires} > {soon}, true)"));
        }
        compared
    }

    /// Those of them that stand nowhere, and that nobody else has published.
    pub(super) fn lacking(&self, since: Option<&str>) -> String {
        format!("{} AND NOT {}", self.stand_nowhere(since), self.published)
    }

    /// A query for how many are [`lacking`](Self::lacking), and how many stand nowhere because a
    /// poller has published them.
    pub(super) fn count(&self, since: Option<&str>) -> String {
        let (from, published) = (self.from(), &self.published);
        format!(
            "SELECT count(*) FILTER (WHERE NOT {published}), count(*) FILTER (WHERE {published}) \
             FROM {from} WHERE {}",
            self.stand_nowhere(since)
        )
    }

    fn stand_nowhere(&self, since: Option<&str>) -> String {
        format!(
            "{} AND NOT EXISTS (SELECT FROM pg_temp.outjet_stored s WHERE s.id = {})",
            self.compared(since),
            self.message_id()
        )
    }

    /// `created_at, id`, as far as there is one, or the number.
    pub(super) fn order(&self) -> String {
        let columns = match &self.numbered {
            Some(number) => vec![number],
            None => self.created.iter().chain([&self.id]).collect(),
        };
        let columns = columns.into_iter().map(String::as_str);
        columns.collect::<Vec<_>>().join(", ")
    }

    /// As text, for people.
    pub(super) fn shown(&self) -> String {
        let created = self.created.as_deref().unwrap_or("NULL");
        format!("{}::text, {created}::text", self.id)
    }
}

/// What outboxes call the column.
const NUMBERED: &str = "seq";

/// Whether a row bears one of the marks, which is never NULL.
fn published(
    mapping: &Mapping,
    name: &TableName,
    has: impl Fn(&str) -> bool,
) -> Result<String, Failure> {
    let mut marks = vec!["false".to_owned()];
    for Marker { column, value, .. } in &mapping.published {
        if !has(column) {
            return Err(Failure::halt(
                Exit::CheckFailed,
                Problem::new(
                    format!("which rows of {name} are published cannot be told"),
                    format!("it has no column {column:?}, which `published` names"),
                    "correct `published` of this table in `tables`; none: no row is marked",
                ),
            ));
        }
        let column = format!("t.{}::text", quote(column));
        marks.push(match value {
            None => format!("coalesce({column} NOT IN ('0', 'false'), false)"),
            Some(value) => {
                let value = postgres_protocol::escape::escape_literal(value);
                format!("coalesce({column} = {value}, false)")
            }
        });
    }
    Ok(format!("({})", marks.join(" OR ")))
}

/// What of the tables cannot be compared, because the stream does not hold it any more: what
/// `--since` says, or what the stream tells of itself.
pub(super) fn horizon(tally: &Tally, typed: Option<&str>) -> Result<Option<String>, Failure> {
    match typed {
        Some(typed) => Ok(Some(typed.to_owned())),
        None if tally.unknown_past => Err(Failure::halt(
            Exit::CheckFailed,
            Problem::new(
                "the stream cannot tell what it has held",
                "messages vanish from it when they are consumed, or all of them were purged",
                "say from when on it must hold the rows: --since '2026-11-21 12:00+00'",
            ),
        )),
        None => Ok(tally.since.clone()),
    }
}

/// Runs SQL that returns nothing.
pub(super) async fn execute(client: &Client, doing: &str, sql: &str) -> Result<(), Failure> {
    let done = client.batch_execute(sql).await;
    done.map_err(|error| StatementError::new(doing, error).failure())
}

fn rfc3339(time: OffsetDateTime) -> Option<String> {
    time.format(&Rfc3339).ok()
}
