//! Writes what pgoutput's protocol version 1 says (proto.c). A body is made once, when its change
//! is written into the log, and copied whenever it is sent.

use bytes::{BufMut, Bytes, BytesMut};

use super::row::{COLUMNS, Row};

/// `outbox.events`, the root of the partitions.
pub(super) const ROOT: u32 = 16_400;

/// `outbox.events_default`: all rows are there.
pub(super) const PARTITION: u32 = 16_407;

/// Where a transaction stands, in its Begin and Commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) commit: u64,
    pub(super) end: u64,
    /// Microseconds since 2000.
    pub(super) time: i64,
    pub(super) xid: u32,
}

/// A transaction starts.
pub(super) fn begin(out: &mut BytesMut, place: Place) {
    out.put_u8(b'B');
    out.put_u64(place.commit);
    out.put_i64(place.time);
    out.put_u32(place.xid);
}

/// A transaction ends.
pub(super) fn commit(out: &mut BytesMut, place: Place) {
    out.put_slice(b"C\0");
    out.put_u64(place.commit);
    out.put_u64(place.end);
    out.put_i64(place.time);
}

/// The table.
pub(super) fn relation(out: &mut BytesMut, oid: u32) {
    out.put_u8(b'R');
    out.put_u32(oid);
    string(out, "outbox");
    string(
        out,
        if oid == ROOT {
            "events"
        } else {
            "events_default"
        },
    );
    out.put_u8(b'd');
    out.put_u16(16);
    for column in &COLUMNS {
        out.put_u8(column.key.into());
        string(out, column.name);
        out.put_u32(column.oid);
        out.put_i32(-1);
    }
}

/// A row, under the name of the root. `created_at`: where the row has none.
pub(super) fn insert(row: &Row, created_at: &str) -> Bytes {
    let values = row.values();
    let length: usize = values
        .iter()
        .map(|value| 5 + value.map_or(0, str::len))
        .sum();
    let mut out = BytesMut::with_capacity(length + 64);
    out.put_u8(b'I');
    out.put_u32(ROOT);
    out.put_u8(b'N');
    out.put_u16(16);
    for (column, value) in COLUMNS.iter().zip(values) {
        match value {
            Some(value) => text(&mut out, value),
            None if column.name == "created_at" => text(&mut out, created_at),
            None => out.put_u8(b'n'),
        }
    }
    out.freeze()
}

/// A logical message; `end`: of its record.
pub(super) fn message(transactional: bool, end: u64, (prefix, content): (&str, &[u8])) -> Bytes {
    let mut out = BytesMut::with_capacity(16 + prefix.len() + content.len());
    out.put_u8(b'M');
    out.put_u8(transactional.into());
    out.put_u64(end);
    string(&mut out, prefix);
    put_length(&mut out, content.len());
    out.put_slice(content);
    out.freeze()
}

fn text(out: &mut BytesMut, value: &str) {
    out.put_u8(b't');
    put_length(out, value.len());
    out.put_slice(value.as_bytes());
}

fn string(out: &mut BytesMut, value: &str) {
    out.put_slice(value.as_bytes());
    out.put_u8(0);
}

fn put_length(out: &mut BytesMut, length: usize) {
    out.put_u32(u32::try_from(length).expect("values are short"));
}
