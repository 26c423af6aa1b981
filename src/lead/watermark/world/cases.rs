//! A history for each rule: with it all is well, without it not.

use super::random::play;
use super::{Rule, Step, World};
use Step::{
    Advance, Arrive, Commit, ConnectionLost, Copy, Crash, Failover, Hear, Keepalive, Lead, Noise,
    Old, Pause, PostgresCrash, Pump, Read, Record, Restore, Snapshot, Status, Stranger, Vanish,
};

const LEAD: Step = Lead(0);

/// The first event is read, sent, stored, and heard of.
const FIRST: [Step; 6] = [Commit, LEAD, Read, Pump, Arrive, Hear];

/// The record is written, stored, and heard of.
const RECORD: [Step; 3] = [Record, Arrive, Hear];

/// By research/watermark_model.py, with the rule left out: the shortest history that needs it.
fn history_for(rule: Rule) -> Vec<Step> {
    match rule {
        Rule::RecordFirst => [&FIRST[..], &[Status, Crash, LEAD]].concat(),
        Rule::SlotAboveC => vec![LEAD, Crash, Commit, Advance, LEAD],
        Rule::IdOfP => [
            &[LEAD, Snapshot, Commit, Read, Pump, Arrive, Hear],
            &RECORD[..],
            &[Crash, Restore, Commit, LEAD, Read, Pump, Status],
        ]
        .concat(),
        Rule::Keepalive => [
            &FIRST[..],
            &[Snapshot, Commit, Read, Pump, Arrive, Hear],
            &RECORD,
            &[Crash, Restore, Noise, LEAD, Read, Keepalive],
        ]
        .concat(),
        Rule::Slow => vec![
            Commit,
            Commit,
            LEAD,
            Read,
            Read,
            Pump,
            Pump,
            Stranger,
            Arrive,
            Hear,
            Pump,
            Pump,
            Old(0),
            Arrive,
            Hear,
            Old(0),
        ],
        Rule::Vacant => [&FIRST[..], &[Crash, Vanish(0), LEAD, Read, Pump, Arrive]].concat(),
        Rule::Timeline => [&FIRST[..], &RECORD, &[Crash, Failover(1, 0), LEAD]].concat(),
        Rule::Base => [
            &[
                Commit,
                Commit,
                LEAD,
                Read,
                Read,
                Pump,
                Pump,
                Crash,
                Stranger,
                Old(0),
                Old(0),
            ],
            &[LEAD, Read, Pump, Arrive, Hear][..],
            &RECORD,
            &[Status, Crash, LEAD, Read, Pump, Arrive],
        ]
        .concat(),
    }
}

const RULES: [Rule; 8] = [
    Rule::RecordFirst,
    Rule::SlotAboveC,
    Rule::IdOfP,
    Rule::Keepalive,
    Rule::Slow,
    Rule::Vacant,
    Rule::Base,
    Rule::Timeline,
];

#[test]
fn each_rule_is_needed() {
    for rule in RULES {
        let history = history_for(rule);
        let with = play(&mut World::new(None, false), &history);
        let without = play(&mut World::new(Some(rule), false), &history);
        assert_eq!(with, Ok(()), "{rule:?}");
        assert!(without.is_err(), "{rule:?} is not needed");
    }
}

/// What an old connection still holds was sent when nobody had displaced anything; behind a
/// stranger it fits, although nothing that we heard of was refused.
#[test]
fn behind_a_stranger_a_lost_connection_displaces_nothing() {
    let displaced = [
        Pump,
        Pump,
        Stranger,
        Arrive,
        ConnectionLost,
        Pump,
        Pump,
        Old(0),
        Arrive,
        Arrive,
        Hear,
    ];
    let begins = [Commit, Commit, LEAD, Read, Read];
    let known = [&begins[..], &displaced].concat();
    // The same while nothing is known: a stream that was not empty is merged.
    let merged = [&[Stranger], &begins[..], &displaced].concat();
    for history in [known, merged] {
        let mut world = World::new(None, false);
        assert_eq!(play(&mut world, &history), Ok(()), "{history:?}");
    }
}

/// A copy of what is settled is odd, too, even if nothing else is read.
#[test]
fn behind_a_copy_a_lost_connection_displaces_nothing() {
    let settled = [
        Commit, Commit, LEAD, Read, Read, Pump, Pump, Arrive, Arrive, Hear,
    ];
    let displaced = [
        Commit,
        Commit,
        Read,
        Read,
        Pump,
        Pump,
        Copy(0),
        Arrive,
        ConnectionLost,
        Pump,
        Pump,
        Old(0),
        Arrive,
        Arrive,
        Hear,
    ];
    let history = [&settled[..], &displaced].concat();
    let mut world = World::new(None, false);
    assert_eq!(play(&mut world, &history), Ok(()));
}

/// A successor must see that number, too, as long as an event may have stood there.
#[test]
fn what_vanished_before_a_merge_is_uncertain_for_the_next_leader() {
    let displaced = [
        Commit,
        Commit,
        LEAD,
        Read,
        Read,
        Pump,
        Pump,
        Crash,
        Stranger,
        Old(0),
        Old(0),
        Vanish(1),
    ];
    let first_again = [LEAD, Read, Pump, Arrive, Hear];
    let history = [
        &displaced[..],
        &first_again,
        &RECORD,
        &[Status, Crash, LEAD],
    ]
    .concat();
    let mut world = World::new(None, false);
    assert_eq!(play(&mut world, &history), Ok(()));
    assert_eq!(world.uncertain.len(), 2);
}

/// A leader that was replaced still stores, and what it stores vanishes at once, as from a work
/// queue: the server knows the id of what the new leader has never seen.
#[test]
fn what_a_replaced_leader_stores_late_and_vanishes_is_not_stored_twice() {
    let second = [Commit, Read, Pump, Crash, LEAD, Old(0), Vanish(1)];
    let refused = [Read, Pump, Arrive, Hear];
    let duplicate = [Pump, Arrive, Hear, Pump, Arrive, Hear];
    let history = [&FIRST[..], &RECORD, &second, &refused, &duplicate].concat();
    let mut world = World::new(None, true);
    assert_eq!(play(&mut world, &history), Ok(()));
    assert_eq!(world.stream.len(), 2);
}

/// It is not among the deleted ones that the server counts when the connection is made.
#[test]
fn what_vanishes_before_the_merge_reads_it_is_uncertain() {
    let stored_unheard = [
        Stranger, LEAD, Commit, Read, Commit, Pump, Arrive, Read, Pump, Arrive, Crash,
    ];
    for vanishes in [1, 2] {
        let history = [&stored_unheard[..], &[LEAD, Vanish(vanishes)]].concat();
        let mut world = World::new(None, false);
        assert_eq!(play(&mut world, &history), Ok(()), "{history:?}");
        assert_eq!(world.uncertain.len(), 1, "{history:?}");
    }
}

/// Each history, with each fault at each of its places.
#[test]
fn one_more_fault_anywhere_does_no_harm() {
    let faults = [
        Crash,
        ConnectionLost,
        Vanish(0),
        Vanish(1),
        Stranger,
        Copy(0),
        PostgresCrash,
        Failover(0, 1),
        Failover(1, 0),
        Pause,
    ];
    for history in RULES.map(history_for) {
        for at in 0..=history.len() {
            for fault in faults {
                let turned = history.contains(&Restore) && matches!(fault, Failover(..));
                if turned {
                    // Two turns of Postgres without an outjet between them cannot be told apart.
                    continue;
                }
                let (before, behind) = history.split_at(at);
                let whole = [before, &[fault], behind].concat();
                let played = play(&mut World::new(None, false), &whole);
                assert_eq!(played, Ok(()), "{fault:?} at {at} of {history:?}");
            }
        }
    }
}
