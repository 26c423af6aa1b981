//! One history: a seed, what it makes of the world, what happens there, and what is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use outjet::config::{Config, Sources};
use outjet::lsn::Lsn;
use outjet::watch::vitals::State;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};

use crate::deed::Deed;
use crate::instance::Instance;
use crate::jetstream::{self, Gone, Leader, Nats, Stored, Version, Writer};
use crate::judge::{self, Due, Found};
use crate::net::{Net, Weather};
use crate::postgres::{self, Event, Phase, Postgres, Row, SlotAfter, Xid};
use crate::random::Random;
use crate::scene::{IN_FLIGHT_MAX, NATS, POSTGRES, serve, settings, weather};

/// The stream of the default configuration.
const STREAM: &str = "OUTBOX";

/// What its record is kept in.
const RECORDS: &str = "KV_OUTJET_OUTBOX";

/// How long everything may take to be settled once the faults are over.
const QUIET_MAX: Duration = Duration::from_secs(120);

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
    settings: BTreeMap<String, String>,
    config: Config,
    deeds: Vec<Deed>,
    open: Vec<Xid>,
    next: u64,
    faults: u64,
    /// Somebody has moved the slot, or the broker has forgotten something: a gap may be told.
    moved: bool,
    /// The stream has lost its end: one term has no record, and exactly once is not promised.
    blind: bool,
    /// Events may bear ids that others have borne.
    reuses_ids: bool,
    /// A gap was told at some time.
    gap_told: bool,
    /// Events that the broker has forgotten, by number.
    forgotten: BTreeSet<u64>,
    /// Events that somebody has moved the slot past, by number.
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
        let nats = Nats::new(jetstream::Options::new(version));
        let net = Net::new(random.fork(), weather(&mut random));
        serve(&net, &postgres, &nats);
        // What is left out leaves more of the rest (swarm testing).
        let mut deeds = Deed::ALL.to_vec();
        let left_out: Vec<Deed> = Deed::ALL
            .into_iter()
            .filter(|_| random.once_in(3))
            .collect();
        deeds.retain(|deed| deed.is_life() || !left_out.contains(deed));
        let reuses_ids = random.once_in(3);
        if reuses_ids {
            deeds.retain(|deed| !deed.leaves_ids_ambiguous());
        }
        let settings = settings(&mut random);
        let config = Config::load(&Sources {
            file: None,
            searched: &[],
            environment: &settings,
            overrides: &[],
        });
        let config = config.unwrap_or_else(|failure| panic!("{failure:?}"));
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
            settings,
            config,
            deeds,
            open: Vec::new(),
            next: 0,
            faults: 0,
            moved: false,
            blind: false,
            reuses_ids,
            gap_told: false,
            forgotten: BTreeSet::new(),
            passed_over: BTreeSet::new(),
        };
        world.say(&format!(
            "seed {seed}: Postgres {major}, nats-server {version:?}, {:?}",
            world.settings
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
        self.look()?;
        let told = (self.uncertain(), self.gap_told);
        judge::whole(&self.due(), &self.found(), told)
    }

    /// A first leader stands for `outjet setup`, which records the slot that it makes: from then on
    /// a slot that was read has a record.
    async fn set_up(&mut self) {
        self.start();
        while self.instances[0].state() != State::Streaming {
            sleep(Duration::from_millis(1)).await;
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
            Deed::Weather => {
                let weather = weather(&mut self.random);
                self.say(&format!("{weather:?}"));
                self.net.set_weather(weather);
            }
            Deed::Kill => self.kill(),
            Deed::Stop => self.stop(),
            Deed::Start => self.start(),
            Deed::Checkpoint => self.postgres.checkpoint(),
            Deed::Running => self.postgres.running_xacts(),
            Deed::CrashPostgres => {
                self.say("Postgres crashes");
                self.postgres.crash();
                self.open.clear();
                sleep(Duration::from_millis(self.random.below(5_000))).await;
                self.postgres.start();
            }
            Deed::ShutDownPostgres => {
                self.say("Postgres is shut down");
                self.postgres.fast_shutdown();
                self.open.clear();
                let limit = Duration::from_millis(self.random.below(30_000));
                let _ = tokio::time::timeout(limit, self.postgres.stopped()).await;
                if self.postgres.phase() != Phase::Down {
                    self.postgres.crash();
                }
                self.postgres.start();
            }
            Deed::Terminate => {
                self.say("the walsender is terminated");
                self.postgres.terminate_walsender();
            }
            Deed::Freeze => {
                self.say("the walsender is frozen");
                self.postgres.freeze(true);
                sleep(Duration::from_millis(self.random.below(30_000))).await;
                self.postgres.freeze(false);
            }
            Deed::RestartNats => {
                self.say("nats-server restarts");
                self.nats.restart();
            }
            Deed::Leaderless => {
                self.say("no stream has a leader");
                self.nats.set_leader(None, Leader::NoResponders);
                sleep(Duration::from_millis(self.random.of_any_size(15))).await;
                self.nats.set_leader(None, Leader::Present);
            }
            Deed::Vanish => self.vanish(),
            Deed::Purge => {
                let stored = self.stored(STREAM).len() as u64;
                let purged = self.nats.purge(STREAM, self.random.below(stored + 1));
                self.say(&format!("{purged} messages are purged"));
            }
            Deed::Stranger => {
                self.say("a stranger publishes");
                self.nats.publish("events.strange.made", "", b"?");
            }
            Deed::Copy => self.copy(),
            Deed::Advance => self.move_slot(|world| {
                let to = Lsn::new(world.postgres.flushed().as_u64() - world.random.below(4_000));
                world.postgres.advance_slot(to)
            }),
            Deed::Recreate => {
                self.move_slot(|world| world.postgres.drop_slot() && world.postgres.create_slot())
            }
            Deed::Promote => self.promote(),
            Deed::LoseTail => self.lose_tail(),
            Deed::LoseRecord => {
                // The first was written long ago.
                let most = self.stored(RECORDS).len().saturating_sub(1);
                let count = most.min(self.random.index(3) + 1);
                let lost = self.lose(RECORDS, count).len();
                self.say(&format!("{lost} writes of the record are lost"));
                // Nothing tells the slot from one that was moved beyond what is recorded.
                self.moved |= lost > 0;
            }
            Deed::Signal => self.postgres.signal("foreign", b"?"),
            Deed::Unpublished => drop(self.postgres.unpublished(self.random.between(8, 10_000))),
        }
    }

    /// Some of the newest messages.
    fn vanish(&mut self) {
        let stored = self.stored(STREAM).len() as u64;
        for _ in 0..self.random.between(1, 4) {
            let sequence = stored.saturating_sub(self.random.of_any_size(5));
            if self.nats.delete(STREAM, sequence) {
                self.say(&format!("message {sequence} vanishes"));
            }
        }
    }

    /// One of ours comes again, as somebody copies messages: without expectations, perhaps with its
    /// id.
    fn copy(&mut self) {
        let stored = self.stored(STREAM);
        if stored.is_empty() {
            return;
        }
        let message = self.random.of(&stored).clone();
        let block = String::from_utf8_lossy(&message.headers).into_owned();
        let with_id = self.random.once_in(2);
        let lines = block.split("\r\n").skip(1).filter(|line| {
            let kept = with_id || !line.starts_with("Nats-Msg-Id");
            !line.is_empty() && kept && !line.starts_with("Nats-Expected")
        });
        let lines: String = lines.map(|line| format!("{line}\r\n")).collect();
        self.say(&format!("message {} is copied", message.sequence));
        let subject = String::from_utf8_lossy(&message.subject).into_owned();
        self.nats.publish(&subject, &lines, &message.body);
    }

    /// All that a stream has ever stored, but for what it has lost.
    fn stored(&self, stream: &str) -> Vec<Stored> {
        let all = self.nats.stored(stream).into_iter();
        let all = all.flat_map(|incarnation| incarnation.messages);
        let lost = |stored: &Stored| matches!(stored.gone, Some((_, Gone::Lost)));
        all.filter(|stored| !lost(stored)).collect()
    }

    /// `kill -9` of a server that has not written its newest messages to disk: they are gone from
    /// a stream, and are returned.
    fn lose(&mut self, stream: &str, count: usize) -> Vec<Stored> {
        self.nats.restart();
        let mut stored = self.stored(stream);
        let lost = stored.split_off(stored.len().saturating_sub(count));
        if let Some(first) = lost.first() {
            self.nats.truncate(stream, first.sequence - 1);
        }
        lost
    }

    /// A power failure. Without `stream.hold` nobody promises that it is noticed each time.
    fn lose_tail(&mut self) {
        let count = usize::try_from(self.random.of_any_size(6)).expect("small");
        let lost = self.lose(STREAM, count);
        self.say(&format!(
            "the last {} messages of the stream are lost",
            lost.len()
        ));
        self.blind |= !lost.is_empty();
        self.moved |= !lost.is_empty();
        let ours = lost
            .iter()
            .filter(|message| message.writer != Writer::Stranger);
        self.forgotten
            .extend(ours.map(|message| number(&message.body)));
    }

    /// By hand, with everybody stopped.
    fn move_slot(&mut self, deed: impl FnOnce(&mut Self) -> bool) {
        while !self.instances.is_empty() {
            self.kill();
        }
        let Some(before) = self.postgres.slot() else {
            return;
        };
        if !deed(self) {
            return;
        }
        self.moved = true;
        let after = self.postgres.slot().expect("a slot").confirmed;
        self.say(&format!(
            "the slot is moved from {} to {after}",
            before.confirmed
        ));
        let found = self.found();
        let stored = |number| found.iter().any(|found| found.number == number);
        for due in self.due() {
            if due.owed() && due.end <= after && !stored(due.number) {
                self.say(&format!("event {} is passed over", due.number));
                self.passed_over.insert(due.number);
            }
        }
    }

    fn promote(&mut self) {
        let lost = self.random.of_any_size(14);
        let until = Lsn::new(self.postgres.flushed().as_u64().saturating_sub(lost));
        let slot = self.postgres.slot().map_or(until, |slot| slot.saved);
        let slot = *self.random.of(&[SlotAfter::InStep, SlotAfter::At(slot)]);
        self.say(&format!(
            "a standby is promoted at {until}, its slot {slot:?}"
        ));
        self.postgres.promote(until, slot);
        self.open.clear();
    }

    /// A few transactions, each committed at once.
    fn write(&mut self) {
        for _ in 0..self.random.between(1, 12) {
            let Some(xid) = self.postgres.begin() else {
                return;
            };
            let most = if self.random.once_in(20) { 60 } else { 4 };
            for _ in 0..self.random.between(1, most) {
                self.insert(xid);
            }
            let end = self.postgres.commit(xid);
            self.say(&format!("committed up to event {}: {end:?}", self.next));
        }
    }

    fn insert(&mut self, xid: Xid) {
        self.next += 1;
        // An event of its own all the same.
        let mut id = self.next;
        if self.reuses_ids && self.random.once_in(10) {
            id = self.random.between(1, self.next);
            self.say(&format!("event {} bears the id of event {id}", self.next));
        }
        let id = uuid::Uuid::from_u128(u128::from(id)).to_string();
        let mut row = Row::new(id, format!("{{\"n\": {}}}", self.next));
        row.aggregateid = self.random.between(1, 5).to_string();
        self.postgres.insert(xid, row);
        if self.random.once_in(10) {
            self.postgres.message(xid, "foreign", b"?");
        }
    }

    /// Begins, goes on with, or commits one of several open transactions.
    fn overlap(&mut self) {
        if self.open.len() < 4
            && let Some(xid) = self.postgres.begin()
        {
            self.open.push(xid);
        }
        for _ in 0..self.random.between(1, 8) {
            if !self.open.is_empty() {
                let xid = *self.random.of(&self.open);
                self.insert(xid);
            }
        }
        if !self.open.is_empty() && !self.random.once_in(3) {
            let xid = self.open.swap_remove(self.random.index(self.open.len()));
            let end = self.postgres.commit(xid);
            self.say(&format!("committed {xid:?}: {end:?}"));
        }
    }

    fn roll_back(&mut self) {
        if let Some(xid) = self.open.pop() {
            self.say(&format!("rolled back {xid:?}"));
            self.postgres.rollback(xid);
        }
    }

    fn cut(&mut self) {
        let (seat, to) = self.some_links();
        let mut after = || match self.random.below(3) {
            0 => 0,
            1 => self.random.below(200),
            _ => self.random.below(20_000),
        };
        let after = [after(), after()];
        let links = self.net.cut(seat, to, after);
        self.say(&format!(
            "{links} links of {seat:?} to {to:?} are cut after {after:?} bytes"
        ));
    }

    fn stall(&mut self) {
        let (seat, to) = self.some_links();
        let time = Duration::from_millis(self.random.of_any_size(15));
        let links = self.net.stall(seat, to, time);
        self.say(&format!(
            "{links} links of {seat:?} to {to:?} stall for {time:?}"
        ));
    }

    fn some_links(&mut self) -> (Option<usize>, Option<SocketAddr>) {
        let seats: Vec<usize> = self
            .instances
            .iter()
            .map(|instance| instance.seat)
            .collect();
        let seat = (!seats.is_empty() && !self.random.once_in(3)).then(|| *self.random.of(&seats));
        let to = *self
            .random
            .of(&[None, Some(POSTGRES), Some(NATS), Some(NATS)]);
        (seat, to)
    }

    fn start(&mut self) {
        if self.instances.len() < 3 {
            self.say(&format!("outjet {} starts", self.seats));
            let instance = Instance::start(&self.net, self.seats, &self.config);
            self.instances.push(instance);
            self.seats += 1;
        }
    }

    fn kill(&mut self) {
        if !self.instances.is_empty() {
            let instance = self
                .instances
                .swap_remove(self.random.index(self.instances.len()));
            self.say(&format!("outjet {} is killed", instance.seat));
            instance.kill();
            self.past.push(instance);
        }
    }

    fn stop(&mut self) {
        if !self.instances.is_empty() {
            let instance = self
                .instances
                .swap_remove(self.random.index(self.instances.len()));
            self.say(&format!("outjet {} is stopped", instance.seat));
            instance.stop();
            self.past.push(instance);
        }
    }

    /// No more faults; one instance at least.
    fn heal(&mut self) {
        self.say("no more faults");
        self.net.set_weather(Weather {
            delay_max: Duration::from_millis(1),
            bytes_max: 1 << 20,
        });
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
            let slot = self.postgres.slot().ok_or("there is no slot")?;
            if end.is_none_or(|end| slot.confirmed >= end) || self.rightly_halted() {
                return Ok(());
            }
            if since.elapsed() > QUIET_MAX {
                let mut words = format!("{end:?} is not confirmed, but {}", slot.confirmed);
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

    fn due(&self) -> Vec<Due> {
        let log = self.postgres.log();
        let due = log.iter().filter_map(|committed| match &committed.event {
            Event::Row(row) if committed.published => {
                let number = number(row.payload.as_deref()?.as_bytes());
                Some(Due {
                    number,
                    end: committed.end_lsn,
                    cut_off: committed.lost || self.forgotten.contains(&number),
                    passed_over: self.passed_over.contains(&number),
                })
            }
            _ => None,
        });
        due.collect()
    }

    fn found(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for (stream, dead) in [(STREAM, false), ("OUTBOX_DLQ", true)] {
            let mut disturbed = 0;
            for message in self.stored(stream) {
                match message.writer {
                    Writer::Stranger => disturbed = message.sequence + IN_FLIGHT_MAX,
                    Writer::Connection(_) | Writer::Server => found.push(Found {
                        number: number(&message.body),
                        dead,
                        disturbed: message.sequence <= disturbed,
                    }),
                }
            }
        }
        found
    }

    fn halted(&self) -> Option<&Instance> {
        let mut instances = self.instances.iter();
        instances.find(|instance| instance.state() == State::Halted)
    }

    /// It needs a person, and says so.
    fn rightly_halted(&self) -> bool {
        let words = ["was moved", "nothing shows that slot"];
        let moved = |it: &Instance| {
            words
                .iter()
                .any(|words| self.moved && it.problem().contains(words))
        };
        self.halted().is_some_and(moved)
    }

    fn gap(&self) -> bool {
        self.instances.iter().chain(&self.past).any(Instance::gap)
    }

    /// How many events may be there twice.
    fn uncertain(&self) -> u64 {
        if self.blind {
            return u64::MAX;
        }
        let all = self.instances.iter().chain(&self.past);
        all.map(Instance::uncertain).sum()
    }

    /// What the stream has stored, for a reader of the trace.
    fn say_stored(&mut self) {
        for message in self.stored(STREAM) {
            let headers = String::from_utf8_lossy(&message.headers).into_owned();
            let header = |name: &str| {
                let line = headers.lines().find(|line| line.starts_with(name));
                line.unwrap_or_default().to_owned()
            };
            let words = format!(
                "{} stored by {:?} at {}: event {}, {} {} {}{}",
                message.sequence,
                message.writer,
                message.time,
                number(&message.body),
                header("Outjet-Position"),
                header("Outjet-Source"),
                header("Nats-Msg-Id"),
                if message.gone.is_none() { "" } else { ", gone" },
            );
            self.say(&words);
        }
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

/// An event's number, from its body.
fn number(body: &[u8]) -> u64 {
    let digits = body.iter().filter(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}
