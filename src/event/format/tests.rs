//! Claims about headers and bodies of each format.

use super::*;

const FIELDS: Fields<'static> = Fields {
    id: "42",
    source: "/app/outbox.events",
    kind: Some("order placed"),
    aggregatetype: Some("order"),
    aggregateid: Some("ä\"%"),
    created: Some("2026-11-21T05:26:15Z"),
    deliver_at: None,
    expires_at: None,
    committed: "2026-11-21T05:26:16Z",
    content_type: Some("application/json"),
    tenant: Some(""),
    correlation: None,
    dedup_key: Some("k"),
    traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    tracestate: None,
    baggage: Some("a=1"),
    schema_version: None,
    trace_id: None,
    producer: None,
    pii: None,
    pii_fields: None,
    consent: None,
    metadata: None,
    extra: &[],
};

const VERSIONED: Fields<'static> = Fields {
    schema_version: Some(Json::Raw("2")),
    trace_id: Some("4bf92f"),
    producer: Some("leads@1.2.3"),
    pii: Some(true),
    consent: Some(Json::Text("marketing")),
    metadata: Some(Json::Raw(r#"{"z":  1.0, "a": 1}"#)),
    extra: &[("ce-region", "eu west"), ("X-Shard", "7")],
    ..FIELDS
};

fn headers(format: Format) -> Vec<(String, String)> {
    dressed(format, &FIELDS)
}

fn dressed(format: Format, fields: &Fields<'_>) -> Vec<(String, String)> {
    let mut headers = Headers::default();
    format.dress(&mut headers, fields);
    headers
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn cloudevents_attributes_are_percent_encoded_headers() {
    let expected = [
        ("ce-specversion", "1.0"),
        ("ce-id", "42"),
        ("ce-source", "/app/outbox.events"),
        ("ce-type", "order%20placed"),
        ("ce-subject", "%C3%A4%22%25"),
        ("ce-time", "2026-11-21T05:26:15Z"),
        ("ce-recordedtime", "2026-11-21T05:26:16Z"),
        ("ce-datacontenttype", "application/json"),
        ("ce-partitionkey", "order:%C3%A4%22%25"),
        ("Outjet-Dedup-Key", "k"),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
        ("baggage", "a=1"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(headers(Format::CloudEvents), expected);
}

#[test]
fn minimal_leaves_the_attributes_out() {
    let names: Vec<_> = headers(Format::Minimal)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["Outjet-Dedup-Key", "traceparent", "baggage"]);
}

#[test]
fn privacy_and_columns_of_their_own_are_headers_and_attributes_only_where_they_can_be() {
    let names = ["email".to_owned(), "phone".to_owned()];
    let fields = Fields {
        pii_fields: Some(&names),
        ..VERSIONED
    };
    let has = |format, name: &str, value: &str| {
        let headers = dressed(format, &fields);
        headers.contains(&(name.to_owned(), value.to_owned()))
    };
    use Format::{CloudEvents, Envelope, Minimal, Structured};
    for format in [CloudEvents, Envelope, Minimal, Structured] {
        assert!(has(format, "Outjet-Pii", "true"));
        assert!(has(format, "Outjet-Pii-Fields", "email,phone"));
        assert!(has(format, "Outjet-Consent", "marketing"));
        assert!(has(format, "X-Shard", "7"));
        assert_eq!(has(format, "ce-region", "eu%20west"), format == CloudEvents);
    }
    assert!(has(CloudEvents, "ce-source", "leads@1.2.3"));
    assert!(has(CloudEvents, "ce-schemaversion", "2"));
    assert!(has(CloudEvents, "ce-traceid", "4bf92f"));
    let without = Fields {
        pii: Some(false),
        ..FIELDS
    };
    let headers = dressed(Minimal, &without);
    assert!(
        !headers.iter().any(|(name, _)| name == "Outjet-Pii"),
        "{headers:?}"
    );
}

fn body(format: Format, fields: &Fields<'_>, payload: Body<'_>) -> String {
    let (body, _) = format.body(fields, payload).expect("a body");
    let body = String::from_utf8(body.into()).expect("text");
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(&body);
    assert!(parsed.is_ok(), "{body}");
    body
}

#[test]
fn structured_holds_the_attributes_and_the_payload_as_it_came() {
    let payload = Body::Json(Json::Raw(r#"{"b": 1.0,  "a":12345678901234567890}"#));
    let expected = concat!(
        r#"{"specversion":"1.0","id":"42","source":"leads@1.2.3","type":"order placed","#,
        r#""subject":"ä\"%","time":"2026-11-21T05:26:15Z","#,
        r#""recordedtime":"2026-11-21T05:26:16Z","datacontenttype":"application/json","#,
        r#""schemaversion":"2","traceid":"4bf92f","partitionkey":"order:ä\"%","#,
        r#""region":"eu west","data":{"b": 1.0,  "a":12345678901234567890}}"#
    );
    assert_eq!(body(Format::Structured, &VERSIONED, payload), expected);
}

#[test]
fn structured_has_bytes_as_base64_text_as_a_string_and_null_as_nothing() {
    let end = |payload| {
        let body = body(Format::Structured, &FIELDS, payload);
        body.rsplit_once(r#"","#).map(|(_, end)| end.to_owned())
    };
    let bytes = Body::Bytes(b"\0\xff{");
    assert_eq!(end(bytes).as_deref(), Some(r#""data_base64":"AP97"}"#));
    let text = Body::Json(Json::Text("a\n\"{"));
    assert_eq!(end(text).as_deref(), Some(r#""data":"a\n\"{"}"#));
    let nothing = end(Body::Absent);
    assert!(nothing.unwrap().starts_with(r#""partitionkey""#));
}

#[test]
fn envelope_has_these_members_and_leaves_out_what_is_null() {
    let names = ["email".to_owned()];
    let fields = Fields {
        pii_fields: Some(&names),
        tenant: Some("acme"),
        correlation: Some("c1"),
        ..VERSIONED
    };
    let payload = Body::Json(Json::Raw(r#"{"b": 1.0,  "a": 1}"#));
    let expected = concat!(
        r#"{"event":"order placed","schema_version":2,"idempotency_key":"k","#,
        r#""trace_id":"4bf92f","correlation_id":"c1","tenant_id":"acme","#,
        r#""occurred_at":"2026-11-21T05:26:15Z","producer":"leads@1.2.3","#,
        r#""privacy":{"pii":true,"fields":["email"],"consent":"marketing"},"#,
        r#""payload":{"b": 1.0,  "a": 1},"metadata":{"z":  1.0, "a": 1}}"#
    );
    assert_eq!(body(Format::Envelope, &fields, payload), expected);
    let bare = Fields {
        kind: Some("a"),
        ..Fields::default()
    };
    let nothing = body(Format::Envelope, &bare, Body::Absent);
    assert_eq!(nothing, r#"{"event":"a","payload":null}"#);
    let bytes = body(Format::Envelope, &bare, Body::Bytes(b"\xff"));
    assert_eq!(bytes, r#"{"event":"a","payload_base64":"/w=="}"#);
}

#[test]
fn timestamps_become_rfc_3339_or_nothing() {
    let of = |text| rfc3339(text);
    assert_eq!(
        of("2026-11-21 05:26:15+00").as_deref(),
        Some("2026-11-21T05:26:15Z")
    );
    assert_eq!(
        of("2026-11-21 05:26:15.5+00").as_deref(),
        Some("2026-11-21T05:26:15.5Z")
    );
    for text in [
        "infinity",
        "0044-03-15 12:00:00+00 BC",
        "2026-11-21 05:26:15",
        "12026-11-21 05:26:15+00",
        "2026-11-21 05:26:15.+00",
        "2026-11-21 05:26:15.1234567+00",
        "2026-11-21 05:26:15x5+00",
        "yesterday, 05:26:15+00",
        "2026-11-21 5:26:15+00",
        "2026-11-21 ü5:26:5+00",
        "+00",
    ] {
        assert_eq!(of(text), None, "{text:?}");
    }
}
