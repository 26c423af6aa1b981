//! The schema `outbox` on a real server: what `sql/install.sql` promises.

use std::time::Duration;

use crate::harness::postgres::Session;
use crate::harness::{Postgres, until_the_day_lasts};
use outjet::pg::ddl::{INSTALL, UNINSTALL};
use tokio_postgres::SimpleQueryMessage;

const SOON: Duration = Duration::from_secs(20);

/// A server with the schema, and a superuser's session.
async fn installed() -> (Postgres, Session) {
    until_the_day_lasts().await;
    let postgres = Postgres::start().await;
    let client = postgres.connect().await;
    client.run(INSTALL).await;
    (postgres, client)
}

/// A slot that a test confirms by hand, with the publication before it.
async fn with_slot(client: &Session) {
    client
        .run(
            "CREATE PUBLICATION outjet FOR TABLE outbox.events
             WITH (publish = 'insert', publish_via_partition_root = true)",
        )
        .await;
    client
        .run("SELECT pg_create_logical_replication_slot('outjet', 'pgoutput')")
        .await;
}

const CONFIRM_FLUSHED: &str =
    "SELECT pg_replication_slot_advance('outjet', pg_current_wal_flush_lsn())";

/// Confirms everything, as a leader would: twice, with what lets the slot's xmin move in between.
async fn confirm_all(client: &Session) {
    for _ in 0..2 {
        client.run("CHECKPOINT").await;
        client.run(CONFIRM_FLUSHED).await;
    }
}

/// The server's answer to a statement that must fail: its SQLSTATE and its message.
async fn refusal(client: &Session, sql: &str) -> (String, String) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    client.run("ROLLBACK").await;
    let error = error.as_db_error().expect("the server's answer");
    (error.code().code().to_owned(), error.message().to_owned())
}

/// What stands in the slot, as the names of pgoutput's messages.
async fn decoded(client: &Session) -> String {
    client
        .text(
            "SELECT coalesce(string_agg(chr(get_byte(data, 0)), ''), '')
             FROM pg_logical_slot_peek_binary_changes('outjet', NULL, NULL,
               'proto_version', '1', 'publication_names', 'outjet')
             WHERE get_byte(data, 0) IN (ascii('I'), ascii('U'), ascii('D'), ascii('T'))",
        )
        .await
}

const DAY: &str = "to_char((now() AT TIME ZONE 'UTC')::date";

#[tokio::test]
async fn installing_again_or_twice_at_once_changes_nothing() {
    until_the_day_lasts().await;
    let postgres = Postgres::start().await;
    let (one, two) = (postgres.connect().await, postgres.connect().await);
    tokio::join!(one.run(INSTALL), two.run(INSTALL));
    one.run("SELECT outbox.emit('order', '1', 'Placed')").await;
    one.run(INSTALL).await;
    let found = "SELECT (SELECT count(*) FROM outbox.events) || ' ' ||
        (SELECT count(*) FROM pg_inherits WHERE inhparent = 'outbox.events'::regclass) || ' ' ||
        (SELECT string_agg(version::text, ',') FROM outbox.schema_version)";
    assert_eq!(one.text(found).await, "1 9 3");
}

#[tokio::test]
async fn schema_of_version_two_gets_what_is_new_and_keeps_its_rows() {
    let (_postgres, client) = installed().await;
    let arguments =
        "text, text, text, jsonb, text, jsonb, uuid, text, bytea, text, text, text, text";
    let both = format!("{arguments}, timestamptz, timestamptz");
    let old = |name: &str| {
        format!(
            "DROP FUNCTION outbox.{name}({both});
             CREATE FUNCTION outbox.{name}({arguments}) RETURNS uuid LANGUAGE sql
               AS 'SELECT gen_random_uuid()';"
        )
    };
    let back = format!(
        "SELECT outbox.emit('a', '1', 't'); {} {}
         ALTER TABLE outbox.events DROP deliver_at, DROP expires_at;
         UPDATE outbox.schema_version SET version = 2",
        old("emit"),
        old("emit_wal")
    );
    client.run(&back).await;
    client.run(INSTALL).await;
    let emit = "SELECT outbox.emit('a', '2', 't'); SELECT outbox.emit_wal('a', '3', 't');
        SELECT outbox.emit('a', '4', 't', deliver_at => '2026-01-01', expires_at => '2026-01-02')";
    client.run(emit).await;
    let found = "SELECT count(*) || ' ' || count(deliver_at) || ' ' || count(expires_at)
        FROM outbox.events";
    assert_eq!(client.text(found).await, "3 1 1");
}

#[tokio::test]
async fn newer_schema_and_foreign_table_are_left_alone() {
    let (postgres, client) = installed().await;
    client
        .run("INSERT INTO outbox.schema_version VALUES (99)")
        .await;
    let (_, message) = refusal(&client, INSTALL).await;
    assert_eq!(
        message,
        "schema \"outbox\" is at version 99, this file installs version 3"
    );
    client.run("CREATE DATABASE other; ").await;
    let other = Session::connect(&postgres.url_as("postgres", "other")).await;
    other
        .run("CREATE SCHEMA outbox; CREATE TABLE outbox.events (n int)")
        .await;
    let (code, message) = refusal(&other, INSTALL).await;
    assert_eq!(code, "42P07");
    assert_eq!(
        message,
        "a table outbox.events exists that outjet did not make"
    );
}

#[tokio::test]
async fn uninstalling_takes_everything_of_ours_and_nothing_else() {
    let (_postgres, client) = installed().await;
    client
        .run("CREATE PUBLICATION mine FOR TABLE outbox.events")
        .await;
    let (code, message) = refusal(&client, UNINSTALL).await;
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("55006", "outbox.events is published by \"mine\"")
    );
    client
        .run("DROP PUBLICATION mine; CREATE TABLE outbox.theirs (n int)")
        .await;
    let (code, _) = refusal(&client, UNINSTALL).await;
    assert_eq!(code, "2BP01");
    client.run("DROP TABLE outbox.theirs").await;
    client.run(UNINSTALL).await;
    client.run(UNINSTALL).await;
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox'";
    assert_eq!(client.text(left).await, "0");
    client.run(INSTALL).await;
}

#[tokio::test]
async fn usage_and_insert_suffice_to_emit_and_to_see_a_message_once() {
    let (postgres, client) = installed().await;
    client
        .run(
            "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA outbox TO app;
             GRANT INSERT ON outbox.events, outbox.processed_messages TO app",
        )
        .await;
    let app = Session::connect(&postgres.url_as("app", "postgres")).await;
    // Nothing of the caller's search_path may get in between.
    app.run("CREATE TEMP TABLE events (); CREATE TEMP TABLE processed_messages ()")
        .await;
    app.run("SET search_path = pg_temp").await;
    let id = app
        .text("SELECT outbox.emit('order', '42', 'Placed', '{\"total\": 9.5}')")
        .await;
    let row = format!(
        "SELECT concat_ws('|', aggregatetype, aggregateid, type, payload, created_at = xact_start)
         FROM outbox.events, (SELECT max(created_at) AS xact_start FROM outbox.events) t
         WHERE id = '{id}'"
    );
    assert_eq!(
        client.text(&row).await,
        "order|42|Placed|{\"total\": 9.5}|t"
    );
    let seen = "SELECT outbox.first_time('billing', 'm1')::text";
    assert_eq!(app.text(seen).await, "true");
    assert_eq!(app.text(seen).await, "false");
    let other = "SELECT outbox.first_time('shipping', 'm1')::text";
    assert_eq!(app.text(other).await, "true");
    let (code, _) = refusal(&app, "SELECT * FROM outbox.events").await;
    assert_eq!(code, "42501");
}

#[tokio::test]
async fn message_is_seen_only_if_the_work_is_committed() {
    let (_postgres, client) = installed().await;
    client
        .run("BEGIN; SELECT outbox.first_time('billing', 'm1'); ROLLBACK")
        .await;
    let seen = "SELECT outbox.first_time('billing', 'm1')::text";
    assert_eq!(client.text(seen).await, "true");
    client
        .run("UPDATE outbox.processed_messages SET processed_at = now() - interval '31 days'")
        .await;
    assert_eq!(client.text("SELECT outbox.forget_processed()").await, "1");
    assert_eq!(client.text(seen).await, "true");
}

#[tokio::test]
async fn second_delivery_waits_for_the_work_of_the_first() {
    for (end, again) in [("COMMIT", "false"), ("ROLLBACK", "true")] {
        let (postgres, client) = installed().await;
        client
            .run("BEGIN; SELECT outbox.first_time('billing', 'm1')")
            .await;
        let other = postgres.connect().await;
        let witness = postgres.connect().await;
        let first = async {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            witness.until_text(waiting, "1", SOON).await;
            client.run(end).await;
        };
        let seen = "SELECT outbox.first_time('billing', 'm1')::text";
        let (seen, ()) = tokio::join!(other.text(seen), first);
        assert_eq!(seen, again, "{end}");
    }
}

#[tokio::test]
async fn emit_takes_given_context_before_that_of_the_session() {
    let (_postgres, client) = installed().await;
    let context = "SELECT string_agg(concat_ws('/', aggregateid, tenant_id, correlation_id,
        traceparent), ' ' ORDER BY aggregateid) FROM outbox.events";
    client.run("SELECT outbox.emit('a', '1', 't')").await;
    client
        .run(
            "BEGIN; SET LOCAL outbox.tenant_id = 'acme'; SET LOCAL outbox.traceparent = '00-ab';
             SELECT outbox.emit('a', '2', 't');
             SELECT outbox.emit('a', '3', 't', tenant_id => 'mine', correlation_id => 'c');
             INSERT INTO outbox.events (aggregatetype, aggregateid, type) VALUES ('a', '4', 't');
             COMMIT; SELECT outbox.emit('a', '5', 't')",
        )
        .await;
    assert_eq!(
        client.text(context).await,
        "1 2/acme/00-ab 3/mine/c/00-ab 4/acme/00-ab 5"
    );
}

#[tokio::test]
async fn insert_for_a_day_without_partition_goes_to_default_and_is_published() {
    let (_postgres, client) = installed().await;
    with_slot(&client).await;
    client
        .run(
            "INSERT INTO outbox.events (aggregatetype, aggregateid, type, created_at)
             VALUES ('a', '1', 't', now() + interval '1 year')",
        )
        .await;
    assert_eq!(
        client
            .text("SELECT count(*) FROM outbox.events_default")
            .await,
        "1"
    );
    assert_eq!(decoded(&client).await, "I");
}

#[tokio::test]
async fn day_with_rows_in_default_is_skipped_with_a_warning_and_nothing_is_published_again() {
    let (_postgres, client) = installed().await;
    with_slot(&client).await;
    client
        .run(
            "INSERT INTO outbox.events (aggregatetype, aggregateid, type, created_at)
             VALUES ('a', '1', 't', now() + interval '8 days')",
        )
        .await;
    // Days 8 and 9 are new, and 8 has a row.
    assert_eq!(client.text("SELECT outbox.ensure_partitions(9)").await, "1");
    assert_eq!(
        client
            .text("SELECT count(*) FROM outbox.events_default")
            .await,
        "1"
    );
    assert_eq!(decoded(&client).await, "I");
}

#[tokio::test]
async fn partitions_are_days_of_utc_whatever_the_session_says() {
    let (_postgres, client) = installed().await;
    client
        .run("SET TimeZone = 'Pacific/Kiritimati'; SET DateStyle = 'SQL, DMY'")
        .await;
    assert_eq!(client.text("SELECT outbox.ensure_partitions(9)").await, "2");
    let bound = format!(
        "SELECT pg_get_expr(relpartbound, oid) =
           format('FOR VALUES FROM (%L) TO (%L)',
             {DAY} + 9, 'YYYY-MM-DD') || ' 00:00:00+00',
             {DAY} + 10, 'YYYY-MM-DD') || ' 00:00:00+00')
         FROM pg_class WHERE relname = 'events_' || {DAY} + 9, 'YYYYMMDD')"
    );
    client
        .run("SET TimeZone = 'UTC'; SET DateStyle = 'ISO'")
        .await;
    assert_eq!(
        client.text(&format!("SELECT ({bound})::text")).await,
        "true"
    );
}

#[tokio::test]
async fn partitions_are_made_beside_open_writers_and_by_two_at_once() {
    let (postgres, client) = installed().await;
    let writer = postgres.connect().await;
    writer.run("BEGIN; SELECT outbox.emit('a', '1', 't')").await;
    let other = postgres.connect().await;
    let (one, two) = tokio::join!(
        client.text("SELECT outbox.ensure_partitions(12)"),
        other.text("SELECT outbox.ensure_partitions(12)")
    );
    let made = [one, two].map(|n| n.parse::<u32>().expect("a number"));
    assert_eq!(made[0] + made[1], 5);
    writer.run("COMMIT").await;
}

#[tokio::test]
async fn partition_goes_only_when_the_slot_has_confirmed_all_of_it() {
    let (_postgres, client) = installed().await;
    with_slot(&client).await;
    client.run("SELECT outbox.emit('a', '1', 't')").await;
    // All eight days have ended before then; today's has a row.
    let expire = "SELECT outbox.expire_partitions(interval '-9 days')";
    assert_eq!(client.text(expire).await, "7");
    assert_eq!(client.text("SELECT count(*) FROM outbox.events").await, "1");
    confirm_all(&client).await;
    assert_eq!(client.text(expire).await, "1");
    assert_eq!(client.text("SELECT count(*) FROM outbox.events").await, "0");
}

#[tokio::test]
async fn partition_stays_while_it_is_young() {
    let (_postgres, client) = installed().await;
    with_slot(&client).await;
    confirm_all(&client).await;
    let expire = "SELECT outbox.expire_partitions(interval '0')";
    assert_eq!(client.text(expire).await, "0");
}

#[tokio::test]
async fn old_rows_in_default_go_when_they_are_confirmed() {
    let (_postgres, client) = installed().await;
    with_slot(&client).await;
    let old = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, created_at)
               VALUES ('a', '1', 't', now() - interval '8 days'),
                      ('a', '2', 't', now() - interval '6 days')";
    client.run(old).await;
    client.run("SELECT outbox.expire_partitions()").await;
    assert_eq!(client.text("SELECT count(*) FROM outbox.events").await, "2");
    confirm_all(&client).await;
    client.run("SELECT outbox.expire_partitions()").await;
    assert_eq!(
        client.text("SELECT aggregateid FROM outbox.events").await,
        "2"
    );
}

#[tokio::test]
async fn nothing_expires_without_the_slot_or_under_an_old_snapshot() {
    let (_postgres, client) = installed().await;
    let (code, message) = refusal(&client, "SELECT outbox.expire_partitions()").await;
    assert_eq!(code, "55000");
    assert!(
        message.contains("slot \"outjet\" does not exist"),
        "{message}"
    );
    with_slot(&client).await;
    let old = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT outbox.expire_partitions(); COMMIT";
    assert_eq!(refusal(&client, old).await.0, "25001");
}

#[tokio::test]
async fn partition_in_use_is_left_for_the_next_time() {
    let (postgres, client) = installed().await;
    with_slot(&client).await;
    confirm_all(&client).await;
    let writer = postgres.connect().await;
    writer.run("BEGIN; SELECT outbox.emit('a', '1', 't')").await;
    let expire = "SELECT outbox.expire_partitions(interval '-9 days')";
    assert_eq!(client.text(expire).await, "0");
    writer.run("COMMIT").await;
    assert_eq!(client.text("SELECT count(*) FROM outbox.events").await, "1");
    assert_eq!(client.text(expire).await, "7");
}

/// Confirms what is flushed until the work is done: the server itself writes WAL at any moment.
async fn beside_a_leader<T>(leader: &Session, work: impl Future<Output = T>) -> T {
    let leads = async {
        loop {
            leader.run(CONFIRM_FLUSHED).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = leads => unreachable!("a leader leads for ever"),
    }
}

#[tokio::test]
async fn waiting_ends_when_the_slot_has_confirmed_what_was_visible() {
    let (postgres, client) = installed().await;
    with_slot(&client).await;
    client.run("SELECT outbox.emit('a', '1', 't')").await;
    let brief = "SELECT outbox.wait_published('50 ms')::text";
    assert_eq!(client.text(brief).await, "false");
    let leader = postgres.connect().await;
    let waited = client.text("SELECT outbox.wait_published('20 s')::text");
    assert_eq!(beside_a_leader(&leader, waited).await, "true");
}

#[tokio::test]
async fn waiting_is_not_kept_by_what_others_have_not_committed() {
    let (postgres, client) = installed().await;
    with_slot(&client).await;
    let writer = postgres.connect().await;
    writer.run("BEGIN; SELECT outbox.emit('a', '1', 't')").await;
    let leader = postgres.connect().await;
    let waited = client.text("SELECT outbox.wait_published('20 s')::text");
    assert_eq!(beside_a_leader(&leader, waited).await, "true");
    writer.run("ROLLBACK").await;
}

#[tokio::test]
async fn waiting_for_what_cannot_come_is_refused() {
    let (_postgres, client) = installed().await;
    let (code, message) = refusal(&client, "SELECT outbox.wait_published()").await;
    assert_eq!(code, "42704");
    assert_eq!(
        message,
        "replication slot \"outjet\" does not exist in this database"
    );
    with_slot(&client).await;
    let own = "BEGIN; SELECT outbox.emit('a', '1', 't'); SELECT outbox.wait_published(); COMMIT";
    let (code, message) = refusal(&client, own).await;
    assert_eq!(code, "25001");
    assert_eq!(
        message,
        "wait_published() in a transaction that has written something"
    );
}

#[tokio::test]
async fn status_view_shows_the_slots_of_this_database() {
    let (_postgres, client) = installed().await;
    let rows = "SELECT count(*) FROM outbox.slot_status";
    assert_eq!(client.text(rows).await, "0");
    with_slot(&client).await;
    client.run("SELECT outbox.emit('a', '1', 't')").await;
    let shown = "SELECT concat_ws(' ', slot_name, active, wal_status, lag_bytes > 0,
        retained_wal_bytes >= lag_bytes) FROM outbox.slot_status";
    client
        .until_text(shown, "outjet f reserved t t", SOON)
        .await;
}

#[tokio::test]
async fn ids_sort_by_time_where_the_server_can_make_them() {
    let (postgres, client) = installed().await;
    client
        .run("SELECT outbox.emit('a', n::text, 't') FROM generate_series(1, 3) n")
        .await;
    client
        .run("INSERT INTO outbox.events (aggregatetype, aggregateid, type) VALUES ('a', '4', 't')")
        .await;
    let versions = "SELECT DISTINCT substring(id::text FROM 15 FOR 1) FROM outbox.events";
    let expected = if postgres.major() >= 18 { "7" } else { "4" };
    assert_eq!(client.text(versions).await, expected);
    let rows = client.simple_query(versions).await.expect("rows");
    let rows = rows
        .iter()
        .filter(|m| matches!(m, SimpleQueryMessage::Row(_)));
    assert_eq!(rows.count(), 1);
}
