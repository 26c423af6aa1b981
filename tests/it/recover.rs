//! The slot is gone or lost, or the table is older than the slot: what the stream lacks comes from
//! the table, once and in order, whatever dies on the way. And what `outjet verify` says of it.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use serde_json::Value;

use crate::harness::outjet::Output;
use crate::harness::process::Signal;
use crate::harness::stage::{QUICK, SOON, STREAM, Stage};
use crate::harness::{Direction, Mode, Nats, Wait, drain, until};

/// Commits events one by one, so that their order in the table is that of their commits.
async fn commit_each(stage: &Stage, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        stage.commit(number..=number).await;
    }
}

async fn types(stage: &Stage, typed: &str) -> Output {
    stage.outjet(typed.split(' ')).output().await
}

async fn slots(stage: &Stage) -> String {
    let sql = "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots \
               WHERE plugin = 'pgoutput'";
    stage.session.text(sql).await
}

#[tokio::test]
async fn what_was_committed_without_a_slot_is_published_by_recover() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    commit_each(&stage, 1..=10).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    stage.drop_slot("outjet").await;
    commit_each(&stage, 11..=30).await;
    let mut outjet = stage.outjet(["run", "--log-format", "json", "--set"]);
    outjet = outjet.args(["postgres.halt_retry=1s"]);
    let mut outjet = outjet.spawn();
    let halted = "halted: slot outjet is missing, but stream OUTBOX holds events from it";
    let line = outjet.logged(halted, SOON).await;
    assert!(
        line["fix"]
            .as_str()
            .is_some_and(|fix| fix.starts_with("`outjet recover`")),
        "{line}"
    );
    let recovered = types(&stage, "recover").await;
    assert_eq!(
        recovered.stdout,
        "appended  20 events\ncreated   replication slot outjet\n"
    );
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    // The copy that had halted goes on by itself.
    outjet.logged("leading", SOON).await;
    commit_each(&stage, 31..=40).await;
    stage.assert_exact().await;
    assert_eq!(slots(&stage).await, "outjet");
    let verified = types(&stage, "verify").await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    // Nothing is left to be done.
    let again = types(&stage, "recover").await;
    assert_eq!(
        (again.code, again.stdout.as_str()),
        (Some(0), "exists    replication slot outjet\n")
    );
}

#[tokio::test]
async fn recover_killed_at_every_step_loses_and_repeats_nothing() {
    let stage = Stage::ready().await;
    let mut number = 0;
    for point in [
        "slot made to recover:1",
        "row to recover:1",
        "row to recover:70",
        "published:3",
        "answered:2",
        "recovered rows appended:1",
        "slot copied:1",
    ] {
        stage.drop_slot("outjet").await;
        commit_each(&stage, number + 1..=number + 80).await;
        number += 80;
        let armed = stage.outjet(["recover"]).env("FAULT_POINT", point);
        let status = armed.spawn().exit(SOON).await;
        assert_eq!(
            status.signal(),
            Some(Signal::ABORT.as_raw()),
            "{point} {status}"
        );
        let copied = point.starts_with("slot copied");
        let there = if copied {
            "outjet outjet_recovering"
        } else {
            "outjet_recovering"
        };
        assert_eq!(slots(&stage).await, there, "{point}");
        let recovered = types(&stage, "recover").await;
        assert_eq!(recovered.code, Some(0), "{point} {recovered:?}");
        assert_eq!(slots(&stage).await, "outjet", "{point}");
    }
    let _outjet = stage.lead().await;
    commit_each(&stage, number + 1..=number + 10).await;
    stage.assert_exact().await;
}

/// The connection of an outjet that was killed may bring it at any time, and so may three replicas
/// that could not agree on it before.
#[tokio::test]
async fn event_that_is_stored_after_recover_has_read_the_stream_is_not_appended_again() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    commit_each(&stage, 1..=3).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    stage.drop_slot("outjet").await;
    commit_each(&stage, 4..=6).await;
    // Slow enough that the table is locked before recover comes to it.
    stage.proxy.set(Mode::Delay(Duration::from_millis(100)));
    let mut recover = stage.outjet(["recover"]).spawn();
    until("the slot is made", SOON, async || {
        let slots = slots(&stage).await;
        Wait::ready_if(slots == "outjet_recovering", slots)
    })
    .await;
    let holder = stage.world.postgres.connect().await;
    holder.run("BEGIN; LOCK TABLE outbox.events").await;
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    stage.session.until_text(waits, "1", SOON).await;
    stage.proxy.set(Mode::Forward);
    let row = "SELECT id::text FROM outbox.events WHERE payload = '4'";
    let late = holder.text(row).await;
    let jetstream = stage.jetstream().await;
    let before = drain::messages(&jetstream, STREAM).await.pop();
    let before = before.expect("a message");
    let mut headers = before.headers.clone();
    headers.insert("Nats-Msg-Id", late.as_str());
    headers.insert("Nats-Expected-Last-Sequence", "3");
    let sent = jetstream.publish_with_headers(before.subject, headers, "4".into());
    sent.await.expect("sent").await.expect("stored");
    holder.run("COMMIT").await;
    assert_eq!(recover.exit(SOON).await.code(), Some(69));
    let problem = "an event was stored at sequence 4 of stream \"OUTBOX\" after that was read";
    assert!(recover.stderr().contains(problem), "{}", recover.stderr());
    let recovered = types(&stage, "recover").await;
    assert_eq!(
        recovered.stdout,
        "appended  2 events\ncreated   replication slot outjet\n"
    );
    let _outjet = stage.lead().await;
    commit_each(&stage, 7..=9).await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn slot_that_is_lost_under_a_stalled_leader_halts_it_and_is_recovered() {
    let stage = Stage::ready().await;
    let _outjet = stage.lead().await;
    commit_each(&stage, 1..=10).await;
    stage.confirmed().await;
    let limit = "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'; ";
    stage
        .session
        .run(limit.trim_end().trim_end_matches(';'))
        .await;
    stage.session.run("SELECT pg_reload_conf()").await;
    // NATS swallows everything: nothing can be confirmed.
    let mut outjet = _outjet;
    stage.proxy.set(Mode::Stall(Direction::Both));
    commit_each(&stage, 11..=20).await;
    let lost = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'outjet'";
    until("the slot is lost", SOON, async || {
        let write = "SELECT pg_switch_wal(), pg_logical_emit_message(false, 'x', repeat('x', 99))";
        stage.session.run(write).await;
        stage.session.run("CHECKPOINT").await;
        let status = stage.session.text(lost).await;
        Wait::ready_if(status == "lost", status)
    })
    .await;
    stage.proxy.cut();
    stage.proxy.set(Mode::Forward);
    let halted = "halted: replication slot \"outjet\" is lost";
    let line = outjet.logged(halted, SOON).await;
    let cause = line["cause"].as_str().expect("a cause");
    assert!(
        cause.contains("bytes of WAL before"),
        "the size of the gap: {line}"
    );
    let fix = line["fix"].as_str().expect("a fix");
    assert!(fix.starts_with("`outjet recover`"), "{line}");
    outjet.kill().await;
    let before = drain::ids(&stage.jetstream().await, STREAM).await;
    assert!(before.len() >= 10, "nothing is skipped or taken back");
    stage
        .session
        .run("ALTER SYSTEM RESET max_slot_wal_keep_size")
        .await;
    stage.session.run("SELECT pg_reload_conf()").await;
    let armed = stage
        .outjet(["recover"])
        .env("FAULT_POINT", "lost slot dropped:1");
    let status = armed.spawn().exit(SOON).await;
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
    let recovered = types(&stage, "recover").await;
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    let _outjet = stage.lead().await;
    commit_each(&stage, 21..=30).await;
    // The judge's own slot was lost with the other: the numbers tell.
    stage.confirmed().await;
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let number = |stored: &drain::Stored| String::from_utf8_lossy(&stored.payload).into_owned();
    let numbers: Vec<String> = stored.iter().map(number).collect();
    let expected: Vec<String> = (1..=30).map(|number| number.to_string()).collect();
    assert_eq!(numbers, expected);
}

#[tokio::test]
async fn backfill_publishes_the_rows_that_are_older_than_the_slot() {
    let stage = Stage::ready().await;
    let dropped = types(&stage, "drop --force --yes").await;
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    commit_each(&stage, 1..=100).await;
    let done = types(&stage, "setup --backfill").await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(
        done.stdout.contains("appended  100 events\n"),
        "{}",
        done.stdout
    );
    let _outjet = stage.lead().await;
    commit_each(&stage, 101..=110).await;
    stage.assert_exact().await;
}

#[tokio::test]
async fn twenty_thousand_rows_are_recovered_with_the_largest_window() {
    const ROWS: u32 = 20_000;
    let wide = QUICK.replace("ack_timeout: 1s", "ack_timeout: 5s, in_flight_max: 16384");
    let stage = Stage::on(Nats::builder(), &wide).await;
    stage.drop_slot("outjet").await;
    stage.commit(1..=ROWS).await;
    let recovered = types(&stage, "recover").await;
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    assert_eq!(
        recovered.stdout,
        format!("appended  {ROWS} events\ncreated   replication slot outjet\n")
    );
    assert_eq!(stage.last_sequence().await, u64::from(ROWS));
    let verified = types(&stage, "verify").await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[tokio::test]
async fn backfill_leaves_out_what_a_poller_has_published() {
    let mut stage = Stage::ready().await;
    let dropped = types(&stage, "drop --force --yes").await;
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    stage.configure(&format!(
        "{QUICK}
tables:
  - name: public.outbox
    preset: none
    columns: {{id: id, type: kind, aggregatetype: {{value: order}}, payload: body}}
"
    ));
    let create = "CREATE TABLE public.outbox (id bigserial PRIMARY KEY, kind text, body bytea, \
                  published_at timestamptz)";
    stage.session.run(create).await;
    let insert = "INSERT INTO public.outbox (kind, body, published_at) \
                  SELECT 'made', '\\x00ff', CASE WHEN n IN (2, 3) THEN now() END \
                  FROM generate_series(1, 5) n";
    stage.session.run(insert).await;
    let done = types(&stage, "setup --backfill").await;
    assert!(done.stdout.contains("appended  3 events\n"), "{done:?}");
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let ids: Vec<_> = stored
        .iter()
        .filter_map(|stored| stored.header("Nats-Msg-Id"))
        .collect();
    assert_eq!(
        ids,
        ["public.outbox:1", "public.outbox:4", "public.outbox:5"]
    );
    assert_eq!(stored[0].subject, "events.order.made");
    assert_eq!(&stored[0].payload[..], b"\x00\xff");
    assert_eq!(
        stored[0].header("ce-datacontenttype"),
        Some("application/octet-stream")
    );
}

/// A stage without a slot whose outbox is another table.
async fn before_the_slot(create: &str, tables: &str) -> Stage {
    let mut stage = Stage::ready().await;
    let dropped = types(&stage, "drop --force --yes").await;
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    stage.configure(&format!(
        "{QUICK}\ntables: [{{name: public.outbox, {tables}}}]\n"
    ));
    stage.session.run(create).await;
    stage
}

async fn told(stage: &Stage, header: &str) -> Vec<String> {
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let told = stored.iter().map(|stored| stored.header(header));
    told.map(|value| value.unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test]
async fn column_that_need_not_exist_orders_what_is_recovered_and_replayed() {
    let create = "CREATE TABLE public.outbox (id uuid PRIMARY KEY, aggregatetype text NOT NULL, \
                  aggregateid text NOT NULL, type text NOT NULL, payload jsonb, \
                  timestamp timestamptz NOT NULL)";
    let stage = before_the_slot(create, "preset: debezium").await;
    // The later the row, the lower its id.
    let insert = "INSERT INTO public.outbox SELECT \
                  ('00000000-0000-0000-0000-00000000000' || 9 - n)::uuid, 'order', n::text, \
                  'placed', '{}', '2026-01-01 00:00+00'::timestamptz + n * interval '1 day' \
                  FROM generate_series(1, 4) n";
    stage.session.run(insert).await;
    let done = types(&stage, "setup --backfill").await;
    assert!(done.stdout.contains("appended  4 events\n"), "{done:?}");
    assert_eq!(told(&stage, "ce-subject").await, ["1", "2", "3", "4"]);
    let _outjet = stage.lead().await;
    let replayed = types(&stage, "replay --since 2026-01-04").await;
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    stage.confirmed().await;
    let subjects = told(&stage, "ce-subject").await;
    assert_eq!(subjects, ["1", "2", "3", "4", "3", "4"]);
}

#[tokio::test]
async fn values_inside_columns_are_recovered_and_rows_that_lack_them_become_dead_letters() {
    let create = "CREATE TABLE public.outbox (id bigserial PRIMARY KEY, meta jsonb, body text)";
    let tables = "preset: none, columns: {id: id, type: {json: meta.kind}, \
                  aggregatetype: {value: order}, payload: body}";
    let stage = before_the_slot(create, tables).await;
    let insert = "INSERT INTO public.outbox (meta, body) VALUES \
                  ('{\"kind\": \"made\"}', 'a'), ('{}', 'b'), ('{\"kind\": \"paid\"}', 'c')";
    stage.session.run(insert).await;
    let done = types(&stage, "setup --backfill").await;
    assert!(done.stdout.contains("appended  3 events\n"), "{done:?}");
    assert_eq!(told(&stage, "ce-type").await, ["made", "paid"]);
    let letters = drain::messages(&stage.jetstream().await, "OUTBOX_DLQ").await;
    let reasons: Vec<_> = letters
        .iter()
        .map(|letter| letter.header("Outjet-Reason"))
        .collect();
    assert_eq!(reasons, [Some("inside_column")]);
    assert_eq!(&letters[0].payload[..], b"b");
    let verified = types(&stage, "verify").await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[tokio::test]
async fn table_whose_id_is_no_column_is_replayed_but_not_compared() {
    let create = "CREATE TABLE public.outbox (meta jsonb, body text)";
    let tables = "preset: none, columns: {id: {json: meta.id}, payload: body}";
    let stage = before_the_slot(create, tables).await;
    let insert = "INSERT INTO public.outbox VALUES ('{\"id\": 1}', 'a'), ('{\"id\": 2}', 'b')";
    stage.session.run(insert).await;
    for typed in ["setup --backfill", "verify"] {
        let refused = types(&stage, typed).await;
        assert_eq!(refused.code, Some(1), "{typed}: {refused:?}");
        let why = "the rows of public.outbox cannot be compared with the stream";
        assert!(refused.stderr.contains(why), "{typed}: {refused:?}");
    }
    assert_eq!(slots(&stage).await, "");
    assert_eq!(types(&stage, "setup").await.code, Some(0));
    let mut outjet = stage.lead().await;
    let replayed = types(&stage, "replay --all").await;
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    stage.confirmed().await;
    assert_eq!(
        told(&stage, "Outjet-Id").await,
        ["public.outbox:1", "public.outbox:2"]
    );
    // Without its slot there is one way on.
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    stage.drop_slot("outjet").await;
    assert_eq!(types(&stage, "setup").await.code, Some(78));
    assert_eq!(types(&stage, "recover").await.code, Some(1));
    let accepted = types(&stage, "recover --accept").await;
    assert_eq!(accepted.code, Some(0), "{accepted:?}");
    assert!(
        accepted.stdout.starts_with("accepted  gap from 0/"),
        "{accepted:?}"
    );
    assert_eq!(slots(&stage).await, "outjet");
}

async fn json(stage: &Stage, typed: &str) -> (Option<i32>, Value) {
    let output = types(stage, typed).await;
    let json = serde_json::from_str(&output.stdout);
    (
        output.code,
        json.unwrap_or_else(|error| panic!("{error}: {output:?}")),
    )
}

#[tokio::test]
async fn verify_finds_rows_in_the_stream_and_among_the_dead_letters() {
    let stage = Stage::ready().await;
    let _outjet = stage.lead().await;
    commit_each(&stage, 1..=20).await;
    let bad = "INSERT INTO outbox.events (aggregatetype, aggregateid, type, headers) \
               VALUES ('order', '1', 'created', '{\"bad name\": \"x\"}')";
    stage.session.run(bad).await;
    let (code, report) = json(&stage, "verify --json --wait 60s").await;
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(
        (&report["rows"], &report["messages"]),
        (&Value::from(21), &Value::from(20))
    );
    assert_eq!(
        (&report["exact"], &report["confirmed"]),
        (&true.into(), &true.into())
    );
}

#[tokio::test]
async fn verify_names_what_is_missing_doubled_or_out_of_order() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    commit_each(&stage, 1..=20).await;
    stage.confirmed().await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let (gone, doubled) = (stored[4].row_id(), stored[6].row_id());
    assert!(
        stage
            .stream()
            .await
            .delete_message(5)
            .await
            .expect("deleted")
    );
    let mut headers = async_nats::HeaderMap::new();
    for name in ["Outjet-Source", "Outjet-Position"] {
        headers.insert(name, stored[6].header(name).expect("a header"));
    }
    headers.insert("Outjet-Id", doubled.as_str());
    let jetstream = stage.jetstream().await;
    let sent = jetstream
        .publish_with_headers("events.copy", headers, "".into())
        .await;
    sent.expect("sent").await.expect("stored");
    let (code, report) = json(&stage, "verify --json").await;
    assert_eq!(code, Some(1), "{report}");
    assert_eq!(report["missing"]["count"], 1, "{report}");
    assert_eq!(
        report["missing"]["first"][0]["id"],
        gone.as_str(),
        "{report}"
    );
    assert_eq!(
        report["duplicated"]["first"][0]["id"],
        doubled.as_str(),
        "{report}"
    );
    assert_eq!(
        report["duplicated"]["first"][0]["sequences"],
        serde_json::json!([7, 21])
    );
    assert_eq!(
        report["out_of_order"]["first"][0]["sequence"], 21,
        "{report}"
    );
    let text = types(&stage, "verify").await;
    assert!(
        text.stdout
            .contains(&format!("missing     outbox.events {gone}, created ")),
        "{text:?}"
    );
    assert!(
        text.stdout
            .ends_with("1 missing, 1 duplicates, 1 out of order\n"),
        "{text:?}"
    );
}

#[tokio::test]
async fn verify_tells_rows_that_are_to_come_from_rows_that_are_lost() {
    let stage = Stage::ready().await;
    commit_each(&stage, 1..=2).await;
    let (code, report) = json(&stage, "verify --json --wait 0s").await;
    assert_eq!(code, Some(1), "{report}");
    assert_eq!(
        (&report["confirmed"], &report["missing"]["count"]),
        (&false.into(), &2.into())
    );
}

#[tokio::test]
async fn rows_older_than_what_the_stream_holds_are_not_missed() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    commit_each(&stage, 1..=20).await;
    stage.confirmed().await;
    stage.stream().await.purge().keep(5).await.expect("purged");
    let (code, report) = json(&stage, "verify --json").await;
    assert_eq!(
        (code, &report["missing"]["count"]),
        (Some(0), &0.into()),
        "{report}"
    );
    stage.stream().await.purge().await.expect("purged");
    let refused = types(&stage, "verify").await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("the stream cannot tell what it has held"),
        "{refused:?}"
    );
    let since = stage
        .outjet(["verify", "--since", "infinity"])
        .output()
        .await;
    assert_eq!(since.code, Some(0), "{since:?}");
    // Nor are they published again.
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    stage.drop_slot("outjet").await;
    let refused = types(&stage, "recover").await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let since = stage
        .outjet(["recover", "--since", "infinity"])
        .output()
        .await;
    assert!(
        since.stdout.starts_with("appended  0 events\n"),
        "{since:?}"
    );
    assert_eq!(stage.last_sequence().await, 20);
}

/// The ids in the stream after a backfill of tables whose poller has published every second row.
async fn backfilled(ddl: &str, tables: &str, writes: &str) -> Vec<String> {
    let mut stage = Stage::ready().await;
    let dropped = types(&stage, "drop --force --yes").await;
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    let subjects = "stream: {subjects: ['all.>'], duplicate_window: 100ms, name: BACKFILL}";
    stage.configure(&format!(
        "{subjects}\npublish: {{subject_prefix: all}}\n{tables}"
    ));
    // Where outjet was set up, the schema of that name is there.
    let ddl = ddl.replace("CREATE SCHEMA outbox;", "");
    stage.session.run(&ddl).await;
    stage.session.run(writes).await;
    let done = types(&stage, "setup --backfill").await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let left_out = done.stdout.matches("left out  2 rows of ").count();
    assert_eq!(left_out, tables.matches("name: ").count(), "{done:?}");
    let stored = drain::messages(&stage.jetstream().await, "BACKFILL").await;
    let ids = stored.iter().map(|stored| stored.row_id());
    // Ids of the tests that are UUIDs begin with their number.
    ids.map(|id| id.chars().take(1).collect()).collect()
}

const ODD: [&str; 3] = ["1", "3", "5"];

#[tokio::test]
async fn rows_with_the_time_of_a_poller_are_not_published_again() {
    let ddl = concat!(
        include_str!("../data/presets/outbox-events.sql"),
        include_str!("../data/presets/envelope.sql"),
        include_str!("../data/presets/pg-transactional-outbox.sql"),
    );
    let tables = "tables:
  - {name: public.outbox_events, preset: outbox-events}
  - {name: public.outbox, preset: envelope}
  - {name: outbox.outbox, preset: pg-transactional-outbox}";
    let writes = "
INSERT INTO outbox_events (aggregate_id, event_type, payload, published_at)
  SELECT 'a', 'made', '{}', CASE WHEN n IN (2, 4) THEN now() END FROM generate_series(1, 5) n;
INSERT INTO public.outbox (id, tenant_id, aggregate_id, aggregate_type, event_type, payload,
    idempotency_key, producer, processed_at, created_at)
  SELECT (n || '0000000-0000-4000-8000-000000000000')::uuid, 't', 'a', 'lead', 'made', '{}',
    n::text, 'p', CASE WHEN n IN (2, 4) THEN now() END, now() + n * interval '1 s'
  FROM generate_series(1, 5) n;
INSERT INTO outbox.outbox (id, aggregate_type, aggregate_id, message_type, payload, created_at,
    processed_at, abandoned_at)
  SELECT (n || '0000000-0000-4000-8000-000000000001')::uuid, 'movie', 'a', 'made', '{}',
    now() + n * interval '1 s', CASE WHEN n IN (2, 4) THEN now() END, CASE WHEN n = 3 THEN now() END
  FROM generate_series(1, 5) n";
    let told = backfilled(ddl, tables, writes).await;
    assert_eq!(told, [ODD, ODD, ODD].concat());
}

#[tokio::test]
async fn rows_with_the_flag_of_a_poller_are_not_published_again() {
    let ddl = concat!(
        include_str!("../data/presets/eventuate.sql"),
        "CREATE TABLE public.mine (id int PRIMARY KEY, body text, sent boolean, published_at date)"
    );
    let tables = "tables:
  - {name: eventuate.message, preset: eventuate}
  - {name: public.mine, preset: none, columns: {id: id, payload: body}, published: sent}";
    let writes = "
INSERT INTO eventuate.message (id, destination, headers, payload, published)
  SELECT n::text, 'net.example', '{}', '{}', CASE WHEN n IN (2, 4) THEN 1 WHEN n < 5 THEN 0 END
  FROM generate_series(1, 5) n;
INSERT INTO public.mine
  SELECT n, '', CASE WHEN n < 5 THEN n IN (2, 4) END, now() FROM generate_series(1, 5) n";
    let told = backfilled(ddl, tables, writes).await;
    assert_eq!(told, [ODD, ODD].concat());
}

#[tokio::test]
async fn rows_with_the_status_of_a_poller_are_not_published_again() {
    let ddl = concat!(
        include_str!("../data/presets/relay-events.sql"),
        include_str!("../data/presets/open-outbox.sql"),
        "CREATE TABLE public.mine (id int PRIMARY KEY, body text, state text)"
    );
    let tables = "tables:
  - {name: public.outbox_events, preset: relay-events}
  - {name: public.openoutbox_events, preset: open-outbox}
  - name: public.mine
    preset: none
    columns: {id: id, payload: body}
    published: {column: state, value: \"it's out\"}";
    let writes = "
INSERT INTO outbox_events (id, aggregate_id, event_type, payload, status, published_at, created_at)
  SELECT (n || '0000000-0000-4000-8000-000000000000')::uuid, 'a', 'made', '{}',
    CASE WHEN n IN (2, 4) THEN 'PUBLISHED' ELSE 'PENDING' END,
    -- The third is to be sent once more.
    CASE WHEN n IN (2, 3, 4) THEN now() END, now() + n * interval '1 s'
  FROM generate_series(1, 5) n;
INSERT INTO openoutbox_events (event_id, event_type, payload, status, delivered_at, created_at)
  SELECT (n || '0000000-0000-4000-8000-000000000001')::uuid, 'made', '',
    (ARRAY['PENDING', 'DELIVERED', 'DELIVERING', 'DELIVERED', 'DEAD'])[n],
    CASE WHEN n IN (2, 4) THEN now() END, now() + n * interval '1 s'
  FROM generate_series(1, 5) n;
INSERT INTO public.mine
  SELECT n, '', (ARRAY[NULL, 'it''s out', 'new', 'it''s out', ''])[n] FROM generate_series(1, 5) n";
    let told = backfilled(ddl, tables, writes).await;
    assert_eq!(told, [ODD, ODD, ODD].concat());
}

#[tokio::test]
async fn mark_that_is_no_mark_counts_for_nothing_and_one_that_is_missing_is_an_error() {
    let create = "CREATE TABLE public.outbox (id int PRIMARY KEY, body text, published_at date)";
    let columns = "preset: none, columns: {id: id, payload: body}";
    let missing = format!("{columns}, published: sent");
    let mut stage = before_the_slot(create, &missing).await;
    let insert = "INSERT INTO public.outbox SELECT n, '', now() FROM generate_series(1, 2) n";
    stage.session.run(insert).await;
    let refused = types(&stage, "setup --backfill").await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let cause = "it has no column \"sent\", which `published` names";
    assert!(refused.stderr.contains(cause), "{refused:?}");
    let table = format!("{{name: public.outbox, {columns}, published: none}}");
    stage.configure(&format!("{QUICK}\ntables: [{table}]\n"));
    let done = types(&stage, "setup --backfill").await;
    assert!(done.stdout.contains("appended  2 events\n"), "{done:?}");
    assert_eq!(told(&stage, "ce-id").await, ["1", "2"]);
}
