//! Tells systemd how this copy is doing (`Type=notify`, sd_notify(3)): datagrams to the socket that
//! `NOTIFY_SOCKET` names. Nobody listens elsewhere, and then nothing is sent.
//!
//! Ready is told as soon as there is anything to tell, be it that a server is away: outjet waits
//! for them itself, and a start that waited would be given up after a minute and a half, again and
//! again, or keep a machine from booting whose Postgres comes later.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::SocketAddr;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::vitals::{Reading, State, Vitals};

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
        // Goes on over changes of state: where they come faster than beats, each would put off
        // the next one, and systemd would end a copy that does its part.
        let mut beats = self.watchdog.map(|longest| {
            let mut beats = interval_at(Instant::now() + longest / 2, longest / 2);
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            beats
        });
        let mut ready = false;
        let mut stopping = false;
        loop {
            let reading = vitals.read();
            if reading.state != State::Starting && !std::mem::replace(&mut ready, true) {
                self.tell("READY=1").await;
            }
            self.tell(&format!("STATUS={}", status(&reading))).await;
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled(), if !stopping => {
                        stopping = true;
                        self.tell("STOPPING=1").await;
                    }
                    _ = states.changed() => break,
                    () = next(beats.as_mut()) => if vitals.read().alive {
                        self.tell("WATCHDOG=1").await;
                    }
                }
            }
        }
    }

    /// Waits while systemd is busy: whoever is not told that it is ready is ended.
    async fn tell(&self, what: &str) {
        if let Err(error) = self.socket.send(what.as_bytes()).await {
            debug!(%error, what, "systemd was not told");
        }
    }
}

/// The next beat, if there are any. Cancel-safe: a tick that was not taken is there still.
async fn next(beats: Option<&mut Interval>) {
    match beats {
        Some(beats) => drop(beats.tick().await),
        None => std::future::pending().await,
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
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
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
    use std::os::unix::net::UnixDatagram as Theirs;

    use super::*;
    use crate::error::Problem;

    /// What systemd's socket received since the last look.
    fn heard(systemd: &Theirs) -> Vec<String> {
        let mut heard = Vec::new();
        let mut buffer = [0; 1024];
        while let Ok(length) = systemd.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        heard
    }

    /// Tells `theirs` what happens in a script, in which time passes at once.
    async fn told(script: impl AsyncFnOnce(&Vitals, &CancellationToken, &Theirs)) {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("notify");
        let theirs = Theirs::bind(&path).expect("bind");
        theirs.set_nonblocking(true).expect("nonblocking");
        let systemd = Systemd {
            socket: connect(path.to_str().expect("UTF-8")).expect("a socket"),
            watchdog: Some(Duration::from_secs(60)),
        };
        systemd.socket.writable().await.expect("room");
        let (vitals, stop) = (
            Vitals::new(Duration::from_secs(10)),
            CancellationToken::new(),
        );
        tokio::select! {
            biased;
            () = systemd.run(&vitals, &stop) => unreachable!("it runs for ever"),
            () = script(&vitals, &stop, &theirs) => {}
        }
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    fn away() -> Option<Problem> {
        Some(Problem::new("a b", "c", "d"))
    }

    #[tokio::test(start_paused = true)]
    async fn states_are_told_as_they_change_and_the_watchdog_only_while_the_loop_turns() {
        told(async |vitals, stop, theirs| {
            pass(1).await;
            assert_eq!(heard(theirs), ["STATUS=starting"]);
            vitals.set(State::Retrying, away());
            pass(1).await;
            assert_eq!(heard(theirs), ["READY=1", "STATUS=retrying: a b"]);
            // It stands still: one and a half intervals pass, and then nothing is told.
            pass(90).await;
            assert_eq!(heard(theirs), ["WATCHDOG=1"; 3]);
            pass(600).await;
            assert_eq!(heard(theirs), [""; 0]);
            vitals.set(State::Streaming, None);
            stop.cancel();
            pass(1).await;
            assert_eq!(heard(theirs), ["STOPPING=1", "STATUS=streaming"]);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn watchdog_is_fed_though_states_change_more_often_than_it_is() {
        told(async |vitals, _, theirs| {
            let mut beats = 0;
            for _ in 0..30 {
                for (state, problem) in [(State::Retrying, away()), (State::Streaming, None)] {
                    vitals.set(state, problem);
                    pass(10).await;
                    beats += heard(theirs).iter().filter(|t| *t == "WATCHDOG=1").count();
                }
            }
            assert_eq!(beats, 20, "in ten minutes");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn systemd_that_is_busy_for_a_while_is_told_all_the_same() {
        told(async |vitals, _, theirs| {
            for _ in 0..1000 {
                vitals.set(State::Starting, None);
                pass(60).await;
            }
            vitals.set(State::Streaming, None);
            pass(1).await;
            let ready = "READY=1".to_owned();
            assert!(!heard(theirs).contains(&ready), "there was room");
            pass(1).await;
            let told = heard(theirs);
            assert!(told.contains(&ready), "{told:?}");
        })
        .await;
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
