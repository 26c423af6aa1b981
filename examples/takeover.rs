//! `scripts/takeover`: how long nobody publishes when the leader of two copies is killed, is told
//! to stop, or hangs: from the signal until an event that was committed behind it comes out of
//! NATS.

#[path = "../tests/it/harness/mod.rs"]
mod harness;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use futures_util::StreamExt;
use tokio::time::Instant;

use harness::postgres::Session;
use harness::{Outjet, Wait, World, binaries, until};

/// Longer than the longest `takeover_after` that makes sense here.
const SOON: Duration = Duration::from_secs(300);

const STANDING_BY: &str = "standing by: another copy leads";

/// Measures how soon a standby publishes what the leader cannot publish any more.
#[derive(Parser)]
#[command(name = "scripts/takeover")]
struct Asked {
    /// Takeovers of each kind
    #[arg(long, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// After this time Postgres throws out a leader that hangs (postgres.takeover_after)
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    takeover_after: String,
    /// Another outjet than the one in target/release
    #[arg(long, value_name = "FILE")]
    outjet: Option<PathBuf>,
}

/// What becomes of a leader.
#[derive(Clone, Copy)]
enum Fate {
    Killed,
    Stopped,
    Hung,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let asked = Asked::parse();
    let mut stage = Stage::prepare(&asked).await;
    println!("{:<36}{:>6}{:>12}{:>12}", "", "runs", "median", "worst");
    for fate in [Fate::Killed, Fate::Stopped, Fate::Hung] {
        let mut waits = Vec::new();
        for _ in 0..asked.runs {
            waits.push(stage.succeed(fate).await);
        }
        waits.sort_unstable();
        let name = match fate {
            Fate::Killed => "kill -9".to_owned(),
            Fate::Stopped => "SIGTERM".to_owned(),
            Fate::Hung => format!("SIGSTOP, takeover_after {}", asked.takeover_after),
        };
        let seconds = |wait: Duration| format!("{:.3} s", wait.as_secs_f64());
        println!(
            "{name:<36}{:>6}{:>12}{:>12}",
            waits.len(),
            seconds(waits[waits.len() / 2]),
            seconds(waits[waits.len() - 1])
        );
    }
    stage.assert_whole().await;
}

/// Two servers, a leader and a standby, and who listens to the events.
struct Stage<'a> {
    asked: &'a Asked,
    world: World,
    session: Session,
    events: async_nats::Subscriber,
    leader: Outjet,
    standby: Outjet,
    committed: u64,
}

impl<'a> Stage<'a> {
    async fn prepare(asked: &'a Asked) -> Self {
        let world = World::start().await;
        let session = world.postgres.connect().await;
        let output = call(&world, asked, &["setup"]).output().await;
        assert_eq!(output.code, Some(0), "outjet setup: {}", output.stderr);
        let client = world.nats.connect().await;
        let events = client.subscribe("events.>").await.expect("subscribe");
        client.flush().await.expect("flush");
        let run = || call(&world, asked, &["run", "--log-format", "json"]).spawn();
        let mut leader = run();
        leader.logged("leading", SOON).await;
        let mut standby = run();
        standby.logged(STANDING_BY, SOON).await;
        Self {
            asked,
            session,
            events,
            leader,
            standby,
            committed: 0,
            world,
        }
    }

    /// The standby succeeds the leader; returns how long an event waited for it.
    async fn succeed(&mut self, fate: Fate) -> Duration {
        // The leader is at work: its last event went through.
        self.commit().await;
        self.next().await;
        let asked = Instant::now();
        match fate {
            Fate::Killed => drop(self.leader.kill().await),
            // An event that it still takes along would not have waited for anybody.
            Fate::Stopped => drop(self.leader.terminate(SOON).await),
            Fate::Hung => self.leader.pause().await,
        }
        self.commit().await;
        self.next().await;
        let waited = asked.elapsed();
        self.replace_leader(fate).await;
        waited
    }

    /// Whoever led stands by, or somebody else does.
    async fn replace_leader(&mut self, fate: Fate) {
        std::mem::swap(&mut self.leader, &mut self.standby);
        if let Fate::Hung = fate {
            let stood_by = times_stood_by(&self.standby);
            self.standby.resume();
            until("it stands by", SOON, async || {
                let times = times_stood_by(&self.standby);
                Wait::ready_if(times > stood_by, times)
            })
            .await;
            return;
        }
        let run = ["run", "--log-format", "json"];
        self.standby = call(&self.world, self.asked, &run).spawn();
        self.standby.logged(STANDING_BY, SOON).await;
    }

    async fn commit(&mut self) {
        let emit = "SELECT outbox.emit('order', '1', 'created')";
        self.session.run(emit).await;
        self.committed += 1;
    }

    async fn next(&mut self) {
        let next = tokio::time::timeout(SOON, self.events.next()).await;
        next.expect("no event in time").expect("an event");
    }

    /// None of it was lost or came twice.
    async fn assert_whole(&self) {
        let stream = self.world.nats.jetstream().await.get_stream("OUTBOX").await;
        let stored = stream.expect("the stream").cached_info().state.messages;
        assert_eq!(stored, self.committed, "messages in the stream");
    }
}

fn call(world: &World, asked: &Asked, arguments: &[&str]) -> harness::outjet::Builder {
    let program = asked.outjet.clone().unwrap_or_else(binaries::outjet);
    world
        .outjet(arguments.iter().copied())
        .binary(program)
        .env("OUTJET_POSTGRES__TAKEOVER_AFTER", &asked.takeover_after)
}

fn times_stood_by(copy: &Outjet) -> usize {
    let log = copy.log();
    let lines = log.iter().filter(|line| line["message"] == STANDING_BY);
    lines.count()
}
