//! The harness, tested: a tool that cannot fail proves nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::postgres::Session;
use super::proxy::Upstream;
use super::wait::until_sync;
use super::{Nats, Outjet, Postgres, Proxy, Stop, Wait, binaries, process};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_cluster_decodes_logically_and_keeps_its_data_over_every_kind_of_stop() {
    let mut postgres = Postgres::start().await;
    let client = postgres.connect().await;
    assert_eq!(client.text("SHOW wal_level").await, "logical");
    client.run("CREATE TABLE kept (n int)").await;
    for (n, stop) in [(1, Some(Stop::Fast)), (2, Some(Stop::Immediate)), (3, None)] {
        let client = postgres.connect().await;
        client.run(&format!("INSERT INTO kept VALUES ({n})")).await;
        match stop {
            Some(stop) => postgres.stop(stop).await,
            None => postgres.crash().await,
        }
        postgres.start_again().await;
        let client = postgres.connect().await;
        assert_eq!(client.text("SELECT max(n) FROM kept").await, n.to_string());
    }
}

#[tokio::test]
async fn a_cluster_takes_settings_access_rules_and_files() {
    let postgres = Postgres::builder()
        .setting("application_name", "it's ours")
        .hba("local all postgres trust\nlocal all all scram-sha-256\n")
        .file("note", "private")
        .start()
        .await;
    let client = postgres.connect().await;
    assert_eq!(client.text("SHOW application_name").await, "it's ours");
    assert_eq!(client.text("SELECT pg_read_file('note')").await, "private");
    client.run("CREATE ROLE app LOGIN PASSWORD 'secret'").await;
    let wrong = postgres.url_as("app:wrong", "postgres");
    let refused = tokio_postgres::connect(&wrong, tokio_postgres::NoTls).await;
    let error = refused.err().expect("a refused password");
    assert_eq!(error.code().expect("a SQLSTATE").code(), "28P01");
    let right = Session::connect(&postgres.url_as("app:secret", "postgres")).await;
    assert_eq!(right.text("SELECT current_user").await, "app");
}

#[tokio::test]
async fn a_cluster_is_reached_by_tcp_or_through_a_proxy_before_its_socket() {
    let postgres = Postgres::builder().tcp().start().await;
    assert!(postgres.url().contains("127.0.0.1"));
    let client = postgres.connect().await;
    let port = postgres.port().expect("a port").to_string();
    assert_eq!(client.text("SELECT inet_server_port()").await, port);

    let quiet = Postgres::start().await;
    let proxy = Proxy::start(Upstream::Unix(quiet.socket()));
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let client = Session::connect(&url).await;
    assert_eq!(client.text("SELECT 1").await, "1");
    proxy.cut();
    assert!(client.simple_query("SELECT 1").await.is_err());
}

#[tokio::test]
async fn a_build_with_openssl_is_found() {
    let postgres = Postgres::builder().openssl().start().await;
    let client = postgres.connect().await;
    assert_eq!(client.text("SHOW ssl_library").await, "OpenSSL");
}

#[tokio::test]
async fn a_nats_server_keeps_port_and_store_over_stop_and_kill() {
    let mut nats = Nats::start().await;
    let port = nats.port();
    let jetstream = nats.jetstream().await;
    let stream = async_nats::jetstream::stream::Config {
        name: "KEPT".to_owned(),
        subjects: vec!["kept".to_owned()],
        ..Default::default()
    };
    jetstream.create_stream(stream).await.expect("a stream");
    jetstream
        .publish("kept", "1".into())
        .await
        .expect("sent")
        .await
        .expect("stored");
    nats.stop().await;
    nats.start_again().await;
    nats.kill().await;
    nats.start_again().await;
    assert_eq!(nats.port(), port);
    let jetstream = nats.jetstream().await;
    let stream = jetstream.get_stream("KEPT").await.expect("the stream");
    assert_eq!(stream.cached_info().state.messages, 1);
}

#[tokio::test]
async fn a_nats_server_takes_a_version_users_and_limits() {
    let nats = Nats::builder()
        .version("2.10")
        .config("authorization { user: app, password: secret }\nmax_payload: 1000")
        .start()
        .await;
    assert!(async_nats::connect(nats.url()).await.is_err());
    let options = async_nats::ConnectOptions::with_user_and_password("app".into(), "secret".into());
    let client = options
        .connect(nats.url())
        .await
        .expect("the right password");
    assert!(client.server_info().version.starts_with("2.10."));
    assert_eq!(client.server_info().max_payload, 1000);
}

#[tokio::test]
async fn a_paused_server_is_silent_and_goes_on_when_resumed() {
    let mut nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    jetstream.query_account().await.expect("an answer");
    nats.process().pause().await;
    let silent = tokio::time::timeout(Duration::from_millis(200), jetstream.query_account());
    assert!(silent.await.is_err());
    nats.process().resume();
    jetstream.query_account().await.expect("an answer");
}

#[test]
fn a_program_that_is_found_as_a_link_is_called_by_its_own_name() {
    let directory = tempfile::tempdir().expect("a directory");
    symlink("/bin/sh", directory.path().join("server")).expect("a link");
    let found = binaries::first_in(directory.path().as_os_str(), "server").expect("the link");
    let mut command = Command::new(found);
    // The shell's own name.
    command.args(["-c", r#"echo "${0##*/}""#]);
    assert_eq!(process::run(command), "server\n");
}

#[test]
fn what_belongs_to_a_program_is_found_beside_it_or_beside_what_it_is_a_link_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().canonicalize().expect("the real path");
    fs::write(root.join("real"), "").expect("a file");
    fs::create_dir(root.join("bin")).expect("a directory");
    symlink(root.join("real"), root.join("bin/server")).expect("a link");
    let tool = || binaries::beside(&root.join("bin/server"), "tool");
    assert_eq!(tool(), None);
    for place in ["bin/tool", "tool"] {
        fs::write(root.join(place), "").expect("a file");
        assert_eq!(tool(), Some(root.join(place)));
    }
}

#[tokio::test]
async fn a_program_is_called_in_an_environment_of_its_own_and_its_log_is_read() {
    let script = r#"trap 'exit 7' TERM; echo "$GREETING $PGHOST"; cat outjet.yaml
        echo '{"level":"INFO","fields":{"message":"leading","slot":"a"}}' >&2
        echo '{"level":"INFO","fields":{"message":"leading","slot":"b"}}' >&2
        while :; do sleep 0.05; done"#;
    let mut outjet = Outjet::builder()
        .binary("/bin/sh")
        .args(["-c", script])
        .env("GREETING", "hello")
        .config("log: {}\n")
        .spawn();
    let first = outjet.logged("leading", SOON).await;
    assert_eq!(first["fields"]["slot"], "a");
    let second = outjet.logged_where("leading", SOON, |line| line["fields"]["slot"] == "b");
    second.await;
    assert_eq!(outjet.stdout(), "hello \nlog: {}\n");
    if cfg!(target_os = "linux") {
        assert!(outjet.resident_bytes_max() > 100_000);
    }
    assert_eq!(outjet.terminate(SOON).await, Some(7));
}

#[tokio::test]
#[should_panic(expected = "it ended: exit status: 3")]
async fn waiting_for_a_log_line_ends_when_the_program_does() {
    let program = Outjet::builder().binary("/bin/sh").args(["-c", "exit 3"]);
    program
        .spawn()
        .logged("leading", Duration::from_secs(3600))
        .await;
}

#[tokio::test]
async fn one_call_of_the_program_yields_its_code_and_its_words() {
    let call = Outjet::builder()
        .binary("/bin/sh")
        .args(["-c", "echo out; echo err >&2; exit 78"]);
    let output = call.output().await;
    assert_eq!(output.code, Some(78));
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("out\n", "err\n")
    );
}

/// Set in the process that is to be killed; see below.
const VICTIM: &str = "OUTJET_IT_VICTIM";

/// Runs this very test in a second process, which starts servers, says so and waits; then kills
/// it, so that nothing is dropped.
#[tokio::test]
async fn servers_and_their_directories_are_gone_soon_after_a_test_was_killed() {
    let claim = "servers_and_their_directories_are_gone_soon_after_a_test_was_killed";
    if let Ok(report) = std::env::var(VICTIM) {
        let (mut postgres, mut nats) = (Postgres::start().await, Nats::start().await);
        nats.process().pause().await;
        let ids = [postgres.process().id(), nats.process().id()];
        let homes = [postgres.host(), nats.home().display().to_string()];
        let words = format!("{} {} {} {}", ids[0], ids[1], homes[0], homes[1]);
        let partial = format!("{report}.partial");
        fs::write(&partial, words).expect("write the report");
        fs::rename(&partial, &report).expect("rename the report");
        return std::future::pending().await;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let report = directory.path().join("report");
    let mut victim = Command::new(std::env::current_exe().expect("this test"));
    victim
        .args(["--exact", &format!("harness::tests::{claim}")])
        .env(VICTIM, &report);
    victim.stdout(Stdio::null()).stderr(Stdio::null());
    let home = directory.path().join("unused");
    let mut victim = process::Process::spawn("victim", victim, process::Signal::KILL, &home);
    let words = until_sync("the victim has started its servers", SOON, || {
        assert!(victim.exited().is_none(), "the victim died before its time");
        match fs::read_to_string(&report) {
            Ok(words) => Wait::Ready(words),
            Err(error) => Wait::NotYet(error.to_string()),
        }
    })
    .await;
    victim.kill().await;
    let words: Vec<&str> = words.split(' ').collect();
    let (ids, homes) = words.split_at(2);
    until_sync("its servers are gone", SOON, || {
        let alive: Vec<_> = ids.iter().filter(|id| is_running(id)).collect();
        let left = homes
            .iter()
            .filter(|home| std::path::Path::new(home).exists());
        let left: Vec<_> = left.collect();
        Wait::ready_if(alive.is_empty() && left.is_empty(), (alive, left))
    })
    .await;
}

fn is_running(id: &str) -> bool {
    let state = process::state(id.parse().expect("a process id"));
    // A zombie waits for an init that reaps; it runs no more.
    !state.is_empty() && !state.starts_with('Z')
}

#[test]
fn every_version_that_is_asked_for_is_found() {
    for build in binaries::postgres(None) {
        let found = binaries::postgres(Some(build.major));
        assert!(found.iter().all(|found| found.major == build.major));
    }
    for version in ["2.10", "2.15.1"] {
        assert!(binaries::nats_server(Some(version)).exists());
    }
}
