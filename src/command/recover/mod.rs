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
//! A slot that somebody has moved stays: it holds what no table has, messages and rows that were
//! deleted since. What it is to send ([`coming`]) is left to it.
//!
//! ```text
//!  WAL   ──e1──e2──e3──e4──e5──e6──►     C: the highest that may have been confirmed
//!           C       slot    snapshot     e2 is in no slot: appended; e4 … come through the slot
//! ```
//!
//! Positions of appended rows lie one below where the slot begins, numbered: behind every commit
//! that was published before, and before every commit that it will send, the first of which may
//! begin at that point itself. None begins one below it, as records are aligned.
//!
//! Before the slot has its name, or is left alone, the record says where it begins ([`state`]).

mod append;
mod coming;
mod state;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use tokio_postgres::Client;

use self::append::Append;
use self::coming::Coming;
use self::state::{Slots, State};
use crate::cli;
use crate::command::progress::Progress;
use crate::command::rows::{self, Row, Rows};
use crate::command::set_up::{birth, setup};
use crate::command::stored::{self, Outbox, execute};
use crate::command::{Out, connect, facts, unwritten};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::event::assemble::{self, AssembleError, Unsent};
use crate::event::{Event, Position};
use crate::fault;
use crate::lead::relay;
use crate::lead::watermark::Gap;
use crate::lsn::Lsn;
use crate::pg::catalog::{Facts, Slot, StatementError};
use crate::pg::ddl;
use crate::pg::name::TableName;
use crate::pg::params::Params;
use crate::pg::replication::Session;
use crate::preflight;

/// Rows that are read at once.
const FETCH_ROWS: usize = 64;

/// Brings the slot back, with all that the stream lacks; says so if there is nothing to do.
pub(super) async fn recover(
    typed: &cli::Recover,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<(), Failure> {
    let control = connect(params).await?;
    let recovery = Recovery {
        client: control.client(),
        config,
        params,
        wanted: config.preflight_options(),
        typed,
    };
    let done = Box::pin(recovery.run(out)).await;
    control.close().await;
    done
}

/// Sets up all but the slot, and makes that with the rows that are in the tables already.
pub(super) async fn backfill(
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<(), Failure> {
    let control = connect(params).await?;
    let done = setup::all_but_the_slot(control.client(), &config.preflight_options(), out).await;
    control.close().await;
    done?;
    let options = config.sink_options();
    setup::set_up_streams(&options, false, out).await?;
    let typed = cli::Recover::default();
    Box::pin(recover(&typed, config, params, out)).await
}

struct Recovery<'a> {
    client: &'a Client,
    config: &'a Config,
    params: &'a Params,
    wanted: preflight::Options,
    typed: &'a cli::Recover,
}

/// The slot that is made, and the moment that it begins at.
struct Made {
    /// The snapshot lives as long.
    session: Session,
    consistent: Lsn,
    snapshot: String,
}

/// What is to be compared.
struct Work<'a> {
    assemble: &'a assemble::Options,
    outboxes: &'a [Outbox],
    state: &'a State,
    /// Where the slot begins that is there.
    kept: Option<Lsn>,
}

/// What became of the rows.
#[derive(Default)]
struct Published {
    appended: u64,
    /// Rows that a poller has published, by table.
    left_out: Vec<(TableName, u64)>,
    /// Events that the slot would send although the stream holds them.
    doubled: u64,
}

impl Recovery<'_> {
    async fn run(&self, out: Out<'_>) -> Result<(), Failure> {
        let facts = facts::read(self.client, &self.wanted).await?;
        facts::refuse(&preflight::judge_server(&facts))?;
        let left = self.left_over().await?;
        let (session, lineage) = birth::identify(self.params, &self.wanted.slot).await?;
        let state = State::find((self.config, self.client), lineage, &facts).await?;
        if let Some(other) = state.other_house() {
            if !self.typed.yes {
                return Err(state.moved_house(other));
            }
            writeln!(out, "moving    from {other} to {}", state.source()).map_err(unwritten)?;
        }
        let facts = self.set_up(facts, out).await?;
        let kept = facts.slot.as_ref().filter(|slot| !slot.lost());
        if let Some(slot) = kept {
            facts::refuse(&preflight::judge_slot(&facts, &self.wanted))?;
            if !state.is_open() {
                if left {
                    // The last call ended behind its last step but one.
                    self.finish(&facts).await?;
                }
                let name = &slot.name;
                return writeln!(out, "exists    replication slot {name}").map_err(unwritten);
            }
            refuse_active(slot)?;
        }
        if left {
            self.drop_slot(&self.recovering()).await?;
        }
        let assemble = self.config.assemble_options(&facts.server.database)?;
        let outboxes = match self.typed.accept {
            // Nothing is compared.
            true => Vec::new(),
            false => Outbox::all(&assemble.tables, &facts)?,
        };
        facts::tell_open_writers(self.client, out).await?;
        let made = self.make(session).await?;
        fault::point("slot made to recover");
        let consistent = made.consistent;
        let kept = kept.and_then(|slot| slot.confirmed_flush);
        let published = match self.typed.accept {
            true => {
                made.session.close().await;
                self.tell_gap(&state, kept.unwrap_or(consistent), out)?;
                Published::default()
            }
            false => {
                let work = Work {
                    assemble: &assemble,
                    outboxes: &outboxes,
                    state: &state,
                    kept,
                };
                Box::pin(self.publish(&work, made, out)).await?
            }
        };
        fault::point("recovered rows appended");
        match kept.filter(|_| published.doubled == 0) {
            Some(at) => self.keep((&facts, &state), at, out).await,
            None => self.replace((&facts, &state), consistent, out).await,
        }
    }

    /// Makes the publication if there is no slot either: `outjet drop` takes both.
    async fn set_up(&self, mut facts: Facts, out: Out<'_>) -> Result<Facts, Failure> {
        if facts.slot.is_none() && facts.publication.is_none() {
            setup::all_but_the_slot(self.client, &self.wanted, out).await?;
            facts = facts::read(self.client, &self.wanted).await?;
        }
        facts::refuse(&preflight::judge_tables(&facts, &self.wanted))?;
        facts::refuse(&preflight::judge_publication(&facts, &self.wanted))?;
        Ok(facts)
    }

    /// Says how large the gap is that is accepted.
    fn tell_gap(&self, state: &State, to: Lsn, out: Out<'_>) -> Result<(), Failure> {
        match state.gap(to) {
            Some(Gap { from, to, .. }) => writeln!(
                out,
                "accepted  gap from {from} to {to}: {} bytes of WAL were not published",
                to.bytes_since(from)
            ),
            None => writeln!(out, "accepted  gap of unknown size, up to {to}"),
        }
        .map_err(unwritten)
    }

    /// Appends what the stream lacks, and says how much that was.
    async fn publish(
        &self,
        work: &Work<'_>,
        made: Made,
        out: Out<'_>,
    ) -> Result<Published, Failure> {
        let published = Box::pin(self.append(work, made)).await?;
        for (table, rows) in &published.left_out {
            writeln!(out, "left out  {rows} rows of {table}: published already")
                .map_err(unwritten)?;
        }
        writeln!(out, "appended  {} events", published.appended).map_err(unwritten)?;
        Ok(published)
    }

    /// The slot stays where it is.
    async fn keep(
        &self,
        (facts, state): (&Facts, &State),
        at: Lsn,
        out: Out<'_>,
    ) -> Result<(), Failure> {
        self.record(state, Slots::Kept(at), out).await?;
        fault::point("recovered slot recorded");
        self.finish(facts).await?;
        let name = &self.wanted.slot;
        writeln!(
            out,
            "kept      replication slot {name}, which begins at {at}"
        )
        .map_err(unwritten)
    }

    /// The new slot gets the name.
    async fn replace(
        &self,
        (facts, state): (&Facts, &State),
        at: Lsn,
        out: Out<'_>,
    ) -> Result<(), Failure> {
        if facts.slot.is_some() {
            self.drop_slot(&self.wanted.slot).await?;
            fault::point("lost slot dropped");
        }
        self.record(state, Slots::Made(at), out).await?;
        fault::point("recovered slot recorded");
        let copy = ddl::copy_slot(&self.recovering(), &self.wanted.slot);
        execute(self.client, "copy the slot", &copy).await?;
        fault::point("slot copied");
        self.finish(facts).await?;
        writeln!(out, "created   replication slot {}", self.wanted.slot).map_err(unwritten)
    }

    async fn record(&self, state: &State, slot: Slots, out: Out<'_>) -> Result<(), Failure> {
        let options = self.config.sink_options();
        let kept = Box::pin(state.record(&options, slot)).await?;
        if let Err(why) = kept {
            writeln!(out, "record    not kept: {why}").map_err(unwritten)?;
        }
        Ok(())
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

    async fn make(&self, mut session: Session) -> Result<Made, Failure> {
        // The snapshot is good until the session's next command.
        let create = ddl::create_slot_with_snapshot(&self.recovering());
        let row = session
            .query(&create)
            .await
            .map_err(|error| error.failure(self.params))?
            .into_iter()
            .next();
        let mut values = row.unwrap_or_default().into_iter().flatten().skip(1);
        let consistent = values.next().and_then(|lsn| lsn.parse().ok());
        match (consistent, values.next()) {
            (Some(consistent), Some(snapshot)) => Ok(Made {
                session,
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

    /// Appends what the snapshot sees, the stream lacks, and a slot that is kept does not send.
    async fn append(&self, work: &Work<'_>, made: Made) -> Result<Published, Failure> {
        let Work {
            assemble,
            outboxes,
            state,
            kept,
        } = *work;
        let client = self.client;
        let begin = begin(&made.snapshot);
        execute(client, "take the slot's snapshot", &begin).await?;
        let coming = Coming {
            client,
            params: self.params,
            wanted: &self.wanted,
        };
        if kept.is_some() {
            Box::pin(coming.note(assemble, made.consistent)).await?;
        }
        let mut options = self.config.sink_options();
        options.hold = std::time::Duration::ZERO;
        options.takes_over = state.other_house().is_some();
        let begun = Instant::now();
        let tally = stored::load(client, &options, state.source()).await?;
        let reading = begun.elapsed();
        options.read_to = Some(tally.read_to);
        let since = stored::horizon(&tally, self.typed.since.as_deref())?;
        let doubled = match kept {
            Some(_) => coming.count_as_stored(options.takes_over).await?,
            None => 0,
        };
        let window = self.config.relay_options().window;
        let counted = self.count(outboxes, since.as_deref()).await?;
        let rows = counted.iter().map(|(lacking, _)| lacking).sum();
        let progress = Progress::or_lines(rows, "events appended");
        let lineage = state.lineage().clone();
        let append = Append::open((options, window), lineage, (progress, reading));
        let mut append = append.await?;
        let begins_at = kept.filter(|_| doubled == 0).unwrap_or(made.consistent);
        let mut lacking = Lacking {
            client,
            params: self.params,
            options: assemble,
            since,
            next: Position {
                commit: begins_at.as_u64() - 1,
                index: 0,
            },
        };
        for outbox in outboxes {
            Box::pin(lacking.publish(outbox, &mut append)).await?;
        }
        let appended = append.finish().await?;
        execute(client, "end a transaction", "COMMIT").await?;
        made.session.close().await;
        let tables = outboxes.iter().map(|outbox| outbox.name.clone());
        let left_out = tables.zip(counted.into_iter().map(|(_, left_out)| left_out));
        Ok(Published {
            appended,
            left_out: left_out.filter(|(_, rows)| *rows > 0).collect(),
            doubled,
        })
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
            let (lacking, left_out): (i64, i64) = counts.map_err(|error| {
                StatementError::new(format!("count {}", outbox.name), error).failure()
            })?;
            counted.push((lacking.unsigned_abs(), left_out.unsigned_abs()));
        }
        Ok(counted)
    }
}

/// A leader would publish meanwhile, and confirm.
fn refuse_active(slot: &Slot) -> Result<(), Failure> {
    if !slot.active {
        return Ok(());
    }
    let holder = match &slot.holder {
        Some(holder) => format!("held by {holder}"),
        None => "held by a backend that is just ending".to_owned(),
    };
    let fix = "stop every outjet first, then `outjet recover`";
    let problem = format!("replication slot \"{}\" is in use", slot.name);
    Err(Failure::halt(
        Exit::CheckFailed,
        Problem::new(problem, holder, fix),
    ))
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
