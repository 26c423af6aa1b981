//! Where values come from, which of them wins, and that all lists of keys are the same list.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

#[test]
fn without_any_source_every_key_has_the_default_of_the_documentation() {
    let config = yaml("");
    assert_eq!(config.postgres.slot, "outjet");
    assert_eq!(config.postgres.takeover_after, Duration::from_secs(10));
    assert_eq!(config.postgres.halt_retry, Duration::from_secs(30));
    assert_eq!(config.postgres.sslmode, None);
    assert_eq!(config.tables.len(), 1);
    assert_eq!(config.tables[0].name.to_string(), "outbox.events");
    assert_eq!(config.tables[0].preset, Preset::Native);
    assert_eq!(
        config.nats.servers().collect::<Vec<_>>(),
        ["nats://127.0.0.1:4222"]
    );
    assert_eq!(config.stream.name, "OUTBOX");
    assert_eq!(config.stream.subjects, ["events.>"]);
    assert_eq!(config.stream.max_age, None);
    assert_eq!(config.stream.max_bytes, None);
    assert_eq!(config.publish.subject, "events.{aggregatetype}.{type}");
    assert_eq!(config.publish.in_flight_max, 4096);
    assert_eq!(config.publish.in_flight_bytes_max, 32 << 20);
    assert_eq!(config.publish.ack_timeout, Duration::from_secs(5));
    assert_eq!(config.publish.drain_timeout, Duration::from_secs(20));
    assert_eq!(config.log.level, LogLevel::Info);
}

#[test]
fn ids_are_remembered_for_longer_than_a_takeover_takes_unless_configured_otherwise() {
    for (configured, seconds) in [
        ("", 15),
        ("postgres: {takeover_after: 3s}", 10),
        ("postgres: {takeover_after: 1m}", 65),
        ("stream: {shared: true}", 120),
        ("stream: {duplicate_window: 1s}", 1),
    ] {
        let window = yaml(configured).stream.duplicate_window;
        assert_eq!(window, Duration::from_secs(seconds), "{configured}");
    }
}

#[test]
fn the_documented_file_changes_nothing() {
    let values = |config: &Config| {
        let mut values = Vec::new();
        config.raw.each("", &mut |key, value| {
            values.push((key.to_owned(), value.map(|(text, _)| text)));
        });
        values
    };
    assert_eq!(values(&yaml(DEFAULTS)), values(&yaml("")));
}

#[test]
fn file_schema_and_code_have_the_same_keys() {
    let code: BTreeSet<String> = Raw::all_keys().into_iter().map(|key| key.path).collect();
    let leaf = |path: &str| code.contains(path);

    let file: Value = serde_saphyr::from_str(DEFAULTS).unwrap();
    let mut in_file = BTreeSet::new();
    collect("", &file, &leaf, &mut in_file);
    assert_eq!(in_file, code);

    let mut in_schema = BTreeSet::new();
    collect(
        "",
        &without_properties(&json_schema()),
        &leaf,
        &mut in_schema,
    );
    assert_eq!(in_schema, code);
}

/// A schema in the shape of what it describes.
fn without_properties(schema: &Value) -> Value {
    match schema["properties"].as_object() {
        Some(keys) => keys
            .iter()
            .map(|(key, value)| (key.clone(), without_properties(value)))
            .collect(),
        None => Value::Null,
    }
}

fn collect(path: &str, value: &Value, leaf: &dyn Fn(&str) -> bool, keys: &mut BTreeSet<String>) {
    match value.as_object() {
        Some(section) if !leaf(path) => {
            for (key, value) in section {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                collect(&path, value, leaf, keys);
            }
        }
        _ => {
            keys.insert(path.to_owned());
        }
    }
}

#[test]
fn every_key_of_the_documentation_has_a_comment_above_it_or_its_neighbour() {
    let mut commented = false;
    for line in DEFAULTS.lines().filter(|line| !line.trim().is_empty()) {
        let words = line.trim();
        assert!(line.chars().count() <= 100, "{line}");
        // A section's own line and the entries of a list need none.
        let section = words.ends_with(':') && !line.starts_with(' ');
        commented = commented || words.starts_with('#');
        assert!(commented || section || words.starts_with('-'), "{line}");
    }
}

#[test]
fn flag_beats_variable_beats_convention_beats_file_beats_default() {
    let file = "nats: {url: nats://file}";
    let convention = ("NATS_URL", "nats://convention");
    let variable = ("OUTJET_NATS__URL", "nats://variable");
    let flag = "nats.url=nats://flag";
    let url = |config: Config| config.nats.url.expose().to_owned();
    assert_eq!(url(load("", &[], &[]).unwrap()), "nats://127.0.0.1:4222");
    assert_eq!(url(load(file, &[], &[]).unwrap()), "nats://file");
    assert_eq!(
        url(load(file, &[convention], &[]).unwrap()),
        "nats://convention"
    );
    assert_eq!(
        url(load(file, &[convention, variable], &[]).unwrap()),
        "nats://variable"
    );
    assert_eq!(
        url(load(file, &[convention, variable], &[flag]).unwrap()),
        "nats://flag"
    );
}

#[test]
fn of_two_flags_the_later_wins() {
    let config = load("", &[], &["stream.name=A", "stream.name=B"]).unwrap();
    assert_eq!(config.stream.name, "B");
}

#[test]
fn every_conventional_variable_reaches_its_key() {
    for (name, key) in layers::CONVENTIONAL {
        let mut raw = Raw::default();
        let environment = BTreeMap::from([(name.to_owned(), "x".to_owned())]);
        layers::environment(&mut raw, &environment).unwrap();
        let mut given = Vec::new();
        raw.each("", &mut |path, value| {
            given.extend(value.map(|_| path.to_owned()))
        });
        assert_eq!(given, [key], "{name}");
    }
}

#[test]
fn every_key_can_be_a_variable_and_a_flag() {
    for key in Raw::all_keys() {
        let text = match key.schema["type"].as_str() {
            Some("array") => "[]",
            _ => "x",
        };
        let variable = format!("OUTJET_{}", key.path.replace('.', "__").to_uppercase());
        let environment = BTreeMap::from([(variable, text.to_owned())]);
        layers::environment(&mut Raw::default(), &environment).unwrap();
        let set = Override::from_set(&format!("{}={text}", key.path)).unwrap();
        layers::flags(&mut Raw::default(), &[set]).unwrap();
    }
}

#[test]
fn a_number_stays_text_where_text_is_needed() {
    let config = yaml("nats: {user: 007, password: 1e3}");
    assert_eq!(config.nats.user.as_deref(), Some("007"));
    assert_eq!(
        config.nats.password.as_ref().map(Secret::expose),
        Some("1e3")
    );
    let config = load(
        "",
        &[("NATS_USER", "true"), ("NATS_PASSWORD", "a: #b")],
        &[],
    )
    .unwrap();
    assert_eq!(config.nats.user.as_deref(), Some("true"));
    assert_eq!(
        config.nats.password.as_ref().map(Secret::expose),
        Some("a: #b")
    );
}

#[test]
fn lists_are_yaml_in_variables_and_flags() {
    let tables = "[{name: public.a, preset: none, columns: {id: k, payload: {value: x}}}]";
    let config = load(
        "",
        &[("OUTJET_TABLES", tables)],
        &["stream.subjects=[a.>, b]"],
    )
    .unwrap();
    let columns = &config.tables[0].columns;
    assert_eq!(columns[&Field::Id], Column::Named("k".to_owned()));
    assert_eq!(columns[&Field::Payload], Column::Constant("x".to_owned()));
    assert_eq!(config.stream.subjects, ["a.>", "b"]);
}

#[test]
fn columns_come_from_inside_others_and_become_headers() {
    let config = yaml(
        "tables:\n  - name: a.b\n    preset: debezium\n    columns:\n      \
         tenant_id: {json: meta.tenant.id}\n      trace_id: {json: meta.t, optional: true}\n      \
         traceparent: {properties: tracing.traceparent}\n    \
         extra_columns: {region: ce-region, shard: X-Shard}\n",
    );
    let table = &config.tables[0];
    let json = |path: &str, optional| Column::Json {
        path: path.to_owned(),
        optional,
    };
    assert_eq!(
        table.columns[&Field::TenantId],
        json("meta.tenant.id", false)
    );
    assert_eq!(table.columns[&Field::TraceId], json("meta.t", true));
    let properties = Column::Properties("tracing.traceparent".to_owned());
    assert_eq!(table.columns[&Field::Traceparent], properties);
    assert_eq!(table.extra_columns["region"], "ce-region");
    let wanted = config.preflight_options();
    let wanted: Vec<_> = wanted.tables[0]
        .columns
        .iter()
        .map(|required| format!("{}={}", required.field, required.column))
        .collect();
    let expected = "id=id aggregatetype=aggregatetype aggregateid=aggregateid type=type \
        payload=payload metadata=tracing metadata=meta metadata=meta ce-region=region \
        X-Shard=shard";
    assert_eq!(wanted.len(), expected.split(' ').count());
    assert!(
        wanted.iter().all(|one| expected.contains(one.as_str())),
        "{wanted:?}"
    );
}

#[test]
fn what_marks_a_published_row_is_the_presets_or_what_is_said_instead() {
    let marks = |table: &str| {
        let config = yaml(&format!("tables: [{{name: a.b, {table}}}]"));
        let options = config.assemble_options("app").unwrap();
        let marks = options.tables[0].published.iter();
        let marks = marks.map(|mark| (mark.column.clone(), mark.value.clone()));
        marks.collect::<Vec<_>>()
    };
    let by = |column: &str, value: Option<&str>| vec![(column.into(), value.map(str::to_owned))];
    let custom = "preset: none, columns: {id: i, payload: p}";
    assert_eq!(marks(custom), by("published_at", None));
    assert_eq!(
        marks("preset: relay-events"),
        by("status", Some("PUBLISHED"))
    );
    let sent = "preset: relay-events, published: sent";
    assert_eq!(marks(sent), by("sent", None));
    let state = format!("{custom}, published: {{column: state, value: 'on'}}");
    assert_eq!(marks(&state), by("state", Some("on")));
    assert_eq!(marks("preset: eventuate, published: none"), []);
}

#[test]
fn an_empty_variable_counts_as_absent() {
    let config = load("", &[("NATS_TOKEN", ""), ("OUTJET_STREAM__NAME", "")], &[]).unwrap();
    assert_eq!(config.nats.token, None);
    assert_eq!(config.stream.name, "OUTBOX");
}

#[test]
fn a_section_or_key_without_value_has_its_default() {
    let config = yaml("nats:\n#  name: x\nstream:\n  name:\n  subjects: ~\n");
    assert_eq!(config.stream.name, "OUTBOX");
    assert_eq!(config.stream.subjects, ["events.>"]);
}

#[test]
fn variables_that_kubernetes_makes_for_a_service_are_no_keys() {
    let links = [
        ("OUTJET_SERVICE_HOST", "10.0.0.1"),
        ("OUTJET_SERVICE_PORT", "9464"),
        ("OUTJET_SERVICE_PORT_METRICS", "9464"),
        ("OUTJET_PORT", "tcp://10.0.0.1:9464"),
        ("OUTJET_PORT_9464_TCP", "tcp://10.0.0.1:9464"),
        ("OUTJET_METRICS_PORT_9464_TCP_ADDR", "10.0.0.1"),
    ];
    assert!(load("", &links, &[]).is_ok());
}

#[test]
fn a_secret_can_stand_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "hunter2\n").unwrap();
    let path = path.to_str().unwrap();
    for name in ["NATS_PASSWORD_FILE", "OUTJET_NATS__PASSWORD_FILE"] {
        let config = load("nats: {user: a, password: b}", &[(name, path)], &[]).unwrap();
        assert_eq!(
            config.nats.password.as_ref().map(Secret::expose),
            Some("hunter2"),
            "{name}"
        );
    }
    let config = load(&format!("postgres: {{url_file: {path}}}"), &[], &[]).unwrap();
    assert_eq!(
        config.postgres.url.as_ref().map(Secret::expose),
        Some("hunter2")
    );
    let over = [("DATABASE_URL", "postgres://over")];
    let config = load(&format!("postgres: {{url_file: {path}}}"), &over, &[]).unwrap();
    assert_eq!(
        config.postgres.url.as_ref().map(Secret::expose),
        Some("postgres://over")
    );
}

#[test]
fn an_nkey_is_a_seed_or_a_file_with_one() {
    let seed = format!("SU{}", "A".repeat(56));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("user.nk");
    std::fs::write(&path, format!("{seed}\n")).unwrap();
    for text in [&seed, path.to_str().unwrap()] {
        let config = load("", &[("NATS_NKEY", text)], &[]).unwrap();
        assert_eq!(
            config.nats.nkey.as_ref().map(Secret::expose),
            Some(seed.as_str())
        );
    }
}

#[test]
fn what_is_shown_can_be_read_again_and_means_the_same() {
    let file = "\
stream: {name: A, subjects: [a, \"b.>\"], max_age: 7d, max_bytes: 2GiB}
tables: [{name: '\"we\"\"ird\".t', columns: {tenant_id: {value: \"x: #\"}}}]
publish: {routes: [{match: \"a.*\", to: \"b.{1}\"}]}
nats: {user: \"no\", name: 'a: b'}
";
    let config = yaml(file);
    let again = yaml(&config.show());
    assert_eq!(again.stream.subjects, config.stream.subjects);
    assert_eq!(again.stream.max_age, config.stream.max_age);
    assert_eq!(again.tables, config.tables);
    assert_eq!(again.publish.routes, config.publish.routes);
    assert_eq!(again.nats.user.as_deref(), Some("no"));
    assert_eq!(again.nats.name, "a: b");
}

#[test]
fn show_names_the_origin_and_hides_secrets() {
    let environment = [
        ("DATABASE_URL", "postgres://app:hunter2@db/app"),
        ("NATS_TOKEN", "hunter2"),
    ];
    let config = load("\nstream:\n  name: A\n", &environment, &["log.level=warn"]).unwrap();
    let shown = config.show();
    let origin = |key: &str| {
        let line = shown
            .lines()
            .find(|line| line.trim().starts_with(key))
            .unwrap();
        let (value, origin) = line.split_once(" # ").unwrap();
        (
            value.trim().to_owned(),
            origin.rsplit('/').next().unwrap().to_owned(),
        )
    };
    let pair = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(
        origin("url"),
        pair("url: \"postgres://app:***@db/app\"", "DATABASE_URL")
    );
    assert_eq!(origin("token"), pair("token: \"***\"", "NATS_TOKEN"));
    assert_eq!(origin("name: A"), pair("name: A", "outjet.yaml:3"));
    assert_eq!(origin("level"), pair("level: warn", "--set log.level"));
    assert_eq!(origin("slot"), pair("slot: outjet", "default"));
    assert_eq!(origin("creds"), pair("creds:", "not set"));
    assert!(!shown.contains("hunter2"));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn the_first_file_that_exists_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let second = folder.path().join("b.yaml");
    std::fs::write(&second, "stream: {name: B}").unwrap();
    let first = folder.path().join("a.yaml");
    let config = Config::load(&Sources {
        file: None,
        searched: &[first.to_str().unwrap(), second.to_str().unwrap()],
        environment: &BTreeMap::new(),
        overrides: &[],
    });
    let config = config.unwrap();
    assert_eq!(config.stream.name, "B");
    assert_eq!(config.file, Some(second));
}
