//! `scripts/bench`: outjet beside `pg_recvlogical` on the same backlog, in turn. pg_recvlogical
//! reads what the slot sends and throws it away: nobody who reads a slot is faster.
//!
//! Fair: the same server and publication, the same pgoutput options, copies of one slot that is
//! older than the backlog, a checkpoint before each pass and one pass that is not counted. What
//! outjet does and the other does not (a nats-server that stores the events in files) is its price.

#[path = "../tests/it/harness/mod.rs"]
mod harness;
#[path = "bench/raw.rs"]
mod raw;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use rustix::process::Signal;
use tokio::time::Instant;

use harness::cluster::Cluster;
use harness::postgres::Session;
use harness::process::{self, Process};
use harness::wait::{until, until_sync};
use harness::{Nats, Outjet, Postgres, Wait, binaries, outjet};

/// The slot that all others are copies of.
const ORIGIN: &str = "origin";

/// For one pass, on the slowest machine and with the largest backlog that make sense.
const PASS_WITHIN: Duration = Duration::from_secs(3600);

/// For `--instructions`: so many that four rounds on a busy machine differed by less than 1 %, so
/// few that callgrind needs no more than half a minute of CPU time for each pass.
const COUNTED_EVENTS: u64 = 20_000;

/// Linux counts CPU time in 1/100 s (USER_HZ in include/asm-generic/param.h).
const TICKS_PER_SECOND: f64 = 100.0;

/// Measures how fast outjet publishes a backlog, beside pg_recvlogical reading the same one.
#[derive(Parser)]
#[command(name = "scripts/bench")]
struct Asked {
    /// Events in the backlog
    #[arg(long, value_name = "N", default_value_t = 500_000)]
    events: u64,
    /// Passes of each reader, in alternating order
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Events in each transaction
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..))]
    transaction: u64,
    /// Length of each payload, as jsonb's text
    #[arg(long, value_name = "BYTES", default_value_t = 180,
          value_parser = clap::value_parser!(u64).range(32..))]
    payload: u64,
    /// Format of the messages
    #[arg(long, value_enum, default_value_t = Format::Cloudevents)]
    format: Format,
    /// Transactions appear as a whole
    #[arg(long)]
    atomic: bool,
    /// Who else: pg_recvlogical, another outjet that differs in this, or no outjet
    #[arg(long, value_enum, default_value_t = Beside::PgRecvlogical)]
    beside: Beside,
    /// The stream stands on three servers
    #[arg(long)]
    cluster: bool,
    /// Measure how soon a new event is stored when Postgres sends N again that the stream holds
    #[arg(long, value_name = "N", conflicts_with = "events",
          value_parser = clap::value_parser!(u64).range(1..))]
    tail: Option<u64>,
    /// Count outjet's instructions per event with callgrind, whatever else the machine does
    #[arg(long, conflicts_with_all = ["events", "tail", "beside"])]
    instructions: bool,
    /// Keep callgrind's profile of the last pass, for callgrind_annotate
    #[arg(long, value_name = "FILE", requires = "instructions")]
    profile: Option<PathBuf>,
    /// Postgres's bin directory, with pg_recvlogical in it [default: the newest that is found]
    #[arg(long, value_name = "DIR")]
    postgres: Option<PathBuf>,
    /// Another outjet than the one in target/release
    #[arg(long, value_name = "FILE")]
    outjet: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Cloudevents,
    Minimal,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Beside {
    PgRecvlogical,
    Minimal,
    Pipelined,
    /// A bare socket that publishes what outjet has published
    Raw,
}

/// How outjet publishes.
#[derive(Clone, Copy)]
struct Manner {
    format: Format,
    atomic: bool,
}

impl Manner {
    fn transactions(self) -> &'static str {
        if self.atomic { "atomic" } else { "pipelined" }
    }
}

impl Asked {
    fn manner(&self) -> Manner {
        Manner {
            format: self.format,
            atomic: self.atomic,
        }
    }

    /// Of the other outjet, and its name; `None` if there is none.
    fn other(&self) -> Option<(Manner, &'static str)> {
        let manner = self.manner();
        match self.beside {
            Beside::PgRecvlogical | Beside::Raw => None,
            Beside::Minimal => {
                let format = Format::Minimal;
                Some((Manner { format, ..manner }, "minimal"))
            }
            Beside::Pipelined => {
                let atomic = false;
                Some((Manner { atomic, ..manner }, "pipelined"))
            }
        }
    }

    fn replicas(&self) -> usize {
        if self.cluster { 3 } else { 1 }
    }
}

/// One server, or a cluster.
enum Broker {
    Single(Nats),
    Cluster(Cluster),
}

impl Broker {
    async fn start(replicas: usize) -> Self {
        match replicas {
            1 => Self::Single(Nats::start().await),
            _ => Self::Cluster(Cluster::start(replicas, None).await),
        }
    }

    fn replicas(&self) -> usize {
        match self {
            Self::Single(_) => 1,
            Self::Cluster(cluster) => cluster.nodes.len(),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Single(nats) => nats.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    async fn jetstream(&self) -> async_nats::jetstream::Context {
        match self {
            Self::Single(nats) => nats.jetstream().await,
            Self::Cluster(cluster) => cluster.jetstream().await,
        }
    }

    fn cpu(&mut self) -> Duration {
        match self {
            Self::Single(nats) => cpu(nats.process().id()),
            Self::Cluster(cluster) => {
                let nodes = cluster.nodes.iter_mut();
                nodes.map(|nats| cpu(nats.process().id())).sum()
            }
        }
    }
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Cloudevents => "cloudevents",
            Self::Minimal => "minimal",
        }
    }
}

/// What one pass over the backlog took.
struct Pass {
    elapsed: Duration,
    /// User and system time of the reader.
    cpu: Duration,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut asked = Asked::parse();
    asked.events = asked.tail.unwrap_or(asked.events);
    if asked.instructions {
        asked.events = COUNTED_EVENTS;
    }
    let mut bench = Bench::prepare(&asked).await;
    if asked.instructions {
        return bench.instructions().await;
    }
    if asked.tail.is_some() {
        return bench.tails().await;
    }
    if asked.beside == Beside::Raw {
        return bench.beside_raw().await;
    }
    if asked.other().is_none() {
        let slot = bench.copy_slot("warm_up").await;
        bench.pg_recvlogical(&slot).await;
    }

    println!(
        "\n{:<7}{:<16}{:>10}{:>14}",
        "round", "reader", "events/s", "CPU/event"
    );
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for round in 1..=asked.rounds {
        for reader in 0..2 {
            if (round + reader) % 2 == 1 {
                theirs.push(bench.other(round).await);
            } else {
                let slot = bench.copy_slot(&format!("outjet_{round}")).await;
                let name = (&*round.to_string(), "outjet");
                let pass = bench.outjet(&slot, asked.manner(), name).await;
                ours.push(pass);
            }
        }
    }
    let (theirs, ours) = (median(theirs), median(ours));
    println!();
    let other = asked.other().map_or("pg_recvlogical", |(_, name)| name);
    bench.print("median", other, &theirs);
    bench.print("median", "outjet", &ours);
    println!(
        "\nratio {:.2}",
        theirs.elapsed.as_secs_f64() / ours.elapsed.as_secs_f64()
    );
}

/// A backlog, and who can read it.
struct Bench<'a> {
    asked: &'a Asked,
    postgres: Postgres,
    session: Session,
    /// The end of the WAL behind the backlog.
    end: String,
}

impl<'a> Bench<'a> {
    /// Starts a server, sets it up and writes the backlog.
    async fn prepare(asked: &'a Asked) -> Self {
        let mut server = Postgres::builder()
            .setting("synchronous_commit", "off")
            .setting("shared_buffers", "128MB")
            // Nothing may come along in the middle of a pass.
            .setting("autovacuum", "off")
            .setting("checkpoint_timeout", "1d")
            .setting("max_wal_size", "64GB")
            .setting("max_replication_slots", "1000");
        if let Some(bin) = &asked.postgres {
            server = server.bin(bin);
        }
        let postgres = server.start().await;
        let session = postgres.connect().await;
        let mut bench = Self {
            asked,
            postgres,
            session,
            end: String::new(),
        };
        bench.introduce().await;
        let nats = Broker::start(1).await;
        bench.set_up(&nats, ORIGIN, asked.manner()).await;
        bench.write(1).await;
        bench
    }

    /// Says what is measured, and on what.
    async fn introduce(&self) {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        println!(
            "{} {}, {} cores, load {}\nPostgres {}, fsync {}, unix socket\n{}\n{}\n\
             {}, {}, transactions {}, file storage, {} replicas",
            std::env::consts::OS,
            std::env::consts::ARCH,
            std::thread::available_parallelism().map_or(0, usize::from),
            load.split(' ').next().unwrap_or("unknown"),
            self.session.text("SHOW server_version").await,
            self.session.text("SHOW fsync").await,
            version(&self.pg_recvlogical_program()),
            version(&binaries::nats_server(None)),
            version(&self.program()),
            self.asked.format.name(),
            self.asked.manner().transactions(),
            self.asked.replicas(),
        );
    }

    /// Writes so many events as were asked for, the first of this number.
    async fn write(&mut self, first: u64) {
        let Asked {
            events,
            transaction,
            payload,
            ..
        } = self.asked;
        let last = first + events - 1;
        // {"i": 1, "words": "…"}: 20 characters besides the number and the words.
        let sql = format!(
            "DO $$ BEGIN FOR n IN {first}..{last} BY {transaction} LOOP
               INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
               SELECT 'order', (i % 1000)::text, 'created', jsonb_build_object('i', i, 'words',
                 left(repeat('some words ', {payload}), {payload} - 20 - length(i::text)))
               FROM generate_series(n, least(n + {transaction} - 1, {last})) AS i;
               COMMIT;
             END LOOP; END $$"
        );
        let begun = self
            .session
            .text("SELECT pg_current_wal_insert_lsn()")
            .await;
        let started = Instant::now();
        self.session.run(&sql).await;
        self.end = self
            .session
            .text("SELECT pg_current_wal_insert_lsn()")
            .await;
        let size = format!("SELECT pg_size_pretty('{}'::pg_lsn - '{begun}')", self.end);
        println!(
            "backlog of {events} events, {payload} bytes of jsonb each, {transaction} a \
             transaction: {} of WAL, written in {:.1} s",
            self.session.text(&size).await,
            started.elapsed().as_secs_f64(),
        );
    }

    async fn copy_slot(&self, name: &str) -> String {
        let copy = format!("SELECT pg_copy_logical_replication_slot('{ORIGIN}', '{name}')");
        self.session.text(&copy).await;
        self.session.run("CHECKPOINT").await;
        name.to_owned()
    }

    /// A pass of whoever else reads.
    async fn other(&self, round: u64) -> Pass {
        let slot = self.copy_slot(&format!("other_{round}")).await;
        let round = &*round.to_string();
        if let Some((manner, name)) = self.asked.other() {
            return self.outjet(&slot, manner, (round, name)).await;
        }
        let pass = self.pg_recvlogical(&slot).await;
        self.print(round, "pg_recvlogical", &pass);
        pass
    }

    /// Reads the backlog into nowhere.
    async fn pg_recvlogical(&self, slot: &str) -> Pass {
        let home = tempfile::tempdir().expect("create a temporary directory");
        let log = home.path().join("stderr");
        let mut command = Command::new(self.pg_recvlogical_program());
        command
            .args(["--start", "--slot", slot, "--endpos", &self.end])
            .args([
                "--option=proto_version=1",
                "--option=publication_names=outjet",
            ])
            .args(["--option=messages=true", "--file=/dev/null", "--dbname"])
            .arg(self.postgres.url())
            .stdout(File::create("/dev/null").expect("open /dev/null"))
            .stderr(File::create(&log).expect("create a log"));
        let started = Instant::now();
        let mut reader = Process::spawn("pg_recvlogical", command, Signal::KILL, home.path());
        reader = reader.log(&log);
        // Not reaped yet, it still has its CPU time.
        until_sync("pg_recvlogical has read it all", PASS_WITHIN, || {
            let state = process::state(reader.id());
            Wait::ready_if(state.starts_with('Z'), state)
        })
        .await;
        let pass = Pass {
            elapsed: started.elapsed(),
            cpu: cpu(reader.id()),
        };
        let status = reader.exit(PASS_WITHIN).await;
        assert!(status.success(), "pg_recvlogical: {status}");
        pass
    }

    /// Publishes the backlog, from the start of the program until the slot is confirmed.
    async fn outjet(&self, slot: &str, manner: Manner, (round, name): (&str, &str)) -> Pass {
        let mut nats = Broker::start(self.asked.replicas()).await;
        self.set_up(&nats, slot, manner).await;
        let before = nats.cpu();
        let started = Instant::now();
        let call = self.call(&nats, slot, manner);
        let outjet = self.publish(call, slot).await;
        let pass = Pass {
            elapsed: started.elapsed(),
            cpu: cpu(outjet.id()),
        };
        let servers = nats.cpu() - before;
        let per_event = servers.as_secs_f64() * 1e6 / self.asked.events as f64;
        self.print(round, name, &pass);
        println!(
            "{:<7}{:<16}{:>10}{per_event:>11.1} µs   (outjet: {} KiB resident at most)",
            "",
            "  nats-server",
            "",
            outjet.resident_bytes_max() / 1024,
        );
        let stored = messages(&nats).await;
        assert_eq!(stored, self.asked.events, "messages in the stream");
        pass
    }

    /// Runs outjet until all of the backlog is confirmed.
    async fn publish(&self, call: outjet::Builder, slot: &str) -> Outjet {
        let confirmed = format!(
            "SELECT confirmed_flush_lsn >= '{}' FROM pg_replication_slots
             WHERE slot_name = '{slot}'",
            self.end,
        );
        let mut outjet = call.args(["run"]).spawn();
        until("all of it is confirmed", PASS_WITHIN, async || {
            let now = self.session.text(&confirmed).await;
            match outjet.exited() {
                Some(status) => Wait::Broken(format!("outjet ended: {status}")),
                None => Wait::ready_if(now == "t", now),
            }
        })
        .await;
        outjet
    }

    /// What an event costs: passes over the backlog, and over one twice as long. Starting and
    /// stopping are in both, so that the difference is the events' alone.
    async fn instructions(&mut self) {
        let events = self.asked.events;
        let mut shorter = Vec::new();
        for round in 1..=self.asked.rounds {
            let slot = self.copy_slot(&format!("shorter_{round}")).await;
            shorter.push(self.collected(&slot, events).await);
        }
        self.write(events + 1).await;
        println!();
        for (round, shorter) in (1..).zip(shorter) {
            let slot = self.copy_slot(&format!("doubled_{round}")).await;
            let doubled = self.collected(&slot, 2 * events).await;
            println!(
                "{:.0} instructions per event ({shorter} for {events} events, {doubled} for {})",
                (doubled - shorter) as f64 / events as f64,
                2 * events,
            );
        }
    }

    /// The instructions of outjet's whole life, in which it publishes so many events.
    async fn collected(&self, slot: &str, events: u64) -> u64 {
        let nats = Broker::start(self.asked.replicas()).await;
        let manner = self.asked.manner();
        self.set_up(&nats, slot, manner).await;
        let program = self.program().display().to_string();
        let call = self.call(&nats, slot, manner).binary(binaries::valgrind());
        let profile = self.asked.profile.as_deref();
        let profile = profile.unwrap_or(Path::new("/dev/null")).display();
        let out = format!("--callgrind-out-file={profile}");
        let call = call.args(["--tool=callgrind", &out, &program]);
        let mut outjet = self.publish(call, slot).await;
        assert_eq!(messages(&nats).await, events, "messages in the stream");
        let code = outjet.terminate(PASS_WITHIN).await;
        assert_eq!(code, Some(0), "outjet: {}", outjet.stderr());
        collected(&outjet.stderr())
    }

    /// The guard: a leader finds the backlog in the stream, and one event that is not there.
    async fn tails(&self) {
        println!(
            "\n{:<7}{:>16}{:>14}",
            "round", "new event after", "CPU/event"
        );
        for round in 1..=self.asked.rounds {
            self.tail(round).await;
        }
    }

    async fn tail(&self, round: u64) {
        let mut nats = Broker::start(self.asked.replicas()).await;
        let (slot, manner) = (self.copy_slot("tail").await, self.asked.manner());
        self.set_up(&nats, &slot, manner).await;
        let call = self.call(&nats, &slot, manner);
        let mut first = self.publish(call, &slot).await;
        first.terminate(PASS_WITHIN).await;
        let stored = messages(&nats).await;
        // The same name, because the messages bear it, and nothing of the backlog confirmed.
        let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
        self.session.text(&drop).await;
        self.copy_slot(&slot).await;
        let emit = "SELECT outbox.emit('order', '1', 'created')";
        self.session.text(emit).await;
        let before = nats.cpu();
        let started = Instant::now();
        let mut outjet = self.call(&nats, &slot, manner).args(["run"]).spawn();
        until("the new event is stored", PASS_WITHIN, async || {
            let now = messages(&nats).await;
            Wait::ready_if(now > stored, now)
        })
        .await;
        let (elapsed, ours, theirs) = (started.elapsed(), cpu(outjet.id()), nats.cpu() - before);
        assert_eq!(messages(&nats).await, stored + 1, "messages in the stream");
        println!(
            "{round:<7}{:>14.2} s{:>11.1} µs   (nats-server: {:.1} µs; {} KiB resident at most)",
            elapsed.as_secs_f64(),
            ours.as_secs_f64() * 1e6 / self.asked.events as f64,
            theirs.as_secs_f64() * 1e6 / self.asked.events as f64,
            outjet.resident_bytes_max() / 1024,
        );
        outjet.terminate(PASS_WITHIN).await;
        self.session.text(&drop).await;
    }

    /// What nats-server takes for the events, from outjet and from a bare socket, in turn.
    async fn beside_raw(&self) {
        println!(
            "\n{:<7}{:>28}{:>28}",
            "round", "nats-server for outjet", "for a socket"
        );
        let mut ratios = Vec::new();
        for round in 1..=self.asked.rounds {
            let slot = self.copy_slot(&format!("outjet_{round}")).await;
            let mut nats = Broker::start(self.asked.replicas()).await;
            self.set_up(&nats, &slot, self.asked.manner()).await;
            let before = nats.cpu();
            let call = self.call(&nats, &slot, self.asked.manner());
            let mut outjet = self.publish(call, &slot).await;
            let ours = nats.cpu() - before;
            outjet.terminate(PASS_WITHIN).await;
            let stream = nats.jetstream().await.get_stream("OUTBOX").await;
            let messages = raw::Messages::of(&stream.expect("the stream")).await;
            drop(nats);

            let mut nats = Broker::start(self.asked.replicas()).await;
            self.set_up(&nats, &slot, self.asked.manner()).await;
            let before = nats.cpu();
            let url = nats.url();
            let address = url.rsplit(['/', '@']).next().expect("an address");
            messages.publish(address).await;
            let theirs = nats.cpu() - before;
            assert_eq!(
                self::messages(&nats).await,
                self.asked.events,
                "messages in the stream"
            );
            let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / self.asked.events as f64;
            let ratio = each(ours) / each(theirs);
            println!(
                "{round:<7}{:>25.1} µs{:>25.1} µs  {ratio:.2}",
                each(ours),
                each(theirs)
            );
            ratios.push(ratio);
        }
        ratios.sort_unstable_by(f64::total_cmp);
        println!("\nratio {:.2}", ratios[ratios.len() / 2]);
    }

    async fn set_up(&self, nats: &Broker, slot: &str, manner: Manner) {
        let done = self.call(nats, slot, manner).args(["setup"]).output().await;
        assert_eq!(done.code, Some(0), "outjet setup: {}", done.stderr);
    }

    fn call(&self, nats: &Broker, slot: &str, manner: Manner) -> outjet::Builder {
        Outjet::builder()
            .binary(self.program())
            .env("DATABASE_URL", self.postgres.url())
            .env("NATS_URL", nats.url())
            .env("OUTJET_POSTGRES__SLOT", slot)
            .env("OUTJET_STREAM__REPLICAS", nats.replicas().to_string())
            .env("OUTJET_PUBLISH__TRANSACTIONS", manner.transactions())
            .env("OUTJET_PUBLISH__FORMAT", manner.format.name())
    }

    fn pg_recvlogical_program(&self) -> PathBuf {
        self.postgres.program("pg_recvlogical").unwrap_or_else(|| {
            panic!("this Postgres has no pg_recvlogical; name one that has with --postgres")
        })
    }

    fn program(&self) -> PathBuf {
        self.asked.outjet.clone().unwrap_or_else(binaries::outjet)
    }

    fn print(&self, round: &str, reader: &str, pass: &Pass) {
        let events = self.asked.events as f64;
        println!(
            "{round:<7}{reader:<16}{:>10.0}{:>11.1} µs",
            events / pass.elapsed.as_secs_f64(),
            pass.cpu.as_secs_f64() * 1e6 / events,
        );
    }
}

async fn messages(nats: &Broker) -> u64 {
    let stream = nats.jetstream().await.get_stream("OUTBOX").await;
    stream.expect("the stream").cached_info().state.messages
}

/// Of times and of CPU, each by itself.
fn median(passes: Vec<Pass>) -> Pass {
    let middle = |mut values: Vec<Duration>| {
        values.sort_unstable();
        values[values.len() / 2]
    };
    Pass {
        elapsed: middle(passes.iter().map(|pass| pass.elapsed).collect()),
        cpu: middle(passes.iter().map(|pass| pass.cpu).collect()),
    }
}

/// The CPU time that a process has used, all its threads, ended or not (proc_pid_stat(5)).
fn cpu(id: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("a process on Linux");
    // The name stands in parentheses and may hold anything; utime is the 12th field behind it.
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks: u64 = ticks
        .map(|ticks| ticks.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND)
}

/// The sum over all threads, from the closing line of callgrind: `==1== Collected : 1234`.
fn collected(stderr: &str) -> u64 {
    let line = stderr
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, count) = line.unwrap_or_else(|| panic!("callgrind has counted nothing: {stderr}"));
    count.trim().parse().expect("a number of instructions")
}

fn version(program: &Path) -> String {
    let mut command = Command::new(program);
    command.arg("--version");
    process::run(command).trim().to_owned()
}
