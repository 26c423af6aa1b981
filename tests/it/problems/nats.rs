//! Mistakes in NATS: the server, the credentials, the stream.

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use outjet::error::Problem;

use super::{
    CONFIG, NATS_SECRET, NOT_PERMITTED, SOON, Site, UNAVAILABLE, connection_refused, ends, halted,
};
use crate::harness::{Nats, Postgres, World, drain, nats};
use crate::setup;

async fn with(nats: nats::Builder) -> World {
    World::with(Postgres::builder(), nats).await
}

/// Sets Postgres up: `outjet setup` makes no slot before it has seen that the stream has no events.
async fn with_postgres(world: &World) -> Site {
    let client = world.postgres.connect().await;
    let done = setup::set_up(&client, &setup::native()).await;
    done.expect("set up");
    Site::of(world)
}

/// The server as messages name it.
fn at(world: &World) -> String {
    format!("NATS at nats://127.0.0.1:{}", world.nats.port())
}

#[tokio::test]
async fn server_that_is_away_is_waited_for() {
    let mut world = World::start().await;
    let site = with_postgres(&world).await;
    world.nats.stop().await;
    let problem = Problem::new(
        format!("{} cannot be reached", at(&world)),
        connection_refused(),
        format!(
            "start the server, or correct nats.url (NATS_URL), now nats://127.0.0.1:{}",
            world.nats.port()
        ),
    );
    site.fails("nats reachable", &problem).await;
    site.refuses("setup", UNAVAILABLE, &problem).await;
    let mut running = site.retries(&problem).await;
    world.nats.start_again().await;
    running.logged("leading", SOON).await;
    ends(running).await;
}

#[tokio::test]
async fn server_without_jetstream_is_told_how_to_start_it() {
    let mut world = with(Nats::builder().without_jetstream()).await;
    let site = with_postgres(&world).await;
    let problem = Problem::new(
        format!("{} has no JetStream", at(&world)),
        "the server does not offer it",
        "start nats-server with `-js -sd /data`, or with a jetstream {} block",
    );
    site.fails_and_halts("nats reachable", &problem).await;
    site.refuses("setup", CONFIG, &problem).await;
    world.nats.stop().await;
    let store = world.nats.home().join("store");
    let block = format!("jetstream {{ store_dir: \"{}\" }}\n", store.display());
    world.nats.configure(&block);
    world.nats.start_again().await;
    site.sets_up().await;
    site.passes().await;
}

#[tokio::test]
async fn account_without_jetstream_is_told_apart_from_a_server_without_it() {
    let accounts = format!(
        "accounts {{ A {{ users: [{{user: app, password: {NATS_SECRET}}}] }}
         S {{ jetstream: enabled, users: [{{user: s, password: s}}] }} }}"
    );
    let world = with(Nats::builder().config(&accounts)).await;
    let site = with_postgres(&world).await;
    let site = site
        .with("NATS_URL", world.nats.url())
        .with("NATS_USER", "app")
        .with("NATS_PASSWORD", NATS_SECRET);
    let problem = Problem::new(
        format!("{} has no JetStream for our account", at(&world)),
        "the account that we log in to has no JetStream",
        "enable jetstream for the account in the server's configuration",
    );
    site.fails_and_halts("nats reachable", &problem).await;
}

#[tokio::test]
async fn wrong_credentials_are_told_and_never_repeated() {
    let users = "authorization { users: [{user: app, password: another}] }";
    let world = with(Nats::builder().config(users)).await;
    let plain = with_postgres(&world).await;
    let plain = plain.with("NATS_URL", world.nats.url());
    let problem = Problem::new(
        format!("{} refuses our credentials", at(&world)),
        "the server says: Authorization Violation",
        "set nats.creds (NATS_CREDS), nats.user and nats.password, nats.token or nats.nkey",
    );
    let in_url = format!("nats://app:{NATS_SECRET}@127.0.0.1:{}", world.nats.port());
    let wrong = [
        plain.clone(),
        plain.clone().with("NATS_TOKEN", NATS_SECRET),
        plain.clone().with("NATS_URL", in_url),
        plain
            .clone()
            .with("NATS_USER", "app")
            .with("NATS_PASSWORD", NATS_SECRET),
    ];
    for site in wrong {
        site.fails_and_halts("nats reachable", &problem).await;
        site.refuses("setup", NOT_PERMITTED, &problem).await;
    }
    let in_url = format!("nats://app:another@127.0.0.1:{}", world.nats.port());
    plain.clone().with("NATS_URL", in_url).sets_up().await;
    let right = plain.with("NATS_USER", "app");
    right.with("NATS_PASSWORD", "another").passes().await;
}

/// A stream of this name and more of the test's.
fn stream(name: &str, subjects: &[&str]) -> stream::Config {
    stream::Config {
        name: name.to_owned(),
        subjects: subjects.iter().map(|&subject| subject.to_owned()).collect(),
        ..Default::default()
    }
}

/// Types the fix `nats stream edit NAME --subjects '…'`.
pub(super) async fn edit(jetstream: &jetstream::Context, problem: &Problem) {
    let (_, rest) = problem
        .fix
        .split_once("`nats stream edit ")
        .expect("the command");
    let (name, rest) = rest.split_once(" --subjects '").expect("its flag");
    let (subjects, _) = rest.split_once("'`").expect("its value");
    let subjects: Vec<&str> = subjects.split(',').collect();
    update(jetstream, name, &subjects).await;
}

/// Gives a stream other subjects.
pub(super) async fn update(jetstream: &jetstream::Context, name: &str, subjects: &[&str]) {
    let mut found = jetstream.get_stream(name).await.expect("the stream");
    let config = stream::Config {
        subjects: subjects.iter().map(|&subject| subject.to_owned()).collect(),
        ..found.info().await.expect("an answer").config.clone()
    };
    let updated = jetstream.update_stream(config).await;
    updated.expect("the server takes these subjects");
}

#[tokio::test]
async fn stream_that_does_not_cover_the_subject_is_told_what_to_add() {
    let world = World::start().await;
    let jetstream = world.nats.jetstream().await;
    let orders = stream("OUTBOX", &["orders.>", "refunds.*"]);
    jetstream.create_stream(orders).await.expect("a stream");
    let site = with_postgres(&world).await;
    let uncovered = |subject: &str| {
        Problem::new(
            format!("stream \"OUTBOX\" does not cover subject \"{subject}\""),
            "it listens on orders.>, refunds.*",
            format!(
                "`nats stream edit OUTBOX --subjects 'orders.>,refunds.*,{subject}'`, or change \
                 publish.subject"
            ),
        )
    };
    site.fails("stream subjects", &uncovered("events.>")).await;

    // Which subject it is, run sees in the first event.
    let mut running = site.leads().await;
    let client = world.postgres.connect().await;
    client
        .run("SELECT outbox.emit('order', '1', 'Placed')")
        .await;
    halted(&mut running, &uncovered("events.order.Placed")).await;
    ends(running).await;
    let exact = uncovered("events.order.Placed");
    site.refuses("run --exit-on-halt", super::HALTED, &exact)
        .await;

    edit(&jetstream, &exact).await;
    let running = site.leads().await;
    drain::until_stored(&jetstream, "OUTBOX", 1, SOON).await;
    ends(running).await;
    let part = site.passes().await;
    let warned = "stream \"OUTBOX\" takes only a part of \"events.>\"\n";
    assert!(part.contains(warned), "{part}");
    // The server refuses subjects that overlap: what the new one contains is left out.
    let fix = "fix:   `nats stream edit OUTBOX --subjects 'orders.>,refunds.*,events.>'`";
    assert!(part.contains(fix), "{part}");
    edit(&jetstream, &uncovered("events.>")).await;
    assert!(!site.passes().await.contains("takes only a part"));
}

#[tokio::test]
async fn stream_that_would_be_made_without_the_subject_fails_the_check() {
    let world = World::start().await;
    let site = Site::of(&world).config("stream: {subjects: [\"orders.>\"]}");
    let problem = Problem::new(
        "stream.subjects does not cover subject \"events.>\"",
        "stream \"OUTBOX\" would listen on orders.>",
        "add \"events.>\" to stream.subjects, or change publish.subject",
    );
    site.fails("stream subjects", &problem).await;
}

#[tokio::test]
async fn stream_of_another_writer_is_refused() {
    let world = World::start().await;
    let jetstream = world.nats.jetstream().await;
    let outbox = stream("OUTBOX", &["events.>"]);
    jetstream.create_stream(outbox).await.expect("a stream");
    let mut headers = HeaderMap::new();
    headers.insert("Outjet-Source", "7000000000000000001/1/billing");
    headers.insert("Outjet-Position", "0000000000000100-00000000");
    headers.insert("Nats-Msg-Id", "b1");
    let sent = jetstream
        .publish_with_headers("events.x", headers, "{}".into())
        .await;
    sent.expect("sent").await.expect("stored");
    let site = with_postgres(&world).await;
    let client = world.postgres.connect().await;
    let system = "SELECT system_identifier FROM pg_control_system()";
    let system = client.text(system).await;
    let problem = Problem::new(
        "stream \"OUTBOX\" is written by another source",
        format!(
            "its last event came through slot \"billing\" of the cluster with system identifier \
             7000000000000000001, and we use slot \"outjet\" of {system}; two writers would \
             displace each other's events"
        ),
        "give each outjet a stream of its own (stream.name), or use the database and the slot that \
         the stream was written from; or set stream.shared in all of them",
    );
    site.fails_and_halts("stream writer", &problem).await;
    let site =
        site.config("stream: {name: OURS, subjects: [\"ours.>\"]}\npublish: {subject: ours.x}\n");
    site.passes().await;
    ends(site.leads().await).await;
}

#[tokio::test]
async fn stream_that_is_not_appended_to_by_one_writer_is_refused_with_the_reason() {
    let world = World::start().await;
    let jetstream = world.nats.jetstream().await;
    let elsewhere = stream("ELSEWHERE", &["elsewhere.>"]);
    jetstream.create_stream(elsewhere).await.expect("a stream");
    let site = with_postgres(&world).await;
    let origin = || stream::Source {
        name: "ELSEWHERE".to_owned(),
        ..Default::default()
    };
    let no_ack = stream::Config {
        no_ack: true,
        ..stream("OUTBOX", &["events.>"])
    };
    let mirror = stream::Config {
        mirror: Some(origin()),
        ..stream("OUTBOX", &[])
    };
    let sources = stream::Config {
        sources: Some(vec![origin()]),
        ..stream("OUTBOX", &["events.>"])
    };
    let refused = [
        (no_ack, "no_ack: the server never acknowledges"),
        (mirror, "it is a mirror"),
        (sources, "it has sources"),
    ];
    for (config, reason) in refused {
        let _ = jetstream.delete_stream("OUTBOX").await;
        jetstream.create_stream(config).await.expect(reason);
        let problem = Problem::new(
            format!("stream \"OUTBOX\" cannot be used: {reason}"),
            "with it, exactly once and commit order cannot hold",
            "change it with `nats stream edit OUTBOX`, or name another in stream.name",
        );
        site.fails_and_halts("stream exists", &problem).await;
        site.refuses("setup", CONFIG, &problem).await;
    }
}
