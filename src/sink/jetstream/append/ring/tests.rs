//! The ring, alone and against a plain list.

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

fn ring(events: u32, last_sequence: u64) -> Ring {
    let mut ring = Ring::new(false);
    ring.restart(last_sequence);
    (0..events).for_each(|index| ring.push(event(index)));
    ring
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
    let mut ring = ring(3, 0);
    for _ in 0..3 {
        ring.send();
    }
    ring.acknowledge(1, (2, 1)).unwrap();
    ring.refuse(0);
    assert_eq!(ring.lowest_beyond(), Some(2));
    ring.restart(3);
    assert_eq!(
        ring.lowest_beyond(),
        Some(2),
        "the outcome of the last is unknown"
    );
    assert_eq!(ring.send(), (0, 3));
    ring.acknowledge(0, (4, 1)).unwrap();
    let settled = ring.take_settled();
    assert_eq!(
        (settled.to, settled.stored_at),
        (settled_to(1), place(4, 0))
    );
    assert_eq!(ring.lowest_beyond(), Some(3));
}

#[test]
fn each_event_expects_what_its_predecessor_made() {
    let mut ring = ring(3, 7);
    assert_eq!(
        [ring.send(), ring.send(), ring.send()],
        [(0, 7), (1, 8), (2, 9)]
    );
    assert!(ring.waiting().is_none());
}

#[test]
fn replies_that_overtake_each_other_settle_in_order() {
    let mut ring = ring(3, 0);
    for _ in 0..3 {
        ring.send();
    }
    ring.acknowledge(2, (3, 1)).unwrap();
    assert_eq!(ring.take_settled(), Settled::default());
    ring.acknowledge(0, (1, 1)).unwrap();
    assert_eq!(
        ring.take_settled(),
        Settled {
            stored: 1,
            to: settled_to(0),
            stored_at: place(1, 0),
            ..Settled::default()
        }
    );
    ring.acknowledge(1, (2, 1)).unwrap();
    assert_eq!(
        ring.take_settled(),
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
    let mut ring = ring(2, 0);
    ring.send();
    ring.send();
    ring.acknowledge(1, (2, 1)).unwrap();
    assert_eq!(ring.take_settled(), Settled::default());
    ring.restart(2);
    assert_eq!(ring.send(), (0, 2));
    assert!(ring.waiting().is_none());
}

#[test]
fn a_reply_with_another_sequence_or_for_nobody_is_a_mismatch() {
    let mut ring = ring(2, 0);
    ring.send();
    assert_eq!(
        ring.acknowledge(0, (2, 1)),
        Err(Mismatch::Sequence {
            expected: 1,
            found: 2
        })
    );
    assert_eq!(ring.acknowledge(1, (2, 1)), Err(Mismatch::NotInFlight(1)));
    ring.acknowledge(0, (1, 1)).unwrap();
    assert_eq!(ring.acknowledge(0, (1, 1)), Err(Mismatch::NotInFlight(0)));
    ring.take_settled();
    assert_eq!(ring.acknowledge(0, (1, 1)), Err(Mismatch::NotInFlight(0)));
}

#[test]
fn what_is_stored_is_not_refused_any_more() {
    let mut ring = ring(2, 0);
    ring.send();
    ring.send();
    ring.acknowledge(0, (1, 1)).unwrap();
    assert!(!ring.refuse(0));
    assert!(ring.refuse(1));
    assert_eq!(ring.take_settled().stored, 1);
}

#[test]
fn a_batch_is_settled_by_the_reply_to_its_last_event_and_by_no_other() {
    let mut ring = ring(6, 7);
    ring.send();
    ring.stage();
    ring.settle(Passed::Known(None));
    ring.stage();
    ring.settle(Passed::DeadLettered(4));
    assert_eq!((ring.staged(), ring.in_flight()), (2, 1));
    assert_eq!(ring.send_staged(), (3, 8));
    assert_eq!(ring.send(), (5, 10));
    assert_eq!((ring.staged(), ring.in_flight()), (0, 4));
    ring.acknowledge(0, (8, 1)).unwrap();
    let alone = ring.acknowledge(3, (10, 1));
    let (expected, found) = (2, 1);
    assert_eq!(alone, Err(Mismatch::Together { expected, found }));
    assert_eq!(ring.take_settled().stored, 1);
    ring.acknowledge(3, (10, 2)).unwrap();
    let settled = Settled {
        stored: 2,
        known: 1,
        dead_lettered: 1,
        letters: 4,
        to: settled_to(4),
        stored_at: place(10, 3),
        ..Settled::default()
    };
    assert_eq!(ring.take_settled(), settled);
    assert_eq!(ring.in_flight(), 1);
}

#[test]
fn a_batch_that_was_refused_or_staged_waits_as_a_whole() {
    let mut ring = ring(5, 0);
    for _ in 0..3 {
        ring.stage();
    }
    ring.send_staged();
    ring.refuse_duplicate(2, 0);
    assert_eq!(ring.in_flight(), 0);
    ring.stage();
    ring.restart(0);
    let waits = ring.waiting().unwrap();
    assert_eq!(
        (waits.event.position.index, waits.duplicate_of),
        (0, Some(0))
    );
    assert!(waits.places.is_empty());
    for _ in 0..5 {
        ring.stage();
    }
    assert_eq!(ring.send_staged(), (4, 0));
    ring.restart(9);
    assert_eq!(ring.waiting().unwrap().places, [1]);
}

/// Otherwise what is staged would wait for an event that never waits again.
#[test]
fn batch_is_complete_where_its_last_event_was_settled_on_an_earlier_connection() {
    let mut ring = Ring::new(false);
    ring.restart(0);
    for (index, followers) in [(0, 1), (1, 0), (2, 1), (3, 0)] {
        ring.push(Event {
            followers,
            ..event(index)
        });
    }
    ring.stage();
    assert!(!ring.has_passed_last(0));
    ring.settle(Passed::DeadLettered(1));
    assert!(ring.has_passed_last(1));
    assert_eq!(ring.send_staged(), (0, 0));
    ring.restart(0);
    ring.stage();
    assert!(ring.has_passed_last(0), "its letter is skipped");
    ring.send_staged();
    ring.stage();
    assert!(!ring.has_passed_last(2), "the last of it is still to come");
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
        let mut ring = ring(0, 0);
        let mut model: Vec<(char, u64)> = Vec::new();
        let (mut settled, mut last) = (0, 0);
        for step in steps {
            let waiting = model.iter().position(|(state, _)| *state == 'w');
            match (step, waiting) {
                (Step::Push, _) => {
                    ring.push(event(model.len() as u32));
                    model.push(('w', 0));
                }
                (Step::Send, Some(at)) => {
                    prop_assert_eq!(ring.send(), (at as u64, last));
                    last += 1;
                    model[at] = ('f', last);
                }
                (Step::Skip, Some(at)) => {
                    ring.settle(Passed::Known(None));
                    model[at].0 = 's';
                }
                (Step::Ack(pick), _) => {
                    let all = 0..model.len();
                    let flying: Vec<_> = all.filter(|at| model[*at].0 == 'f').collect();
                    if !flying.is_empty() {
                        let at = *pick.get(&flying);
                        ring.acknowledge(at as u64, (model[at].1, 1)).unwrap();
                        model[at].0 = 's';
                    }
                }
                (Step::Restart, _) => {
                    last += 100;
                    ring.restart(last);
                    model.iter_mut().filter(|slot| slot.0 == 'f').for_each(|slot| slot.0 = 'w');
                }
                (Step::Send | Step::Skip, None) => prop_assert!(ring.waiting().is_none()),
            }
            let left = ring.take_settled();
            settled += left.stored + left.known;
            prop_assert_eq!(settled, model.iter().take_while(|slot| slot.0 == 's').count());
            let flying = model.iter().filter(|slot| slot.0 == 'f').count();
            prop_assert_eq!(ring.in_flight(), flying);
        }
    }
}

/// Those that go together with others that are still to be sent leave the ring with them.
#[test]
fn a_dead_letter_in_the_ring_is_known_by_its_place() {
    let mut ring = ring(3, 0);
    ring.stage();
    ring.settle(Passed::DeadLettered(7));
    ring.settle(Passed::Known(Some((guard::Stream::Letters, 5))));
    assert_eq!(ring.take_settled(), Settled::default());
    assert_eq!(ring.lowest_letter(), Some(5));
    ring.send_staged();
    ring.acknowledge(0, (1, 1)).unwrap();
    assert_eq!(ring.take_settled().letters, 7);
    assert_eq!(ring.lowest_letter(), None);
}
