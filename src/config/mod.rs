//! The configuration: reads YAML, environment and flags, and checks them into plain values. Knows
//! no subsystem: what a template or a connection string means is theirs to say. Every input comes
//! in as an argument.

mod build;
mod check;
mod layers;
mod lists;
mod names;
mod problem;
mod raw;
mod redact;
mod schema;
mod show;
#[cfg(test)]
mod tests;
mod value;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use layers::Override;
pub use lists::{Published, Route, Table};
pub use names::TableName;
pub use raw::Origin;
pub use redact::redact_url;
pub use schema::json_schema;
pub use value::{
    Column, Columns, Field, Format, Ingress, Listen, LogFormat, LogLevel, Manage, OnDelayed,
    OnOversize, OnReject, Preset, Secret, SslMode, Storage, Transactions, duration, duration_text,
};

use crate::error::Failure;
use problem::{ConfigFile, config_failure};
use raw::{Node, Raw};

/// Where a configuration file is looked for when none is named.
pub const SEARCHED: [&str; 2] = ["./outjet.yaml", "/etc/outjet/outjet.yaml"];

/// `config/outjet.yaml`: every key with its default and its meaning.
pub const DEFAULTS: &str = layers::DEFAULTS;

/// Where a configuration comes from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The file that was asked for; it must exist.
    pub file: Option<&'a Path>,
    /// Without one: the first of these that exists.
    pub searched: &'a [&'a str],
    /// The environment.
    pub environment: &'a BTreeMap<String, String>,
    /// What the command line says; later ones go before earlier ones.
    pub overrides: &'a [Override],
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The source database.
    pub postgres: Postgres,
    /// The outbox tables, each once.
    pub tables: Vec<Table>,
    /// Events without a table.
    pub messages: Messages,
    /// The NATS server.
    pub nats: Nats,
    /// The JetStream stream.
    pub stream: Stream,
    /// From row to message.
    pub publish: Publish,
    /// The partitions of `outbox.events`.
    pub retention: Retention,
    /// What is answered to those who watch.
    pub http: Http,
    /// What is logged.
    pub log: Log,
    /// The file that was read.
    pub file: Option<PathBuf>,
    raw: Raw,
}

/// The source database.
#[derive(Debug)]
pub struct Postgres {
    /// Connection string; without one, the PG* variables say everything.
    pub url: Option<Secret>,
    /// Replication slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Goes before what the connection string says.
    pub sslmode: Option<SslMode>,
    /// Goes before what the connection string says.
    pub sslrootcert: Option<String>,
    /// Goes before what the connection string says.
    pub sslcert: Option<String>,
    /// Goes before what the connection string says.
    pub sslkey: Option<String>,
    /// The session's `wal_sender_timeout`.
    pub takeover_after: Duration,
    /// How often a halted copy looks whether the cause is gone.
    pub halt_retry: Duration,
    /// Goes before what the connection string says.
    pub connect_timeout: Option<Duration>,
}

/// Events without a table.
#[derive(Debug)]
pub struct Messages {
    /// Of the logical messages that are events.
    pub prefixes: Vec<String>,
}

/// The NATS server and how to sign in there.
#[derive(Debug)]
pub struct Nats {
    /// One or more servers, separated by commas.
    pub url: Secret,
    /// Name of the connection.
    pub name: String,
    /// Credentials file.
    pub creds: Option<PathBuf>,
    /// NKey seed.
    pub nkey: Option<Secret>,
    /// User name.
    pub user: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Token.
    pub token: Option<Secret>,
    /// TLS.
    pub tls: Tls,
    /// For one server.
    pub connect_timeout: Duration,
    /// Subject under which replies arrive.
    pub inbox_prefix: String,
    /// JetStream domain.
    pub jetstream_domain: Option<String>,
}

/// TLS to NATS. PEM files.
#[derive(Debug)]
pub struct Tls {
    /// Authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key: both or neither.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// TLS before the server says a word.
    pub first: bool,
}

/// The JetStream stream.
#[derive(Debug)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// Its subjects; at least one.
    pub subjects: Vec<String>,
    /// Whether it listens on them.
    pub ingress: Ingress,
    /// Whether others write into it, too.
    pub shared: bool,
    /// Copies in the cluster, 1 to 5.
    pub replicas: u32,
    /// Where it is kept.
    pub storage: Storage,
    /// What becomes of it at start-up.
    pub manage: Manage,
    /// How long message ids are remembered, also where that is not configured.
    pub duplicate_window: Duration,
    /// Age at which a message is dropped.
    pub max_age: Option<Duration>,
    /// Size at which the oldest messages are dropped.
    pub max_bytes: Option<u64>,
    /// How long an event must have been in it before it is confirmed.
    pub hold: Duration,
}

/// From row to message.
#[derive(Debug)]
pub struct Publish {
    /// Template of the subject. Its syntax has not been checked.
    pub subject: String,
    /// In the order in which they are tried. Their syntax has not been checked.
    pub routes: Vec<Route>,
    /// Before every subject.
    pub subject_prefix: Option<String>,
    /// How an event is written.
    pub format: Format,
    /// `ce-source`.
    pub source: Option<String>,
    /// What becomes of an event that cannot be published.
    pub on_reject: OnReject,
    /// What becomes of an event that no message holds.
    pub on_oversize: OnOversize,
    /// Where the bodies of such events go.
    pub claim_check: ClaimCheck,
    /// What becomes of an event whose `deliver_at` lies behind its commit.
    pub delayed: OnDelayed,
    /// How the events of one transaction appear.
    pub transactions: Transactions,
    /// Events in the window.
    pub in_flight_max: usize,
    /// Bytes in the window.
    pub in_flight_bytes_max: usize,
    /// Time for one acknowledgement.
    pub ack_timeout: Duration,
    /// Time for a clean stop.
    pub drain_timeout: Duration,
}

/// Where bodies go that no message holds.
#[derive(Debug)]
pub struct ClaimCheck {
    /// The bucket of the object store.
    pub bucket: String,
    /// How long they are kept; `None` for ever.
    pub max_age: Option<Duration>,
}

/// The partitions of `outbox.events`.
#[derive(Debug)]
pub struct Retention {
    /// Whether they are made and expired.
    pub manage: bool,
    /// How long after its end a partition is dropped.
    pub keep: Duration,
    /// Days to come that have a partition.
    pub ahead_days: u32,
}

/// What is answered to those who watch.
#[derive(Debug)]
pub struct Http {
    /// Where.
    pub listen: Listen,
}

/// What is logged.
#[derive(Debug)]
pub struct Log {
    /// Least severe message.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

impl Nats {
    /// The servers, one by one.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.url.expose().split(',').map(str::trim)
    }
}

impl Config {
    /// Reads every source, and checks what comes of them.
    pub fn load(sources: &Sources<'_>) -> Result<Self, Failure> {
        let config_file = open(sources)?;
        let mut raw = layers::defaults();
        if let Some(config_file) = &config_file {
            raw.overlay(layers::file(config_file)?);
        }
        layers::environment(&mut raw, sources.environment)?;
        layers::flags(&mut raw, sources.overrides)?;
        layers::secret_files(&mut raw, config_file.as_ref())?;
        check::config(raw, config_file.as_ref())
    }
}

#[cfg(any(test, fuzzing))]
impl Config {
    /// Reads a file's text, and nothing that it names.
    pub fn of_text(text: &str) -> Result<Self, Failure> {
        let config_file = ConfigFile {
            path: "outjet.yaml".into(),
            text: text.to_owned(),
        };
        let mut raw = layers::defaults();
        raw.overlay(layers::file(&config_file)?);
        check::config(raw, Some(&config_file))
    }
}

/// The configuration file, if there is one.
fn open(sources: &Sources<'_>) -> Result<Option<ConfigFile>, Failure> {
    if let Some(path) = sources.file {
        return read(path).map(Some);
    }
    let found = sources
        .searched
        .iter()
        .map(Path::new)
        .find(|path| path.exists());
    found.map(read).transpose()
}

fn read(path: &Path) -> Result<ConfigFile, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        config_failure(
            format!("cannot read the configuration file {}", path.display()),
            error.to_string(),
            "name a readable file with -c, or none: every key has a default",
        )
    })?;
    let path = path.to_owned();
    Ok(ConfigFile { path, text })
}
