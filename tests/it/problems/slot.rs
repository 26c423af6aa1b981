//! The slot is the lock: while somebody else holds it, outjet stands by, and says who leads.

use std::process::{Command, Stdio};

use outjet::error::Problem;

use super::{SOON, Site, block, ends};
use crate::harness::process::{Process, Signal};
use crate::harness::{Wait, World, drain, until};

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
    let since = "SELECT backend_start::text FROM pg_stat_activity WHERE pid = ";
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
