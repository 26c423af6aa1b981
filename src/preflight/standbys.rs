//! Whether the slot would survive a failover, and whether a copy of outjet would take over. None of
//! it keeps outjet from running.

use super::{Check, Options, Verdict};
use crate::pg::catalog::{Facts, Slot, Standbys};
use crate::pg::name::quote;

pub(super) fn judge(facts: &Facts, options: &Options) -> Vec<Check> {
    let check = |name, verdict| Check {
        group: "standbys",
        name,
        verdict,
    };
    let Some(slot) = &facts.slot else {
        return Vec::new();
    };
    vec![
        check("failover", failover(facts, options, slot)),
        check("copies", copies(&facts.standbys, slot)),
    ]
}

fn failover(facts: &Facts, options: &Options, slot: &Slot) -> Verdict {
    let (server, standbys, name) = (&facts.server, &facts.standbys, &options.slot);
    if standbys.slots.is_empty() {
        return Verdict::Pass("no physical standby has a slot here".to_owned());
    }
    let listed = standbys.slots.join(", ");
    let lacks = format!("a standby that is promoted lacks slot \"{name}\"");
    if !server.has_failover_slots() {
        return Verdict::warn(
            lacks,
            format!(
                "Postgres {} does not keep logical slots on standbys ({listed}), as 17 does",
                server.version
            ),
            "upgrade to 17, or let the extension pg_failover_slots or Patroni (slots) keep it; \
             outjet halts on a server without it",
        );
    }
    if !slot.failover {
        return Verdict::warn(
            lacks,
            format!("the slot was made without failover, and standbys ({listed}) do not keep it"),
            format!(
                "stop all copies of outjet, then: psql \"dbname={} replication=database\" -c \
                 'ALTER_REPLICATION_SLOT {} (FAILOVER true)'",
                server.database,
                quote(name)
            ),
        );
    }
    waited_for(standbys, &listed)
}

/// Failover slots send what these standbys have, and no more.
fn waited_for(standbys: &Standbys, listed: &str) -> Verdict {
    let set = |slots: &[&String]| {
        let names: Vec<String> = slots.iter().map(|name| quote(name)).collect();
        let names = names.join(", ").replace('\'', "''");
        format!("ALTER SYSTEM SET synchronized_standby_slots = '{names}'; SELECT pg_reload_conf();")
    };
    let here = |name: &&String| standbys.slots.contains(name);
    if standbys.synchronized.is_empty() {
        return Verdict::warn(
            "a standby that is promoted may lack what outjet has published",
            format!("synchronized_standby_slots is empty: nobody waits for {listed}"),
            set(&standbys.slots.iter().collect::<Vec<_>>()),
        );
    }
    let awaited = |name: &&String| standbys.inactive.contains(name) || !here(name);
    if let Some(away) = standbys.synchronized.iter().find(awaited) {
        let synchronized = standbys.synchronized.iter();
        let left: Vec<&String> = synchronized.filter(|name| !awaited(name)).collect();
        return Verdict::warn(
            format!("events wait for standby slot \"{away}\""),
            "it is named in synchronized_standby_slots, and nobody streams from it",
            format!("start that standby, or do without it: {}", set(&left)),
        );
    }
    Verdict::Pass(format!(
        "the slot is kept by those of {listed} with sync_replication_slots = on"
    ))
}

fn copies(standbys: &Standbys, slot: &Slot) -> Verdict {
    Verdict::Pass(match (slot.active, standbys.copies) {
        (false, _) => "nobody leads".to_owned(),
        (true, 0) => "no copy of outjet that we may see stands by".to_owned(),
        (true, 1) => "1 copy of outjet stands by".to_owned(),
        (true, copies) => format!("{copies} copies of outjet stand by"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{facts, warning};
    use super::*;

    fn with_standbys(synchronized: &[&str], inactive: &[&str]) -> Facts {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let mut facts = facts();
        facts.standbys = Standbys {
            slots: names(&["a", "b's"]),
            inactive: names(inactive),
            synchronized: names(synchronized),
            copies: 0,
        };
        facts
    }

    #[test]
    fn standby_that_nobody_waits_for_comes_with_the_statement() {
        let warned = warning(&with_standbys(&[], &[]));
        let fix = "ALTER SYSTEM SET synchronized_standby_slots = '\"a\", \"b''s\"'; \
                   SELECT pg_reload_conf();";
        assert!(warned.ends_with(fix), "{warned}");
    }

    #[test]
    fn standby_that_is_waited_for_and_away_holds_events_up() {
        for facts in [
            with_standbys(&["a", "b's"], &["b's"]),
            with_standbys(&["a", "gone"], &[]),
        ] {
            let warned = warning(&facts);
            assert!(
                warned.starts_with("events wait for standby slot"),
                "{warned}"
            );
            let fix = "SET synchronized_standby_slots = '\"a\"'; SELECT pg_reload_conf();";
            assert!(warned.ends_with(fix), "{warned}");
        }
    }

    #[test]
    fn slot_that_standbys_do_not_keep_is_warned_about_by_version() {
        let mut facts = with_standbys(&["a"], &[]);
        if let Some(slot) = &mut facts.slot {
            slot.failover = false;
        }
        let fix = "'ALTER_REPLICATION_SLOT \"outjet\" (FAILOVER true)'";
        assert!(warning(&facts).ends_with(fix), "{}", warning(&facts));
        facts.server.version_num = 160_014;
        let warned = warning(&facts);
        assert!(warned.contains("does not keep logical slots on standbys (a, b's)"));
    }
}
