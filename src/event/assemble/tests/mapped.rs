//! Claims about rows of mapped tables: values inside columns, columns that become headers, and the
//! bodies that formats write.

use super::*;
use crate::event::mapping::{ExtraColumn, Inside, Syntax};

/// The usual outbox, with something else configured.
fn configured(change: impl FnOnce(&mut Options)) -> Server {
    let mut options = options();
    change(&mut options);
    Server::new(options)
}

fn tenant_inside_headers(options: &mut Options) {
    let inside = Inside::new("headers.tenant", Syntax::Json, false);
    options.tables[0].set(Field::TenantId, Origin::Inside(inside));
}

fn formatted(format: Format) -> Server {
    configured(|options| options.format = format)
}

fn text(event: &Event) -> &str {
    std::str::from_utf8(&event.payload).expect("text")
}

#[test]
fn path_that_leads_nowhere_is_a_rejection_that_names_it_and_goes_on() {
    let mut server = configured(tenant_inside_headers);
    let event = server.event(&[("headers", Some(br#"{"tenant": "acme"}"#))]);
    assert_eq!(event.headers.find("ce-tenantid"), Some("acme"));
    for (headers, why) in [
        (Some(&b"{}"[..]), "there is no value"),
        (None, "there is no value"),
        (Some(b"[]"), "what should hold it is not a JSON object"),
        (Some(b"{\"tenant\""), "the column is not well-formed JSON"),
    ] {
        let rejection = server.rejection(&[("headers", headers)]);
        let error = format!("tenant_id cannot be read from headers.tenant: {why}");
        assert_eq!(rejection.reason.to_string(), error);
        let event = rejection.into_event();
        assert_eq!(event.rejected.expect("a reason").reason, "inside_column");
        assert_eq!(event.subject, "events.order.placed");
        assert_eq!(event.payload, br#"{"total": 9.5}"#[..]);
    }
    server.event(&[("headers", Some(br#"{"tenant": 7}"#))]);
}

#[test]
fn payload_inside_a_column_is_its_json_as_it_stands() {
    let mut server = configured(|options| {
        let inside = Inside::new("headers.body", Syntax::Json, false);
        options.tables[0].set(Field::Payload, Origin::Inside(inside));
        options.tables[0].set(Field::Headers, Origin::Constant("{}".to_owned()));
    });
    let event = server.event(&[("headers", Some(br#"{"body": {"b":  1.0, "a": 1}}"#))]);
    assert_eq!(text(&event), r#"{"b":  1.0, "a": 1}"#);
    assert_eq!(
        event.headers.find("ce-datacontenttype"),
        Some("application/json")
    );
}

#[test]
fn extra_columns_become_headers_and_must_be_text() {
    let mut server = configured(|options| {
        let extra = |column: &str, header: &str| ExtraColumn {
            column: column.to_owned(),
            header: header.into(),
        };
        options.tables[0].extra = vec![extra("dedup_key", "X-Key"), extra("topic", "ce-region")];
        options.tables[0].set(Field::Topic, Origin::Column("type".to_owned()));
    });
    let event = server.event(&[("dedup_key", Some(b"k 1")), ("topic", Some(b"eu west"))]);
    assert_eq!(event.headers.find("X-Key"), Some("k 1"));
    assert_eq!(event.headers.find("ce-region"), Some("eu%20west"));
    assert_eq!(server.event(&[]).headers.find("X-Key"), None);
    let reason = server.rejection(&[("topic", Some(b"\xff"))]).reason;
    assert_eq!(reason, Reason::NotUtf8("an extra column"));
    let reason = server
        .rejection(&[("dedup_key", Some(b"a\r\nNats-Rollup: all"))])
        .reason;
    assert_eq!(reason, Reason::Header("Outjet-Dedup-Key".to_owned()));
}

#[test]
fn prefix_stands_before_every_subject() {
    let mut server = configured(|options| {
        options.subject_prefix = Some("shadow.x".to_owned());
        options.routes = vec![Route::parse("mail.>", "post.{1}").expect("a route")];
    });
    assert_eq!(server.event(&[]).subject, "shadow.x.events.order.placed");
    let event = server.event(&[("topic", Some(b"mail.to.me"))]);
    assert_eq!(event.subject, "shadow.x.post.to.me");
}

#[test]
fn subject_of_hundreds_of_tokens_is_a_rejection() {
    let topic = vec!["t"; 300].join(".");
    let rejection = server().rejection(&[("topic", Some(topic.as_bytes()))]);
    let error = rejection.reason.to_string();
    // First what is wrong: the rest may be cut off.
    assert!(error.starts_with("its subject cannot be published to, it has more than 256 tokens"));
}

#[test]
fn structured_splices_json_and_encodes_bytes() {
    let mut server = formatted(Format::Structured);
    let event = server.event(&[(
        "payload",
        Some(br#"{"b":  1.0, "a": 12345678901234567890}"#),
    )]);
    assert_eq!(
        event.headers.find("Content-Type"),
        Some("application/cloudevents+json")
    );
    let end = r#","data":{"b":  1.0, "a": 12345678901234567890}}"#;
    assert!(text(&event).ends_with(end), "{}", text(&event));
    let bytes = server.event(&[("payload", None), ("payload_raw", Some(b"\\x00ff7b"))]);
    assert!(
        text(&bytes).ends_with(r#","data_base64":"AP97"}"#),
        "{}",
        text(&bytes)
    );
    assert!(text(&bytes).contains(r#""datacontenttype":"application/octet-stream""#));
    let nothing = server.event(&[("payload", None)]);
    assert!(!text(&nothing).contains("data"), "{}", text(&nothing));
}

#[test]
fn text_is_a_string_unless_its_content_type_says_json_which_it_must_then_be() {
    let mut server = configured(|options| options.format = Format::Structured);
    let mut columns = COLUMNS.to_vec();
    columns[5] = ("payload", TEXT);
    server.describe(&columns);
    let row: Values<'_> = &[("payload", Some(b"{\"a\": \"\n\"}"))];
    let event = server.event(row);
    assert!(
        text(&event).ends_with(r#""data":"{\"a\": \"\n\"}"}"#),
        "{}",
        text(&event)
    );
    let typed = |payload| {
        [
            ("payload", Some(payload)),
            ("content_type", Some(&b"text/json"[..])),
        ]
    };
    let event = server.event(&typed(b" {\"a\":  1} "));
    assert!(
        text(&event).ends_with(r#""data":{"a":  1}}"#),
        "{}",
        text(&event)
    );
    let rejection = server.rejection(&typed(b"{\"a\": 1"));
    assert_eq!(rejection.reason, Reason::Payload);
    assert_eq!(rejection.into_event().payload, b"{\"a\": 1"[..]);
}

#[test]
fn rows_cannot_say_what_the_content_type_of_a_format_is() {
    let json = br#"{"content-type": "application/cloudevents+json", "X": "kept"}"#;
    for format in [Format::CloudEvents, Format::Structured, Format::Envelope] {
        let mut server = formatted(format);
        let event = server.event(&[("headers", Some(json))]);
        assert_eq!(event.headers.find("content-type"), None, "{format:?}");
        assert_eq!(event.headers.find("X"), Some("kept"));
        assert_eq!(server.assembler.passed().headers, 1);
    }
    let event = formatted(Format::Minimal).event(&[("headers", Some(json))]);
    assert!(event.headers.find("content-type").is_some());
}
