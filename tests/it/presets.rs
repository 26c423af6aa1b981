//! Tables of other systems work unchanged: made as those document them, written to as their writers
//! do, with their old poller's updates and deletes beside a running outjet.

use crate::delivery::{Delivery, SOON};
use crate::harness::drain::Stored;
use crate::harness::{Judge, World};

/// A system whose outbox outjet reads.
struct System {
    /// Its tables, as it documents them.
    ddl: &'static str,
    /// What its users write into `outjet.yaml`.
    yaml: &'static str,
    /// What its writers do.
    writes: &'static str,
    /// What its poller does meanwhile.
    polls: &'static str,
}

impl System {
    /// What is published when writers and poller have done their work beside outjet.
    async fn published(&self) -> Vec<Stored> {
        let world = World::start().await;
        let session = world.postgres.connect().await;
        session.run(self.ddl).await;
        let judge = Judge::over(&world.postgres.url(), "none").await;
        let delivery = Delivery::set_up(world, judge, self.yaml).await;
        let mut outjet = delivery.run();
        outjet.logged("leading", SOON).await;
        delivery.session.run(self.writes).await;
        delivery.session.run(self.polls).await;
        delivery.confirmed().await;
        delivery.stored().await
    }
}

/// Headers that are different each time: they are everywhere, and tested elsewhere.
const CHANGING: [&str; 4] = [
    "Nats-Expected-Last-Sequence",
    "Outjet-Position",
    "Outjet-Source",
    "ce-recordedtime",
];

/// Asserts all of a message: its subject, its headers, its body.
#[track_caller]
fn assert_message(stored: &Stored, subject: &str, headers: &[(&str, &str)], body: &str) {
    let mut found = Vec::new();
    for (name, values) in stored.headers.iter() {
        let name = name.to_string();
        if !CHANGING.contains(&name.as_str()) {
            found.extend(values.iter().map(|value| (name.clone(), value.to_string())));
        }
    }
    found.sort();
    let wanted = headers.iter();
    let mut wanted: Vec<_> = wanted
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    wanted.sort();
    assert_eq!(stored.subject, subject);
    assert_eq!(found, wanted);
    assert_eq!(String::from_utf8_lossy(&stored.payload), body);
}

/// What every message has in the format `cloudevents`, and what this one has.
fn cloudevents<'a>(own: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("ce-specversion", "1.0")], own].concat()
}

const ONE: &str = "11111111-1111-4111-8111-111111111111";
const TWO: &str = "22222222-2222-4222-8222-222222222222";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn debezium_with_tracing_and_removal_right_after_the_insert() {
    let system = System {
        ddl: include_str!("../data/presets/debezium.sql"),
        yaml: "
stream: {subjects: ['outbox.event.>']}
tables: [{name: public.outboxevent, preset: debezium}]
publish: {subject: 'outbox.event.{aggregatetype}'}",
        // Quarkus's extension deletes each row in the transaction that inserted it.
        writes: "
BEGIN;
INSERT INTO outboxevent VALUES ('11111111-1111-4111-8111-111111111111', 'Order', '42',
  'OrderCreated', '2026-01-02 03:04:05+00', '{\"id\": 42}',
  E'#Fri Jan 02 03:04:05 UTC 2026\\n'
  'traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\\n'
  'tracestate=vendor\\\\=1\\n');
DELETE FROM outboxevent;
COMMIT;
INSERT INTO outboxevent VALUES ('22222222-2222-4222-8222-222222222222', 'Customer', 'c 1',
  'CustomerGone', '2026-01-02 03:04:06+00', NULL, NULL)",
        polls: "DELETE FROM outboxevent",
    };
    let stored = system.published().await;
    let [order, customer] = stored.as_slice() else {
        panic!("{stored:?}");
    };
    let headers = cloudevents(&[
        ("Nats-Msg-Id", ONE),
        ("ce-id", ONE),
        ("ce-source", "/postgres/public.outboxevent"),
        ("ce-type", "OrderCreated"),
        ("ce-subject", "42"),
        ("ce-time", "2026-01-02T03:04:05Z"),
        ("ce-datacontenttype", "application/json"),
        ("ce-partitionkey", "Order:42"),
        ("traceparent", TRACEPARENT),
        ("tracestate", "vendor=1"),
    ]);
    assert_message(order, "outbox.event.Order", &headers, r#"{"id": 42}"#);
    let headers = cloudevents(&[
        ("Nats-Msg-Id", TWO),
        ("ce-id", TWO),
        ("ce-source", "/postgres/public.outboxevent"),
        ("ce-type", "CustomerGone"),
        ("ce-subject", "c%201"),
        ("ce-time", "2026-01-02T03:04:06Z"),
        ("ce-partitionkey", "Customer:c%201"),
    ]);
    assert_message(customer, "outbox.event.Customer", &headers, "");
}

/// pg-outbox, with the routes that its `topic_map` becomes.
const PG_OUTBOX: System = System {
    ddl: include_str!("../data/presets/pg-outbox.sql"),
    yaml: "
stream: {subjects: ['production.>', 'events.>', 'audit.>']}
tables:
  - name: public.outboxes
    preset: pg-outbox
    extra_columns: {id: Event-ID}
publish:
  routes:
    - {match: user.created, to: production.users.created}
    - {match: order.*, to: 'production.orders.{1}'}",
    writes: r#"
BEGIN;
INSERT INTO outboxes (id, topic, metadata, payload, created_at) VALUES
  ('11111111-1111-4111-8111-111111111111', 'user.created',
   '{"event-id": "e-1", "correlation-id": "c-1", "user-id": 7, "source": "api",
     "nested": {"a": [1, 2]},
     "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}',
   '{"user_id": 7}', date_trunc('month', now()) + interval '1 day'),
  ('22222222-2222-4222-8222-222222222222', 'order.paid', NULL, '[1]',
   date_trunc('month', now()) + interval '32 days');
COMMIT;
BEGIN;
INSERT INTO outboxes (topic, payload) VALUES ('order.gone', '{}');
ROLLBACK;
INSERT INTO outboxes (topic, payload) VALUES ('audit.log.rotated', 'null')"#,
    polls: "
WITH claimed AS (
  SELECT id, created_at FROM outboxes WHERE published_at IS NULL AND attempts < 3
  ORDER BY seq LIMIT 100 FOR UPDATE SKIP LOCKED)
UPDATE outboxes o SET attempts = o.attempts + 1 FROM claimed c
  WHERE o.id = c.id AND o.created_at = c.created_at;
UPDATE outboxes SET last_error = 'nats: no responders' WHERE topic = 'order.paid';
UPDATE outboxes SET published_at = now() - interval '31 days' WHERE topic <> 'order.paid';
DELETE FROM outboxes WHERE published_at < now() - interval '30 days'",
};

#[tokio::test]
async fn pg_outbox_with_its_topic_map_and_metadata_as_headers() {
    let stored = PG_OUTBOX.published().await;
    let [user, order, audit] = stored.as_slice() else {
        panic!("{stored:?}");
    };
    let time = user.header("ce-time").expect("a time").to_owned();
    let headers = cloudevents(&[
        ("Nats-Msg-Id", ONE),
        ("Event-ID", ONE),
        ("ce-id", ONE),
        ("ce-source", "/postgres/public.outboxes"),
        ("ce-type", "user.created"),
        ("ce-time", &time),
        ("ce-datacontenttype", "application/json"),
        ("event-id", "e-1"),
        ("correlation-id", "c-1"),
        ("user-id", "7"),
        ("source", "api"),
        ("nested", r#"{"a": [1, 2]}"#),
        ("traceparent", TRACEPARENT),
    ]);
    assert_message(
        user,
        "production.users.created",
        &headers,
        r#"{"user_id": 7}"#,
    );
    let time = order.header("ce-time").expect("a time").to_owned();
    let headers = cloudevents(&[
        ("Nats-Msg-Id", TWO),
        ("Event-ID", TWO),
        ("ce-id", TWO),
        ("ce-source", "/postgres/public.outboxes"),
        ("ce-type", "order.paid"),
        ("ce-time", &time),
        ("ce-datacontenttype", "application/json"),
    ]);
    assert_message(order, "production.orders.paid", &headers, "[1]");
    assert_eq!(audit.subject, "audit.log.rotated");
    assert_eq!(audit.payload, "null");
}

#[tokio::test]
async fn outbox_events_of_the_redis_sample() {
    let system = System {
        ddl: include_str!("../data/presets/outbox-events.sql"),
        yaml: "
tables:
  - name: public.outbox_events
    preset: outbox-events
    columns: {aggregatetype: {value: user}}",
        writes: r#"
BEGIN;
INSERT INTO users (name, email) VALUES ('Ada', 'ada@example.org');
INSERT INTO outbox_events (aggregate_id, event_type, payload, created_at)
  VALUES ('1', 'UserCreated', '{"email": "ada@example.org"}', '2026-01-02 03:04:05+00');
COMMIT"#,
        polls: "
UPDATE outbox_events SET published_at = now() WHERE published_at IS NULL;
DELETE FROM outbox_events",
    };
    let stored = system.published().await;
    let [created] = stored.as_slice() else {
        panic!("{stored:?}");
    };
    let headers = cloudevents(&[
        ("Nats-Msg-Id", "public.outbox_events:1"),
        ("ce-id", "1"),
        ("ce-source", "/postgres/public.outbox_events"),
        ("ce-type", "UserCreated"),
        ("ce-subject", "1"),
        ("ce-time", "2026-01-02T03:04:05Z"),
        ("ce-datacontenttype", "application/json"),
        ("ce-partitionkey", "user:1"),
    ]);
    let body = r#"{"email": "ada@example.org"}"#;
    assert_message(created, "events.user.UserCreated", &headers, body);
}

#[tokio::test]
async fn relay_events_with_the_trace_context_of_its_carrier() {
    let system = System {
        ddl: include_str!("../data/presets/relay-events.sql"),
        yaml: "
tables: [{name: public.outbox_events, preset: relay-events}]
publish: {subject: 'events.player.{type}'}",
        writes: r#"
BEGIN;
INSERT INTO players VALUES ('22222222-2222-4222-8222-222222222222', 'Bo');
INSERT INTO outbox_events (id, aggregate_id, event_type, payload, carrier, created_at)
  VALUES ('11111111-1111-4111-8111-111111111111', '22222222-2222-4222-8222-222222222222',
    'PlayerJoined', '{"name": "Bo"}',
    '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
      "tracestate": "a=1,b=2", "baggage": "shop=eu", "other": "left out"}',
    '2026-01-02 03:04:05+00');
COMMIT;
INSERT INTO outbox_events (id, aggregate_id, event_type, payload, created_at)
  VALUES ('22222222-2222-4222-8222-222222222222', '7', 'PlayerLeft', '{}',
    '2026-01-02 03:04:06+00')"#,
        polls: "
UPDATE outbox_events SET attempt_count = attempt_count + 1 WHERE status = 'PENDING';
UPDATE outbox_events SET status = 'PUBLISHED', published_at = now()",
    };
    let stored = system.published().await;
    let [joined, left] = stored.as_slice() else {
        panic!("{stored:?}");
    };
    let headers = cloudevents(&[
        ("Nats-Msg-Id", ONE),
        ("ce-id", ONE),
        ("ce-source", "/postgres/public.outbox_events"),
        ("ce-type", "PlayerJoined"),
        ("ce-subject", TWO),
        ("ce-time", "2026-01-02T03:04:05Z"),
        ("ce-datacontenttype", "application/json"),
        ("traceparent", TRACEPARENT),
        ("tracestate", "a=1,b=2"),
        ("baggage", "shop=eu"),
    ]);
    assert_message(
        joined,
        "events.player.PlayerJoined",
        &headers,
        r#"{"name": "Bo"}"#,
    );
    let headers = cloudevents(&[
        ("Nats-Msg-Id", TWO),
        ("ce-id", TWO),
        ("ce-source", "/postgres/public.outbox_events"),
        ("ce-type", "PlayerLeft"),
        ("ce-subject", "7"),
        ("ce-time", "2026-01-02T03:04:06Z"),
        ("ce-datacontenttype", "application/json"),
    ]);
    assert_message(left, "events.player.PlayerLeft", &headers, "{}");
}

#[tokio::test]
async fn envelope_by_tenant_with_privacy_in_body_and_headers() {
    let system = System {
        ddl: include_str!("../data/presets/envelope.sql"),
        yaml: "
stream: {subjects: ['tenants.>']}
tables: [{name: public.outbox, preset: envelope}]
publish: {format: envelope, subject: 'tenants.{tenant_id|token}.{type}'}",
        writes: r#"
INSERT INTO outbox (id, tenant_id, aggregate_id, aggregate_type, event_type, event_version,
  payload, metadata, idempotency_key, trace_id, correlation_id, created_at, pii, pii_fields,
  consent, producer)
VALUES ('11111111-1111-4111-8111-111111111111', 'acme.eu', '42', 'lead', 'lead.created.v1', 1,
  '{"email": "a@example.org", "score": 1.50}', '{"ip": "::1"}', 'lead-42', '4bf92f35', 'c-1',
  '2026-01-02 03:04:05+00', true, '{email,"full name"}', 'marketing', 'leads@1.2.3');
INSERT INTO outbox (id, tenant_id, aggregate_id, aggregate_type, event_type, payload,
  idempotency_key, created_at, producer)
VALUES ('22222222-2222-4222-8222-222222222222', 'b', '43', 'lead', 'lead.closed.v1', '{}',
  'lead-43', '2026-01-02 03:04:06+00', 'leads@1.2.3')"#,
        polls: "
UPDATE outbox SET retry_count = retry_count + 1, last_error = 'timeout';
UPDATE outbox SET processed_at = now(), published_at = now();
DELETE FROM outbox WHERE published_at IS NOT NULL",
    };
    let stored = system.published().await;
    let [created, closed] = stored.as_slice() else {
        panic!("{stored:?}");
    };
    let headers = [
        ("Nats-Msg-Id", ONE),
        ("Content-Type", "application/json"),
        ("Outjet-Dedup-Key", "lead-42"),
        ("Outjet-Pii", "true"),
        ("Outjet-Pii-Fields", "email,full name"),
        ("Outjet-Consent", "marketing"),
    ];
    let body = concat!(
        r#"{"event":"lead.created.v1","schema_version":1,"idempotency_key":"lead-42","#,
        r#""trace_id":"4bf92f35","correlation_id":"c-1","tenant_id":"acme.eu","#,
        r#""occurred_at":"2026-01-02T03:04:05Z","producer":"leads@1.2.3","#,
        r#""privacy":{"pii":true,"fields":["email","full name"],"consent":"marketing"},"#,
        r#""payload":{"email": "a@example.org", "score": 1.50},"metadata":{"ip": "::1"}}"#
    );
    assert_message(created, "tenants.acme_eu.lead.created.v1", &headers, body);
    let headers = [
        ("Nats-Msg-Id", TWO),
        ("Content-Type", "application/json"),
        ("Outjet-Dedup-Key", "lead-43"),
    ];
    let body = concat!(
        r#"{"event":"lead.closed.v1","schema_version":1,"idempotency_key":"lead-43","#,
        r#""tenant_id":"b","occurred_at":"2026-01-02T03:04:06Z","producer":"leads@1.2.3","#,
        r#""privacy":{"pii":false},"payload":{}}"#
    );
    assert_message(closed, "tenants.b.lead.closed.v1", &headers, body);
}

#[tokio::test]
async fn open_outbox_with_bytes_and_its_lease_columns() {
    let system = System {
        ddl: include_str!("../data/presets/open-outbox.sql"),
        yaml: "
stream: {subjects: ['user.>']}
tables: [{name: public.openoutbox_events, preset: open-outbox}]",
        writes: r#"
INSERT INTO openoutbox_events (event_id, event_type, partition_key, payload, headers, created_at)
VALUES ('11111111-1111-4111-8111-111111111111', 'user.signup', 'u1', '\x7b22c3bc223a317d',
  '{"x-span": "1"}', '2026-01-02 03:04:05+00')"#,
        polls: "
UPDATE openoutbox_events SET status = 'DELIVERING', locked_by = 'relay-1', locked_at = now(),
  updated_at = now() WHERE status = 'PENDING';
UPDATE openoutbox_events SET status = 'DELIVERED', delivered_at = now(), locked_by = NULL,
  locked_at = NULL;
DELETE FROM openoutbox_events WHERE status = 'DELIVERED'",
    };
    let stored = system.published().await;
    let [signup] = stored.as_slice() else {
        panic!("{stored:?}");
    };
    let headers = cloudevents(&[
        ("Nats-Msg-Id", ONE),
        ("ce-id", ONE),
        ("ce-source", "/postgres/public.openoutbox_events"),
        ("ce-type", "user.signup"),
        ("ce-subject", "u1"),
        ("ce-time", "2026-01-02T03:04:05Z"),
        ("ce-datacontenttype", "application/octet-stream"),
        ("x-span", "1"),
    ]);
    assert_message(signup, "user.signup", &headers, r#"{"ü":1}"#);
}

#[tokio::test]
async fn watermill_with_its_topic_as_a_constant() {
    let system = System {
        ddl: include_str!("../data/presets/watermill.sql"),
        yaml: "
tables:
  - name: public.watermill_orders
    preset: watermill
    columns: {topic: {value: events.orders}, type: {json: metadata.name, optional: true}}",
        // The column is json: every byte stays.
        writes: r#"
INSERT INTO "watermill_orders" (uuid, payload, metadata, transaction_id) VALUES
  ('11111111-1111-4111-8111-111111111111', '{"b":  1.0, "a": 1}',
   '{"name": "OrderPlaced", "correlation_id": "c-1"}', pg_current_xact_id()),
  ('22222222-2222-4222-8222-222222222222', '{}', '{}', pg_current_xact_id())"#,
        polls: r#"DELETE FROM "watermill_orders" WHERE "offset" = 1"#,
    };
    let stored = system.published().await;
    let [placed, bare] = stored.as_slice() else {
        panic!("{stored:?}");
    };
    let headers = cloudevents(&[
        ("Nats-Msg-Id", ONE),
        ("ce-id", ONE),
        ("ce-source", "/postgres/public.watermill_orders"),
        ("ce-type", "OrderPlaced"),
        ("ce-datacontenttype", "application/json"),
        ("name", "OrderPlaced"),
        ("correlation_id", "c-1"),
    ]);
    assert_message(placed, "events.orders", &headers, r#"{"b":  1.0, "a": 1}"#);
    let headers = cloudevents(&[
        ("Nats-Msg-Id", TWO),
        ("ce-id", TWO),
        ("ce-source", "/postgres/public.watermill_orders"),
        ("ce-datacontenttype", "application/json"),
    ]);
    assert_message(bare, "events.orders", &headers, "{}");
}

#[tokio::test]
async fn eventuate_with_the_attributes_of_its_headers() {
    let system = System {
        ddl: include_str!("../data/presets/eventuate.sql"),
        yaml: "
stream: {subjects: ['net.example.>']}
tables: [{name: eventuate.message, preset: eventuate}]",
        writes: r#"
INSERT INTO eventuate.message (id, destination, headers, payload, published, creation_time)
VALUES ('0000018f-0001', 'net.example.Order',
  '{"ID": "0000018f-0001", "event-type": "net.example.OrderCreated",
    "event-aggregate-type": "net.example.Order", "event-aggregate-id": "42"}',
  '{"total":  9.50}', 0, 1767323045000)"#,
        polls: "UPDATE eventuate.message SET published = 1",
    };
    let stored = system.published().await;
    let [created] = stored.as_slice() else {
        panic!("{stored:?}");
    };
    let headers = cloudevents(&[
        ("Nats-Msg-Id", "eventuate.message:0000018f-0001"),
        ("ce-id", "0000018f-0001"),
        ("ce-source", "/postgres/eventuate.message"),
        ("ce-type", "net.example.OrderCreated"),
        ("ce-subject", "42"),
        ("ce-datacontenttype", "application/json"),
        ("ce-partitionkey", "net.example.Order:42"),
        ("ID", "0000018f-0001"),
        ("event-type", "net.example.OrderCreated"),
        ("event-aggregate-type", "net.example.Order"),
        ("event-aggregate-id", "42"),
    ]);
    assert_message(
        created,
        "net.example.Order",
        &headers,
        r#"{"total":  9.50}"#,
    );
}

#[tokio::test]
async fn pg_transactional_outbox_beside_its_locks() {
    let system = System {
        ddl: include_str!("../data/presets/pg-transactional-outbox.sql"),
        yaml: "tables: [{name: outbox.outbox, preset: pg-transactional-outbox}]",
        writes: r#"
INSERT INTO outbox.outbox (id, aggregate_type, aggregate_id, message_type, segment, payload,
  metadata, created_at)
VALUES ('11111111-1111-4111-8111-111111111111', 'movie', '7', 'movie_created', 's1',
  '{"title": "M"}', '{"routingKey": "movies"}', '2026-01-02 03:04:05+00')"#,
        polls: "
UPDATE outbox.outbox SET locked_until = now() + interval '5 s',
  started_attempts = started_attempts + 1;
UPDATE outbox.outbox SET processed_at = now(), finished_attempts = finished_attempts + 1;
DELETE FROM outbox.outbox WHERE processed_at IS NOT NULL",
    };
    let stored = system.published().await;
    let [movie] = stored.as_slice() else {
        panic!("{stored:?}");
    };
    let headers = cloudevents(&[
        ("Nats-Msg-Id", ONE),
        ("ce-id", ONE),
        ("ce-source", "/postgres/outbox.outbox"),
        ("ce-type", "movie_created"),
        ("ce-subject", "7"),
        ("ce-time", "2026-01-02T03:04:05Z"),
        ("ce-datacontenttype", "application/json"),
        ("ce-partitionkey", "movie:7"),
        ("routingKey", "movies"),
    ]);
    assert_message(
        movie,
        "events.movie.movie_created",
        &headers,
        r#"{"title": "M"}"#,
    );
}

#[tokio::test]
async fn several_tables_feed_one_stream_in_commit_order() {
    let system = System {
        ddl: concat!(
            include_str!("../data/presets/outbox-events.sql"),
            include_str!("../data/presets/open-outbox.sql")
        ),
        yaml: "
stream: {subjects: ['all.>']}
tables:
  - {name: public.outbox_events, preset: outbox-events}
  - {name: public.openoutbox_events, preset: open-outbox, columns: {id: locked_by}}
publish: {subject_prefix: all}",
        writes: "
INSERT INTO outbox_events (aggregate_id, event_type, payload) VALUES ('1', 'a', '{}');
BEGIN;
INSERT INTO openoutbox_events (event_id, event_type, payload, locked_by)
  VALUES (gen_random_uuid(), 'b', '', '1');
INSERT INTO outbox_events (aggregate_id, event_type, payload) VALUES ('1', 'c', '{}');
COMMIT;
INSERT INTO openoutbox_events (event_id, event_type, payload, locked_by)
  VALUES (gen_random_uuid(), 'd', '', '2')",
        polls: "",
    };
    let stored = system.published().await;
    let found: Vec<_> = stored
        .iter()
        .map(|stored| {
            (
                stored.subject.as_str(),
                stored.header("Nats-Msg-Id").unwrap_or(""),
            )
        })
        .collect();
    // Equal ids of two tables are two events.
    let expected = [
        ("all.events._.a", "public.outbox_events:1"),
        ("all.b", "public.openoutbox_events:1"),
        ("all.events._.c", "public.outbox_events:2"),
        ("all.d", "public.openoutbox_events:2"),
    ];
    assert_eq!(found, expected);
}
