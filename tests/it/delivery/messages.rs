//! What a message says: subject, headers and id, of the native outbox and of tables with a mapping.
//! Positions and times are read from the slot's own bytes, without our decoder.

use super::{Delivery, SOON};
use crate::harness::drain::Stored;
use crate::harness::postgres::Session;
use crate::harness::{Judge, World};

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A row with a value in every column that becomes a header, and headers of its own: two that are
/// passed on, and those that the server, a format or we give a meaning.
const ROW: &str = r#"
INSERT INTO outbox.events (id, created_at, aggregatetype, aggregateid, type, payload, headers,
  tenant_id, correlation_id, traceparent, dedup_key)
VALUES ('01890a5d-ac96-774b-bcce-b302099a8057', '2026-01-02 03:04:05.678+00', 'order', 'Ä 1"',
  'order.placed', '{"a": 1}',
  '{"X-Region": "eu", "x-many": ["a", 5, true], "x-none": null,
    "Nats-Rollup": "all", "nats-msg-id": "x", "Nats-Expected-Last-Sequence": "77",
    "ce-id": "x", "CE-Type": "x", "Outjet-Position": "x", "outjet-anything": "x"}',
  't1', 'c1', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', 'k1')"#;

/// A transaction as its Begin message tells it (Postgres documentation, "Logical Replication
/// Message Formats"): commit LSN in hexadecimal, commit time in RFC 3339.
const BEGINS: &str = r#"
SELECT upper(encode(substring(data, 2, 8), 'hex')) AS commit_lsn,
  rtrim(rtrim(to_char(timestamp '2000-01-01' + interval '1 microsecond'
    * ('x' || encode(substring(data, 10, 8), 'hex'))::bit(64)::bigint,
    'YYYY-MM-DD"T"HH24:MI:SS.US'), '0'), '.') || 'Z' AS commit_time
FROM pg_logical_slot_peek_binary_changes((SELECT slot_name FROM pg_replication_slots
    WHERE plugin = 'pgoutput'), NULL, NULL, 'proto_version', '1',
  'publication_names', (SELECT quote_ident(pubname) FROM pg_publication))
WHERE get_byte(data, 0) = ascii('B')"#;

/// Commit LSN and commit time of the transactions that the slot has still to send.
async fn begins(session: &Session) -> Vec<(String, String)> {
    let rows = session.query(BEGINS, &[]).await.expect("the slot's bytes");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// `<system identifier>/<timeline>/<slot>`.
async fn source(session: &Session) -> String {
    let source = "SELECT system_identifier || '/1/' || slot_name
        FROM pg_control_system(), pg_replication_slots WHERE plugin = 'pgoutput'";
    session.text(source).await
}

/// All headers of a message, sorted.
fn headers(stored: &Stored) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    for (name, values) in stored.headers.iter() {
        headers.extend(
            values
                .iter()
                .map(|value| (name.to_string(), value.to_string())),
        );
    }
    headers.sort();
    headers
}

fn sorted<const N: usize>(headers: [(&str, &str); N]) -> Vec<(String, String)> {
    let owned = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut headers = Vec::from(owned);
    headers.sort();
    headers
}

#[tokio::test]
async fn cloudevents_has_these_headers_and_no_others() {
    let delivery = Delivery::ready().await;
    delivery.session.run(ROW).await;
    let (commit_lsn, commit_time) = begins(&delivery.session).await.remove(0);
    let _outjet = delivery.run();
    delivery.verdict().await.assert_exact();
    let stored = delivery.stored().await.remove(0);
    assert_eq!(stored.subject, "events.order.order.placed");
    let expected = sorted([
        ("Nats-Expected-Last-Sequence", "0"),
        ("Nats-Msg-Id", ID),
        ("Outjet-Dedup-Key", "k1"),
        ("Outjet-Position", &format!("{commit_lsn}-00000000")),
        ("Outjet-Source", &source(&delivery.session).await),
        ("X-Region", "eu"),
        ("ce-correlationid", "c1"),
        ("ce-datacontenttype", "application/json"),
        ("ce-id", ID),
        ("ce-partitionkey", "order:%C3%84%201%22"),
        ("ce-recordedtime", &commit_time),
        ("ce-source", "/postgres/outbox.events"),
        ("ce-specversion", "1.0"),
        ("ce-subject", "%C3%84%201%22"),
        ("ce-tenantid", "t1"),
        ("ce-time", "2026-01-02T03:04:05.678Z"),
        ("ce-type", "order.placed"),
        ("traceparent", TRACEPARENT),
        ("x-many", "5"),
        ("x-many", "a"),
        ("x-many", "true"),
    ]);
    assert_eq!(headers(&stored), expected);
}

#[tokio::test]
async fn minimal_has_these_headers_and_reserved_ones_of_rows_do_nothing() {
    let delivery = Delivery::configured("publish: {format: minimal}").await;
    let session = &delivery.session;
    session
        .run("SELECT outbox.emit('order', '1', 'first') FROM generate_series(1, 2)")
        .await;
    session.run(ROW).await;
    let begins = begins(session).await;
    let mut outjet = delivery.run();
    delivery.verdict().await.assert_exact();
    let stored = delivery.stored().await;
    // Nats-Rollup would have left one.
    assert_eq!(stored.len(), 3);
    let source = source(session).await;
    let expected = sorted([
        ("Nats-Expected-Last-Sequence", "2"),
        ("Nats-Msg-Id", ID),
        ("Outjet-Dedup-Key", "k1"),
        ("Outjet-Position", &format!("{}-00000000", begins[1].0)),
        ("Outjet-Source", &source),
        ("X-Region", "eu"),
        ("traceparent", TRACEPARENT),
        ("x-many", "5"),
        ("x-many", "a"),
        ("x-many", "true"),
    ]);
    assert_eq!(headers(&stored[2]), expected);
    for (index, stored) in stored[..2].iter().enumerate() {
        let position = format!("{}-{index:08X}", begins[0].0);
        assert_eq!(stored.header("Outjet-Position"), Some(position.as_str()));
    }
    let warning = "rows have headers with reserved names (nats-, outjet-, ce-): they are left out";
    outjet.logged(warning, SOON).await;
    let lines = outjet.log();
    let warnings = lines.iter().filter(|line| line["message"] == warning);
    assert_eq!(warnings.count(), 1);
}

const MAPPED: &str = r#"
stream: {subjects: ["events.>", "people.>"]}
tables:
  - name: shop.outgoing
    preset: none
    columns:
      id: seq
      topic: goes_to
      type: kind
      aggregatetype: {value: order}
      aggregateid: customer
      payload: body
      content_type: {value: text/x-mine}
      headers: meta
      created_at: happened
      tenant_id: {value: everyone}
      tracestate: state
      baggage: luggage
publish:
  source: //shop.example/orders
  subject: "events.{aggregatetype}.{type}.{customer|token}"
  routes:
    - {match: "events.order.secret.*", to: "people.{1}.secret"}
    - {match: "events.order.secret.>", to: "events.never"}
    - {match: "mail.*.>", to: "events.mail.{2}.{1}"}
"#;

#[tokio::test]
async fn mapped_table_yields_the_subjects_headers_and_ids_of_its_mapping() {
    let world = World::start().await;
    let session = world.postgres.connect().await;
    let table = "
        CREATE SCHEMA shop;
        CREATE TABLE shop.outgoing (luggage text, state text, happened timestamp, meta json,
          body text, goes_to varchar(80), customer text, kind text, seq bigserial PRIMARY KEY)";
    session.run(table).await;
    let judge = Judge::over(&world.postgres.url(), "shop.outgoing").await;
    let delivery = Delivery::set_up(world, judge, MAPPED).await;
    // The judge finds the id in the body: its column has another name.
    let rows = r#"
        INSERT INTO shop.outgoing (kind, customer, goes_to, meta, body, luggage, state, happened)
        VALUES ('user.created', 'a.b c', NULL, NULL, '{"id": "1"}', 'k=v', 's=1', NULL),
          ('secret', 'x', NULL, '{}', '{"id": "2"}', NULL, NULL, NULL),
          ('any', 'x', 'mail.to.some.one', '{"X": "ü"}', '{"id": "3"}', NULL, NULL, NULL),
          ('any', 'x', 'events.from *.>', NULL, '{"id": "4"}', NULL, NULL, NULL),
          (NULL, '', NULL, NULL, '{"id": "5"}', NULL, NULL, '2026-01-02 03:04:05')"#;
    delivery.session.run(rows).await;
    let (commit_lsn, commit_time) = begins(&delivery.session).await.remove(0);
    let _outjet = delivery.run();
    delivery.verdict().await.assert_exact();
    let stored = delivery.stored().await;
    let subjects: Vec<&str> = stored
        .iter()
        .map(|stored| stored.subject.as_str())
        .collect();
    let expected = [
        "events.order.user.created.a_b_c",
        "people.x.secret",
        "events.mail.some.one.to",
        "events.from__._",
        "events.order._._",
    ];
    assert_eq!(subjects, expected);
    for (n, stored) in stored.iter().enumerate() {
        let id = format!("shop.outgoing:{}", n + 1);
        assert_eq!(stored.header("Nats-Msg-Id"), Some(id.as_str()));
        assert_eq!(stored.payload, format!(r#"{{"id": "{}"}}"#, n + 1));
    }
    let expected = sorted([
        ("Nats-Expected-Last-Sequence", "0"),
        ("Nats-Msg-Id", "shop.outgoing:1"),
        ("Outjet-Position", &format!("{commit_lsn}-00000000")),
        ("Outjet-Source", &source(&delivery.session).await),
        ("baggage", "k=v"),
        ("ce-datacontenttype", "text/x-mine"),
        ("ce-id", "1"),
        ("ce-partitionkey", "order:a.b%20c"),
        ("ce-recordedtime", &commit_time),
        ("ce-source", "//shop.example/orders"),
        ("ce-specversion", "1.0"),
        ("ce-subject", "a.b%20c"),
        ("ce-tenantid", "everyone"),
        ("ce-type", "user.created"),
        ("tracestate", "s=1"),
    ]);
    assert_eq!(headers(&stored[0]), expected);
    assert_eq!(stored[2].header("X"), Some("ü"));
    // NULL is absent, empty is not sent, and a timestamp without a zone names no moment.
    for name in ["ce-type", "ce-subject", "ce-time"] {
        assert_eq!(stored[4].header(name), None, "{name}");
    }
}

const ODD: &str = r#"
postgres:
  slot: slot_of_63_characters_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
  publication: 'The "odd", one''s Ünïcode; --'
tables:
  - name: '"we""ird"."ta""ble. , X"'
    preset: none
    columns: {id: 'I"d', payload: 'Pay "load"', type: 'ty.pe', aggregatetype: {value: odd}}
"#;

#[tokio::test]
async fn odd_identifiers_are_no_obstacle() {
    let world = World::start().await;
    let session = world.postgres.connect().await;
    let table = r#"
        CREATE SCHEMA "we""ird";
        CREATE TABLE "we""ird"."ta""ble. , X" ("Pay ""load""" jsonb, "ty.pe" text, "I""d" uuid)"#;
    session.run(table).await;
    let judge = Judge::over(&world.postgres.url(), r#""we""ird"."ta""ble. , X""#).await;
    let delivery = Delivery::set_up(world, judge, ODD).await;
    let slot = "SELECT length(slot_name) FROM pg_replication_slots WHERE plugin = 'pgoutput'";
    assert_eq!(delivery.session.text(slot).await, "63");
    let rows = r#"
        INSERT INTO "we""ird"."ta""ble. , X" SELECT jsonb_build_object('id', id), 'made', id
        FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, 20)) AS ids"#;
    let mut outjet = delivery.run();
    outjet.logged("leading", SOON).await;
    delivery.session.run(rows).await;
    let verdict = delivery.verdict().await;
    verdict.assert_exact();
    assert_eq!(verdict.stored, 20);
    for stored in delivery.stored().await {
        assert_eq!(stored.subject, "events.odd.made");
        let source = "/postgres/we%22ird.ta%22ble.%20,%20X";
        assert_eq!(stored.header("ce-source"), Some(source));
    }
    let again = delivery.outjet(["check"]).output().await;
    assert_eq!(again.code, Some(0), "{again:?}");
}
