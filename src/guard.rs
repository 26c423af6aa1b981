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

/// Who wrote an entry: one slot of one Postgres cluster, on one timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The cluster's system identifier.
    pub system: String,
    /// The timeline on which it was read.
    pub timeline: u32,
    /// The slot.
    pub slot: String,
}

impl Source {
    /// Reads `<system identifier>/<timeline>/<slot>`; `None` if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        let (system, timeline, slot) = (parts.next()?, parts.next()?, parts.next()?);
        let timeline = timeline.parse().ok()?;
        Some(Self {
            system: system.to_owned(),
            timeline,
            slot: slot.to_owned(),
        })
    }

    /// Whether both are the same slot of the same cluster, on whatever timeline.
    pub fn same_slot(&self, other: &Self) -> bool {
        self.system == other.system && self.slot == other.slot
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.system, self.timeline, self.slot)
    }
}

/// The source that writes now, and where earlier timelines of its cluster ended.
#[derive(Clone, Debug)]
pub struct Lineage {
    source: Source,
    /// (timeline, first commit position that is no longer part of it).
    ended: Vec<(u32, u64)>,
}

impl Lineage {
    /// `ended`: each earlier timeline with the position at which the next one left it
    /// (`TIMELINE_HISTORY`).
    pub fn new(source: Source, ended: Vec<(u32, u64)>) -> Self {
        Self { source, ended }
    }

    /// The source that writes now.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Whether an entry belongs to the history that the cluster has now.
    pub fn holds(&self, mark: &Mark) -> bool {
        if !mark.source.same_slot(&self.source) {
            return false;
        }
        if mark.source.timeline == self.source.timeline {
            return true;
        }
        let end = self
            .ended
            .iter()
            .find(|(timeline, _)| *timeline == mark.source.timeline);
        end.is_some_and(|(_, end)| mark.position.commit < *end)
    }

    /// Whether somebody else wrote an entry: anybody, or an outjet of another slot.
    pub fn is_foreign(&self, entry: &Entry) -> bool {
        let mark = entry.mark.as_ref();
        !mark.is_some_and(|mark| mark.source.same_slot(&self.source))
    }
}

/// What our headers say of a stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Who wrote it.
    pub source: Source,
    /// Its place in the commit order.
    pub position: Position,
    /// The message id.
    pub id: String,
}

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
    /// Its sequence number, but for the strangers that were offered before it.
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
            dense: true,
            vacant: 0,
            ahead: VecDeque::new(),
            late: Vec::new(),
            highest: None,
            judged: None,
            anchored: false,
        }
    }

    /// For a stream that holds only some of the events judged, as dead letters do: what is missing
    /// from it tells nothing.
    pub fn sparse(self) -> Self {
        Self {
            dense: false,
            ..self
        }
    }

    /// Takes the next entry of the stream. Call only after [`Verdict::Unknown`].
    pub fn offer(&mut self, entry: Entry) {
        self.foreign += u64::from(self.lineage.is_foreign(&entry));
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
                place: sequence - self.foreign,
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
        if self.dense {
            self.vacant += sequence.saturating_sub(self.next_sequence);
        }
    }

    fn ended(&self) -> bool {
        self.next_sequence > self.last_sequence
    }

    /// Whether an event that does not come next may still turn up late.
    fn has_looked_ahead(&self) -> bool {
        let head = self.ahead.front();
        let place = self.next_sequence - self.foreign;
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
            vacant: Vec::new(),
            foreign: 0,
            highest: newest,
        }
    }

    /// Takes the next entry of the stream.
    pub fn offer(&mut self, entry: Entry) {
        self.foreign += u64::from(self.lineage.is_foreign(&entry));
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
        if sequence > self.next_sequence {
            self.vacant.push(self.next_sequence..=sequence - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(timeline: u32) -> Source {
        Source {
            system: "7".to_owned(),
            timeline,
            slot: "outjet".to_owned(),
        }
    }

    fn at(commit: u64) -> Position {
        Position { commit, index: 0 }
    }

    fn ours(sequence: u64, commit: u64) -> Entry {
        on_timeline(sequence, commit, 1)
    }

    fn on_timeline(sequence: u64, commit: u64, timeline: u32) -> Entry {
        let mark = Mark {
            source: source(timeline),
            position: at(commit),
            id: commit.to_string(),
        };
        Entry {
            sequence,
            mark: Some(mark),
        }
    }

    fn foreign(sequence: u64) -> Entry {
        Entry {
            sequence,
            mark: None,
        }
    }

    /// Which of the events (by commit position, ids alike) would be sent.
    fn sent(guard: &mut Guard, tail: &[Entry], events: &[u64]) -> Vec<u64> {
        let mut tail = tail.iter();
        let mut absent = |event: &u64| loop {
            match guard.judge(at(*event), &event.to_string()) {
                Verdict::Stored => return false,
                Verdict::Absent => return true,
                Verdict::Unknown if guard.wants().is_none() => continue,
                Verdict::Unknown => match tail.next() {
                    Some(entry) => guard.offer(entry.clone()),
                    None => guard.end(),
                },
            }
        };
        events
            .iter()
            .copied()
            .filter(|event| absent(event))
            .collect()
    }

    /// As many events as may be late in these tests.
    const IN_FLIGHT_MAX: u64 = 8;

    fn guard(first: u64, last: u64) -> Guard {
        Guard::new(
            Lineage::new(source(1), Vec::new()),
            (first, last),
            IN_FLIGHT_MAX,
        )
    }

    /// The same behind an acknowledgement, up to event `newest`.
    fn since(tail: &[Entry], (first, last): (u64, u64), newest: u64) -> Since {
        let lineage = Lineage::new(source(1), Vec::new());
        let mut since = Since::new(lineage, (first, last), Some(at(newest)));
        tail.iter().cloned().for_each(|entry| since.offer(entry));
        since.end();
        since
    }

    #[test]
    fn what_stands_in_the_tail_is_not_sent_again() {
        let tail = [ours(1, 10), ours(2, 20), ours(3, 30)];
        assert_eq!(sent(&mut guard(1, 3), &tail, &[20, 30, 40]), [40]);
    }

    #[test]
    fn an_empty_stream_holds_nothing() {
        let mut guard = guard(1, 0);
        assert!(guard.finished());
        assert_eq!(sent(&mut guard, &[], &[10]), [10]);
    }

    #[test]
    fn an_event_that_a_stranger_displaced_is_sent_late() {
        let tail = [ours(1, 10), foreign(2), ours(3, 30)];
        assert_eq!(sent(&mut guard(1, 3), &tail, &[10, 20, 30, 40]), [20, 40]);
    }

    #[test]
    fn removed_messages_count_before_between_and_after_survivors() {
        let tail = [ours(3, 30), ours(5, 50)];
        assert_eq!(
            sent(&mut guard(1, 6), &tail, &[10, 20, 30, 40, 50, 60, 70]),
            [70]
        );
    }

    #[test]
    fn a_vacancy_behind_the_events_at_hand_covers_none_of_them() {
        let tail = [ours(1, 10), ours(3, 30)];
        assert_eq!(sent(&mut guard(1, 3), &tail, &[30, 40, 50]), [40, 50]);
    }

    #[test]
    fn vacancies_behind_a_confirmed_survivor_hide_no_new_event() {
        // A work queue: 10 waits for its consumer, 20 and 30 were consumed, all are confirmed.
        let tail = [ours(1, 10)];
        assert_eq!(sent(&mut guard(1, 3), &tail, &[40, 50]), [40, 50]);
    }

    #[test]
    fn an_event_that_a_stranger_displaced_is_found_where_it_was_sent_late() {
        // 20 was refused, 30 and 40 fitted behind the stranger, 20 was sent again.
        let tail = [
            ours(1, 10),
            foreign(2),
            ours(3, 30),
            ours(4, 40),
            ours(5, 20),
        ];
        assert_eq!(sent(&mut guard(1, 5), &tail, &[10, 20, 30, 40, 50]), [50]);
        assert_eq!(sent(&mut guard(1, 5), &tail, &[20, 30, 40, 50]), [50]);
        assert_eq!(sent(&mut guard(1, 5), &tail, &[30, 40, 50]), [50]);
    }

    #[test]
    fn a_late_entry_is_found_behind_any_number_of_strangers() {
        let crowd = (4..4 + 3 * IN_FLIGHT_MAX).map(foreign);
        let late = 4 + 3 * IN_FLIGHT_MAX;
        let tail: Vec<Entry> = [ours(1, 10), foreign(2), ours(3, 30)]
            .into_iter()
            .chain(crowd)
            .chain([ours(late, 20)])
            .collect();
        assert_eq!(sent(&mut guard(1, late), &tail, &[20, 30, 40]), [40]);
        assert_eq!(sent(&mut guard(1, late), &tail, &[30, 40]), [40]);
    }

    #[test]
    fn a_late_entry_is_found_behind_others_as_late_and_those_under_way_with_it() {
        // At most 8 were under way: 12 with 7, 8, 10 and 11, and 13 to 17 with 11.
        let order = [9, 12, 7, 8, 10, 13, 14, 15, 16, 17, 11];
        let tail: Vec<Entry> = (1..)
            .zip(order)
            .map(|(at, event)| ours(at, event))
            .collect();
        let events: Vec<u64> = (7..=18).collect();
        assert_eq!(sent(&mut guard(1, 11), &tail, &events), [18]);
    }

    #[test]
    fn a_late_entry_is_none_of_the_vacancies_around_it() {
        let tail = [ours(1, 10), ours(3, 40), ours(4, 20), ours(6, 60)];
        assert_eq!(
            sent(&mut guard(1, 6), &tail, &[10, 20, 30, 40, 50, 60, 70]),
            [70]
        );
    }

    #[test]
    fn vacancies_behind_an_acknowledgement_count_for_what_was_sent_there() {
        // 10 was acknowledged at 1; 20 and 30 were sent to 2 and 3, stored and consumed at once.
        let since = since(&[], (2, 3), 30);
        assert!(since.holds(at(20), "20", &[2]));
        assert!(!since.finished(at(20)));
        assert!(since.holds(at(30), "30", &[3]));
        assert!(since.finished(at(30)));
    }

    #[test]
    fn a_stranger_that_was_consumed_hides_no_event() {
        // The stranger took 2; 20 was refused there, and 30 was never sent.
        let since = since(&[], (2, 2), 20);
        assert!(!since.holds(at(20), "20", &[]));
        assert!(!since.holds(at(30), "30", &[]));
    }

    #[test]
    fn behind_an_acknowledgement_the_order_does_not_matter() {
        let tail = [foreign(2), ours(3, 30), ours(5, 20)];
        let since = since(&tail, (2, 5), 40);
        let holds = |event: u64, place| since.holds(at(event), &event.to_string(), &[place]);
        assert!(holds(20, 2) && holds(30, 3) && holds(40, 4));
        assert!(!holds(50, 6), "nothing stands there yet");
        assert!(!since.holds(at(30), "other", &[]));
    }

    #[test]
    fn behind_an_acknowledgement_a_leader_that_was_ahead_of_us_is_heeded() {
        let since = since(&[ours(2, 20), ours(3, 30)], (2, 3), 20);
        assert!(!since.finished(at(20)));
        assert!(since.holds(at(30), "30", &[]));
        assert!(since.finished(at(30)));
    }

    #[test]
    fn an_emptied_stream_hides_no_new_event() {
        assert_eq!(sent(&mut guard(1, 3), &[], &[40]), [40]);
    }

    #[test]
    fn lsns_used_again_after_a_failover_are_sent() {
        // attacks.md 4a: 110 and 120 died with timeline 1, 106 and 115 were made on timeline 2.
        let tail = [
            on_timeline(1, 100, 1),
            on_timeline(2, 110, 1),
            on_timeline(3, 120, 1),
            on_timeline(4, 106, 2),
            on_timeline(5, 115, 2),
        ];
        let lineage = Lineage::new(source(2), vec![(1, 105)]);
        let mut guard = Guard::new(lineage, (1, 5), IN_FLIGHT_MAX);
        assert_eq!(sent(&mut guard, &tail, &[100, 106, 115, 130]), [130]);
    }

    #[test]
    fn the_same_position_with_another_id_is_another_event() {
        let mut guard = guard(1, 1);
        assert_eq!(guard.judge(at(10), "other"), Verdict::Unknown);
        guard.offer(ours(1, 10));
        assert_eq!(guard.judge(at(10), "other"), Verdict::Absent);
    }

    #[test]
    fn a_source_reads_as_it_is_written() {
        let source = source(3);
        assert_eq!(Source::parse(&source.to_string()), Some(source));
        assert_eq!(Source::parse("7/x/outjet"), None);
        assert_eq!(Source::parse("7/1"), None);
    }

    proptest! {
        /// Our stream is a chain: what stands in it is a prefix of what was committed, with
        /// strangers and with holes where messages were removed.
        #[test]
        fn exactly_the_rest_of_a_chain_is_sent(
            stored in 0..60u64,
            total in 0..80u64,
            resent_from in 0..60u64,
            fates in prop::collection::vec(0..4u8, 60),
        ) {
            let (mut tail, mut sequence) = (Vec::new(), 0);
            for event in 0..stored {
                if fates[event as usize] == 0 {
                    sequence += 1;
                    tail.push(foreign(sequence));
                }
                sequence += 1;
                if fates[event as usize] != 1 {
                    tail.push(ours(sequence, event));
                }
            }
            let events: Vec<u64> = (resent_from.min(stored)..total.max(stored)).collect();
            // The scan starts at an entry that lies behind, as the caller's search finds it.
            let behind = tail.iter().rev().find(|entry| {
                entry.mark.as_ref().is_some_and(|mark| mark.position <= at(resent_from.min(stored)))
            });
            let first = behind.map_or(1, |entry| entry.sequence);
            let survivors = tail.iter().filter_map(|entry| entry.mark.as_ref());
            let last = survivors.map(|mark| mark.position).max();
            let decidable = last.is_some_and(|last| last >= at(resent_from.min(stored)));
            let tail: Vec<_> = tail.into_iter().filter(|e| e.sequence >= first).collect();
            let expected: Vec<u64> = (stored..total.max(stored)).collect();
            let sent = sent(&mut guard(first, sequence), &tail, &events);
            prop_assert!(sent.ends_with(&expected), "lost: {sent:?} of {expected:?}");
            if decidable {
                prop_assert_eq!(sent, expected);
            }
        }

        /// Strangers let events come late, but never by more than what is under way at once.
        #[test]
        fn exactly_the_rest_of_a_disordered_chain_is_sent(
            delays in prop::collection::vec(prop_oneof![3 => Just(0), 1 => 1..IN_FLIGHT_MAX], 1..60),
            total in 0..80u64,
            resent_from in 0..60u64,
        ) {
            let stored = delays.len() as u64;
            let mut order: Vec<u64> = (0..stored).collect();
            order.sort_by_key(|event| (event + delays[*event as usize], *event));
            let mut tail = Vec::new();
            for event in order {
                for _ in 0..3 * delays[event as usize] {
                    tail.push(foreign(tail.len() as u64 + 1));
                }
                tail.push(ours(tail.len() as u64 + 1, event));
            }
            let last = tail.len() as u64;
            let events: Vec<u64> = (resent_from.min(stored)..total.max(stored)).collect();
            let lineage = Lineage::new(source(1), Vec::new());
            let mut guard = Guard::new(lineage, (1, last), IN_FLIGHT_MAX);
            let expected: Vec<u64> = (stored..total.max(stored)).collect();
            prop_assert_eq!(sent(&mut guard, &tail, &events), expected);
            prop_assert!(guard.late.len() as u64 <= late_max(IN_FLIGHT_MAX));
            prop_assert!(guard.ahead.len() as u64 <= late_max(IN_FLIGHT_MAX) + 1);
        }
    }
}
