//! A simulated world: outjet itself, on one thread, between models of Postgres and JetStream, over
//! a network in memory and under a clock that jumps. A seed decides everything.

mod deed;
mod harness;
mod history;
mod instance;
mod jetstream;
mod judge;
mod net;
mod postgres;
mod random;
mod scene;
mod told;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use history::Outcome;

/// How many histories CI looks at, unless `SEEDS` says more; from `SEED` on.
const SEEDS: u64 = 300;

/// Seeds that have found a bug once, of outjet or of the models.
const PINNED: [u64; 0] = [];

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The history in words, with as few steps as it still fails with.
fn shortest(seed: u64) -> Outcome {
    let mut steps = 0;
    loop {
        let outcome = history::run(seed, steps);
        if outcome.verdict.is_err() {
            return outcome;
        }
        steps += 1;
    }
}

/// Looks at the histories of these seeds, on all cores, and returns those that fail, with why.
fn failing(first: u64, seeds: u64) -> Vec<(u64, String)> {
    let (next, end) = (AtomicU64::new(first), first + seeds);
    let failed = Mutex::new(Vec::new());
    let (events, faults) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let enough = number("FIRST").is_some() && !lock(&failed).is_empty();
            if seed >= end || enough {
                return;
            }
            let outcome = history::run(seed, usize::MAX);
            events.fetch_add(outcome.events as u64, Ordering::Relaxed);
            faults.fetch_add(outcome.faults, Ordering::Relaxed);
            if let Err(words) = outcome.verdict {
                println!("seed {seed}: {words}");
                lock(&failed).push((seed, words));
            }
        }
    };
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failed = std::mem::take(&mut *lock(&failed));
    println!(
        "{seeds} histories from seed {first}, {} events, {} faults, {:.0} a second: {} fail",
        events.into_inner(),
        faults.into_inner(),
        seeds as f64 / began.elapsed().as_secs_f64(),
        failed.len(),
    );
    failed
}

#[test]
fn every_history_ends_well() {
    if let Some(seed) = number("TRACE") {
        let log = tracing_subscriber::fmt().without_time().with_ansi(false);
        let log = log
            .with_max_level(tracing::Level::DEBUG)
            .with_target(false)
            .finish();
        let steps = number("STEPS").map_or(usize::MAX, |steps| steps as usize);
        let outcome = tracing::subscriber::with_default(log, || history::run_aloud(seed, steps));
        return assert_eq!(outcome.verdict, Ok(()), "seed {seed}");
    }
    let mut failed = failing(
        number("SEED").unwrap_or(1),
        number("SEEDS").unwrap_or(SEEDS),
    );
    for seed in PINNED {
        failed.extend(failing(seed, 1));
    }
    if let Some((seed, _)) = failed.iter().min() {
        let Outcome { trace, verdict, .. } = shortest(*seed);
        panic!("seed {seed}, as short as it fails:\n{trace}{verdict:?}");
    }
}

/// Also in another process, whose number and hash maps are others: what it says is compared to the
/// last message's time.
#[test]
fn same_seed_is_the_same_history() {
    let program = std::env::current_exe().expect("this program");
    let told = |seed: u64| {
        let mut history = std::process::Command::new(&program);
        history.args(["--exact", "every_history_ends_well", "--nocapture"]);
        let told = history.env("TRACE", seed.to_string()).output();
        let told = String::from_utf8(told.expect("it runs").stdout).expect("words");
        assert!(told.contains("outjet 0 starts"), "seed {seed}: {told}");
        let lines = told.lines().filter(|line| !line.starts_with("test "));
        lines.collect::<Vec<_>>().join("\n")
    };
    for seed in 1..=20 {
        assert_eq!(told(seed), told(seed), "seed {seed}");
    }
}

/// A mutant that does not apply breaks nothing, and shows nothing.
#[test]
fn every_mutant_applies() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mutants = std::fs::read_dir(root.join("tests/sim/mutants")).expect("the mutants");
    let mutants: Vec<_> = mutants
        .map(|entry| entry.expect("a mutant").path())
        .collect();
    assert!(!mutants.is_empty());
    for mutant in mutants {
        let mut check = std::process::Command::new("git");
        check
            .args(["apply", "--check"])
            .arg(&mutant)
            .current_dir(root);
        let status = check.status().expect("git");
        assert!(status.success(), "{} does not apply", mutant.display());
    }
}
