//! One writer: a leader that was stopped or cut off, and others who point at our stream, append
//! nothing out of turn and cost no event.
//!
//! Each copy has its own ways to both servers. The stream remembers message ids for 100 ms, so that
//! nothing but the chain and the guard keeps two leaders apart.

mod rivals;
mod witness;

use serde_json::Value;

use self::witness::Witness;
use crate::harness::proxy::Upstream;
use crate::harness::stage::{SOON, Stage};
use crate::harness::{Direction, Mode, Nats, Outjet, Proxy, Wait, nats, until};
use crate::sink::more_stored;

/// Takeovers after four seconds: on a busy machine there would be some that nobody asked for.
const BRISK: &str = "
postgres: {takeover_after: 4s}
nats: {connect_timeout: 2s}
stream: {duplicate_window: 100ms}
publish: {ack_timeout: 1s}
";

/// The same, but a frozen connection to NATS is not given up: what it holds back stays in flight.
const PATIENT: &str = "
postgres: {takeover_after: 4s}
nats: {connect_timeout: 2s}
stream: {duplicate_window: 100ms}
publish: {ack_timeout: 60s}
";

const LEADING: &str = "leading";
const STANDING_BY: &str = "standing by: another copy leads";

/// One of several copies of outjet.
struct Contender {
    outjet: Outjet,
    nats: Proxy,
    postgres: Proxy,
    /// The log was read up to this line.
    read: usize,
}

impl Contender {
    fn start(stage: &Stage) -> Self {
        let nats = Proxy::before_port(stage.world.nats.port());
        let postgres = Proxy::start(Upstream::Unix(stage.world.postgres.socket()));
        let database = format!("postgres://postgres@{}/postgres", postgres.address());
        let outjet = stage
            .outjet(["run", "--log-format", "json"])
            .env("NATS_URL", format!("nats://{}", nats.address()))
            .env("DATABASE_URL", database)
            .spawn();
        Self {
            outjet,
            nats,
            postgres,
            read: 0,
        }
    }

    /// Waits for the next line whose message begins like this, behind those that were waited for.
    async fn says(&mut self, message: &str) -> Value {
        let what = format!("the log goes on with {message:?}");
        until(&what, SOON, async || {
            if let Some(status) = self.outjet.exited() {
                return Wait::Broken(format!("it ended: {status}"));
            }
            let lines = self.outjet.log();
            let begins = |line: &Value| text(line, "message").starts_with(message);
            let Some(at) = lines[self.read..].iter().position(begins) else {
                return Wait::NotYet(format!("{:?}", &lines[self.read..]));
            };
            self.read += at + 1;
            Wait::Ready(lines[self.read - 1].clone())
        })
        .await
    }

    /// Its term ends with a reason, and it does not lead again before it stands by.
    async fn stands_by(&mut self) {
        let ended = self.says("retrying: ").await;
        assert!(!text(&ended, "cause").is_empty(), "{ended}");
        let from = self.read;
        self.says(STANDING_BY).await;
        let lines = &self.outjet.log()[from..self.read];
        let led = lines.iter().find(|line| text(line, "message") == LEADING);
        assert_eq!(led, None, "two lead at once");
        eprintln!("the term ended: {}", text(&ended, "cause"));
    }
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

/// A leader, and another copy that stands by.
async fn pair(stage: &Stage) -> (Contender, Contender) {
    let mut leader = Contender::start(stage);
    leader.says(LEADING).await;
    let mut standby = Contender::start(stage);
    standby.says(STANDING_BY).await;
    (leader, standby)
}

/// What keeps a leader from leading, until it is over.
#[derive(Clone, Copy)]
enum Trouble {
    Paused,
    WithoutPostgres,
    WithoutNats,
}

impl Trouble {
    async fn begin(self, leader: &mut Contender) {
        match self {
            Self::Paused => leader.outjet.pause().await,
            Self::WithoutPostgres => leader.postgres.set(Mode::Stall(Direction::Both)),
            Self::WithoutNats => leader.nats.set(Mode::Stall(Direction::Both)),
        }
    }

    fn end(self, leader: &mut Contender) {
        match self {
            Self::Paused => leader.outjet.resume(),
            Self::WithoutPostgres => leader.postgres.set(Mode::Forward),
            Self::WithoutNats => leader.nats.set(Mode::Forward),
        }
    }
}

/// Under load two copies succeed each other, and whoever led wakes up while the other one leads.
async fn succeed_each_other(trouble: Trouble) {
    let stage = Stage::on(Nats::builder(), BRISK).await;
    let (mut leader, mut standby) = pair(&stage).await;
    let writers = stage.write(3).await;
    for _ in 0..4 {
        more_stored(&stage, 200).await;
        trouble.begin(&mut leader).await;
        standby.says(LEADING).await;
        more_stored(&stage, 200).await;
        trouble.end(&mut leader);
        leader.stands_by().await;
        std::mem::swap(&mut leader, &mut standby);
    }
    writers.finish().await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn leader_that_is_paused_and_wakes_up_under_another_one_stores_nothing_out_of_turn() {
    succeed_each_other(Trouble::Paused).await;
}

#[tokio::test]
async fn leader_that_is_cut_off_from_postgres_alone_is_succeeded_and_stores_nothing_out_of_turn() {
    succeed_each_other(Trouble::WithoutPostgres).await;
}

#[tokio::test]
async fn leader_that_is_cut_off_from_nats_alone_gives_the_slot_to_a_copy_that_reaches_it() {
    succeed_each_other(Trouble::WithoutNats).await;
}

/// It would hold the slot without any use, while a third copy might have NATS.
#[tokio::test]
async fn standby_that_is_cut_off_from_nats_leaves_a_free_slot_alone() {
    let stage = Stage::on(Nats::builder(), BRISK).await;
    let (mut leader, mut standby) = pair(&stage).await;
    let started = "starting logical decoding for slot \"outjet\"";
    let terms = || {
        let log = std::fs::read_to_string(stage.world.postgres.log());
        log.expect("the server's log").matches(started).count()
    };
    assert_eq!(terms(), 1);
    stage.commit(1..=20).await;
    standby.nats.set(Mode::Stall(Direction::Both));
    leader.outjet.kill().await;
    standby.says("retrying: NATS at ").await;
    assert_eq!(terms(), 1, "it took the slot");
    standby.nats.set(Mode::Forward);
    standby.says(LEADING).await;
    assert_eq!(terms(), 2);
    stage.assert_exact().await;
}

/// How a leader whose last messages are still on their way is got rid of.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Killed,
    /// It wakes up when they have arrived.
    WakesLate,
    /// They arrive when it has woken up.
    WakesEarly,
}

#[tokio::test]
async fn what_an_old_leader_had_in_flight_arrives_under_the_new_one_and_is_refused() {
    late_arrivals(Nats::builder()).await;
}

#[tokio::test]
async fn what_an_old_leader_had_in_flight_is_refused_by_the_oldest_server() {
    late_arrivals(Nats::builder().version("2.10")).await;
}

async fn late_arrivals(nats: nats::Builder) {
    let stage = Stage::on(nats, PATIENT).await;
    let witness = Witness::of(&stage).await;
    let (mut leader, mut standby) = pair(&stage).await;
    for fate in [Fate::WakesLate, Fate::Killed, Fate::WakesEarly] {
        let last = in_flight(&stage, &leader).await;
        match fate {
            Fate::Killed => drop(leader.outjet.kill().await),
            Fate::WakesLate | Fate::WakesEarly => leader.outjet.pause().await,
        }
        let writers = stage.write(3).await;
        standby.says(LEADING).await;
        more_stored(&stage, u64::from(IN_FLIGHT) / 2).await;
        if let Fate::WakesEarly = fate {
            leader.outjet.resume();
        }
        leader.nats.thaw();
        let late = witness.until_followed(&last, 100).await;
        eprintln!("{fate:?}: {late} messages came late");
        more_stored(&stage, 200).await;
        match fate {
            Fate::Killed => {
                leader = Contender::start(&stage);
                leader.says(STANDING_BY).await;
            }
            Fate::WakesLate => {
                leader.outjet.resume();
                leader.stands_by().await;
            }
            Fate::WakesEarly => leader.stands_by().await,
        }
        writers.finish().await;
        std::mem::swap(&mut leader, &mut standby);
    }
    stage.assert_exact().await;
}

/// So many events are held back on their way to NATS.
const IN_FLIGHT: u32 = 400;

/// Lets the leader send events that do not arrive; returns the id of the last one that did.
async fn in_flight(stage: &Stage, leader: &Contender) -> String {
    stage.commit(1..=1).await;
    stage.confirmed().await;
    let stream = stage.stream().await;
    let last = stream.get_raw_message(stream.cached_info().state.last_sequence);
    let last = last.await.expect("the newest message");
    let last = last.headers.get("Nats-Msg-Id").expect("an id").to_string();
    leader.nats.freeze();
    for first in (1..=IN_FLIGHT).step_by(10) {
        stage.commit(first..=first + 9).await;
    }
    // What is read is sent: the window has room for all of it.
    let flushed = "SELECT pg_current_wal_flush_lsn()";
    let flushed = stage.session.text(flushed).await;
    let sql = format!(
        "SELECT write_lsn >= '{flushed}' FROM pg_stat_replication WHERE state = 'streaming'"
    );
    stage.session.until_text(&sql, "t", SOON).await;
    last
}
