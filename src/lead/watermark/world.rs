//! The record and the guard together, against everything that may happen at once: a Postgres, a
//! stream, a bucket, and leaders made of the shipped code. Nothing here decides what is settled.
//!
//! A transaction has one event; the one at place p commits at 10 p and ends at 10 p + 5, on every
//! timeline and after every restore, so that positions are used again exactly. What is committed
//! after such a turn has another generation, and with it another id. The world knows what was ever
//! stored, so it can say what is wrong ([`World::wrong`]).

mod cases;
mod leader;
mod random;

use std::collections::{HashMap, HashSet, VecDeque};

use self::leader::{Answer, Leader, Message, Reply};
use super::{Record, Refusal};
use crate::event::lineage::{Lineage, Mark, Source};
use crate::event::{Event, Headers, Position};
use crate::lsn::Lsn;
use crate::sink::{Kept, Write, Written};

/// A row: its place in the log, from 1, and its generation.
type Row = (u64, u32);

/// A rule that the world leaves out, to show what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Record before confirming.
    RecordFirst,
    /// A slot above C was moved.
    SlotAboveC,
    /// P is known by the id of its event.
    IdOfP,
    /// A keepalive beyond P shows that its event does not come.
    Keepalive,
    /// One in flight where an old connection may follow another plan.
    Slow,
    /// What may have stood at a vacant sequence number is uncertain.
    Vacant,
    /// The base stays below what is stored out of order.
    Base,
    /// P and C count up to where both timelines are one.
    Timeline,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Commit,
    /// WAL without events.
    Noise,
    Checkpoint,
    /// An instance takes the slot and claims the record; dies after so many writes, or 0.
    Lead(u8),
    /// The leader reads the next transaction.
    Read,
    Keepalive,
    /// The sink passes or sends one event.
    Pump,
    /// The server takes the next message of the leader's connection.
    Arrive,
    /// The leader hears the next answer.
    Hear,
    /// It writes the record.
    Record,
    /// It confirms.
    Status,
    /// What an old connection still holds arrives, or dies with it.
    Old(usize),
    OldDies(usize),
    // Faults.
    Crash,
    /// The connection to Postgres is lost; the process lives on.
    TermEnds,
    ConnectionLost,
    /// The leader hangs, and its slot is free: it goes on with what it has, until it sees that.
    Pause,
    PausedPumps,
    PausedArrives,
    PausedHears,
    PausedRecords,
    PausedReconnects,
    PausedDies,
    Vanish(usize),
    Stranger,
    Copy(usize),
    /// The server has forgotten the ids.
    Forget,
    PostgresCrash,
    Failover(usize, usize),
    // What people do.
    Advance,
    Recreate,
    Snapshot,
    Restore,
    Backup,
    Rollback,
}

struct Stored {
    mark: Option<Mark>,
    there: bool,
}

/// What a restore brings back.
#[derive(Clone)]
struct Postgres {
    /// The generation of the row at each place; `None`: WAL without a row.
    log: Vec<Option<u32>>,
    /// The server has written that it was promoted, behind the last of them.
    promoted: bool,
    /// What the slot has confirmed, and what of it a crash would leave.
    slot: u64,
    slot_kept: u64,
    timeline: u32,
    ended: Vec<(u32, u64)>,
}

struct World {
    without: Option<Rule>,
    postgres: Postgres,
    snapshot: Option<Postgres>,
    generation: u32,
    stream: Vec<Stored>,
    /// The duplicate window, if there is one.
    ids: Option<HashMap<String, u64>>,
    bucket: Option<Kept>,
    backup: Option<Kept>,
    leader: Option<Leader>,
    /// One that Postgres has given up, and that does not know it.
    paused: Option<Leader>,
    hung: bool,
    /// What the process remembers from one term to the next.
    instance: u32,
    confirmed_here: Option<(u32, u64)>,
    void: bool,
    halted: Option<Refusal>,
    old: Vec<VecDeque<Message>>,
    /// Somebody moved something: an alarm is right then.
    touched: bool,
    alarm: bool,
    ever: HashSet<Row>,
    excused: HashSet<Row>,
    uncertain: HashSet<Row>,
    twice: Option<Row>,
}

impl World {
    fn new(without: Option<Rule>, duplicate_window: bool) -> Self {
        Self {
            without,
            postgres: Postgres {
                log: Vec::new(),
                promoted: false,
                slot: 0,
                slot_kept: 0,
                timeline: 1,
                ended: Vec::new(),
            },
            snapshot: None,
            generation: 1,
            stream: Vec::new(),
            ids: duplicate_window.then(HashMap::new),
            bucket: None,
            backup: None,
            leader: None,
            paused: None,
            hung: false,
            instance: 1,
            confirmed_here: None,
            void: false,
            halted: None,
            old: Vec::new(),
            touched: false,
            alarm: false,
            ever: HashSet::new(),
            excused: HashSet::new(),
            uncertain: HashSet::new(),
            twice: None,
        }
    }

    /// Does it, if it can happen now.
    fn apply(&mut self, step: Step) -> bool {
        if self.halted.is_some() {
            return false;
        }
        match step {
            Step::Commit => self.postgres.write(Some(self.generation)),
            Step::Noise => self.postgres.write(None),
            Step::Checkpoint => self.postgres.slot_kept = self.postgres.slot,
            Step::Lead(dies) if self.leader.is_none() => self.lead(dies),
            Step::Old(which) => return self.old_arrives(which),
            Step::OldDies(which) if which < self.old.len() => {
                self.old.swap_remove(which);
            }
            Step::Vanish(at) if self.stream.get(at).is_some_and(|stored| stored.there) => {
                self.stream[at].there = false;
            }
            Step::Stranger => self.stream.push(Stored {
                mark: None,
                there: true,
            }),
            Step::Copy(at) => match self.stream.get(at) {
                Some(Stored {
                    mark: Some(mark),
                    there: true,
                }) => {
                    let mark = Some(mark.clone());
                    self.stream.push(Stored { mark, there: true });
                }
                _ => return false,
            },
            Step::Forget => self.ids = self.ids.as_ref().map(|_| HashMap::new()),
            Step::Snapshot => self.snapshot = Some(self.postgres.clone()),
            Step::Backup if self.bucket.is_some() => self.backup.clone_from(&self.bucket),
            Step::Pause if self.paused.is_none() && self.leader.is_some() => {
                self.paused = self.leader.take();
                self.hung = true;
                self.instance += 1;
                (self.confirmed_here, self.void) = (None, false);
            }
            Step::PausedPumps => return self.apply_to_paused(Step::Pump),
            Step::PausedArrives => return self.apply_to_paused(Step::Arrive),
            Step::PausedHears => return self.apply_to_paused(Step::Hear),
            Step::PausedRecords => return self.apply_to_paused(Step::Record),
            Step::PausedReconnects => return self.apply_to_paused(Step::ConnectionLost),
            Step::PausedDies => return self.apply_to_paused(Step::TermEnds),
            Step::Rollback => return self.move_by_hand(step),
            Step::PostgresCrash
            | Step::Failover(..)
            | Step::Advance
            | Step::Recreate
            | Step::Restore => {
                // The slot is free then.
                if self.leader.is_some() {
                    self.end_term();
                }
                return self.move_by_hand(step);
            }
            _ if self.leader.is_some() => return self.apply_to_leader(step),
            _ => return false,
        }
        true
    }

    /// Does it with one that is no leader any more, and does not know it.
    fn apply_to_paused(&mut self, step: Step) -> bool {
        if self.paused.is_none() {
            return false;
        }
        std::mem::swap(&mut self.leader, &mut self.paused);
        let applied = self.apply_to_leader(step);
        std::mem::swap(&mut self.leader, &mut self.paused);
        applied
    }

    fn apply_to_leader(&mut self, step: Step) -> bool {
        match step {
            Step::Read => self.read(),
            Step::Keepalive => self.keepalive(),
            Step::Pump => self.pump(),
            Step::Arrive => self.arrive(),
            Step::Hear => self.hear(),
            Step::Record => self.record(),
            Step::Status => self.status(),
            Step::Crash => {
                self.end_term();
                self.instance += 1;
                (self.confirmed_here, self.void) = (None, false);
                true
            }
            Step::TermEnds => self.end_term(),
            Step::ConnectionLost => self.reconnect(),
            _ => false,
        }
    }

    /// What happens only while nobody leads.
    fn move_by_hand(&mut self, step: Step) -> bool {
        let Postgres { log, slot, .. } = &self.postgres;
        let (end, behind) = (end_of(log.len() as u64), *slot);
        match step {
            Step::PostgresCrash if self.postgres.slot_kept < behind => {
                self.postgres.slot = self.postgres.slot_kept;
                return true;
            }
            Step::Failover(lost, back) => return self.fail_over(lost, back),
            // Before anybody has led, nobody knows where the slot was.
            _ if self.bucket.is_none() => return false,
            Step::Advance if behind < end => {
                let next = (1..).map(end_of).find(|end| behind < *end);
                self.postgres.slot = next.expect("it is endless");
            }
            Step::Recreate if behind < end => self.postgres.slot = self.postgres.flush(),
            Step::Restore if self.snapshot.is_some() => {
                self.postgres = self.snapshot.clone().expect("it was asked");
                self.postgres.promoted = false;
                self.postgres.slot_kept = self.postgres.slot;
                self.generation += 1;
            }
            Step::Rollback if self.backup.is_some() => self.bucket = self.backup.take(),
            _ => return false,
        }
        self.postgres.slot_kept = self.postgres.slot;
        self.touched = true;
        true
    }

    /// A standby is promoted that lacks the newest rows and whose slot is behind.
    fn fail_over(&mut self, lost: usize, back: usize) -> bool {
        let postgres = &mut self.postgres;
        let rows = postgres.log.len().saturating_sub(lost);
        // What a checkpoint has kept, a standby that is promoted has, too.
        let newest_fork = postgres.ended.last().map_or(0, |(_, fork)| *fork);
        if end_of(rows as u64) < postgres.slot_kept || end_of(rows as u64) + 2 < newest_fork {
            return false;
        }
        postgres.log.truncate(rows);
        let fork = end_of(rows as u64) + 2;
        let confirmed = postgres.slot.min(end_of(rows as u64));
        let rows_confirmed = confirmed.saturating_sub(5) / 10;
        postgres.slot = match back {
            0 => confirmed,
            back => end_of(rows_confirmed.saturating_sub(back as u64 - 1)),
        };
        postgres.slot = postgres.slot.min(confirmed);
        postgres.slot_kept = postgres.slot;
        postgres.ended.push((postgres.timeline, fork));
        postgres.timeline += 1;
        postgres.promoted = true;
        self.snapshot = None;
        self.generation += 1;
        true
    }

    /// What no rule allows.
    fn wrong(&self) -> Option<String> {
        let known = |row: &Row| self.ever.contains(row) || self.excused.contains(row);
        if self.leader.is_some() {
            let confirmed = self.postgres.rows().filter(|row| {
                // It is not sent again.
                commit_of(row.0) < self.postgres.slot
            });
            if let Some(row) = confirmed.into_iter().find(|row| !known(row)) {
                return Some(format!("lost: {row:?} is confirmed and was never stored"));
            }
        }
        if let Some(row) = self.twice {
            return Some(format!("twice: {row:?}, and was not counted"));
        }
        if !self.touched && (self.alarm || self.halted.is_some()) {
            let halted = &self.halted;
            return Some(format!("false alarm: nobody moved anything ({halted:?})"));
        }
        None
    }

    /// Lets everything come to its end. What was committed is stored and confirmed then.
    fn finish(&mut self) -> Result<(), String> {
        const TURNS_MAX: usize = 300;
        let turn = [
            Step::Lead(0),
            Step::Read,
            Step::Keepalive,
            Step::Pump,
            Step::Arrive,
            Step::Hear,
            Step::Record,
            Step::Arrive,
            Step::Hear,
            Step::Status,
            Step::Old(0),
            Step::Old(1),
        ];
        for _ in 0..TURNS_MAX {
            for step in turn {
                self.apply(step);
                self.wrong().map_or(Ok(()), Err)?;
            }
            let known = |row: Row| self.ever.contains(&row) || self.excused.contains(&row);
            let all = self.postgres.rows().all(known);
            let end = end_of(self.postgres.log.len() as u64);
            let idle = self.leader.as_ref().is_some_and(Leader::is_idle);
            if self.halted.is_some() || idle && all && self.postgres.slot >= end {
                return Ok(());
            }
        }
        let Postgres { log, slot, .. } = &self.postgres;
        Err(format!("stuck: {} rows, confirmed {slot}", log.len()))
    }

    /// The server takes a message of a connection.
    fn take(&mut self, message: Message) -> Answer {
        let Message::Publish {
            number,
            row,
            mark,
            id,
            expected,
        } = message
        else {
            let Message::Write(write) = message else {
                unreachable!("there are two kinds");
            };
            return Answer::Write(self.keep(&write));
        };
        let ids = self.ids.as_ref();
        if let Some(sequence) = ids.zip(id.as_ref()).and_then(|(ids, id)| ids.get(id)) {
            return Answer::Publish(number, Reply::Duplicate(*sequence));
        }
        if expected != self.stream.len() as u64 {
            return Answer::Publish(number, Reply::Refused);
        }
        let mark = Some(mark);
        self.stream.push(Stored { mark, there: true });
        let sequence = self.stream.len() as u64;
        if let Some((ids, id)) = self.ids.as_mut().zip(id) {
            ids.insert(id, sequence);
        }
        if !self.ever.insert(row) && !self.uncertain.contains(&row) && !self.alarm {
            self.twice = Some(row);
        }
        Answer::Publish(number, Reply::Stored(sequence))
    }

    /// The compare-and-set.
    fn keep(&mut self, write: &Write) -> Written {
        let revision = self.bucket.as_ref().map_or(0, |kept| kept.revision);
        if write.expected != revision {
            return Written::Found(self.bucket.clone());
        }
        let revision = revision + 1;
        let bytes = write.bytes.clone();
        self.bucket = Some(Kept { revision, bytes });
        Written::Stored(revision)
    }

    fn old_arrives(&mut self, which: usize) -> bool {
        let Some(message) = self.old.get_mut(which).and_then(VecDeque::pop_front) else {
            return false;
        };
        self.take(message);
        self.old.retain(|connection| !connection.is_empty());
        true
    }

    /// An alarm names a part of the log that was not read.
    fn excuse(&mut self, record: &Record) {
        let Some(gap) = record.gap else {
            return;
        };
        self.alarm = true;
        let gap = gap.from.as_u64()..gap.to.as_u64();
        let rows = self.postgres.rows();
        let missing: Vec<Row> = rows.filter(|row| gap.contains(&commit_of(row.0))).collect();
        self.excused.extend(missing);
    }
}

impl Postgres {
    fn write(&mut self, generation: Option<u32>) {
        self.log.push(generation);
        self.promoted = false;
    }

    fn flush(&self) -> u64 {
        end_of(self.log.len() as u64) + 2 * u64::from(self.promoted)
    }

    fn rows(&self) -> impl Iterator<Item = Row> {
        let places = (1..).zip(self.log.iter().copied());
        places.filter_map(|(place, generation)| Some((place, generation?)))
    }

    fn lineage(&self) -> Lineage {
        let source = Source {
            system: "7".to_owned(),
            timeline: self.timeline,
            slot: "outjet".to_owned(),
        };
        Lineage::new(source, self.ended.clone())
    }
}

fn commit_of(place: u64) -> u64 {
    10 * place
}

/// Where the log is as long as so many rows.
fn end_of(rows: u64) -> u64 {
    10 * rows + 5
}

fn event((place, generation): Row) -> Event {
    Event {
        position: Position {
            commit: commit_of(place),
            index: 0,
        },
        id: format!("{place}.{generation}"),
        subject: "s".to_owned(),
        headers: Headers::default(),
        payload: bytes::Bytes::new(),
        wrapped: None,
        table: "outbox.events".into(),
        deliver_at: None,
        expires_at: None,
        replayed: false,
        rejected: None,
        followers: 0,
        known: false,
    }
}

fn row_of(event: &Event) -> Row {
    let (place, generation) = event.id.split_once('.').expect("both");
    let number = "a number";
    (
        place.parse().expect(number),
        generation.parse().expect(number),
    )
}

fn lsn(value: u64) -> Lsn {
    Lsn::new(value)
}
