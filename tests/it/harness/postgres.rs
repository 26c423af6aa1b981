//! A Postgres server for one test: a copied cluster on a unix socket.

use rustix::process::Signal;
use std::fs::{self, File};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::binaries::{self, PostgresBuild};
use super::port::Port;
use super::process::{Process, run, tail};
use super::wait::{Wait, until};

/// Long enough for crash recovery on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// What every cluster has; a test's settings come after these and win.
const SETTINGS: &str = "
wal_level = logical
fsync = off
full_page_writes = off
shared_buffers = 16MB
max_connections = 60
max_wal_senders = 12
max_replication_slots = 12
listen_addresses = ''
log_replication_commands = on
log_line_prefix = '%m [%p] %a '
";

/// A running server with its own data directory.
pub(crate) struct Postgres {
    process: Option<Process>,
    build: PostgresBuild,
    /// If it listens on one.
    port: Option<Port>,
    home: TempDir,
}

/// How a server is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Ends sessions, waits for the replication clients to confirm, writes a checkpoint.
    Fast,
    /// Leaves recovery to the next start, as after a crash.
    Immediate,
}

/// How a server is to be.
#[derive(Default)]
pub(crate) struct Builder {
    major: Option<u32>,
    bin: Option<PathBuf>,
    openssl: bool,
    tcp: bool,
    settings: String,
    hba: Option<String>,
    files: Vec<(String, Vec<u8>)>,
}

impl Builder {
    /// A major version; else the preferred build of this machine.
    pub(crate) fn version(mut self, major: u32) -> Self {
        self.major = Some(major);
        self
    }

    /// The build in this directory, whatever its version.
    pub(crate) fn bin(mut self, bin: &Path) -> Self {
        self.bin = Some(bin.to_owned());
        self
    }

    /// A build with OpenSSL in it.
    pub(crate) fn openssl(mut self) -> Self {
        self.openssl = true;
        self
    }

    /// A setting of `postgresql.conf`.
    pub(crate) fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push_str(&setting_line(name, value));
        self
    }

    /// Listens on 127.0.0.1, too.
    pub(crate) fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// The whole of `pg_hba.conf`; else everybody is trusted.
    pub(crate) fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.to_owned());
        self
    }

    /// A file in the data directory, readable by the server alone (a key must be).
    pub(crate) fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), content.into()));
        self
    }

    /// Starts it, and waits until it takes connections.
    pub(crate) async fn start(self) -> Postgres {
        let (build, template) = self.choose();
        let home = tempfile::Builder::new().prefix("oj-pg-").tempdir();
        let home = home.expect("create a temporary directory");
        open_to_all(home.path());
        binaries::give_to_server(home.path());
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(&template).arg(home.path().join("data"));
        run(as_server(copy));
        let mut postgres = Postgres {
            process: None,
            build,
            port: self.tcp.then(Port::free),
            home,
        };
        self.write_into(&postgres.data());
        postgres.set("port", &postgres.number().to_string());
        postgres.set("unix_socket_directories", &postgres.host());
        postgres.start_again().await;
        postgres
    }

    fn choose(&self) -> (PostgresBuild, PathBuf) {
        let builds = match &self.bin {
            Some(bin) => vec![binaries::postgres_in(bin)],
            None => binaries::postgres(self.major),
        };
        let mut templates = builds.into_iter().map(|build| {
            let template = template(&build);
            (build, template)
        });
        let suits = |(build, template): &(PostgresBuild, PathBuf)| {
            !self.openssl || has_openssl(build, template)
        };
        templates.find(suits).unwrap_or_else(|| {
            panic!("no Postgres with OpenSSL: type `scripts/tools --postgres-matrix` or set PG_BIN")
        })
    }

    fn write_into(self, data: &Path) {
        append(&data.join("postgresql.conf"), SETTINGS);
        if self.tcp {
            append(
                &data.join("postgresql.conf"),
                &setting_line("listen_addresses", "127.0.0.1"),
            );
        }
        append(&data.join("postgresql.conf"), &self.settings);
        if let Some(hba) = self.hba {
            fs::write(data.join("pg_hba.conf"), hba).expect("write pg_hba.conf");
        }
        for (name, content) in self.files {
            let path = data.join(name);
            fs::write(&path, content).expect("write a file of the test");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
            binaries::give_to_server(&path);
        }
    }
}

impl Postgres {
    /// Starts a server with the usual settings.
    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    /// For a server with settings of the test.
    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    /// A copy of this server, which is stopped, as a standby of it that has yet to be started: give
    /// it `primary_conninfo`, or nothing, if it is only to be promoted.
    pub(crate) fn copy(&self) -> Self {
        assert!(self.process.is_none(), "the server is running");
        let home = tempfile::Builder::new().prefix("oj-pg-").tempdir();
        let home = home.expect("create a temporary directory");
        open_to_all(home.path());
        binaries::give_to_server(home.path());
        let mut copy = Command::new("cp");
        copy.arg("-a")
            .arg(self.data())
            .arg(home.path().join("data"));
        run(as_server(copy));
        let signal = home.path().join("data/standby.signal");
        fs::write(&signal, "").expect("make it a standby");
        binaries::give_to_server(&signal);
        let mut standby = Self {
            process: None,
            build: self.build.clone(),
            port: self.port.as_ref().map(|_| Port::free()),
            home,
        };
        standby.set("port", &standby.number().to_string());
        standby.set("unix_socket_directories", &standby.host());
        standby
    }

    /// This server, which is stopped, upgraded by `pg_upgrade` to a major version: a server that
    /// has yet to be started. `Err`: what it has to say against it.
    pub(crate) fn upgraded(&self, major: u32) -> Result<Self, String> {
        assert!(self.process.is_none(), "the server is running");
        let build = binaries::whole_postgres(major);
        let home = tempfile::Builder::new().prefix("oj-pg-").tempdir();
        let home = home.expect("create a temporary directory");
        open_to_all(home.path());
        binaries::give_to_server(home.path());
        let mut new = Self {
            process: None,
            build,
            port: self.port.as_ref().map(|_| Port::free()),
            home,
        };
        let mut initdb = initdb(&new.build, &new.data());
        // The old one has none.
        initdb.arg("--no-data-checksums");
        run(as_server(initdb));
        append(&new.data().join("postgresql.conf"), SETTINGS);
        new.set("port", &new.number().to_string());
        new.set("unix_socket_directories", &new.host());
        let bin = |build: &PostgresBuild| {
            let staged = binaries::staged(&build.bin.join("pg_upgrade"));
            staged.parent().expect("a directory").to_owned()
        };
        let mut upgrade = Command::new(bin(&new.build).join("pg_upgrade"));
        upgrade.arg("--old-bindir").arg(bin(&self.build));
        upgrade.arg("--new-bindir").arg(bin(&new.build));
        upgrade.arg("--old-datadir").arg(self.data());
        upgrade.arg("--new-datadir").arg(new.data());
        upgrade.args(["--username=postgres", "--no-sync", "--socketdir"]);
        upgrade.arg(new.host()).current_dir(new.home.path());
        let upgraded = as_server(upgrade).output().expect("start pg_upgrade");
        let mut said = String::from_utf8_lossy(&upgraded.stdout).into_owned();
        said.push_str(&files_below(&new.data().join("pg_upgrade_output.d")));
        match upgraded.status.success() {
            true => Ok(new),
            false => Err(said),
        }
    }

    /// Keeps a copy of the data of this server, which is stopped.
    pub(crate) fn save(&self) {
        assert!(self.process.is_none(), "the server is running");
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.data()).arg(self.saved());
        run(as_server(copy));
    }

    /// Puts back what was [saved](Self::save), as from a backup of the disk.
    pub(crate) fn put_back(&self) {
        assert!(self.process.is_none(), "the server is running");
        let mut remove = Command::new("rm");
        remove.arg("-r").arg(self.data());
        run(as_server(remove));
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.saved()).arg(self.data());
        run(as_server(copy));
    }

    /// Makes a primary of a standby, and waits until it is one.
    pub(crate) async fn promote(&self) {
        let promoted = self.connect().await.text("SELECT pg_promote()").await;
        assert_eq!(promoted, "t");
    }

    /// Stops it; its data stays.
    pub(crate) async fn stop(&mut self, stop: Stop) {
        self.begin_stop(stop);
        self.stopped().await;
    }

    /// Tells it to stop and does not wait: a fast stop waits for replication clients.
    pub(crate) fn begin_stop(&mut self, stop: Stop) {
        self.process().signal(match stop {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        });
    }

    /// Waits for the end of a stop.
    pub(crate) async fn stopped(&mut self) {
        self.process().exit(STOP_WITHIN).await;
        self.process = None;
    }

    /// `kill -9` of the postmaster; its children notice and end by themselves.
    pub(crate) async fn crash(&mut self) {
        self.process().kill().await;
        self.process = None;
    }

    /// Starts it again, on the same socket and port, with what [`set`](Self::set) has changed.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.process.is_none(), "the server is running");
        // After a crash the old children may still hold the shared memory: then it is tried again.
        let mut process = self.spawn();
        until("Postgres takes connections", START_WITHIN, async || {
            if let Some(status) = process.exited() {
                let log = tail(&self.log());
                if !found_in_use(&log, process.id()) {
                    return Wait::Broken(format!("{status}\n{log}"));
                }
                process = self.spawn();
            }
            Wait::ready_if(self.is_ready(process.id()), "starting")
        })
        .await;
        self.process = Some(process);
    }

    /// Stops and starts it.
    pub(crate) async fn restart(&mut self, stop: Stop) {
        self.stop(stop).await;
        self.start_again().await;
    }

    /// Adds a line to `postgresql.conf`; it counts from the next start or reload.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        append(
            &self.data().join("postgresql.conf"),
            &setting_line(name, value),
        );
    }

    /// Reads the configuration files again.
    pub(crate) fn reload(&mut self) {
        self.process().signal(Signal::HUP);
    }

    /// The postmaster, to be paused or signalled.
    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server is running")
    }

    /// A superuser's session in the database `postgres`.
    pub(crate) async fn connect(&self) -> Session {
        Session::connect(&self.url()).await
    }

    /// Where it is, as a URL: by TCP if it listens there, else through the socket.
    pub(crate) fn url(&self) -> String {
        self.url_as("postgres", "postgres")
    }

    /// The URL for another user (`name` or `name:password`) or database.
    pub(crate) fn url_as(&self, user: &str, database: &str) -> String {
        let host = match self.port() {
            Some(port) => format!("127.0.0.1:{port}"),
            None => self.host().replace('/', "%2F"),
        };
        format!("postgres://{user}@{host}/{database}")
    }

    /// The directory of its socket.
    pub(crate) fn host(&self) -> String {
        let path = self.home.path().to_str();
        path.expect("the temporary directory's name is UTF-8")
            .to_owned()
    }

    /// The socket itself, for a proxy to connect to.
    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join(format!(".s.PGSQL.{}", self.number()))
    }

    /// The TCP port, if it listens on one.
    pub(crate) fn port(&self) -> Option<u16> {
        self.port.as_ref().map(Port::number)
    }

    /// Its major version.
    pub(crate) fn major(&self) -> u32 {
        self.build.major
    }

    /// The path of one of its programs, if this build has it (`psql`, `pg_recvlogical`).
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        let path = self.build.bin.join(name);
        path.exists().then_some(path)
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    fn saved(&self) -> PathBuf {
        self.home.path().join("saved")
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> PathBuf {
        self.home.path().join("postgres.log")
    }

    /// What its socket is called by.
    fn number(&self) -> u16 {
        self.port().unwrap_or(5432)
    }

    fn spawn(&self) -> Process {
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.expect("open the server's log");
        let mut command = Command::new(binaries::staged(&self.build.bin.join("postgres")));
        command
            .arg("-D")
            .arg(self.data())
            .current_dir(self.home.path());
        command
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        Process::spawn(
            "postgres",
            as_server(command),
            Signal::QUIT,
            self.home.path(),
        )
        .log(&self.log())
    }

    /// The postmaster writes its state into its pid file (`src/include/utils/pidfile.h`); a file
    /// with another id is left over from before a crash.
    fn is_ready(&self, id: u32) -> bool {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = file.lines().map(str::trim).collect();
        lines.first() == Some(&id.to_string().as_str())
            && matches!(lines.get(7), Some(&("ready" | "standby")))
    }
}

/// Whether this server ended because old children still hold the shared memory ("pre-existing
/// shared memory block … is still in use"). They go on writing into the same log, also behind it.
fn found_in_use(log: &str, id: u32) -> bool {
    let said_by = format!("[{id}] ");
    let hint = "HINT:  Terminate any old server processes associated with data directory";
    let mut lines = log.lines();
    lines.any(|line| line.contains(&said_by) && line.contains(hint))
}

/// A client with the task that drives its connection.
pub(crate) struct Session {
    client: tokio_postgres::Client,
    _connection: JoinSet<()>,
}

impl Session {
    /// Connects without TLS.
    pub(crate) async fn connect(url: &str) -> Self {
        let connected = Self::try_connect(url).await;
        connected.unwrap_or_else(|error| panic!("connect to {url}: {error:?}"))
    }

    /// The same where the server may be away.
    pub(crate) async fn try_connect(url: &str) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            // Tests cut connections; whoever uses the client sees the error.
            let _ = connection.await;
        });
        Ok(Self {
            client,
            _connection: task,
        })
    }

    /// The first column of the only row, as text.
    pub(crate) async fn text(&self, sql: &str) -> String {
        let rows = self.client.simple_query(sql).await;
        let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let mut values = rows.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("")),
            _ => None,
        });
        let value = values.next().unwrap_or_else(|| panic!("{sql}: no row"));
        assert!(values.next().is_none(), "{sql}: more than one row");
        value.to_owned()
    }

    /// Runs statements that must succeed.
    pub(crate) async fn run(&self, sql: &str) {
        let done = self.client.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Waits until a query's only value is this.
    pub(crate) async fn until_text(&self, sql: &str, expected: &str, within: Duration) {
        let what = format!("{sql} yields {expected}");
        until(&what, within, async || {
            let found = self.text(sql).await;
            Wait::ready_if(found == expected, found)
        })
        .await;
    }
}

impl Deref for Session {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.client
    }
}

/// The cluster that all clusters of this build are copied from, made by whoever comes first.
fn template(build: &PostgresBuild) -> PathBuf {
    let key: String = format!("pg {} {}", build.version, build.bin.display())
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '-'
            }
        })
        .collect();
    let finished = binaries::workshop().join(&key);
    let _one_at_a_time = binaries::lock(&key);
    let template = finished.join("data");
    if !template.exists() {
        let partial = finished.with_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir(&partial).expect("create a directory for the template");
        binaries::give_to_server(&partial);
        run(as_server(initdb(build, &partial.join("data"))));
        fs::rename(&partial, &finished).expect("rename a directory of ours");
    }
    template
}

fn initdb(build: &PostgresBuild, data: &Path) -> Command {
    let mut initdb = Command::new(binaries::staged(&build.bin.join("initdb")));
    initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8"]);
    initdb
        .args(["--locale=C", "--no-sync", "--pgdata"])
        .arg(data);
    initdb.current_dir(data.parent().expect("a directory"));
    initdb
}

/// The text of all files below a directory.
fn files_below(directory: &Path) -> String {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let text = entries.map(|entry| match entry.path() {
        path if path.is_dir() => files_below(&path),
        path => fs::read_to_string(path).unwrap_or_default(),
    });
    text.collect()
}

/// `ssl_library` is computed from the build; `-C` prints it without starting a server.
fn has_openssl(build: &PostgresBuild, template: &Path) -> bool {
    let mut command = Command::new(binaries::staged(&build.bin.join("postgres")));
    command
        .args(["-C", "ssl_library", "-D"])
        .arg(template)
        .current_dir("/");
    run(as_server(command)).trim() == "OpenSSL"
}

fn as_server(mut command: Command) -> Command {
    binaries::drop_root(&mut command);
    command
}

fn setting_line(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\'', "''"))
}

fn append(path: &Path, text: &str) {
    use std::io::Write;
    let file = File::options().append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.unwrap_or_else(|error| panic!("append to {}: {error}", path.display()));
}

/// A socket in the directory is for anybody who knows the name, as a TCP port is.
fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .expect("chmod a directory of ours");
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
13:13:11.976 UTC [30321]  FATAL:  pre-existing shared memory block (key 1, ID 2) is still in use
13:13:11.976 UTC [30321]  HINT:  Terminate any old server processes associated with data directory
13:13:12.137 UTC [29912] [unknown] FATAL:  terminating connection due to unexpected postmaster exit
";

    #[test]
    fn a_server_that_was_too_early_is_known_whatever_others_say_behind_it() {
        assert!(found_in_use(LOG, 30321));
        assert!(!found_in_use(LOG, 29912));
    }
}
