//! The real program, in a directory and an environment of its own.

use rustix::process::Signal;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

use super::binaries;
use super::process::Process;
use super::wait::{Wait, until_sync};

/// Longer than any one-shot command's own deadlines.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);

/// A running outjet.
pub(crate) struct Outjet {
    process: Process,
    home: TempDir,
}

/// How a one-shot command ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// Exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it printed.
    pub(crate) stdout: String,
    /// What it complained of.
    pub(crate) stderr: String,
}

/// How it is to be started. The environment is empty but for what is given here.
pub(crate) struct Builder {
    binary: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    config: Option<String>,
}

impl Builder {
    /// Adds arguments.
    pub(crate) fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable; the last value counts.
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Writes `outjet.yaml` into its working directory, where it looks for it.
    pub(crate) fn config(mut self, yaml: impl Into<String>) -> Self {
        self.config = Some(yaml.into());
        self
    }

    /// Another executable than the one that the tests were built with.
    pub(crate) fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = path.into();
        self
    }

    /// Starts it and does not wait.
    pub(crate) fn spawn(self) -> Outjet {
        let home = tempfile::Builder::new().prefix("oj-").tempdir();
        let home = home.expect("create a temporary directory");
        if let Some(yaml) = &self.config {
            fs::write(home.path().join("outjet.yaml"), yaml).expect("write outjet.yaml");
        }
        let create = |name| File::create(home.path().join(name)).expect("create a log");
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).current_dir(home.path());
        command.env_clear().env("HOME", home.path());
        // Many run at once; those that are to answer say where.
        command.env("OUTJET_HTTP__LISTEN", "off");
        command.envs(std::env::var_os("PATH").map(|path| (OsStr::new("PATH").to_owned(), path)));
        command.envs(self.environment);
        command.stdout(create("stdout")).stderr(create("stderr"));
        let process = Process::spawn("outjet", command, Signal::KILL, home.path())
            .log(&home.path().join("stdout"))
            .log(&home.path().join("stderr"));
        Outjet { process, home }
    }

    /// Runs it to its end.
    pub(crate) async fn output(self) -> Output {
        let mut outjet = self.spawn();
        let status = outjet.process.exit(COMMAND_WITHIN).await;
        Output {
            code: status.code(),
            stdout: outjet.stdout(),
            stderr: outjet.stderr(),
        }
    }
}

impl Outjet {
    /// For a call of the program.
    pub(crate) fn builder() -> Builder {
        Builder {
            binary: binaries::outjet(),
            arguments: Vec::new(),
            environment: Vec::new(),
            config: None,
        }
    }

    /// Waits for a line of its log (`--log-format json`) with this message.
    pub(crate) async fn logged(&mut self, message: &str, within: Duration) -> Value {
        self.logged_where(message, within, |_| true).await
    }

    /// Waits for a line of its log with this message and more to it. Broken if the process ends.
    pub(crate) async fn logged_where(
        &mut self,
        message: &str,
        within: Duration,
        suits: impl Fn(&Value) -> bool,
    ) -> Value {
        let what = format!("outjet logs {message:?}");
        until_sync(&what, within, || {
            // Asked before the log is read: an ended process has written all it ever will.
            let ended = self.process.exited();
            let lines = self.log();
            let found = lines.iter().find(|line| says(line, message) && suits(line));
            match (found, ended) {
                (Some(line), _) => Wait::Ready(line.clone()),
                (None, Some(status)) => Wait::Broken(format!("it ended: {status}")),
                (None, None) => Wait::NotYet(format!("{} lines", lines.len())),
            }
        })
        .await
    }

    /// Every line of its log so far that is JSON.
    pub(crate) fn log(&self) -> Vec<Value> {
        let lines = [self.stderr(), self.stdout()];
        let lines = lines.iter().flat_map(|text| text.lines());
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// What it has printed so far.
    pub(crate) fn stdout(&self) -> String {
        text(&self.home.path().join("stdout"))
    }

    /// What it has complained of so far.
    pub(crate) fn stderr(&self) -> String {
        text(&self.home.path().join("stderr"))
    }

    /// SIGTERM; returns the exit code, `None` if it died of a signal after all.
    pub(crate) async fn terminate(&mut self, within: Duration) -> Option<i32> {
        self.process.signal(Signal::TERM);
        self.process.exit(within).await.code()
    }

    /// Its working directory.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }
}

/// Pausing, killing, memory: what any process can.
impl Deref for Outjet {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Outjet {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Whether a JSON log line has this message, flattened or among the fields.
fn says(line: &Value, message: &str) -> bool {
    let found = line
        .get("message")
        .or_else(|| line["fields"].get("message"));
    found.and_then(Value::as_str) == Some(message)
}

fn text(path: &Path) -> String {
    let bytes = fs::read(path).expect("read a log of ours");
    String::from_utf8_lossy(&bytes).into_owned()
}
