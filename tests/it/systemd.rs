//! outjet as a service of systemd: a socket of ours plays its part.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use crate::delivery::{Delivery, SOON};
use crate::harness::postgres::Stop;
use crate::harness::{Outjet, Wait, until};

/// What a service tells, in order.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn listen(socket: UnixDatagram) -> Self {
        socket.set_nonblocking(true).expect("nonblocking");
        let heard = Vec::new();
        Self { socket, heard }
    }

    async fn until_told(&mut self, what: &str) {
        until(&format!("{what} is told"), SOON, async || {
            let mut buffer = [0; 4096];
            while let Ok(length) = self.socket.recv(&mut buffer) {
                let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
                self.heard.push(told);
            }
            let told = self.heard.iter().any(|told| told.starts_with(what));
            Wait::ready_if(told, &self.heard)
        })
        .await;
    }

    fn times(&self, what: &str) -> usize {
        self.heard.iter().filter(|told| *told == what).count()
    }

    fn place(&self, what: &str) -> Option<usize> {
        self.heard.iter().position(|told| told == what)
    }
}

fn service(delivery: &Delivery, socket: &str) -> Outjet {
    delivery
        .outjet(["run", "--log-format", "json"])
        .env("NOTIFY_SOCKET", socket)
        .env("WATCHDOG_USEC", "400000")
        .spawn()
}

#[tokio::test]
async fn systemd_hears_of_readiness_each_state_the_watchdog_and_the_stop() {
    let delivery = Delivery::ready().await;
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("notify");
    let mut manager = Manager::listen(UnixDatagram::bind(&path).expect("bind"));
    let mut leader = service(&delivery, path.to_str().expect("UTF-8"));
    manager.until_told("READY=1").await;
    manager.until_told("STATUS=streaming").await;
    let before = manager.times("WATCHDOG=1");
    until("the watchdog is fed", SOON, async || {
        manager.until_told("WATCHDOG=1").await;
        let times = manager.times("WATCHDOG=1");
        Wait::ready_if(times >= before + 3, times)
    })
    .await;
    assert_eq!(leader.terminate(SOON).await, Some(0));
    manager.until_told("STOPPING=1").await;
    for once in [
        "READY=1",
        "STOPPING=1",
        "STATUS=starting",
        "STATUS=streaming",
    ] {
        assert_eq!(manager.times(once), 1, "{:?}", manager.heard);
    }
    assert!(manager.place("STATUS=starting") < manager.place("READY=1"));
}

/// A start that waited for Postgres could keep it from being started.
#[tokio::test]
async fn service_is_ready_although_postgres_is_away_and_says_so() {
    let mut delivery = Delivery::ready().await;
    delivery.world.postgres.stop(Stop::Fast).await;
    let name = format!("outjet-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let mut manager = Manager::listen(UnixDatagram::bind_addr(&address).expect("bind"));
    let mut outjet = service(&delivery, &format!("@{name}"));
    manager.until_told("READY=1").await;
    manager.until_told("STATUS=retrying: Postgres at ").await;
    delivery.world.postgres.start_again().await;
    manager.until_told("STATUS=streaming").await;
    assert_eq!(manager.times("READY=1"), 1, "{:?}", manager.heard);
    assert_eq!(outjet.terminate(SOON).await, Some(0));
}

const UNIT: &str = include_str!("../../deploy/systemd/outjet.service");

/// What the unit says of a key.
fn unit(key: &str) -> &'static str {
    let lines = UNIT.lines().filter_map(|line| line.split_once('='));
    let mut values = lines.filter(|(name, _)| *name == key);
    values.next().unwrap_or_else(|| panic!("no {key}")).1
}

#[test]
fn unit_leaves_time_to_drain_and_does_not_start_again_what_cannot_be_mended_so() {
    let between = |text: &'static str, before: &str, behind: &str| -> u64 {
        let (_, rest) = text.split_once(before).expect("it is said");
        let (seconds, _) = rest.split_once(behind).expect("it ends");
        seconds.parse().expect("seconds")
    };
    let drain = between(
        include_str!("../../config/outjet.yaml"),
        "drain_timeout: ",
        "s",
    );
    let last = "const FINISH_MAX: Duration = Duration::from_secs(";
    let last = between(include_str!("../../src/lead/term.rs"), last, ")");
    let stop: u64 = unit("TimeoutStopSec").parse().expect("seconds");
    assert!(stop > drain + last, "{stop} s for {drain} and {last}");
    assert_eq!(unit("Type"), "notify");
    assert_eq!(unit("RestartPreventExitStatus"), "78");
}

/// Where systemd is installed.
#[test]
fn systemd_has_nothing_against_the_unit() {
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("outjet.service");
    let ours = env!("CARGO_BIN_EXE_outjet");
    std::fs::write(&file, UNIT.replace("/usr/local/bin/outjet", ours)).expect("written");
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&file)
        .output();
    match verify {
        Ok(verified) => {
            let said = String::from_utf8_lossy(&verified.stderr);
            assert!(verified.status.success() && said.is_empty(), "{said}");
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
    }
}

#[tokio::test]
async fn socket_that_nobody_listens_on_is_told_of_once_and_keeps_nobody_from_publishing() {
    let delivery = Delivery::ready().await;
    let mut outjet = service(&delivery, "/nowhere/notify");
    let line = outjet.logged("systemd cannot be told anything", SOON).await;
    assert_eq!(line["level"], "WARN", "{line}");
    outjet.logged("leading", SOON).await;
}
