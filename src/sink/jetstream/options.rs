//! What the JetStream sink must be told. The configuration builds it; nothing here reads files.

use std::path::PathBuf;
use std::time::Duration;

/// Everything the sink must be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to reach NATS.
    pub nats: NatsOptions,
    /// The stream that is appended to.
    pub stream: StreamOptions,
    /// Most events sent and not acknowledged. A server queues 10 000 (2.11) or 100 000 (2.12)
    /// messages a stream and refuses more; beyond 4096 nothing gets faster.
    pub in_flight_max: usize,
    /// Most bytes of events that are ever handed over and not settled.
    pub in_flight_bytes_max: usize,
    /// How long events may be in flight without a single acknowledgement.
    pub ack_timeout: Duration,
}

/// How to reach NATS. All ways of authentication can be combined.
#[derive(Clone)]
pub struct NatsOptions {
    /// URLs, tried in turn.
    pub servers: Vec<String>,
    /// The name of the connection, for `nats server report connections`.
    pub name: String,
    /// A user name.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// A token.
    pub token: Option<String>,
    /// An NKey seed.
    pub nkey: Option<String>,
    /// A credentials file: JWT and seed. Read again for every connection.
    pub creds: Option<PathBuf>,
    /// Certificate authorities, instead of the system's.
    pub tls_ca: Option<PathBuf>,
    /// The client's certificate and key.
    pub tls_client: Option<(PathBuf, PathBuf)>,
    /// Whether the server wants TLS before it says anything.
    pub tls_first: bool,
    /// For the connection and each request on it.
    pub connect_timeout: Duration,
    /// The prefix of reply subjects; `_INBOX` if `None`.
    pub inbox_prefix: Option<String>,
    /// The JetStream domain.
    pub domain: Option<String>,
}

/// Shows no secrets.
impl std::fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsOptions")
            .field("servers", &self.display())
            .finish_non_exhaustive()
    }
}

impl NatsOptions {
    /// The servers without user information, for messages.
    pub fn display(&self) -> String {
        let hidden = self
            .servers
            .iter()
            .map(|server| match server.rsplit_once('@') {
                Some((before, host)) => {
                    let scheme = before
                        .split_once("://")
                        .map_or("nats", |(scheme, _)| scheme);
                    format!("{scheme}://{host}")
                }
                None => server.clone(),
            });
        hidden.collect::<Vec<_>>().join(",")
    }
}

/// The stream that is appended to, and how it is made if it is missing.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Its name.
    pub name: String,
    /// What it listens on.
    pub subjects: Vec<String>,
    /// Copies in the cluster.
    pub replicas: usize,
    /// File, or memory.
    pub storage: Storage,
    /// Whether a missing stream is created.
    pub create: bool,
    /// How long the server remembers message ids: about 200 bytes each.
    pub duplicate_window: Duration,
    /// How long messages are kept; zero for ever.
    pub max_age: Duration,
    /// How many bytes are kept before the server refuses more; `None` without limit.
    pub max_bytes: Option<u64>,
}

/// Where a stream keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory: lost with the servers.
    Memory,
}
