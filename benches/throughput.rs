//! How fast a backlog drains, beside `pg_recvlogical` reading the same backlog to nowhere in the
//! same run: the server's decoder is the limit of both. `scripts/bench` calls it.
//!
//! Each round reads the backlog through a copy of one slot, made before the backlog was written.
//! The servers run with `fsync = off`, the stream is on disk, settings are the defaults. Time runs
//! from the start of the process to its end (pg_recvlogical) or to the slot's confirmation of the
//! last event (outjet).

#[path = "../tests/it/harness/mod.rs"]
mod harness;

use std::process::Stdio;
use std::time::Duration;

use clap::Parser;
use harness::postgres::Session;
use harness::{World, outbox};
use tokio::process::Command;
use tokio::time::Instant;

/// Measures events per second and CPU per event, beside pg_recvlogical.
#[derive(Parser)]
#[command(name = "scripts/bench", bin_name = "scripts/bench")]
struct Typed {
    /// Events of the backlog
    #[arg(long, default_value_t = 500_000)]
    events: u64,
    /// Events of each transaction
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    per_transaction: u64,
    /// How often each of the two reads it
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// publish.format: cloudevents or minimal
    #[arg(long, default_value = "cloudevents")]
    format: String,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// One reading of the backlog.
#[derive(Clone, Copy, Debug)]
struct Reading {
    time: Duration,
    cpu: Duration,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let typed = Typed::parse();
    let world = World::start().await;
    let setup = world.outjet(["setup"]).output().await;
    assert_eq!(setup.code, Some(0), "{}", setup.stderr);
    let session = world.postgres.connect().await;
    let slot = |reader: &str, round| format!("bench_{reader}_{round}");
    for round in 0..=typed.rounds {
        for reader in ["recvlogical", "outjet"] {
            let copy = format!(
                "SELECT pg_copy_logical_replication_slot('outjet', '{}')",
                slot(reader, round)
            );
            session.run(&copy).await;
        }
    }
    println!("writing {} events …", typed.events);
    for _ in 0..typed.events.div_ceil(typed.per_transaction) {
        outbox::one_transaction(&session, typed.per_transaction).await;
    }
    let end = session.text("SELECT pg_current_wal_lsn()::text").await;
    let events = typed.events.div_ceil(typed.per_transaction) * typed.per_transaction;
    println!(
        "{events} events in transactions of {}, {}, {} CPUs, fsync off",
        typed.per_transaction,
        session
            .text("SELECT 'Postgres ' || current_setting('server_version')")
            .await,
        std::thread::available_parallelism().map_or(0, usize::from),
    );

    // Round 0 warms the caches and does not count.
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for round in 0..=typed.rounds {
        let their = pg_recvlogical(&world, &slot("recvlogical", round), &end).await;
        let our = outjet(
            &world,
            &session,
            (&slot("outjet", round), &end, &typed.format),
        )
        .await;
        if round > 0 {
            println!(
                "{}",
                line(&format!("{round}  pg_recvlogical"), their, events)
            );
            println!("{}", line(&format!("{round}  outjet"), our, events));
            theirs.push(their);
            ours.push(our);
        }
    }
    let (their, our) = (median(theirs), median(ours));
    println!("{}", line("median pg_recvlogical", their, events));
    println!("{}", line("median outjet", our, events));
    println!(
        "ratio {:.2}",
        their.time.as_secs_f64() / our.time.as_secs_f64()
    );
}

/// Reads the backlog to nowhere, with the options that outjet reads it with.
async fn pg_recvlogical(world: &World, slot: &str, end: &str) -> Reading {
    let program = world
        .postgres
        .program("pg_recvlogical")
        .expect("pg_recvlogical of this build");
    let started = Instant::now();
    let mut child = Command::new(program)
        .args([
            "--dbname",
            &world.postgres.url(),
            "--slot",
            slot,
            "--start",
            "--no-loop",
        ])
        .args(["--endpos", end, "--file", "/dev/null"])
        .args([
            "-o",
            "proto_version=1",
            "-o",
            "publication_names=outjet",
            "-o",
            "messages=true",
        ])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("start pg_recvlogical");
    let id = child.id().expect("it runs");
    let mut used = Duration::ZERO;
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    loop {
        tokio::select! {
            status = child.wait() => {
                assert!(status.expect("its end").success(), "pg_recvlogical failed");
                return Reading { time: started.elapsed(), cpu: used };
            }
            // What it uses in its last ten milliseconds is not seen.
            _ = ticks.tick() => used = cpu(id).unwrap_or(used),
        }
    }
}

async fn outjet(
    world: &World,
    session: &Session,
    (slot, end, format): (&str, &str, &str),
) -> Reading {
    let confirmed = format!(
        "SELECT (confirmed_flush_lsn >= '{end}')::text FROM pg_replication_slots
         WHERE slot_name = '{slot}'"
    );
    let started = Instant::now();
    let (slot, format) = (
        format!("postgres.slot={slot}"),
        format!("publish.format={format}"),
    );
    let arguments = [
        "run",
        "--set",
        &slot,
        "--set",
        &format,
        "--set",
        "stream.name=BENCH",
    ];
    // The stream that setup made has the subjects.
    let jetstream = world.nats.jetstream().await;
    let _ = jetstream.delete_stream("OUTBOX").await;
    let mut outjet = world.outjet(arguments).spawn();
    session
        .until_text(&confirmed, "true", Duration::from_secs(600))
        .await;
    let id = outjet.id();
    let reading = Reading {
        time: started.elapsed(),
        cpu: cpu(id).expect("it runs"),
    };
    let memory = outjet.resident_bytes_max();
    assert_eq!(outjet.terminate(Duration::from_secs(60)).await, Some(0));
    println!(
        "   outjet's peak of resident memory: {:.1} MiB",
        memory as f64 / 1024.0 / 1024.0
    );
    jetstream
        .delete_stream("BENCH")
        .await
        .expect("delete the stream of this round");
    reading
}

/// What a process has used so far, user and system (`proc(5)`, stat: in ticks of 10 ms).
fn cpu(id: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<_> = after_name.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

fn median(mut readings: Vec<Reading>) -> Reading {
    let middle = readings.len() / 2;
    readings.sort_unstable_by_key(|reading| reading.cpu);
    let cpu = readings[middle].cpu;
    readings.sort_unstable_by_key(|reading| reading.time);
    Reading {
        time: readings[middle].time,
        cpu,
    }
}

fn line(what: &str, reading: Reading, events: u64) -> String {
    let rate = events as f64 / reading.time.as_secs_f64();
    let cpu = reading.cpu.as_secs_f64() * 1e6 / events as f64;
    format!("{what:<24} {rate:>9.0} events/s   {cpu:>6.2} µs of CPU per event")
}
