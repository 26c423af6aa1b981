//! The servers, the copies of outjet and the links between them, and how a fault is done to each.

use std::fs;
use std::time::Duration;

use super::plan::{
    self, CopyFault, LinkFault, NatsFault, Past, Plan, PostgresFault, Settings, TAKEOVER_AFTER,
};
use super::promoted::Succession;
use super::watch::{self, NAMES};
use super::{LOOK, STREAM};
use crate::harness::cluster::Cluster;
use crate::harness::outjet::Output;
use crate::harness::postgres::Session;
use crate::harness::process::{Signal, signal_if_alive};
use crate::harness::{Judge, Mode, Nats, Outjet, Postgres, Proxy, Stop, nats, outjet, postgres};
use async_nats::jetstream;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

/// An orderly stop takes `drain_timeout` and what the end of a term takes; debug build, busy cores.
const TERMINATE_WITHIN: Duration = Duration::from_secs(60);

/// Ten times takeover_after: by then Postgres has thrown out every walsender that is silent.
const FAST_STOP_MAX: Duration = Duration::from_secs(20);

/// The database, and what can be done to it.
pub(crate) struct Database {
    /// The one that can be written to.
    pub(crate) server: Postgres,
    /// Where a standby is to take over from it.
    pub(crate) succession: Option<Succession>,
}

/// The broker, and what can be done to it. Outjet and the judge know no more of it than addresses
/// and a client.
pub(crate) enum Broker {
    /// A single server.
    Single(Nats),
    /// Three, of which one will be down: two are just enough, and faults take these in turn.
    Three {
        /// All of them.
        cluster: Cluster,
        /// The one that is down, or will be.
        down: usize,
        /// How many faults were done.
        faults: usize,
    },
}

/// A copy of outjet that is started again whenever it was ended.
pub(crate) struct Copy {
    number: usize,
    name: String,
    environment: Vec<(&'static str, String)>,
    plan: Plan,
    /// How often it was started.
    starts: u64,
    /// Whether the server keeps events until they are due.
    keeps: bool,
    outjet: Outjet,
    /// What earlier processes have logged.
    past: String,
    problems: Vec<String>,
}

/// The only ways that one copy knows to the servers.
pub(crate) struct Links {
    /// To Postgres.
    pub(crate) postgres: Proxy,
    /// To each server of NATS that is not down.
    pub(crate) nats: Vec<Proxy>,
}

impl Database {
    /// A server whose decoding spills transactions to disk early.
    pub(crate) async fn start(postgres: postgres::Builder, plan: &Plan) -> Self {
        let small = postgres.setting("logical_decoding_work_mem", "256kB").tcp();
        if plan.past != Some(Past::Promoted) {
            return Self {
                server: small.start().await,
                succession: None,
            };
        }
        let mut server = Succession::settings(small).start().await;
        let succession = Some(Succession::prepare(&mut server, plan.seed).await);
        Self { server, succession }
    }

    /// Where it is, and stays when a standby has taken over.
    pub(crate) fn url(&self) -> String {
        let succession = self.succession.as_ref();
        succession.map_or_else(|| self.server.url(), Succession::url)
    }

    /// Who judges what is committed. Nothing may have been written yet.
    pub(crate) async fn judge(&self) -> Judge {
        match self.succession {
            Some(_) => Judge::with_failover(&self.server).await,
            None => Judge::appoint(&self.server).await,
        }
    }

    /// Loses the server and the end of what it had committed to a standby.
    pub(crate) async fn promote(&mut self, links: &[Links], lasts: Duration) {
        let succession = self.succession.as_mut().expect("there is a standby");
        succession.strike(&mut self.server, links, lasts).await;
    }

    /// Does it, waits, and makes up for it.
    pub(crate) async fn strike(&mut self, fault: PostgresFault, lasts: Duration) {
        match fault {
            PostgresFault::Kill => self.server.crash().await,
            PostgresFault::StopFast => self.stop_fast().await,
            PostgresFault::StopImmediate => self.server.stop(Stop::Immediate).await,
            PostgresFault::TerminateWalsender
            | PostgresFault::KillWalsender
            | PostgresFault::PauseWalsender => return self.strike_walsender(fault, lasts).await,
            PostgresFault::Promote => unreachable!("it is done with all links"),
        }
        sleep(lasts).await;
        self.server.start_again().await;
    }

    /// A walsender that was terminated while its connection is silent can hang in its farewell, and
    /// the stop with it: then the operator loses patience.
    async fn stop_fast(&mut self) {
        self.server.begin_stop(Stop::Fast);
        if timeout(FAST_STOP_MAX, self.server.stopped()).await.is_err() {
            self.server.stop(Stop::Immediate).await;
        }
    }

    /// What the server has logged, and before it the one that it took over from.
    pub(crate) fn log(&self) -> String {
        let dead = self.succession.as_ref().and_then(Succession::dead);
        let servers = dead.into_iter().chain([&self.server]);
        let logs = servers.map(|server| fs::read_to_string(server.log()));
        logs.map(|log| log.expect("the server's log")).collect()
    }

    /// Nothing happens if nobody leads.
    async fn strike_walsender(&self, fault: PostgresFault, lasts: Duration) {
        let Ok(session) = Session::try_connect(&self.server.url()).await else {
            return;
        };
        let Ok(Some((walsender, _))) = watch::holder(&session).await else {
            return;
        };
        match fault {
            PostgresFault::TerminateWalsender => {
                let sql = format!("SELECT pg_terminate_backend({walsender})");
                let _ = session.batch_execute(&sql).await;
            }
            PostgresFault::KillWalsender => {
                signal_if_alive(walsender, Signal::KILL);
            }
            PostgresFault::PauseWalsender => {
                signal_if_alive(walsender, Signal::STOP);
                sleep(lasts).await;
                signal_if_alive(walsender, Signal::CONT);
            }
            PostgresFault::Kill
            | PostgresFault::StopFast
            | PostgresFault::StopImmediate
            | PostgresFault::Promote => {}
        }
    }
}

impl Broker {
    /// As many servers as the plan has replicas.
    pub(crate) async fn start(nats: nats::Builder, plan: &Plan) -> Self {
        if plan.replicas == 1 {
            return Self::Single(nats.start().await);
        }
        Self::Three {
            cluster: Cluster::of(3, &nats).await,
            down: plan.seed as usize % 3,
            faults: 0,
        }
    }

    /// Takes one of three down for good. The stream must have been made.
    pub(crate) async fn lose_one(&mut self) {
        if let Self::Three { cluster, down, .. } = self {
            cluster.nodes[*down].kill().await;
        }
    }

    /// What the servers have logged.
    pub(crate) fn log(&self) -> String {
        let nodes = match self {
            Self::Single(nats) => std::slice::from_ref(nats),
            Self::Three { cluster, .. } => &cluster.nodes,
        };
        let logs = nodes.iter().map(|nats| fs::read_to_string(nats.log()));
        logs.map(|log| log.expect("the server's log")).collect()
    }

    /// For those who look on: past all links.
    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        match self {
            Self::Single(nats) => nats.jetstream().await,
            Self::Three { cluster, .. } => cluster.jetstream().await,
        }
    }

    /// Whether it keeps events until they are due.
    pub(crate) async fn keeps(&self) -> bool {
        let jetstream = self.jetstream().await;
        jetstream.client().is_server_compatible(2, 12, 1)
    }

    fn url(&self) -> String {
        match self {
            Self::Single(nats) => nats.url(),
            Self::Three { cluster, .. } => cluster.url(),
        }
    }

    /// Where the links of one copy lead.
    fn links(&self) -> Vec<Proxy> {
        match self {
            Self::Single(nats) => vec![Proxy::before_port(nats.port())],
            Self::Three { cluster, down, .. } => {
                let nodes = cluster.nodes.iter().enumerate();
                let up = nodes.filter(|(node, _)| node != down);
                up.map(|(_, nats)| Proxy::before_port(nats.port()))
                    .collect()
            }
        }
    }

    /// Whose turn it is.
    fn next(&mut self) -> &mut Nats {
        match self {
            Self::Single(nats) => nats,
            Self::Three {
                cluster,
                down,
                faults,
            } => {
                *faults += 1;
                &mut cluster.nodes[(*down + 1 + *faults % 2) % 3]
            }
        }
    }

    /// Does it, waits, and makes up for it. Says how many stored messages are lost.
    pub(crate) async fn strike(&mut self, fault: NatsFault, lasts: Duration) -> u64 {
        let nats = self.next();
        match fault {
            NatsFault::Kill => nats.kill().await,
            NatsFault::Stop => nats.stop().await,
            NatsFault::Pause => {
                nats.process().pause().await;
                sleep(lasts).await;
                nats.process().resume();
                return 0;
            }
            NatsFault::Forget => return forget(nats, lasts).await,
        }
        sleep(lasts).await;
        nats.start_again().await;
        0
    }
}

/// Takes it back to where it was when that began. A process that stands still leaves the files
/// like one that was killed, and nobody else notices.
async fn forget(nats: &mut Nats, lasts: Duration) -> u64 {
    let begun = Instant::now();
    nats.process().pause().await;
    let store = nats.back_up();
    nats.process().resume();
    let remembered = last_sequence(nats).await;
    sleep(lasts.saturating_sub(begun.elapsed())).await;
    let mut last = last_sequence(nats).await;
    while last == remembered && begun.elapsed() < plan::FORGOTTEN_MAX {
        sleep(LOOK).await;
        last = last_sequence(nats).await;
    }
    nats.kill().await;
    // On a machine that stood still, too, what is lost must have been held back.
    let in_time = begun.elapsed() < plan::HOLD * 9 / 10;
    if in_time {
        nats.put_back(store);
    }
    nats.start_again().await;
    if in_time { last - remembered } else { 0 }
}

async fn last_sequence(nats: &Nats) -> u64 {
    let stream = nats.jetstream().await.get_stream(STREAM).await;
    let stream = stream.expect("the stream");
    stream.cached_info().state.last_sequence
}

impl Copy {
    /// A copy behind links of its own. `outjet setup` must have run.
    pub(crate) fn start(number: usize, links: &Links, plan: &Plan, keeps: bool) -> Self {
        let name = format!("{NAMES}{number}");
        let database = format!("postgres://postgres@{}/postgres", links.postgres.address());
        let nats = links.nats.iter();
        let nats: Vec<String> = nats
            .map(|nats| format!("nats://{}", nats.address()))
            .collect();
        let environment = vec![
            ("PGAPPNAME", name.clone()),
            ("DATABASE_URL", database),
            ("NATS_URL", nats.join(",")),
        ];
        let mut settings = plan.settings(number, 0);
        settings.delayed_now = !keeps;
        let yaml = configuration(plan, settings);
        let outjet = call(&environment, &yaml, ["run", "--log-format", "json"]).spawn();
        Self {
            number,
            name,
            environment,
            plan: plan.clone(),
            starts: 1,
            keeps,
            outjet,
            past: String::new(),
            problems: Vec::new(),
        }
    }

    /// Does it, waits, and makes up for it.
    pub(crate) async fn strike(&mut self, fault: CopyFault, lasts: Duration) {
        self.must_run();
        match fault {
            CopyFault::Kill => {
                self.outjet.kill().await;
            }
            CopyFault::Terminate => self.terminate().await,
            CopyFault::Pause | CopyFault::PauseLong => {
                self.outjet.pause().await;
                sleep(lasts).await;
                return self.outjet.resume();
            }
            CopyFault::PutRecordBack | CopyFault::MoveSlot(_) => {
                unreachable!("it is done to all copies")
            }
        }
        sleep(lasts).await;
        self.start_again();
    }

    /// Whether it has logged this since it was started.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.outjet.stderr().contains(text) || self.outjet.stdout().contains(text)
    }

    /// Ends it, one way or the other.
    pub(crate) async fn end(&mut self, orderly: bool) {
        self.must_run();
        if orderly {
            self.terminate().await;
        } else {
            self.outjet.kill().await;
        }
    }

    /// SIGTERM, and its end.
    pub(crate) async fn terminate(&mut self) {
        self.must_run();
        let code = self.outjet.terminate(TERMINATE_WITHIN).await;
        if code != Some(0) {
            let problem = format!("{} ended with {code:?} after SIGTERM", self.name);
            self.problems.push(problem);
        }
    }

    /// What it has done that it must not do, and all that it has logged.
    pub(crate) fn account(mut self, is_expected: impl Fn(&str) -> bool) -> (Vec<String>, String) {
        self.remember();
        let lines = self.past.lines().filter(|line| says_error(line));
        let halts = lines.filter(|line| !is_expected(line));
        let halts = halts.map(|line| format!("{}: {line}", self.name));
        self.problems.extend(halts);
        (self.problems, self.past)
    }

    /// It never ends by itself: that would be a crash.
    fn must_run(&mut self) {
        if let Some(status) = self.outjet.exited() {
            let problem = format!("{} ended by itself: {status}", self.name);
            self.problems.push(problem);
            self.start_again();
        }
    }

    /// With the settings of that start.
    pub(crate) fn start_again(&mut self) {
        self.remember();
        let mut settings = self.plan.settings(self.number, self.starts);
        settings.delayed_now |= !self.keeps;
        self.starts += 1;
        let yaml = configuration(&self.plan, settings);
        let run = ["run", "--log-format", "json"];
        self.outjet = call(&self.environment, &yaml, run).spawn();
    }

    fn remember(&mut self) {
        self.past.push_str(&self.outjet.stderr());
        self.past.push_str(&self.outjet.stdout());
    }
}

impl Links {
    /// To both servers.
    pub(crate) fn to(database: &Database, broker: &Broker) -> Self {
        Self {
            // Not the socket: a walsender whose farewell does not fit into it waits for ever.
            postgres: Proxy::before_port(database.server.port().expect("it listens")),
            nats: broker.links(),
        }
    }
}

/// Does it to all links of a kind at once, waits, and makes up for it.
pub(crate) async fn strike_links(links: &[Proxy], fault: LinkFault, lasts: Duration) {
    join_all(links.iter().map(|link| strike_link(link, fault, lasts))).await;
}

async fn strike_link(link: &Proxy, fault: LinkFault, lasts: Duration) {
    match fault {
        LinkFault::Cut => return link.cut(),
        LinkFault::Freeze => {
            link.freeze();
            sleep(lasts).await;
            return link.thaw();
        }
        LinkFault::Forget => return link.freeze(),
        LinkFault::CutAfter(direction, bytes) => link.set(Mode::Cut(direction, bytes)),
        LinkFault::Stall(direction) => link.set(Mode::Stall(direction)),
        LinkFault::Delay(delay) => link.set(Mode::Delay(delay)),
        LinkFault::Refuse => link.set(Mode::Refuse),
    }
    sleep(lasts).await;
    link.set(Mode::Forward);
}

/// Who types commands, past all links.
pub(crate) struct Operator {
    environment: [(&'static str, String); 2],
    yaml: String,
}

impl Operator {
    /// Of both servers.
    pub(crate) async fn of(database: &Database, broker: &Broker, plan: &Plan) -> Self {
        let mut settings = plan.first;
        settings.delayed_now = !broker.keeps().await;
        Self {
            environment: [("DATABASE_URL", database.url()), ("NATS_URL", broker.url())],
            yaml: configuration(plan, settings),
        }
    }

    /// How that ended.
    pub(crate) async fn types(&self, command: &str) -> Output {
        let arguments = command.split(' ');
        call(&self.environment, &self.yaml, arguments)
            .output()
            .await
    }

    /// Makes slot, publication, schema and stream.
    pub(crate) async fn set_up(&self) {
        let output = self.types("setup").await;
        assert_eq!(output.code, Some(0), "{output:?}");
    }
}

fn call<'a>(
    environment: &[(&'static str, String)],
    yaml: &str,
    arguments: impl IntoIterator<Item = &'a str>,
) -> outjet::Builder {
    let builder = Outjet::builder().args(arguments).config(yaml);
    let set = |builder: outjet::Builder, (name, value): &(&'static str, String)| {
        builder.env(name, value.clone())
    };
    environment.iter().fold(builder, set)
}

/// Short times, and a duplicate window that is over before it could hide anything.
fn configuration(plan: &Plan, settings: Settings) -> String {
    format!(
        "
postgres: {{takeover_after: {}s, connect_timeout: 2s}}
nats: {{connect_timeout: 2s}}
stream: {{name: {STREAM}, replicas: {}, duplicate_window: {}, hold: {}s}}
publish: {{transactions: {}, ack_timeout: 1s, drain_timeout: 3s, in_flight_max: {},
  in_flight_bytes_max: {}KiB, delayed: {}}}
messages: {{prefixes: [{}]}}
",
        TAKEOVER_AFTER.as_secs(),
        plan.replicas,
        // What vanishes leaves nothing behind but its id.
        if plan.strangers.is_empty() && plan.past.is_none() {
            "100ms"
        } else {
            "2m"
        },
        if plan.hold { plan::HOLD.as_secs() } else { 0 },
        if plan.atomic { "atomic" } else { "pipelined" },
        settings.in_flight_max,
        settings.in_flight_kib_max,
        if settings.delayed_now {
            "now"
        } else {
            "schedule"
        },
        // Without one, no dead letter can be retried.
        if plan.letters.is_empty() {
            ""
        } else {
            "outbox"
        },
    )
}

/// Only a halt is an error: somebody must act, and here nobody has to.
fn says_error(line: &str) -> bool {
    let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
    line.is_none_or(|line| line["level"] == "ERROR")
}
