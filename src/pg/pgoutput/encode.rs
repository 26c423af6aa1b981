//! Writes what the parent reads, for tests and fuzzing only: outjet itself never sends pgoutput.
//! Goes through the decoded fields, so that equal bytes prove that none was lost.

#![expect(clippy::unwrap_used, reason = "tests alone call it, with what fits")]

use super::{
    Column, LogicalMessage, Message, OldTuple, Relation, ReplicaIdentity, Tuple, TupleValue,
};

/// The body of one `XLogData` that holds `message`.
pub fn encode(message: &Message<'_>) -> Vec<u8> {
    let out = &mut Vec::new();
    match *message {
        Message::Begin {
            commit_lsn,
            commit_time,
            xid,
        } => {
            out.push(b'B');
            put(out, commit_lsn.as_u64().to_be_bytes());
            put(out, commit_time.as_micros().to_be_bytes());
            put(out, xid.to_be_bytes());
        }
        Message::Commit {
            commit_lsn,
            end_lsn,
            commit_time,
        } => {
            put(out, *b"C\0");
            put(out, commit_lsn.as_u64().to_be_bytes());
            put(out, end_lsn.as_u64().to_be_bytes());
            put(out, commit_time.as_micros().to_be_bytes());
        }
        Message::Origin { commit_lsn, name } => {
            out.push(b'O');
            put(out, commit_lsn.as_u64().to_be_bytes());
            string(out, name);
        }
        Message::Relation(relation) => return self::relation(&relation, &columns(&relation)),
        Message::Type {
            oid,
            namespace,
            name,
        } => {
            change(out, b'Y', oid);
            string(out, namespace);
            string(out, name);
        }
        Message::Insert { relation, tuple } => return insert(relation, &values(tuple)),
        Message::Update { relation, old, new } => {
            change(out, b'U', relation);
            if let Some(old) = old {
                old_tuple(out, old);
            }
            out.push(b'N');
            tuple(out, &values(new));
        }
        Message::Delete { relation, old } => {
            change(out, b'D', relation);
            old_tuple(out, old);
        }
        Message::Truncate {
            cascade,
            restart_identity,
            relations,
        } => {
            let count = i32::try_from(relations.iter().len()).unwrap();
            out.push(b'T');
            put(out, count.to_be_bytes());
            out.push(u8::from(cascade) | u8::from(restart_identity) << 1);
            relations.iter().for_each(|oid| put(out, oid.to_be_bytes()));
        }
        Message::Logical(message) => logical(out, &message),
    }
    std::mem::take(out)
}

/// The body of an Insert.
pub fn insert(relation: u32, values: &[TupleValue<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    change(&mut out, b'I', relation);
    out.push(b'N');
    tuple(&mut out, values);
    out
}

/// The body of a Relation with these columns instead of its own.
pub fn relation(relation: &Relation<'_>, columns: &[Column<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    change(&mut out, b'R', relation.oid);
    string(&mut out, relation.namespace);
    string(&mut out, relation.name);
    out.push(match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    put(
        &mut out,
        i16::try_from(columns.len()).unwrap().to_be_bytes(),
    );
    for column in columns {
        out.push(u8::from(column.key));
        string(&mut out, column.name);
        put(&mut out, column.type_oid.to_be_bytes());
        put(&mut out, column.typmod.to_be_bytes());
    }
    out
}

/// Appends a tuple.
pub(super) fn tuple(out: &mut Vec<u8>, values: &[TupleValue<'_>]) {
    put(out, i16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        match value {
            TupleValue::Null => out.push(b'n'),
            TupleValue::Unchanged => out.push(b'u'),
            TupleValue::Text(text) => {
                out.push(b't');
                sized(out, text);
            }
            TupleValue::Binary(bytes) => {
                out.push(b'b');
                sized(out, bytes);
            }
        }
    }
}

fn columns<'a>(relation: &Relation<'a>) -> Vec<Column<'a>> {
    let columns: Vec<_> = relation.columns.iter().collect();
    assert_eq!(columns.len(), relation.columns.len());
    columns
}

fn values(tuple: Tuple<'_>) -> Vec<TupleValue<'_>> {
    let values: Vec<_> = tuple.iter().collect();
    assert_eq!(values.len(), tuple.len());
    values
}

fn old_tuple(out: &mut Vec<u8>, old: OldTuple<'_>) {
    let (kind, old) = match old {
        OldTuple::Key(old) => (b'K', old),
        OldTuple::Full(old) => (b'O', old),
    };
    out.push(kind);
    tuple(out, &values(old));
}

fn logical(out: &mut Vec<u8>, message: &LogicalMessage<'_>) {
    put(out, [b'M', u8::from(message.transactional)]);
    put(out, message.lsn.as_u64().to_be_bytes());
    string(out, message.prefix);
    sized(out, message.content);
}

fn change(out: &mut Vec<u8>, tag: u8, oid: u32) {
    out.push(tag);
    put(out, oid.to_be_bytes());
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, i32::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N]) {
    out.extend_from_slice(&bytes);
}
