//! The command line: what can be typed, and nothing about what it does.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ColorChoice, Parser, Subcommand};

use crate::config;

/// Carries a Postgres outbox to NATS JetStream, from the write-ahead log.
#[derive(Debug, Parser)]
#[command(
    name = "outjet",
    version,
    arg_required_else_help = true,
    propagate_version = true,
    after_help = "\
Examples:
  export DATABASE_URL=postgres://outjet@db/app NATS_URL=nats://nats:4222
  outjet setup --dry-run   show the SQL and the stream that setup would make
  outjet setup             make them
  outjet check             say what is missing, with the command that mends it
  outjet run               publish; start a second copy anywhere to stand by

Exit codes: 0 done, 1 a check failed, 2 usage, 65 halted (--exit-on-halt), 69 a server cannot be
reached, 70 a bug in outjet, 77 not permitted, 78 configuration."
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Configuration file [default: ./outjet.yaml, else /etc/outjet/outjet.yaml, else none]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set a key of the configuration, as in --set stream.name=ORDERS (repeatable)
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Least severe message to log: error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How log lines look: auto, text or json
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Colours: auto (on a terminal, unless NO_COLOR is set), always or never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true
    )]
    pub color: ColorChoice,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish, or stand by while another copy does
    Run(Run),
    /// Create what is missing: schema, publication, slot, stream
    Setup(Setup),
    /// Check every prerequisite; each failure comes with its fix
    #[command(after_help = "Exit codes: 0 nothing is missing, 1 something is. It changes nothing.")]
    Check,
    /// Show the slot, the stream and how far publishing has come
    Status(Status),
    /// Find out how an outbox table that is there already can be read
    Inspect(Inspect),
    /// Write test events into the outbox
    Emit(Emit),
    /// Follow what is committed, as it would be published, without touching the real slot
    Tail(Tail),
    /// Commit test events and watch them arrive: what these servers and this network do
    Bench(Bench),
    /// Compare the outbox tables with the stream; exit with 1 if they differ
    Verify(Verify),
    /// Compare outjet's stream with that of an old relay beside it; exit with 1 if they differ
    Compare(Compare),
    /// Come back from a lost or missing slot: publish what the stream lacks, from the tables
    Recover(Recover),
    /// Look after the events that could not be published
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Look after the events that are not due yet
    #[command(subcommand)]
    Delayed(Delayed),
    /// Publish rows of the outbox once more
    Replay(Replay),
    /// Show the configuration
    #[command(subcommand)]
    Config(Config),
    /// Remove slot and publication; keeps the tables
    Drop(Drop),
    /// Print the completions for a shell
    #[command(after_help = "Example: outjet completions bash > /etc/bash_completion.d/outjet")]
    Completions(Completions),
    /// Print the manual page
    #[command(after_help = "Example: outjet man | man -l -")]
    Man,
}

/// `run`.
#[derive(Args, Debug)]
#[command(after_help = "\
A SIGTERM or an interrupt ends it cleanly: what is under way is stored and confirmed first.
It waits for ever for servers that are away. Halted, it stays up and goes on once the
cause is gone.")]
pub struct Run {
    /// Do what `outjet setup` does first
    #[arg(long)]
    pub setup: bool,
    /// Exit with 65 instead of waiting when a person must act
    #[arg(long)]
    pub exit_on_halt: bool,
}

/// `setup`.
#[derive(Args, Debug)]
#[command(
    after_help = "It can be run again at any time: what exists is left as it is.

Examples:
  outjet setup --dry-run
  outjet setup
  outjet setup --backfill   for a table that has rows before its first slot"
)]
pub struct Setup {
    /// Print the SQL and the stream's configuration; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// With a new slot, publish the rows that are in the tables already
    #[arg(long, conflicts_with = "dry_run")]
    pub backfill: bool,
}

/// `status`.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes: 0 shown, 69 a server cannot be reached. What the fields of --json mean stands in
docs/status.md. With --watch it looks again and again, on a terminal in place, elsewhere a line for
each look; only the first look may fail.")]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Look again and again, until interrupted
    #[arg(long)]
    pub watch: bool,
    /// Time between looks
    #[arg(long, value_name = "DURATION", value_parser = interval)]
    #[arg(requires = "watch", default_value = "1s")]
    pub interval: Duration,
}

/// `inspect`.
#[derive(Args, Debug)]
#[command(after_help = "\
It prints lines for outjet.yaml and, as a comment, what the newest row would become.
Example: outjet inspect public.outboxes > outjet.yaml")]
pub struct Inspect {
    /// Name of the table, with its schema
    #[arg(value_name = "TABLE")]
    pub table: String,
}

/// `emit`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  outjet emit
  outjet emit --aggregatetype order --aggregateid 42 --type OrderPlaced --payload '{\"total\": 9.5}'
  outjet emit --count 1000 --header priority=low")]
pub struct Emit {
    /// What kind of thing the event is about
    #[arg(long, value_name = "TEXT", default_value = "test")]
    pub aggregatetype: String,
    /// Which one
    #[arg(long, value_name = "TEXT", default_value = "1")]
    pub aggregateid: String,
    /// What happened
    #[arg(long = "type", value_name = "TEXT", default_value = "TestEvent")]
    pub event_type: String,
    /// Body
    #[arg(
        long,
        value_name = "JSON",
        default_value = r#"{"from": "outjet emit"}"#
    )]
    pub payload: String,
    /// Subject, instead of the one that publish.subject makes
    #[arg(long, value_name = "SUBJECT")]
    pub topic: Option<String>,
    /// Header of the message (repeatable)
    #[arg(long = "header", value_name = "KEY=VALUE", value_parser = header)]
    pub headers: Vec<(String, String)>,
    /// Whose event it is
    #[arg(long, value_name = "TEXT")]
    pub tenant: Option<String>,
    /// Number of events, each in a transaction of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one())]
    pub count: u64,
}

/// `tail`.
#[derive(Args, Debug)]
#[command(after_help = "\
It begins with what is committed from now on, and ends with an interrupt or when nobody reads its
output. Needs the right REPLICATION and a free replication slot; while it runs, Postgres keeps
the WAL that it has not read.

Examples:
  outjet tail
  outjet tail --subject 'events.order.>'
  outjet tail --json --limit 10 | jq .payload")]
pub struct Tail {
    /// Print a line of JSON for each event, with headers and body
    #[arg(long)]
    pub json: bool,
    /// Only events whose subject falls under this, with * and > as in NATS
    #[arg(long, value_name = "FILTER")]
    pub subject: Option<String>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub limit: Option<u64>,
}

/// `bench`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
It needs a leader (`outjet run`), here or elsewhere, and the table outbox.events. Consumers of the
stream see its events, of aggregatetype outjet_bench, unless they leave out the subject (by default
events.outjet_bench.>). They stay in the table and in the stream until retention removes them.
Interrupted, it says what was measured so far.
Exit codes: 0 each event arrived once and in commit order, 1 one did not, or nobody leads.

Examples:
  outjet bench
  outjet bench --rate 500/s --events 30000 --json
  outjet bench --per-transaction 10 --connections 16 --bytes 2000")]
pub struct Bench {
    /// Number of events
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub events: u64,
    /// Commit so many a second [default: as fast as it goes]
    #[arg(long, value_name = "N/s", value_parser = rate)]
    pub rate: Option<u32>,
    /// Events in each transaction
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub per_transaction: u64,
    /// Connections that commit, each one transaction after another
    #[arg(long, value_name = "N", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub connections: u16,
    /// Length of each payload, a text in JSON
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=16_777_216))]
    pub bytes: u32,
    /// Give up when a transaction takes longer, or when none of the outstanding events arrives for
    /// so long
    #[arg(long, value_name = "DURATION", value_parser = config::duration, default_value = "10s")]
    pub wait: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `config`.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// The values in effect, each with where it came from; secrets are hidden
    Show,
    /// Every key with its default and its meaning: a file to start from
    #[command(after_help = "Example: outjet config default > outjet.yaml")]
    Default,
    /// The JSON Schema of the file, for editors
    Schema,
}

/// `drop`.
#[derive(Args, Debug)]
#[command(after_help = "Tables and stream stay. A new slot would miss events not yet published.")]
pub struct Drop {
    /// Even if there are events that were not published yet
    #[arg(long)]
    pub force: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// `verify`.
#[derive(Args, Debug)]
#[command(after_help = "\
It reads the whole stream, and wants SELECT on the tables and TEMPORARY on the database.
Rows that were dropped from the tables cannot be compared.
Exit codes: 0 they agree, 1 they differ.

Examples:
  outjet verify
  outjet verify --since '2026-11-21 12:00' --json")]
pub struct Verify {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Compare rows created then or later; UTC unless it says otherwise [default: what the stream
    /// reaches back]
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Give outjet this long to publish what was committed just now
    #[arg(long, value_name = "DURATION", value_parser = config::duration, default_value = "10s")]
    pub wait: Duration,
}

/// `compare`.
#[derive(Args, Debug)]
#[command(after_help = "\
It reads both streams up to what was their last message when it began, and wants TEMPORARY on the
database, where it compares them. What stands before the first or behind the last event that both
have is not compared.
Exit codes: 0 they agree, 1 they differ.

Examples:
  outjet compare --with EVENTS
  outjet compare --with EVENTS --id-header Event-ID --bodies --since '2026-11-21 12:00'
  outjet compare --with LEADS --id-json idempotency_key --our-id-header Outjet-Dedup-Key")]
pub struct Compare {
    /// The old relay's stream
    #[arg(long = "with", value_name = "STREAM")]
    pub stream: String,
    /// What stands before outjet's subjects, without the dot [default: publish.subject_prefix]
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Header of the old relay's messages that holds the id [default: Nats-Msg-Id]
    #[arg(long, value_name = "NAME")]
    pub id_header: Option<String>,
    /// Where in the old relay's bodies, which are JSON, the id stands, as in meta.id
    #[arg(long, value_name = "PATH", conflicts_with = "id_header")]
    pub id_json: Option<String>,
    /// Header of outjet's messages that holds the same id; where it is missing, the row's id does
    #[arg(long, value_name = "NAME")]
    pub our_id_header: Option<String>,
    /// Only events whose subject, without the prefix, falls under this, with * and > as in NATS
    #[arg(long, value_name = "FILTER")]
    pub subject: Option<String>,
    /// Compare what was stored then or later; UTC unless it says otherwise
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// One relay may be so much later than the other
    #[arg(long, value_name = "DURATION", value_parser = config::duration, default_value = "10s")]
    pub settle: Duration,
    /// Bodies must be the same, byte for byte
    #[arg(long)]
    pub bodies: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `recover`.
#[derive(Args, Debug, Default)]
#[command(after_help = "\
Where the slot is missing or lost it makes a new one; one that somebody has moved or made again
stays, and the gap before it is closed. Copies that had halted then go on by themselves. Rows that
are no more in the tables cannot be published. It can be interrupted at any time, and finishes when
it is run again. It wants SELECT on the tables and TEMPORARY on the database.

Examples:
  outjet recover
  outjet recover --accept   the gap is known, and nothing of it is to be published
  outjet recover --yes      this cluster has taken the place of the one that wrote the stream")]
pub struct Recover {
    /// Rows created before then were published; UTC unless it says otherwise [default: what the
    /// stream tells]
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Publish nothing: take the gap as it is, and say how large it is
    #[arg(long, conflicts_with = "since")]
    pub accept: bool,
    /// Take the place of another cluster: a restored dump, an upgrade, another provider
    #[arg(short, long)]
    pub yes: bool,
}

/// `dead-letters`.
#[derive(Debug, Subcommand)]
pub enum DeadLetters {
    /// List them, oldest first
    List(ListMessages),
    /// Show one: its headers and what was kept of its body
    Show(ShowDeadLetter),
    /// Publish their rows again, as they are now, and delete the letters once that is done
    #[command(after_help = "\
What goes out again is marked with the header Outjet-Replay. A letter stays if its row is gone, or
if publishing it is not seen within a minute; ended at any moment, it may be published twice.")]
    Retry(NamedDeadLetters),
    /// Delete them for good
    #[command(after_help = "\
A letter that was stored within the last minutes may come back: Postgres sends its row again
after a crash.")]
    Drop(NamedDeadLetters),
}

/// `dead-letters list` and `delayed list`.
#[derive(Args, Debug)]
pub struct ListMessages {
    /// Print a line of JSON for each
    #[arg(long)]
    pub json: bool,
    /// The first sequence number that is listed
    #[arg(long, value_name = "SEQ", default_value_t = 1)]
    pub from: u64,
    /// The most that are listed
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u64,
}

/// `dead-letters show`.
#[derive(Args, Debug)]
pub struct ShowDeadLetter {
    /// Its sequence number, as `list` shows it
    #[arg(value_name = "SEQ")]
    pub sequence: u64,
}

/// `dead-letters retry` and `drop`.
#[derive(Args, Debug)]
pub struct NamedDeadLetters {
    /// Their sequence numbers, as `list` shows them
    #[arg(value_name = "SEQ", required_unless_present = "all")]
    pub sequences: Vec<u64>,
    /// All of them
    #[arg(long, conflicts_with = "sequences")]
    pub all: bool,
}

/// `delayed`.
#[derive(Debug, Subcommand)]
pub enum Delayed {
    /// List them, in the order of their commits
    List(ListMessages),
    /// Remove them for good: they do not appear any more
    Cancel(CancelDelayed),
}

/// `delayed cancel`.
#[derive(Args, Debug)]
pub struct CancelDelayed {
    /// Their ids, as `list` shows them
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
}

/// `replay`.
#[derive(Args, Debug)]
#[command(after_help = "\
The rows go to whoever leads, who publishes them in their turn, oldest first, marked with the header
Outjet-Replay and with the same ids. Several conditions must hold together.

Examples:
  outjet replay --since '2026-11-20 08:00' --until '2026-11-20 09:00' --dry-run
  outjet replay --aggregate order:42
  outjet replay --where \"payload->>'state' = 'placed'\" --rate 500/s
  outjet replay --all --subject-prefix events.replay.")]
#[group(skip)]
#[command(group = clap::ArgGroup::new("selection").required(true).multiple(true)
    .args(["since", "until", "id", "aggregate", "condition", "all"]))]
pub struct Replay {
    /// Table, if several are configured
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub table: Option<String>,
    /// Rows created then or later; UTC unless it says otherwise
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Rows created before then
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// The row with this id (repeatable)
    #[arg(long, value_name = "ID")]
    pub id: Vec<String>,
    /// Rows of one aggregate
    #[arg(long, value_name = "TYPE:ID", value_parser = aggregate)]
    pub aggregate: Option<(String, String)>,
    /// Rows for which this holds, in SQL
    #[arg(long = "where", value_name = "CONDITION")]
    pub condition: Option<String>,
    /// Every row
    #[arg(long, conflicts_with_all = ["since", "until", "id", "aggregate", "condition"])]
    pub all: bool,
    /// At most so many a second, so that others are not kept waiting
    #[arg(long, value_name = "N/s", value_parser = rate)]
    pub rate: Option<u32>,
    /// What stands before each subject, with its dot; the stream must cover it
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true
    )]
    pub subject_prefix: String,
    /// Say how many rows and which come first; publish nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `completions`.
#[derive(Args, Debug)]
pub struct Completions {
    /// bash, zsh, fish, elvish or powershell
    pub shell: clap_complete::Shell,
}

fn at_least_one() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..)
}

/// `TYPE:ID`.
fn aggregate(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once(':');
    let (kind, id) = parts.ok_or_else(|| "write TYPE:ID, as in order:42".to_owned())?;
    Ok((kind.to_owned(), id.to_owned()))
}

/// `500/s`, or `500`.
fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).parse().ok();
    let number = number.filter(|number| *number > 0);
    number.ok_or_else(|| "write a number of events a second, as in 500/s".to_owned())
}

/// Each look connects anew, so not too often.
fn interval(text: &str) -> Result<Duration, String> {
    match config::duration(text)? {
        interval if interval >= Duration::from_millis(100) => Ok(interval),
        _ => Err("at least 100ms".to_owned()),
    }
}

/// `KEY=VALUE`.
fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_argument_is_declared_consistently() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_and_after_the_command() {
        let typed = [
            "outjet",
            "-c",
            "a.yaml",
            "run",
            "--set",
            "log.level=warn",
            "--exit-on-halt",
        ];
        let cli = Cli::try_parse_from(typed).unwrap();
        assert_eq!(cli.global.config, Some(PathBuf::from("a.yaml")));
        assert_eq!(cli.global.set, ["log.level=warn"]);
        assert!(matches!(
            cli.command,
            Command::Run(Run {
                setup: false,
                exit_on_halt: true
            })
        ));
    }

    #[test]
    fn a_header_keeps_every_equals_sign_but_the_first() {
        let cli = Cli::try_parse_from(["outjet", "emit", "--header", "a=b=c"]).unwrap();
        let Command::Emit(emit) = cli.command else {
            panic!("not emit: {:?}", cli.command);
        };
        assert_eq!(emit.headers, [("a".to_owned(), "b=c".to_owned())]);
    }

    #[test]
    fn replay_wants_to_be_told_what_and_never_guesses_that_it_is_everything() {
        let typed = |words: &[&str]| {
            let words = ["outjet", "replay"].iter().chain(words);
            match Cli::try_parse_from(words).map(|cli| cli.command) {
                Ok(Command::Replay(replay)) => Some(replay),
                _ => None,
            }
        };
        assert!(typed(&[]).is_none());
        assert!(typed(&["--rate", "5", "--dry-run"]).is_none());
        assert!(typed(&["--all", "--id", "7"]).is_none());
        assert!(typed(&["--all", "--rate", "0/s"]).is_none());
        let both = typed(&[
            "--since",
            "yesterday",
            "--aggregate",
            "a:b:c",
            "--rate",
            "5/s",
        ]);
        let both = both.unwrap();
        assert_eq!(both.aggregate, Some(("a".to_owned(), "b:c".to_owned())));
        assert_eq!(both.rate, Some(5));
    }

    #[test]
    fn no_line_of_help_is_wider_than_a_terminal() {
        let mut command = Cli::command().term_width(100);
        for line in command.render_long_help().to_string().lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}
