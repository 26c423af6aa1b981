//! What is known of the past of a term: which events may be stored already when they are to be
//! sent, and how carefully they go out. Pure: [`super::past`] reads the streams.
//!
//! A sequence number without a message proves nothing. Where there is one, an event that is not
//! found and that somebody may have sent before is *uncertain*: it goes out alone, with its id. The
//! server's answer `duplicate` settles it only if it names such a number that settled no other
//! event; otherwise the event is stored, perhaps for the second time: twice rather than lost.
//!
//! A dead connection that still delivers follows the plan of its time. Where that may not be ours,
//! because the stream holds anything but our events in order, one event is in flight at a time: or
//! the old connection could take the place of one of ours, and the next of ours be stored twice.

use std::ops::RangeInclusive;

use super::ring::{Ring, Waiting};
use crate::event::lineage::Lineage;
use crate::event::{Event, Position};
use crate::guard::{Found, Stream};
use crate::sink::{Past, Settled, UNRECORDED_MAX};

/// Stretches of the stream that connections of one term may leave unheard of: a term that loses
/// more of them before its past is settled has other troubles.
const UNHEARD_MAX: usize = 64;

/// What is known of the past of a term.
pub(crate) struct Memory {
    past: Past,
    found: Found,
    /// Others write into the stream, too.
    shared: bool,
    /// Nothing but `found` has to be asked; before, the tail of the stream is merged.
    complete: bool,
    /// What lies beyond `settled_to` is stored behind these sequence numbers.
    base: u64,
    letters: u64,
    settled_to: Option<Position>,
    /// Where the stream ended when the term began: what a leader before us has stored in time.
    began_at: u64,
    /// What was stored later, and by whom nobody has told us: by a leader before us that had not
    /// noticed yet, or by a lost connection of ours.
    unheard: Vec<RangeInclusive<u64>>,
    /// A sequence number holds no message, and an event of ours may have stood there.
    vacant: bool,
    /// `base` stays until this is settled: what comes before may stand at a vacant number.
    vacant_until: Option<Position>,
    /// The highest number at which an event is known to have been stored that was settled before
    /// or found since: no later one was stored there.
    settled_at: u64,
    /// Below this number, events in the ring may have been found by the merge.
    merged_until: u64,
    /// Behind which sequence number it has read.
    merged_behind: u64,
    /// From this number on, an event was not handed to a sink before.
    past_until: u64,
    /// The past may hold events that follow another plan.
    odd: bool,
    /// Until the event before this number is settled, only one is in flight: the culprit of a
    /// refusal shows itself, and what an old connection still delivers displaces nothing.
    careful_until: u64,
}

/// What a merge with the tail of the stream has shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merge {
    /// Anything but our own events, in order and without a gap, was read.
    pub(crate) odd: bool,
    /// Messages are gone that may have been the events that come: where it begins, or among what
    /// was read.
    pub(crate) cut: bool,
    /// Behind which sequence number it reads, if it still does.
    pub(crate) behind: Option<u64>,
    /// It has come to its end: the last sequence numbers of the stream and of the dead letters.
    pub(crate) ended: Option<(u64, u64)>,
}

impl Memory {
    /// Of a stream that others write, too, or not.
    pub(crate) fn new(lineage: &Lineage, shared: bool) -> Self {
        Self {
            past: Past::NONE,
            found: Found::new(lineage.clone()),
            shared,
            complete: false,
            base: 0,
            letters: 0,
            settled_to: None,
            began_at: 0,
            unheard: Vec::new(),
            vacant: false,
            vacant_until: None,
            settled_at: 0,
            merged_until: 0,
            merged_behind: 0,
            past_until: u64::MAX,
            odd: false,
            careful_until: 0,
        }
    }

    /// A term begins, of which so much is known, where the stream ends at a sequence number.
    pub(crate) fn begin(&mut self, past: Past, last: u64) {
        self.began_at = last;
        self.unheard.clear();
        self.past = past;
        self.settled_to = past.settled_to;
        self.complete = past.settled_to.is_some();
        self.base = past.stored;
        self.settled_at = past.newest;
        self.letters = past.letters;
    }

    /// A new connection finds the stream to end at `last`.
    ///
    /// ```text
    ///  stream  ──1──2──3──4──5──6──►     1: began_at; 2, 3: we heard of
    ///                  heard  last       4, 5, 6: unheard
    /// ```
    pub(crate) fn reconnected(&mut self, ring: &Ring, last: u64) {
        let behind = self.began_at.max(ring.heard());
        self.unheard
            .retain(|range| *range.end() > self.base && *range.start() <= behind);
        if behind < last {
            self.unheard.push(behind + 1..=last);
        }
        if self.unheard.len() > UNHEARD_MAX {
            // What lies there is stored twice rather than lost.
            self.unheard.remove(0);
        }
    }

    /// Whether the merge is over, or was never needed.
    pub(crate) fn complete(&self) -> bool {
        self.complete
    }

    /// Behind which sequence number the stream is read, which ends at `last`: at the beginning of a
    /// term (`first`), or on a new connection.
    pub(crate) fn base(&self, first: bool, (ring, last): (&Ring, u64)) -> u64 {
        // Whatever others have stored there: what was never sent is not there.
        match self.shared && !first {
            true => ring.floor().map_or(last, |floor| floor.min(last)),
            false => self.base,
        }
    }

    /// Behind which sequence number the dead letters are read.
    pub(crate) fn letters(&self) -> u64 {
        self.letters
    }

    /// To be offered what is read, and up to where nothing of it is needed.
    pub(crate) fn reading(&mut self) -> (&mut Found, Option<Position>) {
        (&mut self.found, self.settled_to)
    }

    /// The timeline of an outjet that has followed us, as far as was read.
    pub(crate) fn successor(&self) -> Option<u32> {
        self.found.successor()
    }

    /// All that lies behind the [`base`](Self::base) was read.
    pub(crate) fn read(&mut self, first: bool, ring: &Ring) {
        if self.shared {
            return;
        }
        if self.found.vacant() {
            self.vacant = true;
            let until = match first {
                true => Some(self.past.new_from),
                false => ring.newest(),
            };
            self.vacant_until = self.vacant_until.max(until);
        }
        if self.found.odd() {
            self.odd |= first;
            self.careful_until = self.careful_until.max(ring.end());
        }
    }

    /// A new connection begins the merge anew; `deleted`: some sequence numbers hold no message.
    pub(crate) fn search(&mut self, deleted: bool, ring: &Ring) {
        if !self.shared {
            self.vacant |= deleted;
            // Whether the tail is in order is not known before it was read.
            self.careful_until = self.careful_until.max(ring.end());
        }
    }

    /// The merge has come to the waiting event.
    pub(crate) fn merged(&mut self, merge: Merge, ring: &Ring) {
        if !self.shared {
            self.odd |= merge.odd;
            self.vacant |= merge.cut;
        }
        self.merged_until = ring.next_number() + 1;
        self.merged_behind = merge.behind.unwrap_or(self.merged_behind);
        if let Some((last, letters)) = merge.ended {
            self.complete = true;
            self.base = last;
            self.letters = letters;
            if self.vacant {
                // An event that comes later may have stood there.
                self.base = self.merged_behind;
                let until = Some(self.past.new_from).max(ring.newest());
                self.vacant_until = self.vacant_until.max(until);
            }
        }
    }

    /// Where an event was found.
    pub(crate) fn place_of(&self, event: &Event) -> Option<(Stream, u64)> {
        self.found.place_of(event.position, &event.id)
    }

    /// Event number `number` was handed over.
    pub(crate) fn handed_over(&mut self, number: u64, event: &Event) {
        if self.past.settled_to.is_some() && !event.known && self.past_until == u64::MAX {
            self.past_until = number + UNRECORDED_MAX;
        }
    }

    /// Whether the waiting event may have been handed to a sink before this term.
    pub(crate) fn is_past(&self, ring: &Ring) -> bool {
        let (number, waiting) = waiting(ring);
        let Event { position, .. } = waiting.event;
        *position < self.past.new_from && number < self.past_until
    }

    /// Whether the waiting event, which was not found, may have been stored all the same.
    pub(crate) fn is_uncertain(&self, ring: &Ring) -> bool {
        let (_, waiting) = waiting(ring);
        self.vacant && (self.is_past(ring) || !waiting.places.is_empty())
    }

    /// Whether an old connection may follow another plan for the waiting event.
    pub(crate) fn is_odd(&self, ring: &Ring) -> bool {
        self.odd && self.is_past(ring)
    }

    /// Whether only one event may be in flight.
    pub(crate) fn is_careful(&self, ring: &Ring) -> bool {
        ring.head() < self.careful_until || self.is_odd(ring)
    }

    /// The waiting event goes out.
    pub(crate) fn send(&mut self, ring: &Ring) {
        if self.is_odd(ring) {
            self.careful_until = ring.next_number() + 1;
        }
    }

    /// One of the events in flight was not stored as expected.
    pub(crate) fn refused(&mut self, ring: &Ring) {
        self.careful_until = ring.next_number();
    }

    /// Whether the server's `duplicate` can mean an event that is not found: it names a sequence
    /// number where that may have been stored, by a leader before us or at one of its own `places`,
    /// behind all that have settled others. If it holds no message, the event was stored there.
    /// Where we heard that an event of ours is stored, or where one before it was, it was another
    /// one, whatever its id.
    pub(crate) fn proves(&self, sequence: u64, places: &[u64]) -> bool {
        let unheard = self.unheard.iter().any(|range| range.contains(&sequence));
        let possible = sequence <= self.began_at || unheard || places.contains(&sequence);
        possible && sequence > self.base.max(self.settled_at)
    }

    /// The waiting event was stored there.
    pub(crate) fn settled_at(&mut self, sequence: u64) {
        self.settled_at = self.settled_at.max(sequence);
    }

    /// Takes note of what was settled, and of how far nothing has to be looked for any more.
    pub(crate) fn settle(&mut self, settled: &mut Settled, ring: &Ring) {
        let Some((to, _)) = settled.to else {
            return;
        };
        self.settled_to = Some(to);
        self.found.forget(to);
        self.vacant_until = self.vacant_until.filter(|until| to < *until);
        // Out of order only after a refusal, on a new connection, and where a merge has found it.
        let odd_until = self.careful_until.max(self.merged_until);
        let in_order = ring.head() >= odd_until && !self.shared;
        let newest = settled.stored_at.as_ref().map_or(0, |place| place.sequence);
        let base = self.base.max(newest);
        let alone = in_order || ring.lowest_beyond().is_none_or(|lowest| lowest > base);
        if !self.left(Stream::Main) && self.vacant_until.is_none() && alone {
            self.base = base;
            settled.base = base;
        }
        settled.letters = self.letters.max(settled.letters);
        // Something of ours beyond it may be stored there: known, or while others wait for it.
        let lowest = ring.lowest_letter();
        if self.left(Stream::Letters) || lowest.is_some_and(|lowest| lowest <= settled.letters) {
            settled.letters = 0;
        }
        self.letters = self.letters.max(settled.letters);
    }

    /// Whether anything beyond what is settled was found in a stream, or may still be.
    fn left(&self, stream: Stream) -> bool {
        !self.complete || self.found.left_in(stream)
    }
}

/// The waiting event, with its number.
fn waiting(ring: &Ring) -> (u64, Waiting<'_>) {
    let waiting = ring.waiting().expect("an event waits");
    (ring.next_number(), waiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::lineage::Source;

    /// An id may come again: that its first message is gone must hide no other event.
    #[test]
    fn duplicate_of_what_was_settled_proves_nothing() {
        let source = Source::parse("7/1/outjet").expect("a source");
        let mut memory = Memory::new(&Lineage::new(source, Vec::new()), false);
        let past = Past {
            stored: 3,
            newest: 7,
            ..Past::NONE
        };
        memory.begin(past, 10);
        let proving = |memory: &Memory| {
            let sequences = 1..=12;
            sequences
                .filter(|at| memory.proves(*at, &[]))
                .collect::<Vec<u64>>()
        };
        assert_eq!(proving(&memory), [8, 9, 10]);
        memory.settled_at(9);
        assert_eq!(proving(&memory), [10]);
        assert!(
            memory.proves(12, &[12]),
            "its own place, nobody knows what became of it"
        );
    }
}
