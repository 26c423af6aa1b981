//! The ring: every event from the oldest that is not settled. It outlives connections: what was
//! sent on a dead one is waiting again. Pure.
//!
//! What is in flight is a chain: every event expects the stream sequence that its predecessor made,
//! and is settled once its own reply carries the sequence that was predicted for it. Invariant:
//! sequences of what is in flight are consecutive, in ring order, and end at the last place taken.
//! In a stream with other writers they only never decrease: then a sequence is the lowest that an
//! event can have ([`Places`]).
//!
//! Events that are to appear together are staged one by one and then sent as a batch: the server
//! stores all of them or none, and answers for all with one reply, to the last.

use std::collections::VecDeque;

use super::places::Places;
use crate::event::lineage::Place;
use crate::event::{Event, Position};
use crate::guard;
use crate::sink::Settled;

/// The events that are not settled, and what they may expect of the stream.
#[derive(Debug)]
pub(crate) struct Ring {
    slots: VecDeque<Slot>,
    /// The number of the event at the head of the ring; numbers count all events of a term.
    head: u64,
    /// How many slots at the front are in flight or done; the next one is waiting.
    next: usize,
    /// How many of those are staged.
    staged: usize,
    /// How many are stored among the dead letters.
    buried: usize,
    in_flight: usize,
    in_flight_bytes: usize,
    places: Places,
    /// The highest sequence number that a reply has named.
    heard: u64,
}

#[derive(Debug)]
struct Slot {
    event: Event,
    state: State,
    /// Sequence numbers that it may have from earlier connections, whose answer was never heard; in
    /// a stream with other writers the lowest of them.
    places: Vec<u64>,
    /// The server has called it a duplicate of this sequence number, or of 0, which is none.
    duplicate_of: Option<u64>,
    /// It goes out although it may be stored already.
    uncertain: bool,
}

/// How an event is passed that is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// The record says that it is settled.
    Recorded,
    /// It was found stored.
    Known(Known),
    /// Stored among the dead letters, at this sequence number.
    DeadLettered(u64),
    /// Its schedule is stored, at this sequence number.
    Delayed(u64),
}

/// Where an event was found: the stream, and the sequence number; `None`: that is not known.
pub(crate) type Known = Option<(guard::Stream, u64)>;

/// The next event to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting<'a> {
    pub(crate) event: &'a Event,
    /// Where it may stand already.
    pub(crate) places: &'a [u64],
    /// The server has called it a duplicate of this sequence number, or of 0, which is none.
    pub(crate) duplicate_of: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    /// It goes out with others.
    Staged,
    InFlight {
        /// Its place, or the lowest that it can have.
        sequence: u64,
        /// For how many events, up to this one, its reply speaks: 1, or all of a batch at its last
        /// event; 0 at the others.
        speaks_for: u64,
    },
    Refused,
    Stored {
        sequence: u64,
    },
    /// It is stored already.
    Known(Known),
    /// The record says that it is settled.
    Recorded,
    DeadLettered {
        sequence: u64,
    },
    Delayed {
        sequence: u64,
    },
}

impl State {
    /// Where the event is stored, if it is and that is known. Not of what is delayed: that has a
    /// stream without order.
    fn place(self) -> Known {
        match self {
            Self::Known(place) => place,
            Self::Stored { sequence } => Some((guard::Stream::Main, sequence)),
            Self::DeadLettered { sequence } => Some((guard::Stream::Letters, sequence)),
            Self::Recorded
            | Self::Delayed { .. }
            | Self::Waiting
            | Self::Staged
            | Self::InFlight { .. }
            | Self::Refused => None,
        }
    }

    fn is_settled(self) -> bool {
        match self {
            Self::Stored { .. }
            | Self::Known(_)
            | Self::Recorded
            | Self::DeadLettered { .. }
            | Self::Delayed { .. } => true,
            Self::Waiting | Self::Staged | Self::InFlight { .. } | Self::Refused => false,
        }
    }
}

/// A reply that does not fit: whose place is the outcome unknown?
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mismatch {
    #[error("a reply for event number {0}, which is not in flight")]
    NotInFlight(u64),
    #[error("the event was stored at sequence {found} instead of {expected}")]
    Sequence { expected: u64, found: u64 },
    #[error("the server has stored {found} events together instead of {expected}")]
    Together { expected: u64, found: u64 },
}

impl Ring {
    /// `shared`: others may write into the stream, too.
    pub(crate) fn new(shared: bool) -> Self {
        Self {
            slots: VecDeque::new(),
            head: 0,
            next: 0,
            staged: 0,
            buried: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            places: Places::new(shared),
            heard: 0,
        }
    }

    /// Takes the next event in commit order.
    pub(crate) fn push(&mut self, event: Event) {
        assert!(
            self.newest().is_none_or(|newest| newest < event.position),
            "events come in order"
        );
        self.slots.push_back(Slot {
            event,
            state: State::Waiting,
            places: Vec::new(),
            duplicate_of: None,
            uncertain: false,
        });
    }

    /// Starts on a new connection, at the last sequence of the stream: what was in flight waits.
    pub(crate) fn restart(&mut self, last_sequence: u64) {
        for slot in &mut self.slots {
            match slot.state {
                State::Waiting => continue,
                settled if settled.is_settled() => continue,
                State::Refused | State::Staged => {}
                State::InFlight { sequence, .. } => self.places.keep(&mut slot.places, sequence),
                _ => unreachable!("it is settled"),
            }
            slot.state = State::Waiting;
        }
        self.staged = 0;
        self.in_flight = 0;
        self.in_flight_bytes = 0;
        self.places.begin(last_sequence);
        self.next = 0;
        self.skip_settled();
    }

    /// The next event to be sent.
    pub(crate) fn waiting(&self) -> Option<Waiting<'_>> {
        self.slots.get(self.next).map(|slot| Waiting {
            event: &slot.event,
            places: &slot.places,
            duplicate_of: slot.duplicate_of,
        })
    }

    /// The newest event that was taken.
    pub(crate) fn newest(&self) -> Option<Position> {
        self.slots.back().map(|slot| slot.event.position)
    }

    /// What may be stored and is not settled stands behind this sequence number; `None` if there is
    /// no such event.
    pub(crate) fn floor(&self) -> Option<u64> {
        let unsettled = self.slots.iter().filter(|slot| !slot.state.is_settled());
        let lowest = unsettled.filter_map(|slot| match slot.state {
            State::InFlight { sequence, .. } => Some(*slot.places.first().unwrap_or(&sequence)),
            _ => slot.places.first().copied(),
        });
        lowest.min().map(|place| place - 1)
    }

    /// The waiting event goes out: its number, and the sequence that it expects to be the last.
    pub(crate) fn send(&mut self) -> (u64, u64) {
        let expected = self.places.take(1);
        let slot = &mut self.slots[self.next];
        assert_eq!(slot.state, State::Waiting, "only what waits is sent");
        slot.state = State::InFlight {
            sequence: expected + 1,
            speaks_for: 1,
        };
        let number = self.head + self.next as u64;
        self.in_flight += 1;
        self.in_flight_bytes += slot.event.size();
        self.next += 1;
        self.skip_settled();
        (number, expected)
    }

    /// The waiting event is to go out with others.
    pub(crate) fn stage(&mut self) {
        self.staged += 1;
        self.pass(State::Staged);
    }

    /// How many events are staged.
    pub(crate) fn staged(&self) -> usize {
        self.staged
    }

    /// Whether the last of those that go together has been passed, from this event on: also one
    /// that was settled on an earlier connection, and never waits again.
    pub(crate) fn has_passed_last(&self, number: u64) -> bool {
        let from = usize::try_from(number - self.head).expect("it is in the ring");
        let mut passed = self.slots.range(from..self.next);
        passed.any(|slot| slot.event.followers == 0)
    }

    /// The waiting event may be stored already: it is sent all the same.
    pub(crate) fn doubt(&mut self) {
        self.slots[self.next].uncertain = true;
    }

    /// The highest sequence number at which an event is known to be stored from this ring.
    pub(crate) fn heard(&self) -> u64 {
        self.heard
    }

    /// Whether this event is in the ring.
    pub(crate) fn holds(&self, position: Position, id: &str) -> bool {
        let found = self
            .slots
            .binary_search_by_key(&position, |slot| slot.event.position);
        found.is_ok_and(|at| self.slots[at].event.id == id)
    }

    /// The number of the oldest event that is not settled, or of the next to be taken.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// The number of the next event to be taken.
    pub(crate) fn end(&self) -> u64 {
        self.head + self.slots.len() as u64
    }

    /// What is staged goes out as a batch: the number of its last event, and the sequence that the
    /// first expects to be the last.
    pub(crate) fn send_staged(&mut self) -> (u64, u64) {
        assert!(self.staged > 0, "a batch has events");
        let (events, mut left) = (self.staged as u64, self.staged as u64);
        let expected = self.places.take(events);
        let mut number = None;
        let sent = self.slots.iter_mut().enumerate().take(self.next).rev();
        for (at, slot) in sent.filter(|(_, slot)| slot.state == State::Staged) {
            let last = number.is_none();
            number = number.or(Some(self.head + at as u64));
            slot.state = State::InFlight {
                sequence: expected + left,
                speaks_for: if last { events } else { 0 },
            };
            self.in_flight_bytes += slot.event.size();
            left -= 1;
            if left == 0 {
                break;
            }
        }
        self.in_flight += std::mem::take(&mut self.staged);
        (
            number.expect("a staged event stands before the next"),
            expected,
        )
    }

    /// The waiting event needs nothing more.
    pub(crate) fn settle(&mut self, how: Passed) {
        let state = match how {
            Passed::Recorded => State::Recorded,
            Passed::Known(place) => State::Known(place),
            Passed::DeadLettered(sequence) => State::DeadLettered { sequence },
            Passed::Delayed(sequence) => State::Delayed { sequence },
        };
        self.buried += usize::from(is_letter(state.place()));
        self.pass(state);
    }

    /// A reply says that event `number` was stored at `sequence`, the last of so many `together`.
    pub(crate) fn acknowledge(
        &mut self,
        number: u64,
        (sequence, together): (u64, u64),
    ) -> Result<(), Mismatch> {
        let in_flight = self.in_flight_at(number);
        let (at, expected, speaks_for) = in_flight.ok_or(Mismatch::NotInFlight(number))?;
        if !self.places.fits(expected, sequence) {
            return Err(Mismatch::Sequence {
                expected,
                found: sequence,
            });
        }
        if together != speaks_for {
            return Err(Mismatch::Together {
                expected: speaks_for,
                found: together,
            });
        }
        self.places.stored(sequence);
        self.heard = self.heard.max(sequence);
        let behind = sequence - expected;
        self.land(at, |slot, place| {
            slot.state = State::Stored {
                sequence: place + behind,
            };
        });
        Ok(())
    }

    /// A reply says that event `number` was not stored this time, nor any of its batch. No reply
    /// means that it may be. `false`: its own reply has come before.
    pub(crate) fn refuse(&mut self, number: u64) -> bool {
        let Some((at, ..)) = self.in_flight_at(number) else {
            return false;
        };
        self.land(at, |slot, _| slot.state = State::Refused);
        true
    }

    /// The same, because its id stands at `sequence` already, as the server says; or, of a batch,
    /// some id somewhere.
    pub(crate) fn refuse_duplicate(&mut self, number: u64, sequence: u64) {
        if let Some((at, ..)) = self.in_flight_at(number) {
            self.land(at, |slot, _| {
                slot.duplicate_of = Some(sequence);
                slot.state = State::Refused;
            });
        }
    }

    /// The lowest sequence number at which an event in the ring is stored, or may be.
    pub(crate) fn lowest_beyond(&self) -> Option<u64> {
        let places = self.slots.iter().filter_map(|slot| match slot.state {
            State::Stored { sequence } | State::Known(Some((guard::Stream::Main, sequence))) => {
                Some(sequence)
            }
            State::InFlight { sequence, .. } => Some(*slot.places.first().unwrap_or(&sequence)),
            _ => slot.places.first().copied(),
        });
        places.min()
    }

    /// The lowest sequence number that an event in the ring has among the dead letters.
    pub(crate) fn lowest_letter(&self) -> Option<u64> {
        if self.buried == 0 {
            return None;
        }
        let places = self.slots.iter().map(|slot| slot.state.place());
        let letters = places.filter(|place| is_letter(*place)).flatten();
        letters.map(|(_, sequence)| sequence).min()
    }

    /// Removes what is settled from the head of the ring.
    pub(crate) fn take_settled(&mut self) -> Settled {
        let mut settled = Settled::default();
        // The newest message, and its event's id, unless that is the last one.
        let mut newest: Option<(u64, Position, Option<String>)> = None;
        let mut last: Option<(Position, String)> = None;
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.state.is_settled()) {
            let place = slot.state.place();
            self.buried -= usize::from(is_letter(place));
            match place {
                Some((guard::Stream::Main, sequence))
                    if newest
                        .as_ref()
                        .is_none_or(|(highest, ..)| *highest < sequence) =>
                {
                    newest = Some((sequence, slot.event.position, None));
                    last = None;
                }
                Some((guard::Stream::Letters, sequence)) => {
                    settled.letters = settled.letters.max(sequence);
                }
                Some((guard::Stream::Main, _)) | None => {}
            }
            count(&mut settled, &slot);
            self.head += 1;
            self.next -= 1;
            let passed = last.replace((slot.event.position, slot.event.id));
            if let (Some((_, _, id @ None)), Some((_, passed))) = (&mut newest, passed) {
                *id = Some(passed);
            }
        }
        settled.stored_at = newest.map(|(sequence, position, id)| Place {
            sequence,
            position,
            id: id.unwrap_or_else(|| last.clone().map(|(_, id)| id).unwrap_or_default()),
        });
        settled.to = last;
        settled
    }

    /// What the next event sent expects.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.places.last_sequence()
    }

    /// Events sent and not acknowledged.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Their size.
    pub(crate) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// The number that the next event sent would get.
    pub(crate) fn next_number(&self) -> u64 {
        self.head + self.next as u64
    }

    /// Where an event in flight stands in the ring, its sequence, and how many it speaks for.
    fn in_flight_at(&self, number: u64) -> Option<(usize, u64, u64)> {
        let at = usize::try_from(number.checked_sub(self.head)?).ok()?;
        match self.slots.get(at)?.state {
            State::InFlight {
                sequence,
                speaks_for,
            } => Some((at, sequence, speaks_for)),
            _ => None,
        }
    }

    /// Ends the flight of all that the event at this place speaks for.
    fn land(&mut self, at: usize, end: impl Fn(&mut Slot, u64)) {
        let State::InFlight { speaks_for, .. } = self.slots[at].state else {
            unreachable!("it was asked whether it is in flight");
        };
        let mut left = speaks_for;
        for slot in self.slots.range_mut(..=at).rev() {
            if left == 0 {
                break;
            }
            // Between the events of a batch may stand some that were known or dead-lettered.
            if let State::InFlight { sequence, .. } = slot.state {
                end(slot, sequence);
                self.in_flight -= 1;
                self.in_flight_bytes -= slot.event.size();
                left -= 1;
            }
        }
    }

    fn pass(&mut self, state: State) {
        self.slots[self.next].state = state;
        self.next += 1;
        self.skip_settled();
    }

    fn skip_settled(&mut self) {
        let settled = |slot: &Slot| slot.state.is_settled();
        while self.slots.get(self.next).is_some_and(settled) {
            self.next += 1;
        }
    }
}

fn is_letter(place: Known) -> bool {
    place.is_some_and(|(stream, _)| stream == guard::Stream::Letters)
}

fn count(settled: &mut Settled, slot: &Slot) {
    match slot.state {
        State::Stored { .. } => {
            settled.stored += 1;
            settled.uncertain += usize::from(slot.uncertain);
        }
        State::Known(_) => settled.known += 1,
        State::Recorded => settled.recorded += 1,
        State::DeadLettered { .. } => settled.dead_lettered += 1,
        State::Delayed { sequence } => {
            settled.delayed_events += 1;
            settled.delayed = settled.delayed.max(sequence);
        }
        State::Waiting | State::Staged | State::InFlight { .. } | State::Refused => {
            unreachable!("it is settled")
        }
    }
}

#[cfg(test)]
mod tests;
