//! The replication slot, and whether one could stream from it.

use super::{Check, Options, Verdict};
use crate::error::{Disposition, Exit, Failure, Problem};
use crate::event::lineage::Mark;
use crate::lsn::Lsn;
use crate::pg::catalog::{Facts, Holder, Slot};
use crate::pg::ddl;

/// One thing to put right at a time: a slot that is another's is asked nothing more.
pub(super) fn judge(facts: &Facts, options: &Options) -> Vec<Check> {
    let check = |name, verdict| Check {
        group: "slot",
        name,
        verdict,
    };
    let Some(slot) = &facts.slot else {
        let mut checks = vec![check("exists", missing(facts, options))];
        checks.extend(no_room(facts).map(|verdict| check("room", verdict)));
        return checks;
    };
    let mut checks = vec![check("exists", ours(facts, slot))];
    if checks[0].failure().is_none() {
        checks.push(check("state", state(facts, slot)));
        checks.extend(idle(facts, slot).map(|verdict| check("idle", verdict)));
        checks.extend(pinned(slot).map(|verdict| check("pinned", verdict)));
        checks.push(check("holder", holder(facts, slot)));
    }
    checks
}

fn missing(facts: &Facts, options: &Options) -> Verdict {
    let name = &options.slot;
    Verdict::halt(
        format!("replication slot \"{name}\" does not exist"),
        "without it Postgres keeps nothing for outjet; if it existed before, what was written \
         since it went is not in any slot",
        format!(
            "`outjet setup`, or {}",
            ddl::create_slot(name, &facts.server)
        ),
    )
}

/// A slot that does not exist although the stream holds events that came through it: what was
/// committed since the newest of them is in no slot. `newest`: the newest events of `stream`.
pub fn gone(
    facts: &Facts,
    options: &Options,
    (stream, newest): (&str, &[Mark]),
) -> Option<Failure> {
    let newest = newest.iter().find(|mark| {
        let source = &mark.source;
        source.slot == options.slot && source.system == facts.server.system_identifier
    })?;
    if facts.slot.is_some() {
        return None;
    }
    let (slot, current) = (&options.slot, facts.server.current);
    let last = Lsn::new(newest.position.commit);
    let gap = if last < current {
        let gap = current.bytes_since(last);
        format!("{gap} bytes of WAL follow it, up to {current}, and are in no slot")
    } else {
        format!("this server never came that far: it stands at {current}")
    };
    let cause = format!("the newest of them was committed at {last}; {gap}");
    let mut fix =
        "`outjet recover`: it makes the slot again, and publishes the rows of the outbox \
         tables that the stream lacks"
            .to_owned();
    if facts.server.has_failover_slots() {
        fix.push_str("; standbys keep slots where sync_replication_slots = on");
    }
    let problem = format!("slot {slot} is missing, but stream {stream} holds events from it");
    Some(Failure::halt(
        Exit::Config,
        Problem::new(problem, cause, fix),
    ))
}

fn no_room(facts: &Facts) -> Option<Verdict> {
    let server = &facts.server;
    (server.slots_used >= server.slots_max).then(|| {
        Verdict::halt(
            "there is no room for another replication slot",
            format!(
                "all of max_replication_slots = {} are in use",
                server.slots_max
            ),
            "SELECT slot_name, database, active, wal_status FROM pg_replication_slots; drop what \
             nobody needs: SELECT pg_drop_replication_slot('…'); or raise max_replication_slots \
             and restart Postgres",
        )
    })
}

fn ours(facts: &Facts, slot: &Slot) -> Verdict {
    let name = &slot.name;
    let fix = "choose another name in postgres.slot, then `outjet setup`";
    match (slot.plugin.as_deref(), slot.database.as_deref()) {
        (Some("pgoutput"), Some(database)) if database == facts.server.database => {}
        (Some("pgoutput"), Some(database)) => {
            return Verdict::halt(
                format!("replication slot \"{name}\" belongs to another database"),
                format!(
                    "it decodes {database}, and we are connected to {}",
                    facts.server.database
                ),
                format!(
                    "connect to {database}, or choose another name in postgres.slot, then \
                     `outjet setup`"
                ),
            );
        }
        (Some(plugin), _) => {
            return Verdict::halt(
                format!("replication slot \"{name}\" is not outjet's"),
                format!("its output plugin is {plugin}, not pgoutput"),
                fix,
            );
        }
        (None, _) => {
            return Verdict::halt(
                format!("replication slot \"{name}\" is not outjet's"),
                "it is a physical slot",
                fix,
            );
        }
    }
    if slot.two_phase {
        return Verdict::halt(
            format!("replication slot \"{name}\" decodes prepared transactions"),
            "it was made with two_phase: it may send what is rolled back later",
            "let it be drained, then `outjet drop && outjet recover`",
        );
    }
    Verdict::Pass(format!("slot {name} exists, pgoutput, this database"))
}

fn state(facts: &Facts, slot: &Slot) -> Verdict {
    let name = &slot.name;
    if slot.lost() {
        let reason = slot.invalidation_reason.as_deref();
        let current = facts.server.current;
        let confirmed = slot.confirmed_flush.map_or("unknown".to_owned(), |lsn| {
            let gap = current.bytes_since(lsn);
            format!("{lsn}, {gap} bytes of WAL before {current}")
        });
        return Verdict::halt(
            format!("replication slot \"{name}\" is lost"),
            format!(
                "Postgres invalidated it ({}); confirmed up to {confirmed}",
                reason.unwrap_or("WAL it needed was removed: max_slot_wal_keep_size")
            ),
            "`outjet recover`: it makes the slot again, and publishes the rows of the outbox \
             tables that the stream lacks; raise max_slot_wal_keep_size",
        );
    }
    if slot.wal_status.as_deref() == Some("unreserved") {
        return Verdict::warn(
            format!("replication slot \"{name}\" is about to be lost"),
            "it needs WAL that the next checkpoint may remove (wal_status = unreserved)",
            "ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();",
        );
    }
    let confirmed = slot.confirmed_flush;
    let confirmed = confirmed.map_or("nothing yet".to_owned(), |lsn| lsn.to_string());
    Verdict::Pass(format!(
        "slot {name} is usable, confirmed up to {confirmed}"
    ))
}

/// Postgres counts from when nobody streams any more, and acts at a checkpoint.
fn idle(facts: &Facts, slot: &Slot) -> Option<Verdict> {
    let timeout = facts.server.idle_slot_timeout.as_ref()?;
    Some(Verdict::warn(
        format!(
            "replication slot \"{}\" is lost when nobody has streamed from it for {timeout}",
            slot.name
        ),
        format!("idle_replication_slot_timeout = {timeout}: Postgres invalidates slots that idle"),
        "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
    ))
}

/// As much as a checkpoint lets the server write by itself (the default of `max_wal_size`).
const PINNED_BYTES_MAX: u64 = 1 << 30;

/// Confirming more does not free it.
fn pinned(slot: &Slot) -> Option<Verdict> {
    let pinned = slot
        .pinned_wal_bytes()
        .filter(|pinned| *pinned > PINNED_BYTES_MAX)?;
    Some(Verdict::warn(
        format!(
            "replication slot \"{}\" retains WAL that it does not need",
            slot.name
        ),
        format!(
            "{pinned} bytes before its confirmed position are kept for a transaction that is open \
             somewhere in the cluster"
        ),
        "SELECT pid, datname, xact_start, application_name FROM pg_stat_activity WHERE \
         backend_xid IS NOT NULL ORDER BY xact_start; SELECT gid, prepared FROM pg_prepared_xacts; \
         end what is old: SELECT pg_terminate_backend(…), or ROLLBACK PREPARED '…'",
    ))
}

/// Who holds the slot leads. `check` takes the disposition `Standby` for a pass.
fn holder(facts: &Facts, slot: &Slot) -> Verdict {
    let (name, server) = (&slot.name, &facts.server);
    if !slot.active {
        if server.wal_senders_used >= server.wal_senders_max {
            return Verdict::retry(
                "there is no room for another replication connection",
                format!(
                    "all of max_wal_senders = {} are in use",
                    server.wal_senders_max
                ),
                "SELECT pid, application_name, client_addr FROM pg_stat_replication; stop what \
                 nobody needs, or raise max_wal_senders and restart Postgres",
            );
        }
        return Verdict::Pass(format!("slot {name} is free"));
    }
    let (cause, fix) = match &slot.holder {
        Some(holder) => (format!("held by {holder}"), free_slot(holder)),
        None => (
            "held by a backend that is just ending".to_owned(),
            "wait a moment".to_owned(),
        ),
    };
    Verdict::Fail(Failure {
        disposition: Disposition::Standby,
        exit: Exit::CheckFailed,
        problem: Problem::new(format!("replication slot \"{name}\" is in use"), cause, fix),
    })
}

/// What to do about somebody who holds our slot.
pub fn free_slot(holder: &Holder) -> String {
    format!(
        "nothing, if that is another outjet: this one takes over when it stops; else use one slot \
         for each consumer, or end it: {}",
        ddl::terminate(holder.pid)
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{facts, failure, options, text, warning};
    use super::*;
    use crate::event::Position;
    use crate::event::lineage::Source;

    fn slot(facts: &mut Facts) -> &mut Slot {
        facts.slot.as_mut().expect("the slot exists")
    }

    #[test]
    fn missing_slot_comes_with_the_statement_for_this_version() {
        let mut facts = facts();
        facts.slot = None;
        let problem = "replication slot \"outjet\" does not exist\n";
        assert!(text(&facts).starts_with(problem));
        let with_failover = "`outjet setup`, or SELECT lsn::text FROM \
             pg_create_logical_replication_slot('outjet', 'pgoutput', failover => true);";
        assert!(text(&facts).ends_with(with_failover), "{}", text(&facts));
        facts.server.version_num = 160_010;
        let without = "pg_create_logical_replication_slot('outjet', 'pgoutput');";
        assert!(text(&facts).ends_with(without), "{}", text(&facts));
    }

    #[test]
    fn missing_slot_that_has_fed_the_stream_comes_with_the_size_of_the_gap() {
        let mut facts = facts();
        let newest = |slot: &str, commit| Mark {
            source: Source {
                system: facts.server.system_identifier.clone(),
                timeline: 1,
                slot: slot.to_owned(),
            },
            position: Position { commit, index: 0 },
            id: "a".to_owned(),
        };
        let (ours, ahead, other) = (
            newest("outjet", 0x200),
            newest("outjet", 0x400),
            newest("b", 0x200),
        );
        let gone = |facts: &Facts, newest: &Mark| {
            let gone = gone(facts, &options(), ("OUTBOX", std::slice::from_ref(newest)));
            gone.map(|gone| gone.problem.cause)
        };
        assert_eq!(gone(&facts, &ours), None);
        facts.slot = None;
        let said = "the newest of them was committed at 0/200; 256 bytes of WAL follow it, up to \
             0/300, and are in no slot";
        assert_eq!(gone(&facts, &ours).as_deref(), Some(said));
        let said = "the newest of them was committed at 0/400; this server never came that far: \
             it stands at 0/300";
        assert_eq!(gone(&facts, &ahead).as_deref(), Some(said));
        assert_eq!(gone(&facts, &other), None);
    }

    #[test]
    fn missing_slot_without_room_for_it_fails_twice() {
        let mut facts = facts();
        facts.slot = None;
        facts.server.slots_used = 9;
        assert_eq!(judge(&facts, &options()).len(), 1);
        facts.server.slots_used = 10;
        let checks = judge(&facts, &options());
        let room = checks[1].failure().expect("no room").to_string();
        assert!(
            room.contains("all of max_replication_slots = 10 are in use"),
            "{room}"
        );
    }

    #[test]
    fn slot_of_another_plugin_kind_or_database_is_not_ours() {
        let mut facts = facts();
        slot(&mut facts).plugin = Some("test_decoding".to_owned());
        assert!(text(&facts).contains("its output plugin is test_decoding, not pgoutput"));
        slot(&mut facts).plugin = None;
        slot(&mut facts).database = None;
        assert!(text(&facts).contains("it is a physical slot"));
        slot(&mut facts).plugin = Some("pgoutput".to_owned());
        slot(&mut facts).database = Some("other".to_owned());
        assert!(text(&facts).contains("it decodes other, and we are connected to app"));
    }

    #[test]
    fn two_phase_slot_fails() {
        let mut facts = facts();
        slot(&mut facts).two_phase = true;
        let problem = "replication slot \"outjet\" decodes prepared transactions\n";
        assert!(text(&facts).starts_with(problem));
    }

    #[test]
    fn lost_slot_says_how_far_it_was_confirmed() {
        let mut facts = facts();
        slot(&mut facts).wal_status = Some("lost".to_owned());
        slot(&mut facts).restart = None;
        assert!(text(&facts).starts_with("replication slot \"outjet\" is lost\n"));
        let gap = "max_slot_wal_keep_size); confirmed up to 0/200, 256 bytes of WAL before 0/300\n";
        assert!(text(&facts).contains(gap), "{}", text(&facts));
        slot(&mut facts).invalidation_reason = Some("idle_timeout".to_owned());
        assert!(text(&facts).contains("(idle_timeout)"));
    }

    #[test]
    fn slot_about_to_be_lost_is_warned_about() {
        let mut facts = facts();
        slot(&mut facts).wal_status = Some("unreserved".to_owned());
        assert!(warning(&facts).starts_with("replication slot \"outjet\" is about to be lost\n"));
    }

    #[test]
    fn slot_that_is_lost_when_it_idles_is_warned_about() {
        let mut facts = facts();
        facts.server.idle_slot_timeout = Some("1d".to_owned());
        let problem =
            "replication slot \"outjet\" is lost when nobody has streamed from it for 1d\n";
        assert!(warning(&facts).starts_with(problem));
    }

    #[test]
    fn old_transaction_that_holds_wal_is_warned_about_from_a_gigabyte_on() {
        let mut facts = facts();
        slot(&mut facts).confirmed_flush = Some(Lsn::new(0x100 + PINNED_BYTES_MAX));
        assert!(judge(&facts, &options()).iter().all(|c| c.name != "pinned"));
        slot(&mut facts).confirmed_flush = Some(Lsn::new(0x101 + PINNED_BYTES_MAX));
        let problem = "replication slot \"outjet\" retains WAL that it does not need\n";
        assert!(warning(&facts).starts_with(problem));
    }

    #[test]
    fn held_slot_makes_a_standby_and_names_the_holder() {
        let mut facts = facts();
        // Our own leader's connection may be the last: it does not count against us.
        facts.server.wal_senders_used = 10;
        slot(&mut facts).active = true;
        slot(&mut facts).holder = Some(Holder {
            pid: 19_987,
            application_name: Some("Debezium Streaming".to_owned()),
            client_addr: Some("10.1.2.3".to_owned()),
            since: None,
        });
        assert_eq!(failure(&facts).disposition, Disposition::Standby);
        assert_eq!(
            text(&facts),
            "replication slot \"outjet\" is in use\n  \
             cause: held by pid 19987, application \"Debezium Streaming\", client 10.1.2.3\n  \
             fix:   nothing, if that is another outjet: this one takes over when it stops; else \
             use one slot for each consumer, or end it: SELECT pg_terminate_backend(19987);"
        );
    }

    #[test]
    fn free_slot_needs_a_free_wal_sender() {
        let mut facts = facts();
        facts.server.wal_senders_used = 10;
        assert_eq!(failure(&facts).disposition, Disposition::Retry);
        assert!(text(&facts).contains("all of max_wal_senders = 10 are in use"));
    }
}
