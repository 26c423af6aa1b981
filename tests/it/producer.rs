//! `outjet::producer`: what an application in Rust writes, as it arrives.

use std::process::Command;
use std::time::{Duration, SystemTime};

use outjet::producer::Event;
use serde_json::json;

use crate::harness::postgres::Session;
use crate::harness::stage::{SOON, STREAM};
use crate::harness::{Stage, drain};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn event_is_published_with_all_that_was_given_if_its_transaction_commits() {
    let stage = Stage::ready().await;
    stage
        .session
        .run(
            "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA outbox TO app;
             GRANT INSERT ON outbox.events TO app",
        )
        .await;
    let mut app = Session::connect(&stage.world.postgres.url_as("app", "postgres")).await;
    let full = Event::new("order", "42", "OrderPlaced")
        .json(&json!({"total": 9.5}))
        .expect("JSON")
        .header("priority", "low")
        .traceparent(TRACEPARENT)
        .tenant_id("acme")
        .correlation_id("c1")
        .dedup_key("k1")
        .deliver_at(SystemTime::UNIX_EPOCH)
        .expires_at(SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800));
    let bytes = Event::new("order", "42", "OrderSigned")
        .bytes([0, 255], "application/x-signature")
        .topic("events.signed");
    let lost = Event::new("order", "42", "OrderLost");

    let transaction = app.transaction().await.expect("BEGIN");
    lost.insert(&transaction).await.expect("INSERT");
    transaction.rollback().await.expect("ROLLBACK");
    let transaction = app.transaction().await.expect("BEGIN");
    full.insert(&transaction).await.expect("INSERT");
    bytes.insert(&transaction).await.expect("INSERT");
    transaction.commit().await.expect("COMMIT");
    // The session's context is taken where the event has none.
    app.run("SET outbox.tenant_id = 'session'").await;
    let bare = Event::new("order", "43", "OrderPlaced");
    bare.insert(&*app).await.expect("INSERT");

    let mut outjet = stage.lead().await;
    stage.confirmed().await;
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let ids: Vec<String> = stored.iter().map(|message| message.row_id()).collect();
    let inserted = [&full, &bytes, &bare].map(|event| event.id().to_string());
    assert_eq!(ids, inserted);
    let [full, bytes, bare] = &stored[..] else {
        panic!("{stored:?}");
    };
    assert_eq!(full.subject, "events.order.OrderPlaced");
    assert_eq!(full.payload.as_ref(), br#"{"total": 9.5}"#);
    let headers = [
        "priority",
        "traceparent",
        "ce-tenantid",
        "ce-correlationid",
        "Outjet-Dedup-Key",
        "Outjet-Deliver-At",
        "Outjet-Expires-At",
    ];
    let (due, end) = ("1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z");
    let given = ["low", TRACEPARENT, "acme", "c1", "k1", due, end].map(Some);
    assert_eq!(headers.map(|name| full.header(name)), given);
    assert_eq!(bytes.subject, "events.signed");
    assert_eq!(bytes.payload.as_ref(), [0, 255]);
    assert_eq!(
        bytes.header("ce-datacontenttype"),
        Some("application/x-signature")
    );
    assert_eq!(bare.payload.as_ref(), b"");
    assert_eq!(bare.header("ce-tenantid"), Some("session"));
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}

#[tokio::test]
async fn event_goes_into_any_table_that_has_the_columns_that_were_given() {
    let stage = Stage::ready().await;
    stage
        .session
        .run(
            r#"CREATE SCHEMA "My Shop";
               CREATE TABLE "My Shop"."out ""box""" (id uuid PRIMARY KEY, aggregatetype text,
                 aggregateid text, type text, payload json, topic text DEFAULT 'events.here')"#,
        )
        .await;
    let event = Event::new("order", "42", "OrderPlaced").with_id(uuid::Uuid::nil());
    let event = event.json("text").expect("JSON");
    let insert = event.insert_into(&*stage.session, "My Shop", "out \"box\"");
    insert.await.expect("INSERT");
    let again = event.insert_into(&*stage.session, "My Shop", "out \"box\"");
    let refused = again.await.expect_err("the same id");
    assert_eq!(refused.code().map(|code| code.code()), Some("23505"));
    let row = r#"SELECT *, payload::text AS words FROM "My Shop"."out ""box""""#;
    let row = stage.session.query_one(row, &[]).await.expect("a row");
    assert_eq!(row.get::<_, uuid::Uuid>("id"), event.id());
    assert_eq!(row.get::<_, &str>("words"), r#""text""#);
    assert_eq!(row.get::<_, &str>("topic"), "events.here");
}

#[test]
fn producer_needs_nothing_of_the_streamer() {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .args([
            "--no-default-features",
            "--features",
            "producer",
            "--depth",
            "1",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    let tree = String::from_utf8(tree.stdout).expect("text");
    let mut names: Vec<&str> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    names.retain(|name| *name != "outjet");
    assert_eq!(names, ["serde", "serde_json", "tokio-postgres", "uuid"]);
}
