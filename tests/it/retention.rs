//! Old rows: partitions that turn beside writers, rows of other tables that are deleted, rows that
//! are gone before anybody could see them. Days pass by the arguments of the SQL functions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::harness::postgres::Session;
use crate::harness::stage::{SOON, STREAM, confirmed};
use crate::harness::{Stage, Wait, World, drain, until, until_the_day_lasts};

/// What a writer may wait at worst: the lock_timeout of expire_partitions() and as much again for
/// what stood behind the same lock, and then a machine that has other things to do.
const WRITER_WAITS_MAX: Duration = Duration::from_secs(5);

/// Writers in a world in which it is `day` days later.
struct Clock {
    day: AtomicU32,
    written: AtomicU64,
    stop: CancellationToken,
}

impl Clock {
    fn day(&self) -> u32 {
        self.day.load(Ordering::SeqCst)
    }

    /// Writes until it is told to stop; returns how long the longest insert took.
    async fn write(self: Arc<Self>, session: Session) -> Duration {
        let mut longest = Duration::ZERO;
        while !self.stop.is_cancelled() {
            let started = Instant::now();
            let sql = format!(
                "INSERT INTO outbox.events (aggregatetype, aggregateid, type, created_at)
                 VALUES ('order', '1', 'created', now() + interval '{} days')",
                self.day()
            );
            session.run(&sql).await;
            longest = longest.max(started.elapsed());
            self.written.fetch_add(1, Ordering::SeqCst);
        }
        longest
    }

    /// Waits until writers have written on, each of them if there are not many.
    async fn until_written_on(&self) {
        let before = self.written.load(Ordering::SeqCst);
        until("writers write on", SOON, async || {
            let now = self.written.load(Ordering::SeqCst);
            Wait::ready_if(now >= before + 50, now)
        })
        .await;
    }
}

/// The next day begins: partitions are made, and writers write into it. Those that ended a day ago
/// expire; returns how many could be dropped, those included that are made again for days that are
/// over by our clock alone.
async fn turn(clock: &Clock, session: &Session) -> u32 {
    let day = clock.day() + 1;
    let ensure = format!("SELECT outbox.ensure_partitions({})", day + 2);
    session.text(&ensure).await;
    clock.day.store(day, Ordering::SeqCst);
    clock.until_written_on().await;
    forgettable(session).await;
    let dropped = expire(session, day).await;
    clock.until_written_on().await;
    dropped
}

async fn expire(session: &Session, day: u32) -> u32 {
    let expire =
        format!("SELECT outbox.expire_partitions(-interval '{day} days' + interval '1 d')");
    let dropped = tokio::time::timeout(SOON, session.text(&expire)).await;
    let dropped = dropped.expect("expire_partitions() waits for nobody for long");
    dropped.parse().expect("a number")
}

/// In bytes; "-": there is none for that day.
async fn size_of_partition(session: &Session, day: u32) -> String {
    let sql = format!(
        "SELECT coalesce(pg_relation_size(to_regclass('outbox.events_' ||
           to_char((now() AT TIME ZONE 'UTC')::date + {day}, 'YYYYMMDD')))::text, '-')"
    );
    session.text(&sql).await
}

/// Lets the slot's catalog_xmin pass all that is committed.
async fn forgettable(session: &Session) {
    let xid = session.text("SELECT pg_current_xact_id()::xid::text").await;
    let passed = format!(
        "SELECT age('{xid}'::xid) > age(catalog_xmin) FROM pg_replication_slots
         WHERE slot_name = 'outjet'"
    );
    until("the slot's xmin has moved", SOON, async || {
        // Writes the record that lets it move (LogStandbySnapshot).
        session.run("CHECKPOINT").await;
        let found = session.text(&passed).await;
        Wait::ready_if(found == "t", found)
    })
    .await;
}

#[tokio::test]
async fn partitions_turn_beside_writers_that_never_fail_and_never_wait_for_long() {
    until_the_day_lasts().await;
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    let clock = Arc::new(Clock {
        day: AtomicU32::new(0),
        written: AtomicU64::new(0),
        stop: CancellationToken::new(),
    });
    let mut writers = JoinSet::new();
    for _ in 0..3 {
        let session = stage.world.postgres.connect().await;
        writers.spawn(clock.clone().write(session));
    }
    // Somebody who does not come to an end keeps partitions from being dropped, not from being
    // emptied, and no writer from writing.
    let sitter = stage.world.postgres.connect().await;
    sitter
        .run("BEGIN; LOCK TABLE ONLY outbox.events IN ROW EXCLUSIVE MODE")
        .await;
    for _ in 0..3 {
        assert_eq!(turn(&clock, &stage.session).await, 0);
    }
    assert_eq!(size_of_partition(&stage.session, 1).await, "0");
    sitter.run("COMMIT").await;
    for _ in 0..3 {
        turn(&clock, &stage.session).await;
    }
    until("old partitions are dropped", SOON, async || {
        expire(&stage.session, clock.day()).await;
        let size = size_of_partition(&stage.session, 4).await;
        Wait::ready_if(size == "-", size)
    })
    .await;
    assert_ne!(size_of_partition(&stage.session, 5).await, "0");
    clock.stop.cancel();
    let mut longest = Duration::ZERO;
    while let Some(waited) = writers.join_next().await {
        longest = longest.max(waited.expect("a writer failed"));
    }
    eprintln!("the longest insert took {longest:?}");
    assert!(longest < WRITER_WAITS_MAX, "{longest:?}");
    let default = "SELECT count(*) FROM outbox.events_default";
    assert_eq!(stage.session.text(default).await, "0");
    stage.confirmed().await;
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let ids: Vec<String> = stored.iter().map(|message| message.row_id()).collect();
    stage.judge.verdict(&ids).await.assert_exact();
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}

/// The README's role, with what it is granted there.
const ROLE: &str = "CREATE ROLE streamer LOGIN REPLICATION";
const GRANTS: &str = "GRANT USAGE ON SCHEMA outbox TO streamer;
    GRANT EXECUTE ON FUNCTION outbox.ensure_partitions, outbox.expire_partitions TO streamer";

#[tokio::test]
async fn leader_turns_partitions_if_its_role_may_and_else_says_how_to_let_it() {
    until_the_day_lasts().await;
    let world = World::start().await;
    let setup = world.outjet(["setup"]).output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let owner = world.postgres.connect().await;
    owner.run(ROLE).await;
    owner
        .run(
            "CREATE TABLE outbox.events_20200101 PARTITION OF outbox.events
               FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00');
             INSERT INTO outbox.events (aggregatetype, aggregateid, type, created_at)
               VALUES ('order', '1', 'created', '2020-01-01 12:00:00+00');
             DO $$ BEGIN EXECUTE (SELECT format('DROP TABLE %s', inhrelid::regclass)
               FROM pg_inherits WHERE inhparent = 'outbox.events'::regclass
               ORDER BY inhrelid DESC OFFSET 2 LIMIT 1); END $$",
        )
        .await;
    let count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'outbox.events'::regclass";
    assert_eq!(owner.text(count).await, "9");
    let run = || {
        world
            .outjet(["run", "--log-format", "json"])
            .env(
                "DATABASE_URL",
                world.postgres.url_as("streamer", "postgres"),
            )
            .spawn()
    };

    let mut outjet = run();
    let cannot = "cannot turn the partitions of outbox.events";
    let line = outjet.logged(cannot, SOON).await;
    assert_eq!(line["level"], "WARN");
    let fix = line["fix"].as_str().or(line["fields"]["fix"].as_str());
    let fix = fix.expect("a fix").to_owned();
    assert!(fix.contains("GRANT EXECUTE ON FUNCTION"), "{fix}");
    confirmed(&owner, SOON).await;
    forgettable(&owner).await;
    assert_eq!(owner.text(count).await, "9");
    assert_eq!(outjet.terminate(SOON).await, Some(0));

    owner.run(GRANTS).await;
    let mut outjet = run();
    let line = outjet.logged("partitions turned", SOON).await;
    let field = |name: &str| line[name].as_i64().or(line["fields"][name].as_i64());
    assert_eq!((field("made"), field("dropped")), (Some(1), Some(1)));
    assert_eq!(owner.text(count).await, "9");
    let old = "SELECT to_regclass('outbox.events_20200101') IS NULL";
    assert_eq!(owner.text(old).await, "t");
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    assert!(outjet.log().iter().all(|line| line["level"] != "WARN"));
}

/// Somebody's outbox: one table, and one in partitions.
const THEIRS: &str = "
CREATE TABLE public.notes (id uuid DEFAULT gen_random_uuid(), made timestamptz, body jsonb);
CREATE TABLE public.parts (id uuid DEFAULT gen_random_uuid(), made timestamp, body jsonb)
  PARTITION BY RANGE (made);
CREATE TABLE public.parts_all PARTITION OF public.parts DEFAULT;
";

const OLD_AND_NEW: &str = "
INSERT INTO public.notes (made, body)
  SELECT now() - interval '2 d', '1'::jsonb FROM generate_series(1, 5001)
  UNION ALL SELECT now() - interval '20 h', '2';
INSERT INTO public.parts (made, body)
  VALUES (now() - interval '2 d', '1'), (now() - interval '20 h', '2');
";

const KEEPING: &str = "
tables:
  - name: public.notes
    preset: none
    columns: {id: id, created_at: made, payload: body, aggregatetype: {value: n}, type: {value: n}}
    keep: 1d
  - name: public.parts
    preset: none
    columns: {id: id, created_at: made, payload: body, aggregatetype: {value: n}, type: {value: n}}
    keep: 1d
  - name: outbox.events
retention: {manage: false}
";

#[tokio::test]
async fn old_rows_of_other_tables_go_and_partitions_are_left_alone_if_told_so() {
    until_the_day_lasts().await;
    let mut stage = Stage::ready().await;
    let output = stage.outjet(["drop", "--yes"]).output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    stage.session.run(THEIRS).await;
    stage.configure(KEEPING);
    let output = stage.outjet(["setup"]).output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    stage.session.run(OLD_AND_NEW).await;
    let missing = "DO $$ BEGIN EXECUTE (SELECT format('DROP TABLE %s', inhrelid::regclass)
        FROM pg_inherits WHERE inhparent = 'outbox.events'::regclass
        ORDER BY inhrelid DESC LIMIT 1); END $$";
    stage.session.run(missing).await;
    let mut outjet = stage.lead().await;
    stage.confirmed().await;
    forgettable(&stage.session).await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    // Whatever the first one has deleted already was confirmed.
    let mut outjet = stage.lead().await;
    let left = "SELECT (SELECT string_agg(body::text, ',') FROM public.notes) || ' ' ||
                       (SELECT string_agg(body::text, ',') FROM public.parts)";
    stage.session.until_text(left, "2 2", SOON).await;
    outjet
        .logged_where("old rows deleted", SOON, |line| {
            line.to_string().contains("public.parts")
        })
        .await;
    let count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'outbox.events'::regclass";
    assert_eq!(stage.session.text(count).await, "8");
    assert_eq!(stage.last_sequence().await, 5004);
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}

/// Without `keep`: nothing goes.
const LAGGING: &str = "
tables:
  - name: public.notes
    preset: none
    columns: {id: id, created_at: made, payload: body, aggregatetype: {value: n}, type: {value: n}}
  - name: outbox.events
  - name: public.past
    preset: none
    columns: {id: id, created_at: made, payload: body, aggregatetype: {value: n}, type: {value: n}}
";

const UNCONFIRMED: &str = "
INSERT INTO public.notes (made, body) VALUES (now() - interval '2 d', '1'), (now(), '2');
CREATE TABLE outbox.events_20200101 PARTITION OF outbox.events
  FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2020-01-02 00:00:00+00');
CREATE TABLE outbox.events_20200102 PARTITION OF outbox.events
  FOR VALUES FROM ('2020-01-02 00:00:00+00') TO ('2020-01-03 00:00:00+00');
INSERT INTO outbox.events (aggregatetype, aggregateid, type, created_at, payload) VALUES
  ('n', '1', 'n', '2020-01-01 12:00:00+00', '3'), ('n', '1', 'n', '2020-01-02 12:00:00+00', '4'),
  ('n', '1', 'n', '2019-01-01 12:00:00+00', '5'), ('n', '1', 'n', now(), '6');
";

/// Rows of `notes`, `outbox.events` and `past`.
const LEFT: &str = "SELECT (SELECT count(*) FROM public.notes) || ' ' ||
  (SELECT count(*) FROM outbox.events) || ' ' || (SELECT count(*) FROM public.past)";

async fn limit(stage: &Stage, messages: i64) {
    let mut config = stage.stream().await.cached_info().config.clone();
    config.max_messages = messages;
    let updated = stage.jetstream().await.update_stream(config).await;
    updated.expect("updated");
}

/// Housekeeping passes while events wait for room in the stream: what is old and confirmed goes,
/// what is old and waits stays. What somebody takes away all the same is published from the log.
#[tokio::test]
async fn what_waits_behind_a_full_stream_stays_and_is_published_even_if_its_partition_is_dropped() {
    let mut stage = Stage::ready().await;
    let output = stage.outjet(["drop", "--yes"]).output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    stage.session.run(THEIRS).await;
    let past = "CREATE TABLE public.past (LIKE public.notes INCLUDING ALL)";
    stage.session.run(past).await;
    stage.configure(LAGGING);
    let output = stage.outjet(["setup"]).output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    let mut outjet = stage.lead().await;
    let past = "INSERT INTO public.past (made, body) VALUES (now() - interval '2 d', '0')";
    stage.session.run(past).await;
    stage.confirmed().await;
    forgettable(&stage.session).await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));

    limit(&stage, 1).await;
    stage.session.run(UNCONFIRMED).await;
    stage.configure(&LAGGING.replace("value: n}}", "value: n}}\n    keep: 1d"));
    let gone = |table: &'static str| move |line: &Value| line.to_string().contains(table);
    let mut outjet = stage.lead().await;
    let deleted = "old rows deleted";
    // The last of them: all others have had their turn.
    outjet
        .logged_where(deleted, SOON, gone("public.past"))
        .await;
    assert_eq!(stage.session.text(LEFT).await, "2 4 0");
    assert_eq!(stage.last_sequence().await, 1);
    stage.session.run("DROP TABLE outbox.events_20200102").await;
    limit(&stage, -1).await;
    stage.confirmed().await;
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let bodies: Vec<_> = stored.iter().map(|message| &message.payload[..]).collect();
    assert_eq!(bodies, [b"0", b"1", b"2", b"3", b"4", b"5", b"6"]);

    forgettable(&stage.session).await;
    assert_eq!(outjet.terminate(SOON).await, Some(0));
    let mut outjet = stage.lead().await;
    outjet
        .logged_where(deleted, SOON, gone("public.notes"))
        .await;
    assert_eq!(stage.session.text(LEFT).await, "1 1 0");
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}

#[tokio::test]
async fn row_that_is_not_confirmed_is_not_deleted() {
    let world = World::start().await;
    let setup = world.outjet(["setup"]).output().await;
    assert_eq!(setup.code, Some(0), "{setup:?}");
    let session = world.postgres.connect().await;
    session.run(THEIRS).await;
    session.run(OLD_AND_NEW).await;
    let delete = include_str!("../../sql/retention/delete.sql")
        .replace("{table}", "public.notes")
        .replace("{created_at}", "made");
    let delete = async || {
        let deleted = session.execute(&delete, &[&"outjet", &"86400 seconds"]);
        deleted.await.expect("the statement")
    };
    assert_eq!(delete().await, 0);
    let advance = "SELECT pg_replication_slot_advance('outjet', pg_current_wal_flush_lsn())";
    for _ in 0..2 {
        session.run("CHECKPOINT").await;
        session.run(advance).await;
    }
    assert_eq!(delete().await, 5000);
    assert_eq!(delete().await, 1);
    assert_eq!(delete().await, 0);
}

#[tokio::test]
async fn row_that_is_deleted_in_its_own_transaction_is_published_and_leaves_no_trace() {
    let stage = Stage::ready().await;
    let mut outjet = stage.lead().await;
    stage
        .session
        .run(
            "BEGIN;
             INSERT INTO outbox.events (id, aggregatetype, aggregateid, type, payload)
               VALUES ('0a0a0a0a-0000-4000-8000-000000000001', 'order', '1', 'created', '7');
             DELETE FROM outbox.events WHERE id = '0a0a0a0a-0000-4000-8000-000000000001';
             COMMIT",
        )
        .await;
    stage.confirmed().await;
    let stored = drain::messages(&stage.jetstream().await, STREAM).await;
    let bodies: Vec<_> = stored
        .iter()
        .map(|message| message.payload.as_ref())
        .collect();
    assert_eq!(bodies, [b"7".as_slice()]);
    let rows = "SELECT count(*) FROM outbox.events";
    assert_eq!(stage.session.text(rows).await, "0");
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}
