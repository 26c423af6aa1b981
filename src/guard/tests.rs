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

/// Where others write, too: nothing is known of what is missing, and any number of entries of
/// others may be passed over.
#[test]
fn what_is_missing_among_others_is_no_event_of_ours_and_no_entry_that_was_looked_at() {
    let far = 100 * late_max(IN_FLIGHT_MAX);
    let tail = [
        ours(3, 30),
        ours(far, 40),
        foreign(far + 1),
        ours(far + 2, 20),
    ];
    let events = [10, 20, 30, 40, 50];
    assert_eq!(
        sent(&mut guard(1, far + 2).sparse(), &tail, &events),
        [10, 50]
    );
    let lineage = Lineage::new(source(1), Vec::new());
    let mut since = Since::new(lineage, (1, 9), Some(at(50))).sparse();
    since.offer(ours(3, 30));
    since.end();
    assert!(since.holds(at(30), "30", &[2]));
    assert!(!since.holds(at(20), "20", &[2]));
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
