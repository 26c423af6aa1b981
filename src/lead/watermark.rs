//! What is settled is known, not guessed. The leader keeps a [`Record`] beside the stream; the next
//! one judges it ([`judge`]) and knows of each event that Postgres sends again whether it is
//! settled ([`Watermark`]). Pure: facts in, verdict out; [`super::record`] reads and writes.
//!
//! P is the position up to which everything is settled, with its event's id; S the newest message
//! of those events in the stream; C the highest LSN that may have been confirmed. Invariant: C is
//! written before it is confirmed, and P only once everything up to it is settled.
//!
//! ```text
//!  WAL     ──e1──e2──e3──e4──e5──e6──►     slot ≤ C: e2 … is sent again
//!               slot    P   C              e2, e3: known by the record
//!  stream  ──e1──e2──e3──e4──              e4: found behind S, known by its id
//!                    S                     e5, e6: new
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Exit, Failure, Problem};
use crate::event::Position;
use crate::event::lineage::{Place, Source};
use crate::lsn::Lsn;
use crate::sink::At;

/// The version of the record that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// What the leader keeps beside the stream, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Whose events: `<system identifier>/<timeline>/<slot>`.
    #[serde(with = "text")]
    pub source: Source,
    /// Where each earlier timeline of the cluster ended.
    pub history: Vec<Switch>,
    /// Timelines on which an outjet has led and that are no part of this history, each with the
    /// place up to which it was theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead: Vec<Switch>,
    /// When the stream was created, as its server says it.
    pub stream_created: String,
    /// P; `None`: nothing is known of what was settled.
    pub settled: Option<Settled>,
    /// S, the newest message of an event up to P: a stream that lacks it has lost its end.
    pub stored: Option<Place>,
    /// What lies beyond P is stored behind this sequence number: S, or less while something is out
    /// of order.
    pub base: u64,
    /// The same of the dead letters: a sequence number, or 0.
    pub letters: u64,
    /// The highest sequence number that an event up to P has among what is delayed, or 0.
    pub delayed: u64,
    /// C.
    #[serde(with = "text")]
    pub confirmed: Lsn,
    /// What the stream may lack: `recover` closes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// Counts stints of leading.
    pub term: u64,
    /// Who leads.
    pub instance: String,
    /// The NATS server that this was written through.
    pub server_id: String,
}

impl Record {
    /// Of a slot of which nothing is known but where it stands, in nobody's term.
    pub fn blank(source: &Source, history: &[Switch], confirmed: Lsn) -> Self {
        Self {
            version: VERSION,
            source: source.clone(),
            history: history.to_vec(),
            dead: Vec::new(),
            stream_created: String::new(),
            settled: None,
            stored: None,
            base: 0,
            letters: 0,
            delayed: 0,
            confirmed,
            gap: None,
            term: 0,
            instance: String::new(),
            server_id: String::new(),
        }
    }
}

/// The end of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// Which.
    pub timeline: u32,
    /// The next one left it here.
    #[serde(with = "text")]
    pub ended_at: Lsn,
}

impl Switch {
    /// As a lineage has it.
    pub fn pair(&self) -> (u32, u64) {
        (self.timeline, self.ended_at.as_u64())
    }
}

impl From<&(u32, u64)> for Switch {
    fn from((timeline, ended_at): &(u32, u64)) -> Self {
        Self {
            timeline: *timeline,
            ended_at: Lsn::new(*ended_at),
        }
    }
}

/// An event up to which everything is settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Where it is in the commit order.
    pub position: Position,
    /// Its id; `None` where another timeline cut it off: no event has that position.
    pub id: Option<String>,
}

/// A part of the log that was confirmed, and whose events the stream may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// It begins here.
    #[serde(with = "text")]
    pub from: Lsn,
    /// It ends here.
    #[serde(with = "text")]
    pub to: Lsn,
    /// What shows it.
    #[serde(default)]
    pub shown_by: Shows,
}

/// What shows a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shows {
    /// It starts above what was confirmed.
    #[default]
    Slot,
    /// It ends before what was confirmed.
    Stream,
}

impl Gap {
    /// For people, with the way to close it.
    pub fn problem(&self, slot: &str) -> Problem {
        let Self { from, to, shown_by } = self;
        let bytes = to.bytes_since(*from);
        match shown_by {
            Shows::Slot => Problem::new(
                format!("slot {slot} was moved: events may be missing"),
                format!(
                    "it starts at {to}, and no outjet has confirmed more than {from}: somebody \
                     advanced it, read from it or made it again, or an older record was put back; \
                     what was committed in these {bytes} bytes of WAL was not published"
                ),
                CLOSE,
            ),
            Shows::Stream => Problem::new(
                format!("the stream may lack events that slot {slot} has confirmed"),
                format!(
                    "{}, and the slot was confirmed up to {to}: what was committed in these \
                     {bytes} bytes of WAL may be in another stream, or nowhere",
                    match *from {
                        Lsn::ZERO => "it shows none of its events".to_owned(),
                        from => format!("its newest event is at {from}"),
                    }
                ),
                format!("if the stream is another one by mistake: {OTHER_STREAM}; else {CLOSE}"),
            ),
        }
    }
}

const CLOSE: &str = "`outjet recover` publishes the rows of the outbox tables that the stream \
                     lacks; `outjet recover --accept` accepts the gap";

const OTHER_STREAM: &str = "correct nats.url, the account or stream.name";

/// What the judge must know.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Whose events we publish.
    pub source: &'a Source,
    /// Where each earlier timeline of the cluster ended.
    pub history: &'a [Switch],
    /// Where the slot stands.
    pub start: Lsn,
    /// Whether anything was ever read from it, as far as the server's statistics remember.
    pub slot_used: bool,
    /// Up to where the server has flushed, read after it had started to stream: what was committed
    /// there or behind is new.
    pub flush: Lsn,
    /// Whether the server is a standby.
    pub standby: bool,
    /// How far this process has confirmed before.
    pub confirmed_here: Lsn,
    /// When the stream was created.
    pub stream_created: &'a str,
    /// Its last sequence number.
    pub last_sequence: u64,
    /// Its newest event of ours.
    pub newest: Option<Position>,
    /// Events are confirmed only after a while: most of what a stream may lose is sent again.
    pub holds: bool,
    /// The same of the dead letters, and of what is delayed, unless they were not asked.
    pub letters: Option<u64>,
    /// The same of what is delayed.
    pub delayed: Option<u64>,
    /// What is found at S.
    pub at_stored: At,
    /// Nobody can have put an older record in the place of this one: it is on three replicas, or
    /// the server that it was written through is still the same process.
    pub current: bool,
    /// An event that Postgres sent has shown that P is not ours.
    pub void: bool,
}

/// How a term begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// To be written before the first publish.
    pub record: Record,
    /// What is known.
    pub watermark: Watermark,
    /// Found just now.
    pub gap: Option<Gap>,
    /// Why nothing is known any more.
    pub void: Option<Void>,
}

/// Why what the record says does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Void {
    /// Rule 1.
    #[error("the stream was created anew")]
    Created,
    /// Rule 2.
    #[error("the server's history has nothing in common with it")]
    History,
    /// Rule 5.
    #[error("the stream ends at {last}, before sequence {stored}")]
    StreamEnds {
        /// The last sequence number.
        last: u64,
        /// S.
        stored: u64,
    },
    /// Rule 5.
    #[error("the dead letters, or what is delayed, lost their end")]
    BesideEnds,
    /// Rule 5.
    #[error("another message has sequence {0}")]
    OtherMessage(u64),
    /// Rule 6.
    #[error("another event has its position, or none")]
    OtherEvent,
}

/// Why there is no term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A newer program has written the record.
    Version(u32),
    /// Another cluster.
    OtherSystem(Source),
    /// The server is on an older timeline than the one that was published from.
    OlderTimeline(u32),
    /// The slot was moved, and nobody has published since.
    Moved(Gap),
    /// The server was put back to before what was confirmed.
    PutBack(Lsn),
    /// The standby has not come as far yet.
    Behind(Lsn),
    /// Nothing was ever stored, here at least, and the slot may be an old one.
    Unknown,
}

impl Refusal {
    /// For whom it may concern, with the fix.
    pub fn failure(&self, facts: &Facts<'_>) -> Failure {
        let Source { timeline, slot, .. } = facts.source;
        let halt = |problem: String, cause: String, fix: &str| {
            Failure::halt(Exit::Config, Problem::new(problem, cause, fix))
        };
        match self {
            Self::Version(found) => halt(
                "the record of this slot was written by a newer outjet".to_owned(),
                format!("its version is {found}, this program knows {VERSION}"),
                "use the outjet that wrote it, or a newer one",
            ),
            Self::OtherSystem(found) => other_system(facts.source, found),
            Self::OlderTimeline(found) => halt(
                "the server is behind the one that was published from".to_owned(),
                format!("that was on timeline {found}, this one is on {timeline}"),
                "connect to the primary; an old one that was started again beside its successor \
                 must not be published from",
            ),
            Self::Moved(gap) => Failure::halt(Exit::Config, gap.problem(slot)),
            Self::PutBack(confirmed) => halt(
                "the server was put back to an earlier state".to_owned(),
                format!(
                    "slot {slot} was confirmed up to {confirmed}, and the server's log ends at {}",
                    facts.flush
                ),
                "connect to the right server; if it was restored on purpose, `outjet recover` \
                 publishes the rows of the outbox tables that the stream lacks",
            ),
            Self::Unknown => unknown(slot, facts.start),
            Self::Behind(confirmed) => Failure::retry(Problem::new(
                "the standby is behind",
                format!(
                    "it has replayed up to {}, {confirmed} was confirmed",
                    facts.flush
                ),
                "nothing: it is tried again until it has caught up",
            )),
        }
    }
}

/// Nothing shows that a slot that was read before has fed the stream. It was confirmed up to here.
pub fn unknown(slot: &str, confirmed: Lsn) -> Failure {
    let problem = Problem::new(
        format!("nothing shows that slot {slot} has fed this stream"),
        format!(
            "the stream has never held a message, and nothing is recorded beside it: what the \
             slot has confirmed, up to {confirmed}, may be in another stream"
        ),
        format!(
            "if the stream is the wrong one, {OTHER_STREAM}; if NATS has moved, `outjet recover` \
             publishes the rows of the outbox tables that the stream lacks; if the slot is new, \
             or the stream is to begin here, `outjet recover --accept`"
        ),
    );
    Failure::halt(Exit::Config, problem)
}

/// Another cluster publishes into the stream, or did.
pub fn other_system(ours: &Source, found: &Source) -> Failure {
    let Source { system, slot, .. } = ours;
    let problem = Problem::new(
        format!("the stream holds events of another cluster's slot {slot}"),
        format!("they came from system {}, this is {system}", found.system),
        "connect to the cluster of before; if this one has taken its place (restored from a dump, \
         upgraded, moved): `outjet recover --yes`",
    );
    Failure::halt(Exit::Config, problem)
}

/// Says how a term begins after what the last one left.
pub fn judge(found: &Record, facts: &Facts<'_>) -> Result<Verdict, Refusal> {
    if found.version > VERSION {
        return Err(Refusal::Version(found.version));
    }
    let mut record = Record {
        source: facts.source.clone(),
        history: facts.history.to_vec(),
        dead: dead(found, (facts.source, facts.history)),
        stream_created: facts.stream_created.to_owned(),
        ..found.clone()
    };
    let shared = shared_up_to(found, (facts.source, facts.history));
    // Rule 1. A stream that was restored from a backup counts as another one, too; what it is known
    // to lack, and where the slot must not start, the record says all the same.
    if found.stream_created != facts.stream_created {
        let mut gap = None;
        if found.source.same_slot(facts.source) {
            record.confirmed = record.confirmed.min(shared);
            gap = moved(&mut record, facts)?;
        }
        record.confirmed = facts.start;
        let void = nothing_known(record, Void::Created);
        return Ok(Verdict { gap, ..void }.lacking(found, facts));
    }
    // Rule 2.
    if found.source.system != facts.source.system {
        return Err(Refusal::OtherSystem(found.source.clone()));
    }
    if found.source.timeline > facts.source.timeline {
        return Err(Refusal::OlderTimeline(found.source.timeline));
    }
    let Some(before_fork) = cut_off(shared) else {
        record.confirmed = facts.start;
        return Ok(nothing_known(record, Void::History));
    };
    record.confirmed = record.confirmed.min(shared);
    record.settled = record.settled.map(|settled| match settled.lsn() < shared {
        true => settled,
        false => before_fork,
    });
    // Rule 3.
    let gap = moved(&mut record, facts)?;
    // Rule 4.
    if record.confirmed > facts.flush {
        return Err(match facts.standby {
            true => Refusal::Behind(record.confirmed),
            false => Refusal::PutBack(record.confirmed),
        });
    }
    // Rules 5 and 6.
    if let Some(void) = void(&record, facts) {
        let known = record.clone();
        let verdict = Verdict {
            gap,
            ..nothing_known(record, void)
        };
        return Ok(verdict.lacking(&known, facts));
    }
    Ok(Verdict {
        watermark: Watermark::new(record.settled.clone(), facts.start),
        record,
        gap,
        void: None,
    })
}

/// Says how the first term begins whose slot nobody has recorded: what the stream may lack.
pub fn judge_unrecorded(facts: &Facts<'_>) -> Result<Option<Gap>, Refusal> {
    let is_new = !facts.slot_used && facts.newest.is_none();
    if facts.start <= facts.confirmed_here || is_new {
        return Ok(None);
    }
    match facts.last_sequence {
        0 => Err(Refusal::Unknown),
        _ => Ok(behind_newest(facts)),
    }
}

/// What was confirmed behind the newest event of the stream. The transaction with that event comes
/// again if its commit lies at the slot's start or behind it.
fn behind_newest(facts: &Facts<'_>) -> Option<Gap> {
    let from = facts.newest.map_or(Lsn::ZERO, |it| Lsn::new(it.commit));
    let (to, shown_by) = (facts.start, Shows::Stream);
    (from < to).then_some(Gap { from, to, shown_by })
}

impl Verdict {
    /// Adds what was stored, is stored no more, and does not come again.
    fn lacking(mut self, known: &Record, facts: &Facts<'_>) -> Self {
        let stored = known.stored.as_ref().map(|place| place.position);
        let lost = match self.void {
            Some(Void::Created | Void::StreamEnds { .. } | Void::OtherMessage(_)) => {
                stored.filter(|stored| facts.newest < Some(*stored))
            }
            Some(Void::BesideEnds) => known.settled.as_ref().map(|settled| settled.position),
            Some(Void::History | Void::OtherEvent) | None => None,
        };
        // What is held is not confirmed yet: it comes again, and the event at S with it.
        let comes = |lost: Position| facts.holds && facts.start <= Lsn::new(lost.commit);
        let same_house = known.source.same_slot(facts.source);
        if let Some(lost) = lost
            && same_house
            && !comes(lost)
            && let Some(gap) = behind_newest(facts)
        {
            self.gap = Some(gap);
            let open = self.record.gap.iter().map(|open| open.from);
            let from = open.chain([gap.from]).min().unwrap_or(gap.from);
            self.record.gap = Some(Gap { from, ..gap });
        }
        self
    }
}

/// Whether the slot stands above what any of us may have confirmed.
fn moved(record: &mut Record, facts: &Facts<'_>) -> Result<Option<Gap>, Refusal> {
    let known = record.confirmed.max(facts.confirmed_here);
    if facts.start <= known {
        return Ok(None);
    }
    let gap = Gap {
        from: record.confirmed,
        to: facts.start,
        shown_by: Shows::Slot,
    };
    let stored = record.stored.as_ref().map_or(0, |place| place.sequence);
    if facts.current && facts.last_sequence <= stored {
        return Err(Refusal::Moved(gap));
    }
    record.confirmed = facts.start;
    let from = record.gap.map_or(gap.from, |before| before.from);
    record.gap = Some(Gap { from, ..gap });
    Ok(Some(gap))
}

fn void(record: &Record, facts: &Facts<'_>) -> Option<Void> {
    if let Some(Place { sequence, .. }) = record.stored {
        if facts.last_sequence < sequence {
            let (last, stored) = (facts.last_sequence, sequence);
            return Some(Void::StreamEnds { last, stored });
        }
        if facts.at_stored == At::Other {
            return Some(Void::OtherMessage(sequence));
        }
    }
    let ends_below = |last: Option<u64>, reached| last.is_some_and(|last| last < reached);
    if ends_below(facts.letters, record.letters) || ends_below(facts.delayed, record.delayed) {
        return Some(Void::BesideEnds);
    }
    facts.void.then_some(Void::OtherEvent)
}

fn nothing_known(record: Record, void: Void) -> Verdict {
    Verdict {
        record: Record {
            settled: None,
            stored: None,
            base: 0,
            letters: 0,
            delayed: 0,
            ..record
        },
        watermark: Watermark::default(),
        gap: None,
        void: Some(void),
    }
}

/// The timelines that a record tells of and that this history does not have, each with the place up
/// to which it was the same: their leaders wrote what was committed before the fork, too.
pub fn dead(found: &Record, (source, history): (&Source, &[Switch])) -> Vec<Switch> {
    if found.source.system != source.system {
        return Vec::new();
    }
    let shared = shared_up_to(found, (source, history));
    let last = Switch {
        timeline: found.source.timeline,
        ended_at: shared,
    };
    let theirs = found.history.iter().chain([&last]).chain(&found.dead);
    let ours =
        |timeline| timeline == source.timeline || history.iter().any(|it| it.timeline == timeline);
    let dead = theirs.filter(|switch| !ours(switch.timeline));
    dead.map(|switch| Switch {
        ended_at: switch.ended_at.min(shared),
        ..*switch
    })
    .collect()
}

/// Up to where both have the same history: each timeline is a step, the last of them without end.
fn shared_up_to(found: &Record, (source, history): (&Source, &[Switch])) -> Lsn {
    const ENDLESS: Lsn = Lsn::new(u64::MAX);
    let steps = |history: &[Switch], timeline| {
        let last = Switch {
            timeline,
            ended_at: ENDLESS,
        };
        history.iter().copied().chain([last]).collect::<Vec<_>>()
    };
    let theirs = steps(&found.history, found.source.timeline);
    let ours = steps(history, source.timeline);
    for (theirs, ours) in theirs.iter().zip(&ours) {
        if theirs.timeline != ours.timeline {
            return Lsn::ZERO;
        }
        if theirs.ended_at != ours.ended_at {
            return theirs.ended_at.min(ours.ended_at);
        }
    }
    ENDLESS
}

/// Everything that was committed before the fork; `None` if nothing was.
fn cut_off(fork: Lsn) -> Option<Settled> {
    let commit = fork.as_u64().checked_sub(1)?;
    let index = u32::MAX;
    Some(Settled {
        position: Position { commit, index },
        id: None,
    })
}

impl Settled {
    fn lsn(&self) -> Lsn {
        Lsn::new(self.position.commit)
    }
}

/// What the record says of the events that come, in commit order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watermark {
    settled: Option<Settled>,
    pending: bool,
}

impl Watermark {
    /// P, and where the slot starts. A server sends a transaction again exactly if its commit
    /// record lies at that point or behind it (`SnapBuildXactNeedsSkip`).
    fn new(settled: Option<Settled>, start: Lsn) -> Self {
        let sent_again = |p: &Settled| p.id.is_some() && start <= p.lsn();
        Self {
            pending: settled.as_ref().is_some_and(sent_again),
            settled,
        }
    }

    /// Whether the event at P is still to come: until then nothing may be confirmed.
    pub fn pending(&self) -> bool {
        self.pending
    }

    /// P, if anything is known.
    pub fn settled_to(&self) -> Option<Position> {
        self.settled.as_ref().map(|settled| settled.position)
    }

    /// Whether the next event is settled. `Err`: P is not ours.
    pub fn take(&mut self, position: Position, id: &str) -> Result<bool, Void> {
        let Some(settled) = &self.settled else {
            return Ok(false);
        };
        if position > settled.position {
            return match self.pending {
                true => Err(Void::OtherEvent),
                false => Ok(false),
            };
        }
        if position == settled.position {
            if settled.id.as_ref().is_some_and(|known| known != id) {
                return Err(Void::OtherEvent);
            }
            self.pending = false;
        }
        Ok(true)
    }

    /// Outside of a transaction, nothing that was committed before `wal_end` is still to come.
    /// `Err`: P is not ours.
    pub fn keepalive(&mut self, wal_end: Lsn) -> Result<(), Void> {
        let passed = |settled: &Settled| settled.lsn() < wal_end;
        if self.pending && self.settled.as_ref().is_some_and(passed) {
            return Err(Void::OtherEvent);
        }
        Ok(())
    }
}

/// Values that are written as their text.
mod text {
    use super::{FromStr, fmt};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: fmt::Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: fmt::Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod world;
