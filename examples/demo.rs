//! `scripts/demo`: outjet at work before your eyes, on servers of its own, and then the verdict of
//! a judge who is not outjet: what was committed, and in which order, is told by `test_decoding`
//! on a second slot. Servers, writers and judge are those of the tests.

#[path = "../tests/it/harness/mod.rs"]
mod harness;

use std::fmt;
use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use async_nats::jetstream;
use clap::Parser;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use harness::drain::{self, Stored};
use harness::outbox::{Load, Written};
use harness::postgres::Session;
use harness::{Judge, Outjet, Verdict, World, binaries};

const STREAM: &str = "OUTBOX";

/// How long a stop may take that has nothing left to publish.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Shows outjet at work on throwaway servers, and whether every event arrived, once and in order.
#[derive(Parser)]
#[command(name = "scripts/demo")]
struct Asked {
    /// How long events are written
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
    /// Leave everything running afterwards, to look around, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let asked = Asked::parse();
    // Whatever is dropped takes its servers and its directories along.
    let shown = tokio::select! {
        biased;
        () = interrupted() => None,
        shown = Box::pin(show(&asked)) => Some(shown),
    };
    let Some((stage, is_clean)) = shown else {
        println!("\ninterrupted; nothing is left running");
        return ExitCode::from(130);
    };
    if asked.keep {
        stage.invite();
        interrupted().await;
    }
    match is_clean {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

async fn interrupted() {
    let mut terminate = signal(SignalKind::terminate()).expect("listen for SIGTERM");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// From nothing to a verdict.
async fn show(asked: &Asked) -> (Stage, bool) {
    let mut stage = Stage::set().await;
    let judge = Judge::appoint(&stage.world.postgres).await;
    let written = stage.write(Duration::from_secs(asked.seconds)).await;
    let stopped_well = asked.keep || stage.outjet.terminate(STOP_WITHIN).await == Some(0);

    let stored = drain::messages(&stage.jetstream, STREAM).await;
    let ids: Vec<String> = stored.iter().filter_map(id).map(str::to_owned).collect();
    let verdict = judge.verdict(&ids).await;
    let altered = drain::altered(&stage.session, "outbox.events", &stored).await;
    report(&verdict, &written, altered.len());
    println!("{}", Latencies::of(&stored));

    let is_clean = stopped_well
        && verdict.is_exact()
        && altered.is_empty()
        && stored.len() == ids.len()
        && verdict.committed as u64 == written.committed;
    match is_clean {
        true => println!("\nEvery committed event is in the stream, once, in commit order."),
        false => println!("\nNOT CLEAN. outjet's log:\n{}", stage.outjet.stderr()),
    }
    (stage, is_clean)
}

/// Everything that runs.
struct Stage {
    // Fields are dropped in this order: first the reader, then what it reads.
    outjet: Outjet,
    session: Session,
    jetstream: jetstream::Context,
    world: World,
}

impl Stage {
    /// Starts servers, sets them up and starts outjet.
    async fn set() -> Self {
        let world = World::start().await;
        let session = world.postgres.connect().await;
        let client = world.nats.connect().await;
        println!(
            "Postgres {} and nats-server {}, in directories of their own below {}",
            session.text("SHOW server_version").await,
            client.server_info().version,
            std::env::temp_dir().display(),
        );
        println!("\n$ outjet setup");
        let setup = world.outjet(["setup"]).output().await;
        print!("{}", setup.stdout);
        assert_eq!(setup.code, Some(0), "outjet setup failed: {}", setup.stderr);
        println!("\n$ outjet run");
        Self {
            outjet: world.outjet(["run"]).spawn(),
            session,
            jetstream: jetstream::new(client),
            world,
        }
    }

    /// Lets the writers write, shows how outjet keeps up, and waits until it has published it all.
    async fn write(&self, long: Duration) -> Written {
        let load = Load {
            // The same events each time; how the sessions interleave differs.
            seed: 1,
            writers: 4,
            transactions: u64::MAX,
            // An application at work, not a flood: latency means something only below saturation.
            pause: Duration::from_millis(20),
        };
        println!(
            "{} sessions write for {} s: single inserts, multi-row inserts, COPY, transactions \
             with business\nrows, savepoints, rollbacks\n",
            load.writers,
            long.as_secs(),
        );
        let writers = load.start(&self.world.postgres.url()).await;
        let mut progress = Progress::new();
        let mut ticks = tokio::time::interval(progress.pause);
        while progress.started.elapsed() < long {
            ticks.tick().await;
            progress.show(self).await;
        }
        let written = writers.stop().await;
        // Long enough for a machine that has other things to do.
        let published = "SELECT outbox.wait_published('5 min')";
        if self.session.text(published).await == "f" {
            println!("\nnot everything was published within 5 min");
        }
        progress.show(self).await;
        if progress.refreshes {
            println!();
        }
        written
    }

    /// What can be done while everything is up.
    fn invite(&self) {
        let outjet = binaries::outjet();
        let outjet = outjet.display();
        println!(
            "
Everything stays up until Ctrl-C here, or `kill {}`. In another terminal:

  export DATABASE_URL='{}'
  export NATS_URL={}
  {outjet} status
  {outjet} emit --aggregatetype order --type created --payload '{{\"hello\": \"world\"}}'

  psql \"$DATABASE_URL\" -c 'SELECT * FROM outbox.slot_status'
  nats stream view {STREAM}           (the nats CLI finds NATS_URL)
  tail -f {}",
            std::process::id(),
            self.world.postgres.url(),
            self.world.nats.url(),
            self.outjet.home().join("stderr").display(),
        );
    }
}

/// The line that says how things go: refreshed on a terminal, else written once a second.
struct Progress {
    started: Instant,
    pause: Duration,
    refreshes: bool,
    shown_at: Instant,
    stored: u64,
}

impl Progress {
    fn new() -> Self {
        let refreshes = stdout().is_terminal();
        let now = Instant::now();
        Self {
            started: now,
            pause: Duration::from_millis(if refreshes { 250 } else { 1000 }),
            refreshes,
            shown_at: now,
            stored: 0,
        }
    }

    async fn show(&mut self, stage: &Stage) {
        let Ok(stream) = stage.jetstream.get_stream(STREAM).await else {
            return;
        };
        let state = &stream.cached_info().state;
        let lag = "SELECT pg_current_wal_lsn() - confirmed_flush_lsn
                   FROM pg_replication_slots WHERE slot_name = 'outjet'";
        let lag = stage.session.text(lag).await;
        let newest = match stream.get_raw_message(state.last_sequence).await {
            Ok(newest) => latency(newest.time, newest.headers.get("ce-recordedtime")),
            Err(_) => None,
        };
        let now = Instant::now();
        let between = now.duration_since(self.shown_at).as_secs_f64();
        let line = format!(
            "{:5.1} s  {:>9} stored  {:>7.0} events/s  {:>9} bytes lag  {} from commit to stored",
            self.started.elapsed().as_secs_f64(),
            state.messages,
            (state.messages - self.stored) as f64 / between.max(f64::EPSILON),
            lag,
            newest.map_or("-".to_owned(), |newest| format!("{newest:.1} ms")),
        );
        (self.shown_at, self.stored) = (now, state.messages);
        match self.refreshes {
            true => print!("\r\x1b[2K{line}"),
            false => println!("{line}"),
        }
        // A closed output is no reason to leave servers behind.
        let _ = stdout().flush();
    }
}

fn report(verdict: &Verdict, written: &Written, altered: usize) {
    println!("\ncommitted        {:>9}", verdict.committed);
    println!("rolled back      {:>9}", written.rolled_back);
    println!("stored           {:>9}\n", verdict.stored);
    println!("missing          {:>9}", verdict.missing.len());
    println!("duplicated       {:>9}", verdict.duplicated.len());
    println!("out of order     {:>9}", verdict.out_of_order.len());
    println!("never committed  {:>9}", verdict.uncommitted.len());
    println!("altered bodies   {altered:>9}\n");
    if verdict.committed as u64 != written.committed {
        let said = written.committed;
        println!("The writers say that they committed {said}, the judge says otherwise.");
    }
}

/// From commit to stored, in milliseconds, sorted.
struct Latencies(Vec<f64>);

impl Latencies {
    fn of(stored: &[Stored]) -> Self {
        let recorded = |message: &Stored| {
            let recorded = message.headers.get("ce-recordedtime");
            latency(message.stored_at, recorded)
        };
        let mut latencies: Vec<f64> = stored.iter().filter_map(recorded).collect();
        latencies.sort_by(f64::total_cmp);
        Self(latencies)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(last) = self.0.len().checked_sub(1) else {
            return write!(f, "no latencies");
        };
        let at = |share: f64| self.0[(last as f64 * share).round() as usize];
        let (half, most, all) = (at(0.5), at(0.99), at(1.0));
        write!(
            f,
            "commit to stored: p50 {half:.1} ms, p99 {most:.1} ms, max {all:.1} ms"
        )
    }
}

/// Milliseconds from the commit (Postgres's clock) to the message's time stamp (nats-server's):
/// here both run on one machine.
fn latency(
    stored_at: OffsetDateTime,
    committed_at: Option<&async_nats::HeaderValue>,
) -> Option<f64> {
    let committed_at = OffsetDateTime::parse(committed_at?.as_str(), &Rfc3339).ok()?;
    Some((stored_at - committed_at).as_seconds_f64() * 1000.0)
}

fn id(message: &Stored) -> Option<&str> {
    message.header("Nats-Msg-Id")
}
