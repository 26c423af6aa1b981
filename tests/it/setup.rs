//! The commands' parts in Postgres on a real server: set up, check, show, emit, drop.

use std::process::{Command, Stdio};
use std::time::Duration;

use outjet::command::emit;
use outjet::command::look::{check, status};
use outjet::command::set_up::{drop, setup};
use outjet::error::{Disposition, Exit, Failure};
use outjet::pg::ddl::INSTALL;
use outjet::pg::name::TableName;
use outjet::preflight::{Check, Options, RequiredColumn, TableRequirement, Verdict, first_failure};

use crate::harness::postgres::Session;
use crate::harness::{Postgres, Stop, World, binaries};

const SOON: Duration = Duration::from_secs(20);

/// What outjet wants of `schema.name` with these columns, called what the fields are called.
fn options(schema: &str, name: &str, columns: &[&str]) -> Options {
    let column = |column: &&str| RequiredColumn {
        field: (*column).to_owned(),
        column: (*column).to_owned(),
    };
    Options {
        slot: "outjet".to_owned(),
        publication: "outjet".to_owned(),
        tables: vec![TableRequirement {
            name: TableName::new(schema, name),
            columns: columns.iter().map(column).collect(),
            expires: false,
        }],
        prefixes: Vec::new(),
        turns_partitions: false,
    }
}

/// What outjet wants of the table that it makes itself.
pub(crate) fn native() -> Options {
    let columns = ["id", "created_at", "aggregatetype", "type", "payload"];
    options("outbox", "events", &columns)
}

pub(crate) async fn set_up(client: &Session, options: &Options) -> Result<String, Failure> {
    let mut out = Vec::new();
    setup::setup(client, options, false, &mut out).await?;
    Ok(String::from_utf8(out).expect("text"))
}

async fn dropped(client: &Session, force: bool) -> Result<String, Failure> {
    let mut out = Vec::new();
    drop::drop(client, &native(), force, &mut out).await?;
    Ok(String::from_utf8(out).expect("text"))
}

async fn checks(client: &Session, options: &Options) -> Vec<Check> {
    check::check(client, options).await.expect("facts").0
}

/// The first failure of a check, in its three lines.
async fn failed(client: &Session, options: &Options) -> String {
    let checks = checks(client, options).await;
    let failure = first_failure(&checks);
    failure.expect("something fails").to_string()
}

/// A server with everything set up, and a superuser's session.
async fn ready() -> (Postgres, Session) {
    let postgres = Postgres::start().await;
    let client = postgres.connect().await;
    set_up(&client, &native()).await.expect("set up");
    (postgres, client)
}

#[tokio::test]
async fn second_setup_finds_everything_and_check_passes() {
    let (_postgres, client) = ready().await;
    let again = set_up(&client, &native()).await.expect("set up");
    assert_eq!(
        again,
        "exists   schema outbox, version 3\n\
         created  partitions of the days ahead\n\
         exists   publication outjet\n\
         exists   replication slot outjet\n"
    );
    for check in checks(&client, &native()).await {
        let harmless = matches!(check.verdict, Verdict::Pass(_)) || check.name == "version";
        assert!(harmless, "{check:?}");
    }
}

/// `outjet setup | head -n 1`: what nobody reads is done all the same.
#[tokio::test]
async fn setup_whose_answer_nobody_reads_is_complete() {
    let world = World::start().await;
    let program = binaries::outjet();
    let (postgres, nats) = (world.postgres.url(), world.nats.url());
    let mut command = Command::new(program);
    command
        .arg("setup")
        .env("DATABASE_URL", postgres)
        .env("NATS_URL", nats);
    let mut setup = command.stdout(Stdio::piped()).spawn().expect("outjet");
    drop(setup.stdout.take());
    let status = tokio::task::spawn_blocking(move || setup.wait());
    let status = status.await.expect("waited").expect("a status");
    assert_eq!(status.code(), Some(0));
    let check = world.outjet(["check"]).output().await;
    assert_eq!(check.code, Some(0), "{check:?}");
}

#[tokio::test]
async fn two_copies_may_set_up_at_once() {
    let postgres = Postgres::start().await;
    let (one, two) = (postgres.connect().await, postgres.connect().await);
    let native = native();
    let (first, second) = tokio::join!(set_up(&one, &native), set_up(&two, &native));
    first.expect("set up");
    second.expect("set up");
    assert_eq!(first_failure(&checks(&one, &native).await), None);
}

#[tokio::test]
async fn standby_is_told_and_cannot_be_waited_on() {
    let mut postgres = Postgres::start().await;
    postgres.connect().await.run(INSTALL).await;
    postgres.stop(Stop::Fast).await;
    std::fs::write(postgres.data().join("standby.signal"), "").expect("write standby.signal");
    postgres.start_again().await;
    let client = postgres.connect().await;
    let found = checks(&client, &native()).await;
    let failure = first_failure(&found).expect("a standby");
    assert_eq!(failure.disposition, Disposition::Retry);
    assert_eq!(failure.problem.problem, "the server is a standby");
    let refused = client.batch_execute("SELECT outbox.wait_published()").await;
    let code = refused.expect_err("a standby").code().cloned();
    assert_eq!(
        code.map(|code| code.code().to_owned()).as_deref(),
        Some("55000")
    );
    assert_eq!(
        client.text("SELECT count(*) FROM outbox.slot_status").await,
        "0"
    );
}

#[tokio::test]
async fn slot_fails_over_where_the_server_can_do_that() {
    let (postgres, client) = ready().await;
    let failover =
        "SELECT coalesce(to_jsonb(s) ->> 'failover', 'unknown') FROM pg_replication_slots s";
    let expected = if postgres.major() >= 17 {
        "true"
    } else {
        "unknown"
    };
    assert_eq!(client.text(failover).await, expected);
}

#[tokio::test]
async fn dry_run_prints_the_sql_and_executes_nothing() {
    let postgres = Postgres::start().await;
    let client = postgres.connect().await;
    let mut out = Vec::new();
    setup::setup(&client, &native(), true, &mut out)
        .await
        .expect("a plan");
    let there = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox')
        + (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)";
    assert_eq!(client.text(there).await, "0");
    // By hand, as psql would: the file, then statement by statement.
    let sql = String::from_utf8(out).expect("text");
    let (install, rest) = sql.split_once("\nCOMMIT;\n").expect("install.sql");
    client.run(&format!("{install}\nCOMMIT;")).await;
    for statement in rest.lines() {
        client.run(statement).await;
    }
    assert_eq!(client.text(there).await, "3");
    assert_eq!(first_failure(&checks(&client, &native()).await), None);
}

#[tokio::test]
async fn odd_names_are_set_up_checked_and_found_in_the_slot() {
    let postgres = Postgres::start().await;
    let client = postgres.connect().await;
    client
        .run(
            r#"CREATE SCHEMA "we""ird";
               CREATE TABLE "we""ird"."Out.Box'" ("Id" uuid, "pay\load" json)"#,
        )
        .await;
    let mut options = options("we\"ird", "Out.Box'", &["Id", "pay\\load"]);
    options.publication = "Pub\"li'c".to_owned();
    set_up(&client, &options).await.expect("set up");
    assert_eq!(first_failure(&checks(&client, &options).await), None);
    client
        .run(r#"INSERT INTO "we""ird"."Out.Box'" VALUES (gen_random_uuid(), '{}')"#)
        .await;
    let mut out = Vec::new();
    let refused = drop::drop(&client, &options, false, &mut out).await;
    let failure = refused.expect_err("an unconfirmed event");
    assert_eq!(failure.problem.cause, "1 events are not confirmed");
}

#[tokio::test]
async fn setup_says_which_transaction_the_slot_waits_for() {
    let postgres = Postgres::start().await;
    let (client, writer) = (postgres.connect().await, postgres.connect().await);
    writer.run("CREATE TABLE t (n int)").await;
    writer
        .run("SET application_name = 'slow'; BEGIN; INSERT INTO t VALUES (1)")
        .await;
    let watcher = postgres.connect().await;
    let making = "SELECT count(*) FROM pg_replication_slots WHERE active";
    let (said, ()) = tokio::join!(
        async { set_up(&client, &native()).await.expect("set up") },
        async {
            watcher.until_text(making, "1", SOON).await;
            writer.run("COMMIT").await;
        }
    );
    assert!(
        said.contains("waiting  for a transaction to end: pid "),
        "{said}"
    );
    assert!(said.contains("application \"slow\""), "{said}");
}

#[tokio::test]
async fn slot_in_use_is_a_leader_for_check_and_keeps_drop_off() {
    let (postgres, client) = ready().await;
    let making = "SELECT pg_drop_replication_slot('outjet')";
    client.run(making).await;
    let (writer, leader) = (postgres.connect().await, postgres.connect().await);
    writer.run("BEGIN; SELECT outbox.emit('a', '1', 't')").await;
    leader.run("SET application_name = 'outjet@host-a'").await;
    // A slot that is being made is held by its maker.
    let (_, ()) = tokio::join!(
        leader.text("SELECT pg_create_logical_replication_slot('outjet', 'pgoutput')::text"),
        async {
            let held = "SELECT count(*) FROM pg_replication_slots WHERE active";
            client.until_text(held, "1", SOON).await;
            let checks = checks(&client, &native()).await;
            let holder = checks.iter().find(|check| check.name == "holder");
            let Some(Verdict::Pass(led)) = holder.map(|check| &check.verdict) else {
                panic!("{checks:?}");
            };
            assert!(led.starts_with("led by pid "), "{led}");
            assert!(led.contains("application \"outjet@host-a\""), "{led}");
            let failure = dropped(&client, true).await.expect_err("in use");
            assert_eq!(
                failure.problem.problem,
                "replication slot \"outjet\" is in use"
            );
            writer.run("COMMIT").await;
        }
    );
}

#[tokio::test]
async fn wal_level_is_told_before_and_after_it_was_changed() {
    let mut postgres = Postgres::builder()
        .setting("wal_level", "replica")
        .start()
        .await;
    let client = postgres.connect().await;
    let failure = set_up(&client, &native()).await.expect_err("wal_level");
    assert!(failure.problem.problem.starts_with("wal_level is replica"));
    postgres.set("wal_level", "logical");
    postgres.reload();
    let pending = "SELECT pending_restart::text FROM pg_settings WHERE name = 'wal_level'";
    client.until_text(pending, "true", SOON).await;
    let text = failed(&client, &native()).await;
    assert!(text.contains("the server not restarted since"), "{text}");
    postgres.restart(Stop::Fast).await;
    let client = postgres.connect().await;
    set_up(&client, &native()).await.expect("set up");
}

#[tokio::test]
async fn role_with_replication_alone_can_check_but_not_set_up() {
    let (postgres, client) = ready().await;
    client
        .run("CREATE ROLE plain LOGIN; CREATE ROLE repl LOGIN REPLICATION")
        .await;
    let plain = Session::connect(&postgres.url_as("plain", "postgres")).await;
    let checks = checks(&plain, &native()).await;
    let failure = first_failure(&checks).expect("may not replicate");
    assert_eq!(failure.exit, Exit::NotPermitted);
    assert_eq!(failure.problem.problem, "role \"plain\" may not replicate");
    let repl = Session::connect(&postgres.url_as("repl", "postgres")).await;
    let found = check::check(&repl, &native()).await.expect("facts").0;
    assert_eq!(first_failure(&found), None);
    client.run("CREATE TABLE public.mine (id uuid)").await;
    let failure = set_up(&repl, &options("public", "mine", &["id"])).await;
    let failure = failure.expect_err("not the owner");
    assert_eq!(failure.exit, Exit::NotPermitted);
    assert!(
        failure.problem.fix.starts_with("`outjet setup --dry-run`"),
        "{failure}"
    );
}

#[tokio::test]
async fn table_and_its_columns_are_told_with_what_was_meant() {
    let postgres = Postgres::start().await;
    let client = postgres.connect().await;
    client
        .run("CREATE TABLE public.outbox_events (id uuid, event_type text, payload json, at int)")
        .await;
    let text = failed(&client, &options("app", "outbox_events", &[])).await;
    assert!(
        text.contains("table app.outbox_events does not exist"),
        "{text}"
    );
    assert!(
        text.contains("did you mean public.outbox_events?"),
        "{text}"
    );
    let columns = options("public", "outbox_events", &["id", "type"]);
    let text = failed(&client, &columns).await;
    assert!(
        text.contains("public.outbox_events has no column type"),
        "{text}"
    );
    assert!(text.contains("did you mean {type: event_type}?"), "{text}");
    let mut time = options("public", "outbox_events", &["created_at"]);
    time.tables[0].columns[0].column = "at".to_owned();
    let text = failed(&client, &time).await;
    assert!(
        text.contains("it is of type integer, and a timestamp is needed"),
        "{text}"
    );
}

#[tokio::test]
async fn unlogged_table_and_view_are_refused() {
    let postgres = Postgres::start().await;
    let client = postgres.connect().await;
    client
        .run("CREATE UNLOGGED TABLE public.u (id uuid); CREATE VIEW public.v AS SELECT 1 AS id")
        .await;
    let text = failed(&client, &options("public", "u", &["id"])).await;
    assert!(
        text.contains("ALTER TABLE \"public\".\"u\" SET LOGGED;"),
        "{text}"
    );
    let failure = set_up(&client, &options("public", "v", &["id"])).await;
    let failure = failure.expect_err("a view");
    assert!(
        failure.problem.cause.starts_with("it is a view"),
        "{failure}"
    );
}

#[tokio::test]
async fn publication_that_lacks_something_is_told_with_the_statement_that_mends_it() {
    let (_postgres, client) = ready().await;
    client
        .run("ALTER PUBLICATION outjet SET (publish = 'update')")
        .await;
    assert_mended(&client, "does not publish inserts").await;
    client
        .run("ALTER PUBLICATION outjet SET (publish_via_partition_root = false)")
        .await;
    assert_mended(
        &client,
        "publishes the partitions of outbox.events one by one",
    )
    .await;
    client
        .run("CREATE TABLE other (n int); ALTER PUBLICATION outjet SET TABLE other")
        .await;
    let failure = failed(&client, &native()).await;
    assert!(
        failure.contains("does not publish outbox.events"),
        "{failure}"
    );
    let added = set_up(&client, &native())
        .await
        .expect("the table is added");
    assert!(
        added.contains("created  outbox.events in publication outjet"),
        "{added}"
    );
    let checks = checks(&client, &native()).await;
    let strangers = checks.iter().find(|check| check.name == "strangers");
    let Some(Verdict::Warn(problem)) = strangers.map(|check| &check.verdict) else {
        panic!("{checks:?}");
    };
    assert!(
        problem.problem.ends_with("no mapping knows: public.other"),
        "{problem}"
    );
}

/// The check fails with this; the fix, typed, mends it.
async fn assert_mended(client: &Session, problem: &str) {
    let checks = checks(client, &native()).await;
    let failure = first_failure(&checks).expect("something fails");
    assert!(failure.problem.problem.contains(problem), "{failure}");
    client.run(&failure.problem.fix).await;
    let checks = check::check(client, &native()).await.expect("facts").0;
    assert_eq!(first_failure(&checks), None);
}

#[tokio::test]
async fn row_filter_and_column_list_are_told() {
    let (postgres, client) = ready().await;
    if postgres.major() < 15 {
        return; // Neither exists.
    }
    client
        .run("ALTER PUBLICATION outjet SET TABLE outbox.events WHERE (type <> 'x')")
        .await;
    assert_mended(&client, "hides rows of outbox.events").await;
    client
        .run("ALTER PUBLICATION outjet SET TABLE outbox.events (id, created_at, type)")
        .await;
    assert_mended(
        &client,
        "hides columns of outbox.events: aggregatetype, payload",
    )
    .await;
}

#[tokio::test]
async fn generated_column_is_told() {
    let postgres = Postgres::start().await;
    let client = postgres.connect().await;
    client
        .run("CREATE TABLE public.g (id uuid, type text GENERATED ALWAYS AS ('x'::text) STORED)")
        .await;
    let options = options("public", "g", &["id", "type"]);
    let failure = set_up(&client, &options).await.expect_err("not published");
    let problem = "publication \"outjet\" hides columns of public.g: type";
    assert_eq!(failure.problem.problem, problem);
}

#[tokio::test]
async fn publication_for_all_tables_will_do() {
    let (_postgres, client) = ready().await;
    client
        .run(
            "DROP PUBLICATION outjet;
             CREATE PUBLICATION outjet FOR ALL TABLES WITH (publish_via_partition_root = true)",
        )
        .await;
    assert_eq!(first_failure(&checks(&client, &native()).await), None);
}

#[tokio::test]
async fn missing_publication_beside_a_slot_is_not_made_again() {
    let (_postgres, client) = ready().await;
    client.run("DROP PUBLICATION outjet").await;
    let failure = set_up(&client, &native())
        .await
        .expect_err("an orphaned slot");
    assert!(
        failure.problem.cause.starts_with("slot \"outjet\" exists"),
        "{failure}"
    );
    assert_eq!(
        client.text("SELECT count(*) FROM pg_publication").await,
        "0"
    );
}

#[tokio::test]
async fn slot_that_is_not_ours_is_refused() {
    let (postgres, client) = ready().await;
    let make = |sql| format!("SELECT pg_drop_replication_slot('outjet'); SELECT {sql}");
    client
        .run(&make(
            "pg_create_logical_replication_slot('outjet', 'test_decoding')",
        ))
        .await;
    let text = failed(&client, &native()).await;
    assert!(
        text.contains("its output plugin is test_decoding"),
        "{text}"
    );
    client
        .run(&make("pg_create_physical_replication_slot('outjet')"))
        .await;
    let text = failed(&client, &native()).await;
    assert!(text.contains("it is a physical slot"), "{text}");
    let failure = dropped(&client, true).await.expect_err("not ours");
    assert_eq!(
        failure.problem.problem,
        "replication slot \"outjet\" is not outjet's"
    );
    client
        .run("SELECT pg_drop_replication_slot('outjet')")
        .await;
    client.run("CREATE DATABASE other").await;
    let other = Session::connect(&postgres.url_as("postgres", "other")).await;
    other
        .run("SELECT pg_create_logical_replication_slot('outjet', 'pgoutput')")
        .await;
    let text = failed(&client, &native()).await;
    assert!(
        text.contains("it decodes other, and we are connected to postgres"),
        "{text}"
    );
}

#[tokio::test]
async fn slot_that_decodes_prepared_transactions_is_refused() {
    let (_postgres, client) = ready().await;
    client
        .run(
            "SELECT pg_drop_replication_slot('outjet');
             SELECT pg_create_logical_replication_slot('outjet', 'pgoutput', false, true)",
        )
        .await;
    let text = failed(&client, &native()).await;
    assert!(text.contains("decodes prepared transactions"), "{text}");
}

#[tokio::test]
async fn slot_without_room_is_told_before_anything_is_made() {
    let postgres = Postgres::builder()
        .setting("max_replication_slots", "1")
        .start()
        .await;
    let client = postgres.connect().await;
    client
        .run("SELECT pg_create_physical_replication_slot('other')")
        .await;
    let failure = set_up(&client, &native()).await.expect_err("no room");
    assert_eq!(
        failure.problem.problem,
        "there is no room for another replication slot"
    );
    assert_eq!(
        client.text("SELECT count(*) FROM pg_publication").await,
        "0"
    );
}

#[tokio::test]
async fn lost_slot_halts_and_is_dropped_by_force_alone() {
    let postgres = Postgres::builder()
        .setting("max_slot_wal_keep_size", "1MB")
        .setting("min_wal_size", "32MB")
        .setting("max_wal_size", "32MB")
        .start()
        .await;
    let client = postgres.connect().await;
    set_up(&client, &native()).await.expect("set up");
    client.run("CREATE TABLE t (n int)").await;
    for _ in 0..4 {
        client.run("INSERT INTO t VALUES (1)").await;
        client.run("SELECT pg_switch_wal()").await;
        client.run("CHECKPOINT").await;
    }
    let found = checks(&client, &native()).await;
    let failure = first_failure(&found).expect("a lost slot");
    assert_eq!(failure.disposition, Disposition::Halt);
    assert_eq!(
        failure.problem.problem,
        "replication slot \"outjet\" is lost"
    );
    let status = status::status(&client, &native()).await.expect("a status");
    let slot = status.slot_status.as_ref().expect("a slot");
    assert_eq!(slot.wal_status.as_deref(), Some("lost"));
    assert!(dropped(&client, false).await.is_err());
    dropped(&client, true).await.expect("dropped");
}

#[tokio::test]
async fn drop_refuses_while_events_are_unconfirmed() {
    let (_postgres, client) = ready().await;
    // Neither other tables nor updates are events.
    client
        .run("CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
        .await;
    client
        .run("SELECT outbox.emit('a', n::text, 't') FROM generate_series(1, 3) n")
        .await;
    client.run("UPDATE outbox.events SET type = 'u'").await;
    let failure = dropped(&client, false)
        .await
        .expect_err("unconfirmed events");
    assert_eq!(failure.exit, Exit::CheckFailed);
    assert_eq!(failure.problem.cause, "3 events are not confirmed");
    client
        .run("SELECT pg_replication_slot_advance('outjet', pg_current_wal_flush_lsn())")
        .await;
    client.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(
        dropped(&client, false).await.expect("dropped"),
        "dropped  replication slot outjet\n\
         dropped  publication outjet\n\
         kept     schema outbox, with its rows; sql/uninstall.sql removes it\n"
    );
    let again = dropped(&client, false).await.expect("nothing to drop");
    assert!(
        again.starts_with("absent   replication slot outjet\n"),
        "{again}"
    );
}

#[tokio::test]
async fn drop_does_not_trust_a_slot_whose_publication_is_gone() {
    let (_postgres, client) = ready().await;
    client.run("SELECT outbox.emit('a', '1', 't')").await;
    client.run("DROP PUBLICATION outjet").await;
    let failure = dropped(&client, false).await.expect_err("nobody knows");
    assert!(
        failure
            .problem
            .cause
            .starts_with("its publication is missing"),
        "{failure}"
    );
    dropped(&client, true).await.expect("dropped");
}

#[tokio::test]
async fn whoever_may_not_drop_the_publication_does_not_lose_the_slot() {
    let (postgres, client) = ready().await;
    client.run("CREATE ROLE streamer LOGIN REPLICATION").await;
    client.run("GRANT USAGE ON SCHEMA outbox TO streamer").await;
    let streamer = Session::connect(&postgres.url_as("streamer", "postgres")).await;
    let failure = dropped(&streamer, true).await.expect_err("not the owner");
    assert_eq!(failure.exit, Exit::NotPermitted);
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(client.text(slots).await, "1");
}

#[tokio::test]
async fn emitted_event_is_committed_under_the_id_that_is_returned() {
    let (postgres, client) = ready().await;
    let mut event = emit::Event {
        aggregatetype: "order".to_owned(),
        aggregateid: "42".to_owned(),
        event_type: "Placed".to_owned(),
        payload: Some("{\"total\": 9.5}".to_owned()),
        ..emit::Event::default()
    };
    let id = emit::emit(&client, &event).await.expect("an id");
    assert_eq!(client.text("SELECT id FROM outbox.events").await, id);
    event.payload = Some("{".to_owned());
    let failure = emit::emit(&client, &event).await.expect_err("no JSON");
    assert_eq!(failure.exit, Exit::Usage);
    client.run("CREATE ROLE plain LOGIN").await;
    client.run("CREATE DATABASE empty").await;
    let plain = Session::connect(&postgres.url_as("plain", "postgres")).await;
    event.payload = None;
    let failure = emit::emit(&plain, &event).await.expect_err("no grant");
    assert_eq!(failure.exit, Exit::NotPermitted);
    let empty = Session::connect(&postgres.url_as("postgres", "empty")).await;
    let failure = emit::emit(&empty, &event).await.expect_err("no schema");
    assert_eq!(failure.problem.fix, "`outjet setup`");
}

#[tokio::test]
async fn status_is_what_the_catalog_shows() {
    let (_postgres, client) = ready().await;
    client.run("SELECT outbox.emit('a', '1', 't')").await;
    let status = status::status(&client, &native()).await.expect("a status");
    let slot = status.slot_status.as_ref().expect("a slot");
    assert_eq!(slot.wal_status.as_deref(), Some("reserved"));
    assert!(!slot.active);
    assert!(slot.lag_bytes > Some(0));
    assert!(slot.retained_wal_bytes >= slot.lag_bytes);
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    assert_eq!(slot.confirmed_flush_lsn, Some(client.text(confirmed).await));
}
