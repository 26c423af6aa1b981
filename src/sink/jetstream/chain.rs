//! The chain: every event expects the stream sequence that its predecessor made, and is settled
//! once its own reply carries the sequence that was predicted for it. Pure.
//!
//! The ring holds every event from the oldest that is not settled. It outlives connections: what
//! was sent on a dead one is waiting again. Invariant: sequences of what is in flight are
//! consecutive, in ring order, and end at the last place taken. In a stream with other writers they
//! only never decrease: then a sequence is the lowest that an event can have ([`Places`]).
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
pub(super) struct Chain {
    ring: VecDeque<Slot>,
    /// The number of the event at the head of the ring; numbers count all events of a term.
    head: u64,
    /// How many slots at the front are in flight or done; the next one is waiting.
    next: usize,
    /// How many of those are staged.
    staged: usize,
    in_flight: usize,
    in_flight_bytes: usize,
    places: Places,
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
pub(super) enum Passed {
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
pub(super) type Known = Option<(guard::Stream, u64)>;

/// The next event to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting<'a> {
    pub(super) event: &'a Event,
    /// Where it may stand already.
    pub(super) places: &'a [u64],
    /// The server has called it a duplicate of this sequence number, or of 0, which is none.
    pub(super) duplicate_of: Option<u64>,
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
pub(super) enum Mismatch {
    #[error("a reply for event number {0}, which is not in flight")]
    NotInFlight(u64),
    #[error("the event was stored at sequence {found} instead of {expected}")]
    Sequence { expected: u64, found: u64 },
    #[error("the server has stored {found} events together instead of {expected}")]
    Together { expected: u64, found: u64 },
}

impl Chain {
    /// `shared`: others may write into the stream, too.
    pub(super) fn new(shared: bool) -> Self {
        Self {
            ring: VecDeque::new(),
            head: 0,
            next: 0,
            staged: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            places: Places::new(shared),
        }
    }

    /// Takes the next event in commit order.
    pub(super) fn push(&mut self, event: Event) {
        assert!(
            self.newest().is_none_or(|newest| newest < event.position),
            "events come in order"
        );
        self.ring.push_back(Slot {
            event,
            state: State::Waiting,
            places: Vec::new(),
            duplicate_of: None,
            uncertain: false,
        });
    }

    /// Starts on a new connection, at the last sequence of the stream: what was in flight waits.
    pub(super) fn restart(&mut self, last_sequence: u64) {
        for slot in &mut self.ring {
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
    pub(super) fn waiting(&self) -> Option<Waiting<'_>> {
        self.ring.get(self.next).map(|slot| Waiting {
            event: &slot.event,
            places: &slot.places,
            duplicate_of: slot.duplicate_of,
        })
    }

    /// The newest event that was taken.
    pub(super) fn newest(&self) -> Option<Position> {
        self.ring.back().map(|slot| slot.event.position)
    }

    /// What may be stored and is not settled stands behind this sequence number; `None` if there is
    /// no such event.
    pub(super) fn floor(&self) -> Option<u64> {
        let unsettled = self.ring.iter().filter(|slot| !slot.state.is_settled());
        let lowest = unsettled.filter_map(|slot| match slot.state {
            State::InFlight { sequence, .. } => Some(*slot.places.first().unwrap_or(&sequence)),
            _ => slot.places.first().copied(),
        });
        lowest.min().map(|place| place - 1)
    }

    /// The waiting event goes out: its number, and the sequence that it expects to be the last.
    pub(super) fn send(&mut self) -> (u64, u64) {
        let expected = self.places.take(1);
        let slot = &mut self.ring[self.next];
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
    pub(super) fn stage(&mut self) {
        self.staged += 1;
        self.pass(State::Staged);
    }

    /// How many events are staged.
    pub(super) fn staged(&self) -> usize {
        self.staged
    }

    /// The waiting event may be stored already: it is sent all the same.
    pub(super) fn doubt(&mut self) {
        self.ring[self.next].uncertain = true;
    }

    /// The number of the oldest event that is not settled, or of the next to be taken.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// The number of the next event to be taken.
    pub(super) fn end(&self) -> u64 {
        self.head + self.ring.len() as u64
    }

    /// What is staged goes out as a batch: the number of its last event, and the sequence that the
    /// first expects to be the last.
    pub(super) fn send_staged(&mut self) -> (u64, u64) {
        assert!(self.staged > 0, "a batch has events");
        let (events, mut left) = (self.staged as u64, self.staged as u64);
        let expected = self.places.take(events);
        let mut number = None;
        let sent = self.ring.iter_mut().enumerate().take(self.next).rev();
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
    pub(super) fn settle(&mut self, how: Passed) {
        self.pass(match how {
            Passed::Recorded => State::Recorded,
            Passed::Known(place) => State::Known(place),
            Passed::DeadLettered(sequence) => State::DeadLettered { sequence },
            Passed::Delayed(sequence) => State::Delayed { sequence },
        });
    }

    /// A reply says that event `number` was stored at `sequence`, the last of so many `together`.
    pub(super) fn acknowledge(
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
    pub(super) fn refuse(&mut self, number: u64) -> bool {
        let Some((at, ..)) = self.in_flight_at(number) else {
            return false;
        };
        self.land(at, |slot, _| slot.state = State::Refused);
        true
    }

    /// The same, because its id stands at `sequence` already, as the server says; or, of a batch,
    /// some id somewhere.
    pub(super) fn refuse_duplicate(&mut self, number: u64, sequence: u64) {
        if let Some((at, ..)) = self.in_flight_at(number) {
            self.land(at, |slot, _| {
                slot.duplicate_of = Some(sequence);
                slot.state = State::Refused;
            });
        }
    }

    /// The lowest sequence number at which an event in the ring is stored, or may be.
    pub(super) fn lowest_beyond(&self) -> Option<u64> {
        let places = self.ring.iter().filter_map(|slot| match slot.state {
            State::Stored { sequence } | State::Known(Some((guard::Stream::Main, sequence))) => {
                Some(sequence)
            }
            State::InFlight { sequence, .. } => Some(*slot.places.first().unwrap_or(&sequence)),
            _ => slot.places.first().copied(),
        });
        places.min()
    }

    /// Removes what is settled from the head of the ring.
    pub(super) fn take_settled(&mut self) -> Settled {
        let mut settled = Settled::default();
        // The newest message, and its event's id, unless that is the last one.
        let mut newest: Option<(u64, Position, Option<String>)> = None;
        let mut last: Option<(Position, String)> = None;
        while let Some(slot) = self.ring.pop_front_if(|slot| slot.state.is_settled()) {
            let place = match slot.state {
                State::Known(place) => place,
                State::Stored { sequence } => Some((guard::Stream::Main, sequence)),
                State::DeadLettered { sequence } => Some((guard::Stream::Letters, sequence)),
                State::Delayed { sequence } => Some((guard::Stream::Delayed, sequence)),
                _ => None,
            };
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
                Some((guard::Stream::Delayed, sequence)) => {
                    settled.delayed = settled.delayed.max(sequence);
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
    pub(super) fn last_sequence(&self) -> u64 {
        self.places.last_sequence()
    }

    /// Events sent and not acknowledged.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Their size.
    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// The number that the next event sent would get.
    pub(super) fn next_number(&self) -> u64 {
        self.head + self.next as u64
    }

    /// Where an event in flight stands in the ring, its sequence, and how many it speaks for.
    fn in_flight_at(&self, number: u64) -> Option<(usize, u64, u64)> {
        let at = usize::try_from(number.checked_sub(self.head)?).ok()?;
        match self.ring.get(at)?.state {
            State::InFlight {
                sequence,
                speaks_for,
            } => Some((at, sequence, speaks_for)),
            _ => None,
        }
    }

    /// Ends the flight of all that the event at this place speaks for.
    fn land(&mut self, at: usize, end: impl Fn(&mut Slot, u64)) {
        let State::InFlight { speaks_for, .. } = self.ring[at].state else {
            unreachable!("it was asked whether it is in flight");
        };
        let mut left = speaks_for;
        for slot in self.ring.range_mut(..=at).rev() {
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
        self.ring[self.next].state = state;
        self.next += 1;
        self.skip_settled();
    }

    fn skip_settled(&mut self) {
        let settled = |slot: &Slot| slot.state.is_settled();
        while self.ring.get(self.next).is_some_and(settled) {
            self.next += 1;
        }
    }
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
        State::Delayed { .. } => settled.delayed_events += 1,
        State::Waiting | State::Staged | State::InFlight { .. } | State::Refused => {
            unreachable!("it is settled")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Headers;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn event(index: u32) -> Event {
        Event {
            position: Position { commit: 1, index },
            id: index.to_string(),
            subject: "s".to_owned(),
            headers: Headers::default(),
            payload: Bytes::new(),
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

    fn chain(events: u32, last_sequence: u64) -> Chain {
        let mut chain = Chain::new(false);
        chain.restart(last_sequence);
        (0..events).for_each(|index| chain.push(event(index)));
        chain
    }

    fn settled_to(index: u32) -> Option<(Position, String)> {
        Some((event(index).position, event(index).id))
    }

    fn place(sequence: u64, index: u32) -> Option<Place> {
        let (position, id) = settled_to(index)?;
        Some(Place {
            sequence,
            position,
            id,
        })
    }

    /// Behind a stranger the first event is stored after the others.
    #[test]
    fn the_newest_place_is_that_of_whichever_event_has_it() {
        let mut chain = chain(3, 0);
        for _ in 0..3 {
            chain.send();
        }
        chain.acknowledge(1, (2, 1)).unwrap();
        chain.refuse(0);
        assert_eq!(chain.lowest_beyond(), Some(2));
        chain.restart(3);
        assert_eq!(
            chain.lowest_beyond(),
            Some(2),
            "the outcome of the last is unknown"
        );
        assert_eq!(chain.send(), (0, 3));
        chain.acknowledge(0, (4, 1)).unwrap();
        let settled = chain.take_settled();
        assert_eq!(
            (settled.to, settled.stored_at),
            (settled_to(1), place(4, 0))
        );
        assert_eq!(chain.lowest_beyond(), Some(3));
    }

    #[test]
    fn each_event_expects_what_its_predecessor_made() {
        let mut chain = chain(3, 7);
        assert_eq!(
            [chain.send(), chain.send(), chain.send()],
            [(0, 7), (1, 8), (2, 9)]
        );
        assert!(chain.waiting().is_none());
    }

    #[test]
    fn replies_that_overtake_each_other_settle_in_order() {
        let mut chain = chain(3, 0);
        for _ in 0..3 {
            chain.send();
        }
        chain.acknowledge(2, (3, 1)).unwrap();
        assert_eq!(chain.take_settled(), Settled::default());
        chain.acknowledge(0, (1, 1)).unwrap();
        assert_eq!(
            chain.take_settled(),
            Settled {
                stored: 1,
                to: settled_to(0),
                stored_at: place(1, 0),
                ..Settled::default()
            }
        );
        chain.acknowledge(1, (2, 1)).unwrap();
        assert_eq!(
            chain.take_settled(),
            Settled {
                stored: 2,
                to: settled_to(2),
                stored_at: place(3, 2),
                ..Settled::default()
            }
        );
    }

    #[test]
    fn a_count_is_not_an_identity() {
        // attacks.md 1: a stranger takes sequence 1; our second event then fits at 2.
        let mut chain = chain(2, 0);
        chain.send();
        chain.send();
        chain.acknowledge(1, (2, 1)).unwrap();
        assert_eq!(chain.take_settled(), Settled::default());
        chain.restart(2);
        assert_eq!(chain.send(), (0, 2));
        assert!(chain.waiting().is_none());
    }

    #[test]
    fn a_reply_with_another_sequence_or_for_nobody_is_a_mismatch() {
        let mut chain = chain(2, 0);
        chain.send();
        assert_eq!(
            chain.acknowledge(0, (2, 1)),
            Err(Mismatch::Sequence {
                expected: 1,
                found: 2
            })
        );
        assert_eq!(chain.acknowledge(1, (2, 1)), Err(Mismatch::NotInFlight(1)));
        chain.acknowledge(0, (1, 1)).unwrap();
        assert_eq!(chain.acknowledge(0, (1, 1)), Err(Mismatch::NotInFlight(0)));
        chain.take_settled();
        assert_eq!(chain.acknowledge(0, (1, 1)), Err(Mismatch::NotInFlight(0)));
    }

    #[test]
    fn what_is_stored_is_not_refused_any_more() {
        let mut chain = chain(2, 0);
        chain.send();
        chain.send();
        chain.acknowledge(0, (1, 1)).unwrap();
        assert!(!chain.refuse(0));
        assert!(chain.refuse(1));
        assert_eq!(chain.take_settled().stored, 1);
    }

    #[test]
    fn a_batch_is_settled_by_the_reply_to_its_last_event_and_by_no_other() {
        let mut chain = chain(6, 7);
        chain.send();
        chain.stage();
        chain.settle(Passed::Known(None));
        chain.stage();
        chain.settle(Passed::DeadLettered(4));
        assert_eq!((chain.staged(), chain.in_flight()), (2, 1));
        assert_eq!(chain.send_staged(), (3, 8));
        assert_eq!(chain.send(), (5, 10));
        assert_eq!((chain.staged(), chain.in_flight()), (0, 4));
        chain.acknowledge(0, (8, 1)).unwrap();
        let alone = chain.acknowledge(3, (10, 1));
        let (expected, found) = (2, 1);
        assert_eq!(alone, Err(Mismatch::Together { expected, found }));
        assert_eq!(chain.take_settled().stored, 1);
        chain.acknowledge(3, (10, 2)).unwrap();
        let settled = Settled {
            stored: 2,
            known: 1,
            dead_lettered: 1,
            letters: 4,
            to: settled_to(4),
            stored_at: place(10, 3),
            ..Settled::default()
        };
        assert_eq!(chain.take_settled(), settled);
        assert_eq!(chain.in_flight(), 1);
    }

    #[test]
    fn a_batch_that_was_refused_or_staged_waits_as_a_whole() {
        let mut chain = chain(5, 0);
        for _ in 0..3 {
            chain.stage();
        }
        chain.send_staged();
        chain.refuse_duplicate(2, 0);
        assert_eq!(chain.in_flight(), 0);
        chain.stage();
        chain.restart(0);
        let waits = chain.waiting().unwrap();
        assert_eq!(
            (waits.event.position.index, waits.duplicate_of),
            (0, Some(0))
        );
        assert!(waits.places.is_empty());
        for _ in 0..5 {
            chain.stage();
        }
        assert_eq!(chain.send_staged(), (4, 0));
        chain.restart(9);
        assert_eq!(chain.waiting().unwrap().places, [1]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push,
        Send,
        Skip,
        Ack(prop::sample::Index),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Push),
            3 => Just(Step::Send),
            1 => Just(Step::Skip),
            3 => any::<prop::sample::Index>().prop_map(Step::Ack),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Against a plain list: 'w'aiting, 'f'light with sequence, or 's'tored, per event.
        #[test]
        fn settled_is_the_stored_prefix(steps in prop::collection::vec(step(), 1..120)) {
            let mut chain = chain(0, 0);
            let mut model: Vec<(char, u64)> = Vec::new();
            let (mut settled, mut last) = (0, 0);
            for step in steps {
                let waiting = model.iter().position(|(state, _)| *state == 'w');
                match (step, waiting) {
                    (Step::Push, _) => {
                        chain.push(event(model.len() as u32));
                        model.push(('w', 0));
                    }
                    (Step::Send, Some(at)) => {
                        prop_assert_eq!(chain.send(), (at as u64, last));
                        last += 1;
                        model[at] = ('f', last);
                    }
                    (Step::Skip, Some(at)) => {
                        chain.settle(Passed::Known(None));
                        model[at].0 = 's';
                    }
                    (Step::Ack(pick), _) => {
                        let all = 0..model.len();
                        let flying: Vec<_> = all.filter(|at| model[*at].0 == 'f').collect();
                        if !flying.is_empty() {
                            let at = *pick.get(&flying);
                            chain.acknowledge(at as u64, (model[at].1, 1)).unwrap();
                            model[at].0 = 's';
                        }
                    }
                    (Step::Restart, _) => {
                        last += 100;
                        chain.restart(last);
                        model.iter_mut().filter(|slot| slot.0 == 'f').for_each(|slot| slot.0 = 'w');
                    }
                    (Step::Send | Step::Skip, None) => prop_assert!(chain.waiting().is_none()),
                }
                let left = chain.take_settled();
                settled += left.stored + left.known;
                prop_assert_eq!(settled, model.iter().take_while(|slot| slot.0 == 's').count());
                let flying = model.iter().filter(|slot| slot.0 == 'f').count();
                prop_assert_eq!(chain.in_flight(), flying);
            }
        }
    }
}
