//! What a copy says of itself over HTTP: probes for each role, metrics, status.

mod deploy;
mod page;
mod prometheus;
mod record;
mod status;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::delivery::{Delivery, SOON};
use crate::harness::postgres::Stop;
use crate::harness::{Nats, Outjet, Postgres, Wait, until};

const ANY_PORT: &str = "127.0.0.1:0";

/// A copy that answers, and where.
struct Copy {
    outjet: Outjet,
    address: SocketAddr,
}

impl Copy {
    async fn run(delivery: &Delivery) -> Self {
        let run = delivery.outjet(["run", "--log-format", "json"]);
        let mut outjet = run.env("OUTJET_HTTP__LISTEN", ANY_PORT).spawn();
        let line = outjet.logged("answering HTTP", SOON).await;
        let address = line["address"].as_str().expect("an address");
        let address = address.parse().expect("an address");
        Self { outjet, address }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path).await
    }

    async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let answer = ask(self.address, method, path).await.expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).expect("a status");
        (status.parse().expect("a number"), body.to_owned())
    }

    async fn status(&self) -> Value {
        serde_json::from_str(&self.get("/status").await.1).expect("JSON")
    }

    /// The answers of /livez, /readyz, /leaderz and /startupz.
    async fn probes(&self) -> [u16; 4] {
        let mut answers = [0; 4];
        let probes = ["/livez", "/readyz", "/leaderz", "/startupz"];
        for (answer, probe) in answers.iter_mut().zip(probes) {
            *answer = self.get(probe).await.0;
        }
        answers
    }

    async fn until_probes(&self, wanted: [u16; 4]) {
        let what = format!("the probes answer {wanted:?}");
        until(&what, SOON, async || {
            let probes = self.probes().await;
            Wait::ready_if(probes == wanted, probes)
        })
        .await;
    }

    /// Metrics by name and labels.
    async fn metrics(&self) -> BTreeMap<String, f64> {
        let (status, body) = self.get("/metrics").await;
        assert_eq!(status, 200);
        assert!(body.ends_with("# EOF\n"), "{body}");
        let lines = body.lines().filter(|line| !line.starts_with('#'));
        let metric = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        };
        lines.map(metric).collect()
    }

    async fn until_metric(&self, name: &str, suits: impl Fn(f64) -> bool) {
        until(name, SOON, async || {
            let metric = self.metrics().await.get(name).copied();
            Wait::ready_if(metric.is_some_and(&suits), metric)
        })
        .await;
    }
}

/// A request and its whole answer. HTTP/1.0, so that the body comes in one piece.
async fn ask(address: SocketAddr, method: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("{method} {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn leader_and_standby_are_ready_and_one_of_them_leads() {
    let delivery = Delivery::ready().await;
    let mut leader = Copy::run(&delivery).await;
    leader.until_probes([200, 200, 200, 200]).await;
    let standby = Copy::run(&delivery).await;
    standby.until_probes([200, 200, 503, 200]).await;
    assert_eq!(standby.status().await["state"], "standby");
    let (_, why) = standby.get("/leaderz").await;
    assert_eq!(why, "standby: another copy may lead\n");
    leader.outjet.kill().await;
    standby.until_probes([200, 200, 200, 200]).await;
    for (path, status) in [
        ("/health", 200),
        ("/ready", 200),
        ("/healthz", 200),
        ("/no", 404),
    ] {
        assert_eq!(standby.get(path).await.0, status, "{path}");
    }
    assert_eq!(standby.ask("POST", "/metrics").await.0, 405);
}

#[tokio::test]
async fn halted_copy_is_alive_and_not_ready_and_says_why() {
    let delivery = Delivery::ready().await;
    delivery.session.run("DROP PUBLICATION outjet").await;
    let copy = Copy::run(&delivery).await;
    until("it halts", SOON, async || {
        let (_, why) = copy.get("/readyz").await;
        Wait::ready_if(why.starts_with("halted: publication"), why)
    })
    .await;
    assert_eq!(copy.probes().await, [200, 503, 503, 503]);
    let (_, why) = copy.get("/readyz").await;
    assert!(why.contains("\n  fix:   "), "{why}");
    let status = copy.status().await;
    assert_eq!(status["state"], "halted");
    assert!(status["problem"]["fix"].is_string(), "{status}");
    let metrics = copy.metrics().await;
    assert_eq!(metrics["outjet_state{state=\"halted\"}"], 1.0);
}

/// It was in order once, and that is over.
#[tokio::test]
async fn leader_that_halts_is_alive_and_neither_ready_nor_leading_nor_started() {
    let delivery = Delivery::ready().await;
    let copy = Copy::run(&delivery).await;
    copy.until_probes([200, 200, 200, 200]).await;
    delivery.session.run("DROP PUBLICATION outjet").await;
    delivery
        .session
        .run("SELECT outbox.emit('order', '1', 'created')")
        .await;
    copy.until_probes([200, 503, 503, 503]).await;
    assert_eq!(copy.status().await["state"], "halted");
}

/// Whoever rolls it out need not start it again and again until NATS is back.
#[tokio::test]
async fn copy_that_finds_no_nats_has_started_and_is_not_ready() {
    let mut delivery = Delivery::ready().await;
    delivery.world.nats.stop().await;
    let copy = Copy::run(&delivery).await;
    copy.until_probes([200, 503, 503, 200]).await;
    until("it tries again", SOON, async || {
        let state = copy.status().await["state"].clone();
        Wait::ready_if(state == "retrying", state)
    })
    .await;
    delivery.world.nats.start_again().await;
    copy.until_probes([200, 200, 200, 200]).await;
}

#[tokio::test]
async fn servers_that_are_away_do_not_make_it_dead_or_at_once_unready() {
    let mut delivery = Delivery::ready().await;
    let copy = Copy::run(&delivery).await;
    copy.until_probes([200, 200, 200, 200]).await;
    delivery.world.postgres.stop(Stop::Immediate).await;
    copy.until_probes([200, 200, 503, 200]).await;
    let status = copy.status().await;
    assert_eq!(status["state"], "retrying");
    let starting = Copy::run(&delivery).await;
    starting
        .until_metric("outjet_retries_total", |retries| retries > 0.0)
        .await;
    assert_eq!(starting.probes().await, [200, 503, 503, 503]);
    assert_eq!(starting.get("/status").await.0, 200);
    assert_eq!(starting.get("/metrics").await.0, 200);
    delivery.world.postgres.start_again().await;
    copy.until_metric("outjet_state{state=\"retrying\"}", |state| state == 0.0)
        .await;
    assert_eq!(copy.probes().await[1], 200);
}

#[tokio::test]
async fn metrics_count_what_passes_and_show_the_slot() {
    let delivery = Delivery::ready().await;
    let copy = Copy::run(&delivery).await;
    copy.until_probes([200, 200, 200, 200]).await;
    let standby = Copy::run(&delivery).await;
    let emit = "SELECT outbox.emit('order', '1', 'created', '12345678') FROM generate_series(1, 5)";
    for _ in 0..4 {
        delivery.session.run(emit).await;
    }
    let too_large = "SELECT outbox.emit('order', '1', 'created', headers =>
        jsonb_build_object('X', repeat('x', 70000)))";
    delivery.session.run(too_large).await;
    let stray = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, created_at)
        VALUES ('order', '1', 'created', now() + interval '1 year')";
    // Postgres 14 counts the rows of a session that idles when it goes on or ends.
    delivery.world.postgres.connect().await.run(stray).await;
    delivery.confirmed().await;
    let metrics = copy.metrics().await;
    for (name, value) in [
        ("outjet_leader", 1.0),
        ("outjet_state{state=\"streaming\"}", 1.0),
        ("outjet_state{state=\"halted\"}", 0.0),
        ("outjet_leader_transitions_total", 1.0),
        ("outjet_transactions_decoded_total", 6.0),
        ("outjet_events_decoded_total", 22.0),
        ("outjet_events_published_total", 21.0),
        ("outjet_events_dead_lettered_total", 1.0),
        ("outjet_decoded_bytes_total", 160.0),
        ("outjet_events_in_flight", 0.0),
        ("outjet_in_flight_bytes", 0.0),
        ("outjet_oldest_unpublished_timestamp_seconds", 0.0),
        ("outjet_commit_to_ack_seconds_count", 6.0),
        ("outjet_nats_connected", 1.0),
    ] {
        assert_eq!(metrics.get(name), Some(&value), "{name}");
    }
    let now = delivery
        .session
        .text("SELECT extract(epoch FROM now())")
        .await;
    let now: f64 = now.parse().expect("a time");
    for name in ["last_published", "last_wal_message"] {
        let at = metrics[&format!("outjet_{name}_timestamp_seconds")];
        assert!((now - at).abs() < 60.0, "{name}: {at}, now {now}");
    }
    let start = metrics["process_start_time_seconds"];
    assert!((now - start).abs() < 60.0, "{start}, now {now}");
    for copy in [&copy, &standby] {
        let slot = |name: &str| format!("outjet_slot_{name}{{slot=\"outjet\"}}");
        copy.until_metric(&slot("active"), |active| active == 1.0)
            .await;
        copy.until_metric("outjet_default_partition_rows", |rows| rows == 1.0)
            .await;
        copy.until_metric(&slot("retained_wal_bytes"), |bytes| bytes > 0.0)
            .await;
        let status = "outjet_slot_wal_status{slot=\"outjet\",status=\"reserved\"}";
        copy.until_metric(status, |reserved| reserved == 1.0).await;
        let metrics = copy.metrics().await;
        assert!(
            !metrics.contains_key(&slot("safe_wal_bytes")),
            "there is no limit"
        );
    }
    assert_eq!(standby.metrics().await["outjet_leader"], 0.0);
}

/// An alarm on what is in flight must not go off at a copy that no longer leads.
#[tokio::test]
async fn what_was_in_flight_is_gone_with_the_term() {
    let mut delivery = Delivery::configured("postgres: {takeover_after: 1s}").await;
    let copy = Copy::run(&delivery).await;
    copy.until_probes([200, 200, 200, 200]).await;
    delivery.world.nats.process().pause().await;
    let emit = "SELECT outbox.emit('order', '1', 'created')";
    delivery.session.run(emit).await;
    let oldest = "outjet_oldest_unpublished_timestamp_seconds";
    copy.until_metric(oldest, |oldest| oldest > 0.0).await;
    assert_eq!(copy.metrics().await["outjet_events_in_flight"], 1.0);
    copy.until_metric("outjet_leader", |leader| leader == 0.0)
        .await;
    let metrics = copy.metrics().await;
    for name in [oldest, "outjet_events_in_flight", "outjet_nats_connected"] {
        assert_eq!(metrics[name], 0.0, "{name}");
    }
    delivery.world.nats.process().resume();
    delivery.verdict().await.assert_exact();
}

/// From a standby, with nobody who publishes: what a person needs to see before the disk is full.
#[tokio::test]
async fn slot_is_watched_from_a_copy_that_does_not_lead() {
    let postgres = Postgres::builder()
        .version(18)
        .setting("logical_decoding_work_mem", "64kB")
        .setting("max_slot_wal_keep_size", "1GB");
    let mut delivery = Delivery::on((postgres, Nats::builder()), "").await;
    let mut leader = delivery.run();
    leader.logged("leading", SOON).await;
    let copy = Copy::run(&delivery).await;
    copy.until_probes([200, 200, 503, 200]).await;
    let slot = |name: &str| format!("outjet_slot_{name}{{slot=\"outjet\"}}");
    // A transaction that is left open keeps what is confirmed long since.
    let old = delivery.world.postgres.connect().await;
    old.run("BEGIN; SELECT outbox.emit('order', '1', 'created')")
        .await;
    let large = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, payload)
        SELECT 'order', n::text, 'created', to_jsonb(repeat('x', 1000))
        FROM generate_series(1, 1000) AS n";
    delivery.session.run(large).await;
    delivery.confirmed().await;
    copy.until_metric(&slot("pinned_wal_bytes"), |bytes| bytes > 500_000.0)
        .await;
    copy.until_metric(&slot("spill_transactions_total"), |n| n >= 1.0)
        .await;
    copy.until_metric(&slot("spill_bytes_total"), |bytes| bytes > 500_000.0)
        .await;
    // The last look may be older than what was confirmed.
    copy.until_metric(&slot("lag_seconds"), |seconds| seconds == 0.0)
        .await;
    let metrics = copy.metrics().await;
    assert_eq!(metrics.get(&slot("inactive_since_timestamp_seconds")), None);
    old.run("ROLLBACK").await;
    // Nothing gets through any more.
    delivery.world.nats.stop().await;
    delivery
        .session
        .run("SELECT outbox.emit('order', '1', 'created')")
        .await;
    copy.until_metric(&slot("lag_seconds"), |seconds| seconds >= 4.0)
        .await;
    leader.kill().await;
    let since = slot("inactive_since_timestamp_seconds");
    copy.until_metric(&since, |since| since > 1e9).await;
    let reason = "outjet_slot_invalidated{slot=\"outjet\",reason=\"wal_removed\"}";
    assert_eq!(copy.metrics().await[reason], 0.0);
    let (_, status) = copy.get("/status").await;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let shown = &status["slot"];
    assert!(shown["lag_seconds"].as_f64() >= Some(4.0), "{shown}");
    assert!(shown["inactive_since"].is_string(), "{shown}");
    assert!(shown["spill"]["bytes"].as_u64() > Some(500_000), "{shown}");
    assert_eq!(shown["invalidation_reason"], Value::Null);
    let json = delivery.outjet(["status", "--json"]).output().await;
    let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
    let shown = &json["postgres"]["slot_status"];
    assert!(shown["spill_bytes"].as_u64() > Some(500_000), "{shown}");
    assert!(shown["inactive_since"].is_string(), "{shown}");
    assert!(shown["pinned_wal_bytes"].is_u64(), "{shown}");
}

/// Once before it is too late, once when it is over, and once when it was too late.
#[tokio::test]
async fn slot_that_retains_much_is_warned_about_once_and_told_to_be_out_of_danger() {
    let postgres = Postgres::builder()
        .setting("max_slot_wal_keep_size", "128MB")
        .setting("wal_keep_size", "0");
    let mut delivery = Delivery::on((postgres, Nats::builder()), "").await;
    let mut copy = delivery.run();
    copy.logged("leading", SOON).await;
    delivery.world.nats.process().pause().await;
    delivery
        .session
        .run("SELECT outbox.emit('order', '1', 'created')")
        .await;
    let switch = "SELECT pg_switch_wal(); SELECT txid_current()";
    // Eight of the nine segments that it may keep.
    for _ in 0..8 {
        delivery.session.run(switch).await;
    }
    let scarce = "the slot may be lost soon: it retains much WAL";
    let line = copy.logged(scarce, SOON).await;
    assert_eq!(line["level"], "WARN", "{line}");
    delivery.world.nats.process().resume();
    let confirmed = "SELECT restart_lsn > pg_current_wal_lsn() - 16000000 FROM pg_replication_slots
        WHERE slot_name = 'outjet'";
    until("the slot has moved on", SOON, async || {
        delivery.session.run("CHECKPOINT").await;
        let moved = delivery.session.text(confirmed).await;
        Wait::ready_if(moved == "t", moved)
    })
    .await;
    copy.logged("the slot is out of danger", SOON).await;
    let log = copy.log();
    let warned = log.iter().filter(|line| line["message"] == scarce);
    assert_eq!(warned.count(), 1, "{log:?}");
    copy.kill().await;
    let mut copy = delivery.outjet(["run", "--log-format", "json"]);
    // It never gets as far as leading, and watches all the same.
    copy = copy.env("NATS_URL", "nats://127.0.0.1:1");
    let mut copy = copy.spawn();
    let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = 'outjet'";
    until("the slot is lost", SOON, async || {
        delivery.session.run(switch).await;
        delivery.session.run("CHECKPOINT").await;
        let lost = delivery.session.text(lost).await;
        Wait::ready_if(lost == "t", lost)
    })
    .await;
    let line = copy.logged("the slot is lost", SOON).await;
    assert_eq!(line["level"], "ERROR", "{line}");
}

/// As many as may be connected at all.
#[tokio::test]
async fn silent_clients_keep_nobody_waiting_for_ever() {
    let delivery = Delivery::ready().await;
    let copy = Copy::run(&delivery).await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(copy.address).await.expect("connect"));
    }
    assert_eq!(copy.get("/livez").await.0, 200);
}

#[tokio::test]
async fn every_metric_of_the_readme_exists_with_help_and_type() {
    let delivery = Delivery::ready().await;
    let copy = Copy::run(&delivery).await;
    copy.until_metric("outjet_slot_active{slot=\"outjet\"}", |_| true)
        .await;
    let (_, body) = copy.get("/metrics").await;
    let described: Vec<&str> = body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("outjet_"))
        .collect();
    for name in &described {
        assert!(
            body.contains(&format!("# HELP {name} ")),
            "{name} has no help"
        );
        assert!(
            DOCUMENTED.contains(&format!("`{name}")),
            "docs/metrics.md does not have {name}"
        );
    }
    let documented = DOCUMENTED
        .split('`')
        .filter(|word| word.starts_with("outjet_"));
    for name in documented {
        let name = name.trim_end_matches("_total").trim_end_matches("_info");
        let known = described.contains(&name);
        // An absent gauge has no line.
        let absent = [
            "outjet_slot_safe_wal_bytes",
            "outjet_slot_inactive_since_timestamp_seconds",
        ];
        assert!(known || absent.contains(&name), "{name} does not exist");
    }
}

/// The page.
const DOCUMENTED: &str = include_str!("../../docs/metrics.md");

#[tokio::test]
async fn address_that_is_taken_is_told_and_keeps_nobody_from_publishing() {
    let delivery = Delivery::ready().await;
    let taken = std::net::TcpListener::bind(ANY_PORT).expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let run = delivery.outjet(["run", "--log-format", "json"]);
    let mut outjet = run.env("OUTJET_HTTP__LISTEN", address).spawn();
    let said = "no HTTP: probes and metrics are not answered";
    let line = outjet.logged(said, SOON).await;
    let fix = line["fix"].as_str().expect("a fix");
    assert!(fix.contains("OUTJET_HTTP__LISTEN"), "{fix}");
    delivery
        .session
        .run("SELECT outbox.emit('order', '1', 'created')")
        .await;
    delivery.verdict().await.assert_exact();
}
