//! The slot is the lock: while somebody else holds it, outjet stands by, and says who leads.

use std::process::{Command, Stdio};

use outjet::error::Problem;

use super::{SOON, Site, block, ends};
use crate::harness::postgres::Session;
use crate::harness::process::{Process, Signal};
use crate::harness::{Nats, Postgres, Wait, World, drain, until, until_the_day_lasts};

/// A World that is set up.
async fn ready() -> (World, Site) {
    let world = World::start().await;
    let site = Site::of(&world);
    site.sets_up().await;
    (world, site)
}

#[tokio::test]
async fn second_copy_stands_by_and_check_passes_and_says_who_leads() {
    let (world, site) = ready().await;
    let leader = site.leads().await;
    let client = world.postgres.connect().await;
    let holder = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'outjet'";
    let pid = client.text(holder).await;
    let passed = site.passes().await;
    let led = format!(
        "ok    {:<20}  led by pid {pid}, application \"outjet\", connected since ",
        "slot holder"
    );
    assert!(passed.contains(&led), "{passed}");
    let mut standby = site.call("run").spawn();
    let line = standby
        .logged("standing by: another copy leads", SOON)
        .await;
    assert_eq!(line["level"], "INFO", "{line}");
    let leads = format!("pid {pid}, application \"outjet\", ");
    let told = line["leader"].as_str().expect("a leader");
    assert!(told.starts_with(&leads), "{line}");
    // Looking leaves no trace in the server's log.
    let log = std::fs::read_to_string(world.postgres.log()).expect("the server's log");
    assert!(!log.contains("FATAL"), "{log}");
    ends(leader).await;
    standby.logged("leading", SOON).await;
    ends(standby).await;
}

#[tokio::test]
async fn failover_is_checked_and_each_statement_that_is_printed_helps() {
    let world = World::with(Postgres::builder().version(18), Nats::builder()).await;
    let site = Site::of(&world);
    site.sets_up().await;
    let client = world.postgres.connect().await;
    let place = |verdict: &str, name: &str| {
        let place = format!("standbys {name}");
        format!("{verdict:<4}  {place:<20}  ")
    };
    let passed = site.passes().await;
    let nobody = place("ok", "failover") + "no physical standby has a slot here\n";
    assert!(passed.contains(&nobody), "{passed}");
    let nobody = place("ok", "copies") + "nobody leads\n";
    assert!(passed.contains(&nobody), "{passed}");

    let create = "SELECT pg_create_physical_replication_slot('db2', true)";
    client.text(create).await;
    let problem = Problem::new(
        "a standby that is promoted may lack what outjet has published",
        "synchronized_standby_slots is empty: nobody waits for db2",
        "ALTER SYSTEM SET synchronized_standby_slots = '\"db2\"'; SELECT pg_reload_conf();",
    );
    let warned = block("warn", "standbys failover", &problem);
    let passed = site.passes().await;
    assert!(passed.contains(&warned), "{passed}");
    types(&client, &problem.fix).await;
    let waits = place("warn", "failover") + "events wait for standby slot \"db2\"\n";
    until_found(&site, &waits).await;
    let without = "ALTER SYSTEM SET synchronized_standby_slots = ''; SELECT pg_reload_conf();";
    let passed = site.passes().await;
    assert!(passed.contains(without), "{passed}");
    types(&client, without).await;
    until_found(&site, &warned).await;

    let (leader, mut standby) = (site.leads().await, site.call("run").spawn());
    standby
        .logged("standing by: another copy leads", SOON)
        .await;
    let one = place("ok", "copies") + "1 copy of outjet stands by\n";
    until_found(&site, &one).await;
    ends(leader).await;
    ends(standby).await;
}

/// Types statements one at a time: ALTER SYSTEM wants no transaction around it.
async fn types(client: &Session, fix: &str) {
    for statement in fix.split_inclusive(';') {
        client.run(statement).await;
    }
}

/// A setting counts for new sessions soon after a reload, not at once.
async fn until_found(site: &Site, line: &str) {
    until(&format!("check says {line}"), SOON, async || {
        let passed = site.passes().await;
        Wait::ready_if(passed.contains(line), passed)
    })
    .await;
}

#[tokio::test]
async fn days_ahead_without_partitions_are_told_with_the_statement_that_makes_them() {
    until_the_day_lasts().await;
    let (world, site) = ready().await;
    let client = world.postgres.connect().await;
    let drop_ahead = "DO $$ DECLARE day text; BEGIN
        FOR day IN SELECT relname FROM pg_class WHERE relnamespace = 'outbox'::regnamespace
          AND relispartition AND relkind = 'r' AND pg_get_expr(relpartbound, oid) <> 'DEFAULT'
          AND relname NOT LIKE '%' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')
        LOOP EXECUTE format('DROP TABLE outbox.%I', day); END LOOP; END $$";
    client.run(drop_ahead).await;
    let line =
        |verdict: &str, found: &str| format!("{verdict:<4}  {:<20}  {found}", "table partitions");
    let passed = site.passes().await;
    let warned = line("warn", "outbox.events has no partition for tomorrow\n");
    assert!(passed.contains(&warned), "{passed}");
    client.run("SELECT outbox.ensure_partitions()").await;
    let passed = site.passes().await;
    let reaches = line("ok", "outbox.events has partitions until ");
    assert!(passed.contains(&reaches), "{passed}");
}

#[tokio::test]
async fn stranger_that_holds_the_slot_is_named_with_the_statement_that_ends_it() {
    let (world, site) = ready().await;
    let client = world.postgres.connect().await;
    let stranger = Stranger::start(&world);
    let holder = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'outjet'";
    let pid = until("pg_recvlogical has the slot", SOON, async || {
        match client.text(holder).await.as_str() {
            "" => Wait::NotYet("free".to_owned()),
            pid => Wait::Ready(pid.to_owned()),
        }
    })
    .await;
    let since =
        "SELECT date_trunc('second', backend_start)::text FROM pg_stat_activity WHERE pid = ";
    let since = client.text(&format!("{since}{pid}")).await;
    let held = format!("pid {pid}, application \"pg_recvlogical\", connected since {since}");
    let problem = Problem::new(
        "replication slot \"outjet\" is in use",
        format!("held by {held}"),
        format!(
            "nothing, if that is another outjet: this one takes over when it stops; else use one \
             slot for each consumer, or end it: SELECT pg_terminate_backend({pid});"
        ),
    );
    let passed = site.passes().await;
    let warned = block("warn", "slot holder", &problem);
    assert!(passed.contains(&warned), "{passed}");

    let mut standby = site.call("run").spawn();
    let message = "standing by: another program holds the slot";
    let line = standby.logged(message, SOON).await;
    assert_eq!(line["level"], "WARN", "{line}");
    assert_eq!(line["leader"], held.as_str(), "{line}");
    assert_eq!(line["fix"], problem.fix.as_str(), "{line}");
    let (_, statement) = problem.fix.split_once("end it: ").expect("a statement");
    client.run(statement).await;
    standby.logged("leading", SOON).await;
    client
        .run("SELECT outbox.emit('order', '1', 'Placed')")
        .await;
    let jetstream = world.nats.jetstream().await;
    drain::until_stored(&jetstream, "OUTBOX", 1, SOON).await;
    ends(standby).await;
    drop(stranger);
}

/// Another consumer of the slot.
struct Stranger {
    _process: Process,
    _home: tempfile::TempDir,
}

impl Stranger {
    fn start(world: &World) -> Self {
        let program = world.postgres.program("pg_recvlogical");
        let mut command = Command::new(program.unwrap_or_else(|| "pg_recvlogical".into()));
        command.args(["--host", &world.postgres.host(), "--username", "postgres"]);
        command.args(["--dbname", "postgres", "--slot", "outjet", "--start"]);
        command.args([
            "--option",
            "proto_version=1",
            "--option",
            "publication_names=outjet",
        ]);
        // Once it is ended, it stays away.
        command.args(["--no-loop", "--file", "/dev/null"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let home = tempfile::tempdir().expect("a temporary directory");
        let process = Process::spawn("pg_recvlogical", command, Signal::KILL, home.path());
        Self {
            _process: process,
            _home: home,
        }
    }
}

/// What `check` prints of these, with and without.
#[tokio::test]
async fn what_would_grow_or_vanish_later_is_warned_about_and_each_statement_that_is_printed_helps()
{
    let world = World::with(Postgres::builder().version(18), Nats::builder()).await;
    let site = Site::of(&world);
    site.sets_up().await;
    let client = world.postgres.connect().await;
    let ok = |place: &str, found: &str| format!("ok    {place:<20}  {found}\n");

    client
        .run("ALTER SYSTEM SET idle_replication_slot_timeout = '2d'")
        .await;
    client.run("SELECT pg_reload_conf()").await;
    let problem = Problem::new(
        "replication slot \"outjet\" is lost when nobody has streamed from it for 2d",
        "idle_replication_slot_timeout = 2d: Postgres invalidates slots that idle",
        "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
    );
    until_found(&site, &block("warn", "slot idle", &problem)).await;
    types(&client, &problem.fix).await;
    until("the warning is gone", SOON, async || {
        let passed = site.passes().await;
        Wait::ready_if(!passed.contains("slot idle"), passed)
    })
    .await;

    let passed = site.passes().await;
    let anybody =
        "any role of the database may write events as messages (messages.prefixes: outbox)";
    assert!(passed.contains(&ok("server messages", anybody)), "{passed}");
    client
        .run(
            "DO $$ BEGIN EXECUTE (
               SELECT string_agg(format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC',
                 oid::regprocedure), ';')
               FROM pg_proc WHERE proname = 'pg_logical_emit_message'); END $$",
        )
        .await;
    let passed = site.passes().await;
    let some = "whoever may EXECUTE pg_logical_emit_message may write events as messages";
    assert!(passed.contains(some), "{passed}");
    let none = site
        .clone()
        .with("OUTJET_MESSAGES__PREFIXES", "[]")
        .passes()
        .await;
    assert!(!none.contains("server messages"), "{none}");

    client
        .run(
            "INSERT INTO outbox.events (aggregatetype, aggregateid, type, created_at)
            VALUES ('order', '1', 'created', '2020-01-01')",
        )
        .await;
    let line = "about 1 rows of outbox.events are in its default partition\n";
    until_found(&site, &format!("warn  {:<20}  {line}", "table default")).await;
}

#[tokio::test]
async fn rights_that_retention_lacks_are_granted_by_the_printed_statements() {
    let (world, site) = ready().await;
    let client = world.postgres.connect().await;
    client
        .run(
            "CREATE TABLE public.notes (id uuid, made timestamptz, body jsonb);
            ALTER PUBLICATION outjet ADD TABLE public.notes;
            CREATE ROLE \"app-1\" LOGIN REPLICATION",
        )
        .await;
    let yaml = "tables:
  - name: outbox.events
  - name: public.notes
    preset: none
    columns: {id: id, created_at: made, payload: body, aggregatetype: {value: n}, type: {value: n}}
    keep: 1d
";
    let site = site.login(&world, "app-1", "postgres").config(yaml);
    let turning = Problem::new(
        "role \"app-1\" may not turn the partitions",
        "retention.manage is on: without them rows go to the default partition, and old ones stay",
        "GRANT USAGE ON SCHEMA outbox TO \"app-1\"; GRANT EXECUTE ON FUNCTION \
         outbox.ensure_partitions, outbox.expire_partitions TO \"app-1\"; \
         or set retention.manage: false",
    );
    let deleting = Problem::new(
        "role \"app-1\" may not delete rows of public.notes",
        "tables has keep for it, and old rows stay",
        "GRANT USAGE ON SCHEMA \"public\" TO \"app-1\"; GRANT SELECT, DELETE ON \
         \"public\".\"notes\" TO \"app-1\"; (and on its partitions), or remove its keep",
    );
    let passed = site.passes().await;
    assert!(
        passed.contains(&block("warn", "table retention", &turning)),
        "{passed}"
    );
    assert!(
        passed.contains(&block("warn", "table keep", &deleting)),
        "{passed}"
    );
    let unmanaged = site
        .clone()
        .with("OUTJET_RETENTION__MANAGE", "false")
        .passes()
        .await;
    assert!(!unmanaged.contains("table retention"), "{unmanaged}");
    for problem in [turning, deleting] {
        let end = problem.fix.rfind(';').expect("a statement");
        types(&client, &problem.fix[..=end]).await;
    }
    let passed = site.passes().await;
    for line in [
        format!(
            "ok    {:<20}  role app-1 may turn the partitions\n",
            "table retention"
        ),
        format!(
            "ok    {:<20}  role app-1 may delete old rows of public.notes\n",
            "table keep"
        ),
    ] {
        assert!(passed.contains(&line), "{passed}");
    }
}
