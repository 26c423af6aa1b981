//! Claims about what real servers send: the frames of `tests/data/pgoutput`, which come from
//! `scripts/capture-frames.sql`.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::{fs, iter};

use super::encode::encode;
use super::*;

/// The tags in the order of the script, as 15 and later send them, one word per transaction.
const KINDS: &str = "BYYRIIIC BUC BUC BDC BRIUDC BRIUDC BRIC BRIC BRRIC BIIIC BYYRTC BYYRRTC \
                     BRIIC M BMIC BIRIC BOIC BMC";

/// The same for 14, which does not leave out the two transactions in which nothing is published.
const KINDS_14: &str = "BYYRIIIC BUC BUC BDC BRIUDC BRIUDC BRIC BRIC BRRIC BIIIC BYYRTC BYYRRTC \
                        BC BRIIC M BMIC BIRIC BC BOIC BMC";

/// What one server sent.
struct Capture {
    major: u32,
    kinds: Vec<&'static str>,
    frames: Vec<Vec<u8>>,
}

fn captures() -> [Capture; 5] {
    [
        (14, include_str!("../../../tests/data/pgoutput/14.hex")),
        (15, include_str!("../../../tests/data/pgoutput/15.hex")),
        (16, include_str!("../../../tests/data/pgoutput/16.hex")),
        (17, include_str!("../../../tests/data/pgoutput/17.hex")),
        (18, include_str!("../../../tests/data/pgoutput/18.hex")),
    ]
    .map(|(major, text)| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let (kinds, frames) = lines
            .map(|line| line.split_once(' ').unwrap())
            .map(|(kind, digits)| (kind, bytes(digits)))
            .unzip();
        Capture {
            major,
            kinds,
            frames,
        }
    })
}

fn bytes(digits: &str) -> Vec<u8> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty());
    let byte = |pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.iter().map(|pair| byte(pair)).collect()
}

impl Capture {
    fn messages(&self) -> Vec<Message<'_>> {
        self.frames
            .iter()
            .map(|frame| decode(frame).unwrap())
            .collect()
    }

    /// The Relations of this name, in order.
    fn relations(&self, wanted: &str) -> Vec<Relation<'_>> {
        let relations = self
            .messages()
            .into_iter()
            .filter_map(|message| match message {
                Message::Relation(relation) if relation.name == wanted => Some(relation),
                _ => None,
            });
        relations.collect()
    }

    /// The changes of this relation, in order, each as one line.
    fn changes(&self, name: &str) -> Vec<String> {
        let oid = self.relations(name).first().unwrap().oid;
        let changes = self
            .messages()
            .into_iter()
            .filter_map(|message| match message {
                Message::Insert { relation, tuple } if relation == oid => {
                    Some(format!("insert {}", row(tuple)))
                }
                Message::Update { relation, old, new } if relation == oid => Some(format!(
                    "update {}-> {}",
                    old.map(old_row).unwrap_or_default(),
                    row(new)
                )),
                Message::Delete { relation, old } if relation == oid => {
                    Some(format!("delete {}", old_row(old).trim_end()))
                }
                _ => None,
            });
        changes.collect()
    }
}

fn old_row(old: OldTuple<'_>) -> String {
    match old {
        OldTuple::Key(old) => format!("key {} ", row(old)),
        OldTuple::Full(old) => format!("full {} ", row(old)),
    }
}

fn row(tuple: Tuple<'_>) -> String {
    let values = tuple.iter().map(|value| match value {
        TupleValue::Null => "∅".into(),
        TupleValue::Unchanged => "=".into(),
        TupleValue::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        TupleValue::Binary(_) => panic!("nobody asked for binary values"),
    });
    values.collect::<Vec<_>>().join("|")
}

fn columns<'a>(relation: &Relation<'a>) -> Vec<(&'a str, bool)> {
    relation
        .columns
        .iter()
        .map(|column| (column.name, column.key))
        .collect()
}

#[test]
fn every_frame_decodes_to_its_kind_and_encodes_to_itself() {
    for capture in captures() {
        for (kind, frame) in iter::zip(&capture.kinds, &capture.frames) {
            let message = decode(frame).unwrap();
            let decoded = match message {
                Message::Begin { .. } => "Begin",
                Message::Commit { .. } => "Commit",
                Message::Origin { .. } => "Origin",
                Message::Relation(_) => "Relation",
                Message::Type { .. } => "Type",
                Message::Insert { .. } => "Insert",
                Message::Update { .. } => "Update",
                Message::Delete { .. } => "Delete",
                Message::Truncate { .. } => "Truncate",
                Message::Logical(_) => "Message",
            };
            assert_eq!(decoded, *kind, "{}", capture.major);
            assert_eq!(encode(&message), *frame, "{}: {message:?}", capture.major);
        }
    }
}

#[test]
fn every_strict_prefix_of_a_frame_is_an_error() {
    for frame in captures().iter().flat_map(|capture| &capture.frames) {
        for len in 0..frame.len() {
            let result = decode(frame.get(..len).unwrap());
            assert!(
                matches!(result, Err(DecodeError::Missing(_))),
                "{len}: {result:?}"
            );
        }
    }
}

#[test]
fn only_version_14_sends_empty_transactions() {
    for capture in captures() {
        let tags: Vec<u8> = capture
            .frames
            .iter()
            .filter_map(|frame| frame.first().copied())
            .collect();
        let kinds = if capture.major == 14 { KINDS_14 } else { KINDS };
        assert_eq!(
            String::from_utf8(tags).unwrap(),
            kinds.replace(' ', ""),
            "{}",
            capture.major
        );
    }
}

#[test]
fn transactions_come_whole_and_in_commit_order() {
    for capture in captures() {
        let (mut last, mut open) = (Lsn::ZERO, None);
        for message in capture.messages() {
            match message {
                Message::Begin {
                    commit_lsn,
                    commit_time,
                    ..
                } => {
                    assert!(commit_lsn >= last);
                    assert_eq!(open.replace((commit_lsn, commit_time)), None);
                }
                Message::Commit {
                    commit_lsn,
                    end_lsn,
                    commit_time,
                } => {
                    assert_eq!(open.take(), Some((commit_lsn, commit_time)));
                    assert!(end_lsn > commit_lsn);
                    last = end_lsn;
                }
                Message::Logical(message) => assert_eq!(open.is_some(), message.transactional),
                _ => assert!(open.is_some()),
            }
        }
        assert_eq!(open, None);
    }
}

#[test]
fn values_come_in_their_text_form() {
    for capture in captures() {
        let zeds = "z".repeat(2100);
        let expected = [
            r#"insert 1|line
break|\x00ff|{"a": [null], "b": 1}|über|x|12.50"#,
            "insert -2|∅|∅|∅|∅|∅|∅",
            &format!(r#"insert 3|{zeds}|\x|"text"|calm|y|NaN"#),
            r#"update -> 3|=|\x|"text"|calm|y|1.00"#,
            r#"update key 1|∅|∅|∅|∅|∅|∅ -> 4|line
break|\x00ff|{"a": [null], "b": 1}|über|x|12.50"#,
            "delete key 4|∅|∅|∅|∅|∅|∅",
        ];
        assert_eq!(capture.changes("kinds"), expected, "{}", capture.major);
    }
}

#[test]
fn only_what_was_committed_comes_in_the_shape_it_then_had() {
    for capture in captures() {
        let expected = [
            "insert 1|∅",
            "update full 1|∅ -> 1|new",
            "delete full 1|new",
            "insert 1|one",
            "insert 2|∅",
            "insert 3|three",
            "insert 10|kept",
            "insert 12|kept",
            "insert 14|after a message",
            "insert 15|two columns",
            "insert 16|three columns|t",
        ];
        assert_eq!(
            capture.changes("full_identity"),
            expected,
            "{}",
            capture.major
        );
        let relations = capture.relations("full_identity");
        let widths: Vec<_> = relations
            .iter()
            .map(|relation| relation.columns.len())
            .collect();
        assert_eq!(widths, [2, 2, 2, 3], "{}", capture.major);
    }
}

#[test]
fn each_replica_identity_is_told() {
    for capture in captures() {
        let identity = |name| capture.relations(name).first().unwrap().replica_identity;
        assert_eq!(identity("kinds"), ReplicaIdentity::Default);
        assert_eq!(identity("full_identity"), ReplicaIdentity::Full);
        assert_eq!(identity("index_identity"), ReplicaIdentity::Index);
        assert_eq!(identity("no_identity"), ReplicaIdentity::Nothing);
        let index = capture.relations("index_identity");
        assert_eq!(
            columns(index.first().unwrap()),
            [("id", false), ("code", true)]
        );
        let expected = [
            "insert 1|a",
            "update key ∅|a -> 1|b",
            "delete key ∅|b",
            "insert 2|replicated",
        ];
        assert_eq!(
            capture.changes("index_identity"),
            expected,
            "{}",
            capture.major
        );
    }
}

#[test]
fn odd_names_and_tables_without_columns_are_legal() {
    for capture in captures() {
        let odd = capture.relations("no_identity");
        assert_eq!(columns(odd.first().unwrap()), [("Odd \"name", false)]);
        assert_eq!(capture.changes("no_identity"), ["insert "]);
        assert!(
            capture
                .relations("no_columns")
                .first()
                .unwrap()
                .columns
                .is_empty()
        );
        assert_eq!(capture.changes("no_columns"), ["insert "]);
    }
}

#[test]
fn a_row_of_a_partition_comes_as_a_row_of_the_root() {
    for capture in captures() {
        let (root, leaf) = (
            capture.relations("parted"),
            capture.relations("parted_2026"),
        );
        assert_eq!(
            columns(root.first().unwrap()),
            [("id", true), ("day", true)]
        );
        assert_eq!(
            columns(leaf.first().unwrap()),
            [("day", true), ("id", true)]
        );
        assert_eq!(capture.changes("parted"), ["insert 7|2026-03-01"]);
        assert!(capture.changes("parted_2026").is_empty());
    }
}

#[test]
fn column_types_are_told_and_a_domain_goes_by_its_base_type() {
    for capture in captures() {
        let messages = capture.messages();
        let types = messages.iter().filter_map(|message| match *message {
            Message::Type {
                oid,
                namespace,
                name,
            } => Some((oid, namespace, name)),
            _ => None,
        });
        let types: Vec<_> = types.take(2).collect();
        let [(mood, "golden", "mood"), (code, "", "text")] = *types else {
            panic!("{types:?}")
        };
        let kinds = capture.relations("kinds");
        let columns = kinds.first().unwrap().columns.iter();
        let types: Vec<_> = columns
            .map(|column| (column.type_oid, column.typmod))
            .collect();
        // The oids of pg_type.dat; numeric(10, 2) is 4 more than 10 << 16 | 2.
        let (int8, text, bytea, jsonb, numeric) = (20, 25, 17, 3802, 1700);
        let plain = [int8, text, bytea, jsonb, mood, code].map(|oid| (oid, -1));
        assert_eq!(types, [plain.as_slice(), &[(numeric, 0xA_0006)]].concat());
    }
}

#[test]
fn truncates_name_their_tables_and_options() {
    for capture in captures() {
        let oid = |name| capture.relations(name).first().unwrap().oid;
        let (kinds, full) = (oid("kinds"), oid("full_identity"));
        let truncates = capture
            .messages()
            .into_iter()
            .filter_map(|message| match message {
                Message::Truncate {
                    cascade,
                    restart_identity,
                    relations,
                } => Some((cascade, restart_identity, relations.iter().collect())),
                _ => None,
            });
        let expected = [(false, false, vec![kinds]), (true, true, vec![kinds, full])];
        assert_eq!(truncates.collect::<Vec<_>>(), expected, "{}", capture.major);
    }
}

#[test]
fn a_replicated_transaction_bears_its_origin_and_the_time_there() {
    for capture in captures() {
        let messages = capture.messages();
        let origin = messages
            .iter()
            .position(|message| matches!(message, Message::Origin { .. }));
        let around = messages.get(origin.unwrap() - 1..).unwrap();
        let [
            Message::Begin { commit_time, .. },
            Message::Origin { commit_lsn, name },
            ..,
        ] = *around
        else {
            panic!("{around:?}");
        };
        assert_eq!(
            (commit_lsn, name),
            ("16/B374D848".parse().unwrap(), "elsewhere")
        );
        // 2020-01-02 03:04:05.678901 UTC.
        assert_eq!(commit_time.to_unix_micros(), 1_577_934_245_678_901);
    }
}

#[test]
fn logical_messages_come_with_and_without_a_transaction() {
    for capture in captures() {
        let messages = capture
            .messages()
            .into_iter()
            .filter_map(|message| match message {
                Message::Logical(message) => {
                    Some((message.transactional, message.prefix, message.content))
                }
                _ => None,
            });
        let expected: [(_, _, &[u8]); 3] = [
            (false, "signal", b"\x00\xff"),
            (true, "outbox.orders", b"{\"id\": 1}"),
            (true, "the end", b""),
        ];
        assert_eq!(messages.collect::<Vec<_>>(), expected, "{}", capture.major);
    }
}

#[test]
fn what_once_broke_the_decoder_no_longer_does() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pgoutput/regressions");
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let body = fs::read(entry.unwrap().path()).unwrap();
        if let Ok(message) = decode(&body) {
            assert_eq!(encode(&message), body);
        }
    }
}
