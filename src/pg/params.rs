//! Where and how to connect, read as libpq reads it: a URL or keyword string, the `PG*`
//! environment, defaults. Opens no connection and reads no file (`.pgpass` and certificates are
//! read when a server is connected, so that rotated ones are picked up).

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Exit, Failure, Problem};
use crate::net::Network;

mod dsn;
mod given;
pub(super) mod passfile;
#[cfg(test)]
mod tests;

use given::Given;
pub use passfile::PassfileError;

/// Everything that decides a connection. `Debug` hides the password; `Display` is
/// `host:port/dbname as user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// Tried in this order; never empty.
    pub hosts: Vec<Host>,
    /// The role to log in as.
    pub user: String,
    /// Given outright; else `passfile` is asked.
    pub password: Option<Secret>,
    /// `.pgpass`, or `PGPASSFILE`.
    pub passfile: Option<PathBuf>,
    /// The database.
    pub dbname: String,
    /// How much TLS is wanted.
    pub sslmode: SslMode,
    /// Whether TLS starts with an SSLRequest or at the first byte (Postgres 17 and newer).
    pub sslnegotiation: SslNegotiation,
    /// Whom to trust; `None` means `root.crt` in `ssl_directory`, if it exists.
    pub sslrootcert: Option<RootCert>,
    /// Client certificate; `None` means `postgresql.crt` in `ssl_directory`, if it exists.
    pub sslcert: Option<PathBuf>,
    /// Key of the client certificate; `None` means `postgresql.key` in `ssl_directory`.
    pub sslkey: Option<PathBuf>,
    /// Send the host name in the TLS handshake.
    pub sslsni: bool,
    /// `~/.postgresql`.
    pub ssl_directory: Option<PathBuf>,
    /// Whether the login must be bound to the TLS session.
    pub channel_binding: ChannelBinding,
    /// For each address, login included; `None` waits for ever.
    pub connect_timeout: Option<Duration>,
    /// TCP keepalive probes; `None` turns them off.
    pub keepalives: Option<Keepalives>,
    /// `TCP_USER_TIMEOUT`, where the system has it.
    pub tcp_user_timeout: Option<Duration>,
    /// Seen in `pg_stat_replication`, and a name for `synchronous_standby_names`.
    pub application_name: String,
    /// Command-line options for the server process.
    pub options: Option<String>,
    /// Which of the hosts will do.
    pub target_session_attrs: TargetSessionAttrs,
    /// What connections are made with.
    pub network: Network,
}

impl Params {
    /// Reads `dsn` (`""`: only the environment and defaults); `env` looks up an environment
    /// variable. What the string says counts more than the environment.
    pub fn parse(dsn: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ParamsError> {
        let mut given = Given::collect(dsn, env)?;
        let user = match given.take("user") {
            Some(user) => user,
            None => whoami::username().map_err(|_| ParamsError::NoUser)?,
        };
        let home = env("HOME")
            .filter(|home| !home.is_empty())
            .map(PathBuf::from);
        let sslrootcert = given.take("sslrootcert").map(RootCert::from);
        let passfile = given.take("passfile").map(PathBuf::from);
        given.refuse_unsupported()?;
        let sslmode = given.sslmode(sslrootcert.as_ref())?;
        Ok(Self {
            hosts: given.hosts()?,
            password: given.take("password").map(Secret::new),
            passfile: passfile.or_else(|| Some(home.as_ref()?.join(".pgpass"))),
            dbname: given.take("dbname").unwrap_or_else(|| user.clone()),
            user,
            sslmode,
            sslnegotiation: given.sslnegotiation(sslmode)?,
            sslrootcert,
            sslcert: given.take("sslcert").map(PathBuf::from),
            sslkey: given.take("sslkey").map(PathBuf::from),
            sslsni: given.number("sslsni")?.is_none_or(|sni| sni != 0),
            ssl_directory: home.map(|home| home.join(".postgresql")),
            channel_binding: given.parse_or_default("channel_binding")?,
            connect_timeout: given.timeout("connect_timeout", Some(CONNECT_TIMEOUT))?,
            keepalives: given.keepalives()?,
            tcp_user_timeout: given.milliseconds("tcp_user_timeout")?,
            application_name: given
                .take("application_name")
                .or_else(|| given.take("fallback_application_name"))
                .unwrap_or_else(|| APPLICATION_NAME.to_owned()),
            options: given.take("options"),
            target_session_attrs: given.parse_or_default("target_session_attrs")?,
            network: Network::default(),
        })
    }
}

/// How outjet's connections call themselves; an instance may add to it.
pub const APPLICATION_NAME: &str = "outjet";

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if at == 0 { "" } else { "," })?;
        }
        write!(f, "/{} as {}", self.dbname, self.user)
    }
}

/// libpq waits for ever; a standby must get on to the next host. A TLS login across the world takes
/// one or two seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One server. `Display` is `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name or directory.
    pub address: Address,
    /// Also the suffix of a Unix socket's file name.
    pub port: u16,
}

impl Host {
    /// The name under which `.pgpass` knows it: the default socket directory is `localhost` there.
    pub(super) fn passfile_name(&self) -> &str {
        match &self.address {
            Address::Tcp { name, .. } => name,
            Address::Unix(directory) => match directory.to_str() {
                Some(path) if !SOCKET_DIRECTORIES.contains(&path) => path,
                _ => "localhost",
            },
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp { name, .. } if name.contains(':') => write!(f, "[{name}]")?,
            Address::Tcp { name, .. } => f.write_str(name)?,
            Address::Unix(directory) => write!(f, "{}", directory.display())?,
        }
        write!(f, ":{}", self.port)
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// By name, which is also what its certificate must say; `addr` saves the look-up (`hostaddr`).
    Tcp {
        /// Host name or IP address.
        name: String,
        /// Where to connect to instead of resolving `name`.
        addr: Option<IpAddr>,
    },
    /// The directory of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    fn from_host(host: &str, port: u16) -> Self {
        match host {
            "" => default_address(port),
            path if path.starts_with('/') => Self::Unix(PathBuf::from(path)),
            name => Self::Tcp {
                name: name.to_owned(),
                addr: None,
            },
        }
    }
}

/// Compiled-in defaults of Debian's and of the project's own builds.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// libpq: the socket directory it was compiled with. We cannot know that: the first one with a
/// socket for this port, else `localhost`.
fn default_address(port: u16) -> Address {
    let directory = SOCKET_DIRECTORIES
        .into_iter()
        .map(Path::new)
        .find(|directory| directory.join(format!(".s.PGSQL.{port}")).exists());
    match directory {
        Some(directory) => Address::Unix(directory.to_owned()),
        None => Address::from_host("localhost", port),
    }
}

/// A password. Neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The only way to it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// An enum whose variants are words of a connection string.
macro_rules! keyword_enum {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl FromStr for $name {
            type Err = &'static str;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(concat!("one of", $(" ", $word),+)),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word,)+ })
            }
        }
    };
}

keyword_enum! {
    /// How much TLS is wanted, weakest first.
    SslMode {
        /// Never.
        Disable = "disable",
        /// Only if the server refuses the login without.
        Allow = "allow",
        /// If the server can.
        #[default]
        Prefer = "prefer",
        /// Or no connection. The certificate is checked only if there is a root file.
        Require = "require",
        /// With a certificate from a trusted authority, whatever its name.
        VerifyCa = "verify-ca",
        /// And the certificate is the host's.
        VerifyFull = "verify-full",
    }
}

keyword_enum! {
    /// How TLS starts.
    SslNegotiation {
        /// With an SSLRequest.
        #[default]
        Postgres = "postgres",
        /// At once, with the ALPN protocol `postgresql`.
        Direct = "direct",
    }
}

keyword_enum! {
    /// Whether SCRAM is bound to the TLS session (`tls-server-end-point`).
    ChannelBinding {
        /// Never.
        Disable = "disable",
        /// If server and certificate can.
        #[default]
        Prefer = "prefer",
        /// Or no login.
        Require = "require",
    }
}

keyword_enum! {
    /// Which servers will do. Those that only read are of no use here, so libpq's other words are
    /// not known.
    TargetSessionAttrs {
        /// All.
        #[default]
        Any = "any",
        /// A server whose sessions may write by default.
        ReadWrite = "read-write",
        /// A server that is not in recovery.
        Primary = "primary",
    }
}

/// TCP keepalive probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalives {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Between probes; the system's default if `None`.
    pub interval: Option<Duration>,
    /// Lost probes until the connection counts as dead; the system's default if `None`.
    pub count: Option<u32>,
}

impl Default for Keepalives {
    /// 15 s: the control connection has no status updates of its own, and a NAT gateway forgets
    /// quiet connections after as little as a few minutes.
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(15),
            interval: None,
            count: None,
        }
    }
}

/// Whom `verify-ca` and `verify-full` trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCert {
    /// What the system trusts.
    System,
    /// The certificates in this PEM file.
    File(PathBuf),
}

impl From<String> for RootCert {
    fn from(value: String) -> Self {
        match value.as_str() {
            "system" => Self::System,
            _ => Self::File(PathBuf::from(value)),
        }
    }
}

/// A connection string or `PG*` variable that cannot be used. Never shows a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// `mysql://…`
    #[error("\"{0}://\" is no Postgres URL")]
    Scheme(String),
    /// Neither a URL nor keywords.
    #[error("the connection string cannot be read: {0}")]
    Syntax(&'static str),
    /// Not a keyword of libpq's.
    #[error("unknown connection parameter \"{keyword}\"{}", did_you_mean(nearest))]
    Unknown {
        /// As given.
        keyword: String,
        /// The most similar keyword.
        nearest: Option<&'static str>,
    },
    /// A keyword of libpq's that is not done here.
    #[error("connection parameter \"{keyword}\" is not supported: {reason}")]
    Unsupported {
        /// As given.
        keyword: &'static str,
        /// What stands in its way or is used instead.
        reason: &'static str,
    },
    /// A value that its keyword does not take.
    #[error("invalid {keyword} \"{value}\": expected {expected}")]
    Value {
        /// As given.
        keyword: &'static str,
        /// As given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// Not shown: where a password is not percent-encoded, a part of it stands here.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// Lists that do not belong together.
    #[error("{hosts} hosts, but {others} {keyword} values")]
    Count {
        /// Number of hosts.
        hosts: usize,
        /// `port` or `hostaddr`.
        keyword: &'static str,
        /// Number of those.
        others: usize,
    },
    /// Trusting everybody the system trusts, for any name, would be no check at all.
    #[error("sslrootcert=system needs sslmode=verify-full, not {0}")]
    WeakSslMode(SslMode),
    /// Neither given nor known to the system.
    #[error("no user is given, and the system has no name for ours")]
    NoUser,
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |nearest| {
        format!(" (did you mean \"{nearest}\"?)")
    })
}

impl ParamsError {
    /// In three lines; always a matter of configuration.
    pub fn failure(&self) -> Failure {
        let fix = match self {
            Self::Port | Self::Syntax(_) => {
                "write it as postgres://user:password@host:5432/dbname; in the password \
                 percent-encode / as %2F, @ as %40, : as %3A, ? as %3F and % as %25"
            }
            Self::NoUser => "name the role: postgres://user@host/dbname, or PGUSER=user",
            Self::Scheme(_) => "write it as postgres://user:password@host:5432/dbname",
            Self::Unknown { .. } | Self::Unsupported { .. } | Self::Value { .. } => {
                "correct or remove the parameter in the connection string or the PG* environment"
            }
            Self::Count { .. } => "give one port for all hosts, or as many values as hosts",
            Self::WeakSslMode(_) => "set sslmode=verify-full, or name the file of your authority",
        };
        let problem = Problem::new(
            "the Postgres connection is misconfigured",
            self.to_string(),
            fix,
        );
        Failure::halt(Exit::Config, problem)
    }
}
