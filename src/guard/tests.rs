//! The guard against tails of every kind.

use super::*;
use crate::event::lineage::Source;
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
            Verdict::Stored(_) => return false,
            Verdict::Absent => return true,
            Verdict::Unknown => match tail.next() {
                Some(entry) => guard.offer(entry.clone()),
                None => guard.end(0),
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

fn guard() -> Guard {
    let lineage = Lineage::new(source(1), Vec::new());
    Guard::new(lineage, 1, IN_FLIGHT_MAX)
}

/// What was found behind the record, in `first..=last`.
fn found(tail: &[Entry], (first, last): (u64, u64)) -> Found {
    let mut found = Found::new(Lineage::new(source(1), Vec::new()));
    read(&mut found, tail, (first, last));
    found
}

fn read(found: &mut Found, tail: &[Entry], (first, last): (u64, u64)) {
    found.begin(first);
    for entry in tail {
        found.offer(Stream::Main, entry.clone(), None);
    }
    found.end(last);
}

fn holds(found: &Found, event: u64) -> bool {
    found.place_of(at(event), &event.to_string()).is_some()
}

#[test]
fn what_stands_in_the_tail_is_not_sent_again() {
    let tail = [ours(1, 10), ours(2, 20), ours(3, 30)];
    assert_eq!(sent(&mut guard(), &tail, &[20, 30, 40]), [40]);
}

#[test]
fn an_empty_stream_holds_nothing() {
    let mut guard = guard();
    guard.end(0);
    assert!(guard.finished());
    assert_eq!(sent(&mut guard, &[], &[10]), [10]);
}

#[test]
fn an_event_that_a_stranger_displaced_is_sent_late() {
    let tail = [ours(1, 10), foreign(2), ours(3, 30)];
    assert_eq!(sent(&mut guard(), &tail, &[10, 20, 30, 40]), [20, 40]);
}

#[test]
fn a_vacancy_behind_the_events_at_hand_covers_none_of_them() {
    let tail = [ours(1, 10), ours(3, 30)];
    assert_eq!(sent(&mut guard(), &tail, &[30, 40, 50]), [40, 50]);
}

#[test]
fn vacancies_behind_a_confirmed_survivor_hide_no_new_event() {
    // A work queue: 10 waits for its consumer, 20 and 30 were consumed, all are confirmed.
    let tail = [ours(1, 10)];
    assert_eq!(sent(&mut guard(), &tail, &[40, 50]), [40, 50]);
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
    assert_eq!(sent(&mut guard(), &tail, &[10, 20, 30, 40, 50]), [50]);
    assert_eq!(sent(&mut guard(), &tail, &[20, 30, 40, 50]), [50]);
    assert_eq!(sent(&mut guard(), &tail, &[30, 40, 50]), [50]);
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
    assert_eq!(sent(&mut guard(), &tail, &[20, 30, 40]), [40]);
    assert_eq!(sent(&mut guard(), &tail, &[30, 40]), [40]);
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
    assert_eq!(sent(&mut guard(), &tail, &events), [18]);
}

#[test]
fn a_vacant_sequence_number_is_no_event() {
    // It may have been a stranger's: 20 and 50 go out, whatever stood there.
    let tail = [ours(1, 10), ours(3, 30), ours(4, 40)];
    let events = [10, 20, 30, 40, 50];
    assert_eq!(sent(&mut guard(), &tail, &events), [20, 50]);
    let found = found(&tail, (1, 5));
    assert_eq!(
        events.map(|event| holds(&found, event)),
        [true, false, true, true, false]
    );
    assert!(found.vacant() && found.odd());
}

#[test]
fn behind_the_record_neither_order_nor_copies_nor_strangers_matter() {
    let tail = [
        ours(2, 30),
        foreign(3),
        ours(4, 20),
        ours(5, 30),
        ours(6, 10),
    ];
    let found = found(&tail, (2, 6));
    assert!([10, 20, 30].iter().all(|event| holds(&found, *event)));
    assert!(!holds(&found, 40));
    assert!(
        found.place_of(at(30), "other").is_none(),
        "another event had its position"
    );
    assert!(found.odd() && !found.vacant());
    assert_eq!(found.foreign(), 1);
}

#[test]
fn our_own_events_in_order_are_nothing_odd() {
    let one = found(&[ours(2, 20), ours(3, 30)], (2, 3));
    assert!(!one.odd() && !one.vacant());
    assert!(found(&[ours(2, 20)], (2, 3)).odd(), "the last one vanished");
    assert!(
        found(&[ours(3, 30)], (2, 3)).odd(),
        "the first one vanished"
    );
    assert!(found(&[ours(2, 20), ours(3, 20)], (2, 3)).odd(), "a copy");
    assert!(
        found(&[on_timeline(2, 20, 2)], (2, 2)).odd(),
        "another timeline"
    );
    assert!(!found(&[], (2, 1)).odd(), "nothing was stored");
}

#[test]
fn what_was_found_stays_known_when_its_message_vanishes() {
    let mut found = found(&[ours(2, 20), ours(3, 30)], (2, 3));
    read(&mut found, &[ours(4, 40)], (2, 4));
    assert!([20, 30, 40].iter().all(|event| holds(&found, *event)));
    assert!(found.vacant());
}

#[test]
fn what_is_settled_is_not_kept() {
    let mut found = Found::new(Lineage::new(source(1), Vec::new()));
    for (sequence, commit) in [(1, 10), (2, 20), (3, 30)] {
        found.offer(Stream::Letters, ours(sequence, commit), Some(at(10)));
    }
    assert!(!holds(&found, 10) && holds(&found, 20) && holds(&found, 30));
    assert!(!found.left_in(Stream::Main));
    found.forget(at(20));
    assert!(!holds(&found, 20) && found.left_in(Stream::Letters));
    found.forget(at(30));
    assert!(!found.left_in(Stream::Letters));
}

#[test]
fn an_emptied_stream_hides_no_new_event() {
    assert_eq!(sent(&mut guard(), &[], &[40]), [40]);
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
    let mut guard = Guard::new(lineage, 1, IN_FLIGHT_MAX);
    assert_eq!(sent(&mut guard, &tail, &[100, 106, 115, 130]), [130]);
}

#[test]
fn what_a_dead_timeline_has_of_ours_is_not_sent_again() {
    // Timeline 3 left ours at 105, and its leader had caught up on what came before.
    let tail = [on_timeline(1, 100, 3), on_timeline(2, 110, 3)];
    let mut lineage = Lineage::new(source(4), vec![(1, 90), (2, 105)]);
    lineage.learn(vec![(3, 105)]);
    let mut guard = Guard::new(lineage, 1, IN_FLIGHT_MAX);
    assert_eq!(sent(&mut guard, &tail, &[100, 110]), [110]);
}

#[test]
fn what_an_unknown_timeline_has_stored_makes_what_is_not_found_uncertain() {
    let entry = on_timeline(1, 100, 3);
    let lineage = Lineage::new(source(4), vec![(1, 90), (2, 105)]);
    let mut guard = Guard::new(lineage.clone(), 1, IN_FLIGHT_MAX);
    assert_eq!(guard.judge(at(100), "100"), Verdict::Unknown);
    guard.offer(entry.clone());
    assert!(guard.vacant());
    let mut found = Found::new(lineage);
    found.begin(1);
    found.offer(Stream::Main, entry, None);
    assert!(found.vacant());
    assert_eq!(found.place_of(at(100), "100"), None);
}

#[test]
fn who_leads_on_a_later_timeline_has_followed_us() {
    let mut found = Found::new(Lineage::new(source(2), vec![(1, 90)]));
    found.begin(1);
    found.offer(Stream::Main, on_timeline(1, 100, 2), None);
    assert_eq!(found.successor(), None);
    found.offer(Stream::Main, on_timeline(2, 110, 3), None);
    assert_eq!(found.successor(), Some(3));
}

#[test]
fn the_same_position_with_another_id_is_another_event() {
    let mut guard = guard();
    assert_eq!(guard.judge(at(10), "other"), Verdict::Unknown);
    guard.offer(ours(1, 10));
    guard.end(0);
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
    /// Our stream is a chain: what was stored of it is a beginning of what was committed, with
    /// strangers and with holes where messages were removed. What is there is not sent again; what
    /// vanished is, because nobody can tell whose it was.
    #[test]
    fn exactly_what_is_not_there_is_sent(
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
        let there = |event: &u64| *event < stored && fates[*event as usize] != 1;
        let expected: Vec<u64> = events.iter().copied().filter(|event| !there(event)).collect();
        let found = found(&tail, (1, sequence));
        let absent = |event: &u64| !holds(&found, *event);
        prop_assert_eq!(&events.iter().copied().filter(absent).collect::<Vec<_>>(), &expected);
        prop_assert_eq!(sent(&mut guard(), &tail, &events), expected);
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
        let events: Vec<u64> = (resent_from.min(stored)..total.max(stored)).collect();
        let lineage = Lineage::new(source(1), Vec::new());
        let mut guard = Guard::new(lineage, 1, IN_FLIGHT_MAX);
        let expected: Vec<u64> = (stored..total.max(stored)).collect();
        prop_assert_eq!(sent(&mut guard, &tail, &events), expected);
        prop_assert!(guard.late.len() as u64 <= late_max(IN_FLIGHT_MAX));
        prop_assert!(guard.ahead.len() as u64 <= late_max(IN_FLIGHT_MAX) + 1);
    }
}
