//! `outjet inspect` says how a table is to be read, or why it cannot say.

use crate::delivery::{Delivery, SOON};
use crate::harness::outjet::Output;
use crate::harness::postgres::Session;
use crate::harness::{Judge, World};

/// A database of its own in this world.
async fn database(world: &World, name: &str, ddl: &str) -> Session {
    let admin = world.postgres.connect().await;
    admin.run(&format!("CREATE DATABASE {name}")).await;
    let session = Session::connect(&world.postgres.url_as("postgres", name)).await;
    session.run(ddl).await;
    session
}

async fn inspect(world: &World, (role, database): (&str, &str), table: &str) -> Output {
    let call = world.outjet(["inspect", table]);
    let url = world.postgres.url_as(role, database);
    call.env("DATABASE_URL", url).output().await
}

const TABLES: [(&str, &str, &str); 9] = [
    (
        "debezium",
        "public.outboxevent",
        include_str!("../data/presets/debezium.sql"),
    ),
    (
        "pg-outbox",
        "public.outboxes",
        include_str!("../data/presets/pg-outbox.sql"),
    ),
    (
        "outbox-events",
        "public.outbox_events",
        include_str!("../data/presets/outbox-events.sql"),
    ),
    (
        "relay-events",
        "public.outbox_events",
        include_str!("../data/presets/relay-events.sql"),
    ),
    (
        "envelope",
        "public.outbox",
        include_str!("../data/presets/envelope.sql"),
    ),
    (
        "open-outbox",
        "public.openoutbox_events",
        include_str!("../data/presets/open-outbox.sql"),
    ),
    (
        "watermill",
        "public.watermill_orders",
        include_str!("../data/presets/watermill.sql"),
    ),
    (
        "eventuate",
        "eventuate.message",
        include_str!("../data/presets/eventuate.sql"),
    ),
    (
        "pg-transactional-outbox",
        "outbox.outbox",
        include_str!("../data/presets/pg-transactional-outbox.sql"),
    ),
];

#[tokio::test]
async fn table_of_every_preset_is_recognised_and_what_is_printed_is_a_configuration() {
    let world = World::start().await;
    for (preset, table, ddl) in TABLES {
        let name = preset.replace('-', "_");
        database(&world, &name, ddl).await;
        let found = inspect(&world, ("postgres", &name), table).await;
        assert_eq!(found.code, Some(0), "{found:?}");
        assert!(
            found.stdout.contains("# No sample: there is no row."),
            "{found:?}"
        );
        let shown = world.outjet(["config", "show"]).config(&found.stdout);
        let shown = shown.output().await;
        assert_eq!(shown.code, Some(0), "{found:?} {shown:?}");
        let entry = format!(r#"[{{"name":"{table}","preset":"{preset}"}}]"#);
        assert!(shown.stdout.contains(&entry), "{shown:?}");
    }
}

#[tokio::test]
async fn sample_is_what_the_newest_row_becomes() {
    let world = World::start().await;
    let session = world.postgres.connect().await;
    session.run(TABLES[1].2).await;
    let judge = Judge::over(&world.postgres.url(), "none").await;
    let yaml = "
stream: {subjects: ['user.>']}
tables: [{name: public.outboxes, preset: pg-outbox}]";
    let delivery = Delivery::set_up(world, judge, yaml).await;
    let rows = r#"
        INSERT INTO outboxes (topic, metadata, payload, created_at) VALUES
          ('user.gone', '{"a": true, "x": {"b": 1.0}}', '{"id": 2}', now()),
          ('user.came', NULL, '{"id": 1}', date_trunc('month', now()))"#;
    delivery.session.run(rows).await;
    let mut outjet = delivery.run();
    outjet.logged("leading", SOON).await;
    delivery.confirmed().await;
    let stored = delivery.stored().await.remove(0);
    let found = delivery
        .outjet(["inspect", "public.outboxes"])
        .output()
        .await;
    let (lines, sample) = found
        .stdout
        .split_once("# The newest row would be:\n")
        .expect("a sample");
    assert!(
        lines.contains("# Not read: seq, published_at, attempts, last_error.\n"),
        "{lines}"
    );
    let sample: Vec<_> = sample
        .lines()
        .map(|line| line.trim_start_matches("# "))
        .collect();
    assert_eq!(sample[0], stored.subject);
    let (headers, body) = sample[1..].split_at(sample.len() - 3);
    assert_eq!(body, ["#", r#"{"id": 2}"#]);
    // What only the slot knows is not in it.
    let known = [
        "Nats-Expected-Last-Sequence",
        "Outjet-Position",
        "Outjet-Source",
    ];
    let known = [&known[..], &["ce-recordedtime"]].concat();
    let mut wanted = Vec::new();
    for (name, values) in stored.headers.iter() {
        if !known.contains(&name.to_string().as_str()) {
            wanted.extend(values.iter().map(|value| format!("{name}: {value}")));
        }
    }
    wanted.sort();
    let mut headers = headers.to_vec();
    headers.sort_unstable();
    assert_eq!(headers, wanted);
}

#[tokio::test]
async fn table_that_is_like_no_preset_is_read_by_usual_names_or_refused_with_the_candidates() {
    let world = World::start().await;
    let ddl = r#"
        CREATE SCHEMA "My App";
        CREATE TABLE "My App".mail (event_id bigint, entity_id int, body text, colour text);
        INSERT INTO "My App".mail VALUES (7, 1, 'hello', 'red');
        CREATE TABLE public.two (id int, event_id uuid, data text, payload text);
        CREATE TABLE public.none (id int, colour text);
        CREATE TABLE public.odd (id int, payload text, created_at text);
        CREATE VIEW public.seen AS SELECT * FROM public.two;
        CREATE ROLE stranger LOGIN"#;
    database(&world, "app", ddl).await;
    let owner = ("postgres", "app");
    let found = inspect(&world, owner, r#""My App".mail"#).await;
    assert_eq!(found.code, Some(0), "{found:?}");
    let lines = "tables:\n  - name: '\"My App\".mail'\n    preset: none\n    \
        columns: {id: event_id, aggregateid: entity_id, payload: body}\n# Not read: colour.\n";
    assert!(found.stdout.contains(lines), "{found:?}");
    assert!(
        found.stdout.contains("# Nats-Msg-Id: My App.mail:7\n"),
        "{found:?}"
    );
    assert!(found.stdout.ends_with("#\n# hello\n"), "{found:?}");

    let stranger = inspect(&world, ("stranger", "app"), r#""My App".mail"#).await;
    assert_eq!(stranger.code, Some(0), "{stranger:?}");
    assert!(stranger.stdout.contains(lines), "{stranger:?}");
    assert!(
        stranger
            .stdout
            .contains("# No sample: the newest row cannot be read"),
        "{stranger:?}"
    );

    for (table, words) in [
        (
            "public.two",
            "id could be id or event_id; payload could be payload or data",
        ),
        ("public.none", "has no column that is known to be payload"),
        (
            "public.odd",
            "column created_at of public.odd cannot be the event's created_at",
        ),
        ("public.seen", "it is a view"),
        ("public.tow", "did you mean public.two?"),
        ("app.mail", "did you mean My App.mail?"),
    ] {
        let refused = inspect(&world, owner, table).await;
        assert_ne!(refused.code, Some(0), "{refused:?}");
        assert!(refused.stderr.contains(words), "{refused:?}");
        assert_eq!(refused.stdout, "");
    }
    let unnamed = inspect(&world, owner, "two").await;
    assert_eq!(unnamed.code, Some(2), "{unnamed:?}");
    assert!(
        unnamed
            .stderr
            .contains("write it with its schema: public.two"),
        "{unnamed:?}"
    );
}
