//! The chain, alone and against a plain list.

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

/// Otherwise what is staged would wait for an event that never waits again.
#[test]
fn batch_is_complete_where_its_last_event_was_settled_on_an_earlier_connection() {
    let mut chain = Chain::new(false);
    chain.restart(0);
    for (index, followers) in [(0, 1), (1, 0), (2, 1), (3, 0)] {
        chain.push(Event {
            followers,
            ..event(index)
        });
    }
    chain.stage();
    assert!(!chain.has_passed_last(0));
    chain.settle(Passed::DeadLettered(1));
    assert!(chain.has_passed_last(1));
    assert_eq!(chain.send_staged(), (0, 0));
    chain.restart(0);
    chain.stage();
    assert!(chain.has_passed_last(0), "its letter is skipped");
    chain.send_staged();
    chain.stage();
    assert!(!chain.has_passed_last(2), "the last of it is still to come");
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

/// Those that go together with others that are still to be sent leave the ring with them.
#[test]
fn a_dead_letter_in_the_ring_is_known_by_its_place() {
    let mut chain = chain(3, 0);
    chain.stage();
    chain.settle(Passed::DeadLettered(7));
    chain.settle(Passed::Known(Some((guard::Stream::Letters, 5))));
    assert_eq!(chain.take_settled(), Settled::default());
    assert_eq!(chain.lowest_letter(), Some(5));
    chain.send_staged();
    chain.acknowledge(0, (1, 1)).unwrap();
    assert_eq!(chain.take_settled().letters, 7);
    assert_eq!(chain.lowest_letter(), None);
}
