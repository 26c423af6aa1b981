//! The configuration as it is written, key by key and layer by layer: every key there is, where
//! its value came from, and nothing about what it means. The keys stand here and nowhere else;
//! their defaults are the values in `config/outjet.yaml`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_saphyr::{Location, Spanned};

use super::lists::{Routes, Tables, Texts};
use super::value::{
    Bytes, Format, Ingress, Listen, LogFormat, LogLevel, Manage, OnDelayed, OnOversize, OnReject,
    Secret, Setting, SslMode, Storage, Transactions, Url,
};

/// Where a value came from; what stands further down goes before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `config/outjet.yaml`, which is part of the program.
    Default,
    /// The configuration file.
    File(Location),
    /// A variable that other programs know, too: `DATABASE_URL`.
    Conventional(String),
    /// A variable that only outjet knows: `OUTJET_STREAM__NAME`.
    Variable(String),
    /// A flag on the command line.
    Flag(String),
}

impl Origin {
    /// A value of a higher rank goes before one of a lower.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File(_) => 1,
            Self::Conventional(_) => 2,
            Self::Variable(_) => 3,
            Self::Flag(_) => 4,
        }
    }
}

/// A value as it was written.
pub(super) struct Given<T: Setting> {
    pub(super) written: T::Written,
    pub(super) origin: Origin,
}

impl<T: Setting> fmt::Debug for Given<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", T::shown(&self.written), self.origin)
    }
}

impl<'de, T: Setting> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T::Written>::deserialize(deserializer)?;
        Ok(Self {
            written: spanned.value,
            origin: Origin::File(spanned.referenced),
        })
    }
}

/// A key that can have a value.
#[derive(Debug)]
pub(super) struct Key {
    /// `section.key`.
    pub(super) path: String,
    /// One sentence.
    pub(super) about: String,
    /// The JSON Schema of its value.
    pub(super) schema: Value,
}

/// Why a text cannot be the value of a key.
#[derive(Debug)]
pub(super) enum SetError {
    NoSuchKey,
    Yaml(Box<serde_saphyr::Error>),
}

/// A value for a person: as YAML without secrets, and where it came from.
pub(super) type Shown<'a> = (String, &'a Origin);

/// Takes each key with its path and, if it has one, its value.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&str, Option<Shown<'_>>);

/// A section of keys, or one key.
pub(super) trait Node {
    /// Adds every key from here on.
    fn keys(path: &str, about: &str, keys: &mut Vec<Key>);
    /// Takes what `over` has.
    fn overlay(&mut self, over: Self);
    /// Gives the key at `path` the value that is written as `text`.
    fn set(&mut self, path: &str, text: &str, origin: Origin) -> Result<(), SetError>;
    /// Marks everything here as the default.
    fn make_default(&mut self);
    /// Calls `visit` for each key.
    fn each(&self, path: &str, visit: Visit<'_>);
}

impl<T: Setting> Node for Option<Given<T>> {
    fn keys(path: &str, about: &str, keys: &mut Vec<Key>) {
        keys.push(Key {
            path: path.to_owned(),
            about: about.trim().to_owned(),
            schema: T::schema(),
        });
    }

    fn overlay(&mut self, over: Self) {
        if over.is_some() {
            *self = over;
        }
    }

    fn set(&mut self, path: &str, text: &str, origin: Origin) -> Result<(), SetError> {
        if !path.is_empty() {
            return Err(SetError::NoSuchKey);
        }
        let written = T::from_text(text).map_err(SetError::Yaml)?;
        *self = Some(Given { written, origin });
        Ok(())
    }

    fn make_default(&mut self) {
        if let Some(given) = self {
            given.origin = Origin::Default;
        }
    }

    fn each(&self, path: &str, visit: Visit<'_>) {
        let shown = |given: &Given<T>| T::shown(&given.written);
        visit(
            path,
            self.as_ref().map(|given| (shown(given), &given.origin)),
        );
    }
}

/// Lets a key or a section stand without a value (`nats:` with everything below it commented out).
fn nothing_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

/// Declares a section: a struct that YAML can be read into, and its [`Node`].
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident { $($(#[doc = $doc:literal])+ $key:ident: $kind:ty,)+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name {
            $(
                $(#[doc = $doc])+
                #[serde(deserialize_with = "nothing_is_default")]
                pub(super) $key: $kind
            ),+
        }

        impl Node for $name {
            fn keys(path: &str, _: &str, keys: &mut Vec<Key>) {
                $(<$kind as Node>::keys(&join(path, stringify!($key)), concat!($($doc),+), keys);)+
            }

            fn overlay(&mut self, over: Self) {
                $(self.$key.overlay(over.$key);)+
            }

            fn set(&mut self, path: &str, text: &str, origin: Origin) -> Result<(), SetError> {
                let (key, rest) = path.split_once('.').unwrap_or((path, ""));
                match key {
                    $(stringify!($key) => self.$key.set(rest, text, origin),)+
                    _ => Err(SetError::NoSuchKey),
                }
            }

            fn make_default(&mut self) {
                $(self.$key.make_default();)+
            }

            fn each(&self, path: &str, visit: Visit<'_>) {
                $(self.$key.each(&join(path, stringify!($key)), visit);)+
            }
        }
    };
}

type Leaf<T> = Option<Given<T>>;

section! {
    /// The whole file.
    Raw {
        /// The source database.
        postgres: Postgres,
        /// The outbox tables.
        tables: Leaf<Tables>,
        /// Events without a table.
        messages: Messages,
        /// The NATS server.
        nats: Nats,
        /// The JetStream stream.
        stream: Stream,
        /// From row to message.
        publish: Publish,
        /// The partitions of `outbox.events`.
        retention: Retention,
        /// What is answered to those who watch.
        http: Http,
        /// What is logged.
        log: Log,
    }
}

section! {
    /// `postgres`.
    Postgres {
        /// Connection string: a URL or libpq keywords. What it lacks comes from the PG* variables.
        url: Leaf<Url>,
        /// File that holds the connection string.
        url_file: Leaf<String>,
        /// Replication slot. Also the lock: who holds it leads.
        slot: Leaf<String>,
        /// Publication with the outbox tables.
        publication: Leaf<String>,
        /// TLS, in libpq's terms; goes before what the URL says.
        sslmode: Leaf<SslMode>,
        /// PEM file with the authorities to trust, or `system`.
        sslrootcert: Leaf<String>,
        /// PEM file with the client's certificate.
        sslcert: Leaf<String>,
        /// PEM file with the client's key.
        sslkey: Leaf<String>,
        /// How long a hung leader keeps the slot from a standby.
        takeover_after: Leaf<Duration>,
        /// How often a halted copy looks whether the cause is gone.
        halt_retry: Leaf<Duration>,
        /// How long connecting to one host may take; goes before what the URL says.
        connect_timeout: Leaf<Duration>,
    }
}

section! {
    /// `messages`.
    Messages {
        /// Prefixes of the logical messages that are events.
        prefixes: Leaf<Texts>,
    }
}

section! {
    /// `nats`.
    Nats {
        /// Servers, separated by commas.
        url: Leaf<Url>,
        /// File that holds the servers.
        url_file: Leaf<String>,
        /// Name of the connection, as the server lists it.
        name: Leaf<String>,
        /// Credentials file (JWT and seed).
        creds: Leaf<String>,
        /// NKey seed, or the file that holds it.
        nkey: Leaf<Secret>,
        /// File that holds the NKey seed.
        nkey_file: Leaf<String>,
        /// User name.
        user: Leaf<String>,
        /// Password.
        password: Leaf<Secret>,
        /// File that holds the password.
        password_file: Leaf<String>,
        /// Token.
        token: Leaf<Secret>,
        /// File that holds the token.
        token_file: Leaf<String>,
        /// TLS.
        tls: Tls,
        /// How long connecting to one server may take.
        connect_timeout: Leaf<Duration>,
        /// Subject under which replies arrive.
        inbox_prefix: Leaf<String>,
        /// JetStream domain.
        jetstream_domain: Leaf<String>,
    }
}

section! {
    /// `nats.tls`.
    Tls {
        /// PEM file with the authorities to trust; without it, the system's.
        ca: Leaf<String>,
        /// PEM file with the client's certificate.
        cert: Leaf<String>,
        /// PEM file with the client's key.
        key: Leaf<String>,
        /// TLS before the server says a word (handshake_first).
        first: Leaf<bool>,
    }
}

section! {
    /// `stream`.
    Stream {
        /// Name of the stream.
        name: Leaf<String>,
        /// Subjects of the stream.
        subjects: Leaf<Texts>,
        /// Whether it takes events on those, or on subjects of outjet's own.
        ingress: Leaf<Ingress>,
        /// Whether others write into it, too.
        shared: Leaf<bool>,
        /// Copies in the cluster.
        replicas: Leaf<u32>,
        /// Where JetStream keeps it.
        storage: Leaf<Storage>,
        /// What becomes of the stream at start-up.
        manage: Leaf<Manage>,
        /// How long the server remembers message ids.
        duplicate_window: Leaf<Duration>,
        /// Age at which the server drops a message; 0s: never.
        max_age: Leaf<Duration>,
        /// Size at which the stream is full: further events wait in Postgres; 0B: without limit.
        max_bytes: Leaf<Bytes>,
        /// How long an event must have been in the stream before it is confirmed to Postgres.
        hold: Leaf<Duration>,
    }
}

section! {
    /// `publish`.
    Publish {
        /// Template of the subject, for rows without a topic.
        subject: Leaf<String>,
        /// Subjects to change: the first match wins.
        routes: Leaf<Routes>,
        /// Tokens before every subject, for a run beside an old relay.
        subject_prefix: Leaf<String>,
        /// How an event is written as a message.
        format: Leaf<Format>,
        /// The attribute ce-source; without it, `/<database>/<schema>.<table>`.
        source: Leaf<String>,
        /// What becomes of an event that cannot be published.
        on_reject: Leaf<OnReject>,
        /// What becomes of an event that no message holds; without it, what on_reject says.
        on_oversize: Leaf<OnOversize>,
        /// Where the bodies of such events go.
        claim_check: ClaimCheck,
        /// What becomes of an event whose `deliver_at` lies behind its commit.
        delayed: Leaf<OnDelayed>,
        /// How the events of one transaction appear in the stream.
        transactions: Leaf<Transactions>,
        /// Events that may be under way at once.
        in_flight_max: Leaf<u32>,
        /// Bytes that may be under way at once.
        in_flight_bytes_max: Leaf<Bytes>,
        /// How long the server may take to say that it has stored an event.
        ack_timeout: Leaf<Duration>,
        /// How long a clean stop waits for what is under way.
        drain_timeout: Leaf<Duration>,
    }
}

section! {
    /// `publish.claim_check`.
    ClaimCheck {
        /// Bucket of the object store.
        bucket: Leaf<String>,
        /// Age at which the server drops a body; without it, stream.max_age; 0s: never.
        max_age: Leaf<Duration>,
    }
}

section! {
    /// `retention`.
    Retention {
        /// Whether partitions are made and expired.
        manage: Leaf<bool>,
        /// How long after its end a partition is dropped.
        keep: Leaf<Duration>,
        /// Days to come that have a partition.
        ahead_days: Leaf<u32>,
    }
}

section! {
    /// `http`.
    Http {
        /// Address and port, or off.
        listen: Leaf<Listen>,
    }
}

section! {
    /// `log`.
    Log {
        /// Least severe message that is logged.
        level: Leaf<LogLevel>,
        /// How a line looks.
        format: Leaf<LogFormat>,
    }
}

impl Raw {
    /// Every key, in the order of the documentation.
    pub(super) fn all_keys() -> Vec<Key> {
        let mut keys = Vec::new();
        Self::keys("", "", &mut keys);
        keys
    }
}
