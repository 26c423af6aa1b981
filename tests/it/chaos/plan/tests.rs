//! A plan is a function of its seed, and has something of everything.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_seed_names_one_plan_and_another_seed_another() {
    assert_eq!(Plan::new(7, MINUTE), Plan::new(7, MINUTE));
    assert_ne!(
        Plan::new(7, MINUTE).nats_link,
        Plan::new(8, MINUTE).nats_link
    );
}

#[test]
fn a_longer_plan_begins_like_a_shorter_one() {
    let (short, long) = (Plan::new(3, MINUTE), Plan::new(3, 10 * MINUTE));
    assert!(long.faults() > 5 * short.faults());
    assert_eq!(long.copy[..short.copy.len()], short.copy[..]);
    assert_eq!(long.postgres[..short.postgres.len()], short.postgres[..]);
}

#[test]
fn a_copy_has_other_settings_from_one_start_to_the_next_where_the_past_changes() {
    let (still, changing) = (Plan::new(3, MINUTE), Plan::past_of(3, MINUTE));
    let all = |plan: &Plan| (0..50).map(|start| plan.settings(0, start)).collect();
    let (still, changing): (Vec<_>, Vec<_>) = (all(&still), all(&changing));
    assert!(still.iter().all(|settings| *settings == still[0]));
    assert_eq!(changing[0], still[0]);
    for window in [16, 256, 4096] {
        assert!(
            changing
                .iter()
                .any(|settings| settings.in_flight_max == window)
        );
    }
    assert!(changing[1..].iter().any(|settings| settings.delayed_now));
    assert!(changing[1..].iter().any(|settings| !settings.delayed_now));
}

#[test]
fn a_minute_of_each_past_has_what_changes_it() {
    let kinds = |past| {
        let plan = Plan::changing(1, past, MINUTE);
        let copy = plan.copy.iter().map(|planned| planned.fault.1.to_string());
        let strangers = plan.strangers.iter();
        let strangers = strangers.map(|planned| planned.fault.to_string());
        let letters = plan.letters.iter();
        let letters = letters.map(|planned| planned.fault.to_string());
        copy.chain(strangers)
            .chain(letters)
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert!(kinds(Past::Consumed).contains("record: put back"));
    assert!(kinds(Past::Consumed).contains("dead letter: dropped"));
    assert!(kinds(Past::Consumed).contains("dead letter: retried"));
    assert!(kinds(Past::Expiring).contains("stranger: purges"));
    for moving in ["advanced", "dropped and made again", "dropped\n"] {
        assert!(kinds(Past::Moved).contains(moving), "{moving}");
    }
}

#[test]
fn servers_that_lose_what_they_stored_when_they_are_killed_are_stopped() {
    let kills = |mut plan: Plan, release: Release| {
        plan.spare(|wanted| release >= wanted);
        plan.nats.iter().any(|it| it.fault == NatsFault::Kill)
    };
    let three = |plan| Plan {
        replicas: 3,
        ..plan
    };
    let consumed = Plan {
        strangers: Vec::new(),
        ..Plan::changing(1, Past::Consumed, MINUTE)
    };
    assert!(!kills(consumed.clone(), (2, 10, 26)));
    assert!(kills(consumed, (2, 11, 2)));
    let strange = Plan::among_strangers(1, MINUTE);
    assert!(kills(strange.clone(), (2, 10, 26)));
    assert!(!kills(three(strange.clone()), (2, 11, 11)));
    assert!(kills(three(strange), (2, 12, 0)));
    assert!(kills(three(Plan::new(1, MINUTE)), (2, 10, 26)));
}

#[test]
fn a_standby_is_promoted_once_and_early_in_a_round_about_it() {
    for seed in 0..50 {
        let plan = Plan::changing(seed, Past::Promoted, MINUTE);
        let promotes = |planned: &&Planned<_>| planned.fault == PostgresFault::Promote;
        assert_eq!(plan.postgres.iter().filter(promotes).count(), 1);
        let before = plan.postgres.iter().take_while(|it| !promotes(it));
        let before: Duration = before.map(|planned| planned.after + planned.lasts).sum();
        assert!(before < MINUTE / 4, "{before:?}");
        assert!(!plan.displaces());
    }
}

#[test]
fn a_minute_has_every_kind_of_fault() {
    let plan = Plan::holding(1, MINUTE);
    let mut kinds: Vec<String> = Vec::new();
    kinds.extend(
        plan.postgres
            .iter()
            .map(|planned| planned.fault.to_string()),
    );
    kinds.extend(plan.nats.iter().map(|planned| planned.fault.to_string()));
    kinds.extend(plan.copy.iter().map(|planned| planned.fault.1.to_string()));
    kinds.extend(
        plan.nats_link
            .iter()
            .map(|planned| planned.fault.1.to_string()),
    );
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds.len(), 6 + 4 + 4 + 7, "{kinds:?}");
}
