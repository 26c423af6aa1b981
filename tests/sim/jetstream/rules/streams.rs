//! What vanishes from a stream, what does not get into it, and how it is made.

use super::{LAST, LAST_OF_SUBJECT, Reconnect, Restart, Rule, Step};
use super::{api, ask, create, create_on, get, info, put, wait};

pub(super) fn vanishing() -> Vec<Rule> {
    vec![
        Rule::new(
            "what is deleted leaves a gap",
            [
                create("S", ""),
                put("s.a", ""),
                put("s.b", ""),
                put("s.a", ""),
                put("s.a", ""),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":2}"#),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":2}"#),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":9}"#),
                info("S"),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":1}"#),
                info("S"),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":4}"#),
                info("S"),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":3}"#),
                info("S"),
            ],
        ),
        Rule::new(
            "a purge takes what it names",
            [
                create("S", ""),
                put("s.a", ""),
                put("s.b", ""),
                put("s.a", ""),
                put("s.b", ""),
                api("STREAM.PURGE", "S", r#"{"filter":"s.b"}"#),
                info("S"),
                api("STREAM.PURGE", "S", r#"{"seq":3}"#),
                info("S"),
                put("s.a", ""),
                put("s.a", ""),
                api("STREAM.PURGE", "S", r#"{"keep":1}"#),
                info("S"),
                api("STREAM.PURGE", "S", r#"{"filter":"s.none"}"#),
                api("STREAM.PURGE", "S", "{}"),
                info("S"),
            ],
        ),
    ]
}

pub(super) fn forgetting() -> Vec<Rule> {
    vec![
        Rule::new(
            "what is old vanishes, and its id is forgotten",
            [
                create("S", r#""max_age":1000000000"#),
                put("s.a", "Nats-Msg-Id: i"),
                put("s.a", ""),
                wait(2500),
                info("S"),
                put("s.a", &format!("Nats-Msg-Id: i|{LAST}: 2")),
                info("S"),
            ],
        ),
        Rule::new(
            "without consumers interest stores nothing, and acknowledges it",
            [
                create("S", r#""retention":"interest""#),
                put("s.a", ""),
                put("s.a", "Nats-Msg-Id: i"),
                put("s.a", "Nats-Msg-Id: i"),
                put("s.a", &format!("{LAST}: 2")),
                info("S"),
            ],
        ),
        Rule::new(
            "memory is lost with the server, and a stream of one replica with it",
            [
                create("S", r#""storage":"memory""#),
                put("s.a", "A: b"),
                put("s.a", ""),
                info("S"),
                Restart,
                info("S"),
                put("s.a", ""),
                create("S", r#""storage":"memory""#),
                put("s.a", ""),
            ],
        ),
    ]
}

pub(super) fn limits() -> Vec<Rule> {
    let four = || (0..4).map(|_| put("s.a", ""));
    let of = |fields: &str, more: Vec<Step>| {
        let steps = [create("S", fields)].into_iter().chain(four());
        steps.chain([info("S")]).chain(more).collect::<Vec<_>>()
    };
    vec![
        Rule::new(
            "a full stream drops its oldest",
            of(r#""max_msgs":2"#, vec![put("s.a", &format!("{LAST}: 4"))]),
        ),
        Rule::new(
            "a full stream refuses new messages if so told",
            of(
                r#""max_msgs":2,"discard":"new""#,
                vec![
                    put("s.a", &format!("Nats-Msg-Id: i|{LAST}: 2")),
                    put("s.a", &format!("{LAST}: 1")),
                    api("STREAM.MSG.DELETE", "S", r#"{"seq":1}"#),
                    put("s.a", &format!("Nats-Msg-Id: i|{LAST}: 2")),
                ],
            ),
        ),
        Rule::new("bytes drop the oldest", of(r#""max_bytes":68"#, vec![])),
        Rule::new(
            "bytes that fill the stream",
            of(r#""max_bytes":68,"discard":"new""#, vec![]),
        ),
        Rule::new(
            "bytes that do not quite fill the stream",
            of(r#""max_bytes":69,"discard":"new""#, vec![]),
        ),
        Rule::new(
            "a subject has its newest messages",
            of(
                r#""max_msgs_per_subject":2"#,
                vec![put("s.b", ""), put("s.b", ""), put("s.a", ""), info("S")],
            ),
        ),
        Rule::new(
            "a subject refuses new messages if so told",
            of(
                r#""max_msgs_per_subject":2,"discard":"new","discard_new_per_subject":true"#,
                vec![put("s.b", ""), info("S")],
            ),
        ),
        Rule::new(
            "a message that takes the place of another needs no room",
            of(
                r#""max_msgs_per_subject":1,"discard":"new","max_msgs":1"#,
                vec![put("s.b", ""), info("S")],
            ),
        ),
        Rule::new(
            "messages and headers have a size",
            [
                create("S", r#""max_msg_size":20"#),
                ask("s.a", "", &"x".repeat(20)),
                ask("s.a", "", &"x".repeat(21)),
                ask("s.a", "A: b", "xx"),
                ask("s.a", "A: b", "xxx"),
                create("T", ""),
                ask("t.a", &format!("A: {}", "b".repeat(65_535 - 17)), "x"),
                ask("t.a", &format!("A: {}", "b".repeat(65_536 - 17)), "x"),
            ],
        ),
    ]
}

pub(super) fn configurations() -> Vec<Rule> {
    vec![
        Rule::new(
            "a stream is made once",
            [
                create("S", ""),
                create("S", ""),
                create("S", r#""max_msgs":7"#),
                create_on("T", r#"["s.a"]"#, ""),
                create_on("T", r#"["s.*"]"#, ""),
                create_on("T", r#"["s"]"#, ""),
                api("STREAM.CREATE", "U", r#"{"name":"U"}"#),
                create("V", r#""max_age":1000000000"#),
                create("W", r#""max_age":1000000000,"duplicate_window":2000000000"#),
                create("X", r#""num_replicas":3"#),
                create("Y", r#""nonsense":1"#),
                create("Z", r#""description":"a > b & c","metadata":{"a":"b"}"#),
                api("STREAM.INFO", "Z", "{}"),
            ],
        ),
        Rule::new(
            "streams as outjet makes them",
            [
                create(
                    "S",
                    r#""max_bytes":-1,"max_msgs":0,"max_msgs_per_subject":0,"discard":"new",
                       "retention":"limits","max_consumers":0,"max_age":0,"storage":"file",
                       "num_replicas":1,"duplicate_window":10000000000,"description":"ours",
                       "consumer_limits":null,"allow_msg_ttl":true"#,
                ),
                create(
                    "O",
                    r#""discard":"new","allow_rollup_hdrs":true,"allow_direct":true"#,
                ),
            ],
        ),
        Rule::new(
            "private subjects are translated",
            [
                create_on(
                    "S",
                    r#"["_outjet.S.>"]"#,
                    r#""subject_transform":{"src":"_outjet.S.>","dest":">"}"#,
                ),
                put("_outjet.S.s.a", ""),
                put("s.a", ""),
                get("S", r#"{"seq":1}"#),
                get("S", r#"{"last_by_subj":"s.a"}"#),
                info("S"),
                put("_outjet.S.s.a", &format!("{LAST_OF_SUBJECT}: 1")),
                put("_outjet.S.s.a", &format!("{LAST_OF_SUBJECT}: 1")),
            ],
        ),
    ]
}

pub(super) fn editing() -> Vec<Rule> {
    vec![
        Rule::new(
            "a sealed stream takes nothing",
            [
                create("S", ""),
                put("s.a", ""),
                api(
                    "STREAM.UPDATE",
                    "S",
                    r#"{"name":"S","subjects":["s.>"],"sealed":true}"#,
                ),
                put("s.a", ""),
                put("s.a", &format!("{LAST}: 0")),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":1}"#),
                api("STREAM.PURGE", "S", ""),
                info("S"),
            ],
        ),
        Rule::new(
            "an edited stream keeps to its new limits",
            [
                create("S", ""),
                put("s.a", ""),
                put("s.a", ""),
                put("s.a", ""),
                api(
                    "STREAM.UPDATE",
                    "S",
                    r#"{"name":"S","subjects":["s.>"],"max_msgs":1}"#,
                ),
                info("S"),
            ],
        ),
        Rule::new(
            "a stream that is made again begins at 1",
            [
                create("S", ""),
                put("s.a", "Nats-Msg-Id: i"),
                // What has just been stored may come back with the stream (2.10.26, 2.15.1).
                wait(500),
                api("STREAM.DELETE", "S", ""),
                put("s.a", ""),
                wait(500),
                create("S", ""),
                put("s.a", "Nats-Msg-Id: i"),
                info("S"),
            ],
        ),
        Rule::new(
            "a stream that does not acknowledge is silent",
            [
                create("S", r#""no_ack":true"#),
                put("s.a", ""),
                put("s.a", &format!("{LAST}: 7")),
                info("S"),
            ],
        ),
    ]
}

pub(super) fn buckets() -> Vec<Rule> {
    let bucket = || {
        create_on(
            "KV_B",
            r#"["$KV.B.>"]"#,
            r#""max_msgs_per_subject":1,"discard":"new","allow_rollup_hdrs":true,
               "deny_delete":true,"allow_direct":true,"max_msg_size":-1"#,
        )
    };
    vec![
        Rule::new(
            "a put compares its key's revision",
            [
                bucket(),
                put("$KV.B.a", &format!("{LAST_OF_SUBJECT}: 0")),
                put("$KV.B.a", &format!("{LAST_OF_SUBJECT}: 0")),
                put("$KV.B.b", &format!("{LAST_OF_SUBJECT}: 0")),
                put("$KV.B.a", &format!("{LAST_OF_SUBJECT}: 2")),
                put("$KV.B.a", &format!("{LAST_OF_SUBJECT}: 1")),
                put("$KV.B.a", &format!("{LAST_OF_SUBJECT}: none")),
                get("KV_B", r#"{"last_by_subj":"$KV.B.a"}"#),
                get("KV_B", r#"{"seq":1}"#),
                info("KV_B"),
                Restart,
                put("$KV.B.a", &format!("{LAST_OF_SUBJECT}: 1")),
                put("$KV.B.a", &format!("{LAST_OF_SUBJECT}: 3")),
            ],
        ),
        Rule::new(
            "a key is purged",
            [
                bucket(),
                put("$KV.B.a", ""),
                put("$KV.B.b", ""),
                api("STREAM.MSG.DELETE", "KV_B", r#"{"seq":1}"#),
                api("STREAM.PURGE", "KV_B", r#"{"filter":"$KV.B.a"}"#),
                get("KV_B", r#"{"last_by_subj":"$KV.B.a"}"#),
                put("$KV.B.a", &format!("{LAST_OF_SUBJECT}: 1")),
                put("$KV.B.a", &format!("{LAST_OF_SUBJECT}: 0")),
                put("$KV.B.a", "KV-Operation: PURGE|Nats-Rollup: sub"),
                get("KV_B", r#"{"last_by_subj":"$KV.B.a"}"#),
                info("KV_B"),
            ],
        ),
        Rule::new(
            "a rollup leaves one",
            [
                create("S", r#""allow_rollup_hdrs":true"#),
                put("s.a", ""),
                put("s.b", ""),
                put("s.a", "Nats-Rollup: sub"),
                info("S"),
                put("s.a", "Nats-Rollup: nonsense"),
                put("s.c", "Nats-Rollup: all"),
                info("S"),
                create("T", ""),
                put("t.a", "Nats-Rollup: sub"),
                put("t.a", "Nats-Rollup: nonsense"),
            ],
        ),
        Rule::new(
            "nobody but a domain's API leads to its buckets",
            [
                bucket(),
                put("$JS.API.$KV.B.a", ""),
                api("STREAM.INFO", "KV_B", "{}"),
            ],
        ),
    ]
}

pub(super) fn refusals() -> Vec<Rule> {
    vec![
        Rule::new(
            "what no stream takes",
            [
                create("S", ""),
                put("none", ""),
                put("s", ""),
                put("s..a", ""),
                put("s.a.", ""),
                put("s.*", ""),
                put("s.a", "Nats-Expected-Stream: outjet.check"),
                put(
                    "s.a",
                    &format!("Nats-Expected-Stream: outjet.check|{LAST}: 77|Nats-Msg-Id: i"),
                ),
                put("s.a", "Nats-Expected-Stream: S"),
                put("s.a", "Nats-TTL: 5s"),
                put("s.a", "Nats-Incr: +1"),
                put("s.a", "Nats-Batch-Id: b|Nats-Batch-Sequence: 1"),
                put(
                    "s.a",
                    "Nats-Schedule: @at 2030-01-01T00:00:00Z|Nats-Schedule-Target: s.b",
                ),
                info("S"),
            ],
        ),
        Rule::new(
            "what is too large ends the connection",
            [
                create("S", ""),
                ask("s.a", "", &"x".repeat(1024 * 1024 + 1)),
                Reconnect,
                put("s.a", ""),
                ask(&format!("s.{}", "a".repeat(4096)), "", "x"),
                Reconnect,
                put("s.a", ""),
            ],
        ),
    ]
}
