//! Servers that take connections and then say nothing: no command waits for them for ever, and
//! none that is only slow is given up.

use std::time::Duration;

use super::{CHECK_FAILED, SOON, UNAVAILABLE};
use crate::harness::proxy::Upstream;
use crate::harness::stage::{QUICK, Stage};
use crate::harness::{Direction, Mode, Nats, Outjet, Proxy, Wait, until};

/// What a command says at the end, apart from where the server is.
const CAUSE: &str =
    "cause: nothing has come for 15 s, and then a new session: no answer within 10 s";

/// Those that ask Postgres, each held up by a lock: a server that answers, but not yet.
const HELD_UP: [&str; 8] = [
    "check",
    "status --json",
    "setup",
    "verify",
    "recover",
    "drop --yes",
    "emit",
    "replay --all",
];

/// Nobody gets on who asks for publications, or for rows.
const LOCK: &str = "BEGIN; LOCK TABLE pg_catalog.pg_publication, outbox.events";

/// With Postgres behind a proxy.
fn through(stage: &Stage, proxy: &Proxy, typed: &str) -> Outjet {
    let database = format!("postgres://postgres@{}/postgres", proxy.address());
    let call = stage.outjet(typed.split(' '));
    call.env("DATABASE_URL", database).spawn()
}

async fn held_up(stage: &Stage, commands: usize) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let session = &stage.session;
    session
        .until_text(waiting, &commands.to_string(), SOON)
        .await;
}

/// Waits until new sessions have been tried beside those that wait.
async fn tried_again(proxy: &Proxy, before: u64, tries: usize) {
    until("new sessions are tried", SOON, async || {
        let tried = proxy.accepted() - before;
        Wait::ready_if(tried >= tries as u64, tried)
    })
    .await;
}

#[tokio::test]
async fn command_waits_for_a_server_that_works_and_ends_when_it_is_stalled() {
    let stage = Stage::on(Nats::builder(), QUICK).await;
    let link = || Proxy::start(Upstream::Unix(stage.world.postgres.socket()));
    let (patient, stalled) = (link(), link());
    let tail = through(&stage, &stalled, "tail");
    until("it follows", SOON, async || {
        Wait::ready_if(tail.stderr().contains("following from"), tail.stderr())
    })
    .await;
    let locker = stage.world.postgres.connect().await;
    locker.run(LOCK).await;
    let mut emit = through(&stage, &patient, "emit");
    let mut commands = HELD_UP.map(|typed| (typed, through(&stage, &stalled, typed)));
    held_up(&stage, HELD_UP.len() + 1).await;
    let (one, all) = (patient.accepted(), stalled.accepted());
    tokio::join!(
        tried_again(&patient, one, 1),
        tried_again(&stalled, all, HELD_UP.len() + 1)
    );
    for (typed, command) in &mut commands {
        assert_eq!(command.exited(), None, "{typed} {}", command.stderr());
    }
    stalled.set(Mode::Stall(Direction::Both));
    for (typed, command) in commands.iter_mut().chain([&mut ("tail", tail)]) {
        let status = command.exit(SOON).await;
        let said = command.stderr();
        assert_eq!(status.code(), Some(UNAVAILABLE), "{typed} {said}");
        let address = stalled.address();
        let problem = format!("outjet: Postgres at {address} cannot be reached");
        assert!(said.contains(&problem), "{typed} {said}");
        assert!(said.contains(CAUSE), "{typed} {said}");
        assert!(said.contains("fix:   check that it runs"), "{typed} {said}");
    }
    locker.run("COMMIT").await;
    assert_eq!(emit.exit(SOON).await.code(), Some(0), "{}", emit.stderr());
}

#[tokio::test]
async fn recover_ends_when_nats_is_stalled_under_it_and_goes_on_when_it_is_typed_again() {
    const ROWS: u32 = 20_000;
    let slow = QUICK.replace("ack_timeout: 1s", "ack_timeout: 1s, in_flight_max: 4");
    let stage = Stage::on(Nats::builder(), &slow).await;
    let output = stage.outjet(["drop", "--force", "--yes"]).output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    stage.commit(1..=ROWS).await;
    let mut recover = stage.outjet(["setup", "--backfill"]).spawn();
    until("events are appended", SOON, async || {
        let stored = stage.last_sequence().await;
        Wait::ready_if(stored > 100, stored)
    })
    .await;
    stage.proxy.set(Mode::Stall(Direction::Both));
    let within = SOON + Duration::from_secs(30);
    let status = recover.exit(within).await;
    let said = recover.stderr();
    assert_eq!(status.code(), Some(UNAVAILABLE), "{said}");
    assert!(said.contains("; it is tried again for 30 s\n"), "{said}");
    assert!(said.contains("cannot be reached\n  cause: "), "{said}");
    assert!(stage.last_sequence().await < u64::from(ROWS));
    stage.proxy.cut();
    stage.proxy.set(Mode::Forward);
    let output = stage.outjet(["recover"]).output().await;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(stage.last_sequence().await, u64::from(ROWS));
}

/// What each does about a NATS server that takes connections and does not even greet.
const WITHOUT_NATS: [(&str, i32); 8] = [
    ("check", CHECK_FAILED),
    ("status", 0),
    ("setup", UNAVAILABLE),
    ("verify", UNAVAILABLE),
    ("compare --with OTHER", UNAVAILABLE),
    ("dead-letters list", UNAVAILABLE),
    ("delayed list", UNAVAILABLE),
    ("replay --all --subject-prefix events.", UNAVAILABLE),
];

#[tokio::test]
async fn no_command_waits_for_a_nats_server_that_is_stalled() {
    let stage = Stage::on(Nats::builder(), QUICK).await;
    stage.proxy.set(Mode::Stall(Direction::Both));
    for (typed, code) in WITHOUT_NATS {
        let output = stage.outjet(typed.split(' ')).output().await;
        assert_eq!(output.code, Some(code), "{typed} {output:?}");
        let said = output.stdout + &output.stderr;
        assert!(said.contains("cannot be reached"), "{typed} {said}");
        assert!(said.contains("cause: "), "{typed} {said}");
    }
}
