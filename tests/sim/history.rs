//! One history: a seed, what it makes of the world, what happens there, and what is judged.

mod broker;
mod database;
mod instances;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use outjet::watch::vitals::State;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};

use crate::deed::Deed;
use crate::instance::Instance;
use crate::jetstream::{self, Fate, Nats, Version};
use crate::judge;
use crate::net::{Net, Weather};
use crate::postgres::{self, Postgres, Xid};
use crate::random::Random;
use crate::scene::{MAX_PAYLOAD, Scene, serve, weather};

/// The stream of the default configuration.
const STREAM: &str = "OUTBOX";

/// What its record is kept in.
const RECORDS: &str = "KV_OUTJET_OUTBOX";

/// How long everything may take to be settled once the faults are over.
const QUIET_MAX: Duration = Duration::from_secs(120);

/// No event is delayed for longer.
const DELAY_MAX: Duration = Duration::from_secs(40);

/// What became of a history.
pub(crate) struct Outcome {
    /// What happened, line by line, with the simulated time.
    pub(crate) trace: String,
    /// What was wrong.
    pub(crate) verdict: Result<(), String>,
    pub(crate) events: usize,
    pub(crate) faults: u64,
}

/// Runs the history of `seed`, with at most `steps` steps (to shrink it).
pub(crate) fn run(seed: u64, steps: usize) -> Outcome {
    run_as(seed, steps, false)
}

/// The same, told as it happens.
pub(crate) fn run_aloud(seed: u64, steps: usize) -> Outcome {
    run_as(seed, steps, true)
}

fn run_as(seed: u64, steps: usize, aloud: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let mut world = World::new(seed, aloud);
        let verdict = world.live(steps).await;
        if aloud {
            world.say_stored();
        }
        Outcome {
            events: world.due().len(),
            faults: world.faults,
            trace: world.trace,
            verdict,
        }
    })
}

struct World {
    random: Random,
    began: Instant,
    trace: String,
    aloud: bool,
    net: Net,
    postgres: Postgres,
    nats: Nats,
    instances: Vec<Instance>,
    /// Those that were killed or have ended.
    past: Vec<Instance>,
    seats: usize,
    scene: Scene,
    deeds: Vec<Deed>,
    open: Vec<Xid>,
    next: u64,
    faults: u64,
    /// Somebody has moved the slot, or the broker has forgotten something: a gap may be told.
    moved: bool,
    /// The stream has lost its end: one term has no record, and exactly once is not promised.
    blind: bool,
    /// Somebody has deleted messages.
    vanished: bool,
    /// Events may bear ids that others have borne.
    reuses_ids: bool,
    /// A gap was told at some time.
    gap_told: bool,
    /// Events that the broker has forgotten, by number.
    forgotten: BTreeSet<u64>,
    /// Events that it has forgotten while they were held back: they come again.
    lost_while_held: BTreeSet<u64>,
    /// Events that somebody has moved the slot past, by number.
    moved_past: BTreeSet<u64>,
    /// Those of them that were not stored.
    passed_over: BTreeSet<u64>,
}

/// Those that behave differently.
const VERSIONS: [Version; 3] = [Version::V2_10, Version(2, 12, 1), Version::V2_15];

impl World {
    fn new(seed: u64, aloud: bool) -> Self {
        let mut random = Random::new(seed);
        let major = u32::try_from(random.between(14, 18)).expect("small");
        let postgres = Postgres::new(postgres::Options::new(major));
        let version = *random.of(&VERSIONS);
        let scene = Scene::new(&mut random, version);
        let nats = Nats::new(jetstream::Options {
            max_payload: MAX_PAYLOAD,
            servers: scene.replicas,
            ..jetstream::Options::new(version)
        });
        let net = Net::new(random.fork(), weather(&mut random));
        serve(&net, &postgres, &nats);
        // What is left out leaves more of the rest (swarm testing).
        let mut deeds = Deed::ALL.to_vec();
        let left_out: Vec<Deed> = Deed::ALL
            .into_iter()
            .filter(|_| random.once_in(3))
            .collect();
        deeds.retain(|deed| deed.is_life() || !left_out.contains(deed));
        let reuses_ids = !scene.shared && random.once_in(3);
        if reuses_ids {
            deeds.retain(|deed| !deed.leaves_ids_ambiguous());
        }
        if scene.replicas > 1 {
            deeds.retain(|deed| !deed.is_of_a_lone_server());
            let mut random = random.fork();
            nats.decide(move |_| overtaking(&mut random));
        }
        let mut world = Self {
            random,
            began: Instant::now(),
            trace: String::new(),
            aloud,
            net,
            postgres,
            nats,
            instances: Vec::new(),
            past: Vec::new(),
            seats: 0,
            scene,
            deeds,
            open: Vec::new(),
            next: 0,
            faults: 0,
            moved: false,
            blind: false,
            vanished: false,
            reuses_ids,
            gap_told: false,
            forgotten: BTreeSet::new(),
            lost_while_held: BTreeSet::new(),
            moved_past: BTreeSet::new(),
            passed_over: BTreeSet::new(),
        };
        world.say(&format!(
            "seed {seed}: Postgres {major}, nats-server {version:?}, {:?}",
            world.scene
        ));
        world
    }

    async fn live(&mut self, steps: usize) -> Result<(), String> {
        self.set_up().await;
        let wanted = usize::try_from(self.random.between(20, 60)).expect("small");
        for _ in 0..wanted.min(steps) {
            let deed = *self.random.of(&self.deeds);
            self.faults += u64::from(!deed.is_life());
            self.act(deed).await;
            let pause = Duration::from_micros(self.random.of_any_size(21));
            sleep(pause).await;
            if self.rightly_halted() {
                return Ok(());
            }
            self.look()?;
        }
        self.heal();
        self.quiet().await?;
        if self.rightly_halted() {
            return Ok(());
        }
        // What is delayed has appeared by then.
        sleep(DELAY_MAX).await;
        self.look()?;
        let told = (self.uncertain(), self.gap_told);
        judge::whole(&self.due(), &self.found(), told)?;
        // What may be there twice goes alone.
        if self.scene.atomic && self.uncertain() == 0 {
            judge::torn(&self.batches())?;
        }
        Ok(())
    }

    /// A first leader stands for `outjet setup`, which records the slot that it makes: from then on
    /// a slot that was read has a record.
    async fn set_up(&mut self) {
        self.start();
        while self.instances[0].state() != State::Streaming {
            sleep(Duration::from_millis(1)).await;
        }
        if self.scene.undecided {
            self.nats
                .configure(STREAM, |config| config.allow_atomic = true);
        }
    }

    async fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Write => self.write(),
            Deed::Overlap => self.overlap(),
            Deed::Rollback => self.roll_back(),
            Deed::Traffic => self.postgres.traffic(self.random.between(8, 100_000)),
            Deed::Wait => sleep(Duration::from_millis(self.random.below(20_000))).await,
            Deed::Cut => self.cut(),
            Deed::Stall => self.stall(),
            Deed::Weather => self.change_weather(),
            Deed::Kill => self.kill(),
            Deed::Stop => self.stop(),
            Deed::Start => self.start(),
            Deed::Checkpoint => self.postgres.checkpoint(),
            Deed::Running => self.postgres.running_xacts(),
            Deed::CrashPostgres => self.crash_postgres().await,
            Deed::ShutDownPostgres => self.shut_down_postgres().await,
            Deed::Terminate => self.terminate_walsender(),
            Deed::TerminateSessions => self.terminate_sessions(),
            Deed::AlterTable => self.postgres.alter_table(),
            Deed::Synchronous => self.set_synchronous(),
            Deed::LoseSlot => self.lose_slot(),
            Deed::Freeze => self.freeze().await,
            Deed::RestartNats => self.restart_nats(),
            Deed::Remake => self.remake(),
            Deed::Full => self.fill().await,
            Deed::PauseNats => self.pause_nats().await,
            Deed::LameDuck => self.lame_duck().await,
            Deed::Leaderless => self.depose().await,
            Deed::Vanish => self.vanish(),
            Deed::Purge => self.purge(),
            Deed::Stranger => self.publish_strange(),
            Deed::Copy => self.copy(),
            Deed::Advance => self.advance_slot(),
            Deed::Recreate => self.recreate_slot(),
            Deed::Promote => self.promote(),
            Deed::LoseTail => self.lose_tail(),
            Deed::LoseRecord => self.lose_record(),
            Deed::Signal => self.postgres.signal("foreign", b"?"),
            Deed::Unpublished => drop(self.postgres.unpublished(self.random.between(8, 10_000))),
        }
    }

    /// For how long something lasts: up to half a minute, mostly much less.
    async fn a_while(&mut self) {
        sleep(Duration::from_millis(self.random.of_any_size(15))).await;
    }

    /// No more faults; one instance at least.
    fn heal(&mut self) {
        self.say("no more faults");
        self.net.set_weather(Weather {
            delay_max: Duration::from_millis(1),
            bytes_max: 1 << 20,
        });
        self.nats.decide(|_| Fate::Now);
        for xid in std::mem::take(&mut self.open) {
            self.postgres.commit(xid);
        }
        if self.instances.is_empty() {
            self.start();
        }
        // Something that must get through, wherever the slot stands.
        self.write();
    }

    /// Until everything is confirmed.
    async fn quiet(&mut self) -> Result<(), String> {
        let since = Instant::now();
        let end = self
            .due()
            .iter()
            .filter(|due| !due.cut_off)
            .map(|due| due.end)
            .max();
        loop {
            self.gap_told |= self.gap();
            let confirmed = self.slot().map(|slot| slot.confirmed);
            if (confirmed.is_some() && confirmed >= end) || self.rightly_halted() {
                return Ok(());
            }
            if since.elapsed() > QUIET_MAX {
                let mut words = format!("{end:?} is not confirmed, but {confirmed:?}");
                for instance in &self.instances {
                    let (state, problem) = (instance.state().name(), instance.problem());
                    let _ = write!(words, "; outjet {} is {state}: {problem}", instance.seat);
                }
                return Err(words);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What must hold at any time.
    fn look(&mut self) -> Result<(), String> {
        if let Some(instance) = self.instances.iter().find(|instance| instance.ended()) {
            return Err(format!("outjet {} has ended", instance.seat));
        }
        if let Some(instance) = self.instances.iter().find(|it| it.state() == State::Halted) {
            return Err(format!(
                "outjet {} is halted: {}",
                instance.seat,
                instance.problem()
            ));
        }
        self.gap_told |= self.gap();
        if !self.moved && self.gap_told {
            return Err("a gap is told, and the slot was not moved".to_owned());
        }
        let Some(slot) = self.postgres.slot() else {
            return Ok(());
        };
        judge::confirmed(&self.due(), &self.found(), slot.confirmed)
    }

    fn say(&mut self, words: &str) {
        let line = format!("{:>12.6} {words}", self.began.elapsed().as_secs_f64());
        if self.aloud {
            println!("{line}");
        }
        self.trace.push_str(&line);
        self.trace.push('\n');
    }
}

/// Replies of three replicas come in any order, or not at all.
fn overtaking(random: &mut Random) -> Fate {
    match random.below(200) {
        0 => Fate::Never,
        1..=50 => Fate::After(Duration::from_micros(random.of_any_size(18))),
        _ => Fate::Now,
    }
}

/// An event's number, from its body.
fn number(body: &[u8]) -> u64 {
    let digits = body.iter().filter(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}
