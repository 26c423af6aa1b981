//! Durations, sizes, names and the hiding of passwords, against any text.

use proptest::prelude::*;

use super::super::names::{check_pattern, check_slot, check_stream};
use super::super::value::{Bytes, Scalar};
use super::*;

proptest! {
    #[test]
    fn every_duration_is_read_as_it_is_written(millis in any::<u64>()) {
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(Duration::parse(&duration_text(duration)), Ok(duration));
    }

    #[test]
    fn every_size_is_read_as_it_is_written(bytes in any::<u64>()) {
        prop_assert_eq!(Bytes::parse(&Bytes(bytes).to_string()), Ok(Bytes(bytes)));
    }

    #[test]
    fn a_number_without_a_unit_is_neither_duration_nor_size(number in any::<u64>()) {
        prop_assert_eq!(Duration::parse(&number.to_string()).unwrap_err().what, "has no unit");
        prop_assert_eq!(Bytes::parse(&number.to_string()).unwrap_err().what, "has no unit");
    }

    #[test]
    fn what_is_taken_for_a_quantity_is_digits_and_a_unit(text in "[0-9]{0,22}[a-zA-Z .+-]{0,4}") {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        if Duration::parse(&text).is_ok() {
            prop_assert!(["ms", "s", "m", "h", "d"].contains(&&text[digits.len()..]));
        }
        if Bytes::parse(&text).is_ok() {
            prop_assert!(["B", "KiB", "MiB", "GiB", "TiB"].contains(&&text[digits.len()..]));
        }
    }

    #[test]
    fn no_text_upsets_a_parser(text in any::<String>()) {
        let _ = (Duration::parse(&text), Bytes::parse(&text), TableName::parse(&text));
        let _ = (check_slot(&text), check_stream(&text), check_pattern(&text));
        let _ = redact_url(&text);
        let _ = load(&text, &[], &[]).map(|config| config.show());
    }

    #[test]
    fn a_table_name_is_read_as_it_is_written(schema in "[^\0]{1,15}", table in "[^\0]{1,15}") {
        let name = TableName { schema, table };
        prop_assert_eq!(TableName::parse(&name.to_string()), Ok(name));
    }

    #[test]
    fn no_password_is_shown(
        password in "[A-Za-z0-9@:/?#,%=]{0,8}SECRET[A-Za-z0-9@:/?#,%=]{0,8}",
        scheme in "postgres|postgresql|nats|tls",
    ) {
        let url = format!("{scheme}://user:{password}@host:1/db");
        prop_assert!(!redact_url(&url).contains("SECRET"), "{}", redact_url(&url));
        let list = format!("nats://a:b@one,{url},nats://c:d@two");
        prop_assert!(!redact_url(&list).contains("SECRET"), "{}", redact_url(&list));
    }

    #[test]
    fn no_password_in_keywords_is_shown(password in "[A-Za-z0-9 @:/=]{0,8}SECRET[ a-z]{0,8}") {
        let quoted = format!("host=h password = '{password}' user=u");
        prop_assert_eq!(redact_url(&quoted), "host=h password=*** user=u");
    }
}

#[test]
fn a_connection_string_keeps_what_is_not_secret() {
    let shown = [
        ("postgres://u@h/d", "postgres://u@h/d"),
        (
            "postgres://u:p@h1,h2/d?sslmode=require",
            "postgres://u:***@h1,h2/d?sslmode=require",
        ),
        (
            "postgres://h/d?password=p&sslmode=require",
            "postgres://h/d?password=***&sslmode=require",
        ),
        ("host=h password=p user=u", "host=h password=*** user=u"),
        (
            "host=h password='a\\'b c' user=u",
            "host=h password=*** user=u",
        ),
        (
            "host=h sslpassword=p passfile=f",
            "host=h sslpassword=*** passfile=f",
        ),
        ("nats://a:4222,b:4222", "nats://a:4222,b:4222"),
        ("nats://token@a", "nats://***@a"),
        ("nats://u:,#://p@a", "nats://u:***@a"),
        ("nats://u:p,tls://p@a", "nats://u:***@a"),
        ("postgres://u:,nats://p@a", "postgres://u:***@a"),
        (
            "nats://[::1],tls://t@[::1]:1",
            "nats://[::1],tls://***@[::1]:1",
        ),
        ("nats://u:p@a,tls://v:q@b", "nats://u:***@a,tls://v:***@b"),
    ];
    for (url, expected) in shown {
        assert_eq!(redact_url(url), expected);
    }
}

#[test]
fn table_names_follow_the_rules_of_sql() {
    let parsed = |text: &str| TableName::parse(text).map(|name| (name.schema, name.table));
    let pair = |schema: &str, table: &str| Ok((schema.to_owned(), table.to_owned()));
    assert_eq!(parsed("public.Events"), pair("public", "events"));
    assert_eq!(parsed("\"we\"\"ird\".t"), pair("we\"ird", "t"));
    assert_eq!(parsed("\"a.b\".\"C D\""), pair("a.b", "C D"));
    assert_eq!(parsed("_a1$.é"), pair("_a1$", "é"));
    let long = "x".repeat(63);
    assert_eq!(parsed(&format!("a.{long}")), pair("a", &long));
    for wrong in [
        "", "a", ".", "a.", ".b", "a.b.c", "a b.c", "1a.b", "\"a.b", "a.\"\"", "a.b\"c\"",
    ] {
        assert!(parsed(wrong).is_err(), "{wrong}");
    }
    assert!(parsed(&format!("a.{long}x")).is_err());
}

#[test]
fn subjects_and_names_are_held_to_the_servers_rules() {
    for pattern in ["a", "a.b", "*", ">", "a.*.b", "a.>"] {
        assert_eq!(check_pattern(pattern), Ok(()), "{pattern}");
    }
    for pattern in ["", "a.", ".a", "a..b", "a b", "a.>.b", "a*", "$JS.API"] {
        assert!(check_pattern(pattern).is_err(), "{pattern}");
    }
    for slot in ["a", "a_1", &"x".repeat(63)] {
        assert_eq!(check_slot(slot), Ok(()), "{slot}");
    }
    for slot in ["", "A", "a-b", &"x".repeat(64)] {
        assert!(check_slot(slot).is_err(), "{slot}");
    }
    for stream in [
        "",
        "a b",
        "a.b",
        "a*",
        "a>",
        "a/b",
        "a\\b",
        &"x".repeat(256),
    ] {
        assert!(check_stream(stream).is_err(), "{stream}");
    }
}

#[test]
fn both_sides_of_each_limit() {
    let cases = [
        ("postgres.takeover_after", ["1s", "1h"], ["999ms", "3601s"]),
        ("postgres.halt_retry", ["1s", "1h"], ["999ms", "3601s"]),
        (
            "postgres.connect_timeout",
            ["100ms", "10m"],
            ["99ms", "601s"],
        ),
        ("nats.connect_timeout", ["100ms", "10m"], ["99ms", "601s"]),
        ("stream.replicas", ["1", "5"], ["0", "6"]),
        ("publish.in_flight_max", ["1", "16384"], ["0", "16385"]),
        (
            "publish.in_flight_bytes_max",
            ["64KiB", "1GiB"],
            ["65535B", "1025MiB"],
        ),
        ("publish.ack_timeout", ["100ms", "10m"], ["99ms", "601s"]),
        ("publish.drain_timeout", ["0s", "1h"], ["x", "3601s"]),
        ("stream.duplicate_window", ["100ms", "1d"], ["99ms", "0s"]),
        ("stream.max_age", ["15s", "0s"], ["14999ms", "1ms"]),
        ("stream.hold", ["0s", "1h"], ["x", "3601s"]),
        (
            "publish.claim_check.max_age",
            ["100ms", "0s"],
            ["99ms", "1ms"],
        ),
        (
            "publish.claim_check.bucket",
            ["a", "A-z_9"],
            ["a.b", "bücket"],
        ),
    ];
    for (key, good, bad) in cases {
        for text in good {
            assert!(
                load("", &[], &[&format!("{key}={text}")]).is_ok(),
                "{key}={text}"
            );
        }
        for text in bad {
            assert!(
                load("", &[], &[&format!("{key}={text}")]).is_err(),
                "{key}={text}"
            );
        }
    }
}

#[test]
fn password_that_looks_like_a_url_is_not_shown() {
    assert_eq!(
        redact_url("host=h password = '://SECRET' user=u"),
        "host=h password=*** user=u"
    );
}
