//! `outjet compare`: whether an old relay and an outjet beside it publish the same. Both streams
//! are read to what was their end when it began, into a temporary table of Postgres, which compares
//! them, whatever their size: an id, a subject, a place and 16 bytes for the body of each message.
//!
//! Neither relay waits for the other. So what one stream has behind the last event that both have,
//! and what was stored a moment ago, may still come; and what it has before the first was published
//! when the other did not run yet.

mod report;

use std::time::SystemTime;

use serde_json::Value;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::Client;

use self::report::Report;
use crate::cli;
use crate::command::stored::execute;
use crate::command::{Out, connect, unwritten};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::event::route;
use crate::pg::catalog::StatementError;
use crate::pg::params::Params;
use crate::sink::jetstream::{self, StoredMessage, Transcript};

/// Messages in one insert.
const BATCH_MAX: usize = 2000;

/// Bytes of a body's SHA-256 that are kept.
const HASH_BYTES: usize = 16;

/// Compares and prints. `false`: they differ.
pub(in crate::command) async fn compare(
    typed: &cli::Compare,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<bool, Failure> {
    let ours = config.sink_options().of_stream();
    let mut theirs = ours.clone();
    theirs.stream.name.clone_from(&typed.stream);
    if ours.stream.name == theirs.stream.name {
        return Err(Failure::halt(
            Exit::Usage,
            Problem::new(
                format!("stream {:?} would be compared with itself", typed.stream),
                "it is the one that outjet publishes to, stream.name",
                "name the old relay's stream in --with",
            ),
        ));
    }
    let ours = open(
        &ours,
        "`outjet setup`, and let `outjet run` publish beside the old relay",
    );
    let ours = Box::pin(ours).await?;
    let theirs = open(
        &theirs,
        "name the old relay's stream in --with: `nats stream ls`",
    );
    let theirs = Box::pin(theirs).await?;
    let control = connect(params).await?;
    let comparison = Comparison {
        client: control.client(),
        typed,
        rules: Rules::new(typed, config),
    };
    let compared = Box::pin(comparison.run(ours, theirs)).await;
    control.close().await;
    let report = compared?;
    if typed.json {
        writeln!(out, "{:#}", report.json()).map_err(unwritten)?;
    } else {
        report.print(out)?;
    }
    Ok(report.is_same())
}

/// A stream that is there and keeps what it is given.
async fn open(options: &jetstream::Options, missing: &str) -> Result<Side, Failure> {
    let name = options.stream.name.clone();
    let transcript = match Transcript::open(options).await {
        Ok(transcript) => transcript,
        Err(jetstream::Error::StreamMissing(_)) => {
            let servers = options.nats.display();
            return Err(Failure::halt(
                Exit::Config,
                Problem::new(
                    format!("stream {name:?} does not exist"),
                    format!("NATS at {servers} has no stream of that name for our account"),
                    missing,
                ),
            ));
        }
        Err(error) => return Err(error.failure(options)),
    };
    if !transcript.keeps {
        return Err(Failure::halt(
            Exit::Config,
            Problem::new(
                format!("stream {name:?} cannot be compared"),
                "its messages vanish when they are consumed: its retention is not limits",
                "compare table and stream instead: `outjet verify`",
            ),
        ));
    }
    Ok(Side {
        options: options.clone(),
        transcript,
        messages: 0,
    })
}

/// One of the two streams.
struct Side {
    options: jetstream::Options,
    transcript: Transcript,
    /// How many were compared.
    messages: u64,
}

struct Comparison<'a> {
    client: &'a Client,
    typed: &'a cli::Compare,
    rules: Rules<'a>,
}

impl Comparison<'_> {
    async fn run(&self, mut ours: Side, mut theirs: Side) -> Result<Report, Failure> {
        let begin = "BEGIN; SET LOCAL TimeZone = 'UTC'; SET LOCAL statement_timeout = 0; \
                     SET LOCAL idle_in_transaction_session_timeout = 0; \
                     CREATE TEMP TABLE outjet_compared (ours boolean, sequence bigint, \
                     id text COLLATE \"C\", subject text COLLATE \"C\", body bytea, \
                     ordered_by text COLLATE \"C\", stored timestamptz) ON COMMIT DROP";
        execute(self.client, "make a temporary table", begin).await?;
        if let Some(since) = &self.typed.since {
            let since = self.time(since).await?;
            for side in [&mut ours, &mut theirs] {
                let skipped = Box::pin(side.transcript.skip_to(since)).await;
                skipped.map_err(|error| error.failure(&side.options))?;
            }
        }
        let opened = ours.transcript.opened.min(theirs.transcript.opened);
        for (side, is_ours) in [(&mut ours, true), (&mut theirs, false)] {
            Box::pin(self.load(side, is_ours)).await?;
        }
        execute(
            self.client,
            "look at a temporary table",
            "ANALYZE pg_temp.outjet_compared",
        )
        .await?;
        let opened = opened.map(SystemTime::from);
        let settle = self.typed.settle.as_secs_f64();
        let sql = include_str!("../../../sql/compare.sql");
        let named = report::NAMED_MAX;
        let found = self.client.query(sql, &[&settle, &opened, &named]).await;
        let found =
            found.map_err(|error| StatementError::new("compare the streams", error).failure())?;
        let report = Report::new(
            (&ours.options.stream.name, ours.messages),
            (&theirs.options.stream.name, theirs.messages),
            self.typed.bodies,
            &found,
        )?;
        execute(self.client, "end a transaction", "ROLLBACK").await?;
        report.refuse_strangers()
    }

    /// As Postgres understands it, in UTC unless it says otherwise.
    async fn time(&self, typed: &str) -> Result<OffsetDateTime, Failure> {
        let sql = r#"SELECT to_char($1::text::timestamptz, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;
        let row = self.client.query_one(sql, &[&typed]).await;
        let text = row.and_then(|row| row.try_get::<_, Option<String>>(0));
        let text = text.map_err(|error| StatementError::new("read --since", error).failure())?;
        let text = text.unwrap_or_default();
        OffsetDateTime::parse(&text, &Rfc3339).map_err(|error| {
            let problem = format!("--since {typed:?} is no moment");
            let fix = "write it as in --since '2026-11-21 12:00'";
            Failure::halt(Exit::Usage, Problem::new(problem, error.to_string(), fix))
        })
    }

    async fn load(&self, side: &mut Side, ours: bool) -> Result<(), Failure> {
        let mut batch = Batch::default();
        loop {
            let next = side.transcript.next().await;
            let next = next.map_err(|error| error.failure(&side.options))?;
            let ended = next.is_none();
            if let Some(line) = next.and_then(|message| self.rules.line(&message, ours)) {
                side.messages += 1;
                batch.push(line);
            }
            if batch.sequences.len() == BATCH_MAX || ended {
                let inserted = batch.insert(self.client, ours).await;
                inserted.map_err(|error| {
                    StatementError::new("fill a temporary table", error).failure()
                })?;
                batch = Batch::default();
            }
            if ended {
                return Ok(());
            }
        }
    }
}

/// What of a message is compared.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    sequence: u64,
    id: Option<String>,
    subject: String,
    body: Vec<u8>,
    /// Events of the same have an order.
    ordered_by: String,
    stored: OffsetDateTime,
}

/// How messages of the two relays are brought together.
struct Rules<'a> {
    typed: &'a cli::Compare,
    /// With its dot, or empty.
    prefix: String,
    /// `schema.table:`, which stands before ids that are no UUIDs.
    tables: Vec<String>,
}

impl<'a> Rules<'a> {
    fn new(typed: &'a cli::Compare, config: &Config) -> Self {
        let prefix = typed
            .prefix
            .as_ref()
            .or(config.publish.subject_prefix.as_ref());
        let prefix = prefix.filter(|prefix| !prefix.is_empty());
        let tables = config.tables.iter().map(|table| &table.name);
        Self {
            typed,
            prefix: prefix
                .map(|prefix| format!("{prefix}."))
                .unwrap_or_default(),
            tables: tables
                .map(|name| format!("{}.{}:", name.schema, name.table))
                .collect(),
        }
    }

    /// `None`: it is not compared.
    fn line(&self, message: &StoredMessage, ours: bool) -> Option<Line> {
        if ours && !message.is_event() {
            return None;
        }
        let mut subject = message.subject();
        if ours {
            subject = subject.strip_prefix(&self.prefix).unwrap_or(subject);
        }
        let filter = self.typed.subject.as_ref();
        if filter.is_some_and(|filter| !route::matches(filter, subject)) {
            return None;
        }
        let id = match ours {
            true => self.our_id(message),
            false => self.their_id(message),
        };
        let aggregate = message.header("ce-partitionkey").unwrap_or(subject);
        Some(Line {
            sequence: message.sequence(),
            id: id.map(|id| self.row_id(&id)),
            subject: subject.to_owned(),
            body: Sha256::digest(message.body())[..HASH_BYTES].to_vec(),
            ordered_by: aggregate.to_owned(),
            stored: message.time(),
        })
    }

    fn our_id(&self, message: &StoredMessage) -> Option<String> {
        let header = self.typed.our_id_header.as_ref();
        let told = header.and_then(|header| message.header(header));
        told.or_else(|| message.id()).map(str::to_owned)
    }

    fn their_id(&self, message: &StoredMessage) -> Option<String> {
        match (&self.typed.id_header, &self.typed.id_json) {
            (Some(header), _) => message.header(header).map(str::to_owned),
            (None, Some(path)) => inside(message.body(), path),
            (None, None) => message.id().map(str::to_owned),
        }
    }

    /// Without the table's name, and without what Postgres takes in no text.
    fn row_id(&self, id: &str) -> String {
        let mut tables = self.tables.iter();
        let bare = tables.find_map(|table| id.strip_prefix(table));
        bare.unwrap_or(id).replace('\0', "")
    }
}

/// The text or number at a path in JSON.
fn inside(body: &[u8], path: &str) -> Option<String> {
    let json: Value = serde_json::from_slice(body).ok()?;
    let mut keys = path.split('.');
    match keys.try_fold(&json, |at, key| at.get(key))? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The columns of lines, as Postgres takes them.
#[derive(Default)]
struct Batch {
    sequences: Vec<i64>,
    ids: Vec<Option<String>>,
    subjects: Vec<String>,
    bodies: Vec<Vec<u8>>,
    ordered_by: Vec<String>,
    stored: Vec<SystemTime>,
}

impl Batch {
    fn push(&mut self, line: Line) {
        self.sequences
            .push(i64::try_from(line.sequence).unwrap_or(i64::MAX));
        self.ids.push(line.id);
        self.subjects.push(line.subject);
        self.bodies.push(line.body);
        self.ordered_by.push(line.ordered_by);
        self.stored.push(line.stored.into());
    }

    async fn insert(&self, client: &Client, ours: bool) -> Result<u64, tokio_postgres::Error> {
        let insert = "INSERT INTO pg_temp.outjet_compared SELECT $1, * FROM unnest($2::bigint[], \
                      $3::text[], $4::text[], $5::bytea[], $6::text[], $7::timestamptz[])";
        let Self {
            sequences,
            ids,
            subjects,
            bodies,
            ordered_by,
            stored,
        } = self;
        let lines: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&ours, sequences, ids, subjects, bodies, ordered_by, stored];
        client.execute(insert, &lines).await
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Rules, inside};
    use crate::cli::{Cli, Command};

    #[test]
    fn id_of_a_row_is_that_without_its_table() {
        let typed = Cli::parse_from(["outjet", "compare", "--with", "EVENTS"]);
        let Command::Compare(typed) = &typed.command else {
            panic!("not compare: {typed:?}");
        };
        let rules = Rules {
            typed,
            prefix: String::new(),
            tables: vec!["public.a:".to_owned(), "public.ab:".to_owned()],
        };
        assert_eq!(rules.row_id("public.ab:7"), "7");
        assert_eq!(rules.row_id("public.c:7"), "public.c:7");
        assert_eq!(rules.row_id("a\0b"), "ab");
    }

    #[test]
    fn id_in_a_body_is_a_text_or_a_number_at_its_path() {
        let body = br#"{"id": 7, "meta": {"id": "a-1", "none": null}}"#;
        assert_eq!(inside(body, "id").as_deref(), Some("7"));
        assert_eq!(inside(body, "meta.id").as_deref(), Some("a-1"));
        for path in ["meta", "meta.none", "id.id", "other"] {
            assert_eq!(inside(body, path), None, "{path}");
        }
        assert_eq!(inside(b"no JSON", "id"), None);
    }
}
