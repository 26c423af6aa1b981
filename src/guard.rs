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
//! confirmed long ago, and counting them would lose new ones. Memory is constant.
//!
//! LSNs are used again after a failover and ids by applications, so neither alone proves anything;
//! entries written on a timeline that Postgres has abandoned do not count.

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

/// The merge. Offer entries in stream order, judge events in commit order.
#[derive(Debug)]
pub struct Guard {
    lineage: Lineage,
    /// The sequence number that comes next if none is missing.
    next_sequence: u64,
    last_sequence: u64,
    /// Missing sequence numbers before `head` that no event has been matched with.
    vacant: u64,
    head: Option<Mark>,
    ended: bool,
    /// A survivor at or behind which an event was judged: from there on every event is at hand.
    anchored: bool,
}

impl Guard {
    /// For the entries `first..=last`. What lies below `first` must be behind every event judged.
    pub fn new(lineage: Lineage, first: u64, last: u64) -> Self {
        let ended = first > last;
        Self {
            lineage,
            next_sequence: first,
            last_sequence: last,
            vacant: 0,
            head: None,
            ended,
            anchored: false,
        }
    }

    /// Says that whatever stands at `first` and behind it belongs to events that will be judged, as
    /// after an acknowledgement for the sequence number before it: vacancies then always count.
    pub fn anchored(mut self) -> Self {
        self.anchored = true;
        self
    }

    /// Takes the next entry of the stream. Call only after [`Verdict::Unknown`].
    pub fn offer(&mut self, entry: Entry) {
        assert!(
            self.head.is_none(),
            "an entry is offered when it is asked for"
        );
        assert!(
            entry.sequence >= self.next_sequence,
            "entries come in stream order"
        );
        self.vacant += entry.sequence - self.next_sequence;
        self.next_sequence = entry.sequence + 1;
        self.head = entry.mark.filter(|mark| self.lineage.holds(mark));
        self.ended = self.head.is_none() && self.next_sequence > self.last_sequence;
    }

    /// There are no entries left up to the last sequence number.
    pub fn end(&mut self) {
        self.vacant += (self.last_sequence + 1).saturating_sub(self.next_sequence);
        self.next_sequence = self.last_sequence + 1;
        self.ended = true;
    }

    /// Judges the next event in commit order. [`Verdict::Unknown`] keeps it the next one.
    pub fn judge(&mut self, position: Position, id: &str) -> Verdict {
        if let Some(head) = &self.head {
            if head.position > position {
                self.anchored = true;
                return self.fill_vacancy().unwrap_or(Verdict::Absent);
            }
            let equal = head.position == position && head.id == id;
            self.anchored |= equal;
            self.pass_head();
            return if equal {
                Verdict::Stored
            } else {
                Verdict::Unknown
            };
        }
        if !self.ended {
            return Verdict::Unknown;
        }
        if !self.anchored {
            self.vacant = 0;
        }
        self.fill_vacancy().unwrap_or(Verdict::Absent)
    }

    /// Whether every further event is absent without asking.
    pub fn finished(&self) -> bool {
        self.ended && self.head.is_none() && self.vacant == 0
    }

    /// The sequence number to read next, if any is left.
    pub fn wants(&self) -> Option<u64> {
        (self.next_sequence <= self.last_sequence).then_some(self.next_sequence)
    }

    fn fill_vacancy(&mut self) -> Option<Verdict> {
        self.vacant = self.vacant.checked_sub(1)?;
        Some(Verdict::Stored)
    }

    /// The head lies behind: so does what was missing before it.
    fn pass_head(&mut self) {
        self.head = None;
        self.vacant = 0;
        self.ended = self.next_sequence > self.last_sequence;
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

    fn guard(first: u64, last: u64) -> Guard {
        Guard::new(Lineage::new(source(1), Vec::new()), first, last)
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
    fn vacancies_behind_an_acknowledgement_count() {
        // 10 was acknowledged at 1; 20 and 30 were stored unacknowledged and consumed at once.
        assert_eq!(sent(&mut guard(2, 3).anchored(), &[], &[20, 30, 40]), [40]);
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
        let mut guard = Guard::new(lineage, 1, 5);
        assert_eq!(sent(&mut guard, &tail, &[100, 106, 115, 130]), [130]);
    }

    #[test]
    fn the_same_position_with_another_id_is_another_event() {
        let mut guard = guard(1, 1);
        assert_eq!(guard.judge(at(10), "other"), Verdict::Unknown);
        guard.offer(ours(1, 10));
        assert_eq!(guard.judge(at(10), "other"), Verdict::Unknown);
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
    }
}
