//! `outjet bench` measures what an operator's servers do, counts its own events and no others, and
//! comes to an end whatever is missing.

use std::time::Duration;

use serde_json::Value;

use crate::delivery::{Delivery, SOON, STREAM};
use crate::harness::outjet::{self, Output};
use crate::harness::process::Signal;
use crate::harness::proxy::Upstream;
use crate::harness::{Nats, Outjet, Postgres, Proxy, World, drain};

/// Exit codes (DESIGN §9).
const CHECK_FAILED: i32 = 1;
const UNAVAILABLE: i32 = 69;
const NOT_PERMITTED: i32 = 77;
const CONFIG: i32 = 78;

/// More events than any test waits for.
const ENDLESS: &str = "--rate 100/s --events 1000000";

fn bench(delivery: &Delivery, arguments: &str) -> outjet::Builder {
    let words = ["bench", "--json"].into_iter();
    let call = delivery.outjet(words.chain(arguments.split_whitespace()));
    match arguments.contains("--wait") {
        true => call,
        false => call.args(["--wait", "60s"]),
    }
}

/// Two servers and somebody who leads.
async fn led() -> (Delivery, Outjet) {
    let delivery = Delivery::ready().await;
    let mut outjet = delivery.run();
    outjet.logged("leading", SOON).await;
    (delivery, outjet)
}

async fn until_stored(delivery: &Delivery, messages: u64) {
    let jetstream = delivery.world.nats.jetstream().await;
    drain::until_stored(&jetstream, STREAM, messages, SOON).await;
}

async fn rows(delivery: &Delivery) -> String {
    let count = "SELECT count(*) FROM outbox.events";
    delivery.session.text(count).await
}

fn report(stdout: &str) -> Value {
    serde_json::from_str(stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

/// It ended with this code, and said this.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output:?}");
    for word in words.iter().chain(&["cause: ", "fix: "]) {
        assert!(output.stderr.contains(word), "no {word:?}: {output:?}");
    }
}

#[tokio::test]
async fn bench_beside_a_leader_reports_that_each_event_arrived_once_and_in_order() {
    let (delivery, _outjet) = led().await;
    let arguments = "--events 300 --per-transaction 7 --connections 3 --bytes 99";
    let output = bench(&delivery, arguments).output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let report = report(&output.stdout);
    assert_eq!(report["exact"], true, "{report}");
    assert_eq!(report["interrupted"], false);
    assert_eq!([&report["events"], &report["arrived"]], [300, 300]);
    assert_eq!(report["transactions"], 43);
    for wrong in ["missing", "doubled", "out_of_order"] {
        assert_eq!(report[wrong], 0, "{report}");
    }
    for latency in ["commit_seconds", "delivery_seconds"] {
        let ranks = ["p50", "p90", "p99", "max"].map(|rank| report[latency][rank].as_f64());
        assert!(ranks[0] > Some(0.0) && ranks.is_sorted(), "{report}");
        assert!(ranks[3] <= report["seconds"].as_f64(), "{report}");
    }
    // What it committed is what stands in the stream, as said.
    delivery.verdict().await.assert_exact();
    let stored = delivery.stored().await;
    assert_eq!(stored.len(), 300);
    let run = report["run"].as_str().expect("a run");
    for message in &stored {
        assert_eq!(message.subject, "events.outjet_bench.Bench");
        assert_eq!(report["subject"], message.subject.as_str());
        assert!(message.row_id().starts_with(run), "{run}: {message:?}");
        assert_eq!(message.payload.len(), 99);
    }
    let shown = delivery.outjet(["bench", "--events", "20"]).output().await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("0 missing, 0 doubled"), "{shown:?}");
}

#[tokio::test]
async fn bench_commits_no_faster_than_it_is_told() {
    let (delivery, _outjet) = led().await;
    let output = bench(&delivery, "--events 101 --rate 50/s").output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let report = report(&output.stdout);
    // The last event is due after two seconds; a busy machine may be later.
    let seconds = report["seconds"].as_f64().expect("seconds");
    assert!((2.0..20.0).contains(&seconds), "{report}");
    let rate = report["committed_per_second"].as_f64().expect("a rate");
    assert!((5.0..=50.5).contains(&rate), "{report}");
}

#[tokio::test]
async fn two_benches_at_once_count_their_own_events_alone() {
    let (delivery, _outjet) = led().await;
    let (one, other) = tokio::join!(
        bench(&delivery, "--events 200").output(),
        bench(&delivery, "--events 150").output(),
    );
    for (output, events) in [(one, 200), (other, 150)] {
        assert_eq!(output.code, Some(0), "{output:?}");
        let report = report(&output.stdout);
        assert_eq!([&report["events"], &report["arrived"]], [events, events]);
        assert_eq!(report["doubled"], 0, "{report}");
    }
    until_stored(&delivery, 350).await;
}

#[tokio::test]
async fn bench_without_a_leader_commits_nothing_and_says_what_to_start() {
    let delivery = Delivery::ready().await;
    let output = bench(&delivery, "--wait 3s").output().await;
    refused(&output, CHECK_FAILED, &["nobody leads", "`outjet run`"]);
    assert_eq!(rows(&delivery).await, "0");
    delivery
        .session
        .run("SELECT pg_drop_replication_slot('outjet')")
        .await;
    let output = bench(&delivery, "--wait 60s").output().await;
    assert!(output.stderr.contains("does not exist"), "{output:?}");
    assert!(output.stderr.contains("`outjet setup`"), "{output:?}");
}

#[tokio::test]
async fn bench_whose_leader_dies_ends_with_what_it_measured_and_what_to_start() {
    let (delivery, mut outjet) = led().await;
    let mut bench = bench(&delivery, &format!("{ENDLESS} --wait 3s")).spawn();
    until_stored(&delivery, 20).await;
    outjet.kill().await;
    assert_eq!(bench.exit(SOON).await.code(), Some(CHECK_FAILED));
    assert!(
        bench.stderr().contains("nobody leads"),
        "{}",
        bench.stderr()
    );
    let report = report(&bench.stdout());
    assert_eq!(report["exact"], false);
    let count = |field: &str| report[field].as_u64().expect("a number");
    assert!(count("arrived") >= 20 && count("missing") > 0, "{report}");
    assert_eq!(count("arrived") + count("missing"), count("events"));
}

#[tokio::test]
async fn interrupted_bench_reports_what_it_measured() {
    let (delivery, _outjet) = led().await;
    let mut bench = bench(&delivery, ENDLESS).spawn();
    until_stored(&delivery, 20).await;
    bench.signal(Signal::INT);
    assert_eq!(bench.exit(SOON).await.code(), Some(0));
    let report = report(&bench.stdout());
    assert_eq!([&report["exact"], &report["interrupted"]], [true, true]);
    assert_eq!(report["arrived"], report["events"]);
    assert_eq!(rows(&delivery).await, report["events"].to_string());
}

#[tokio::test]
async fn stalled_servers_do_not_keep_a_bench() {
    let (mut delivery, _outjet) = led().await;
    let link = Proxy::start(Upstream::Unix(delivery.world.postgres.socket()));
    let url = format!("postgres://postgres@{}/postgres", link.address());
    let arguments = format!("{ENDLESS} --wait 3s");
    let through = bench(&delivery, &arguments).env("DATABASE_URL", url);
    let mut through = through.spawn();
    until_stored(&delivery, 20).await;
    link.freeze();
    assert_eq!(through.exit(SOON).await.code(), Some(UNAVAILABLE));
    let said = through.stderr();
    assert!(said.contains("Postgres does not answer"), "{said}");
    assert_eq!(report(&through.stdout())["missing"], 0);

    let mut other = bench(&delivery, &arguments).spawn();
    let stored = delivery.count().await;
    until_stored(&delivery, stored + 20).await;
    delivery.world.nats.process().pause().await;
    assert_eq!(other.exit(SOON).await.code(), Some(CHECK_FAILED));
    let said = other.stderr();
    assert!(
        said.contains("events that were committed do not arrive"),
        "{said}"
    );
    assert_eq!(report(&other.stdout())["exact"], false);
    delivery.world.nats.process().resume();
}

#[tokio::test]
async fn bench_refuses_where_its_events_would_not_be_published() {
    let world = World::start().await;
    let other = "tables: [{name: public.outboxevent, preset: debezium}]";
    let output = world.outjet(["bench"]).config(other).output().await;
    let words = [
        "outbox.events, which is not published",
        "public.outboxevent",
    ];
    refused(&output, CHECK_FAILED, &words);

    // A leader would halt over it, and keep what the application writes.
    let narrow = "stream: {subjects: ['events.order.>']}";
    let delivery = Delivery::configured(narrow).await;
    let mut outjet = delivery.run();
    outjet.logged("leading", SOON).await;
    let output = bench(&delivery, "--wait 60s").output().await;
    refused(
        &output,
        CONFIG,
        &["events.outjet_bench.Bench", "does not cover"],
    );
    assert_eq!(rows(&delivery).await, "0");
}

#[tokio::test]
async fn bench_needs_the_rights_that_it_names() {
    let nats = r#"authorization { users: [
        { user: admin, password: admin }
        { user: outjet, password: outjet, permissions: {
            publish: ["$JS.API.STREAM.INFO.OUTBOX"], subscribe: ["_INBOX.>"] } }
        { user: bench, password: bench, permissions: {
            publish: ["$JS.API.STREAM.INFO.OUTBOX", "$JS.API.CONSUMER.CREATE.OUTBOX.>",
                      "$JS.FC.OUTBOX.>"]
            subscribe: ["_INBOX.>"] } } ] }"#;
    let world = World::with(Postgres::builder(), Nats::builder().config(nats)).await;
    let host = world.nats.url().replace("nats://", "");
    let call = |user: &str, arguments: &'static str| {
        let call = world.outjet(arguments.split_whitespace());
        call.env("NATS_URL", format!("nats://{user}:{user}@{host}"))
    };
    let setup = call("admin", "setup").output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let mut outjet = call("admin", "run --log-format json").spawn();
    outjet.logged("leading", SOON).await;
    let output = call("outjet", "bench --events 10").output().await;
    refused(
        &output,
        NOT_PERMITTED,
        &["$JS.API.CONSUMER.CREATE.OUTBOX.>"],
    );

    // The application's rights suffice in Postgres.
    let owner = world.postgres.connect().await;
    let grants = "CREATE ROLE shop LOGIN; GRANT USAGE ON SCHEMA outbox TO shop";
    owner.run(grants).await;
    let shop = world.postgres.url_as("shop", "postgres");
    let output = call("bench", "bench --events 10").env("DATABASE_URL", &shop);
    let words = ["may not write to the outbox"];
    refused(&output.output().await, NOT_PERMITTED, &words);
    owner.run("GRANT INSERT ON outbox.events TO shop").await;
    let output = call("bench", "bench --events 2000").env("DATABASE_URL", &shop);
    let output = output.output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(outjet.terminate(Duration::from_secs(60)).await, Some(0));
}
