//! Keeps the [`Record`] beside the stream: claims it when a term begins, and writes it before what
//! it says is confirmed. What it says is judged by [`super::watermark`]; the sink stores its bytes
//! and does not know what they mean.
//!
//! Every write is a compare-and-set, and at most one is under way. If one is refused, or its answer
//! is lost, what is there instead says what became of it ([`Keeper::written`]).

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{info, warn};

use super::watermark::{self, Facts, Gap, Record, Switch, Verdict, Watermark};
use super::window::{Confirmed, Window};
use crate::error::{Failure, Problem};
use crate::event::Position;
use crate::event::lineage::{Lineage, Place, Source};
use crate::lsn::Lsn;
use crate::sink::jetstream::{JetStream, Standing};
use crate::sink::{At, Kept, Past, Settled, UNRECORDED_MAX, Write, Written};
use crate::watch::vitals::Recorded;

/// What the server says when a term begins, and what this process knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Where the slot stands.
    pub start: Lsn,
    /// Whether anything was ever read from it.
    pub slot_used: bool,
    /// Up to where the server has flushed, or a standby replayed.
    pub flush: Lsn,
    /// Whether it is a standby.
    pub standby: bool,
    /// How far this process has confirmed before, on this timeline.
    pub confirmed_here: Lsn,
    /// An event has shown that P is not ours.
    pub void: bool,
}

/// What a term begins with.
pub struct Begun {
    /// Writes the record.
    pub keeper: Keeper,
    /// What is known of the events that come.
    pub watermark: Watermark,
    /// Where the sink begins.
    pub past: Past,
    /// What the stream may lack, found now or before.
    pub gap: Option<Gap>,
}

/// Claims the record for an instance, judges it, and writes what the verdict changes. The slot must
/// be ours: then nobody else claims a higher term.
pub async fn claim(
    sink: &mut JetStream,
    lineage: &Lineage,
    server: Server,
    instance: &str,
) -> Result<Begun, Failure> {
    let kept = sink.kept().await?;
    let there = kept.as_ref().ok().and_then(Option::as_ref);
    let revision = there.map_or(0, |kept| kept.revision);
    let found = there.and_then(read);
    let history: Vec<Switch> = lineage.ended().iter().map(Switch::from).collect();
    if let Some(found) = &found {
        let dead = watermark::dead(found, (lineage.source(), &history));
        sink.learn(dead.iter().map(Switch::pair).collect());
    }
    let reached = found.as_ref().and_then(|found| found.stored.as_ref());
    let reached = reached.map_or(0, |place| place.sequence);
    let delayed = found.as_ref().is_some_and(|found| found.delayed > 0);
    let standing = sink.standing(reached, delayed).await?;
    refuse_other_house(found.as_ref(), &standing, lineage.source())?;
    let mut blank = Record::blank(lineage.source(), &history, server.start);
    blank.stream_created.clone_from(&standing.created);
    let claimant = (instance, standing.server_id.as_str());
    let mut facts = facts((&standing, server), (lineage.source(), &history));
    let found = match found {
        Some(found) => found,
        // Judged before anything is written, which would say that the slot is known here.
        None => Record {
            gap: unrecorded(&kept, &facts)?,
            ..blank.clone()
        },
    };
    let last_writer = found.server_id.clone();
    let mut keeper = Keeper::claim(found, revision, claimant);
    let claimed = match kept {
        Ok(_) => keeper.store(sink).await?,
        Err(why) => Err(why),
    };
    if let Err(why) = claimed {
        keeper = keeper.without_bucket(blank, &why);
    }
    if let Some(place) = &keeper.record.stored {
        facts.at_stored = sink.found_at(place).await?;
    }
    facts.current |= !last_writer.is_empty() && last_writer == standing.server_id;
    let verdict = watermark::judge(&keeper.record, &facts);
    let verdict = verdict.map_err(|refusal| refusal.failure(&facts))?;
    keeper.begin(sink, verdict, server.flush).await
}

/// What is known before the record is read: nothing of S.
fn facts<'a>(
    (standing, server): (&'a Standing, Server),
    (source, history): (&'a Source, &'a [Switch]),
) -> Facts<'a> {
    Facts {
        source,
        history,
        start: server.start,
        slot_used: server.slot_used,
        flush: server.flush,
        standby: server.standby,
        confirmed_here: server.confirmed_here,
        stream_created: &standing.created,
        last_sequence: standing.last_sequence,
        newest: standing.newest,
        holds: standing.holds,
        letters: standing.letters,
        delayed: standing.delayed,
        at_stored: At::Nothing,
        current: standing.record_replicas >= SAFE_REPLICAS,
        void: server.void,
    }
}

/// What the stream may lack where there could be a record and is none.
fn unrecorded(
    kept: &Result<Option<Kept>, String>,
    facts: &Facts<'_>,
) -> Result<Option<Gap>, Failure> {
    match kept {
        // Without a bucket nothing was ever recorded.
        Err(_) => Ok(None),
        Ok(_) => watermark::judge_unrecorded(facts).map_err(|refusal| refusal.failure(facts)),
    }
}

/// Another cluster's record is not claimed: who leads there would yield.
fn refuse_other_house(
    found: Option<&Record>,
    standing: &Standing,
    ours: &Source,
) -> Result<(), Failure> {
    let found = found.filter(|found| found.stream_created == standing.created);
    match found.map(|found| &found.source) {
        Some(found) if found.system != ours.system => Err(watermark::other_system(ours, found)),
        _ => Ok(()),
    }
}

/// As many copies of the record as no single power failure takes back.
const SAFE_REPLICAS: usize = 3;

/// How often a write is tried again that nobody took.
const RETRY: std::time::Duration = std::time::Duration::from_millis(200);

/// How often it is tried whether there is a bucket by now.
const SEARCH: std::time::Duration = std::time::Duration::from_secs(5);

/// Another instance leads: it has claimed the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superseded {
    /// Its term.
    pub term: u64,
}

/// The record of one term.
#[derive(Debug)]
pub struct Keeper {
    /// As it would be written now.
    record: Record,
    revision: u64,
    /// Whether there is one: nothing is confirmed then that it does not name.
    kept: bool,
    /// C of the newest that was stored.
    recorded: Lsn,
    /// P of that one.
    recorded_to: Option<Position>,
    /// Events of the term that were settled and that it did not know before, now and when that one
    /// was written.
    settled: u64,
    recorded_events: u64,
    /// P has moved since the last write.
    moved: bool,
    writing: Option<Writing>,
    /// Since when nothing was stored that was to be written.
    unwritten_since: Option<Instant>,
    /// It was logged that nobody takes it.
    told: bool,
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Writing {
    record: Record,
    settled: u64,
    /// Events that were handed over before it, and go first.
    behind: u64,
}

/// How urgent a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// There is nothing to write, or it cannot be written now.
    None,
    /// Only the server's log has moved.
    Idle,
    /// Events were settled.
    Soon,
}

impl Keeper {
    /// Writes what the verdict changes, before the first publish.
    async fn begin(
        mut self,
        sink: &mut JetStream,
        verdict: Verdict,
        flush: Lsn,
    ) -> Result<Begun, Failure> {
        let Verdict {
            record,
            watermark,
            gap,
            void,
        } = verdict;
        if let Some(void) = void {
            warn!(cause = %void, "the record does not hold: the stream is searched instead");
        }
        if self.adopt(record)
            && self.kept
            && let Err(why) = self.store(sink).await?
        {
            return Err(not_written(&why));
        }
        Ok(Begun {
            past: self.past(&watermark, flush),
            gap: gap.or(self.record.gap),
            watermark,
            keeper: self,
        })
    }

    fn new(record: Record, revision: u64) -> Self {
        Self {
            recorded: record.confirmed,
            recorded_to: record.settled.as_ref().map(|settled| settled.position),
            record,
            revision,
            kept: true,
            settled: 0,
            recorded_events: 0,
            moved: false,
            writing: None,
            unwritten_since: None,
            told: false,
            not_before: None,
        }
    }

    /// Takes the next term of what was found, for an instance that writes through this server.
    pub(super) fn claim(found: Record, revision: u64, (instance, server_id): (&str, &str)) -> Self {
        let record = Record {
            term: found.term + 1,
            instance: instance.to_owned(),
            server_id: server_id.to_owned(),
            ..found
        };
        Self::new(record, revision)
    }

    /// As it would be written now.
    #[cfg(test)]
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Takes what was judged. Whether that is to be written before the first publish.
    pub(super) fn adopt(&mut self, record: Record) -> bool {
        std::mem::replace(&mut self.record, record) != self.record
    }

    /// Where the sink begins, if the server has flushed so much.
    pub(super) fn past(&self, watermark: &Watermark, flush: Lsn) -> Past {
        let Record { base, letters, .. } = self.record;
        let newest = self.record.stored.as_ref();
        Past {
            new_from: Position {
                commit: flush.as_u64(),
                index: 0,
            },
            settled_to: watermark.settled_to(),
            stored: base,
            newest: newest.map_or(0, |place| place.sequence),
            letters,
        }
    }

    /// Whether what is confirmed must be recorded.
    pub fn kept(&self) -> bool {
        self.kept
    }

    /// What the newest record says, for those who ask.
    pub fn shown(&self) -> Recorded {
        let settled = self.recorded_to.map(|position| position.to_string());
        Recorded {
            kept: self.kept,
            term: self.record.term,
            settled: settled.filter(|_| self.kept),
            confirmed: self.kept.then(|| self.recorded.to_string()),
        }
    }

    /// What may be confirmed of what is settled.
    pub fn confirmed(&self, window: &Window) -> Confirmed {
        match self.kept {
            true => window.confirmed_within(self.recorded),
            false => window.confirmed(),
        }
    }

    /// Events were settled.
    pub fn settle(&mut self, settled: &Settled) {
        self.settled += (settled.events() - settled.recorded) as u64;
        self.wait();
        let Settled {
            to,
            stored_at,
            base,
            letters,
            delayed,
            ..
        } = settled;
        let known = self.record.settled.as_ref().map(|known| known.position);
        let Some((position, id)) = to.as_ref().filter(|(to, _)| Some(*to) > known) else {
            return;
        };
        let (position, id) = (*position, Some(id.clone()));
        self.record.settled = Some(watermark::Settled { position, id });
        let sequence = |place: &Option<Place>| place.as_ref().map(|place| place.sequence);
        if sequence(stored_at) > sequence(&self.record.stored) {
            self.record.stored.clone_from(stored_at);
        }
        self.record.base = self.record.base.max(*base);
        self.record.letters = self.record.letters.max(*letters);
        self.record.delayed = self.record.delayed.max(*delayed);
        self.moved = true;
    }

    /// Whether so many events that were handed over leave room for more.
    pub fn has_room(&self, handed_over: u64) -> bool {
        !self.kept || handed_over - self.recorded_events < UNRECORDED_MAX
    }

    /// Whether there is something to write.
    pub fn urgency(&self, confirmed: Lsn) -> Urgency {
        let wait = self.not_before.is_some_and(|at| at > Instant::now());
        match () {
            () if self.writing.is_some() || wait => Urgency::None,
            () if self.moved => Urgency::Soon,
            () if confirmed > self.recorded => Urgency::Idle,
            () => Urgency::None,
        }
    }

    /// Whether all that is settled and may be confirmed is recorded, if anything is.
    pub fn is_current(&self, confirmed: Lsn) -> bool {
        let recorded = !self.moved && self.writing.is_none() && confirmed <= self.recorded;
        recorded || !self.kept
    }

    /// When a write that nobody took is tried again.
    pub fn not_before(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.writing.is_none())
    }

    /// The record as it is now, with what is to be confirmed. It goes out behind so many events of
    /// the term.
    pub fn write(&mut self, confirmed: Lsn, handed_over: u64) -> Write {
        assert!(self.writing.is_none(), "one write at a time");
        self.record.confirmed = self.record.confirmed.max(confirmed);
        self.moved = false;
        self.not_before = None;
        let write = Write {
            expected: self.revision,
            bytes: bytes(&self.record),
        };
        self.writing = Some(Writing {
            record: self.record.clone(),
            settled: self.settled,
            behind: handed_over,
        });
        self.wait();
        write
    }

    /// The write waits for its answer, once everything before it on the connection has its own: on
    /// a slow network that may be much.
    fn wait(&mut self) {
        let due = |writing: &Writing| self.settled >= writing.behind;
        if self.writing.as_ref().is_some_and(due) {
            self.unwritten_since.get_or_insert_with(Instant::now);
        }
    }

    /// What became of the write.
    pub fn written(&mut self, written: Written) -> Result<(), Superseded> {
        let Some(writing) = self.writing.take() else {
            return Ok(());
        };
        self.unwritten_since.get_or_insert_with(Instant::now);
        match written {
            Written::Stored(revision) => self.stored(writing, revision),
            Written::Found(found) => {
                let revision = found.as_ref().map_or(0, |kept| kept.revision);
                match found.as_ref().and_then(read) {
                    Some(there) if there == writing.record => self.stored(writing, revision),
                    Some(there) if self.yields_to(&there) => {
                        return Err(Superseded { term: there.term });
                    }
                    _ => {
                        if revision < self.revision {
                            warn!("the record was put back to an earlier one: it is written again");
                        }
                        self.revision = revision;
                        self.moved = true;
                    }
                }
            }
            Written::Refused(why) => {
                if self.kept && !std::mem::replace(&mut self.told, true) {
                    warn!(
                        cause = why,
                        "the record is not written: nothing is confirmed"
                    );
                }
                let pause = if self.kept { RETRY } else { SEARCH };
                self.not_before = Some(Instant::now() + pause);
                self.moved = true;
            }
        }
        Ok(())
    }

    /// Since when nothing that was to be recorded was stored; `None` where nothing is recorded.
    pub fn unwritten_since(&self) -> Option<Instant> {
        self.unwritten_since.filter(|_| self.kept)
    }

    /// Whether another leader has written this.
    fn yields_to(&self, there: &Record) -> bool {
        there.term > self.record.term
            || there.term == self.record.term && there.instance != self.record.instance
    }

    fn stored(&mut self, writing: Writing, revision: u64) {
        if !std::mem::replace(&mut self.kept, true) {
            info!("what is settled is recorded from now on");
        }
        self.revision = revision;
        self.recorded = writing.record.confirmed;
        self.recorded_to = writing.record.settled.map(|settled| settled.position);
        self.recorded_events = writing.settled;
        self.unwritten_since = None;
        self.told = false;
    }

    /// There is no record in this term, at least for now.
    fn without_bucket(self, blank: Record, why: &str) -> Self {
        warn!(
            cause = why,
            fix = "`outjet check` says what the bucket lacks",
            "what is settled is not recorded: after a restart it is searched for in the stream"
        );
        let Record { term, instance, .. } = self.record;
        let record = Record {
            term,
            instance,
            ..blank
        };
        Self {
            kept: false,
            ..Self::new(record, 0)
        }
    }

    /// Writes the record before the relay runs; or says why it cannot be.
    async fn store(&mut self, sink: &mut JetStream) -> Result<Result<(), String>, Failure> {
        for _ in 0..CLAIMS_MAX {
            let write = self.write(self.record.confirmed, 0);
            let written = sink.keep(write).await?;
            if let Written::Refused(why) = written {
                self.writing = None;
                // Without the right to write, or a bucket; anything else may pass.
                return match sink.kept().await? {
                    Err(_) => Ok(Err(why)),
                    Ok(_) => Err(not_written(&why)),
                };
            }
            self.written(written).map_err(|Superseded { term }| {
                not_written(&format!("another instance has claimed term {term}"))
            })?;
            if self.unwritten_since.is_none() {
                return Ok(Ok(()));
            }
        }
        Err(not_written("it changes all the time"))
    }
}

/// How often a claim is tried again because something else was there.
const CLAIMS_MAX: usize = 3;

/// The record could not be written when it had to be.
pub fn not_written(why: &str) -> Failure {
    Failure::retry(Problem::new(
        "the record of what is settled cannot be written",
        why,
        "`outjet check` says what is wrong with the bucket; without a bucket (nats kv del) outjet \
         goes on, and searches the stream after a restart",
    ))
}

/// Whose events a record speaks of; `None` if nobody has led, and it speaks of a slot alone.
pub fn whose(kept: &Kept) -> Option<Source> {
    let led = read(kept).filter(|record| record.term > 0);
    led.map(|record| record.source)
}

/// What is kept, unless it was deleted or is no record.
pub fn read(kept: &Kept) -> Option<Record> {
    if kept.bytes.is_empty() {
        return None;
    }
    match serde_json::from_slice(&kept.bytes) {
        Ok(record) => Some(record),
        Err(error) => {
            warn!(%error, "the record is not understood: it is written anew");
            None
        }
    }
}

fn bytes(record: &Record) -> Bytes {
    serde_json::to_vec(record)
        .expect("a record has no map with other keys than text")
        .into()
}
