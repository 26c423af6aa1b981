//! The replication session against real servers.

use std::time::Duration;

use outjet::error::{Disposition, Exit};
use outjet::lead::window::{Limits, Window};
use outjet::lsn::Lsn;
use outjet::pg::control::Control;
use outjet::pg::params::Params;
use outjet::pg::replication::{Frame, Session, Stream};
use tokio::time::timeout;

use crate::harness::{Postgres, Stop, Wait, until};

const SOON: Duration = Duration::from_secs(20);

fn params(postgres: &Postgres) -> Params {
    Params::parse(&postgres.url(), &|_| None).expect("a URL")
}

async fn session(postgres: &Postgres) -> Session {
    let session = Session::connect(&params(postgres), &[]).await;
    session.expect("a replication session")
}

const PUBLICATION: &str = r#"it's a "pub"lication"#;

async fn with_slot() -> Postgres {
    let postgres = Postgres::start().await;
    let client = postgres.connect().await;
    client.run("CREATE TABLE t (n int PRIMARY KEY)").await;
    client
        .run(r#"CREATE PUBLICATION "it's a ""pub""lication" FOR TABLE t"#)
        .await;
    client
        .run("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        .await;
    postgres
}

async fn start(postgres: &Postgres) -> Stream {
    let session = session(postgres).await;
    match session.start("s", &[PUBLICATION.to_owned()], true).await {
        Ok(stream) => stream,
        Err((_, error)) => panic!("{error:?}"),
    }
}

/// Reads up to the next Commit and returns its `end_lsn` (flags, commit_lsn, end_lsn).
async fn until_commit(stream: &mut Stream) -> Lsn {
    loop {
        let frame = timeout(SOON, stream.recv()).await.expect("a frame in time");
        if let Frame::Wal { body } = frame.expect("a frame")
            && body[0] == b'C'
        {
            return Lsn::new(u64::from_be_bytes(
                body[10..18].try_into().expect("8 bytes"),
            ));
        }
    }
}

/// Only a window makes what is confirmed.
fn confirm(stream: &mut Stream, lsn: Lsn) {
    let limits = Limits {
        events_max: 1,
        bytes_max: 1,
    };
    let window = Window::new(limits, lsn);
    stream.queue_status(lsn, Some(window.confirmed()), false);
}

const CONFIRMED: &str = "SELECT confirmed_flush_lsn FROM pg_replication_slots";

#[tokio::test]
async fn confirmed_position_reaches_the_slot_and_what_was_confirmed_is_not_sent_again() {
    let postgres = with_slot().await;
    let client = postgres.connect().await;
    let mut stream = start(&postgres).await;
    client.run("INSERT INTO t VALUES (1)").await;
    let first = until_commit(&mut stream).await;
    client
        .run("INSERT INTO t SELECT generate_series(2, 1000)")
        .await;
    confirm(&mut stream, first);
    stream.flush().await.expect("written");
    client.until_text(CONFIRMED, &first.to_string(), SOON).await;
    let second = until_commit(&mut stream).await;
    assert!(second > first);
    stream.close().await;
    client
        .until_text("SELECT active FROM pg_replication_slots", "f", SOON)
        .await;

    let mut stream = start(&postgres).await;
    assert_eq!(
        until_commit(&mut stream).await,
        second,
        "the first is not sent again"
    );
    confirm(&mut stream, second);
    stream.close().await;
    client
        .until_text(CONFIRMED, &second.to_string(), SOON)
        .await;
}

#[tokio::test]
async fn slot_in_use_gives_the_session_back_to_try_again() {
    let postgres = with_slot().await;
    let leader = start(&postgres).await;
    let standby = session(&postgres).await;
    let Err((standby, error)) = standby.start("s", &[PUBLICATION.to_owned()], false).await else {
        panic!("two leaders");
    };
    assert_eq!(error.sqlstate(), Some("55006"));
    let failure = error.failure(&params(&postgres));
    assert_eq!(failure.disposition, Disposition::Standby);
    leader.close().await;
    let mut waiting = Some(standby);
    until("the standby takes over", SOON, async || {
        let session = waiting.take().expect("given back");
        match session.start("s", &[PUBLICATION.to_owned()], false).await {
            Ok(stream) => Wait::Ready(stream),
            Err((session, error)) => {
                waiting = Some(session);
                Wait::NotYet(error.to_string())
            }
        }
    })
    .await;
    let Err((_, error)) = session(&postgres).await.start("absent", &[], false).await else {
        panic!("no such slot");
    };
    assert_eq!(error.sqlstate(), Some("42704"));
    assert_eq!(error.failure(&params(&postgres)).exit, Exit::Config);
}

#[tokio::test]
async fn server_that_stops_ends_the_stream_in_order_and_one_that_crashes_does_not() {
    let mut postgres = with_slot().await;
    for stop in [Some(Stop::Fast), None] {
        let mut stream = start(&postgres).await;
        match stop {
            Some(stop) => postgres.begin_stop(stop),
            None => postgres.crash().await,
        }
        let error = loop {
            match timeout(SOON, stream.recv()).await.expect("an end in time") {
                // A fast stop waits until all that was sent is confirmed.
                Ok(Frame::Keepalive { wal_end, .. }) => confirm(&mut stream, wal_end),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(
            (error.ended(), error.closed()),
            (stop.is_some(), stop.is_none()),
            "{error:?}"
        );
        assert_eq!(
            error.failure(&params(&postgres)).disposition,
            Disposition::Retry
        );
        if stop.is_some() {
            postgres.stopped().await;
        }
        postgres.start_again().await;
    }
}

#[tokio::test]
async fn session_identifies_the_cluster_and_quiets_what_its_role_was_set_to() {
    let postgres = Postgres::start().await;
    let client = postgres.connect().await;
    client
        .run(
            "ALTER ROLE postgres SET DateStyle = 'German, DMY'; \
             ALTER ROLE postgres SET bytea_output = 'escape'; \
             ALTER ROLE postgres SET statement_timeout = '1s'; \
             ALTER ROLE postgres SET idle_session_timeout = '1s'; \
             ALTER ROLE postgres SET extra_float_digits = 0; \
             ALTER ROLE postgres SET TimeZone = 'Asia/Tokyo'",
        )
        .await;
    let mut session = session(&postgres).await;
    let system = session.identify_system().await.expect("an answer");
    let id = client
        .text("SELECT system_identifier FROM pg_control_system()")
        .await;
    assert_eq!((system.id, system.timeline), (id, 1));
    assert_eq!(system.database.as_deref(), Some("postgres"));
    assert!(session.timeline_history(1).await.expect("none").is_empty());
    let error = session.timeline_history(2).await.expect_err("no such file");
    assert_eq!(error.sqlstate(), Some("58P01"));
    let sql = r"SELECT now()::text LIKE '____-__-__ %+00', '\x00ff'::bytea,
                0.1::float4 + 0.2::float8, current_setting('statement_timeout'),
                current_setting('idle_session_timeout'), NULL";
    let rows = session.query(sql).await.expect("a row");
    let expected = ["t", r"\x00ff", "0.30000000149011613", "0", "0"];
    let mut expected = expected.map(|value| Some(value.to_owned())).to_vec();
    expected.push(None);
    assert_eq!(rows, [expected]);
}

#[tokio::test]
async fn role_that_may_not_replicate_is_told_what_to_type() {
    let postgres = Postgres::builder()
        .setting("max_connections", "5")
        .start()
        .await;
    let client = postgres.connect().await;
    client.run("CREATE ROLE app LOGIN").await;
    let params = Params::parse(&postgres.url_as("app", "postgres"), &|_| None).expect("a URL");
    Control::connect(&params).await.expect("SQL is allowed");
    let error = Session::connect(&params, &[])
        .await
        .err()
        .expect("no REPLICATION");
    let failure = error.failure(&params);
    assert_eq!(
        (failure.disposition, failure.exit),
        (Disposition::Halt, Exit::NotPermitted)
    );
    assert!(
        failure
            .to_string()
            .contains("ALTER ROLE \"app\" REPLICATION;"),
        "{failure}"
    );

    let mut all = Vec::new();
    let error = loop {
        match Control::connect(&params).await {
            Ok(control) => all.push(control),
            Err(error) => break error,
        }
    };
    assert_eq!(error.sqlstate(), Some("53300"));
    assert_eq!(error.failure(&params).disposition, Disposition::Retry);
}
