//! A real Prometheus reads what outjet shows; alerts and dashboard ask for what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{Copy, DOCUMENTED, ask};
use crate::delivery::{Delivery, SOON};
use crate::harness::port::Port;
use crate::harness::process::{Process, Signal, run};
use crate::harness::{Nats, Postgres, Wait, binaries, until};

const ALERTS: &str = include_str!("../../../deploy/prometheus/alerts.yaml");
const ALERTS_TEST: &str = include_str!("../../../deploy/prometheus/alerts_test.yaml");
const DASHBOARD: &str = include_str!("../../../deploy/grafana/outjet.json");

/// A Prometheus that scrapes one copy.
struct Prometheus {
    port: Port,
    _process: Process,
    _home: TempDir,
}

impl Prometheus {
    fn scraping(target: SocketAddr) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let port = Port::free();
        let config = home.path().join("prometheus.yaml");
        let yaml = format!(
            "global: {{scrape_interval: 250ms, evaluation_interval: 250ms}}
rule_files: ['{}/deploy/prometheus/alerts.yaml']
scrape_configs: [{{job_name: outjet, static_configs: [{{targets: ['{target}']}}]}}]",
            env!("CARGO_MANIFEST_DIR")
        );
        fs::write(&config, yaml).expect("write the configuration");
        let mut command = Command::new(binaries::prometheus());
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", home.path().display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", port.number()));
        let log = home.path().join("log");
        let file = fs::File::create(&log).expect("create a log");
        command.stdout(Stdio::null()).stderr(file);
        Self {
            port,
            _process: Process::spawn("prometheus", command, Signal::KILL, home.path()).log(&log),
            _home: home,
        }
    }

    /// What its API answers; `None` while it starts.
    async fn api(&self, path: &str) -> Option<Value> {
        let address = (Ipv4Addr::LOCALHOST, self.port.number()).into();
        let answer = ask(address, "GET", &format!("/api/v1/{path}")).await;
        let answer = answer.ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }

    async fn query(&self, promql: &str) -> Value {
        let encoded: String = promql.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("query?query={encoded}");
        let answer = self.api(&path).await.expect("an answer");
        assert_eq!(answer["status"], "success", "{promql}: {answer}");
        answer["data"]["result"].clone()
    }

    /// Waits until it has scraped so often, without an error.
    async fn until_scraped(&self, samples: u32) {
        until("Prometheus has scraped outjet", SOON, async || {
            let Some(answer) = self.api("targets").await else {
                return Wait::NotYet("it starts".to_owned());
            };
            let target = &answer["data"]["activeTargets"][0];
            match (target["health"].as_str(), target["lastError"].as_str()) {
                (Some("up"), Some("")) => {}
                (Some("down"), error) => return Wait::Broken(format!("{error:?}")),
                _ => return Wait::NotYet(answer.to_string()),
            }
            let count = format!("count_over_time(outjet_slot_active[1m]) >= {samples}");
            Wait::ready_if(self.query(&count).await[0].is_object(), target)
        })
        .await;
    }
}

/// A slot with a limit, so that all of its metrics have values.
async fn limited() -> Delivery {
    let postgres = Postgres::builder().setting("max_slot_wal_keep_size", "1GB");
    Delivery::on((postgres, Nats::builder()), "").await
}

#[tokio::test]
async fn prometheus_scrapes_every_metric_of_the_readme_and_every_panel_shows_something() {
    let delivery = limited().await;
    let copy = Copy::run(&delivery).await;
    copy.until_metric("outjet_slot_active{slot=\"outjet\"}", |active| {
        active == 1.0
    })
    .await;
    let prometheus = Prometheus::scraping(copy.address);
    prometheus.until_scraped(2).await;
    // Some after the first scrape, so that there are rates.
    let emit = "SELECT outbox.emit('order', '1', 'created', '{}') FROM generate_series(1, 20)";
    delivery.session.run(emit).await;
    let stored = "sum(increase(outjet_commit_to_ack_seconds_count[1m])) > 0";
    until("the events are in the metrics", SOON, async || {
        let counted = prometheus.query(stored).await;
        Wait::ready_if(counted[0].is_object(), counted)
    })
    .await;

    let described = prometheus.api("targets/metadata").await.expect("metadata");
    let described = described["data"].as_array().expect("metrics");
    let described: BTreeMap<&str, &Value> = described
        .iter()
        .filter_map(|metric| Some((metric["metric"].as_str()?, metric)))
        .collect();
    let documented = DOCUMENTED.split('`');
    let documented = documented.filter(|name| name.starts_with("outjet_"));
    // Somebody streams from the slot.
    let absent = "outjet_slot_inactive_since_timestamp_seconds";
    let documented = documented.filter(|name| *name != absent);
    for name in documented.chain(["process_cpu_seconds_total"]) {
        // Newer versions describe a counter by its full name.
        let family = name.trim_end_matches("_total").trim_end_matches("_info");
        let metric = described.get(name).or_else(|| described.get(family));
        let metric = metric.unwrap_or_else(|| panic!("{name} is not described"));
        assert_ne!(metric["type"], "unknown", "{metric}");
        assert_ne!(metric["help"], "", "{metric}");
        let histogram = metric["type"] == "histogram";
        let sample = if histogram {
            format!("{name}_count")
        } else {
            name.to_owned()
        };
        assert!(
            prometheus.query(&sample).await[0].is_object(),
            "{sample} has no sample"
        );
    }
    for (panel, promql) in dashboard_queries() {
        let shown = prometheus.query(&promql).await;
        assert!(shown[0].is_object(), "{panel} shows nothing: {promql}");
    }
    let rules = prometheus
        .api("rules")
        .await
        .expect("the rules")
        .to_string();
    assert!(rules.contains("OutjetHalted"), "{rules}");
    assert!(!rules.contains("\"health\":\"err\""), "{rules}");
}

/// The rules of OpenMetrics 1.0 that a scraper may or may not forgive.
#[tokio::test]
async fn exposition_obeys_openmetrics() {
    let delivery = limited().await;
    let copy = Copy::run(&delivery).await;
    copy.until_metric("outjet_slot_active{slot=\"outjet\"}", |active| {
        active == 1.0
    })
    .await;
    let answer = ask(copy.address, "GET", "/metrics")
        .await
        .expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    assert!(
        body.ends_with("# EOF\n") && body.matches("# EOF").count() == 1,
        "{body}"
    );
    let mut seen = BTreeSet::new();
    let mut family = (String::new(), String::new());
    let mut cumulative = 0.0;
    for line in body.lines().filter(|line| *line != "# EOF") {
        if let Some(described) = line.strip_prefix("# ") {
            let [what, name, rest] = words(described);
            match what {
                // Help comes first here: it opens a family, and none is opened twice.
                "HELP" => {
                    assert!(seen.insert(format!("# {name}")), "{name} comes twice");
                    assert!(rest.len() > 3, "{line}");
                    family = (name.to_owned(), String::new());
                    cumulative = 0.0;
                }
                "TYPE" => family.1 = rest.to_owned(),
                "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                _ => panic!("{line}"),
            }
            assert_eq!(name, family.0, "{line}");
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        let value: f64 = value.parse().expect("a number");
        assert!(seen.insert(sample.to_owned()), "{sample} comes twice");
        let name = sample.split('{').next().expect("a name");
        let suffix = name.strip_prefix(family.0.as_str());
        match (family.1.as_str(), suffix) {
            ("gauge", Some("")) | ("histogram", Some("_sum")) => {}
            ("counter", Some("_total")) => assert!(value >= 0.0, "{line}"),
            ("info", Some("_info")) => assert_eq!(value, 1.0, "{line}"),
            ("histogram", Some("_bucket")) => {
                assert!(sample.contains("le=\"") && value >= cumulative, "{line}");
                cumulative = value;
            }
            ("histogram", Some("_count")) => {
                assert!(body.contains(&format!("{}_bucket{{le=\"+Inf\"}} {value}\n", family.0)));
            }
            _ => panic!("{line} in {family:?}"),
        }
    }
    assert!(seen.len() > 60, "{body}");
}

#[test]
fn alerts_pass_their_tests_and_each_has_one_in_which_it_fires() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    for arguments in [
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts_test.yaml"],
    ] {
        let mut promtool = Command::new(binaries::promtool());
        promtool.args(arguments).current_dir(&deploy);
        run(promtool);
    }
    let alerts = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let mut names = BTreeSet::new();
    for alert in alerts {
        assert!(names.insert(alert), "{alert} comes twice");
        let fires = format!("- labels: 'ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"");
        assert!(ALERTS_TEST.contains(&fires), "no test lets {alert} fire");
    }
    assert!(names.len() > 15, "{names:?}");
}

#[test]
fn configuration_that_is_documented_is_one_of_prometheus() {
    let page = include_str!("../../../docs/metrics.md");
    let (_, yaml) = page.split_once("```yaml prometheus\n").expect("a block");
    let (yaml, _) = yaml.split_once("```").expect("its end");
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("alerts.yaml"), ALERTS).expect("write a file");
    fs::write(directory.path().join("prometheus.yaml"), yaml).expect("write a file");
    let mut promtool = Command::new(binaries::promtool());
    promtool.args(["check", "config", "prometheus.yaml"]);
    promtool.current_dir(directory.path());
    run(promtool);
}

#[test]
fn panels_of_the_dashboard_are_told_apart_and_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}");
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
        assert!(at("x") + at("w") <= 24, "{title} is too wide");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(cells.insert((x, y)), "{title} lies over another one");
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            assert!(panel["targets"][0].is_object(), "{title}");
        }
    }
    assert!(panels.len() > 20);
}

#[tokio::test]
async fn alerts_and_dashboard_name_metrics_that_exist() {
    let delivery = limited().await;
    let copy = Copy::run(&delivery).await;
    copy.until_metric("outjet_slot_active{slot=\"outjet\"}", |active| {
        active == 1.0
    })
    .await;
    let metrics = copy.metrics().await;
    let exist: BTreeSet<&str> = metrics
        .keys()
        .map(|sample| sample.split('{').next().expect("a name"))
        .collect();
    let mut named = 0;
    for text in [ALERTS, ALERTS_TEST, DASHBOARD] {
        let words = text.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        let ours = |word: &&str| word.starts_with("outjet_") || word.starts_with("process_");
        for name in words.filter(ours) {
            assert!(exist.contains(name), "{name} does not exist");
            named += 1;
        }
    }
    assert!(named > 50, "{named}");
}

/// The title of each panel and each of its queries, for one job and all slots.
fn dashboard_queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let promql = target["expr"].as_str().expect("a query");
            let promql = promql
                .replace("$__rate_interval", "1m")
                .replace("$__range", "1h");
            let promql = promql.replace("$job", "outjet").replace("$slot", ".*");
            assert!(!promql.contains('$'), "{promql}");
            queries.push((panel["title"].to_string(), promql));
        }
    }
    queries
}

/// The first two words and the rest.
fn words(line: &str) -> [&str; 3] {
    let mut words = line.splitn(3, ' ');
    [(); 3].map(|()| words.next().expect("three words"))
}
