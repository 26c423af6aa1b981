//! A child process that cannot outlive its test.
//!
//! Drop kills it. If the test process itself is killed, nothing is dropped; then a watchdog does
//! it: a shell that reads a pipe of which only we hold the other end, and that sees end of file
//! when we are gone, however that came about. (`setpriv --pdeathsig` exists on Linux only, and
//! fires when the *thread* that spawned the child ends, which may be one of a thread pool.)

pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::wait::{Wait, until_sync};

/// How much of each log a failed test prints.
const LOG_TAIL_BYTES: u64 = 24 * 1024;

/// A running child, its logs, and its watchdog.
pub(crate) struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    watchdog: Option<Watchdog>,
    farewell: Signal,
    logs: Vec<PathBuf>,
}

impl Process {
    /// Starts `command`; its stdout and stderr must have been set by the caller. `farewell` is the
    /// signal that ends it on drop: KILL, or what a server needs to clean up after itself. `home`
    /// is its temporary directory: the caller removes it, and the watchdog if the caller cannot.
    pub(crate) fn spawn(name: &str, mut command: Command, farewell: Signal, home: &Path) -> Self {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start {name} ({command:?}): {error}"));
        let watchdog = Watchdog::over(child.id(), farewell, home);
        Self {
            name: name.to_owned(),
            child,
            status: None,
            watchdog: Some(watchdog),
            farewell,
            logs: Vec::new(),
        }
    }

    /// Names a log file to be printed if the test panics.
    pub(crate) fn log(mut self, path: &Path) -> Self {
        self.logs.push(path.to_owned());
        self
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; nothing happens if the process has ended and was noticed to have.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            // It may end between the look and the signal: it is still ours to reap then.
            kill_process(pid(self.child.id()), signal).expect("signal our own child");
        }
    }

    /// Stops it where it stands, as a hung machine would; waits until all its threads stand.
    pub(crate) async fn pause(&mut self) {
        self.signal(Signal::STOP);
        let what = format!("{} has stopped", self.name);
        until_sync(&what, Duration::from_secs(10), || {
            let state = state(self.child.id());
            Wait::ready_if(state.starts_with('T'), state)
        })
        .await;
    }

    /// Lets a paused process go on.
    pub(crate) fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.exit(Duration::from_secs(10)).await
    }

    /// Its exit status if it has ended.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait for our own child");
            if self.status.is_some() {
                self.watchdog.take();
            }
        }
        self.status
    }

    /// Waits for its end.
    pub(crate) async fn exit(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} has ended", self.name);
        until_sync(&what, within, || match self.exited() {
            Some(status) => Wait::Ready(status),
            None => Wait::NotYet("still running".to_owned()),
        })
        .await
    }

    /// The most memory it ever had resident, in bytes (Linux).
    pub(crate) fn resident_bytes_max(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).expect("a running process on Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kibibytes = kibibytes.expect("VmHWM in kB").trim().parse::<u64>();
        kibibytes.expect("a number") * 1024
    }

    fn print_logs(&self) {
        for path in &self.logs {
            eprintln!("--- {} {}: {}", self.name, self.id(), path.display());
            eprintln!("{}", tail(path));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_none() {
            self.signal(self.farewell);
            self.signal(Signal::CONT);
            // Called off before the child is reaped: its id cannot have been used again.
            self.watchdog.take();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}

/// Runs a command to its end; panics with what it said if it fails.
pub(crate) fn run(mut command: Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The end of a log, enough to understand a failure.
pub(crate) fn tail(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        file.read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(cannot be read: {error})"),
    }
}

/// Sends a signal to a process that is not our child, such as a server's backend.
pub(crate) fn signal_process(id: u32, signal: Signal) {
    kill_process(pid(id), signal).unwrap_or_else(|error| panic!("signal process {id}: {error}"));
}

/// The same for a process that may be gone; says whether it was there.
pub(crate) fn signal_if_alive(id: u32, signal: Signal) -> bool {
    kill_process(pid(id), signal).is_ok()
}

/// The state of a process: T is stopped, Z has ended and waits to be reaped, "" is gone.
pub(crate) fn state(id: u32) -> String {
    if Path::new("/proc/self/status").exists() {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let state = status.lines().find_map(|line| line.strip_prefix("State:"));
        return state.unwrap_or("").trim().to_owned();
    }
    let mut ps = Command::new("ps");
    let looked = ps.args(["-o", "stat=", "-p", &id.to_string()]).output();
    let state = looked.expect("run ps").stdout;
    String::from_utf8_lossy(&state).trim().to_owned()
}

fn pid(id: u32) -> Pid {
    let id = i32::try_from(id).expect("a process id");
    Pid::from_raw(id).expect("a process id")
}

/// Kills a process when we are gone; called off by dropping it.
struct Watchdog {
    shell: Child,
}

/// A paused process gets the signal first and is woken then, so that it does nothing in between.
/// A Postgres that is told to QUIT frees its shared memory; KILL would leak it.
const WATCH: &str = r#"
trap '' INT TERM HUP
read -r called_off && exit 0
kill "-$2" "$1" && kill -CONT "$1"
tries=0
while kill -0 "$1" && [ "$tries" -lt 80 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -KILL "$1"
rm -rf "$3"
"#;

impl Watchdog {
    fn over(id: u32, farewell: Signal, home: &Path) -> Self {
        let shell = Command::new("sh")
            .args(["-c", WATCH, "watchdog", &id.to_string()])
            .arg(farewell.as_raw().to_string())
            .arg(home)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: it survives what ends our group, and has work to do then.
            .process_group(0)
            .spawn()
            .expect("start sh");
        Self { shell }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.shell.stdin.take() {
            let _ = pipe.write_all(b"called off\n");
        }
        let _ = self.shell.wait();
    }
}
