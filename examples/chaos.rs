//! `scripts/chaos`: rounds of random faults, each of at most a minute, on servers of their own, and
//! a verdict after each. Plan, faults, writers and judge are those of the tests.

#[path = "../tests/it/harness/mod.rs"]
mod harness;

#[path = "../tests/it/chaos/mod.rs"]
mod chaos;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};

use chaos::plan::{Past, Plan};
use chaos::promoted::WITH_FAILOVER_SLOTS;
use chaos::report::Report;
use harness::{Nats, Postgres};

/// Short enough that a seed that shows something shows it again within a minute.
const ROUND: Duration = Duration::from_secs(60);

/// Lets everything fail at random, and compares what was committed with the stream.
#[derive(Parser)]
#[command(name = "scripts/chaos")]
struct Asked {
    /// Rounds of one minute
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Seed of the first round; the next has the next number [default: from the clock]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Keep the copies' logs even if all went well
    #[arg(long)]
    keep: bool,
    /// Version of nats-server, or the beginning of one [default: the preferred one]
    #[arg(long, value_name = "VERSION")]
    nats: Option<String>,
    /// A stream on three nodes, of which one is down
    #[arg(long)]
    cluster: bool,
    /// Every transaction appears as a whole (publish.transactions: atomic)
    #[arg(long)]
    atomic: bool,
    /// Events are held back (stream.hold), and the broker loses what it has just stored
    #[arg(long, conflicts_with = "cluster")]
    hold: bool,
    /// Others write into the stream, copy messages of ours and delete some
    #[arg(long, conflicts_with_all = ["cluster", "atomic", "hold"])]
    strangers: bool,
    /// Events are consumed, expire, are purged or delayed, settings change from one start of a copy
    /// to the next, dead letters are dropped and retried, older records are put back, and the slot
    /// is moved, made again or dropped
    #[arg(long, conflicts_with_all = ["atomic", "hold", "strangers"])]
    past: bool,
    /// As with --past, but a standby that lags is promoted in each round (Postgres 17 and newer)
    #[arg(long, conflicts_with_all = ["atomic", "hold", "strangers", "past"])]
    promotion: bool,
    /// Major version of Postgres [default: the preferred one, or 17 with --promotion]
    #[arg(long, value_name = "MAJOR")]
    postgres: Option<u32>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let asked = Asked::parse();
    if asked.promotion && asked.postgres.is_some_and(|it| it < WITH_FAILOVER_SLOTS) {
        let message = "--promotion needs Postgres 17 or newer";
        <Asked as CommandFactory>::command()
            .error(ErrorKind::ArgumentConflict, message)
            .exit();
    }
    // Whatever is dropped takes its servers and its directories along.
    let is_perfect = tokio::select! {
        biased;
        () = interrupted() => None,
        is_perfect = Box::pin(rounds(&asked)) => Some(is_perfect),
    };
    match is_perfect {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => {
            println!("\ninterrupted; nothing is left running");
            ExitCode::from(130)
        }
    }
}

async fn interrupted() {
    let mut terminate = signal(SignalKind::terminate()).expect("listen for SIGTERM");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// All rounds; whether each was perfect.
async fn rounds(asked: &Asked) -> bool {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH);
    let first = asked.seed.unwrap_or_else(|| {
        let now = clock().expect("a clock that is not before 1970");
        now.as_secs() % 1_000_000
    });
    let mut sum = Sum::default();
    for seed in first..first + asked.minutes {
        println!("== {}", asked.command(1, seed));
        let plan = Plan {
            replicas: if asked.cluster { 3 } else { 1 },
            atomic: asked.atomic,
            ..match asked {
                Asked { hold: true, .. } => Plan::holding(seed, ROUND),
                Asked {
                    strangers: true, ..
                } => Plan::among_strangers(seed, ROUND),
                Asked { past: true, .. } => Plan::past_of(seed, ROUND),
                Asked {
                    promotion: true, ..
                } => Plan::changing(seed, Past::Promoted, ROUND),
                _ => Plan::new(seed, ROUND),
            }
        };
        let servers = (asked.postgres(), asked.nats());
        let played = chaos::play(plan, servers, |struck| println!("{struck}"));
        let report = Box::pin(played).await;
        println!("\n{report}");
        if asked.keep || !report.is_perfect() {
            println!("logs: {}", keep(&report).display());
            println!("again: {}\n", asked.command(1, seed));
        }
        sum.add(&report);
    }
    sum.print();
    println!("\nagain: {}", asked.command(asked.minutes, first));
    sum.imperfect.is_empty()
}

impl Asked {
    fn postgres(&self) -> harness::postgres::Builder {
        let builder = Postgres::builder();
        let promotable = self.promotion.then_some(WITH_FAILOVER_SLOTS);
        self.postgres
            .or(promotable)
            .into_iter()
            .fold(builder, |b, major| b.version(major))
    }

    fn nats(&self) -> harness::nats::Builder {
        let builder = Nats::builder();
        self.nats
            .iter()
            .fold(builder, |b, version| b.version(version))
    }

    /// What is to be typed for the same faults and contents.
    fn command(&self, minutes: u64, seed: u64) -> String {
        let mut command = format!("scripts/chaos --minutes {minutes} --seed {seed}");
        if let Some(version) = &self.nats {
            command += &format!(" --nats {version}");
        }
        if let Some(major) = self.postgres {
            command += &format!(" --postgres {major}");
        }
        let flags = [
            (self.cluster, " --cluster"),
            (self.atomic, " --atomic"),
            (self.hold, " --hold"),
            (self.strangers, " --strangers"),
            (self.past, " --past"),
            (self.promotion, " --promotion"),
        ];
        for (asked, flag) in flags {
            command += if asked { flag } else { "" };
        }
        command
    }
}

/// Writes the copies' logs where they outlive the round.
fn keep(report: &Report) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("outjet-chaos-{}", report.plan.seed));
    fs::create_dir_all(&directory).expect("create a directory for the logs");
    for (name, log) in &report.logs {
        let path = directory.join(format!("{name}.log"));
        fs::write(path, log).expect("write a log");
    }
    directory
}

/// Over all rounds.
#[derive(Default)]
struct Sum {
    kinds: BTreeMap<String, (usize, usize)>,
    rounds: u64,
    takeovers: u64,
    drained_max: Duration,
    counts: [usize; 11],
    imperfect: Vec<u64>,
}

/// The rows of [`Sum::counts`].
const COUNTS: [&str; 11] = [
    "committed",
    "stored",
    "twice, unsure",
    "lost by broker",
    "missing",
    "duplicated",
    "out of order",
    "never committed",
    "differing",
    "lost tail",
    "of it stored",
];

impl Sum {
    fn add(&mut self, report: &Report) {
        for (kind, (done, hit)) in report.kinds() {
            let sum = self.kinds.entry(kind.to_owned()).or_default();
            *sum = (sum.0 + done, sum.1 + hit);
        }
        let verdict = &report.verdict;
        let counts = [
            verdict.committed,
            verdict.stored,
            report.uncertain,
            report.forgotten as usize,
            verdict.missing.len(),
            verdict.duplicated.len(),
            verdict.out_of_order.len(),
            verdict.uncommitted.len(),
            report.differing.len(),
            report.lost_tail.0,
            report.lost_tail.1,
        ];
        for (sum, count) in self.counts.iter_mut().zip(counts) {
            *sum += count;
        }
        self.rounds += 1;
        self.takeovers += report.takeovers;
        self.drained_max = self.drained_max.max(report.drained_in.unwrap_or_default());
        if !report.is_perfect() {
            self.imperfect.push(report.plan.seed);
        }
    }

    /// What is true of all rounds, if each was perfect.
    fn conclusion(&self) -> String {
        let [_, _, twice, _, _, _, out_of_order, ..] = self.counts;
        let often = match twice {
            0 => "once",
            _ => "once, or twice where nobody could know of the first time",
        };
        let order = match out_of_order {
            0 => ", in commit order",
            _ => "",
        };
        format!("Every committed event was stored {often}{order}.")
    }

    fn print(&self) {
        println!("{:<44}{:>8}{:>24}", "fault", "done", "hit a running stream");
        for (kind, (done, hit)) in &self.kinds {
            println!("{kind:<44}{done:>8}{hit:>24}");
        }
        let done: usize = self.kinds.values().map(|(done, _)| done).sum();
        let hit: usize = self.kinds.values().map(|(_, hit)| hit).sum();
        println!("{:<44}{done:>8}{hit:>24}\n", "all");
        for (name, count) in COUNTS.iter().zip(self.counts) {
            println!("{name:<16}{count:>9}");
        }
        println!(
            "\n{} rounds, {} takeovers; all was confirmed at most {:.1?} after the last fault",
            self.rounds, self.takeovers, self.drained_max,
        );
        match self.imperfect.as_slice() {
            [] => println!("{}", self.conclusion()),
            seeds => println!("NOT PERFECT: seeds {seeds:?}"),
        }
    }
}
