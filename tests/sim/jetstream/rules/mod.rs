//! What is played on the real server and on the model: short scripts, one for each rule.

mod newer;
mod streams;

use std::time::Duration;

use super::Version;

/// A rule, on streams of its own.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    pub(super) setting: Setting,
    pub(super) steps: Vec<Step>,
}

/// How its server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    Usual,
    /// In domain `hub`.
    Domain,
    /// Nobody may publish to `s.no`, nor subscribe to `no.>`.
    Denied,
}

/// What is done.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Publishes with these header lines, and compares the answer.
    Ask(String, String, Vec<u8>),
    Wait(Duration),
    /// Anything, without an answer.
    Say(&'static str),
    /// `kill -9`, and another start.
    Restart,
    Reconnect,
}

use Step::{Reconnect, Restart};

impl Rule {
    fn new(name: &'static str, steps: impl IntoIterator<Item = Step>) -> Self {
        let steps = steps.into_iter().collect();
        let setting = Setting::Usual;
        Self {
            name,
            setting,
            steps,
        }
    }

    fn on(self, setting: Setting) -> Self {
        Self { setting, ..self }
    }
}

fn ask(subject: &str, lines: &str, body: &str) -> Step {
    let lines = lines.split_terminator('|').map(|it| format!("{it}\r\n"));
    Step::Ask(subject.to_owned(), lines.collect(), body.into())
}

/// Creates a stream on `<name in lower case>.>`, with these fields besides.
fn create(name: &str, fields: &str) -> Step {
    let subjects = format!(r#"["{}.>"]"#, name.to_lowercase());
    create_on(name, &subjects, fields)
}

fn create_on(name: &str, subjects: &str, fields: &str) -> Step {
    let comma = if fields.is_empty() { "" } else { "," };
    let config = format!(r#"{{"name":"{name}","subjects":{subjects}{comma}{fields}}}"#);
    api("STREAM.CREATE", name, &config)
}

fn api(request: &str, stream: &str, body: &str) -> Step {
    ask(&format!("$JS.API.{request}.{stream}"), "", body)
}

fn put(subject: &str, lines: &str) -> Step {
    ask(subject, lines, "x")
}

fn info(stream: &str) -> Step {
    api("STREAM.INFO", stream, r#"{"deleted_details":true}"#)
}

fn get(stream: &str, which: &str) -> Step {
    api("STREAM.MSG.GET", stream, which)
}

fn wait(millis: u64) -> Step {
    Step::Wait(Duration::from_millis(millis))
}

/// All that this version has.
pub(super) fn rules(version: Version) -> Vec<Rule> {
    let mut rules = chain();
    rules.extend(ids());
    rules.extend(reading(version));
    rules.extend(streams::vanishing());
    rules.extend(streams::forgetting());
    rules.extend(streams::limits());
    rules.extend(streams::configurations());
    rules.extend(streams::editing());
    rules.extend(streams::buckets());
    rules.extend(streams::refusals());
    rules.extend(settings(version));
    if version >= Version::V2_12 {
        rules.extend(newer::batches());
        rules.extend(newer::odd_batches());
        rules.extend(newer::lost_batches());
        rules.extend(newer::ends());
        rules.extend(newer::schedules());
    }
    rules
}

const LAST: &str = "Nats-Expected-Last-Sequence";
const LAST_OF_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence";

fn settings(version: Version) -> Vec<Rule> {
    let atomic = match version >= Version::V2_12 {
        true => r#""allow_atomic":true"#,
        false => "",
    };
    vec![
        Rule::new(
            "a domain is named in what is stored, and leads to its API and its buckets",
            [
                create("S", atomic),
                put("s.a", "Nats-Msg-Id: i"),
                put("s.a", "Nats-Msg-Id: i"),
                put("s.a", &format!("{LAST}: 7")),
                put(
                    "s.a",
                    "Nats-Batch-Id: b|Nats-Batch-Sequence: 1|Nats-Batch-Commit: 1",
                ),
                info("S"),
                ask("$JS.hub.API.STREAM.INFO.S", "", ""),
                ask("$JS.other.API.STREAM.INFO.S", "", ""),
                put("$JS.hub.API.s.a", ""),
                create_on("KV_B", r#"["$KV.B.>"]"#, ""),
                put("$JS.hub.API.$KV.B.a", &format!("{LAST_OF_SUBJECT}: 0")),
                put("$JS.other.API.$KV.B.a", ""),
                get("KV_B", r#"{"last_by_subj":"$KV.B.a"}"#),
            ],
        )
        .on(Setting::Domain),
        Rule::new(
            "what is denied is said on the connection, and the rest goes on",
            [
                create("S", ""),
                put("s.no", ""),
                put("s.yes", ""),
                ask("s.no", "A: b", "x"),
                put("s.yes", &format!("{LAST}: 1")),
                Step::Say("SUB no.a 9\r\n"),
                put("s.yes", ""),
                put("s.yes", ""),
                info("S"),
            ],
        )
        .on(Setting::Denied),
    ]
}

fn chain() -> Vec<Rule> {
    vec![
        Rule::new(
            "what is stored is acknowledged with its sequence number",
            [
                create("S", ""),
                put("s.a", ""),
                put("s.b", "A: b"),
                info("S"),
            ],
        ),
        Rule::new(
            "only what expects the last sequence number is stored",
            [
                create("S", ""),
                put("s.a", &format!("{LAST}: 0")),
                put("s.a", &format!("{LAST}: 0")),
                put("s.a", &format!("{LAST}: 2")),
                put("s.a", &format!("{LAST}: 1")),
                put("s.a", &format!("{LAST}: many")),
                put("s.a", &format!("{LAST}: 1|{LAST}: 2")),
                put("s.a", &format!("{LAST}:2")),
                put("s.a", "nats-expected-last-sequence: 77"),
                info("S"),
            ],
        ),
        Rule::new(
            "the last sequence number stays when messages go",
            [
                create("S", ""),
                put("s.a", ""),
                put("s.a", ""),
                put("s.a", ""),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":3}"#),
                info("S"),
                put("s.a", &format!("{LAST}: 2")),
                put("s.a", &format!("{LAST}: 3")),
                api("STREAM.PURGE", "S", ""),
                info("S"),
                put("s.a", &format!("{LAST}: 0")),
                put("s.a", &format!("{LAST}: 4")),
                info("S"),
            ],
        ),
        Rule::new(
            "a stream that begins later expects what was before",
            [
                create("S", r#""first_seq":1000"#),
                info("S"),
                put("s.a", &format!("{LAST}: 0")),
                put("s.a", &format!("{LAST}: 999")),
                info("S"),
            ],
        ),
        Rule::new(
            "the last sequence number survives the server",
            [
                create("S", ""),
                put("s.a", ""),
                put("s.a", ""),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":2}"#),
                Restart,
                info("S"),
                put("s.a", &format!("{LAST}: 1")),
                put("s.a", &format!("{LAST}: 2")),
            ],
        ),
    ]
}

fn ids() -> Vec<Rule> {
    vec![
        Rule::new(
            "an id is known within the window, whatever else is wrong",
            [
                create("S", r#""duplicate_window":1000000000"#),
                put("s.a", "Nats-Msg-Id: i"),
                put("s.b", "Nats-Msg-Id: i"),
                put("s.a", &format!("Nats-Msg-Id: i|{LAST}: 0")),
                put("s.a", &format!("Nats-Msg-Id: i|{LAST}: 1")),
                put("s.a", &format!("Nats-Msg-Id: j|{LAST}: 0")),
                put("s.a", &format!("Nats-Msg-Id: j|{LAST}: 1")),
                put("s.a", "nats-msg-id: i"),
                put("s.a", "Nats-Msg-Id: "),
                put("s.a", "Nats-Msg-Id: "),
                wait(1300),
                put("s.a", "Nats-Msg-Id: i"),
                info("S"),
            ],
        ),
        Rule::new(
            "an id outlives its message",
            [
                create("S", ""),
                put("s.a", "Nats-Msg-Id: i"),
                put("s.a", "Nats-Msg-Id: j"),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":1}"#),
                put("s.a", "Nats-Msg-Id: i"),
                api("STREAM.PURGE", "S", ""),
                put("s.a", "Nats-Msg-Id: j"),
            ],
        ),
        Rule::new(
            "after a restart the ids are those of the messages that are there",
            [
                create("S", ""),
                put("s.a", "Nats-Msg-Id: i"),
                put("s.a", "Nats-Msg-Id: j"),
                put("s.a", "Nats-Msg-Id: k"),
                api("STREAM.MSG.DELETE", "S", r#"{"seq":2}"#),
                Restart,
                put("s.a", "Nats-Msg-Id: i"),
                put("s.a", "Nats-Msg-Id: j"),
                put("s.a", "Nats-Msg-Id: k"),
            ],
        ),
        Rule::new(
            "the last id is that of the last message",
            [
                create("S", ""),
                put("s.a", "Nats-Msg-Id: i"),
                put("s.a", "Nats-Expected-Last-Msg-Id: j"),
                put("s.a", "Nats-Expected-Last-Msg-Id: i"),
                put("s.a", "Nats-Expected-Last-Msg-Id: i"),
            ],
        ),
    ]
}

/// What is asked for.
const ASKED: [&str; 18] = [
    r#"{"seq":1}"#,
    r#"{"seq":3}"#,
    r#"{"seq":4}"#,
    r#"{"seq":0}"#,
    "{}",
    "",
    r#"{"last_by_subj":"s.a"}"#,
    r#"{"last_by_subj":"s.>"}"#,
    r#"{"last_by_subj":">"}"#,
    r#"{"last_by_subj":"s.none"}"#,
    r#"{"next_by_subj":">","seq":2}"#,
    r#"{"next_by_subj":">"}"#,
    r#"{"next_by_subj":"s.b","seq":2}"#,
    r#"{"next_by_subj":"s.b","seq":3}"#,
    r#"{"next_by_subj":">","seq":9}"#,
    r#"{"seq":1,"last_by_subj":"s.a"}"#,
    r#"{"next_by_subj":"s.a","last_by_subj":"s.a"}"#,
    "{",
];

fn reading(version: Version) -> Vec<Rule> {
    let three = || {
        [
            create("S", ""),
            put("s.a", "Nats-Msg-Id: i"),
            put("s.b", ""),
            ask("s.a", "A: b", ""),
        ]
    };
    let gets = || ASKED.iter().map(|which| get("S", which));
    let gap = [
        api("STREAM.MSG.DELETE", "S", r#"{"seq":3}"#),
        get("S", r#"{"seq":3}"#),
        get("S", r#"{"last_by_subj":">"}"#),
        get("S", r#"{"last_by_subj":"s.>"}"#),
        get("S", r#"{"next_by_subj":">","seq":3}"#),
        api("STREAM.MSG.DELETE", "S", r#"{"seq":1}"#),
        get("S", r#"{"seq":1}"#),
        get("S", r#"{"next_by_subj":">","seq":1}"#),
        info("S"),
    ];
    // 2.10 finds none with a subject whose newest message was deleted.
    let older = [
        put("s.a", ""),
        put("s.a", ""),
        api("STREAM.MSG.DELETE", "S", r#"{"seq":5}"#),
        get("S", r#"{"last_by_subj":"s.a"}"#),
        put("s.a", &format!("{LAST_OF_SUBJECT}: 4")),
    ];
    let older = older.into_iter().filter(|_| version >= Version::V2_12);
    vec![
        Rule::new("messages are read", three().into_iter().chain(gets())),
        Rule::new(
            "what is gone is not found",
            three().into_iter().chain(gap).chain(older),
        ),
        Rule::new(
            "nothing is read of an empty stream or of none",
            [
                create("S", ""),
                get("S", r#"{"seq":1}"#),
                get("S", r#"{"last_by_subj":">"}"#),
                get("S", r#"{"next_by_subj":">","seq":1}"#),
                get("NONE", r#"{"seq":1}"#),
                api("STREAM.INFO", "NONE", "{}"),
                api("STREAM.MSG.DELETE", "NONE", r#"{"seq":1}"#),
                api("STREAM.PURGE", "NONE", "{}"),
                api("STREAM.DELETE", "NONE", ""),
                api("STREAM.UPDATE", "NONE", r#"{"name":"NONE"}"#),
                api("DIRECT.GET", "S", r#"{"seq":1}"#),
                api("DIRECT.GET", "NONE", r#"{"seq":1}"#),
                ask("$JS.API.STREAM.NAMES", "", "{}"),
            ],
        ),
        Rule::new(
            "direct reads have the message in their headers",
            [
                create("S", r#""allow_direct":true"#),
                put("s.a", ""),
                put("s.a", "A: b"),
                api("DIRECT.GET", "S", r#"{"seq":3}"#),
                api("DIRECT.GET", "S", "{}"),
                api("DIRECT.GET", "S.s.none", ""),
            ],
        ),
    ]
}
