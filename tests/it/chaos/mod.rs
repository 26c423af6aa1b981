//! Everything fails at random while events are written: outjet, Postgres, nats-server and the
//! connections between them. Then table and stream are compared: same ids, same bodies, commit
//! order, each once.
//!
//! A seed names the plan of faults and the contents; how they interleave is the machine's. One
//! round has servers of its own. Continuous integration plays short rounds; `scripts/chaos`
//! (`examples/chaos.rs`) plays as many as one likes.

#![allow(dead_code, reason = "tests and the example take out what they need")]

mod arena;
mod contents;
mod letters;
mod moved;
mod past;
pub(crate) mod plan;
pub(crate) mod promoted;
pub(crate) mod report;
mod roll;
mod strangers;
mod watch;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep, sleep_until};

use crate::harness::drain::{self, Stored};
use crate::harness::outbox::Random;
use crate::harness::postgres::{self, Session};
use crate::harness::{Judge, Proxy, Verdict, nats};
use arena::{Broker, Copy, Database, Links, Operator};
use contents::{Known, Writers};
use letters::Letters;
use past::{Consumer, Evidence, Found};
use plan::{
    CopyFault, LinkFault, Moving, NatsFault, Past, Plan, Planned, PostgresFault, Release,
    StrangerFault, Whom,
};
use promoted::Tail;
use report::{Report, Struck};
use strangers::Strangers;
use watch::Watch;

const STREAM: &str = "OUTBOX";

/// How long a fault waits for a running stream; then it hits something that does not run.
const AWAIT_STREAM_MAX: Duration = Duration::from_secs(4);

/// How often is looked whether it is time.
const LOOK: Duration = Duration::from_millis(20);

/// Plays a plan on servers of its own, shows each fault as it is done, and judges the stream.
pub(crate) async fn play(
    mut plan: Plan,
    servers: (postgres::Builder, nats::Builder),
    show: impl Fn(&Struck),
) -> Report {
    let mut round = Box::pin(Round::begin(&plan, servers)).await;
    plan.spare(|release| round.broker_is(release));
    let Round {
        database,
        broker,
        operator,
        url,
        links,
        copies,
        jetstream,
        consumer,
        ..
    } = &mut round;
    let (links, jetstream) = (&*links, &*jetstream);
    let watch = Watch::start(jetstream.clone(), url);
    let writers = Writers::start(url, plan.seed);
    let stage = Stage::new(&plan, &watch, &show);
    let (mut strangers, mut letters) = (Strangers::default(), Letters::default());
    let to_postgres = |copy: usize| std::slice::from_ref(&links[copy].postgres);
    let to_nats = |copy: usize| links[copy].nats.as_slice();
    tokio::join!(
        stage.postgres(&plan, (database, links)),
        stage.nats(&plan, broker),
        stage.copies(&plan, copies, (jetstream, operator, url)),
        stage.strangers(&plan, (jetstream, consumer.as_ref()), &mut strangers),
        stage.letters(&plan, (operator, url, jetstream), &mut letters),
        stage.links(&plan.postgres_link, "to Postgres", to_postgres),
        stage.links(&plan.nats_link, "to NATS", to_nats),
    );
    let mut known = writers.finish().await;
    let session = Session::connect(url).await;
    let drained_in = roll::drain(&session).await;
    let takeovers = watch.takeovers();
    let mut problems = roll::call(&session, &mut round.copies).await;

    let (committed, tail) = round.committed(&session, &mut known, &mut problems).await;
    let hands = (&strangers, &letters);
    let found = round.judged(&stage, (&plan, hands), (committed, &tail));
    let found = found.await;
    problems.extend(found.problems);
    let (accused, mut logs) = round.account(&stage);
    logs.push(("places".to_owned(), found.places));
    problems.extend(accused);
    Report {
        struck: stage.struck.take(),
        takeovers,
        forgotten: stage.forgotten.get(),
        drained_in,
        verdict: found.verdict,
        lost_tail: found.lost_tail,
        differing: report::differing(&found.stored),
        batches: report::batches(&found.stored[..found.at_once], &plan),
        uncertain: found.uncertain,
        unseen: found.unseen,
        rolled_back: known.rolled_back.len(),
        unknown: known.unknown,
        problems,
        logs,
        plan,
    }
}

/// Servers, copies and links, and who looks on.
struct Round {
    database: Database,
    broker: Broker,
    operator: Operator,
    url: String,
    judge: Judge,
    links: Vec<Links>,
    copies: Vec<Copy>,
    jetstream: async_nats::jetstream::Context,
    /// Where the past changes.
    consumer: Option<Consumer>,
}

/// What was found.
struct Judged {
    verdict: Verdict,
    lost_tail: (usize, usize),
    stored: Vec<Stored>,
    /// How many of these are the stream's; the others were delayed.
    at_once: usize,
    /// Where those messages are that should not be there.
    places: String,
    uncertain: usize,
    unseen: usize,
    problems: Vec<String>,
}

impl Round {
    /// Starts everything.
    async fn begin(plan: &Plan, servers: (postgres::Builder, nats::Builder)) -> Self {
        let (database, mut broker) = tokio::join!(
            Database::start(servers.0, plan),
            Broker::start(servers.1, plan)
        );
        let url = database.url();
        let judge = database.judge().await;
        let session = database.server.connect().await;
        session.run(contents::BUSINESS).await;
        past::make_queue(&broker.jetstream().await, plan).await;
        let operator = Operator::of(&database, &broker, plan).await;
        operator.set_up().await;
        broker.lose_one().await;
        let keeps = broker.keeps().await;
        let links = (0..plan.copies).map(|_| Links::to(&database, &broker));
        let links: Vec<Links> = links.collect();
        let copies = links.iter().enumerate();
        let copies = copies.map(|(number, links)| Copy::start(number, links, plan, keeps));
        let copies = copies.collect();
        let jetstream = broker.jetstream().await;
        let mut consumer = None;
        if plan.past.is_some() {
            session.run(&past::variety(plan)).await;
            consumer = Some(Consumer::start(&jetstream).await);
            if let Some(succession) = &database.succession {
                succession.slots_are_kept(&session).await;
            }
            past::prelude(&session).await;
        }
        Self {
            database,
            broker,
            operator,
            url,
            judge,
            links,
            copies,
            jetstream,
            consumer,
        }
    }

    /// Whether the broker is of this release or a later one.
    fn broker_is(&self, (major, minor, patch): Release) -> bool {
        let client = self.jetstream.client();
        client.is_server_compatible(major, minor, patch)
    }

    /// What was committed, and what of it died with a server. Writers and table must agree.
    async fn committed(
        &mut self,
        session: &Session,
        known: &mut Known,
        problems: &mut Vec<String>,
    ) -> (Vec<String>, Tail) {
        let judge = self.judge.clone().moved(&self.database.server);
        let committed = judge.committed().await;
        let tail = Tail::of(&mut self.database, &judge, &committed).await;
        problems.extend(tail.problem.clone());
        known.committed.retain(|id| !tail.lost.contains(id));
        let table = table(session).await;
        problems.extend(report::disagreements(&committed, &table, known));
        (committed, tail)
    }

    /// Compares what was committed with what is stored, or was.
    async fn judged(
        &self,
        stage: &Stage<'_>,
        (plan, (strangers, letters)): (&Plan, (&Strangers, &Letters)),
        (mut committed, tail): (Vec<String>, &Tail),
    ) -> Judged {
        let Some(consumer) = &self.consumer else {
            let stored = strangers.ours(drain::messages(&self.jetstream, STREAM).await);
            return Judged {
                verdict: strangers.verdict(committed, report::ids(&stored)),
                lost_tail: (0, 0),
                at_once: stored.len(),
                places: String::new(),
                stored,
                uncertain: 0,
                unseen: 0,
                problems: Vec::new(),
            };
        };
        let evidence = Evidence {
            plan,
            strangers,
            forgot_at: stage.forgot_at(),
            lost: &tail.lost,
        };
        let found = Found::by(consumer, &evidence).await;
        let mut problems = Vec::new();
        if plan.past.is_some_and(Past::has_letters) {
            let rejected = committed.extract_if(.., |id| letters::is_rejected(id));
            let rejected: Vec<String> = rejected.filter(|id| strangers.left(id)).collect();
            let mut kept = letters::all(&self.jetstream).await;
            kept.retain(|letter| letter.id().is_none_or(|id| strangers.left(id)));
            problems = letters.problems(&rejected, (&kept, &found.corrected));
        }
        let mut verdict = found.verdict(&evidence, committed);
        let stored = found.messages();
        let (of_tail, twice) = tail.among(&stored);
        verdict.duplicated.extend(twice);
        Judged {
            places: found.places(&verdict),
            verdict,
            lost_tail: (tail.lost.len(), of_tail),
            stored,
            at_once: found.stored.len(),
            uncertain: found.uncertain,
            unseen: found.unseen,
            problems,
        }
    }

    /// What copies have done that they must not do, and all logs.
    fn account(self, stage: &Stage<'_>) -> (Vec<String>, Vec<(String, String)>) {
        let mut logs = vec![
            ("faults".to_owned(), stage.log()),
            ("postgres".to_owned(), self.database.log()),
            ("nats".to_owned(), self.broker.log()),
        ];
        let mut problems = stage.problems.take();
        let was_put_back = stage.did(CopyFault::PutRecordBack);
        let was_moved = [Moving::Advance, Moving::Recreate, Moving::Drop]
            .into_iter()
            .any(|moving| stage.did(CopyFault::MoveSlot(moving)));
        let is_expected = |line: &str| {
            (was_put_back && past::is_gap(line)) || (was_moved && moved::is_report(line))
        };
        for (number, copy) in self.copies.into_iter().enumerate() {
            let (found, log) = copy.account(is_expected);
            problems.extend(found);
            logs.push((format!("outjet-{number}"), log));
        }
        (problems, logs)
    }
}

/// The ids in the outbox.
async fn table(session: &Session) -> Vec<String> {
    let rows = session.query("SELECT id::text FROM outbox.events", &[]);
    let rows = rows.await.expect("the outbox's rows");
    rows.iter().map(|row| row.get(0)).collect()
}

/// Where faults are done: one method for each track.
struct Stage<'a> {
    started: Instant,
    started_at: OffsetDateTime,
    end: Instant,
    watch: &'a Watch,
    show: &'a dyn Fn(&Struck),
    struck: RefCell<Vec<Struck>>,
    /// How many stored messages the broker lost.
    forgotten: Cell<u64>,
    problems: RefCell<Vec<String>>,
}

impl<'a> Stage<'a> {
    fn new(plan: &Plan, watch: &'a Watch, show: &'a dyn Fn(&Struck)) -> Self {
        let started = Instant::now();
        Self {
            started,
            started_at: OffsetDateTime::now_utc(),
            end: started + plan.length,
            watch,
            show,
            struck: RefCell::new(Vec::new()),
            forgotten: Cell::new(0),
            problems: RefCell::new(Vec::new()),
        }
    }

    async fn postgres(&self, plan: &Plan, (database, links): (&mut Database, &[Links])) {
        for planned in &plan.postgres {
            // A round that is about a promotion has one, however late it is.
            let promotes = planned.fault == PostgresFault::Promote;
            if self.is_over_before(planned).await && !promotes {
                continue;
            }
            self.note(planned.fault.to_string(), lasting(planned.lasts), None);
            match promotes {
                true => database.promote(links, planned.lasts).await,
                false => database.strike(planned.fault, planned.lasts).await,
            }
        }
    }

    async fn nats(&self, plan: &Plan, broker: &mut Broker) {
        for planned in &plan.nats {
            if self.is_over_before(planned).await {
                break;
            }
            self.note(planned.fault.to_string(), lasting(planned.lasts), None);
            let forgotten = broker.strike(planned.fault, planned.lasts).await;
            self.forgotten.update(|before| before + forgotten);
        }
    }

    async fn copies(
        &self,
        plan: &Plan,
        copies: &mut [Copy],
        (jetstream, operator, url): (&async_nats::jetstream::Context, &Operator, &str),
    ) {
        // Others than the writers'.
        let mut random = Random(plan.seed ^ 1 << 40);
        for planned in &plan.copy {
            if self.is_over_before(planned).await {
                break;
            }
            let (whom, fault) = planned.fault;
            match fault {
                CopyFault::PutRecordBack => {
                    let struck = self.struck(fault.to_string(), lasting(planned.lasts), None);
                    if past::put_record_back(jetstream, copies, planned.lasts).await {
                        self.show(struck);
                    }
                    continue;
                }
                CopyFault::MoveSlot(moving) => {
                    self.note(fault.to_string(), String::new(), None);
                    let moving = (moving, &mut random);
                    let moved = moved::strike((operator, url), copies, moving).await;
                    self.problems.borrow_mut().extend(moved.err());
                    continue;
                }
                _ => {}
            }
            let whom = self.whom(whom);
            self.note(fault.to_string(), lasting(planned.lasts), Some(whom));
            copies[whom].strike(fault, planned.lasts).await;
        }
    }

    async fn strangers(
        &self,
        plan: &Plan,
        (jetstream, consumer): (&async_nats::jetstream::Context, Option<&Consumer>),
        strangers: &mut Strangers,
    ) {
        for planned in &plan.strangers {
            if self.is_over_before(planned).await {
                break;
            }
            let purges = planned.fault == StrangerFault::Purge;
            let read_to = match consumer {
                Some(consumer) if purges => consumer.read_to().await,
                _ => 0,
            };
            if purges && read_to == 0 {
                continue;
            }
            let details = match purges {
                true => format!("up to {read_to}"),
                false => String::new(),
            };
            self.note(planned.fault.to_string(), details, None);
            strangers.strike(jetstream, planned.fault, read_to).await;
        }
    }

    async fn letters(
        &self,
        plan: &Plan,
        (operator, url, jetstream): (&Operator, &str, &async_nats::jetstream::Context),
        letters: &mut Letters,
    ) {
        for planned in &plan.letters {
            if self.is_over_before(planned).await {
                break;
            }
            let (fault, lasts) = (planned.fault, planned.lasts);
            let struck = self.struck(fault.to_string(), lasting(lasts), None);
            let typed = letters.strike((operator, url), jetstream, (fault, lasts));
            if typed.await {
                self.show(struck);
            }
        }
    }

    async fn links<'l>(
        &self,
        track: &[Planned<(Whom, LinkFault)>],
        name: &str,
        links: impl Fn(usize) -> &'l [Proxy],
    ) {
        for planned in track {
            if self.is_over_before(planned).await {
                break;
            }
            let (whom, fault) = planned.fault;
            let whom = self.whom(whom);
            let details = format!("{} {}", lasting(planned.lasts), fault.details());
            self.note(format!("{name}: {fault}"), details, Some(whom));
            arena::strike_links(links(whom), fault, planned.lasts).await;
        }
    }

    /// Waits until it is time for a fault; or says that the time for faults is over.
    async fn is_over_before<F>(&self, planned: &Planned<F>) -> bool {
        if planned.awaits_stream {
            let deadline = Instant::now() + AWAIT_STREAM_MAX;
            while !self.watch.stream_runs() && Instant::now() < deadline.min(self.end) {
                sleep(LOOK).await;
            }
        }
        sleep_until(self.end.min(Instant::now() + planned.after)).await;
        Instant::now() >= self.end
    }

    fn whom(&self, whom: Whom) -> usize {
        match whom {
            Whom::Leader => self.watch.leader(),
            Whom::Copy(number) => number,
        }
    }

    /// What was done, beginning with the times that the copies' logs have.
    fn log(&self) -> String {
        let line = |struck: &Struck| {
            let at = (self.started_at + struck.at).format(&Rfc3339);
            format!("{} {struck}\n", at.expect("a time of our age"))
        };
        self.struck.borrow().iter().map(line).collect()
    }

    /// Whether this was done.
    fn did(&self, fault: CopyFault) -> bool {
        let kind = fault.to_string();
        self.struck
            .borrow()
            .iter()
            .any(|struck| struck.kind == kind)
    }

    /// When a server of NATS was stopped or killed.
    fn forgot_at(&self) -> Vec<OffsetDateTime> {
        let ends = [NatsFault::Kill, NatsFault::Stop].map(|fault| fault.to_string());
        let struck = self.struck.borrow();
        let ended = struck.iter().filter(|struck| ends.contains(&struck.kind));
        ended.map(|struck| self.started_at + struck.at).collect()
    }

    fn note(&self, kind: String, details: String, whom: Option<usize>) {
        self.show(self.struck(kind, details, whom));
    }

    fn show(&self, struck: Struck) {
        (self.show)(&struck);
        self.struck.borrow_mut().push(struck);
    }

    /// What is done to a copy that does not lead hits nothing that runs.
    fn struck(&self, kind: String, details: String, whom: Option<usize>) -> Struck {
        let leads = whom.is_none_or(|whom| whom == self.watch.leader());
        let named = whom.map_or(String::new(), |whom| {
            let role = if leads { "leader" } else { "standby" };
            format!("{role} {whom} ")
        });
        Struck {
            at: self.started.elapsed(),
            kind,
            details: format!("{named}{details}"),
            hit: leads && self.watch.stream_runs(),
        }
    }
}

fn lasting(lasts: Duration) -> String {
    format!("{:.2} s", lasts.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Nats, Postgres};

    /// Short, as these run with everything else; `scripts/chaos` plays longer.
    const LENGTH: Duration = Duration::from_secs(15);

    /// Of about 25 faults: a verdict over a stream that never ran would say little.
    const HITS_MIN: usize = 3;

    /// Whether a stream runs when a fault strikes is chance, and seldom so on a busy machine.
    const ROUNDS_MAX: u64 = 6;

    /// Plays rounds, of the seeds from this one on and each perfect, until they say enough.
    async fn play_short(
        seed: u64,
        plan: impl Fn(u64) -> Plan,
        nats: nats::Builder,
        say_enough: impl Fn(&[Report]) -> bool,
    ) {
        let mut reports = Vec::new();
        for seed in seed..seed + ROUNDS_MAX {
            let plan = plan(seed);
            let postgres = match plan.past {
                Some(Past::Promoted) => Postgres::builder().version(promoted::WITH_FAILOVER_SLOTS),
                _ => Postgres::builder(),
            };
            let servers = (postgres, nats.clone());
            let played = play(plan, servers, |struck| eprintln!("{struck}"));
            let report = Box::pin(played).await;
            eprintln!("{report}");
            if !report.is_perfect() {
                for (name, log) in &report.logs {
                    eprintln!("--- {name}\n{log}");
                }
            }
            assert!(report.is_perfect(), "\n{report}");
            reports.push(report);
            if say_enough(&reports) {
                return;
            }
        }
        panic!("hardly any fault hit a stream");
    }

    fn struck(reports: &[Report], kind: &str) -> bool {
        reports
            .iter()
            .any(|report| report.kinds().contains_key(kind))
    }

    fn hits(reports: &[Report]) -> usize {
        reports.iter().map(Report::hits).sum()
    }

    #[tokio::test]
    async fn stream_is_what_was_committed_while_everything_fails_at_random() {
        let plan = |seed| Plan::new(seed, LENGTH);
        play_short(1, plan, Nats::builder(), |reports| {
            hits(reports) >= HITS_MIN
        })
        .await;
    }

    #[tokio::test]
    async fn stream_is_what_was_committed_while_everything_fails_around_the_oldest_nats() {
        let plan = |seed| Plan::new(seed, LENGTH);
        let oldest = Nats::builder().version("2.10");
        play_short(2, plan, oldest, |reports| hits(reports) >= HITS_MIN).await;
    }

    /// Order apart: what a stranger displaces goes out behind what was under way with it.
    #[tokio::test]
    async fn each_event_is_stored_once_while_strangers_write_copy_and_delete_and_everything_fails()
    {
        let plan = |seed| Plan::among_strangers(seed, LENGTH);
        play_short(5, plan, Nats::builder(), |reports| {
            hits(reports) >= HITS_MIN
        })
        .await;
    }

    /// Where messages were consumed, and the server forgot their ids, some may be stored twice: the
    /// judge says which.
    #[tokio::test]
    async fn each_event_is_stored_once_while_a_consumer_empties_the_stream_and_everything_fails() {
        let plan = |seed| Plan::changing(seed, Past::Consumed, LENGTH / 2);
        play_short(8, plan, Nats::builder(), |reports| {
            let kinds = [
                "record: put back while no copy runs",
                "dead letter: retried",
            ];
            hits(reports) >= HITS_MIN && kinds.iter().all(|kind| struck(reports, kind))
        })
        .await;
    }

    #[tokio::test]
    async fn each_event_is_stored_once_while_events_expire_and_are_purged_and_everything_fails() {
        let plan = |seed| Plan::changing(seed, Past::Expiring, LENGTH / 3);
        play_short(7, plan, Nats::builder(), |reports| {
            hits(reports) >= HITS_MIN && struck(reports, "stranger: purges what was read")
        })
        .await;
    }

    #[tokio::test]
    async fn slot_that_passes_over_events_is_reported_and_recovered_while_everything_fails() {
        let plan = |seed| Plan::changing(seed, Past::Moved, LENGTH / 2);
        play_short(9, plan, Nats::builder(), |reports| {
            let moves = ["slot: advanced while no copy runs", "slot: dropped"];
            hits(reports) >= HITS_MIN && moves.iter().any(|kind| struck(reports, kind))
        })
        .await;
    }

    /// What the standby never got was committed nowhere, and may be stored once.
    #[tokio::test]
    async fn lagging_standby_that_is_promoted_while_everything_fails_costs_only_what_it_lacks() {
        let plan = |seed| Plan::changing(seed, Past::Promoted, LENGTH / 2);
        play_short(1, plan, Nats::builder(), |reports| {
            let published = |report: &Report| report.lost_tail.1 > 0;
            let takes_over = |report: &Report| report.takeovers > 0;
            hits(reports) >= HITS_MIN
                && reports.iter().any(published)
                && reports.iter().any(takes_over)
        })
        .await;
    }

    #[tokio::test]
    async fn broker_that_forgets_while_everything_fails_costs_nothing_that_was_held_back() {
        // With links at peace the stream runs more often, and the broker has something to lose.
        let plan = |seed| Plan {
            postgres_link: Vec::new(),
            nats_link: Vec::new(),
            ..Plan::holding(seed, LENGTH)
        };
        play_short(4, plan, Nats::builder(), |reports| {
            hits(reports) >= HITS_MIN && reports.iter().any(|report| report.forgotten > 0)
        })
        .await;
    }

    #[tokio::test]
    async fn transactions_are_whole_while_everything_fails_around_two_nodes_of_three() {
        let plan = |seed| Plan {
            replicas: 3,
            atomic: true,
            ..Plan::new(seed, LENGTH * 2)
        };
        let batching = Nats::builder().version(nats::BATCHING);
        // A cluster that has lost its quorum for a moment elects for seconds.
        play_short(3, plan, batching, |reports| hits(reports) >= 1).await;
    }
}
