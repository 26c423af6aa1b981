//! Messages of the frontend/backend protocol (protocol.sgml, "Message Formats").

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// `bool`, `int4`, … in `pg_type`.
pub(super) const BOOL: u32 = 16;
pub(super) const NAME: u32 = 19;
pub(super) const INT8: u32 = 20;
pub(super) const INT4: u32 = 23;
pub(super) const TEXT: u32 = 25;
pub(super) const OID: u32 = 26;
pub(super) const TEXTS: u32 = 1009;
pub(super) const TIMESTAMPTZ: u32 = 1184;
pub(super) const PG_LSN: u32 = 3220;

/// A complete message, or `None`.
pub(super) fn split(input: &mut BytesMut) -> Option<(u8, Bytes)> {
    let length = input.get(1..5)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    if input.len() <= length {
        return None;
    }
    let mut message = input.split_to(length + 1).freeze();
    let tag = message.get_u8();
    message.advance(4);
    Some((tag, message))
}

/// A message with what `body` writes.
pub(super) fn put(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len() - at).expect("messages are short");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// NUL-terminated.
pub(super) fn put_string(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

/// NUL-terminated; `None`: it is not.
pub(super) fn take_string(input: &mut Bytes) -> Option<String> {
    let length = input.iter().position(|&byte| byte == 0)?;
    let text = input.split_to(length);
    input.advance(1);
    String::from_utf8(text.into()).ok()
}

/// ErrorResponse ('E') or NoticeResponse ('N').
pub(super) fn report(out: &mut BytesMut, tag: u8, (severity, code, text): (&str, &str, &str)) {
    put(out, tag, |out| {
        for (field, value) in [
            (b'S', severity),
            (b'V', severity),
            (b'C', code),
            (b'M', text),
        ] {
            out.put_u8(field);
            put_string(out, value);
        }
        out.put_u8(0);
    });
}

/// ReadyForQuery, outside of a transaction.
pub(super) fn ready(out: &mut BytesMut) {
    put(out, b'Z', |out| out.put_u8(b'I'));
}

/// CommandComplete.
pub(super) fn complete(out: &mut BytesMut, command: &str) {
    put(out, b'C', |out| put_string(out, command));
}

/// RowDescription; `format`: 0 text, 1 binary.
pub(super) fn describe(out: &mut BytesMut, columns: &[(&str, u32)], format: u16) {
    put(out, b'T', |out| {
        put_count(out, columns.len());
        for (name, oid) in columns {
            put_string(out, name);
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(*oid);
            out.put_i16(-1);
            out.put_i32(-1);
            out.put_u16(format);
        }
    });
}

/// A DataRow of texts.
pub(super) fn texts(out: &mut BytesMut, values: &[Option<&str>]) {
    put(out, b'D', |out| {
        put_count(out, values.len());
        values
            .iter()
            .for_each(|value| put_value(out, value.map(str::as_bytes)));
    });
}

pub(super) fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u16(u16::try_from(count).expect("few"));
}

/// A value of a row, with its length.
pub(super) fn put_value(out: &mut BytesMut, value: Option<&[u8]>) {
    match value {
        None => out.put_i32(-1),
        Some(value) => {
            out.put_u32(u32::try_from(value.len()).expect("values are short"));
            out.put_slice(value);
        }
    }
}
