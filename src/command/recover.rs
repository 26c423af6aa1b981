//! `outjet recover`, and `outjet setup --backfill`: comes back from a slot that is lost or was
//! dropped, and starts on a table that has rows already.
//!
//! What was committed without a slot stands in no WAL that could still be decoded; it stands in the
//! tables. So a slot `<slot>_recovering` is made, with the snapshot of that very moment; the rows
//! that this snapshot sees and the stream lacks are appended, through the same sink as ever; and as
//! the last step that slot is copied to the real name. Before, nobody streams from it; afterwards,
//! all is done. Whatever comes in between changes nothing: the next call begins anew, and finds the
//! rows that were appended by their ids.
//!
//! Their positions lie one below the slot's consistent point, numbered: behind every commit that
//! was published before, and before every commit that the new slot will send, the first of which
//! may begin at the consistent point itself. None begins one below it, as records are aligned.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::progress::Progress;
use super::rows::{self, Row, Rows};
use super::stored::{self, Outbox, execute};
use super::{Out, append::Append, setup, unwritten};
use crate::assemble::{self, AssembleError, Unsent};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::event::lineage::{Lineage, Source};
use crate::event::{Event, Position};
use crate::fault;
use crate::lead::relay;
use crate::lsn::Lsn;
use crate::pg::catalog::{Error, Facts, Slot, TableName};
use crate::pg::ddl;
use crate::pg::params::Params;
use crate::pg::replication::Session;
use crate::preflight;

/// Rows that are read at once.
const FETCH_ROWS: usize = 64;

/// Brings the slot back, with all that the stream lacks; says so if there is nothing to do.
pub(super) async fn recover(
    since: Option<&str>,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<(), Failure> {
    let control = super::connect(params).await?;
    let recovery = Recovery {
        client: control.client(),
        config,
        params,
        wanted: config.preflight_options(),
        since,
    };
    let done = Box::pin(recovery.run(out)).await;
    control.close().await;
    done
}

struct Recovery<'a> {
    client: &'a Client,
    config: &'a Config,
    params: &'a Params,
    wanted: preflight::Options,
    since: Option<&'a str>,
}

/// The slot that is made, and the moment that it begins at.
struct Made {
    session: Session,
    lineage: Lineage,
    consistent: Lsn,
    snapshot: String,
}

impl Recovery<'_> {
    async fn run(&self, out: Out<'_>) -> Result<(), Failure> {
        let mut facts = setup::read(self.client, &self.wanted).await?;
        setup::refuse(&preflight::judge_server(&facts))?;
        if facts.slot.is_none() && facts.publication.is_none() {
            // `outjet drop` takes both.
            setup::all_but_the_slot(self.client, &self.wanted, out).await?;
            facts = setup::read(self.client, &self.wanted).await?;
        }
        setup::refuse(&preflight::judge_tables(&facts, &self.wanted))?;
        setup::refuse(&preflight::judge_publication(&facts, &self.wanted))?;
        let left = self.left_over().await?;
        let lost = match &facts.slot {
            Some(slot) if !slot.lost() => {
                setup::refuse(&preflight::judge_slot(&facts, &self.wanted))?;
                if left {
                    // The last call ended behind its last step but one.
                    self.finish(&facts).await?;
                }
                let name = &slot.name;
                return writeln!(out, "exists    replication slot {name}").map_err(unwritten);
            }
            slot => slot.is_some(),
        };
        if left {
            self.drop_slot(&self.recovering()).await?;
        }
        let assemble = self.config.assemble_options(&facts.server.database)?;
        let outboxes = Outbox::all(&assemble.tables, &facts)?;
        setup::tell_open_writers(self.client, out).await?;
        let made = self.make().await?;
        fault::point("slot made to recover");
        let (appended, left_out) = Box::pin(self.append(&assemble, &outboxes, made)).await?;
        for (table, rows) in left_out {
            writeln!(out, "left out  {rows} rows of {table}: published already")
                .map_err(unwritten)?;
        }
        writeln!(out, "appended  {appended} events").map_err(unwritten)?;
        fault::point("recovered rows appended");
        if lost {
            self.drop_slot(&self.wanted.slot).await?;
            fault::point("lost slot dropped");
        }
        let copy = ddl::copy_slot(&self.recovering(), &self.wanted.slot);
        execute(self.client, "copy the slot", &copy).await?;
        fault::point("slot copied");
        self.finish(&facts).await?;
        writeln!(out, "created   replication slot {}", self.wanted.slot).map_err(unwritten)
    }

    fn recovering(&self) -> String {
        format!("{}_recovering", self.wanted.slot)
    }

    /// Whether an earlier call left its slot behind; refuses while another call is at work.
    async fn left_over(&self) -> Result<bool, Failure> {
        let name = self.recovering();
        let slot = Slot::read(self.client, &name).await;
        match slot.map_err(|error| error.failure())? {
            Some(slot) if slot.active => Err(Failure::halt(
                Exit::CheckFailed,
                Problem::new(
                    format!("replication slot \"{name}\" is in use"),
                    "another `outjet recover` is at work",
                    "wait for its end",
                ),
            )),
            slot => Ok(slot.is_some()),
        }
    }

    async fn drop_slot(&self, name: &str) -> Result<(), Failure> {
        execute(self.client, "drop a slot", &ddl::drop_slot(name)).await
    }

    /// The slot has its name. Standbys keep it where they can, and nobody keeps WAL for the other.
    async fn finish(&self, facts: &Facts) -> Result<(), Failure> {
        if facts.server.has_failover_slots() {
            let mut session = self.connect().await?;
            let alter = ddl::alter_failover(&self.wanted.slot);
            // A leader may have it already; then `outjet check` says what is missing.
            match session.query(&alter).await {
                Err(error) if error.sqlstate() == Some("55006") => {}
                altered => {
                    altered.map_err(|error| error.failure(self.params))?;
                }
            }
            session.close().await;
        }
        self.drop_slot(&self.recovering()).await
    }

    async fn connect(&self) -> Result<Session, Failure> {
        let session = Session::connect(self.params, &[]).await;
        session.map_err(|error| error.failure(self.params))
    }

    async fn make(&self) -> Result<Made, Failure> {
        let failure = |error: crate::pg::Error| error.failure(self.params);
        let mut session = self.connect().await?;
        let system = session.identify_system().await.map_err(failure)?;
        let history = session.timeline_history(system.timeline).await;
        let ended = history.map_err(failure)?.into_iter();
        let ended = ended.map(|switch| (switch.timeline, switch.ended_at.as_u64()));
        let source = Source {
            system: system.id,
            timeline: system.timeline,
            slot: self.wanted.slot.clone(),
        };
        let lineage = Lineage::new(source, ended.collect());
        // The snapshot is good until the session's next command.
        let create = ddl::create_slot_with_snapshot(&self.recovering());
        let row = session
            .query(&create)
            .await
            .map_err(failure)?
            .into_iter()
            .next();
        let mut values = row.unwrap_or_default().into_iter().flatten().skip(1);
        let consistent = values.next().and_then(|lsn| lsn.parse().ok());
        match (consistent, values.next()) {
            (Some(consistent), Some(snapshot)) => Ok(Made {
                session,
                lineage,
                consistent,
                snapshot,
            }),
            _ => Err(Failure::halt(
                Exit::Bug,
                Problem::new(
                    "the server's answer to CREATE_REPLICATION_SLOT is not understood",
                    "it names no consistent point or no snapshot",
                    "please report this with the Postgres version",
                ),
            )),
        }
    }

    /// Appends what the snapshot sees and the stream lacks; returns how many events that were, and
    /// how many rows of which tables a poller has published.
    async fn append(
        &self,
        assemble: &assemble::Options,
        outboxes: &[Outbox],
        made: Made,
    ) -> Result<(u64, Vec<(TableName, u64)>), Failure> {
        let client = self.client;
        let Made {
            session,
            lineage,
            consistent,
            snapshot,
        } = made;
        execute(client, "take the slot's snapshot", &begin(&snapshot)).await?;
        let mut options = self.config.sink_options();
        options.hold = std::time::Duration::ZERO;
        let begun = Instant::now();
        let tally = stored::load(client, &options, lineage.source()).await?;
        let reading = begun.elapsed();
        let since = stored::horizon(&tally, self.since)?;
        let window = self.config.relay_options().window;
        let counted = self.count(outboxes, since.as_deref()).await?;
        let rows = counted.iter().map(|(lacking, _)| lacking).sum();
        let progress = Progress::or_lines(rows, "events appended");
        let append = Append::open((options, window), lineage, (progress, reading));
        let mut append = append.await?;
        let mut lacking = Lacking {
            client,
            params: self.params,
            options: assemble,
            since,
            next: Position {
                commit: consistent.as_u64() - 1,
                index: 0,
            },
        };
        for outbox in outboxes {
            Box::pin(lacking.publish(outbox, &mut append)).await?;
        }
        let appended = append.finish().await?;
        execute(client, "end a transaction", "COMMIT").await?;
        session.close().await;
        let tables = outboxes.iter().map(|outbox| outbox.name.clone());
        let left_out = tables.zip(counted.into_iter().map(|(_, left_out)| left_out));
        Ok((appended, left_out.filter(|(_, rows)| *rows > 0).collect()))
    }

    /// How many rows of each table the stream lacks, and how many more a poller has published.
    async fn count(
        &self,
        outboxes: &[Outbox],
        since: Option<&str>,
    ) -> Result<Vec<(u64, u64)>, Failure> {
        let mut counted = Vec::new();
        for outbox in outboxes {
            let row = self.client.query_one(&outbox.count(since), &[]).await;
            let counts = row.and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
            let (lacking, left_out): (i64, i64) = counts
                .map_err(|error| Error::new(format!("count {}", outbox.name), error).failure())?;
            counted.push((lacking.unsigned_abs(), left_out.unsigned_abs()));
        }
        Ok(counted)
    }
}

/// Values as text must be what the slot sends.
fn begin(snapshot: &str) -> String {
    let snapshot = postgres_protocol::escape::escape_literal(snapshot);
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT {snapshot}; \
         SET LOCAL row_security = off; {}",
        rows::settings("SET LOCAL")
    )
}

/// The rows that the stream lacks, as they become events.
struct Lacking<'a> {
    client: &'a Client,
    params: &'a Params,
    options: &'a assemble::Options,
    since: Option<String>,
    next: Position,
}

impl Lacking<'_> {
    async fn publish(&mut self, outbox: &Outbox, append: &mut Append) -> Result<(), Failure> {
        let doing = format!("read {}", outbox.name);
        let rows = Rows::open(self.client, &outbox.mapping).await?;
        let unsent = Unsent::new(self.options, &outbox.mapping, &rows.columns());
        let unsent = unsent.map_err(|error| {
            let error = AssembleError::Mapping(error);
            relay::Error::Assemble(error).failure(self.params)
        })?;
        let lacking = outbox.lacking(self.since.as_deref());
        let select = rows.select(&format!("t WHERE {lacking} ORDER BY {}", outbox.order()));
        let declare = format!("DECLARE lacking NO SCROLL CURSOR FOR {select}");
        execute(self.client, &doing, &declare).await?;
        loop {
            let fetch = format!("FETCH {FETCH_ROWS} FROM lacking");
            let fetched = rows.read(&doing, &fetch).await?;
            if fetched.is_empty() {
                return execute(self.client, &doing, "CLOSE lacking").await;
            }
            let mut events = Vec::with_capacity(FETCH_ROWS);
            for row in fetched {
                events.push(self.event(&unsent, &row)?);
                fault::point("row to recover");
            }
            append.send(events).await?;
        }
    }

    fn event(&mut self, unsent: &Unsent<'_>, row: &Row) -> Result<Event, Failure> {
        let position = self.next;
        let index = position.index.checked_add(1).ok_or_else(|| {
            let cause = format!("positions can tell {} rows apart", u32::MAX);
            let fix = "recover the newest of them: --since TIME";
            let problem = Problem::new("too many rows are lacking", cause, fix);
            Failure::halt(Exit::CheckFailed, problem)
        })?;
        self.next.index = index;
        let values = row.iter().map(Option::as_deref).collect();
        let event = unsent.event(position, &now(), values);
        // The sink buries what cannot be one, or says that it must not.
        Ok(event.unwrap_or_else(|rejection| rejection.into_event()))
    }
}

/// RFC 3339, with microseconds like all that Postgres tells.
fn now() -> String {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_microsecond(now.microsecond()).unwrap_or(now);
    now.format(&Rfc3339).unwrap_or_default()
}
