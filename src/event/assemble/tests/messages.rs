//! Claims about logical messages and the events that become of them.

use super::*;

const CONTENT: &str = r#"{"id": "0b5e3a52-5f2e-4d6e-8f4f-6a6d7f0c1d2e", "aggregatetype": "order",
    "aggregateid": 42, "type": "placed", "payload": {"total":  9.50, "k": null}, "topic": null,
    "headers": {"X-Region": "eu"}, "tenant_id": "gr\u00fcn"}"#;

fn emit(server: &mut Server, content: &str) -> Step {
    let message = emitted(true, ("outbox", content.as_bytes()));
    server.send(message).expect("a message that can be read")
}

fn event(content: &str) -> Event {
    match emit(&mut server(), content) {
        Step::Event(event) => event,
        other => panic!("no event: {other:?}"),
    }
}

/// What is said of a message, and what is left of it.
fn rejection(content: &str) -> (String, Event) {
    match emit(&mut server(), content) {
        Step::Rejected(rejection) => {
            let reason = rejection.reason.to_string();
            (reason, rejection.into_event())
        }
        other => panic!("no rejection: {other:?}"),
    }
}

/// The content with one more key, which goes before an earlier one of its name.
fn with(key: &str, json: &str) -> String {
    let content = CONTENT.strip_suffix('}').expect("an object");
    format!("{content}, \"{key}\": {json}}}")
}

#[test]
fn message_becomes_an_event_as_a_row_does() {
    let event = event(CONTENT);
    assert_eq!(event.id, ID);
    assert_eq!(event.subject, "events.order.placed");
    assert_eq!(event.payload, br#"{"total":  9.50, "k": null}"#[..]);
    assert_eq!(&*event.table, "outbox");
    let wanted = [
        ("ce-specversion", "1.0"),
        ("ce-id", ID),
        ("ce-source", "/app/outbox"),
        ("ce-type", "placed"),
        ("ce-subject", "42"),
        ("ce-time", "2026-11-21T05:26:15.5Z"),
        ("ce-recordedtime", "2026-11-21T05:26:15.5Z"),
        ("ce-datacontenttype", "application/json"),
        ("ce-tenantid", "gr%C3%BCn"),
        ("ce-partitionkey", "order:42"),
        ("X-Region", "eu"),
    ];
    assert_eq!(headers_of(&event), wanted);
}

#[test]
fn body_of_a_message_is_shared_with_what_was_read() {
    let mut server = server();
    let message = Bytes::from(emitted(true, ("outbox", CONTENT.as_bytes())));
    let Ok(Step::Event(event)) = server.assembler.take(&message) else {
        panic!("no event");
    };
    assert!(message.as_ptr_range().contains(&event.payload.as_ptr()));
}

#[test]
fn bytes_times_and_other_ids_are_read_as_postgres_writes_them() {
    let raw = with("payload", "null").replace(
        "\"topic\": null",
        r#""payload_raw": "AAEC\n/w==", "created_at": "2026-11-21T07:26:15.1234567+02:00""#,
    );
    let event = event(&raw.replace(ID, "7"));
    assert_eq!(event.id, "outbox:7");
    assert_eq!(event.payload, [0, 1, 2, 255][..]);
    let find = |name| event.headers.find(name);
    assert_eq!(find("ce-time"), Some("2026-11-21T05:26:15.123456Z"));
    assert_eq!(find("ce-datacontenttype"), Some("application/octet-stream"));
}

#[test]
fn payload_is_any_json_as_it_is_written() {
    for json in [
        "[1, 2.50]",
        "\"text\"",
        "7e400",
        "true",
        "{\"a\":\"\\u00fc\"}",
    ] {
        assert_eq!(event(&with("payload", json)).payload, json.as_bytes());
    }
    assert_eq!(event(&with("payload", "null")).payload, b""[..]);
}

#[test]
fn topic_and_what_else_the_template_names_make_the_subject() {
    assert_eq!(
        event(&with("topic", "\"events.a.b\"")).subject,
        "events.a.b"
    );
    let mut options = options();
    options.subject = Template::parse("events.{region}.{type}").expect("a template");
    let subject = |content: &str| match emit(&mut Server::new_undescribed(&options), content) {
        Step::Event(event) => event.subject,
        other => panic!("no event: {other:?}"),
    };
    assert_eq!(subject(&with("region", "\"eu\"")), "events.eu.placed");
    assert_eq!(subject(CONTENT), "events._.placed");
}

#[test]
fn content_that_is_no_event_is_rejected_with_all_of_it_kept() {
    let cut = &CONTENT[..CONTENT.len() - 1];
    for (content, reason, told) in [
        (cut.to_owned(), "it is not a JSON object", false),
        ("[]".to_owned(), "it is not a JSON object", false),
        (String::new(), "it is not a JSON object", false),
        (with("colour", "1"), "there is no column \"colour\"", true),
        (with("type", "null"), "its type is missing", true),
        (
            with("aggregateid", "[1]"),
            "its aggregateid is not a text",
            true,
        ),
        (
            with("payload_raw", "\"***\""),
            "its payload_raw is not in base64",
            true,
        ),
        (
            with("created_at", "\"now\""),
            "its created_at is not a time",
            true,
        ),
        (with("id", "{}"), "its id is not a text", false),
    ] {
        let (said, event) = rejection(&content);
        let wanted = format!("the message is not an event: {reason}");
        assert!(said.starts_with(&wanted), "{said}");
        assert_eq!(event.rejected.expect("a reason").reason, "message");
        assert_eq!(event.payload, content.as_bytes());
        let id = if told {
            ID
        } else {
            "0000000000000100-00000000"
        };
        assert_eq!(event.id, id, "{content}");
    }
}

#[test]
fn message_is_rejected_for_what_a_row_is_rejected_for() {
    for (key, json, reason) in [
        ("id", "null", "no_id"),
        ("payload_raw", "\"AA==\"", "two_payloads"),
        ("id", "\"\"", "no_id"),
        ("headers", "[]", ""),
        ("headers", "[1]", "header"),
        ("tenant_id", "\"a\\nb\"", ""),
        ("traceparent", "\"a\\nb\"", "header"),
    ] {
        match emit(&mut server(), &with(key, json)) {
            Step::Event(_) => assert_eq!(reason, "", "{key}"),
            Step::Rejected(rejection) => {
                assert_eq!(rejection.reason.word(), reason, "{key}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn messages_of_others_and_of_no_transaction_are_no_events() {
    let mut server = server();
    let other = emitted(true, ("outbox2", CONTENT.as_bytes()));
    assert_eq!(server.send(other), Ok(Step::Nothing));
    let loose = emitted(false, ("outbox", CONTENT.as_bytes()));
    assert_eq!(server.send(loose), Ok(Step::Nothing));
    let Step::Event(event) = emit(&mut server, CONTENT) else {
        panic!("no event");
    };
    assert_eq!(event.position.index, 1);
    let passed = Passed {
        messages: 1,
        loose_messages: 1,
        ..Passed::default()
    };
    assert_eq!(server.assembler.passed(), passed);
}

proptest! {
    #[test]
    fn any_content_is_an_event_or_a_rejection(content in vec(any::<u8>(), 0..64)) {
        let step = server().send(emitted(true, ("outbox", &content)));
        prop_assert!(matches!(step, Ok(Step::Event(_) | Step::Rejected(_))));
    }
}

/// The usual row as outjet hands it over.
fn handover() -> Handover {
    let text = |name: &str| {
        let value = ROW.iter().find(|(column, _)| *column == name);
        value.map(|(_, text)| Text(text.to_vec()))
    };
    Handover {
        slot: "outjet".to_owned(),
        schema: "outbox".to_owned(),
        table: "events".to_owned(),
        id: ID.to_owned(),
        subject_prefix: String::new(),
        row: COLUMNS
            .iter()
            .map(|(name, oid)| ((*name).to_owned(), *oid, text(name)))
            .collect(),
    }
}

fn hand(server: &mut Server, handed: &Handover) -> Step {
    let content = serde_json::to_vec(handed).expect("texts and numbers");
    let message = emitted(true, (HANDOVER, &content));
    server.send(message).expect("a message that can be read")
}

fn refusal(options: Options, handed: &Handover) -> String {
    match hand(&mut Server::new(options), handed) {
        Step::Rejected(rejection) => {
            let reason = rejection.reason.to_string();
            let event = rejection.into_event();
            assert_eq!(event.id, ID);
            reason
        }
        other => panic!("no rejection: {other:?}"),
    }
}

#[test]
fn handed_over_row_is_the_event_of_its_insert_marked_as_a_replay() {
    let mut server = Server::new_undescribed(&options());
    let Step::Event(again) = hand(&mut server, &handover()) else {
        panic!("no event");
    };
    server.describe(COLUMNS);
    let row = server.event(&[]);
    assert!(again.replayed && !row.replayed);
    assert_eq!(again.position.index + 1, row.position.index);
    let like_the_row = Event {
        position: row.position,
        replayed: false,
        ..again
    };
    assert_eq!(like_the_row, row);
}

#[test]
fn row_that_is_handed_to_another_slot_is_passed_over() {
    let other = Handover {
        slot: "other".to_owned(),
        ..handover()
    };
    assert_eq!(hand(&mut server(), &other), Step::Nothing);
}

#[test]
fn value_that_is_not_utf8_is_handed_over_as_it_is() {
    let mut handed = handover();
    let payload = handed.row.iter_mut().find(|(name, ..)| name == "payload");
    let (_, _, value) = payload.expect("a payload");
    *value = Some(Text(b"\"caf\xe9\"".to_vec()));
    let Step::Event(event) = hand(&mut Server::new(options()), &handed) else {
        panic!("no event");
    };
    assert_eq!(event.payload, b"\"caf\xe9\""[..]);
}

#[test]
fn subject_prefix_stands_before_what_routes_make() {
    let mut options = options();
    options.routes = vec![Route::parse("events.>", "prod.{1}").expect("a route")];
    let handed = Handover {
        subject_prefix: "replay.".to_owned(),
        ..handover()
    };
    match hand(&mut Server::new(options), &handed) {
        Step::Event(event) => assert_eq!(event.subject, "replay.prod.order.placed"),
        other => panic!("no event: {other:?}"),
    }
}

#[test]
fn handover_that_this_leader_cannot_map_is_rejected_and_the_stream_goes_on() {
    let other = Handover {
        table: "others".to_owned(),
        ..handover()
    };
    let told = refusal(options(), &other);
    assert!(told.ends_with("outbox.others is not among the tables of whoever leads"));
    let mut lacking = handover();
    lacking.row.retain(|(name, ..)| name != "payload");
    assert!(refusal(options(), &lacking).contains("no column \"payload\""));
    let off = Options {
        prefixes: Vec::new(),
        ..options()
    };
    assert!(refusal(off, &handover()).ends_with("messages.prefixes is empty"));
    let mut server = server();
    for content in [&b""[..], b"{}", b"[1]", b"\xff"] {
        let step = server.send(emitted(true, (HANDOVER, content)));
        let Ok(Step::Rejected(rejection)) = step else {
            panic!("{step:?}");
        };
        assert_eq!(rejection.into_event().payload, content);
    }
    assert_eq!(server.event(&[]).position.index, 4);
}
