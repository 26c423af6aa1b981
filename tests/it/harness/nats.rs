//! A nats-server with JetStream for one test.

use async_nats::jetstream;
use rustix::process::Signal;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

use super::binaries;
use super::port::Port;
use super::process::{Process, tail};
use super::wait::{Wait, until_sync};

/// Long enough to read a big store again on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// A running server with its own store; its port stays the same over restarts.
pub(crate) struct Nats {
    process: Option<Process>,
    binary: PathBuf,
    port: Port,
    home: TempDir,
}

/// What JetStream had on disk at some time.
pub(crate) struct Backup(TempDir);

/// The versions that store a batch of messages as a whole, and deliver a message later.
pub(crate) const BATCHING: &str = ">= 2.12.1";

/// How a server is to be.
#[derive(Clone, Default)]
pub(crate) struct Builder {
    version: Option<String>,
    without_jetstream: bool,
    jetstream: String,
    config: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Builder {
    /// A version, the beginning of one ("2.10") or the oldest (">= 2.12.1"); else the preferred one
    /// of this machine.
    pub(crate) fn version(mut self, version: &str) -> Self {
        self.version = Some(version.to_owned());
        self
    }

    /// No JetStream at all.
    pub(crate) fn without_jetstream(mut self) -> Self {
        self.without_jetstream = true;
        self
    }

    /// Lines for the `jetstream` block (`sync_interval: always`, `max_file_store: 1MB`).
    pub(crate) fn jetstream(mut self, lines: &str) -> Self {
        self.jetstream.push_str(lines);
        self.jetstream.push('\n');
        self
    }

    /// Lines of the server's configuration: users, permissions, TLS, limits. `{home}` stands for
    /// the directory of [`file`](Self::file).
    pub(crate) fn config(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self.config.push('\n');
        self
    }

    /// A file beside the configuration, such as a certificate.
    pub(crate) fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), content.into()));
        self
    }

    /// Starts it, and waits until it takes connections.
    pub(crate) async fn start(self) -> Nats {
        let home = tempfile::Builder::new().prefix("oj-nats-").tempdir();
        let home = home.expect("create a temporary directory");
        binaries::give_to_server(home.path());
        let nats = Nats {
            process: None,
            binary: binaries::nats_server(self.version.as_deref()),
            port: Port::free(),
            home,
        };
        for (name, content) in &self.files {
            let path = nats.home.path().join(name);
            fs::write(&path, content).expect("write a file of the test");
            binaries::give_to_server(&path);
        }
        nats.configure(&self.text(&nats.home.path().to_string_lossy()));
        let mut nats = nats;
        nats.start_again().await;
        nats
    }

    fn text(&self, home: &str) -> String {
        let mut text = self.config.replace("{home}", home);
        if !self.without_jetstream {
            let lines = &self.jetstream;
            text.push_str(&format!(
                "jetstream {{\nstore_dir: \"{home}/store\"\n{lines}}}\n"
            ));
        }
        text
    }
}

impl Nats {
    /// Starts a server with JetStream and without authentication.
    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    /// For a server with a configuration of the test.
    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    /// An orderly stop; the store stays.
    pub(crate) async fn stop(&mut self) {
        self.process().signal(Signal::TERM);
        self.process().exit(STOP_WITHIN).await;
        self.process = None;
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        self.process().kill().await;
        self.process = None;
    }

    /// A copy of what JetStream has on disk, while it is stopped or stands still.
    pub(crate) fn back_up(&self) -> Backup {
        let backup = tempfile::tempdir().expect("create a temporary directory");
        copy(&self.store(), backup.path());
        Backup(backup)
    }

    /// Puts it in the place of what there is; the server must have ended.
    pub(crate) fn put_back(&self, backup: Backup) {
        assert!(self.process.is_none(), "the server is running");
        fs::remove_dir_all(self.store()).expect("remove the store");
        copy(backup.0.path(), &self.store());
    }

    /// Starts it again, on the same port.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.process.is_none(), "the server is running");
        let mut process = self.spawn();
        let ports = self
            .home
            .path()
            .join(format!("nats-server_{}.ports", process.id()));
        let log = self.log();
        until_sync("nats-server takes connections", START_WITHIN, || {
            if let Some(status) = process.exited() {
                return Wait::Broken(format!("{status}\n{}", tail(&log)));
            }
            // The file appears when the listeners are up; it may be half written.
            let ports = fs::read(&ports).unwrap_or_default();
            let whole = serde_json::from_slice::<serde_json::Value>(&ports).is_ok();
            Wait::ready_if(whole, "no ports file")
        })
        .await;
        self.process = Some(process);
    }

    /// Replaces the configuration; it counts from the next start or reload.
    pub(crate) fn configure(&self, text: &str) {
        let path = self.home.path().join("nats.conf");
        fs::write(&path, text).expect("write the server's configuration");
        binaries::give_to_server(&path);
    }

    /// The configuration as it stands.
    pub(crate) fn configuration(&self) -> String {
        fs::read_to_string(self.home.path().join("nats.conf")).expect("a configuration")
    }

    /// Reads the configuration again.
    pub(crate) fn reload(&mut self) {
        self.process().signal(Signal::HUP);
    }

    /// The server, to be paused or signalled.
    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server is running")
    }

    /// A client without credentials.
    pub(crate) async fn connect(&self) -> async_nats::Client {
        let client = async_nats::connect(self.url()).await;
        client.unwrap_or_else(|error| panic!("connect to {}: {error:?}", self.url()))
    }

    /// A JetStream context of such a client.
    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.connect().await)
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port())
    }

    /// Its client port.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// The directory of its configuration and its files.
    pub(crate) fn home(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    /// What JetStream has on disk.
    pub(crate) fn store(&self) -> PathBuf {
        self.home.path().join("store/jetstream")
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> PathBuf {
        self.home.path().join("nats.log")
    }

    fn spawn(&self) -> Process {
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.expect("open the server's log");
        let mut command = Command::new(&self.binary);
        command.arg("-c").arg(self.home.path().join("nats.conf"));
        command.args(["-a", "127.0.0.1", "-p"]);
        command.arg(self.port().to_string());
        command.arg("--ports_file_dir").arg(self.home.path());
        command.current_dir(self.home.path());
        command
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        binaries::drop_root(&mut command);
        Process::spawn("nats-server", command, Signal::KILL, self.home.path()).log(&self.log())
    }
}

/// `cp -a`: the server may run as somebody else.
fn copy(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    let copied = copy.arg("-a").arg(from.join(".")).arg(to).status();
    assert!(copied.expect("start cp").success());
}
