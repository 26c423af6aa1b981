//! What nats-server 2.12 and newer have: batches, ends and schedules.

use super::{LAST, LAST_OF_SUBJECT, Restart, Rule, Step};
use super::{api, ask, create, create_on, get, info, put, wait};

fn in_batch(id: &str, sequence: u32, more: &str) -> Step {
    let bar = if more.is_empty() { "" } else { "|" };
    let lines = format!("Nats-Batch-Id: {id}|Nats-Batch-Sequence: {sequence}{bar}{more}");
    put("s.a", &lines)
}

const COMMIT: &str = "Nats-Batch-Commit: 1";

pub(super) fn batches() -> Vec<Rule> {
    let stream = || create("S", r#""allow_atomic":true,"allow_msg_ttl":true"#);
    let batch = |id: &str, first: &str, last: &str| {
        let last = match last {
            "" => COMMIT.to_owned(),
            last => format!("{last}|{COMMIT}"),
        };
        [in_batch(id, 1, first), in_batch(id, 2, &last)]
    };
    let all = |batches: Vec<[Step; 2]>| {
        let steps = batches.into_iter().flatten();
        let steps = [stream()].into_iter().chain(steps);
        steps.chain([info("S")]).collect::<Vec<_>>()
    };
    vec![
        Rule::new(
            "a batch is stored as a whole behind what its first message expects",
            all(vec![
                batch("a", &format!("{LAST}: 0"), ""),
                batch("a", &format!("{LAST}: 0"), ""),
                batch("a", &format!("{LAST}: 2"), ""),
                batch("b", "", &format!("{LAST}: 4")),
                batch("c", &format!("{LAST}: 7"), &format!("{LAST}: 7")),
                batch("d", "", &format!("{LAST}: 5")),
                batch("e", &format!("{LAST}: 6"), &format!("{LAST}: 7")),
                batch("f", &format!("{LAST}: 6"), &format!("{LAST}: 6")),
            ]),
        ),
        Rule::new(
            "a batch has no id that is known",
            all(vec![
                batch("a", "Nats-Msg-Id: i", "Nats-Msg-Id: i"),
                batch("a", "Nats-Msg-Id: i", "Nats-Msg-Id: j"),
                batch("b", "Nats-Msg-Id: k", "Nats-Msg-Id: j"),
                batch("c", "Nats-Msg-Id: k", "Nats-Msg-Id: l"),
                batch("d", &format!("Nats-Msg-Id: k|{LAST}: 0"), ""),
            ]),
        ),
    ]
}

pub(super) fn odd_batches() -> Vec<Rule> {
    let stream = || create("S", r#""allow_atomic":true,"allow_msg_ttl":true"#);
    vec![
        Rule::new(
            "a batch has all its messages",
            [
                stream(),
                in_batch("a", 2, COMMIT),
                in_batch("a", 1, ""),
                in_batch("a", 3, ""),
                in_batch("a", 2, COMMIT),
                in_batch("b", 1, ""),
                in_batch("b", 3, COMMIT),
                in_batch("b", 2, COMMIT),
                in_batch("c", 1, ""),
                put("none", "Nats-Batch-Id: c|Nats-Batch-Sequence: 2"),
                in_batch("c", 3, COMMIT),
                in_batch("d", 1, COMMIT),
                in_batch("e", 1, ""),
                in_batch("e", 2, "Nats-Batch-Commit: 2"),
                in_batch("e", 2, COMMIT),
                in_batch("f", 1, ""),
                in_batch("f", 1, ""),
                in_batch("f", 2, COMMIT),
                info("S"),
            ],
        ),
        Rule::new(
            "a batch is one that the server understands",
            [
                stream(),
                put("s.a", "Nats-Batch-Id: a"),
                in_batch(&"a".repeat(64), 1, COMMIT),
                in_batch(&"a".repeat(65), 1, COMMIT),
                in_batch("a", 0, COMMIT),
                in_batch("a", 1, "Nats-TTL: nonsense"),
                in_batch("a", 2, COMMIT),
                in_batch("b", 1, "Nats-Expected-Stream: other"),
                in_batch("b", 2, COMMIT),
                in_batch("c", 1, &format!("{LAST_OF_SUBJECT}: 7")),
                in_batch("c", 2, COMMIT),
                in_batch("d", 1, &format!("{LAST_OF_SUBJECT}: 1")),
                in_batch("d", 2, COMMIT),
                in_batch("e", 1, ""),
                in_batch("e", 2, "Nats-Batch-Commit: eob"),
                info("S"),
                get("S", r#"{"seq":1}"#),
            ],
        ),
    ]
}

pub(super) fn lost_batches() -> Vec<Rule> {
    let stream = || create("S", r#""allow_atomic":true,"allow_msg_ttl":true"#);
    vec![
        Rule::new(
            "a batch that is not finished in time is forgotten, and so with the server",
            [
                stream(),
                in_batch("a", 1, ""),
                wait(11_000),
                in_batch("a", 2, COMMIT),
                in_batch("b", 1, ""),
                Restart,
                in_batch("b", 2, COMMIT),
                api("STREAM.INFO", "S", "{}"),
            ],
        ),
        Rule::new(
            "a batch has room as a whole or not at all",
            [
                create("S", r#""allow_atomic":true,"discard":"new","max_msgs":3"#),
                put("s.a", ""),
                put("s.a", ""),
                in_batch("a", 1, ""),
                in_batch("a", 2, COMMIT),
                info("S"),
                put("s.a", ""),
                in_batch("a", 1, &format!("{LAST}: 7")),
                in_batch("a", 2, COMMIT),
                in_batch("b", 1, COMMIT),
                info("S"),
            ],
        ),
    ]
}

pub(super) fn ends() -> Vec<Rule> {
    vec![Rule::new(
        "a message vanishes at its end",
        [
            create("S", r#""allow_msg_ttl":true"#),
            put("s.a", "Nats-TTL: 1s|Nats-Msg-Id: i"),
            put("s.a", "Nats-TTL: 1"),
            put("s.a", "Nats-TTL: never"),
            put("s.a", "Nats-TTL: 1h30m"),
            put("s.a", "Nats-TTL: 1500ms"),
            put("s.a", "Nats-TTL: 999ms"),
            put("s.a", "Nats-TTL: -1"),
            put("s.a", "Nats-TTL: 0"),
            put("s.a", "Nats-TTL: nonsense"),
            info("S"),
            wait(3000),
            info("S"),
            put("s.a", "Nats-Msg-Id: i"),
            put("s.a", &format!("{LAST}: 5")),
            info("S"),
        ],
    )]
}

fn schedule(at: &str, more: &str) -> Step {
    let target = "Nats-Schedule-Target: delayed.a";
    ask(
        "_outjet.delayed.S.i.1",
        &format!("Outjet-Id: i|Nats-Schedule: {at}|{target}{more}"),
        "body",
    )
}

pub(super) fn schedules() -> Vec<Rule> {
    let stream = || {
        create_on(
            "D",
            r#"["delayed.>","_outjet.delayed.S.>"]"#,
            r#""allow_atomic":true,"allow_msg_schedules":true,"allow_msg_ttl":true"#,
        )
    };
    let (past, future) = ("@at 2020-01-01T00:00:00Z", "@at 2036-01-01T00:00:00Z");
    vec![
        Rule::new(
            "what is due appears, and its schedule goes",
            [
                stream(),
                schedule(past, "|Nats-Schedule-TTL: 30s"),
                wait(1500),
                info("D"),
                get("D", r#"{"seq":1}"#),
                get("D", r#"{"seq":2}"#),
            ],
        ),
        Rule::new(
            "what is not due stays, and replaces what has its subject",
            [
                stream(),
                schedule(future, ""),
                schedule(future, "|Nats-Schedule-TTL: 30s"),
                info("D"),
                get("D", r#"{"seq":2}"#),
                schedule("nonsense", ""),
                ask(
                    "_outjet.delayed.S.j.1",
                    &format!("Nats-Schedule: {future}"),
                    "",
                ),
                ask(
                    "_outjet.delayed.S.j.1",
                    &format!("Nats-Schedule: {future}|Nats-Schedule-Target: other.a"),
                    "",
                ),
                schedule(future, "|Nats-Schedule-TTL: nonsense"),
                info("D"),
            ],
        ),
        Rule::new(
            "a mark keeps a schedule from being stored twice",
            [0, 1].into_iter().flat_map(|again| {
                let mark = format!(
                    "Outjet-Id: i|{LAST_OF_SUBJECT}: 0|Nats-TTL: 600s|Nats-Batch-Id: b{again}|\
                     Nats-Batch-Sequence: 1"
                );
                let last = format!("|Nats-Batch-Id: b{again}|Nats-Batch-Sequence: 2|{COMMIT}");
                [
                    stream(),
                    ask("_outjet.delayed.S.i.1.mark", &mark, ""),
                    schedule(past, &last),
                    wait(1500),
                    info("D"),
                    get("D", r#"{"last_by_subj":"_outjet.delayed.S.i.1.mark"}"#),
                    get("D", r#"{"seq":3}"#),
                ]
            }),
        ),
    ]
}
