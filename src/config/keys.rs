//! Every key there is: its section, name and meaning, the type of its value, and the limits of that
//! value alone. The defaults are the values in `config/outjet.yaml`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::limits::{
    KEEPS, STREAM_TIMES, check_prefixes, check_routes, check_servers, check_subjects, check_tables,
    lasting, not_empty, within,
};
use super::lists::{Route, Table};
use super::names::{check_bucket, check_prefix, check_publication, check_slot, check_stream};
use super::section::{Part, SecretFile, section};
use super::value::{
    Bytes, Format, Ingress, Listen, LogFormat, LogLevel, Manage, OnDelayed, OnOversize, OnReject,
    Secret, SslMode, Storage, Transactions, Url,
};

/// The whole file as it is written.
pub(super) type Raw = <Sections as Part>::Raw;

/// Limits of the durations that the world has to keep. Below, networks are slower than that; above,
/// a typo is likelier than the wish.
const WAITS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);
/// From the briefest that Postgres's own timer is good for, to where a takeover is no takeover.
const TAKEOVERS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// More often would only fill the servers' logs; less often nobody would wait for.
const HALT_RETRIES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const DRAINS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
const HOLDS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// More than that in flight only waits in the server's queue.
const IN_FLIGHT: RangeInclusive<u32> = 1..=16_384;
/// Below, one ordinary event fills the window; above, memory is no longer small.
const IN_FLIGHT_BYTES: RangeInclusive<Bytes> = Bytes(64 << 10)..=Bytes(1 << 30);
/// nats-server's `StreamMaxReplicas`.
const REPLICAS: RangeInclusive<u32> = 1..=5;
/// JetStream counts bytes in an `i64`.
const STREAM_BYTES: RangeInclusive<Bytes> = Bytes(0)..=Bytes(i64::MAX.unsigned_abs());
/// Each is a table; a year of them is more than anybody needs ahead.
const DAYS_AHEAD: RangeInclusive<u32> = 1..=365;

section! {
    /// The whole file.
    Sections {
        /// The source database.
        postgres: Postgres,
        /// The outbox tables.
        tables: Vec<Table> where check_tables,
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
    /// The source database.
    Postgres {
        /// Connection string: a URL or libpq keywords. What it lacks comes from the PG* variables.
        url: Option<Url> => Option<Secret> = secret_if_any,
        /// File that holds the connection string.
        url_file: SecretFile,
        /// Replication slot. Also the lock: who holds it leads.
        slot: String where check_slot,
        /// Publication with the outbox tables.
        publication: String where check_publication,
        /// TLS, in libpq's terms; goes before what the URL says.
        sslmode: Option<SslMode>,
        /// PEM file with the authorities to trust, or `system`.
        sslrootcert: Option<String>,
        /// PEM file with the client's certificate.
        sslcert: Option<String>,
        /// PEM file with the client's key.
        sslkey: Option<String>,
        /// How long a hung leader keeps the slot from a standby.
        takeover_after: Duration where within(TAKEOVERS),
        /// How often a halted copy looks whether the cause is gone.
        halt_retry: Duration where within(HALT_RETRIES),
        /// How long connecting to one host may take; goes before what the URL says.
        connect_timeout: Option<Duration> where within(WAITS),
    }
}

section! {
    /// Events without a table.
    Messages {
        /// Prefixes of the logical messages that are events.
        prefixes: Vec<String> where check_prefixes,
    }
}

section! {
    /// The NATS server and how to sign in there.
    Nats {
        /// Servers, separated by commas.
        url: Url where check_servers => Secret = secret,
        /// File that holds the servers.
        url_file: SecretFile,
        /// Name of the connection, as the server lists it.
        name: String,
        /// Credentials file (JWT and seed).
        creds: Option<PathBuf>,
        /// NKey seed, or the file that holds it.
        nkey: Option<Secret>,
        /// File that holds the NKey seed.
        nkey_file: SecretFile,
        /// User name.
        user: Option<String>,
        /// Password.
        password: Option<Secret>,
        /// File that holds the password.
        password_file: SecretFile,
        /// Token.
        token: Option<Secret>,
        /// File that holds the token.
        token_file: SecretFile,
        /// TLS.
        tls: Tls,
        /// How long connecting to one server may take.
        connect_timeout: Duration where within(WAITS),
        /// Subject under which replies arrive.
        inbox_prefix: String where check_prefix,
        /// JetStream domain.
        jetstream_domain: Option<String>,
    }
}

section! {
    /// TLS to NATS. `cert` and `key` are both there, or neither.
    Tls {
        /// PEM file with the authorities to trust; without it, the system's.
        ca: Option<PathBuf>,
        /// PEM file with the client's certificate.
        cert: Option<PathBuf>,
        /// PEM file with the client's key.
        key: Option<PathBuf>,
        /// TLS before the server says a word (handshake_first).
        first: bool,
    }
}

section! {
    /// The JetStream stream.
    Stream {
        /// Name of the stream.
        name: String where check_stream,
        /// Subjects of the stream.
        subjects: Vec<String> where check_subjects,
        /// Whether it takes events on those, or on subjects of outjet's own.
        ingress: Ingress,
        /// Whether others write into it, too.
        shared: bool,
        /// Copies in the cluster.
        replicas: u32 where within(REPLICAS),
        /// Where JetStream keeps it.
        storage: Storage,
        /// What becomes of the stream at start-up.
        manage: Manage,
        /// How long the server remembers message ids.
        duplicate_window: Option<Duration> where within(STREAM_TIMES) => Duration = set_later,
        /// Age at which the server drops a message; 0s: never.
        max_age: Duration where lasting => Option<Duration> = unless_zero,
        /// Size at which the stream is full: further events wait in Postgres; 0B: without limit.
        max_bytes: Bytes where within(STREAM_BYTES) => Option<u64> = unless_empty,
        /// How long an event must have been in the stream before it is confirmed to Postgres.
        hold: Duration where within(HOLDS),
    }
}

section! {
    /// From row to message. The syntax of `subject` and `routes` has not been checked.
    Publish {
        /// Template of the subject, for rows without a topic.
        subject: String where not_empty,
        /// Subjects to change: the first match wins.
        routes: Vec<Route> where check_routes,
        /// Tokens before every subject, for a run beside an old relay.
        subject_prefix: Option<String> where check_prefix,
        /// How an event is written as a message.
        format: Format,
        /// The attribute ce-source; without it, `/<database>/<schema>.<table>`.
        source: Option<String> where not_empty,
        /// What becomes of an event that cannot be published.
        on_reject: OnReject,
        /// What becomes of an event that no message holds; without it, what on_reject says.
        on_oversize: Option<OnOversize>,
        /// Where the bodies of such events go.
        claim_check: ClaimCheck,
        /// What becomes of an event whose `deliver_at` lies behind its commit.
        delayed: OnDelayed,
        /// How the events of one transaction appear in the stream.
        transactions: Transactions,
        /// Events that may be under way at once.
        in_flight_max: u32 where within(IN_FLIGHT),
        /// Bytes that may be under way at once.
        in_flight_bytes_max: Bytes where within(IN_FLIGHT_BYTES) => usize = in_memory,
        /// How long the server may take to say that it has stored an event.
        ack_timeout: Duration where within(WAITS),
        /// How long a clean stop waits for what is under way.
        drain_timeout: Duration where within(DRAINS),
    }
}

section! {
    /// Where bodies go that no message holds.
    ClaimCheck {
        /// Bucket of the object store.
        bucket: String where check_bucket,
        /// Age at which the server drops a body; without it, stream.max_age; 0s: never.
        max_age: Option<Duration> where lasting,
    }
}

section! {
    /// The partitions of `outbox.events`.
    Retention {
        /// Whether partitions are made and expired.
        manage: bool,
        /// How long after its end a partition is dropped.
        keep: Duration where within(KEEPS),
        /// Days to come that have a partition.
        ahead_days: u32 where within(DAYS_AHEAD),
    }
}

section! {
    /// What is answered to those who watch.
    Http {
        /// Address and port, or off.
        listen: Listen,
    }
}

section! {
    /// What is logged.
    Log {
        /// Least severe message that is logged.
        level: LogLevel,
        /// How a line looks.
        format: LogFormat,
    }
}

fn secret(Url(url): Url) -> Secret {
    url
}

fn secret_if_any(url: Option<Url>) -> Option<Secret> {
    url.map(secret)
}

fn in_memory(Bytes(bytes): Bytes) -> usize {
    bytes as usize
}

/// 0s: never.
fn unless_zero(age: Duration) -> Option<Duration> {
    (!age.is_zero()).then_some(age)
}

/// 0B: without limit.
fn unless_empty(Bytes(bytes): Bytes) -> Option<u64> {
    (bytes != 0).then_some(bytes)
}

/// Without a value, it depends on other keys, and `check` sets it.
fn set_later(window: Option<Duration>) -> Duration {
    window.unwrap_or_default()
}
