//! Which of these events are stored already? Pure: the caller reads the streams.
//!
//! Usually the record says so ([`crate::lead::watermark`]), and only what lies beyond it, or was
//! sent on a connection that broke, has to be looked for: everything that was stored since is read
//! into a set of (position, id) ([`Found`]). Nothing depends on the order there, and strangers and
//! copies do not matter: a copy proves that its event was stored.
//!
//! Where there is no record, or it does not hold, nothing is known of the past, which may be long.
//! Then what is to be sent is merged with the tail of the stream ([`Guard`]), in constant memory.
//! The stream holds our events in commit order, so one pass suffices: equal (position, id) are
//! passed together, entries that lie behind are dropped, and an event that lies before the next
//! entry is missing and goes out. A stranger may displace an event: refused, it is sent again
//! behind those that were under way with it. So an event is missing only if it is not among as many
//! of the next entries either; these are kept, and no more. Entries of strangers do not count: any
//! number of them may have come while the event was sent again and again.
//!
//! A sequence number that no longer holds a message proves nothing in either: it may have been a
//! stranger's. LSNs are used again after a failover and ids by applications, so neither alone
//! proves anything; entries written on a timeline that Postgres has abandoned do not count.

use std::collections::{BTreeMap, VecDeque};

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
    /// It is stored, at this sequence number.
    Stored(u64),
    /// It is not among what is there.
    Absent,
    /// Read on: [`Guard::offer`] the next entry, or [`Guard::end`].
    Unknown,
}

/// How many entries of ours an event may be stored behind the first that it should precede: later
/// ones that were under way with it when it was refused, and earlier ones that were as late. All of
/// the former were under way with it, all of the latter with that first entry.
pub fn late_max(in_flight_max: u64) -> u64 {
    2 * in_flight_max
}

/// The merge. Offer entries in stream order, judge events in commit order.
#[derive(Debug)]
pub struct Guard {
    lineage: Lineage,
    next_sequence: u64,
    late_max: u64,
    /// How many entries of strangers were offered.
    foreign: u64,
    /// How many of ours.
    ours: u64,
    /// Something else than our own events, in order, was offered.
    odd: bool,
    /// A sequence number held no message.
    vacant: bool,
    ended: bool,
    /// Entries that were read and are not passed: each lies above the one before it.
    ahead: VecDeque<Ahead>,
    /// Entries that are behind one that they should precede.
    late: Vec<(Position, String, u64)>,
    highest: Option<Position>,
    judged: Option<Position>,
}

#[derive(Debug)]
struct Ahead {
    /// How many of ours were offered before it.
    place: u64,
    position: Position,
    id: String,
    sequence: u64,
}

impl Guard {
    /// For the entries from `first` on. What lies below must be behind every event judged.
    /// `in_flight_max`: most events that are under way at once.
    pub fn new(lineage: Lineage, first: u64, in_flight_max: u64) -> Self {
        Self {
            lineage,
            next_sequence: first,
            late_max: late_max(in_flight_max),
            foreign: 0,
            ours: 0,
            odd: false,
            vacant: false,
            ended: false,
            ahead: VecDeque::new(),
            late: Vec::new(),
            highest: None,
            judged: None,
        }
    }

    /// Takes the next entry of the stream. Call only after [`Verdict::Unknown`].
    pub fn offer(&mut self, entry: Entry) {
        let foreign = self.lineage.is_foreign(entry.mark.as_ref());
        self.foreign += u64::from(foreign);
        let Entry { sequence, mark } = entry;
        assert!(
            sequence >= self.next_sequence,
            "entries come in stream order"
        );
        self.leave_vacant_up_to(sequence);
        let ours = mark.as_ref().filter(|_| !foreign);
        self.vacant |= ours.is_some_and(|mark| !self.lineage.knows(mark));
        let Some(Mark { position, id, .. }) = mark.filter(|mark| self.lineage.holds(mark)) else {
            self.odd = true;
            self.ours += u64::from(!foreign);
            return;
        };
        let place = self.ours;
        self.ours += 1;
        if self.highest.is_none_or(|highest| highest < position) {
            self.highest = Some(position);
            self.ahead.push_back(Ahead {
                place,
                position,
                id,
                sequence,
            });
        } else {
            self.odd = true;
            if self.judged.is_none_or(|judged| judged <= position) {
                self.late.push((position, id, sequence));
            }
        }
    }

    /// There are no entries left up to this sequence number, the last.
    pub fn end(&mut self, last: u64) {
        self.leave_vacant_up_to(last + 1);
        self.ended = true;
    }

    /// Judges the next event in commit order. [`Verdict::Unknown`] keeps it the next one.
    pub fn judge(&mut self, position: Position, id: &str) -> Verdict {
        self.judged = Some(position);
        self.late.retain(|late| late.0 >= position);
        while let Some(head) = self.ahead.pop_front_if(|head| head.position <= position) {
            if head.position == position && head.id == id {
                return Verdict::Stored(head.sequence);
            }
        }
        if !self.has_looked_ahead() {
            return Verdict::Unknown;
        }
        let late = |late: &(Position, String, u64)| late.0 == position && late.1 == id;
        match self.late.iter().position(late) {
            Some(at) => Verdict::Stored(self.late.swap_remove(at).2),
            None => Verdict::Absent,
        }
    }

    /// How many entries of strangers were offered.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Whether anything but our own events, in order and without a gap, was offered: then a
    /// connection that is dead may follow another plan than ours.
    pub fn odd(&self) -> bool {
        self.odd
    }

    /// Whether a sequence number held no message.
    pub fn vacant(&self) -> bool {
        self.vacant
    }

    /// Whether every further event is absent without asking.
    pub fn finished(&self) -> bool {
        self.ended && self.ahead.is_empty() && self.late.is_empty()
    }

    fn leave_vacant_up_to(&mut self, sequence: u64) {
        let vacant = sequence > self.next_sequence;
        self.vacant |= vacant;
        self.odd |= vacant;
        self.next_sequence = self.next_sequence.max(sequence + 1);
    }

    /// Whether an event that does not come next may still turn up late.
    fn has_looked_ahead(&self) -> bool {
        let head = self.ahead.front();
        let seen = head.map_or(0, |head| self.ours - head.place);
        self.ended || seen > self.late_max
    }
}

/// Which of several streams an entry was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The one that is appended to.
    Main,
    /// The dead letters.
    Letters,
}

/// What was stored beyond what is settled.
#[derive(Debug)]
pub struct Found {
    lineage: Lineage,
    entries: BTreeMap<Position, Vec<(String, Stream, u64)>>,
    /// How many of them there are of each stream.
    left: [usize; 2],
    /// Of the stream that is appended to, since it was last read: how many entries of strangers,
    /// whether a sequence number holds no message, and whether it holds anything but our own events
    /// in order.
    foreign: u64,
    vacant: bool,
    odd: bool,
    /// The highest timeline on which our slot has written.
    newest: u32,
    next_sequence: u64,
    highest: Option<Position>,
}

impl Found {
    /// Nothing yet.
    pub fn new(lineage: Lineage) -> Self {
        Self {
            lineage,
            entries: BTreeMap::new(),
            left: [0; 2],
            foreign: 0,
            vacant: false,
            odd: false,
            newest: 0,
            next_sequence: 0,
            highest: None,
        }
    }

    /// The stream that is appended to is read, from this sequence number on. What was found before
    /// stays known: it was stored.
    pub fn begin(&mut self, first: u64) {
        self.next_sequence = first;
        (self.foreign, self.vacant, self.odd, self.highest) = (0, false, false, None);
    }

    /// Takes the next entry of a stream; nothing is kept of what lies at `settled_to` or before it.
    pub fn offer(&mut self, stream: Stream, entry: Entry, settled_to: Option<Position>) {
        let Entry { sequence, mark } = entry;
        let foreign = self.lineage.is_foreign(mark.as_ref());
        if let Some(mark) = mark.as_ref().filter(|_| !foreign) {
            self.newest = self.newest.max(mark.source.timeline);
            // It may be what comes, as what has vanished may.
            self.vacant |= !self.lineage.knows(mark);
        }
        let ours = mark.filter(|mark| self.lineage.holds(mark));
        if stream == Stream::Main {
            assert!(
                sequence >= self.next_sequence,
                "entries come in stream order"
            );
            self.leave_vacant_up_to(sequence);
            self.foreign += u64::from(foreign);
            let position = ours.as_ref().map(|mark| mark.position);
            // What is settled lies before; a copy of it may be all that is read.
            self.odd |= position <= self.highest.max(settled_to);
            self.highest = self.highest.max(position);
        }
        let Some(mark) = ours.filter(|mark| Some(mark.position) > settled_to) else {
            return;
        };
        let there = self.entries.entry(mark.position).or_default();
        if !there.iter().any(|(id, ..)| *id == mark.id) {
            there.push((mark.id, stream, sequence));
            self.left[stream as usize] += 1;
        }
    }

    /// The stream that is appended to ends at this sequence number.
    pub fn end(&mut self, last: u64) {
        self.leave_vacant_up_to(last + 1);
    }

    /// Where an event was found first: in which stream, and at which sequence number.
    pub fn place_of(&self, position: Position, id: &str) -> Option<(Stream, u64)> {
        let mut there = self.entries.get(&position)?.iter();
        let (_, stream, sequence) = there.find(|(known, ..)| known == id)?;
        Some((*stream, *sequence))
    }

    /// Everything up to a position is settled.
    pub fn forget(&mut self, settled_to: Position) {
        while let Some(head) = self.entries.first_entry()
            && *head.key() <= settled_to
        {
            for (_, stream, _) in head.remove() {
                self.left[stream as usize] -= 1;
            }
        }
    }

    /// Whether anything is left that was found in a stream.
    pub fn left_in(&self, stream: Stream) -> bool {
        self.left[stream as usize] > 0
    }

    /// How many entries of strangers were read.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// The timeline of an outjet that has followed us: our slot was read on a later one than ours.
    pub fn successor(&self) -> Option<u32> {
        (self.newest > self.lineage.source().timeline).then_some(self.newest)
    }

    /// Whether a sequence number held no message.
    pub fn vacant(&self) -> bool {
        self.vacant
    }

    /// Whether it held anything but our own events in order: then a connection that is dead may
    /// follow another plan than ours.
    pub fn odd(&self) -> bool {
        self.odd
    }

    fn leave_vacant_up_to(&mut self, sequence: u64) {
        let vacant = sequence > self.next_sequence;
        self.vacant |= vacant;
        self.odd |= vacant;
        self.next_sequence = sequence + 1;
    }
}

#[cfg(test)]
mod tests;
