//! Claims about rows and the events that become of them, on the bytes that a server would send.

mod headers;
mod mapped;
mod messages;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::event::mapping::tests::described;
use crate::event::mapping::{Columns, Origin, Preset};
use crate::pg::pgoutput::encode::{self, encode};
use crate::pg::pgoutput::{LogicalMessage, TupleValue};

const ID: &str = "0b5e3a52-5f2e-4d6e-8f4f-6a6d7f0c1d2e";
const UUID: u32 = 2950;
const TIMESTAMPTZ: u32 = 1184;
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;
const XML: u32 = 142;

/// The oid by which the outbox is described.
const OUTBOX: u32 = 16_400;

/// 2026-11-21 05:26:15.5 UTC.
const COMMITTED: PgTime = PgTime::new(848_553_975_500_000);

/// `outbox.events` as `sql/install.sql` makes it.
const COLUMNS: Columns<'static> = &[
    ("id", UUID),
    ("created_at", TIMESTAMPTZ),
    ("aggregatetype", TEXT),
    ("aggregateid", TEXT),
    ("type", TEXT),
    ("payload", JSONB),
    ("payload_raw", BYTEA),
    ("content_type", TEXT),
    ("topic", TEXT),
    ("headers", JSONB),
    ("tenant_id", TEXT),
    ("correlation_id", TEXT),
    ("traceparent", TEXT),
    ("dedup_key", TEXT),
];

/// What a row holds where a test says nothing else.
const ROW: &[(&str, &[u8])] = &[
    ("id", ID.as_bytes()),
    ("created_at", b"2026-11-21 05:26:15.123456+00"),
    ("aggregatetype", b"order"),
    ("aggregateid", b"42"),
    ("type", b"placed"),
    ("payload", br#"{"total": 9.5}"#),
];

type Values<'a> = &'a [(&'a str, Option<&'a [u8]>)];

fn options() -> Options {
    Options {
        tables: vec![Preset::Native.mapping("outbox", "events")],
        prefixes: vec!["outbox".to_owned()],
        subject: Options::default_subject().unwrap(),
        routes: Vec::new(),
        subject_prefix: None,
        format: Format::CloudEvents,
        source: None,
        database: "app".to_owned(),
        slot: "outjet".to_owned(),
    }
}

/// A server that sends what it is told, and outjet's end of it.
struct Server {
    assembler: Assembler,
    columns: Vec<(String, u32)>,
    commits: u64,
}

impl Server {
    /// With a transaction open and the outbox described.
    fn new(options: Options) -> Self {
        let mut server = Self::silent(options);
        server.begin();
        server.describe(COLUMNS);
        server
    }

    /// With a transaction open and no table described.
    fn new_undescribed(options: &Options) -> Self {
        let mut server = Self::silent(options.clone());
        server.begin();
        server
    }

    fn silent(options: Options) -> Self {
        Self {
            assembler: Assembler::new(options),
            columns: Vec::new(),
            commits: 0,
        }
    }

    fn send(&mut self, body: Vec<u8>) -> Result<Step, AssembleError> {
        self.assembler.take(&Bytes::from(body))
    }

    fn begin(&mut self) {
        self.commits += 1;
        let begin = begin_at(self.commits * 0x100);
        assert!(matches!(self.send(begin), Ok(Step::Begin(_))));
    }

    fn commit(&mut self) {
        let at = self.commits * 0x100;
        let commit = self.send(commit_at(at, at + 8));
        assert_eq!(commit, Ok(Step::Commit(Lsn::new(at + 8))));
    }

    fn describe(&mut self, columns: Columns<'_>) {
        let relation = described(OUTBOX, ("outbox", "events"), columns);
        assert_eq!(self.send(relation), Ok(Step::Nothing));
        let owned = columns.iter().map(|(name, oid)| ((*name).to_owned(), *oid));
        self.columns = owned.collect();
    }

    fn insert(&mut self, values: Values<'_>) -> Result<Step, AssembleError> {
        let value = |name: &str| {
            let said = values.iter().find(|(column, _)| *column == name);
            let usual = || ROW.iter().find(|(column, _)| *column == name);
            said.map_or_else(|| usual().map(|(_, text)| *text), |(_, text)| *text)
        };
        let row: Vec<_> = self
            .columns
            .iter()
            .map(|(name, _)| value(name).map_or(TupleValue::Null, TupleValue::Text))
            .collect();
        self.send(encode::insert(OUTBOX, &row))
    }

    fn event(&mut self, values: Values<'_>) -> Event {
        match self.insert(values) {
            Ok(Step::Event(event)) => event,
            other => panic!("no event: {other:?}"),
        }
    }

    fn rejection(&mut self, values: Values<'_>) -> Rejection {
        match self.insert(values) {
            Ok(Step::Rejected(rejection)) => *rejection,
            other => panic!("no rejection: {other:?}"),
        }
    }
}

fn server() -> Server {
    Server::new(options())
}

fn begin_at(commit: u64) -> Vec<u8> {
    encode(&Message::Begin {
        commit_lsn: Lsn::new(commit),
        commit_time: COMMITTED,
        xid: 7,
    })
}

fn commit_at(commit: u64, end: u64) -> Vec<u8> {
    encode(&Message::Commit {
        commit_lsn: Lsn::new(commit),
        end_lsn: Lsn::new(end),
        commit_time: COMMITTED,
    })
}

/// A message that is none of ours.
fn logical(transactional: bool) -> Vec<u8> {
    emitted(transactional, ("heartbeat", b"x"))
}

fn emitted(transactional: bool, (prefix, content): (&str, &[u8])) -> Vec<u8> {
    encode(&Message::Logical(LogicalMessage {
        transactional,
        lsn: Lsn::new(1),
        prefix,
        content,
    }))
}

/// An Update of the outbox, made of an Insert's tuple.
fn update() -> Vec<u8> {
    let mut update = encode::insert(OUTBOX, &[TupleValue::Null]);
    update[0] = b'U';
    update
}

fn headers_of(event: &Event) -> Vec<(&str, &str)> {
    event.headers.iter().collect()
}

#[test]
fn row_becomes_an_event_with_the_attributes_of_cloudevents() {
    let event = server().event(&[
        ("tenant_id", Some(b"acme")),
        ("correlation_id", Some(b"c1")),
    ]);
    assert_eq!(event.id, ID);
    assert_eq!(event.subject, "events.order.placed");
    assert_eq!(event.payload, br#"{"total": 9.5}"#[..]);
    assert_eq!(event.position.to_string(), "0000000000000100-00000000");
    let wanted = [
        ("ce-specversion", "1.0"),
        ("ce-id", ID),
        ("ce-source", "/app/outbox.events"),
        ("ce-type", "placed"),
        ("ce-subject", "42"),
        ("ce-time", "2026-11-21T05:26:15.123456Z"),
        ("ce-recordedtime", "2026-11-21T05:26:15.5Z"),
        ("ce-datacontenttype", "application/json"),
        ("ce-correlationid", "c1"),
        ("ce-tenantid", "acme"),
        ("ce-partitionkey", "order:42"),
    ];
    assert_eq!(headers_of(&event), wanted);
}

#[test]
fn positions_count_everything_the_slot_sends_whatever_is_mapped() {
    let mut server = server();
    let index = |server: &mut Server| server.event(&[]).position.index;
    assert_eq!(index(&mut server), 0);
    assert_eq!(server.send(update()), Ok(Step::Nothing));
    assert_eq!(server.send(logical(true)), Ok(Step::Nothing));
    assert_eq!(index(&mut server), 3);
    server.rejection(&[("id", None)]);
    assert_eq!(index(&mut server), 5);
    // Neither a description nor what belongs to no transaction is a row or a message of one.
    server.describe(COLUMNS);
    assert_eq!(server.send(logical(false)), Ok(Step::Nothing));
    assert_eq!(index(&mut server), 6);
    server.commit();
    server.begin();
    let event = server.event(&[]);
    assert_eq!(event.position.to_string(), "0000000000000200-00000000");
    let passed = Passed {
        headers: 0,
        messages: 2,
        loose_messages: 0,
        changes: 1,
    };
    assert_eq!(server.assembler.passed(), passed);
}

#[test]
fn origin_and_type_say_nothing_about_events() {
    let mut server = server();
    let origin = encode(&Message::Origin {
        commit_lsn: Lsn::new(1),
        name: "elsewhere",
    });
    let named = encode(&Message::Type {
        oid: 1,
        namespace: "public",
        name: "mood",
    });
    assert_eq!(server.send(origin), Ok(Step::Nothing));
    assert_eq!(server.send(named), Ok(Step::Nothing));
    assert_eq!(server.event(&[]).position.index, 0);
}

#[test]
fn message_outside_a_transaction_is_out_of_turn_unless_it_is_none_of_one() {
    let out_of_turn = |what| Err(AssembleError::OutOfTurn(what));
    let mut server = Server::silent(options());
    server.describe(COLUMNS);
    assert_eq!(server.send(logical(false)), Ok(Step::Nothing));
    assert_eq!(server.insert(&[]), out_of_turn("Insert"));
    assert_eq!(server.send(update()), out_of_turn("a change"));
    let transactional = server.send(logical(true));
    assert_eq!(transactional, out_of_turn("a transactional message"));
    assert_eq!(server.send(commit_at(8, 16)), out_of_turn("Commit"));
}

#[test]
fn transactions_neither_overlap_nor_go_back() {
    let out_of_turn = |what| Err(AssembleError::OutOfTurn(what));
    let mut server = Server::silent(options());
    server.begin();
    assert_eq!(server.send(begin_at(0x200)), out_of_turn("Begin"));
    // Another transaction's commit, and one that ends before it begins.
    assert_eq!(server.send(commit_at(0x200, 0x208)), out_of_turn("Commit"));
    let mut server = Server::silent(options());
    server.begin();
    assert_eq!(server.send(commit_at(0x100, 0x100)), out_of_turn("Commit"));
    let mut server = Server::silent(options());
    server.begin();
    server.commit();
    assert_eq!(server.send(begin_at(0x100)), out_of_turn("Begin"));
    assert_eq!(server.send(begin_at(0xff)), out_of_turn("Begin"));
    assert!(matches!(server.send(begin_at(0x101)), Ok(Step::Begin(_))));
}

#[test]
fn what_cannot_be_decoded_ends_the_stream() {
    let error = server().send(b"Z".to_vec()).unwrap_err();
    assert_eq!(error, AssembleError::Decode(DecodeError::UnknownTag(b'Z')));
    assert_eq!(error.to_string(), "decode a pgoutput message");
}

#[test]
fn row_of_a_table_that_was_not_described_or_not_configured_is_refused() {
    let mut server = Server::silent(options());
    server.begin();
    let insert = || encode::insert(OUTBOX, &[TupleValue::Null]);
    let undescribed = server.send(insert()).unwrap_err();
    assert_eq!(undescribed, AssembleError::Undescribed(OUTBOX));
    // The same name in another schema is another table.
    let other = described(OUTBOX, ("public", "events"), &[("id", UUID)]);
    assert_eq!(server.send(other), Ok(Step::Nothing));
    let unmapped = server.send(insert()).unwrap_err();
    assert_eq!(
        unmapped,
        AssembleError::Unmapped("public.events".to_owned())
    );
}

#[test]
fn row_that_does_not_fit_its_description_ends_the_stream() {
    let mut server = server();
    let short = encode::insert(OUTBOX, &[TupleValue::Text(ID.as_bytes())]);
    let wanted = Err(AssembleError::Row("outbox.events".to_owned()));
    assert_eq!(server.send(short), wanted);
    let unchanged = vec![TupleValue::Unchanged; COLUMNS.len()];
    assert_eq!(server.send(encode::insert(OUTBOX, &unchanged)), wanted);
}

#[test]
fn column_that_comes_or_moves_in_mid_stream_changes_nothing() {
    let mut server = server();
    let before = server.event(&[]);
    let mut columns = COLUMNS.to_vec();
    columns.reverse();
    columns.insert(0, ("note", TEXT));
    server.describe(&columns);
    let after = server.event(&[("note", Some(b"ignored"))]);
    assert_eq!(before.headers, after.headers);
    assert_eq!(before.payload, after.payload);
    assert_eq!(after.position.index, 1);
}

#[test]
fn column_that_is_renamed_in_mid_stream_ends_it() {
    let mut server = server();
    server.event(&[]);
    let mut columns = COLUMNS.to_vec();
    columns[5].0 = "body";
    let relation = described(OUTBOX, ("outbox", "events"), &columns);
    let Err(AssembleError::Mapping(error)) = server.send(relation) else {
        panic!("the mapping still fits");
    };
    assert_eq!((&*error.column, &*error.field), ("payload", "payload"));
    assert!(error.found.contains("type, body, payload_raw"), "{error}");
}

#[test]
fn partition_is_described_beside_its_root_and_sends_no_rows() {
    let mut server = server();
    let partition = described(9, ("outbox", "events_20261121"), COLUMNS);
    assert_eq!(server.send(partition), Ok(Step::Nothing));
    assert_eq!(server.event(&[]).subject, "events.order.placed");
    let row = server.send(encode::insert(9, &[TupleValue::Null]));
    let table = "outbox.events_20261121".to_owned();
    assert_eq!(row, Err(AssembleError::Unmapped(table)));
}

#[test]
fn topic_goes_before_the_template_unless_it_is_null_or_empty() {
    let mut server = server();
    let mut subject = |topic| server.event(&[("topic", topic)]).subject;
    assert_eq!(subject(Some(b"user.created")), "user.created");
    assert_eq!(subject(None), "events.order.placed");
    assert_eq!(subject(Some("a b.ü.>".as_bytes())), "a_b._._");
    assert_eq!(subject(Some(b"$JS.API")), "_JS.API");
    assert_eq!(subject(Some(b"")), "events.order.placed");
    assert_eq!(subject(Some(b" ")), "_");
}

#[test]
fn empty_and_null_values_hold_their_place_in_the_subject() {
    let event = server().event(&[("aggregatetype", None), ("type", Some(b""))]);
    assert_eq!(event.subject, "events._._");
    assert_eq!(event.headers.find("ce-type"), None);
    assert_eq!(event.headers.find("ce-partitionkey"), None);
}

#[test]
fn first_route_that_matches_decides() {
    let mut options = options();
    let route = |pattern, to| Route::parse(pattern, to).unwrap();
    options.routes = vec![
        route("events.order.*", "prod.orders.{1}"),
        route("events.>", "late.{1}"),
    ];
    let mut server = Server::new(options);
    assert_eq!(server.event(&[]).subject, "prod.orders.placed");
    let user = server.event(&[("aggregatetype", Some(b"user"))]);
    assert_eq!(user.subject, "late.user.placed");
    assert_eq!(server.event(&[("topic", Some(b"x"))]).subject, "x");
}

#[test]
fn subject_that_no_server_takes_is_a_rejection() {
    let long = vec![b'a'; crate::event::route::SUBJECT_BYTES_MAX + 1];
    let mut server = server();
    let rejection = server.rejection(&[("topic", Some(&long))]);
    assert!(matches!(rejection.reason, Reason::Subject { .. }));
    assert!(rejection.to_string().contains("longer than 1024 bytes"));
    let fits = server.event(&[("topic", Some(&long[1..]))]);
    assert_eq!(fits.subject.len(), crate::event::route::SUBJECT_BYTES_MAX);
}

#[test]
fn row_without_id_is_rejected_with_its_place() {
    for id in [None, Some(b"".as_slice()), Some(b"   ")] {
        let rejection = server().rejection(&[("id", id)]);
        assert_eq!(rejection.reason, Reason::NoId);
        let words = rejection.to_string();
        assert!(
            words.ends_with(
                "of outbox.events at 0000000000000100-00000000: its id is NULL or empty"
            ),
            "{words}"
        );
    }
}

#[test]
fn uuid_is_the_message_id_and_other_ids_bear_their_table() {
    let mut server = server();
    let mut id = |id: &str| server.event(&[("id", Some(id.as_bytes()))]).id;
    assert_eq!(id(ID), ID);
    assert_eq!(id(&ID.to_uppercase()), ID.to_uppercase());
    assert_eq!(id("42"), "outbox.events:42");
    for almost in [&ID[1..], &ID.replace('-', "0"), &ID.replace('e', "g")] {
        assert_eq!(id(almost), format!("outbox.events:{almost}"));
    }
}

#[test]
fn padding_of_an_id_is_no_part_of_the_message_id() {
    let event = server().event(&[("id", Some(b"K-7   "))]);
    assert_eq!(event.id, "outbox.events:K-7");
    assert_eq!(event.headers.find("ce-id"), Some("K-7%20%20%20"));
}

#[test]
fn body_is_a_slice_of_the_frame() {
    let mut server = server();
    let values: Vec<_> = COLUMNS
        .iter()
        .map(|(name, _)| ROW.iter().find(|(column, _)| column == name))
        .map(|value| value.map_or(TupleValue::Null, |(_, text)| TupleValue::Text(text)))
        .collect();
    let frame = Bytes::from(encode::insert(OUTBOX, &values));
    let Ok(Step::Event(event)) = server.assembler.take(&frame) else {
        panic!("no event");
    };
    let place = |bytes: &Bytes| bytes.as_ptr() as usize..bytes.as_ptr() as usize + bytes.len();
    assert!(place(&frame).contains(&place(&event.payload).start));
    assert!(place(&frame).end >= place(&event.payload).end);
}

#[test]
fn no_payload_is_an_empty_body_without_a_media_type() {
    let event = server().event(&[("payload", None)]);
    assert_eq!(event.payload, Bytes::new());
    assert_eq!(event.headers.find("ce-datacontenttype"), None);
}

#[test]
fn two_payloads_are_a_rejection() {
    let rejection = server().rejection(&[("payload_raw", Some(b"\\x00"))]);
    assert_eq!(rejection.reason, Reason::TwoPayloads);
    assert_eq!(rejection.id, ID);
}

#[test]
fn bytea_is_sent_as_its_bytes_whatever_they_are() {
    let all: Vec<u8> = (0..=255).collect();
    for digits in ["0123456789abcdef", "0123456789ABCDEF"] {
        let digit = |half: u8| digits.as_bytes()[usize::from(half)];
        let mut hex = b"\\x".to_vec();
        hex.extend(
            all.iter()
                .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]),
        );
        let event = server().event(&[("payload", None), ("payload_raw", Some(&hex))]);
        assert_eq!(event.payload, all);
        let media_type = event.headers.find("ce-datacontenttype");
        assert_eq!(media_type, Some("application/octet-stream"));
    }
    let empty = server().event(&[("payload", None), ("payload_raw", Some(b"\\x"))]);
    assert_eq!(empty.payload, Bytes::new());
}

#[test]
fn bytea_in_another_format_is_a_rejection() {
    for text in [
        "", "\\", "00", "\\X00", "\\x0", "\\x000", "\\xg0", "\\x0 ", "\\000abc",
    ] {
        let values: Values = &[("payload", None), ("payload_raw", Some(text.as_bytes()))];
        let reason = server().rejection(values).reason;
        assert_eq!(reason, Reason::Bytea("payload_raw"), "{text:?}");
    }
}

#[test]
fn media_type_is_the_rows_or_follows_from_the_column() {
    let given = server().event(&[("content_type", Some(b"application/avro"))]);
    assert_eq!(
        given.headers.find("ce-datacontenttype"),
        Some("application/avro")
    );
    let suggested = [
        (JSON, Some("application/json")),
        (XML, Some("application/xml")),
        (TEXT, Some("text/plain")),
        (VARCHAR, Some("text/plain")),
        (UUID, None),
    ];
    for (type_oid, wanted) in suggested {
        let mut columns = COLUMNS.to_vec();
        columns[5].1 = type_oid;
        let mut server = server();
        server.describe(&columns);
        assert_eq!(server.event(&[]).headers.find("ce-datacontenttype"), wanted);
    }
}

#[test]
fn constant_body_is_sent_with_every_row() {
    let mut options = options();
    let mut mapping = Mapping::new("outbox", "events");
    mapping.set(Field::Id, Origin::Column("id".to_owned()));
    mapping.set(Field::Payload, Origin::Constant("tick".to_owned()));
    options.tables = vec![mapping];
    let event = Server::new(options).event(&[]);
    assert_eq!(event.payload, "tick");
    assert_eq!(event.headers.find("ce-datacontenttype"), None);
}

#[test]
fn timestamp_without_a_form_in_rfc_3339_is_left_out() {
    for created in [
        "infinity",
        "0044-03-15 12:00:00+00 BC",
        "2026-11-21 05:26:15",
        "",
    ] {
        let event = server().event(&[("created_at", Some(created.as_bytes()))]);
        assert_eq!(event.headers.find("ce-time"), None, "{created:?}");
    }
    for micros in [i64::MIN, i64::MAX] {
        let mut server = Server::silent(options());
        let begin = encode(&Message::Begin {
            commit_lsn: Lsn::new(1),
            commit_time: PgTime::new(micros),
            xid: 7,
        });
        assert!(matches!(server.send(begin), Ok(Step::Begin(_))));
        server.describe(COLUMNS);
        assert_eq!(server.event(&[]).headers.find("ce-recordedtime"), None);
    }
}

#[test]
fn configured_source_stands_in_every_event() {
    let mut options = options();
    options.source = Some("//shop/orders".to_owned());
    let event = Server::new(options).event(&[]);
    assert_eq!(event.headers.find("ce-source"), Some("//shop/orders"));
}

#[test]
fn text_that_is_not_utf_8_is_a_rejection_but_a_body_may_be_anything() {
    let columns = [
        "id",
        "created_at",
        "aggregatetype",
        "aggregateid",
        "type",
        "content_type",
        "topic",
        "tenant_id",
        "correlation_id",
        "traceparent",
        "dedup_key",
    ];
    for column in columns {
        let rejection = server().rejection(&[(column, Some(b"caf\xe9"))]);
        assert_eq!(rejection.reason, Reason::NotUtf8(column));
    }
    let rejection = server().rejection(&[("id", Some(b"caf\xe9"))]);
    assert_eq!(rejection.id, "caf\u{fffd}");
    let event = server().event(&[("payload", Some(b"caf\xe9"))]);
    assert_eq!(event.payload, b"caf\xe9"[..]);
}

#[test]
fn column_of_the_template_that_is_not_utf_8_becomes_an_underscore() {
    let mut options = options();
    options.subject = Template::parse("events.{note}").unwrap();
    let mut server = Server::silent(options);
    server.begin();
    server.describe(&[COLUMNS, &[("note", TEXT)]].concat());
    let event = server.event(&[("note", Some(b"caf\xe9"))]);
    assert_eq!(event.subject, "events._");
}

/// Any value of a column, the odd ones more often than chance would have it.
fn value() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        Just(None),
        vec(any::<u8>(), 0..40).prop_map(Some),
        "\\PC{0,40}".prop_map(|text| Some(text.into_bytes())),
        ".{0,40}".prop_map(|text| Some(text.into_bytes())),
        "[a-z.*>$ ]{0,12}".prop_map(|text| Some(text.into_bytes())),
        "\\\\x([0-9a-f]{2}){0,8}".prop_map(|text| Some(text.into_bytes())),
        r#"\{"[A-Za-z-]{0,8}": ("[ -~]{0,8}"|[0-9]{1,9}|\["x", 1\])\}"#
            .prop_map(|text| Some(text.into_bytes())),
    ]
}

proptest! {
    #[test]
    fn whatever_the_row_its_event_can_be_sent_or_it_is_rejected(
        values in vec(value(), COLUMNS.len()),
        keep_id: bool,
    ) {
        let mut row: Vec<_> = COLUMNS
            .iter()
            .zip(&values)
            .map(|((name, _), value)| (*name, value.as_deref()))
            .collect();
        if keep_id {
            row[0].1 = Some(ID.as_bytes());
        }
        match server().insert(&row) {
            Ok(Step::Event(event)) => {
                prop_assert_eq!(check_subject(&event.subject), Ok(()));
                prop_assert!(header_is_sound("Nats-Msg-Id", &event.id));
                prop_assert_eq!(event.id.trim(), &event.id);
                for (name, value) in event.headers.iter() {
                    prop_assert!(header_is_sound(name, value), "{:?}: {:?}", name, value);
                }
            }
            Ok(Step::Rejected(_)) => {}
            other => prop_assert!(false, "neither event nor rejection: {:?}", other),
        }
    }
}
