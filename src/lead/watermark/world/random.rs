//! Histories at random. `HISTORIES=100000 cargo nextest run --lib any_history` plays as many.

use proptest::prelude::*;

use super::{Step, World};

/// In CI.
const HISTORIES: u32 = 500;

/// Rows that are committed before the end.
const ROWS_MAX: usize = 12;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => progress(),
        10 => fault(),
        2 => by_hand(),
    ]
}

fn progress() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Commit),
        1 => Just(Step::Noise),
        1 => Just(Step::Checkpoint),
        3 => Just(Step::Lead(0)),
        6 => Just(Step::Read),
        2 => Just(Step::Keepalive),
        6 => Just(Step::Pump),
        6 => Just(Step::Arrive),
        5 => Just(Step::Hear),
        3 => Just(Step::Record),
        3 => Just(Step::Status),
        2 => (0..3_usize).prop_map(Step::Old),
        1 => (0..3_usize).prop_map(Step::OldDies),
    ]
}

fn fault() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Crash),
        6 => paused(),
        2 => Just(Step::TermEnds),
        3 => Just(Step::ConnectionLost),
        3 => (0..12_usize).prop_map(Step::Vanish),
        2 => Just(Step::Stranger),
        2 => (0..12_usize).prop_map(Step::Copy),
        1 => Just(Step::Forget),
        1 => Just(Step::PostgresCrash),
        1 => (0..3_usize, 0..3_usize).prop_map(|(lost, back)| Step::Failover(lost, back)),
        1 => (1..3_u8).prop_map(Step::Lead),
    ]
}

fn paused() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Pause),
        3 => Just(Step::PausedPumps),
        3 => Just(Step::PausedArrives),
        2 => Just(Step::PausedHears),
        1 => Just(Step::PausedRecords),
        2 => Just(Step::PausedReconnects),
        1 => Just(Step::PausedDies),
    ]
}

fn by_hand() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Advance),
        Just(Step::Recreate),
        Just(Step::Snapshot),
        Just(Step::Restore),
        Just(Step::Backup),
        Just(Step::Rollback),
    ]
}

/// Plays a history, and lets it come to its end.
pub(super) fn play(world: &mut World, steps: &[Step]) -> Result<(), String> {
    for (number, step) in steps.iter().enumerate() {
        let moves = matches!(
            step,
            Step::Advance | Step::Recreate | Step::Restore | Step::Rollback
        );
        if moves && world.touched || *step == Step::Commit && world.postgres.log.len() >= ROWS_MAX {
            continue;
        }
        world.apply(*step);
        if let Some(wrong) = world.wrong() {
            return Err(format!("step {number}, {step:?}: {wrong}"));
        }
    }
    world
        .finish()
        .map_err(|wrong| format!("at the end: {wrong}"))
}

fn histories() -> u32 {
    std::env::var("HISTORIES").map_or(HISTORIES, |asked| asked.parse().expect("a number"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(histories()))]

    /// Whatever crashes, vanishes, writes and is moved: nothing is lost or doubled unsaid.
    #[test]
    fn any_history_ends_well(
        steps in prop::collection::vec(step(), 1..160),
        duplicate_window in any::<bool>(),
    ) {
        let mut world = World::new(None, duplicate_window);
        let played = play(&mut world, &steps);
        prop_assert!(played.is_ok(), "{}", played.unwrap_err());
    }
}
