//! `outjet status` in its forms, and that docs/status.md has every field.

use std::collections::BTreeSet;
use std::sync::Arc;

use outjet::command::look::record::GapStatus;
use outjet::error::Problem;
use outjet::watch::http::{self, Site};
use outjet::watch::vitals::{State, Vitals};
use serde_json::{Value, json};

use super::{Copy, ask};
use crate::delivery::{Delivery, SOON};
use crate::harness::postgres::Stop;
use crate::harness::{Outjet, Wait, binaries, until};

const DOCUMENT: &str = include_str!("../../../docs/status.md");

const EMIT: &str = "SELECT outbox.emit('order', '1', 'created', '{}') FROM generate_series(1, 5)";

/// Waits until a line of what it printed suits.
async fn until_line(watching: &Outjet, what: &str, suits: impl Fn(&str) -> bool) -> String {
    until(what, SOON, async || {
        let printed = watching.stdout();
        match printed.lines().rev().find(|line| suits(line)) {
            Some(line) => Wait::Ready(line.to_owned()),
            None => Wait::NotYet(printed),
        }
    })
    .await
}

/// The paths of all fields, those of objects in objects with dots.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        let path = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        fields(inner, &path, found);
        found.insert(path);
    }
}

/// Panics unless the part of the document below this heading has exactly these fields.
fn assert_documented(heading: &str, answers: &[Value]) {
    let mut found = BTreeSet::new();
    for answer in answers {
        fields(answer, "", &mut found);
    }
    let (_, part) = DOCUMENT.split_once(heading).expect("the heading");
    let part = part.split("\n## ").next().expect("its text");
    let rows = part.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented = rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned()));
    assert_eq!(found, documented.collect(), "{heading}");
}

#[tokio::test]
async fn every_field_of_both_answers_is_documented() {
    let delivery = Delivery::ready().await;
    let leader = Copy::run(&delivery).await;
    leader.until_probes([200, 200, 200, 200]).await;
    leader
        .until_metric("outjet_slot_active{slot=\"outjet\"}", |active| {
            active == 1.0
        })
        .await;
    let status = delivery.outjet(["status", "--json"]).output().await;
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert!(
        status["postgres"]["slot_status"]["holder"]["pid"].is_u64(),
        "{status}"
    );
    assert_eq!(status["stream"]["name"], "OUTBOX");
    let gap = GapStatus {
        from_lsn: "0/1".to_owned(),
        to_lsn: "0/2".to_owned(),
        bytes: 1,
        problem: "moved".to_owned(),
        cause: "why".to_owned(),
        fix: "fix".to_owned(),
    };
    let moved = json!({"record": {"gap": serde_json::to_value(gap).expect("JSON")}});
    assert_documented("\n## `outjet status --json`\n", &[status, moved]);
    // What a copy says that is halted and has met a loss.
    let vitals = Arc::new(Vitals::new(SOON));
    vitals.gap(7, Problem::new("lost", "why", "fix"));
    vitals.set(State::Halted, Some(Problem::new("problem", "why", "fix")));
    let listener = http::listen(([127, 0, 0, 1], 0).into())
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer = tokio::select! {
        () = http::serve(listener, Site::new(vitals).into()) => unreachable!("it serves for ever"),
        answer = ask(address, "GET", "/status") => answer.expect("an answer"),
    };
    let (_, troubled) = answer.split_once("\r\n\r\n").expect("a body");
    let troubled: Value = serde_json::from_str(troubled).expect("JSON");
    assert_eq!(troubled["gap"]["events"], 7);
    let answers = [leader.status().await, troubled];
    assert_documented("\n## `GET /status`\n", &answers);
}

#[tokio::test]
async fn watched_status_is_a_line_for_each_look_and_outlives_postgres() {
    let mut delivery = Delivery::ready().await;
    let mut leader = delivery.run();
    leader.logged("leading", SOON).await;
    let watch = ["status", "--watch", "--interval", "100ms"];
    let watching = delivery.outjet(watch).spawn();
    until_line(&watching, "it says who leads", |line| {
        line.contains("  leader outjet, pid ") && line.contains("  last sequence 0")
    })
    .await;
    delivery.session.run(EMIT).await;
    let line = until_line(&watching, "it sees the events", |line| {
        line.contains("  last sequence 5")
    })
    .await;
    assert!(
        line.contains("  lag ") && line.ends_with(" messages/s"),
        "{line}"
    );
    delivery.world.postgres.stop(Stop::Immediate).await;
    until_line(&watching, "it says that Postgres is away", |line| {
        line.contains("cannot be reached")
    })
    .await;
    delivery.world.postgres.start_again().await;
    until_line(&watching, "it sees Postgres again", |line| {
        line.contains("  last sequence 5")
    })
    .await;
}

#[tokio::test]
async fn watched_json_is_an_object_on_each_line() {
    let mut delivery = Delivery::ready().await;
    let watch = ["status", "--watch", "--json", "--interval", "100ms"];
    let watching = delivery.outjet(watch).spawn();
    let line = until_line(&watching, "it looks", |line| line.ends_with('}')).await;
    let seen: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(seen["postgres"]["slot"], "outjet");
    delivery.world.postgres.stop(Stop::Immediate).await;
    let line = until_line(&watching, "Postgres is away", |line| {
        line.contains("\"postgres\":null") && line.ends_with('}')
    })
    .await;
    let seen: Value = serde_json::from_str(&line).expect("JSON");
    assert!(
        seen["at"].is_string() && seen["problem"].is_string(),
        "{seen}"
    );
}

#[tokio::test]
async fn watched_status_ends_when_nobody_reads_it_and_fails_if_the_first_look_does() {
    let mut delivery = Delivery::ready().await;
    let outjet = binaries::outjet();
    let piped = format!(
        "{{ {} status --watch --interval 100ms; echo $? >&2; }} | head -n 2",
        outjet.display()
    );
    let shell = delivery.outjet([]).binary("/bin/sh").args(["-c", &piped]);
    let output = shell.output().await;
    assert_eq!(output.stdout.lines().count(), 2, "{output:?}");
    assert_eq!(output.stderr, "0\n");
    delivery.world.postgres.stop(Stop::Immediate).await;
    let output = delivery.outjet(["status", "--watch"]).output().await;
    assert_eq!(output.code, Some(69), "{output:?}");
}

#[tokio::test]
async fn watched_status_is_drawn_in_place_on_a_terminal() {
    let delivery = Delivery::ready().await;
    let terminal = "import pty, sys; pty.spawn(sys.argv[1:])";
    let outjet = binaries::outjet().display().to_string();
    let python = delivery.outjet([]).binary("/usr/bin/env");
    let watching = python
        .args(["python3", "-c", terminal, &outjet])
        .args(["status", "--watch", "--interval", "100ms"])
        .spawn();
    until("it has drawn twice", SOON, async || {
        let printed = watching.stdout();
        let drawn = printed.matches("\x1b[H").count();
        Wait::ready_if(drawn >= 2 && printed.contains("messages/s"), printed)
    })
    .await;
    let printed = watching.stdout();
    assert_eq!(printed.matches("\x1b[2J").count(), 1, "{printed:?}");
    assert!(
        printed.contains("slot          outjet, reserved\x1b[K"),
        "{printed:?}"
    );
}

#[test]
fn interval_needs_a_unit_and_a_watch() {
    use clap::Parser;
    use outjet::cli::Cli;
    let typed = |words: &str| Cli::try_parse_from(words.split(' ')).is_ok();
    assert!(typed("outjet status --watch --interval 100ms"));
    assert!(typed("outjet status --watch --interval 2m"));
    for wrong in ["99ms", "1", "s", "0s", "1.5s"] {
        assert!(
            !typed(&format!("outjet status --watch --interval {wrong}")),
            "{wrong}"
        );
    }
    assert!(!typed("outjet status --interval 1s"));
}
