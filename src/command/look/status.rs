//! `outjet status`, the part in Postgres: the slot, who holds it, how far behind it is and how much
//! WAL that costs; and how the stream stands.

mod watch;

use std::fmt;
use std::io;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::Client;

use super::record::{RecordRead, RecordStatus};
use crate::cli;
use crate::command::{Out, connect, unless_stalled, unwritten};
use crate::config::Config;
use crate::error::{Failure, Problem};
use crate::pg::catalog::{Facts, Server, Slot};
use crate::pg::params::Params;
use crate::preflight::Options;
use crate::sink::jetstream;

/// What `status --json` prints of Postgres. Fields are added, never renamed; LSNs are text as in
/// Postgres, sizes are bytes, what is not known is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The database.
    pub database: String,
    /// The server's version.
    pub server_version: String,
    /// The end of the WAL.
    pub current_lsn: String,
    /// The publication's name.
    pub publication: String,
    /// Whether it exists.
    pub publication_exists: bool,
    /// The slot's name.
    pub slot: String,
    /// Null if there is no such slot.
    pub slot_status: Option<SlotStatus>,
}

/// A slot, for `status --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotStatus {
    /// Somebody holds it: there is a leader.
    pub active: bool,
    /// Null if nobody holds it.
    pub holder: Option<HolderStatus>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it was lost (Postgres 17 and newer).
    pub invalidation_reason: Option<String>,
    /// What ends before it is published.
    pub confirmed_flush_lsn: Option<String>,
    /// WAL from here on is kept.
    pub restart_lsn: Option<String>,
    /// Written and not confirmed.
    pub lag_bytes: Option<u64>,
    /// WAL that the slot makes the server keep.
    pub retained_wal_bytes: Option<u64>,
    /// WAL that may still be written before the slot may be lost; null without a limit.
    pub safe_wal_bytes: Option<i64>,
    /// Standbys keep it in step (Postgres 17 and newer).
    pub failover: bool,
    /// WAL that is confirmed and kept all the same, for transactions that are still open.
    pub pinned_wal_bytes: Option<u64>,
    /// Since when nobody streams from it (Postgres 17 and newer).
    pub inactive_since: Option<String>,
    /// Transactions that the server wrote to disk to decode them.
    pub spill_transactions: u64,
    /// Their bytes.
    pub spill_bytes: u64,
    /// Transactions that the server sent before they were committed.
    pub stream_transactions: u64,
    /// Their bytes.
    pub stream_bytes: u64,
}

/// Who holds the slot, for `status --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HolderStatus {
    /// Its process id on the server.
    pub pid: i32,
    /// What it calls itself.
    pub application_name: Option<String>,
    /// Null for a unix socket, and where we may not see it.
    pub client_addr: Option<String>,
}

/// What `status --json` prints. Fields are added, never renamed; docs/status.md has them all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// When it was looked.
    pub at: Option<String>,
    /// The slot and what belongs to it; null if it cannot be read (`--watch`).
    pub postgres: Option<Status>,
    /// Null if it cannot be read; `problem` then says why.
    pub stream: Option<StreamStatus>,
    /// What cannot be read, and why.
    pub problem: Option<String>,
    /// How many dead letters there are; null if their stream does not exist or cannot be read.
    pub dead_letters: Option<u64>,
    /// What the leader keeps of what it has settled; null: there is none.
    pub record: Option<RecordStatus>,
    /// Why there is no record.
    pub no_record: Option<String>,
}

/// The stream, for `status --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StreamStatus {
    /// Its name.
    pub name: String,
    /// What it listens on.
    pub subjects: Vec<String>,
    /// How many messages it holds.
    pub messages: u64,
    /// The sequence number of the newest.
    pub last_sequence: u64,
}

/// Writes how Postgres and the stream stand, once or again and again.
pub async fn status_all(
    typed: &cli::Status,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<(), Failure> {
    let look = async || {
        let taken = Box::pin(Look::take(config, params));
        unless_stalled(params, taken).await
    };
    let first = look().await?;
    if typed.watch {
        return watch::watch(typed, first, look).await;
    }
    if typed.json {
        let text = serde_json::to_string_pretty(&first.report()).unwrap_or_default();
        return writeln!(out, "{text}").map_err(unwritten);
    }
    first.write(out).map_err(unwritten)
}

/// What was seen.
struct Look {
    postgres: Status,
    stream: Result<StreamStatus, Problem>,
    dead_letters: Option<u64>,
    record: Result<RecordStatus, String>,
}

impl Look {
    /// Connects to both, asks, and goes. Fails if Postgres cannot be asked.
    async fn take(config: &Config, params: &Params) -> Result<Self, Failure> {
        let control = connect(params).await?;
        let facts = facts(control.client(), &config.preflight_options()).await;
        control.close().await;
        let facts = facts?;
        let postgres = Status::new(&facts, &config.preflight_options());
        let options = config.sink_options();
        let mut letters = options.of_dead_letters();
        letters.stream.create = false;
        let mut options = options.of_stream();
        options.stream.create = false;
        let found = jetstream::inspect(&options).await;
        let stream = found
            .map(StreamStatus::new)
            .map_err(|error| error.failure(&options).problem);
        let dead_letters = match stream {
            Ok(_) => jetstream::inspect(&letters).await.ok(),
            Err(_) => None,
        };
        let record = match stream {
            Ok(_) => record(config, &facts.server.system_identifier).await,
            Err(_) => Err("the stream cannot be read".to_owned()),
        };
        Ok(Self {
            postgres,
            stream,
            dead_letters: dead_letters.map(|found| found.messages),
            record,
        })
    }

    fn report(&self) -> Report {
        let problem = self.stream.as_ref().err();
        Report {
            at: now(),
            postgres: Some(self.postgres.clone()),
            stream: self.stream.clone().ok(),
            problem: problem.map(|problem| format!("{}: {}", problem.problem, problem.cause)),
            dead_letters: self.dead_letters,
            record: self.record.clone().ok(),
            no_record: self.record.clone().err(),
        }
    }

    /// Writes it as lines of a name and a value.
    fn write(&self, out: Out<'_>) -> io::Result<()> {
        self.postgres.write(out)?;
        match &self.stream {
            Ok(stream) => writeln!(out, "stream        {stream}")?,
            Err(problem) => writeln!(out, "stream        {problem}")?,
        }
        match self.dead_letters {
            Some(0) | None => {}
            Some(letters) => {
                writeln!(out, "dead letters  {letters} (`outjet dead-letters list`)")?;
            }
        }
        match (&self.record, &self.stream) {
            (Ok(record), _) => writeln!(out, "record        {record}"),
            (Err(why), Ok(_)) => writeln!(out, "record        none: {why}"),
            (Err(_), Err(_)) => Ok(()),
        }
    }
}

/// The record, or why there is none.
async fn record(config: &Config, system: &str) -> Result<RecordStatus, String> {
    match Box::pin(RecordRead::read(config, system)).await {
        Ok(found) => {
            let slot = &config.postgres.slot;
            found.record.map(|record| RecordStatus::new(&record, slot))
        }
        Err(failure) => {
            let Problem { problem, cause, .. } = failure.problem;
            Err(format!("{problem}: {cause}"))
        }
    }
}

fn now() -> Option<String> {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    now.format(&Rfc3339).ok()
}

impl StreamStatus {
    fn new(found: jetstream::Inspection) -> Self {
        let jetstream::Inspection {
            name,
            subjects,
            messages,
            last_sequence,
            ..
        } = found;
        Self {
            name,
            subjects,
            messages,
            last_sequence,
        }
    }
}

impl fmt::Display for StreamStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            subjects,
            messages,
            last_sequence,
        } = self;
        let subjects = subjects.join(", ");
        write!(
            f,
            "{name} ({subjects}), {messages} messages, last sequence {last_sequence}"
        )
    }
}

/// Reads the slot and what belongs to it.
pub async fn status(client: &Client, options: &Options) -> Result<Status, Failure> {
    Ok(Status::new(&facts(client, options).await?, options))
}

async fn facts(client: &Client, options: &Options) -> Result<Facts, Failure> {
    let facts = Facts::read(client, &options.slot, &options.publication, &[]).await;
    facts.map_err(|error| error.failure())
}

impl Status {
    fn new(facts: &Facts, options: &Options) -> Self {
        Status {
            database: facts.server.database.clone(),
            server_version: facts.server.version.clone(),
            current_lsn: facts.server.current.to_string(),
            publication: options.publication.clone(),
            publication_exists: facts.publication.is_some(),
            slot: options.slot.clone(),
            slot_status: facts
                .slot
                .as_ref()
                .map(|slot| SlotStatus::new(slot, &facts.server)),
        }
    }

    /// Writes it as lines of a name and a value.
    pub fn write(&self, out: Out<'_>) -> io::Result<()> {
        let missing = if self.publication_exists {
            ""
        } else {
            " (does not exist)"
        };
        writeln!(
            out,
            "database      {}, Postgres {}",
            self.database, self.server_version
        )?;
        writeln!(out, "publication   {}{missing}", self.publication)?;
        let Some(slot) = &self.slot_status else {
            return writeln!(out, "slot          {} (does not exist)", self.slot);
        };
        let state = slot.wal_status.as_deref().unwrap_or("being made");
        let reason = slot.invalidation_reason.as_deref();
        let reason = reason
            .map(|reason| format!(" ({reason})"))
            .unwrap_or_default();
        writeln!(out, "slot          {}, {state}{reason}", self.slot)?;
        writeln!(out, "leader        {}", slot.leader())?;
        let confirmed = slot.confirmed_flush_lsn.as_deref().unwrap_or("nothing");
        writeln!(out, "confirmed     {confirmed} of {}", self.current_lsn)?;
        writeln!(out, "lag           {}", size(slot.lag_bytes))?;
        writeln!(out, "retained WAL  {}", size(slot.retained_wal_bytes))?;
        if let Some(pinned) = slot
            .pinned_wal_bytes
            .filter(|pinned| *pinned >= PINNED_BYTES_MIN)
        {
            let pinned = size(Some(pinned));
            writeln!(
                out,
                "              {pinned} of it for transactions that are still open"
            )?;
        }
        if slot.spill_bytes > 0 {
            let (bytes, transactions) = (size(Some(slot.spill_bytes)), slot.spill_transactions);
            writeln!(
                out,
                "spilled       {bytes}, {transactions} transactions larger than \
                 logical_decoding_work_mem"
            )?;
        }
        match slot.safe_wal_bytes {
            Some(left) => {
                let left = size(u64::try_from(left).ok().or(Some(0)));
                writeln!(out, "may grow by   {left}, then the slot may be lost")
            }
            None => writeln!(out, "may grow by   no limit (max_slot_wal_keep_size)"),
        }
    }
}

impl SlotStatus {
    fn new(slot: &Slot, server: &Server) -> Self {
        SlotStatus {
            active: slot.active,
            holder: slot.holder.as_ref().map(|holder| HolderStatus {
                pid: holder.pid,
                application_name: holder.application_name.clone(),
                client_addr: holder.client_addr.clone(),
            }),
            wal_status: slot.wal_status.clone(),
            invalidation_reason: slot.invalidation_reason.clone(),
            confirmed_flush_lsn: slot.confirmed_flush.map(|lsn| lsn.to_string()),
            restart_lsn: slot.restart.map(|lsn| lsn.to_string()),
            lag_bytes: slot.lag_bytes(server.current),
            retained_wal_bytes: slot.retained_wal_bytes(server.current),
            safe_wal_bytes: slot.safe_wal_size,
            failover: slot.failover,
            pinned_wal_bytes: slot.pinned_wal_bytes(),
            inactive_since: slot
                .inactive_since
                .and_then(|at| OffsetDateTime::from(at).format(&Rfc3339).ok()),
            spill_transactions: slot.decoding.spill_transactions,
            spill_bytes: slot.decoding.spill_bytes,
            stream_transactions: slot.decoding.stream_transactions,
            stream_bytes: slot.decoding.stream_bytes,
        }
    }

    fn leader(&self) -> String {
        let Some(holder) = &self.holder else {
            return "none".to_owned();
        };
        let name = holder.application_name.as_deref().unwrap_or("unknown");
        let addr = holder.client_addr.as_deref().unwrap_or("a local socket");
        format!("{name}, pid {}, from {addr}", holder.pid)
    }
}

/// As much is kept without any open transaction until the server has looked (15 s): one segment.
const PINNED_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// Three digits and a unit.
fn size(bytes: Option<u64>) -> String {
    let Some(bytes) = bytes else {
        return "unknown".to_owned();
    };
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut scaled = bytes as f64;
    let mut unit = "B";
    for larger in units {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = larger;
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{scaled:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::{facts, options};

    fn text(facts: &Facts) -> String {
        let mut out = Vec::new();
        let status = Status::new(facts, &options());
        status.write(&mut out).expect("memory takes everything");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn lag_is_what_is_written_and_not_confirmed() {
        assert_eq!(
            text(&facts()),
            "database      app, Postgres 18.6\n\
             publication   outjet\n\
             slot          outjet, reserved\n\
             leader        none\n\
             confirmed     0/200 of 0/300\n\
             lag           256 B\n\
             retained WAL  512 B\n\
             may grow by   no limit (max_slot_wal_keep_size)\n"
        );
    }

    #[test]
    fn missing_slot_is_said_and_null_in_json() {
        let mut facts = facts();
        facts.slot = None;
        assert!(text(&facts).ends_with("slot          outjet (does not exist)\n"));
        let json = serde_json::to_value(Status::new(&facts, &options())).expect("JSON");
        assert_eq!(json["slot_status"], serde_json::Value::Null);
    }

    #[test]
    fn sizes_have_the_unit_that_leaves_them_short() {
        assert_eq!(size(Some(1023)), "1023 B");
        assert_eq!(size(Some(1024)), "1.0 KiB");
        assert_eq!(size(Some(3 << 30)), "3.0 GiB");
        assert_eq!(size(None), "unknown");
    }
}
