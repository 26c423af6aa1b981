//! Events without a table: logical messages stand in the stream as rows do, in commit order with
//! them.

use crate::delivery::{Delivery, SOON};
use crate::harness::drain::{self, Stored};
use crate::harness::outbox::Random;
use crate::harness::postgres::{Session, Stop};
use crate::harness::{Postgres, Wait, binaries, until};
use outjet::pg::ddl::INSTALL;

const LETTERS: &str = "OUTBOX_DLQ";

/// The servers' duplicate window cannot help.
const CONFIG: &str = "
stream: {duplicate_window: 100ms}
publish: {in_flight_max: 64}
";

/// Rows and messages in turn, in transactions with business rows, some of which roll back.
const MIXED: &str = "
BEGIN;
SELECT outbox.emit('order', '1', 'row');
SELECT outbox.emit_wal('order', '2', 'message', '{\"total\": 9.5}');
INSERT INTO business VALUES (1);
SAVEPOINT a;
SELECT outbox.emit_wal('order', '3', 'gone');
ROLLBACK TO SAVEPOINT a;
SELECT pg_logical_emit_message(true, 'outbox', json_build_object('id', gen_random_uuid(),
  'aggregatetype', 'order', 'aggregateid', 4, 'type', 'plain')::text);
SELECT pg_logical_emit_message(true, 'heartbeat', 'x');
SELECT outbox.emit('order', '5', 'row');
COMMIT;
BEGIN; SELECT outbox.emit_wal('order', '6', 'gone'); ROLLBACK;
SELECT outbox.emit_wal('order', '7', 'message');
DO $$ BEGIN
  INSERT INTO outbox.events (aggregatetype, aggregateid, type) VALUES ('order', '8', 'transient');
  DELETE FROM outbox.events WHERE aggregateid = '8';
END $$;
";

/// How often it is run, and how many events it commits.
const TRANSACTIONS: u64 = 300;
const EVENTS: u64 = 6;

async fn letters(delivery: &Delivery) -> Vec<Stored> {
    drain::messages(&delivery.world.nats.jetstream().await, LETTERS).await
}

#[tokio::test]
async fn messages_and_rows_are_stored_once_and_in_commit_order_whatever_is_killed() {
    let mut delivery = Delivery::configured(CONFIG).await;
    let session = &delivery.session;
    session.run("CREATE TABLE business (n int)").await;
    for _ in 0..TRANSACTIONS {
        session.run(MIXED).await;
    }
    let jetstream = delivery.world.nats.jetstream().await;
    let mut random = Random(5);
    let mut last = 0;
    for round in 0..6 {
        let mut outjet = delivery.run();
        // There is always something left to kill it in.
        let enough = (last + random.below(80)).min(TRANSACTIONS * EVENTS - 100);
        until("events are stored", SOON, async || {
            assert_eq!(outjet.exited(), None);
            let stream = jetstream.get_stream("OUTBOX").await.expect("the stream");
            last = stream.cached_info().state.messages;
            Wait::ready_if(last >= enough, last)
        })
        .await;
        outjet.kill().await;
        if round == 3 {
            // What was confirmed since the last checkpoint is sent again.
            delivery.world.postgres.restart(Stop::Immediate).await;
            delivery.session = delivery.world.postgres.connect().await;
        }
    }
    let _outjet = delivery.run();
    let verdict = delivery.verdict().await;
    verdict.assert_exact();
    assert_eq!(verdict.stored as u64, TRANSACTIONS * EVENTS);
    let kinds: Vec<_> = delivery.stored().await;
    let kinds: Vec<_> = kinds[..6].iter().map(|m| m.subject.as_str()).collect();
    let wanted = ["row", "message", "plain", "row", "message", "transient"];
    assert_eq!(kinds, wanted.map(|kind| format!("events.order.{kind}")));
}

#[tokio::test]
async fn emit_wal_makes_the_message_that_emit_makes_on_every_version() {
    let mut majors: Vec<u32> = binaries::postgres(None).iter().map(|b| b.major).collect();
    majors.sort_unstable();
    majors.dedup();
    for major in majors {
        let postgres = Postgres::builder().version(major);
        let delivery = Delivery::on((postgres, crate::harness::Nats::builder()), "").await;
        let arguments = "'order', '4 2', 'order.placed', '{\"b\": [1.50, null], \"a\": \"ü\"}',
            headers => '{\"X-Region\": \"eu\"}', dedup_key => 'k', correlation_id => 'c1'";
        let raw = "'order', '1', 'raw', payload_raw => decode(repeat('00ff', 200), 'hex'),
            content_type => 'application/avro', topic => 'events.raw'";
        let sql = format!(
            "BEGIN; SET LOCAL outbox.tenant_id = 'acme';
             SELECT outbox.emit({arguments}); SELECT outbox.emit_wal({arguments});
             SELECT outbox.emit({raw}); SELECT outbox.emit_wal({raw}); COMMIT"
        );
        delivery.session.run(&sql).await;
        let _outjet = delivery.run();
        delivery.verdict().await.assert_exact();
        let stored = delivery.stored().await;
        for pair in stored.chunks(2) {
            let [row, message] = pair else {
                panic!("{pair:?}")
            };
            assert_eq!(row.subject, message.subject);
            assert_eq!(row.payload, message.payload, "Postgres {major}");
            let (of_row, of_message) = (said(row), said(message));
            assert_eq!(of_row, of_message, "Postgres {major}");
            assert_eq!(message.header("ce-source"), Some("/postgres/outbox"));
        }
    }
}

/// The headers but for those that differ between two events, or between a row and a message.
fn said(stored: &Stored) -> Vec<String> {
    let own = ["ce-id", "ce-source", "ce-time"];
    let headers = stored.headers.iter();
    let headers = headers.filter(|(name, _)| {
        let name = name.to_string();
        !own.contains(&name.as_str()) && !name.starts_with("Outjet-P") && !name.starts_with("Nats-")
    });
    let mut said: Vec<_> = headers
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    said.sort();
    said
}

#[tokio::test]
async fn message_that_is_no_event_becomes_a_dead_letter_and_the_others_go_on() {
    let delivery = Delivery::configured(CONFIG).await;
    let mut outjet = delivery.run();
    let emit = |content: &str| format!("SELECT pg_logical_emit_message(true, 'outbox', {content})");
    for content in [
        "'not JSON'",
        "'{\"id\": \"7\"}'",
        "'\\xff00'::bytea",
        "repeat('[', 100000)",
    ] {
        delivery.session.run(&emit(content)).await;
    }
    let good = "SELECT outbox.emit_wal('order', '1', 'good')";
    delivery.session.run(good).await;
    delivery.confirmed().await;
    assert_eq!(delivery.count().await, 1);
    let letters = letters(&delivery).await;
    let reasons: Vec<_> = letters.iter().map(|l| l.header("Outjet-Reason")).collect();
    assert_eq!(reasons, [Some("message"); 4]);
    assert_eq!(letters[0].payload, "not JSON");
    assert_eq!(letters[0].header("Outjet-Table"), Some("outbox"));
    assert_eq!(letters[1].header("Outjet-Id"), Some("outbox:7"));
    assert_eq!(letters[1].subject, "dlq._invalid.OUTBOX");
    // Nothing was committed: passed over, and said once.
    let loose = "SELECT pg_logical_emit_message(false, 'outbox', '{}')";
    delivery.session.run(&format!("{loose}; {loose}")).await;
    let said = |line: &serde_json::Value| line.to_string().contains("outside of their transaction");
    until("it is said", SOON, async || {
        assert_eq!(outjet.exited(), None);
        let times = outjet.log().iter().filter(|line| said(line)).count();
        Wait::ready_if(times == 1, times)
    })
    .await;
    delivery.session.run(good).await;
    delivery.confirmed().await;
    assert_eq!(delivery.count().await, 2);
    assert_eq!(outjet.log().iter().filter(|line| said(line)).count(), 1);
}

#[tokio::test]
async fn any_role_may_emit_unless_execute_is_revoked_or_no_prefix_is_configured() {
    let mut delivery = Delivery::ready().await;
    delivery.session.run("CREATE ROLE nobody LOGIN").await;
    let url = delivery.world.postgres.url_as("nobody", "postgres");
    let nobody = Session::connect(&url).await;
    let plain = "SELECT pg_logical_emit_message(true, 'outbox', json_build_object(
        'id', gen_random_uuid(), 'aggregatetype', 'a', 'aggregateid', 'b', 'type', 'c')::text)";
    nobody.run(plain).await;
    let mut outjet = delivery.run();
    delivery.verdict().await.assert_exact();
    assert_eq!(delivery.count().await, 1);
    outjet.terminate(SOON).await;

    delivery.configure("messages: {prefixes: []}");
    let _outjet = delivery.run();
    nobody.run(plain).await;
    delivery.confirmed().await;
    assert_eq!(delivery.count().await, 1);

    let revoke = "DO $$ DECLARE f regprocedure; BEGIN
        FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
          EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f); END LOOP; END $$";
    delivery.session.run(revoke).await;
    let refused = nobody.batch_execute(plain).await.expect_err("permission");
    assert_eq!(refused.code().map(|code| code.code()), Some("42501"));
}

#[tokio::test]
async fn schema_of_the_first_version_is_brought_up_and_its_rows_stay() {
    let postgres = Postgres::start().await;
    let client = postgres.connect().await;
    client.run(include_str!("../data/schema/1.sql")).await;
    client.run("SELECT outbox.emit('a', '1', 't')").await;
    client.run(INSTALL).await;
    client.run("SELECT outbox.emit_wal('a', '2', 't')").await;
    client.run("SELECT outbox.emit('a', '3', 't')").await;
    let found = "SELECT (SELECT count(*) FROM outbox.events) || ' ' ||
        (SELECT string_agg(version::text, ',' ORDER BY 1) FROM outbox.schema_version)";
    assert_eq!(client.text(found).await, "2 1,3");
}

#[tokio::test]
async fn slot_with_an_unconfirmed_message_is_not_dropped() {
    let delivery = Delivery::ready().await;
    let emit = "SELECT outbox.emit_wal('a', '1', 't')";
    delivery.session.run(emit).await;
    let drop = delivery.outjet(["drop", "--yes"]).output().await;
    assert_eq!(drop.code, Some(1), "{drop:?}");
    assert!(
        drop.stderr.contains("1 events are not confirmed"),
        "{drop:?}"
    );
}
