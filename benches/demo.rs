//! The demonstration: throwaway servers, the real program, writers at work, and a verdict by an
//! independent decoder. `scripts/demo` calls it.

#[path = "../tests/it/harness/mod.rs"]
mod harness;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use harness::outbox::{Load, Written};
use harness::postgres::Session;
use harness::{Judge, World, drain};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

/// Shows outjet at work: writers commit a mixed load, outjet publishes it, a judge compares.
#[derive(Parser)]
#[command(name = "scripts/demo", bin_name = "scripts/demo")]
struct Typed {
    /// How long the writers write
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Leave everything up afterwards, to look around, until an interrupt
    #[arg(long)]
    keep: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

const STREAM: &str = "OUTBOX";

/// A machine that is busy with other things still drains a few seconds of writing in this time.
const DRAINED_WITHIN: Duration = Duration::from_secs(300);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let typed = Typed::parse();
    println!("starting a Postgres and a nats-server of its own …");
    let world = World::start().await;
    let setup = world.outjet(["setup"]).output().await;
    print!("\n$ outjet setup\n{}", setup.stdout);
    assert_eq!(setup.code, Some(0), "{}", setup.stderr);
    let judge = Judge::appoint(&world.postgres).await;
    println!("\n$ outjet run &");
    let mut outjet = world.outjet(["run", "--log-format", "json"]).spawn();
    outjet.logged("leading", Duration::from_secs(60)).await;

    let written = write(&world, Duration::from_secs(typed.seconds)).await;
    let jetstream = world.nats.jetstream().await;
    drain::until_stored(&jetstream, STREAM, written.committed, DRAINED_WITHIN).await;
    let verdict = judge.verdict(&drain::ids(&jetstream, STREAM).await).await;
    report(&written, &verdict);
    if typed.keep {
        look_around(&world).await;
    }
    let clean = outjet.terminate(Duration::from_secs(60)).await == Some(0);
    match clean && verdict.is_exact() && verdict.committed as u64 == written.committed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Lets writers write for a while and shows how outjet keeps up.
async fn write(world: &World, time: Duration) -> Written {
    println!(
        "\nfour sessions write for {} s: single inserts, transactions of many events, COPY,\n\
         savepoints, rollbacks, business rows beside them\n",
        time.as_secs()
    );
    let url = world.postgres.url();
    let load = Load {
        transactions: u64::MAX,
        time,
        ..Load::mixed(1)
    };
    let writing = load.write(&url);
    let mut progress = Progress::new(world).await;
    tokio::select! {
        written = writing => {
            progress.end();
            written
        }
        () = progress.show() => unreachable!("it is shown until the writing ends"),
    }
}

/// What is seen from outside while outjet runs.
struct Progress {
    session: Session,
    jetstream: async_nats::jetstream::Context,
    started: Instant,
    latencies: Vec<Duration>,
}

impl Progress {
    async fn new(world: &World) -> Self {
        Self {
            session: world.postgres.connect().await,
            jetstream: world.nats.jetstream().await,
            started: Instant::now(),
            latencies: Vec::new(),
        }
    }

    async fn show(&mut self) {
        const EVERY: Duration = Duration::from_millis(500);
        let mut before = 0;
        let mut ticks = tokio::time::interval(EVERY);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let stream = self.jetstream.get_stream(STREAM).await.expect("the stream");
            let stored = stream.cached_info().state.last_sequence;
            if let Ok(newest) = stream.get_raw_message(stored).await {
                self.latencies.extend(latency(&newest));
            }
            let rate = (stored - before) as f64 / EVERY.as_secs_f64();
            let lag = self.session.text(LAG).await;
            let latest = self.latencies.last().copied().unwrap_or_default();
            self.line(&format!(
                "{:5.1} s  {stored:>8} stored  {rate:>7.0} events/s  lag {lag:>9} B  \
                 commit to stored {:.1} ms",
                self.started.elapsed().as_secs_f64(),
                latest.as_secs_f64() * 1000.0,
            ));
            before = stored;
        }
    }

    fn line(&self, text: &str) {
        let mut out = std::io::stdout();
        let end = if out.is_terminal() { "\x1b[K\r" } else { "\n" };
        // Nobody may be looking.
        let _ = write!(out, "{text}{end}").and_then(|()| out.flush());
    }

    fn end(&mut self) {
        self.latencies.sort_unstable();
        if let (Some(median), Some(worst)) = (
            self.latencies.get(self.latencies.len() / 2),
            self.latencies.last(),
        ) {
            println!(
                "\ncommit to stored, of the newest message every half second: median {:.1} ms, \
                 worst {:.1} ms",
                median.as_secs_f64() * 1000.0,
                worst.as_secs_f64() * 1000.0,
            );
        }
    }
}

/// Bytes of WAL that are written and not confirmed.
const LAG: &str = "
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint::text
FROM pg_replication_slots WHERE slot_name = 'outjet'";

/// From the commit, as the message says, to when the stream took it, by one machine's clock.
fn latency(message: &async_nats::jetstream::message::StreamMessage) -> Option<Duration> {
    let committed = message.headers.get("ce-recordedtime")?;
    let committed = OffsetDateTime::parse(committed.as_str(), &Rfc3339).ok()?;
    Duration::try_from(message.time - committed).ok()
}

fn report(written: &Written, verdict: &drain::Verdict) {
    println!(
        "\nrolled back      {:>8}   (must not appear)",
        written.rolled_back
    );
    println!("rows committed   {:>8}", written.committed);
    println!("messages stored  {:>8}", verdict.stored);
    let faults = [
        ("missing", &verdict.missing),
        ("duplicated", &verdict.duplicated),
        ("out of order", &verdict.out_of_order),
        ("never committed", &verdict.uncommitted),
    ];
    for (name, ids) in faults {
        println!("{name:<16} {:>8}", ids.len());
    }
    println!("(the order of commits is read from a second slot, with test_decoding)");
}

async fn look_around(world: &World) {
    println!(
        "\nAll of it is still up. In another terminal:\n\n  \
         export DATABASE_URL='{}'\n  export NATS_URL='{}'\n  \
         target/release/outjet status\n  target/release/outjet check\n  \
         target/release/outjet emit --type OrderPlaced --payload '{{\"total\": 9.5}}'\n\n\
         Ctrl-C ends it and removes everything.",
        world.postgres.url(),
        world.nats.url(),
    );
    tokio::signal::ctrl_c()
        .await
        .expect("wait for an interrupt");
}
