//! The queries that outjet asks by the extended protocol, found by their very text, and what this
//! server answers. Values are binary, as tokio-postgres wants them.

use bytes::{BufMut, Bytes, BytesMut};

use super::pgoutput::ROOT;
use super::row::COLUMNS;
use super::slot::Slot;
use super::state::State;
use super::wire::{self, BOOL, INT4, INT8, NAME, OID, PG_LSN, TEXT, TEXTS, TIMESTAMPTZ};

/// A statement that this server knows.
pub(super) struct Query {
    pub(super) text: &'static str,
    pub(super) parameters: &'static [u32],
    pub(super) columns: &'static [(&'static str, u32)],
    rows: fn(&State, &[Bytes], &mut Rows<'_>),
}

impl Query {
    /// The one with this text.
    pub(super) fn find(text: &str) -> Option<&'static Query> {
        QUERIES.iter().find(|query| query.text == text)
    }

    /// Answers it, and returns how many rows there are.
    pub(super) fn answer(&self, state: &State, values: &[Bytes], out: &mut BytesMut) -> usize {
        let mut rows = Rows { out, count: 0 };
        (self.rows)(state, values, &mut rows);
        rows.count
    }
}

/// DataRows on their way out.
struct Rows<'a> {
    out: &'a mut BytesMut,
    count: usize,
}

impl Rows<'_> {
    fn row<'a>(
        &mut self,
        values: impl IntoIterator<Item = Value<'a>, IntoIter: ExactSizeIterator>,
    ) {
        self.count += 1;
        wire::put(self.out, b'D', |out| {
            let values = values.into_iter();
            wire::put_count(out, values.len());
            values.for_each(|value| value.put(out));
        });
    }
}

/// A value in binary.
enum Value<'a> {
    Null,
    Bool(bool),
    Int4(i32),
    Int8(i64),
    Text(&'a str),
    Texts(&'a [&'a str]),
}

use Value::{Bool, Int4, Int8, Null, Text, Texts};

impl Value<'_> {
    fn lsn(lsn: u64) -> Self {
        Int8(lsn.cast_signed())
    }

    fn oid(oid: u32) -> Self {
        Int4(oid.cast_signed())
    }

    fn put(&self, out: &mut BytesMut) {
        match self {
            Null => wire::put_value(out, None),
            Bool(value) => wire::put_value(out, Some(&[u8::from(*value)])),
            Int4(value) => wire::put_value(out, Some(&value.to_be_bytes())),
            Int8(value) => wire::put_value(out, Some(&value.to_be_bytes())),
            Text(value) => wire::put_value(out, Some(value.as_bytes())),
            Texts(values) => put_array(out, values),
        }
    }
}

/// `array_send`: one dimension, no NULL.
fn put_array(out: &mut BytesMut, values: &[&str]) {
    let bytes: usize = values.iter().map(|value| 4 + value.len()).sum();
    let dimensions = u32::from(!values.is_empty());
    out.put_u32(u32::try_from(bytes).expect("short") + 12 + 8 * dimensions);
    out.put_u32(dimensions);
    out.put_u32(0);
    out.put_u32(TEXT);
    if dimensions == 1 {
        out.put_u32(u32::try_from(values.len()).expect("few"));
        out.put_u32(1);
    }
    values
        .iter()
        .for_each(|value| wire::put_value(out, Some(value.as_bytes())));
}

pub(super) const QUERIES: &[Query] = &[
    Query {
        text: include_str!("../../../sql/catalog/server.sql"),
        parameters: &[],
        columns: &[
            ("version_num", INT4),
            ("version", TEXT),
            ("database", TEXT),
            ("wal_level", TEXT),
            ("wal_level_pending_restart", BOOL),
            ("in_recovery", BOOL),
            ("current_lsn", PG_LSN),
            ("slots_max", INT4),
            ("slots_used", INT4),
            ("wal_senders_max", INT4),
            ("wal_senders_used", INT4),
            ("system_identifier", TEXT),
            ("role", TEXT),
            ("superuser", BOOL),
            ("replication", BOOL),
            ("rds_replication", BOOL),
            ("idle_slot_timeout", TEXT),
            ("anybody_emits", BOOL),
            ("schema_installed", BOOL),
            ("schema_owned", BOOL),
        ],
        rows: server,
    },
    Query {
        text: include_str!("../../../sql/catalog/slot.sql"),
        parameters: &[TEXT],
        columns: &[
            ("plugin", TEXT),
            ("slot_type", TEXT),
            ("database", TEXT),
            ("active", BOOL),
            ("active_pid", INT4),
            ("application_name", TEXT),
            ("client_addr", TEXT),
            ("holder_since", TEXT),
            ("wal_status", TEXT),
            ("invalidation_reason", TEXT),
            ("two_phase", BOOL),
            ("failover", BOOL),
            ("inactive_since", TIMESTAMPTZ),
            ("spill_txns", INT8),
            ("spill_bytes", INT8),
            ("stream_txns", INT8),
            ("stream_bytes", INT8),
            ("restart_lsn", PG_LSN),
            ("confirmed_flush_lsn", PG_LSN),
            ("safe_wal_size", INT8),
        ],
        rows: slot,
    },
    Query {
        text: include_str!("../../../sql/catalog/publication.sql"),
        parameters: &[TEXT],
        columns: &[
            ("all_tables", BOOL),
            ("insert", BOOL),
            ("via_root", BOOL),
            ("schemas", TEXTS),
            ("names", TEXTS),
        ],
        rows: publication,
    },
    Query {
        text: include_str!("../../../sql/catalog/table.sql"),
        parameters: &[TEXT, TEXT, TEXT],
        columns: &[
            ("oid", OID),
            ("kind", TEXT),
            ("persistence", TEXT),
            ("unlogged_partitions", TEXTS),
            ("may_delete", BOOL),
            ("published", BOOL),
            ("published_by_partition", BOOL),
            ("row_filter", TEXT),
            ("published_columns", TEXTS),
        ],
        rows: table,
    },
    Query {
        text: include_str!("../../../sql/catalog/columns.sql"),
        parameters: &[OID],
        columns: &[
            ("name", TEXT),
            ("type_oid", OID),
            ("type_name", TEXT),
            ("not_null", BOOL),
            ("generated", BOOL),
        ],
        rows: columns,
    },
    Query {
        text: include_str!("../../../sql/catalog/similar_tables.sql"),
        parameters: &[],
        columns: &[("schema", TEXT), ("name", TEXT)],
        rows: |state, _, rows| {
            if state.catalog.table {
                for name in ["events", "processed_messages", "schema_version"] {
                    rows.row([Text("outbox"), Text(name)]);
                }
            }
            rows.row([Text("public"), Text("business")]);
        },
    },
    Query {
        text: include_str!("../../../sql/catalog/standbys.sql"),
        parameters: &[TEXT, TEXT],
        columns: &[
            ("slots", TEXTS),
            ("inactive", TEXTS),
            ("synchronized", TEXT),
            ("copies", INT4),
        ],
        rows: standbys,
    },
    Query {
        text: include_str!("../../../sql/catalog/partitions.sql"),
        parameters: &[],
        columns: &[
            ("until", TEXT),
            ("short", BOOL),
            ("default_rows", INT8),
            ("may_turn", BOOL),
        ],
        rows: |state, _, rows| match state.catalog.table {
            true => rows.row([
                Text("2027-01-01 00:00:00+00"),
                Bool(false),
                Int8(0),
                Bool(true),
            ]),
            false => rows.row([Null, Null, Int8(0), Null]),
        },
    },
    Query {
        text: include_str!("../../../sql/catalog/leading.sql"),
        parameters: &[NAME],
        columns: &[
            ("confirmed", PG_LSN),
            ("standby", BOOL),
            ("flushed", PG_LSN),
            ("synchronous", BOOL),
        ],
        rows: leading,
    },
    Query {
        text: include_str!("../../../sql/catalog/slot_used.sql"),
        parameters: &[TEXT],
        columns: &[("?column?", BOOL)],
        rows: |state, values, rows| {
            if let Some(slot) = named(state, values) {
                rows.row([Bool(slot.used)]);
            }
        },
    },
];

/// The slot, if it has the name of the first parameter.
fn named<'a>(state: &'a State, values: &[Bytes]) -> Option<&'a Slot> {
    let ours = *values.first()? == state.options.slot;
    state.slot.as_ref().filter(|_| ours)
}

/// A minor version without known faults.
pub(super) fn version(major: u32) -> (i32, &'static str) {
    match major {
        14 => (140_023, "14.23"),
        15 => (150_018, "15.18"),
        16 => (160_014, "16.14"),
        17 => (170_011, "17.11"),
        _ => (180_006, "18.6"),
    }
}

fn server(state: &State, _: &[Bytes], rows: &mut Rows<'_>) {
    let (number, version) = version(state.options.major);
    let system = state.options.system.to_string();
    let walsenders = state.backends.values().filter(|backend| backend.walsender);
    let slots = state.catalog.standbys.len() + usize::from(state.slot.is_some());
    let count = |count: usize| Int4(i32::try_from(count).expect("few"));
    rows.row([
        Int4(number),
        Text(version),
        Text(&state.options.database),
        Text(&state.catalog.wal_level),
        Bool(false),
        Bool(state.catalog.in_recovery),
        Value::lsn(state.wal.flushed),
        Int4(10),
        count(slots),
        Int4(10),
        count(walsenders.count()),
        Text(&system),
        Text("outjet"),
        Bool(false),
        Bool(state.catalog.replication),
        Bool(false),
        Null,
        Bool(true),
        Bool(state.catalog.table),
        Bool(state.catalog.table),
    ]);
}

fn slot(state: &State, values: &[Bytes], rows: &mut Rows<'_>) {
    let Some(slot) = named(state, values) else {
        return;
    };
    let holder = slot.active_pid.and_then(|pid| state.backends.get(&pid));
    let since = holder.map(|holder| State::text(state.micros(holder.since)));
    let newer = |major: u32, value| match state.options.major >= major {
        true => value,
        false => Null,
    };
    let text = |value: Option<&'static str>| value.map_or(Null, Text);
    let inactive = match slot.active_pid {
        Some(_) => Null,
        None => Int8(state.micros(slot.inactive_since)),
    };
    rows.row([
        Text("pgoutput"),
        Text("logical"),
        Text(&state.options.database),
        Bool(slot.active_pid.is_some()),
        slot.active_pid.map_or(Null, Int4),
        holder.map_or(Null, |holder| Text(&holder.application)),
        Null,
        since.as_deref().map_or(Null, Text),
        Text(if slot.lost { "lost" } else { "reserved" }),
        newer(17, text(slot.lost.then_some("wal_removed"))),
        Bool(false),
        newer(17, Bool(state.catalog.failover)),
        newer(17, inactive),
        Int8(0),
        Int8(0),
        Int8(0),
        Int8(0),
        if slot.lost {
            Null
        } else {
            Value::lsn(slot.now.restart)
        },
        Value::lsn(slot.now.confirmed),
        Null,
    ]);
}

fn publication(state: &State, values: &[Bytes], rows: &mut Rows<'_>) {
    if !state.catalog.publication || values[0] != state.options.publication {
        return;
    }
    let published = state.catalog.published && state.catalog.table;
    let (schemas, names): (&[&str], &[&str]) = match published {
        true => (&["outbox"], &["events"]),
        false => (&[], &[]),
    };
    rows.row([
        Bool(false),
        Bool(true),
        Bool(true),
        Texts(schemas),
        Texts(names),
    ]);
}

fn table(state: &State, values: &[Bytes], rows: &mut Rows<'_>) {
    let named = values[0] == "outbox" && values[1] == "events";
    if !named || !state.catalog.table {
        return;
    }
    let catalog = &state.catalog;
    let published =
        catalog.publication && catalog.published && values[2] == state.options.publication;
    let names = COLUMNS.map(|column| column.name);
    let listed = state.options.major >= 15 && published;
    rows.row([
        Value::oid(ROOT),
        Text("p"),
        Text("p"),
        Texts(&[]),
        Bool(true),
        Bool(published),
        Bool(false),
        Null,
        if listed { Texts(&names) } else { Null },
    ]);
}

fn columns(state: &State, values: &[Bytes], rows: &mut Rows<'_>) {
    if values[0] != ROOT.to_be_bytes()[..] || !state.catalog.table {
        return;
    }
    for column in &COLUMNS {
        rows.row([
            Text(column.name),
            Value::oid(column.oid),
            Text(column.type_name),
            Bool(column.not_null),
            Bool(false),
        ]);
    }
}

fn standbys(state: &State, values: &[Bytes], rows: &mut Rows<'_>) {
    let holder = named(state, values).and_then(|slot| slot.active_pid);
    let name = String::from_utf8_lossy(&values[1]);
    let copies = state.backends.iter().filter(|(pid, backend)| {
        let ours = backend.walsender && backend.application.starts_with(&*name);
        ours && holder.is_some_and(|holder| holder != **pid)
    });
    let names: Vec<&str> = state.catalog.standbys.iter().map(String::as_str).collect();
    let synchronized = match state.options.major {
        17.. => names.join(","),
        _ => String::new(),
    };
    let copies = i32::try_from(copies.count()).expect("few");
    rows.row([Texts(&names), Texts(&[]), Text(&synchronized), Int4(copies)]);
}

fn leading(state: &State, values: &[Bytes], rows: &mut Rows<'_>) {
    let slot = named(state, values).filter(|slot| slot.active_pid.is_some());
    if let Some(slot) = slot {
        rows.row([
            Value::lsn(slot.now.confirmed),
            Bool(state.catalog.in_recovery),
            Value::lsn(state.wal.flushed),
            Bool(state.catalog.synchronous),
        ]);
    }
}
