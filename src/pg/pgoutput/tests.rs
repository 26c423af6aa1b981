//! Claims about the decoder: on made-up messages and on hostile bytes. What real servers send is
//! in `golden.rs`.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::encode::{self, encode};
use super::*;

const INSERT: &[u8] = b"I\0\0\0\x07N\0\x02t\0\0\0\x02hin";

/// What generated messages are made of, since a message only borrows.
#[derive(Debug)]
struct Parts {
    numbers: (u64, u64, i64, u32),
    texts: (String, String),
    flags: (bool, bool),
    columns: Vec<(bool, String, u32, i32)>,
    rows: [Vec<(u8, Vec<u8>)>; 2],
}

fn parts() -> impl Strategy<Value = Parts> {
    let text = || "[^\\x00]{0,12}";
    let row = || vec((0..4_u8, vec(any::<u8>(), 0..24)), 0..6);
    let columns = vec((any::<bool>(), text(), any::<u32>(), any::<i32>()), 0..6);
    let scalars = (any::<(u64, u64, i64, u32)>(), any::<(bool, bool)>());
    (scalars, (text(), text()), columns, row(), row()).prop_map(
        |((numbers, flags), texts, columns, old, new)| Parts {
            numbers,
            texts,
            flags,
            columns,
            rows: [old, new],
        },
    )
}

fn values(row: &[(u8, Vec<u8>)]) -> Vec<TupleValue<'_>> {
    let value = |(kind, bytes)| match kind {
        0 => TupleValue::Null,
        1 => TupleValue::Unchanged,
        2 => TupleValue::Text(bytes),
        _ => TupleValue::Binary(bytes),
    };
    row.iter()
        .map(|(kind, bytes)| value((*kind, bytes.as_slice())))
        .collect()
}

/// One message of each kind, and of each variant of its parts.
fn for_each_message(parts: &Parts, check: impl Fn(&Message<'_>)) {
    let (commit_lsn, end_lsn) = (Lsn::new(parts.numbers.0), Lsn::new(parts.numbers.1));
    let (commit_time, xid) = (PgTime::new(parts.numbers.2), parts.numbers.3);
    let (namespace, name) = (parts.texts.0.as_str(), parts.texts.1.as_str());
    let bodies = parts.rows.each_ref().map(|row| {
        let mut body = Vec::new();
        encode::tuple(&mut body, &values(row));
        body
    });
    let [old, new] = bodies
        .each_ref()
        .map(|body| Tuple::read(&mut Reader::new(body)).unwrap());
    let oids: Vec<_> = parts
        .columns
        .iter()
        .map(|column| column.2.to_be_bytes())
        .collect();
    let olds = [OldTuple::Key(old), OldTuple::Full(old)];

    check(&Message::Begin {
        commit_lsn,
        commit_time,
        xid,
    });
    check(&Message::Commit {
        commit_lsn,
        end_lsn,
        commit_time,
    });
    check(&Message::Origin { commit_lsn, name });
    check(&Message::Type {
        oid: xid,
        namespace,
        name,
    });
    check(&Message::Insert {
        relation: xid,
        tuple: new,
    });
    check(&Message::Update {
        relation: xid,
        old: None,
        new,
    });
    for old in olds {
        check(&Message::Update {
            relation: xid,
            old: Some(old),
            new,
        });
        check(&Message::Delete { relation: xid, old });
    }
    check(&Message::Truncate {
        cascade: parts.flags.0,
        restart_identity: parts.flags.1,
        relations: Oids { oids: &oids },
    });
    check(&Message::Logical(LogicalMessage {
        transactional: parts.flags.0,
        lsn: end_lsn,
        prefix: name,
        content: bodies[0].as_slice(),
    }));
    let relation = relation(parts);
    check(&decode(&relation).unwrap());
}

fn relation(parts: &Parts) -> Vec<u8> {
    let relation = Relation {
        oid: parts.numbers.3,
        namespace: &parts.texts.0,
        name: &parts.texts.1,
        replica_identity: match parts.flags {
            (false, false) => ReplicaIdentity::Default,
            (false, true) => ReplicaIdentity::Nothing,
            (true, false) => ReplicaIdentity::Full,
            (true, true) => ReplicaIdentity::Index,
        },
        columns: Columns { len: 0, body: &[] },
    };
    encode::relation(&relation, &columns(parts))
}

fn columns(parts: &Parts) -> Vec<Column<'_>> {
    let columns = parts
        .columns
        .iter()
        .map(|(key, name, type_oid, typmod)| Column {
            key: *key,
            name,
            type_oid: *type_oid,
            typmod: *typmod,
        });
    columns.collect()
}

proptest! {
    #[test]
    fn a_message_survives_the_wire(parts in parts()) {
        for_each_message(&parts, |message| {
            assert_eq!(decode(&encode(message)).as_ref(), Ok(message));
        });
    }

    #[test]
    fn columns_are_read_as_written(parts in parts()) {
        let body = relation(&parts);
        let Ok(Message::Relation(relation)) = decode(&body) else { panic!("not a Relation") };
        prop_assert_eq!(relation.columns.iter().collect::<Vec<_>>(), columns(&parts));
        prop_assert_eq!(relation.columns.len(), parts.columns.len());
    }

    #[test]
    fn values_are_read_as_written(parts in parts()) {
        let values = values(&parts.rows[1]);
        let body = encode::insert(7, &values);
        let Ok(Message::Insert { tuple, .. }) = decode(&body) else { panic!("not an Insert") };
        prop_assert_eq!(tuple.iter().collect::<Vec<_>>(), values);
        prop_assert_eq!(tuple.len(), parts.rows[1].len());
    }

    #[test]
    fn every_strict_prefix_is_an_error(parts in parts()) {
        for_each_message(&parts, |message| {
            let body = encode(message);
            for len in 0..body.len() {
                let result = decode(&body[..len]);
                assert!(matches!(result, Err(DecodeError::Missing(_))), "{len}: {result:?}");
            }
        });
    }

    #[test]
    fn every_byte_too_many_is_an_error(parts in parts(), byte: u8) {
        for_each_message(&parts, |message| {
            let mut body = encode(message);
            body.push(byte);
            let result = decode(&body);
            assert!(matches!(result, Err(DecodeError::Trailing { bytes: 1, .. })), "{result:?}");
        });
    }

    #[test]
    fn what_decodes_from_arbitrary_bytes_encodes_to_them(
        tag in prop::sample::select(b"BCORYIUDTM".as_slice()),
        rest in vec(prop_oneof![0..4_u8, Just(b'N'), Just(b't'), any::<u8>()], 0..64),
    ) {
        let body = [&[tag], rest.as_slice()].concat();
        if let Ok(message) = decode(&body) {
            prop_assert_eq!(encode(&message), body);
        }
    }
}

#[test]
fn tags_of_streamed_and_prepared_transactions_are_unexpected() {
    for tag in *b"SEcAbPKrp" {
        assert_eq!(decode(&[tag]), Err(DecodeError::Unexpected(tag)));
    }
}

#[test]
fn unknown_tags_are_named() {
    assert_eq!(decode(b"Z"), Err(DecodeError::UnknownTag(b'Z')));
    assert_eq!(decode(b""), Err(DecodeError::Missing("tag")));
}

/// The position of a byte in a valid message, what it becomes, and the field that is then wrong.
#[test]
fn bytes_out_of_range_name_their_field() {
    let commit = [b"C".as_slice(), &[0; 25]].concat();
    let relation = b"R\0\0\0\x07s\0t\0d\0\x01\x01c\0\0\0\0\x19\0\0\0\0";
    let update = b"U\0\0\0\x07K\0\0N\0\0";
    let cases: [(&[u8], usize, u8, &str); 11] = [
        (&commit, 1, 1, "Commit.flags"),
        (relation, 9, b'x', "Relation.replica_identity"),
        (relation, 12, 3, "Relation.column.flags"),
        (INSERT, 5, b'O', "Insert.new"),
        (INSERT, 8, b'x', "Tuple.kind"),
        (update, 5, b'x', "Update.new"),
        (update, 8, b'K', "Update.new"),
        (b"D\0\0\0\x07K\0\0", 5, b'N', "Delete.old"),
        (b"T\0\0\0\0\0", 5, 4, "Truncate.options"),
        (b"M\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 1, 2, "Message.flags"),
        (b"M\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 1, 0x81, "Message.flags"),
    ];
    for (valid, place, value, field) in cases {
        assert!(decode(valid).is_ok(), "{field}");
        let mut body = valid.to_vec();
        body[place] = value;
        assert_eq!(
            decode(&body),
            Err(DecodeError::UnknownValue { field, value })
        );
    }
}

#[test]
fn negative_lengths_and_counts_name_their_field() {
    let negative = |body: &[u8], field| assert_eq!(decode(body), Err(DecodeError::Negative(field)));
    negative(b"I\0\0\0\x07N\xff\xff", "Tuple.columns");
    negative(b"I\0\0\0\x07N\0\x01t\x80\0\0\0", "Tuple.length");
    negative(b"R\0\0\0\x07s\0t\0d\x80\0", "Relation.columns");
    negative(b"T\xff\xff\xff\xff\0", "Truncate.relations");
    negative(b"M\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff", "Message.length");
}

#[test]
fn lengths_beyond_the_body_are_missing_bytes() {
    let missing = |body: &[u8], field| assert_eq!(decode(body), Err(DecodeError::Missing(field)));
    missing(b"I\0\0\0\x07N\0\x01t\x7f\xff\xff\xff", "Tuple.value");
    missing(b"T\x7f\xff\xff\xff\0", "Truncate.relations");
    missing(b"M\0\0\0\0\0\0\0\0\0\0\x7f\xff\xff\xff", "Message.content");
    missing(b"Y\0\0\0\x07s\0t", "Type.name");
}

#[test]
fn names_must_be_utf8() {
    let body = b"Y\0\0\0\x07s\0\xff\0";
    assert_eq!(decode(body), Err(DecodeError::NotUtf8("Type.name")));
}

#[test]
fn debug_shows_no_values() {
    let message = format!("{:?}", decode(INSERT).unwrap());
    assert_eq!(
        message,
        "Insert { relation: 7, tuple: [Text(2 bytes), Null] }"
    );
    let message = decode(b"M\0\0\0\0\0\0\0\0\0p\0\0\0\0\x02hi").unwrap();
    assert!(format!("{message:?}").contains("content: 2 bytes"));
}

#[test]
fn times_count_from_the_year_2000() {
    assert_eq!(PgTime::new(0).to_unix_micros(), 946_684_800_000_000);
    assert_eq!(PgTime::new(i64::MAX).to_unix_micros(), i64::MAX);
}

#[test]
fn errors_read_as_sentences() {
    let text = |error: DecodeError| error.to_string();
    assert_eq!(
        text(DecodeError::Missing("Relation.name")),
        "message ends before the end of Relation.name"
    );
    assert_eq!(
        text(DecodeError::Unexpected(b'S')),
        "message 'S' belongs to protocol version 2 or later"
    );
}
