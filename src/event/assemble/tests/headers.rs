//! Claims about the headers that a row brings along.

use super::*;

/// What the row's own headers become.
fn custom(json: &str) -> Result<Vec<(String, String)>, Reason> {
    let mut options = options();
    options.format = Format::Minimal;
    match Server::new(options).insert(&[("headers", Some(json.as_bytes()))]) {
        Ok(Step::Event(event)) => Ok(headers_of(&event)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()),
        Ok(Step::Rejected(rejection)) => Err(rejection.reason),
        other => panic!("neither event nor rejection: {other:?}"),
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = pairs
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
    owned.collect()
}

#[test]
fn rows_headers_are_passed_on_as_they_are_written() {
    let json = r#"{"t": "a b", "n": 12345678901234567890123.10, "b": true, "z": null,
                   "list": ["x", 1e400, false, null], "none": [], "u": "gr\u00fcn",
                   "object": {"a": [1,  2]}, "deep": ["y", ["z"], {}]}"#;
    let wanted = pairs(&[
        ("b", "true"),
        ("deep", "y"),
        ("deep", r#"["z"]"#),
        ("deep", "{}"),
        ("list", "x"),
        ("list", "1e400"),
        ("list", "false"),
        ("n", "12345678901234567890123.10"),
        ("object", r#"{"a": [1,  2]}"#),
        ("t", "a b"),
        ("u", "grün"),
    ]);
    assert_eq!(custom(json), Ok(wanted));
    assert_eq!(custom("{}"), Ok(Vec::new()));
    assert_eq!(custom("null"), Ok(Vec::new()));
}

#[test]
fn empty_list_and_empty_text_are_no_headers() {
    for nothing in ["", "  ", "[]", " [] "] {
        assert_eq!(custom(nothing), Ok(Vec::new()), "{nothing:?}");
    }
}

#[test]
fn headers_of_another_shape_are_a_rejection_that_does_not_quote_them() {
    let shapes = [
        r#""secret""#,
        "7",
        r#"["secret"]"#,
        r#"{"a": "secret"#,
        r#"{"a": "secret\ud800"}"#,
        "[[]]",
        "{\"a\": \"\u{1}secret\"}",
    ];
    for json in shapes {
        let reason = custom(json).unwrap_err();
        assert!(matches!(reason, Reason::Headers(_)), "{json}: {reason:?}");
        assert!(!reason.to_string().contains("secret"), "{reason}");
    }
    let mut server = server();
    let rejection = server.rejection(&[("headers", Some(b"{\"a\": \"\xff\"}"))]);
    assert!(matches!(rejection.reason, Reason::Headers(_)));
}

#[test]
fn reserved_names_are_left_out_in_any_case_and_counted() {
    let json = r#"{"Nats-Rollup": "all", "nats-msg-id": "1", "OUTJET-Position": "0", "Ce-Id": "x",
                   "NATS-TTL": ["1s", "2s"], "natsx": "kept", "Nats": "kept"}"#;
    let mut server = server();
    let event = server.event(&[("headers", Some(json.as_bytes()))]);
    let names: Vec<_> = headers_of(&event)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert!(names.ends_with(&["Nats", "natsx"]), "{names:?}");
    assert_eq!(
        names.iter().filter(|name| name.starts_with("ce-")).count(),
        9
    );
    assert_eq!(server.assembler.passed().headers, 5);
}

#[test]
fn column_goes_before_a_header_of_the_same_name() {
    let json = br#"{"traceparent": "00-1-1-01", "tracestate": "a=1"}"#;
    let mut server = server();
    let trace = |event: &Event| event.headers.find("traceparent").map(str::to_owned);
    let both = server.event(&[("traceparent", Some(b"00-2-2-01")), ("headers", Some(json))]);
    assert_eq!(trace(&both).as_deref(), Some("00-2-2-01"));
    assert_eq!(both.headers.find("tracestate"), Some("a=1"));
    assert_eq!(server.assembler.passed().headers, 1);
    let one = server.event(&[("headers", Some(json))]);
    assert_eq!(trace(&one).as_deref(), Some("00-1-1-01"));
}

#[test]
fn header_that_would_break_the_framing_is_a_rejection_by_its_name() {
    let refused = [
        (r#"{"a b": "x"}"#, "a b"),
        (r#"{"a:": "x"}"#, "a:"),
        (r#"{"": "x"}"#, ""),
        (r#"{"ü": "x"}"#, "ü"),
        (r#"{"a": "x\r\nNats-Rollup: all"}"#, "a"),
        (r#"{"a": ["fine", "\u0000"]}"#, "a"),
        (r#"{"a": "\u0085"}"#, "a"),
    ];
    for (json, name) in refused {
        assert_eq!(custom(json), Err(Reason::Header(name.to_owned())), "{json}");
    }
    for column in ["traceparent", "dedup_key"] {
        let rejection = server().rejection(&[(column, Some(b"secret\n"))]);
        assert!(matches!(rejection.reason, Reason::Header(_)));
        assert!(!rejection.to_string().contains("secret"), "{rejection}");
    }
    let rejection = server().rejection(&[("id", Some(b"1\n2"))]);
    assert_eq!(rejection.reason, Reason::Header("Nats-Msg-Id".to_owned()));
}

#[test]
fn no_row_can_hide_the_header_that_keeps_the_order() {
    let name = "Nats-Expected-Last-Sequence";
    for column in [
        "id",
        "type",
        "aggregateid",
        "tenant_id",
        "dedup_key",
        "content_type",
    ] {
        let rejection = server().rejection(&[(column, Some(name.as_bytes()))]);
        assert!(matches!(rejection.reason, Reason::Header(_)), "{column}");
    }
    for json in [
        format!(r#"{{"a": "{name}: 0"}}"#),
        format!(r#"{{"X-{name}": "0"}}"#),
    ] {
        assert!(matches!(custom(&json), Err(Reason::Header(_))), "{json}");
    }
}
