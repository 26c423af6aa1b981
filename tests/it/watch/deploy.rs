//! What `deploy/` gives to Kubernetes and to Docker Compose fits what outjet answers and takes.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::Copy;
use crate::delivery::{Delivery, SOON};
use crate::harness::process::run;
use crate::harness::{Nats, Postgres, World, binaries};

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join(path)).expect("a file of ours")
}

fn documents(path: &str) -> Vec<Value> {
    let text = read(path);
    let documents = text.split("\n---\n");
    let parsed = documents.map(|document| serde_saphyr::from_str(document).expect("YAML"));
    parsed.collect()
}

/// What follows a word at the beginning of a line of the Dockerfile.
fn dockerfile(word: &str) -> String {
    let file = read("Dockerfile");
    let line = file.lines().find_map(|line| line.strip_prefix(word));
    line.expect("the instruction").trim().to_owned()
}

fn words(list: &Value) -> Vec<&str> {
    let words = list.as_array().expect("a list").iter();
    words.map(|word| word.as_str().expect("a text")).collect()
}

/// The longest stop of outjet, in seconds.
fn drain_timeout() -> u64 {
    let keys = read("config/outjet.yaml");
    let mut lines = keys.lines();
    let value = lines.find_map(|line| line.trim().strip_prefix("drain_timeout: "));
    let seconds = value.and_then(|value| value.split('s').next());
    seconds.expect("seconds").parse().expect("a number")
}

#[tokio::test]
async fn deployment_for_kubernetes_asks_for_what_a_copy_answers() {
    let [deployment, budget] = documents("deploy/kubernetes/outjet.yaml")
        .try_into()
        .expect("two");
    assert_eq!(deployment["kind"], "Deployment");
    assert_eq!(budget["kind"], "PodDisruptionBudget");
    let spec = &deployment["spec"];
    let labels = &spec["template"]["metadata"]["labels"];
    assert_eq!(spec["replicas"], 2);
    assert_eq!(&spec["selector"]["matchLabels"], labels);
    assert_eq!(&budget["spec"]["selector"]["matchLabels"], labels);
    let pod = &spec["template"]["spec"];
    let grace = pod["terminationGracePeriodSeconds"]
        .as_u64()
        .expect("seconds");
    assert!(grace > drain_timeout());
    let user = pod["securityContext"]["runAsUser"].to_string();
    assert_eq!(format!("{user}:{user}"), dockerfile("USER"));

    let container = &pod["containers"][0];
    let port = &container["ports"][0];
    assert_eq!(port["containerPort"].to_string(), dockerfile("EXPOSE"));
    let variables = container["env"].as_array().expect("variables");
    let listen = variables
        .iter()
        .find(|v| v["name"] == "OUTJET_HTTP__LISTEN");
    let listen = listen.expect("where it listens")["value"]
        .as_str()
        .expect("a text");
    assert_eq!(
        listen.rsplit_once(':').expect("a port").1,
        dockerfile("EXPOSE")
    );

    let delivery = Delivery::ready().await;
    let copy = Copy::run(&delivery).await;
    copy.until_probes([200, 200, 200, 200]).await;
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let asked = &container[probe]["httpGet"];
        assert_eq!(asked["port"], port["name"], "{probe}");
        let (status, _) = copy.get(asked["path"].as_str().expect("a path")).await;
        assert_eq!(status, 200, "{probe}");
    }
    let scraped = &spec["template"]["metadata"]["annotations"];
    assert_eq!(scraped["prometheus.io/port"], dockerfile("EXPOSE").as_str());
    let path = scraped["prometheus.io/path"].as_str().expect("a path");
    assert_eq!(copy.get(path).await.0, 200);
    assert_eq!(copy.get("/nothing").await.0, 404);
    // The variables and the arguments are ones that outjet knows.
    let mut call = delivery.outjet(["config", "show"]);
    for variable in variables {
        let value = variable["value"].as_str();
        let from_secret = variable["valueFrom"]["secretKeyRef"]["key"] == variable["name"];
        assert!(value.is_some() || from_secret, "{variable}");
        if let Some(value) = value {
            call = call.env(variable["name"].as_str().expect("a name"), value);
        }
    }
    let known = call.output().await;
    assert_eq!(known.code, Some(0), "{known:?}");
    assert_eq!(words(&container["args"]), ["run"]);
}

#[tokio::test]
async fn composition_for_docker_leads_on_servers_as_it_sets_them_up() {
    let [all] = documents("deploy/compose.yaml").try_into().expect("one");
    let services = &all["services"];
    let mut postgres = Postgres::builder();
    let command = words(&services["postgres"]["command"]);
    let settings = command.iter().filter_map(|word| word.split_once('='));
    for (name, value) in settings {
        postgres = postgres.setting(name, value);
    }
    assert!(command.contains(&"wal_level=logical"));
    assert!(words(&services["nats"]["command"]).contains(&"-js"));
    let outjet = &services["outjet"];
    let environment = outjet["environment"].as_object().expect("variables");
    let names: Vec<_> = environment.keys().collect();
    assert_eq!(names, ["DATABASE_URL", "NATS_URL"]);
    for (variable, service) in [("DATABASE_URL", "@postgres/"), ("NATS_URL", "//nats:")] {
        let value = environment[variable].as_str().expect("a text");
        assert!(value.contains(service), "{value}");
    }
    let grace = outjet["stop_grace_period"].as_str().expect("a time");
    let grace = grace.trim_end_matches('s').parse::<u64>().expect("seconds");
    assert!(grace > drain_timeout());
    let port = dockerfile("EXPOSE");
    assert_eq!(outjet["ports"], json!([format!("127.0.0.1:{port}:{port}")]));

    let world = World::with(postgres, Nats::builder()).await;
    let arguments = words(&outjet["command"]).into_iter();
    let call = world.outjet(arguments.chain(["--log-format", "json"]));
    call.spawn().logged("leading", SOON).await;
}

#[test]
fn composition_gives_prometheus_a_configuration_that_it_takes() {
    let [all] = documents("deploy/compose.yaml").try_into().expect("one");
    let prometheus = &all["services"]["prometheus"];
    let mounted = words(&prometheus["volumes"])[0];
    let (alerts, inside) = mounted
        .trim_end_matches(":ro")
        .split_once(':')
        .expect("a mount");
    let alerts = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(alerts);
    let named = prometheus["configs"][0]["source"].as_str().expect("a name");
    let content = all["configs"][named]["content"].as_str().expect("a text");
    let target = format!("outjet:{}", dockerfile("EXPOSE"));
    assert!(content.contains(&target), "{content}");
    assert!(content.contains(inside), "{content}");
    let content = content.replace(inside, alerts.to_str().expect("a path"));
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("prometheus.yml");
    fs::write(&file, content).expect("write the configuration");
    let mut promtool = Command::new(binaries::promtool());
    promtool.args(["check", "config"]).arg(&file);
    run(promtool);
}
