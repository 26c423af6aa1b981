//! What a replication session is answered by the simple protocol: replication commands, and the few
//! queries that ours asks there, known by their text.

use bytes::BytesMut;
use outjet::lsn::Lsn;

use super::backend::Process;
use super::state::State;
use super::wire::{self, TEXT};

/// The answer, up to ReadyForQuery.
pub(super) fn answer(process: &Process, out: &mut BytesMut, text: &str) {
    let mut state = process.server.state();
    if text.contains("_REPLICATION_SLOT ") {
        change_slot(&mut state, out, text);
    } else if text == "IDENTIFY_SYSTEM" {
        identify(&state, out);
    } else if let Some(timeline) = text.strip_prefix("TIMELINE_HISTORY ") {
        history(&state, out, timeline.parse().expect("a timeline"));
    } else if text.contains("total_txns > 0") {
        position(&state, out);
    } else if text == "SELECT pg_backend_pid()" {
        wire::describe(out, &[("pg_backend_pid", wire::INT4)], 0);
        wire::texts(out, &[Some(&process.pid.to_string())]);
        wire::complete(out, "SELECT 1");
    } else if text.contains("'server_encoding'") {
        wire::describe(out, &[("set_config", TEXT)], 0);
        wire::complete(out, "SELECT 0");
    } else {
        let words = format!("the model does not know: {text}");
        wire::report(out, b'E', ("ERROR", "0A000", &words));
    }
}

/// CREATE_REPLICATION_SLOT and DROP_REPLICATION_SLOT, of the one slot that there may be.
fn change_slot(state: &mut State, out: &mut BytesMut, text: &str) {
    let name = text.split_ascii_whitespace().nth(1).unwrap_or_default();
    let name = name.trim_matches('"').to_owned();
    assert_eq!(name, state.options.slot, "the model has one slot");
    let active = state.slot.as_ref().and_then(|slot| slot.active_pid);
    if text.starts_with("CREATE") {
        if !state.create_slot() {
            let words = format!("replication slot \"{name}\" already exists");
            return wire::report(out, b'E', ("ERROR", "42710", &words));
        }
        let columns = [
            "slot_name",
            "consistent_point",
            "snapshot_name",
            "output_plugin",
        ];
        wire::describe(out, &columns.map(|name| (name, TEXT)), 0);
        let at = Lsn::new(state.wal.flushed).to_string();
        wire::texts(out, &[Some(&name), Some(&at), None, Some("pgoutput")]);
        wire::complete(out, "CREATE_REPLICATION_SLOT");
    } else if state.drop_slot() {
        wire::complete(out, "DROP_REPLICATION_SLOT");
    } else {
        let (code, words) = match active {
            Some(pid) => ("55006", format!("it is active for PID {pid}")),
            None => ("42704", "it does not exist".to_owned()),
        };
        let words = format!("replication slot \"{name}\": {words}");
        wire::report(out, b'E', ("ERROR", code, &words));
    }
}

fn identify(state: &State, out: &mut BytesMut) {
    let timeline_type = match state.options.major {
        14 | 15 => wire::INT4,
        _ => wire::INT8,
    };
    let columns = [
        ("systemid", TEXT),
        ("timeline", timeline_type),
        ("xlogpos", TEXT),
        ("dbname", TEXT),
    ];
    wire::describe(out, &columns, 0);
    let system = state.options.system.to_string();
    let timeline = state.wal.timeline.to_string();
    let flushed = Lsn::new(state.wal.flushed).to_string();
    let values = [&*system, &timeline, &flushed, &state.options.database].map(Some);
    wire::texts(out, &values);
    wire::complete(out, "IDENTIFY_SYSTEM");
}

/// Where the timelines before this one ended.
fn history(state: &State, out: &mut BytesMut, timeline: u32) {
    let before = state.wal.history.iter();
    let before = before.filter(|(ended, _)| *ended < timeline);
    let lines = before.map(|(ended, at)| {
        let at = Lsn::new(*at);
        format!("{ended}\t{at}\tno recovery target specified\n")
    });
    let file: String = lines.collect();
    let name = format!("{timeline:08X}.history");
    wire::describe(out, &[("filename", TEXT), ("content", TEXT)], 0);
    wire::texts(out, &[Some(&name), Some(&file)]);
    wire::complete(out, "TIMELINE_HISTORY");
}

/// sql/confirmed_flush.sql.
fn position(state: &State, out: &mut BytesMut) {
    let columns = [
        ("confirmed_flush_lsn", wire::PG_LSN),
        ("?column?", wire::BOOL),
    ];
    wire::describe(out, &columns, 0);
    if let Some(slot) = &state.slot {
        let confirmed = Lsn::new(slot.now.confirmed).to_string();
        let used = if slot.used { "t" } else { "f" };
        wire::texts(out, &[Some(&confirmed), Some(used)]);
    }
    let rows = usize::from(state.slot.is_some());
    wire::complete(out, &format!("SELECT {rows}"));
}
