//! Tells systemd how this copy is doing (`Type=notify`, sd_notify(3)): datagrams to the socket that
//! `NOTIFY_SOCKET` names. Nobody listens elsewhere, and then nothing is sent.
//!
//! Ready is told as soon as there is anything to tell, be it that a server is away: outjet waits
//! for them itself, and a start that waited would be given up after a minute and a half, again and
//! again, or keep a machine from booting whose Postgres comes later.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::vitals::{Reading, State, Vitals};

/// The way to systemd.
#[derive(Debug)]
pub struct Systemd {
    socket: UnixDatagram,
    /// How often it wants to hear from us, at least.
    watchdog: Option<Duration>,
}

impl Systemd {
    /// `None` if this process was not started by systemd, or not to tell it anything.
    pub fn of(environment: &BTreeMap<String, String>) -> Option<Self> {
        let name = environment.get("NOTIFY_SOCKET")?;
        match connect(name) {
            Ok(socket) => Some(Self {
                socket,
                watchdog: watchdog(environment),
            }),
            Err(error) => {
                let fix = "start outjet by systemd with NotifyAccess=main, or unset NOTIFY_SOCKET";
                warn!(socket = name, cause = %error, fix, "systemd cannot be told anything");
                None
            }
        }
    }

    /// Tells every change of state, and twice in each interval that the loop turns; for ever.
    pub async fn run(&self, vitals: &Vitals, stop: &CancellationToken) {
        let mut states = vitals.states();
        let mut ready = false;
        let mut stopping = false;
        loop {
            let reading = vitals.read();
            if reading.state != State::Starting && !std::mem::replace(&mut ready, true) {
                self.tell("READY=1");
            }
            self.tell(&format!("STATUS={}", status(&reading)));
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled(), if !stopping => {
                        stopping = true;
                        self.tell("STOPPING=1");
                    }
                    _ = states.changed() => break,
                    () = self.next_beat() => if vitals.read().alive {
                        self.tell("WATCHDOG=1");
                    }
                }
            }
        }
    }

    async fn next_beat(&self) {
        match self.watchdog {
            Some(interval) => tokio::time::sleep(interval / 2).await,
            None => std::future::pending().await,
        }
    }

    /// What systemd does not take is not worth waiting for.
    fn tell(&self, what: &str) {
        if let Err(error) = self.socket.send(what.as_bytes()) {
            debug!(%error, what, "systemd was not told");
        }
    }
}

/// On one line, as `systemctl status` shows it.
fn status(reading: &Reading) -> String {
    let state = reading.state.name();
    match &reading.problem {
        Some(problem) => format!("{state}: {}", problem.problem),
        None => state.to_owned(),
    }
}

/// A path, or behind `@` a name in Linux's abstract namespace.
fn connect(name: &str) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(name) => abstract_address(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_name: &str) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

/// `WATCHDOG_USEC`, unless `WATCHDOG_PID` says that another process is meant (sd_watchdog_enabled).
fn watchdog(environment: &BTreeMap<String, String>) -> Option<Duration> {
    let ours = std::process::id().to_string();
    let pid = environment.get("WATCHDOG_PID");
    if pid.is_some_and(|pid| *pid != ours) {
        return None;
    }
    let micros = environment.get("WATCHDOG_USEC")?.parse().ok()?;
    (micros > 0).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Problem;

    /// What systemd's socket received since the last look.
    fn heard(systemd: &UnixDatagram) -> Vec<String> {
        let mut heard = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(length) = systemd.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        heard
    }

    #[tokio::test(start_paused = true)]
    async fn states_are_told_as_they_change_and_the_watchdog_only_while_the_loop_turns() {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        theirs.set_nonblocking(true).expect("nonblocking");
        let systemd = Systemd {
            socket: ours,
            watchdog: Some(Duration::from_secs(60)),
        };
        let (vitals, stop) = (
            Vitals::new(Duration::from_secs(10)),
            CancellationToken::new(),
        );
        let script = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(heard(&theirs), ["STATUS=starting"]);
            vitals.set(State::Retrying, Some(Problem::new("a b", "c", "d")));
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(heard(&theirs), ["READY=1", "STATUS=retrying: a b"]);
            // It stands still: two intervals pass, and from 90 s on nothing is told.
            tokio::time::sleep(Duration::from_secs(85)).await;
            assert_eq!(heard(&theirs), ["WATCHDOG=1", "WATCHDOG=1"]);
            tokio::time::sleep(Duration::from_secs(600)).await;
            assert_eq!(heard(&theirs), [""; 0]);
            vitals.set(State::Streaming, None);
            stop.cancel();
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(heard(&theirs), ["STOPPING=1", "STATUS=streaming"]);
        };
        tokio::select! {
            () = systemd.run(&vitals, &stop) => unreachable!("it runs for ever"),
            () = script => {}
        }
    }

    #[test]
    fn watchdog_of_another_process_is_not_ours() {
        let environment = |pid: &str| {
            let pairs = [("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", pid)];
            let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
            BTreeMap::from(pairs)
        };
        let ours = std::process::id().to_string();
        assert_eq!(watchdog(&environment(&ours)), Some(Duration::from_secs(30)));
        assert_eq!(watchdog(&environment("1")), None);
        assert_eq!(watchdog(&BTreeMap::new()), None);
    }
}
