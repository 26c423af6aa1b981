//! Which of these events stand in the stream already? An ordered merge of what is to be sent with
//! the tail of the stream, for whatever made us send again: a new NATS connection, a takeover, a
//! Postgres that forgot what it was told. Pure: the caller reads the tail.
//!
//! The stream holds our events in commit order, so one pass suffices: equal (position, id) are
//! passed together, entries that lie behind are dropped, and an event that lies before the next
//! entry is missing and goes out. Sequence numbers that no longer hold a message count as one
//! stored event each, because every sequence number was made by one of our events: otherwise a
//! stream with limits would get back what it had dropped. Behind the last survivor they count only
//! if that survivor was sent again, too: if it was not, they may belong to events that were
//! confirmed long ago, and counting them would lose new ones.
//!
//! A stranger may displace an event: refused, it is sent again behind those that were under way
//! with it. So an event is missing only if it does not stand among as many of the next entries
//! either; these are kept, and no more. Entries of strangers do not count: any number of them may
//! have come while the event was sent again and again. Behind an acknowledgement of our own nothing
//! has to be guessed ([`Since`]).
//!
//! LSNs are used again after a failover and ids by applications, so neither alone proves anything;
//! entries written on a timeline that Postgres has abandoned do not count.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;

use crate::event::Position;
use crate::event::lineage::{Lineage, Mark};

/// A stored message: its sequence number and, if it bears our headers, its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The stream sequence number.
    pub sequence: u64,
    /// `None`: somebody else's message.
    pub mark: Option<Mark>,
}

/// What is known of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stands in the stream.
    Stored,
    /// It does not: send it.
    Absent,
    /// Read on: [`Guard::offer`] the next entry, or [`Guard::end`].
    Unknown,
}

/// How many entries of ours an event may stand behind the first that it should stand before: later
/// ones that were under way with it when it was refused, and earlier ones that were as late. All of
/// the former were under way with it, all of the latter with that first entry.
pub fn late_max(in_flight_max: u64) -> u64 {
    2 * in_flight_max
}

/// The merge. Offer entries in stream order, judge events in commit order.
#[derive(Debug)]
pub struct Guard {
    lineage: Lineage,
    /// The sequence number that comes next if none is missing.
    next_sequence: u64,
    last_sequence: u64,
    late_max: u64,
    /// How many entries of strangers were offered.
    foreign: u64,
    /// How many sequence numbers were passed that are not known to be of ours.
    others: u64,
    /// Whether a missing sequence number stands for a stored event.
    dense: bool,
    /// Missing sequence numbers since the last entry in order.
    vacant: u64,
    /// Entries that were read and are not passed: each lies above the one before it.
    ahead: VecDeque<Ahead>,
    /// Entries that stand behind one that they should stand before.
    late: Vec<(Position, String)>,
    highest: Option<Position>,
    judged: Option<Position>,
    /// An event was judged that stands at a survivor or before it: every later one is at hand.
    anchored: bool,
}

#[derive(Debug)]
struct Ahead {
    /// Its sequence number, but for those before it that are not of ours.
    place: u64,
    position: Position,
    id: String,
    /// Sequence numbers that are missing before it and that no event has been matched with.
    vacant: u64,
}

impl Guard {
    /// For the entries `first..=last`. What lies below `first` must be behind every event judged.
    /// `in_flight_max`: most events that are under way at once.
    pub fn new(lineage: Lineage, (first, last): (u64, u64), in_flight_max: u64) -> Self {
        Self {
            lineage,
            next_sequence: first,
            last_sequence: last,
            late_max: late_max(in_flight_max),
            foreign: 0,
            others: 0,
            dense: true,
            vacant: 0,
            ahead: VecDeque::new(),
            late: Vec::new(),
            highest: None,
            judged: None,
            anchored: false,
        }
    }

    /// For a stream that holds only some of the events judged, as dead letters do, or that others
    /// write, too: what is missing from it tells nothing. Entries of others need not be offered.
    pub fn sparse(self) -> Self {
        Self {
            dense: false,
            ..self
        }
    }

    /// Takes the next entry of the stream. Call only after [`Verdict::Unknown`].
    pub fn offer(&mut self, entry: Entry) {
        let foreign = u64::from(self.lineage.is_foreign(entry.mark.as_ref()));
        self.foreign += foreign;
        self.others += foreign;
        let Entry { sequence, mark } = entry;
        assert!(
            sequence >= self.next_sequence,
            "entries come in stream order"
        );
        self.leave_vacant_up_to(sequence);
        self.next_sequence = sequence + 1;
        let Some(Mark { position, id, .. }) = mark.filter(|mark| self.lineage.holds(mark)) else {
            return;
        };
        if self.highest.is_none_or(|highest| highest < position) {
            self.highest = Some(position);
            let vacant = std::mem::take(&mut self.vacant);
            self.ahead.push_back(Ahead {
                place: sequence - self.others,
                position,
                id,
                vacant,
            });
        } else if self.judged.is_none_or(|judged| judged <= position) {
            self.late.push((position, id));
        }
    }

    /// There are no entries left up to the last sequence number.
    pub fn end(&mut self) {
        self.leave_vacant_up_to(self.last_sequence + 1);
        self.next_sequence = self.last_sequence + 1;
    }

    /// Judges the next event in commit order. [`Verdict::Unknown`] keeps it the next one.
    pub fn judge(&mut self, position: Position, id: &str) -> Verdict {
        self.judged = Some(position);
        self.late.retain(|late| late.0 >= position);
        while let Some(head) = self.ahead.pop_front_if(|head| head.position <= position) {
            if head.position == position && head.id == id {
                self.anchored = true;
                return Verdict::Stored;
            }
        }
        if !self.has_looked_ahead() {
            return Verdict::Unknown;
        }
        self.anchored |= !self.ahead.is_empty();
        let late = |late: &(Position, String)| late.0 == position && late.1 == id;
        if let Some(at) = self.late.iter().position(late) {
            self.late.swap_remove(at);
            self.anchored = true;
            return Verdict::Stored;
        }
        self.fill_vacancy()
    }

    /// How many entries of strangers were offered.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Whether every further event is absent without asking.
    pub fn finished(&self) -> bool {
        self.ended() && self.ahead.is_empty() && self.late.is_empty() && self.vacant == 0
    }

    /// The sequence number to read next, if any is left.
    pub fn wants(&self) -> Option<u64> {
        (!self.ended()).then_some(self.next_sequence)
    }

    fn leave_vacant_up_to(&mut self, sequence: u64) {
        let missing = sequence.saturating_sub(self.next_sequence);
        if self.dense {
            self.vacant += missing;
        } else {
            self.others += missing;
        }
    }

    fn ended(&self) -> bool {
        self.next_sequence > self.last_sequence
    }

    /// Whether an event that does not come next may still turn up late.
    fn has_looked_ahead(&self) -> bool {
        let head = self.ahead.front();
        let place = self.next_sequence - self.others;
        let seen = head.map_or(0, |head| place - head.place);
        self.ended() || seen > self.late_max
    }

    fn fill_vacancy(&mut self) -> Verdict {
        let vacant = match self.ahead.front_mut() {
            Some(head) => &mut head.vacant,
            None if self.anchored => &mut self.vacant,
            None => {
                self.vacant = 0;
                return Verdict::Absent;
            }
        };
        match vacant.checked_sub(1) {
            Some(left) => {
                *vacant = left;
                Verdict::Stored
            }
            None => Verdict::Absent,
        }
    }
}

/// What stands behind an acknowledgement of our own: for the events that were sent since, each with
/// the places where it may stand. Here a missing sequence number says whose it was, and nothing
/// depends on the order.
#[derive(Debug)]
pub struct Since {
    lineage: Lineage,
    next_sequence: u64,
    last_sequence: u64,
    found: HashMap<Position, String>,
    /// Whether a missing sequence number was one of the places that it may have been.
    dense: bool,
    vacant: Vec<RangeInclusive<u64>>,
    /// How many entries of strangers were offered.
    foreign: u64,
    /// No event behind this one was sent or found.
    highest: Option<Position>,
}

impl Since {
    /// For the entries `first..=last`; `newest` is the newest event that may have been sent.
    pub fn new(lineage: Lineage, (first, last): (u64, u64), newest: Option<Position>) -> Self {
        Self {
            lineage,
            next_sequence: first,
            last_sequence: last,
            found: HashMap::new(),
            dense: true,
            vacant: Vec::new(),
            foreign: 0,
            highest: newest,
        }
    }

    /// For a stream that others write, too: what is missing from it tells nothing.
    pub fn sparse(self) -> Self {
        Self {
            dense: false,
            ..self
        }
    }

    /// Takes the next entry of the stream.
    pub fn offer(&mut self, entry: Entry) {
        self.foreign += u64::from(self.lineage.is_foreign(entry.mark.as_ref()));
        self.leave_vacant_up_to(entry.sequence);
        self.next_sequence = entry.sequence + 1;
        if let Some(mark) = entry.mark.filter(|mark| self.lineage.holds(mark)) {
            self.highest = self.highest.max(Some(mark.position));
            self.found.insert(mark.position, mark.id);
        }
    }

    /// There are no entries left.
    pub fn end(&mut self) {
        self.leave_vacant_up_to(self.last_sequence + 1);
        self.next_sequence = self.last_sequence + 1;
    }

    /// Whether the event stands there, or stood at one of the `places` where its outcome was never
    /// heard of.
    pub fn holds(&self, position: Position, id: &str, places: &[u64]) -> bool {
        let found = self.found.get(&position);
        found.is_some_and(|found| found == id) || places.iter().any(|place| self.misses(*place))
    }

    /// Whether every event behind this one is absent without asking.
    pub fn finished(&self, position: Position) -> bool {
        Some(position) >= self.highest
    }

    /// How many entries of strangers were offered.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    fn misses(&self, sequence: u64) -> bool {
        let at = self.vacant.partition_point(|gap| *gap.end() < sequence);
        self.vacant
            .get(at)
            .is_some_and(|gap| gap.contains(&sequence))
    }

    fn leave_vacant_up_to(&mut self, sequence: u64) {
        assert!(
            sequence >= self.next_sequence,
            "entries come in stream order"
        );
        if self.dense && sequence > self.next_sequence {
            self.vacant.push(self.next_sequence..=sequence - 1);
        }
    }
}

#[cfg(test)]
mod tests;
