//! Leading and standing by: what comes before a relay, what follows its end, and what is done about
//! it. A term is one stint of leading; the slot is the lock. Everything that ends a term, but a
//! stop, ends in one of three ways: try again, stand by, or halt until a person has acted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::backoff::{self, Backoff};
use crate::error::{Disposition, Exit, Failure, Problem};
use crate::event::assemble::{self, Assembler};
use crate::event::lineage::{Lineage, Source};
use crate::lead::record::{self, Begun, Server};
use crate::lead::relay::{self, End, Relay, Start};
use crate::lead::traces::Traces;
use crate::lead::window::Confirmed;
use crate::lsn::Lsn;
use crate::pg::catalog::{Facts, Holder, Leading, Slot};
use crate::pg::control::Control;
use crate::pg::params::Params;
use crate::pg::replication::{Session, Stream};
use crate::preflight;
use crate::sink::jetstream::{self, JetStream};
use crate::watch::vitals::{State, Vitals};

/// Everything that a term is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// The database.
    pub params: Params,
    /// What must be there in it.
    pub preflight: preflight::Options,
    /// How rows become events.
    pub assemble: assemble::Options,
    /// Where events go.
    pub sink: jetstream::Options,
    /// How the relay keeps pace.
    pub relay: relay::Options,
    /// Whether a halt ends the program.
    pub exit_on_halt: bool,
    /// Where it says how it is doing.
    pub vitals: Arc<Vitals>,
    /// How often a halted copy looks whether the cause is gone.
    pub halt_retry: Duration,
}

/// How often a standby looks whether the slot is free: a takeover takes about this long.
const STANDBY_POLL: Duration = Duration::from_millis(200);

/// Least time in which a question must be answered before a term: the usual takeover_after. None of
/// them takes long, and what is given up is tried again.
const ANSWER_MIN: Duration = Duration::from_secs(10);

/// How often a leader looks whether its tables are published: rows that are not are passed over
/// without a word, and none of them comes later.
const PUBLICATION_POLL: Duration = Duration::from_secs(5);

/// Leads or stands by until it is told to stop; `Err` only with `exit_on_halt`. `before` must have
/// worked once before the first term.
pub async fn run(
    options: &Options,
    before: impl AsyncFn() -> Result<(), Failure>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let name = options.params.network.unique();
    let mut instance = Instance {
        options,
        stop,
        backoff: Backoff::new(backoff::Options::default(), name.as_u128()),
        led: false,
        name: name.to_string(),
        confirmed: None,
        void: false,
    };
    let mut halted = None;
    let mut prepared = false;
    while !stop.is_cancelled() {
        let lead = async {
            if !prepared {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    done = before() => done?,
                }
                prepared = true;
            }
            Box::pin(instance.lead()).await
        };
        let Err(failure) = Box::pin(lead).await else {
            return Ok(());
        };
        match failure.disposition {
            Disposition::Retry => {
                halted = None;
                instance.pause(&failure).await;
            }
            Disposition::Standby => {
                options.vitals.set(State::Standby, None);
                instance.wait(STANDBY_POLL).await;
            }
            Disposition::Halt if options.exit_on_halt => {
                return Err(Failure {
                    exit: Exit::Halted,
                    ..failure
                });
            }
            Disposition::Halt => {
                let problem = Some(failure.problem.clone());
                options.vitals.set(State::Halted, problem);
                // Once more if it seemed to be over: the last line must not be "leading". Not again
                // for a cause with another number in it.
                let told = |told: &Problem| {
                    told.problem == failure.problem.problem && told.fix == failure.problem.fix
                };
                if std::mem::take(&mut instance.led) || !halted.as_ref().is_some_and(told) {
                    let Problem {
                        problem,
                        cause,
                        fix,
                    } = &failure.problem;
                    error!(%cause, %fix, "halted: {problem}");
                    halted = Some(failure.problem);
                }
                instance.wait(options.halt_retry).await;
            }
        }
    }
    Ok(())
}

/// This process, through all its terms.
struct Instance<'a> {
    options: &'a Options,
    stop: &'a CancellationToken,
    backoff: Backoff,
    /// Since the last halt it has said that it leads.
    led: bool,
    /// Names this process in the record.
    name: String,
    /// How far it has confirmed, and on which timeline.
    confirmed: Option<(u32, Lsn)>,
    /// An event has shown that the record does not hold.
    void: bool,
}

/// What was learned before leading.
struct Ready {
    control: Control,
    session: Session,
    lineage: Lineage,
    sink: JetStream,
}

impl Instance<'_> {
    /// One term: gets ready, takes the slot, streams. `Ok` if it was told to stop.
    async fn lead(&mut self) -> Result<(), Failure> {
        let stop = self.stop;
        let leading = async {
            let ready = self.prepare().await?;
            let lead = Box::pin(self.take_slot(ready)).await?;
            Box::pin(self.claim(lead)).await
        };
        let (lead, begun) = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            lead = leading => lead?,
        };
        self.void = false;
        match self.backoff.attempts() {
            0 => {}
            attempts => info!(attempts, "recovered"),
        }
        self.led = true;
        self.options.vitals.set(State::Streaming, None);
        let started = Instant::now();
        let end = Box::pin(self.stream(lead, begun)).await;
        self.options.vitals.end_of_term();
        // A term that ends as soon as it starts is one more failed attempt.
        if started.elapsed() >= self.options.relay.takeover_after {
            self.backoff.worked();
        }
        end
    }

    /// Connects to everything and checks it; changes nothing but a missing stream. What is wrong is
    /// told by the same checks, in the same order, as `outjet check` does.
    async fn prepare(&self) -> Result<Ready, Failure> {
        self.options.vitals.beat();
        let params = &self.options.params;
        let timeout = self.options.relay.takeover_after.as_millis().to_string();
        let startup = [("wal_sender_timeout", timeout)];
        let pg = |error: crate::pg::Error| error.failure(params);
        let control = Control::connect(params).await.map_err(pg)?;
        self.preflight(&control).await?;
        let mut session = Session::connect(params, &startup).await.map_err(pg)?;
        let (system, history) = self
            .answered(async {
                let system = session.identify_system().await.map_err(pg)?;
                let history = session.timeline_history(system.timeline).await;
                Ok((system, history.map_err(pg)?))
            })
            .await?;
        let slot = self.options.preflight.slot.clone();
        let source = Source {
            system: system.id,
            timeline: system.timeline,
            slot,
        };
        let ended = history
            .iter()
            .map(|switch| (switch.timeline, switch.ended_at.as_u64()));
        let lineage = Lineage::new(source, ended.collect());
        let sink = self.open_sink(&mut session, &lineage).await?;
        Ok(Ready {
            control,
            session,
            lineage,
            sink,
        })
    }

    /// Connects to NATS. What halts us was found beside a server that must still be there: after a
    /// failover the stream may be ahead of the one that we have asked.
    async fn open_sink(
        &self,
        session: &mut Session,
        lineage: &Lineage,
    ) -> Result<JetStream, Failure> {
        let opened = JetStream::open(self.options.sink.clone(), lineage.clone()).await;
        if opened
            .as_ref()
            .is_err_and(|failure| failure.disposition == Disposition::Halt)
        {
            let params = &self.options.params;
            let asked = session.identify_system();
            let asked = async { asked.await.map_err(|error| error.failure(params)) };
            self.answered(asked).await?;
        }
        opened
    }

    /// Everything but that somebody else leads.
    async fn preflight(&self, control: &Control) -> Result<(), Failure> {
        let facts = self.facts(control).await?;
        let checks = preflight::judge(&facts, &self.options.preflight);
        let failed = checks
            .iter()
            .filter_map(|check| Some((check.group, check.failure()?)))
            .find(|(_, failure)| failure.disposition != Disposition::Standby);
        match failed {
            None => {
                self.options.vitals.started();
                Ok(())
            }
            Some(("slot", failure)) if facts.slot.is_none() => {
                let gone = self.slot_gone(&facts).await;
                Err(gone.unwrap_or_else(|| failure.clone()))
            }
            Some((_, failure)) => Err(failure.clone()),
        }
    }

    /// Whether the slot is missing that has fed the stream, as on a standby that was promoted
    /// without it. A stream that cannot be read does not tell.
    async fn slot_gone(&self, facts: &Facts) -> Option<Failure> {
        let ours = Source {
            system: facts.server.system_identifier.clone(),
            timeline: 0,
            slot: self.options.preflight.slot.clone(),
        };
        let wanted = &self.options.preflight;
        match Box::pin(Traces::find(&self.options.sink, &ours)).await {
            Ok(traces) => traces.slot_gone(facts, wanted),
            Err(error) => Some(Traces::unknown(wanted, &error)),
        }
    }

    async fn facts(&self, control: &Control) -> Result<Facts, Failure> {
        let wanted = &self.options.preflight;
        let names = wanted.table_names();
        let facts = Facts::read(control.client(), &wanted.slot, &wanted.publication, &names);
        self.answered(async { facts.await.map_err(|error| error.failure()) })
            .await
    }

    /// The slot as it is now.
    async fn slot(&self, control: &Control) -> Result<Option<Slot>, Failure> {
        let slot = Slot::read(control.client(), &self.options.preflight.slot);
        self.answered(async { slot.await.map_err(|error| error.failure()) })
            .await
    }

    /// A server that says nothing at all (its machine is gone, a firewall has forgotten us) would
    /// hold us for as long as TCP is patient, a quarter of an hour or for ever: a standby that asks
    /// it would never take over.
    async fn answered<T>(
        &self,
        asked: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let within = self.options.relay.takeover_after.max(ANSWER_MIN);
        let answered = tokio::time::timeout(within, asked).await;
        answered.unwrap_or_else(|_| {
            Err(Failure::retry(Problem::new(
                format!("Postgres at {} does not answer", self.options.params),
                format!("no answer within {} s", within.as_secs()),
                "see whether the server is overloaded or gone, and whether something on the way \
                 forgets connections; with a slow network, raise postgres.takeover_after",
            )))
        })
    }

    /// Takes the slot, or stands by until it can be taken.
    async fn take_slot(&self, ready: Ready) -> Result<Lead, Failure> {
        let Ready {
            control,
            mut session,
            lineage,
            mut sink,
        } = ready;
        let wanted = &self.options.preflight;
        let mut stood_by = false;
        loop {
            let (start, slot_used) = self.before_start(&mut session).await?;
            let publications = std::slice::from_ref(&wanted.publication);
            let starting = session.start(&wanted.slot, publications, true);
            let started = self.answered(async { Ok(starting.await) }).await?;
            let (returned, error) = match started {
                Ok(stream) => {
                    return Ok(Lead {
                        control,
                        stream,
                        start,
                        slot_used,
                        lineage,
                        synchronous: Arc::default(),
                        sink,
                    });
                }
                Err(refused) => refused,
            };
            if error.sqlstate() != Some(SLOT_ACTIVE) {
                return Err(error.failure(&self.options.params));
            }
            session = returned;
            // Nobody would drive its connection meanwhile.
            drop(sink);
            self.options.vitals.set(State::Standby, None);
            if !std::mem::replace(&mut stood_by, true) {
                self.log_standby(&control).await?;
            }
            self.wait_for_slot(&control).await?;
            // Things may have changed, and another leader has written: look again. Before the slot
            // is taken, because without NATS it would only be kept from a copy that has it. What
            // is stored in between takes the place of our first event, which is refused then.
            self.preflight(&control).await?;
            sink = self.open_sink(&mut session, &lineage).await?;
        }
    }

    /// Claims the record of what is settled, now that nobody else can lead.
    async fn claim(&self, mut lead: Lead) -> Result<(Lead, Begun), Failure> {
        let slot = &self.options.preflight.slot;
        let facts = Leading::read(lead.control.client(), slot);
        let facts = self.answered(async { facts.await.map_err(|error| error.failure()) });
        let Some(facts) = facts.await? else {
            if let Some(error) = ending(&mut lead.stream).await {
                return Err(error.failure(&self.options.params));
            }
            return Err(Failure::retry(Problem::new(
                "Postgres is not the server that it was a moment ago",
                format!("slot {slot} is not in use there"),
                "nothing: both connections are made anew",
            )));
        };
        let timeline = lead.lineage.source().timeline;
        let confirmed = self.confirmed.filter(|(on, _)| *on == timeline);
        let server = Server {
            start: facts.confirmed.unwrap_or(lead.start),
            slot_used: lead.slot_used,
            flush: facts.flushed,
            standby: facts.standby,
            confirmed_here: confirmed.map_or(Lsn::ZERO, |(_, lsn)| lsn),
            void: self.void,
        };
        lead.start = server.start;
        lead.synchronous.store(facts.synchronous, Ordering::Relaxed);
        let patience = self.options.relay.takeover_after;
        let Lead {
            stream,
            sink,
            lineage,
            ..
        } = &mut lead;
        let claim = async {
            let claim = Box::pin(record::claim(sink, lineage, server, &self.name));
            // The stream may be waited for, too.
            let begun = tokio::time::timeout(patience + jetstream::BEHIND_MAX, claim).await;
            let silent = |_| Err(record::not_written("its bucket is silent"));
            let begun = begun.unwrap_or_else(silent)?;
            Box::pin(sink.begin(begun.past)).await?;
            Ok(begun)
        };
        let begun: Begun = tokio::select! {
            biased;
            begun = Box::pin(claim) => begun?,
            error = stay_connected(stream, server.start, patience / 3) => {
                return Err(error.failure(&self.options.params));
            }
        };
        let gap = begun.gap.map(|gap| {
            let found = gap.problem(slot);
            let Problem {
                problem,
                cause,
                fix,
            } = &found;
            error!(%cause, %fix, "gap: {problem}");
            (gap.to.bytes_since(gap.from), found)
        });
        self.options.vitals.slot_gap(gap);
        Ok((lead, begun))
    }

    /// Where the slot stands, and whether it was ever read, asked on the connection that will
    /// stream it: after a failover another one may lead to another server. Once it streams, it is
    /// being read.
    async fn before_start(&self, session: &mut Session) -> Result<(Lsn, bool), Failure> {
        let slot = postgres_protocol::escape::escape_literal(&self.options.preflight.slot);
        let sql = include_str!("../../sql/confirmed_flush.sql").replace("$1", &slot);
        let rows = session.query(&sql);
        let params = &self.options.params;
        let rows = self.answered(async { rows.await.map_err(|error| error.failure(params)) });
        let mut values = rows
            .await?
            .into_iter()
            .next()
            .unwrap_or_default()
            .into_iter();
        let lsn = values.next().flatten().and_then(|lsn| lsn.parse().ok());
        let used = values.next().flatten().is_some_and(|used| used == "t");
        // A slot that is being made has no position yet.
        Ok((lsn.unwrap_or(Lsn::ZERO), used))
    }

    /// Says who leads; a stranger may hold the slot for ever.
    async fn log_standby(&self, control: &Control) -> Result<(), Failure> {
        let name = &self.options.preflight.slot;
        let holder = self.slot(control).await?.and_then(|slot| slot.holder);
        let leader = holder.as_ref().map(Holder::to_string);
        match holder {
            Some(holder) if !holder.outjet() => {
                let fix = preflight::free_slot(&holder);
                warn!(
                    slot = name,
                    leader, fix, "standing by: another program holds the slot"
                );
            }
            Some(_) | None => info!(slot = name, leader, "standing by: another copy leads"),
        }
        Ok(())
    }

    async fn wait_for_slot(&self, control: &Control) -> Result<(), Failure> {
        loop {
            tokio::time::sleep(STANDBY_POLL).await;
            self.options.vitals.beat();
            match self.slot(control).await? {
                Some(slot) if slot.active => {}
                // Free, or gone: taking it says which.
                Some(_) | None => return Ok(()),
            }
        }
    }

    /// Returns when the tables are not published any more. Not what halts a term otherwise: what is
    /// read is decoded with the catalog of its time, and a connection that breaks is made anew.
    async fn watch_publication(&self, control: &mut Control, synchronous: &AtomicBool) -> Failure {
        let slot = &self.options.preflight.slot;
        loop {
            tokio::time::sleep(PUBLICATION_POLL).await;
            if let Ok(Some(leading)) = Leading::read(control.client(), slot).await {
                synchronous.store(leading.synchronous, Ordering::Relaxed);
            }
            let Ok(facts) = self.facts(control).await else {
                if let Ok(anew) = Control::connect(&self.options.params).await {
                    *control = anew;
                }
                continue;
            };
            let checks = preflight::judge_publication(&facts, &self.options.preflight);
            if let Some(failure) = checks.iter().find_map(preflight::Check::failure) {
                return failure.clone();
            }
        }
    }

    /// Streams until the end of the term.
    async fn stream(&mut self, lead: Lead, begun: Begun) -> Result<(), Failure> {
        let Lead {
            mut control,
            stream,
            start,
            slot_used: _,
            lineage,
            synchronous,
            sink,
        } = lead;
        info!(slot = self.options.preflight.slot, %start, "leading");
        let relay = self.options.relay;
        // Ends with the relay.
        let sink = sink.start(relay.window.events_max);
        let assembler = Assembler::new(self.options.assemble.clone());
        let vitals = self.options.vitals.clone();
        let start = Start {
            confirmed: start,
            watermark: begun.watermark,
            keeper: begun.keeper,
            synchronous: synchronous.clone(),
        };
        let mut relay = Relay::new(stream, assembler, sink, (start, relay, vitals));
        let ended = tokio::select! {
            biased;
            ended = Box::pin(relay.run(self.stop)) => Ok(ended),
            failure = Box::pin(self.watch_publication(&mut control, &synchronous)) => Err(failure),
        };
        self.confirmed = Some((lineage.source().timeline, relay.reported()));
        let ended = ended?;
        self.void = matches!(ended, Err(relay::Error::Void(_)));
        match ended {
            Ok(unreadable) => {
                let End { stream, confirmed } = relay.end();
                self.finish(&control, stream, confirmed).await;
                if let Some(error) = unreadable {
                    return Err(error.failure(&self.options.params));
                }
                let confirmed = confirmed.map(|confirmed| confirmed.lsn().to_string());
                info!(confirmed, "stopped");
                Ok(())
            }
            Err(error) => Err(error.failure(&self.options.params)),
        }
    }

    /// The last status update must not be lost: closing with unread data makes the system discard
    /// it (RST). So what still comes is read and dropped until the slot shows the update.
    async fn finish(&self, control: &Control, mut stream: Stream, confirmed: Option<Confirmed>) {
        let drain = async {
            loop {
                if let Err(error) = stream.recv().await {
                    debug!(%error, "the stream ended while stopping");
                    std::future::pending::<()>().await;
                }
            }
        };
        let shown = self.wait_until_shown(control, confirmed);
        let limit = tokio::time::sleep(FINISH_MAX);
        tokio::select! {
            biased;
            shown = shown => if let Err(failure) = shown {
                warn!(cause = failure.problem.cause, "the slot's position was not seen");
            },
            () = drain => {}
            () = limit => warn!("the slot did not take the last position: events are read again"),
        }
        stream.close().await;
    }

    async fn wait_until_shown(
        &self,
        control: &Control,
        confirmed: Option<Confirmed>,
    ) -> Result<(), Failure> {
        let Some(confirmed) = confirmed else {
            return Ok(());
        };
        loop {
            let shown = self
                .slot(control)
                .await?
                .and_then(|slot| slot.confirmed_flush);
            if shown.is_none_or(|shown| shown >= confirmed.lsn()) {
                return Ok(());
            }
            tokio::time::sleep(FINISH_POLL).await;
        }
    }

    /// Waits before the next attempt, and says so now and then.
    async fn pause(&mut self, failure: &Failure) {
        let pause = self.backoff.failed();
        let vitals = &self.options.vitals;
        vitals.set(State::Retrying, Some(failure.problem.clone()));
        vitals.metrics.retries.inc();
        if pause.log {
            let Problem {
                problem,
                cause,
                fix,
            } = &failure.problem;
            warn!(attempts = pause.attempts, %cause, %fix, "retrying: {problem}");
        }
        self.wait(pause.delay).await;
    }

    async fn wait(&self, delay: Duration) {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// The slot is ours.
struct Lead {
    control: Control,
    stream: Stream,
    start: Lsn,
    slot_used: bool,
    lineage: Lineage,
    synchronous: Arc<AtomicBool>,
    sink: JetStream,
}

/// What lies beyond the record may be much to read: a server that hears nothing meanwhile hangs up
/// (`wal_sender_timeout`). Returns when the connection is lost.
async fn stay_connected(stream: &mut Stream, start: Lsn, pause: Duration) -> crate::pg::Error {
    loop {
        tokio::time::sleep(pause).await;
        stream.queue_status(start, None, false);
        if let Err(error) = stream.flush().await {
            return error;
        }
    }
}

/// What has ended a stream that does not hold its slot any more: it may have failed at its first
/// row.
async fn ending(stream: &mut Stream) -> Option<crate::pg::Error> {
    let read = async {
        loop {
            if let Err(error) = stream.recv().await {
                return error;
            }
        }
    };
    tokio::time::timeout(ENDING_MAX, read).await.ok()
}

/// How long an end that has come is read for.
const ENDING_MAX: Duration = Duration::from_secs(1);

/// SQLSTATE object_in_use.
const SLOT_ACTIVE: &str = "55006";

/// How long the end may take beyond the drain: a walsender in the middle of a large transaction
/// reads replies only every half of `wal_sender_timeout`.
const FINISH_MAX: Duration = Duration::from_secs(10);

/// How often the slot is asked for then.
const FINISH_POLL: Duration = Duration::from_millis(10);
