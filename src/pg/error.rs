//! What can go wrong between us and a Postgres server: one opaque error that says what was being
//! done and why it failed, with predicates by SQLSTATE. What an operator is told is in `failure`.

use std::fmt;
use std::io;
use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;

use super::params::{PassfileError, SslMode};
use super::tls::TlsError;

mod failure;

pub use self::failure::DIRECT;

/// A step of the conversation failed. Match on [`Error::sqlstate`], show [`Error::failure`].
pub struct Error(Box<Inner>);

struct Inner {
    phase: Phase,
    /// `host:port`
    at: String,
    kind: Kind,
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Up to and including TLS.
    Connect,
    /// From the startup packet to the first ReadyForQuery.
    LogIn,
    /// SQL or a replication command.
    Query,
    /// START_REPLICATION.
    Start,
    /// After CopyBothResponse.
    Stream,
}

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Kind {
    #[error("the host name cannot be resolved")]
    Resolve(#[source] io::Error),
    #[error("the server cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the server does not offer TLS")]
    TlsRefused,
    #[error("TLS cannot be set up")]
    TlsSetup(#[source] TlsError),
    #[error("the TLS handshake failed")]
    TlsHandshake(#[source] io::Error),
    #[error("the login is refused here")]
    Auth(#[source] AuthError),
    #[error("the server only reads")]
    ReadOnly,
    #[error("the connection broke")]
    Io(#[source] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server ended the stream")]
    Ended,
    #[error("{0}")]
    Server(ServerMessage),
    #[error("a message of {bytes} bytes is larger than the limit of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("more than {0} rows")]
    TooManyRows(usize),
    #[error("the server sent an unexpected message (type {:?})", char::from(*.0))]
    Unexpected(u8),
    #[error("cannot read {0}")]
    Malformed(&'static str),
    #[error("cannot read a message")]
    Parse(#[source] io::Error),
    #[error("cannot write a message")]
    Encode(#[source] io::Error),
    #[error("the control connection failed")]
    Client(#[source] tokio_postgres::Error),
    #[error("none of {} hosts will do: {}", .0.len(), join(.0))]
    Hosts(Vec<Error>),
}

/// We refuse to log in the way the server asks, or cannot.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthError {
    #[error("the server asks for a password, and none is given")]
    NoPassword,
    #[error("the server asks for a password, and the password file cannot be used")]
    Passfile(#[source] PassfileError),
    #[error("the server asks for the password in clear over an unencrypted connection")]
    Cleartext,
    #[error("the server asks for {0}, which is not supported")]
    Unsupported(&'static str),
    #[error("the server offers only SASL mechanisms that are not supported ({0})")]
    Mechanisms(String),
    #[error("the server offers channel binding over an unencrypted connection")]
    Stripped,
    #[error("channel_binding=require, and {0}")]
    Unbound(&'static str),
    #[error(
        "the password has {iterations} SCRAM iterations, more than the {iterations_max} allowed"
    )]
    Iterations {
        iterations: u64,
        iterations_max: u64,
    },
    #[error("SCRAM failed: the server does not prove that it knows the password")]
    Scram(#[source] io::Error),
}

fn join(errors: &[Error]) -> String {
    let lines: Vec<_> = errors
        .iter()
        .map(|error| crate::error::chain(error))
        .collect();
    lines.join("; ")
}

/// What a server says in an ErrorResponse or NoticeResponse (protocol.sgml, "Error and Notice
/// Message Fields").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerMessage {
    /// Not translated where the server sends it so: ERROR, FATAL, PANIC, WARNING, …
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    /// One line, in the server's language.
    pub message: String,
    /// More lines.
    pub detail: Option<String>,
    /// What to do, in the server's opinion.
    pub hint: Option<String>,
}

impl ServerMessage {
    /// Reads the fields that are of use; text that is not UTF-8 (before the login is complete the
    /// server does not know our encoding) is shown as far as possible.
    pub(super) fn read(mut fields: ErrorFields<'_>) -> Result<Self, Kind> {
        let mut message = Self::default();
        let mut localized = String::new();
        while let Some(field) = fields.next().map_err(Kind::Parse)? {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'S' => localized = value,
                b'V' => message.severity = value,
                b'C' => message.code = value,
                b'M' => message.message = value,
                b'D' => message.detail = Some(value),
                b'H' => message.hint = Some(value),
                // Position, file, line and the like: unknown types are to be ignored.
                _ => {}
            }
        }
        if message.severity.is_empty() {
            message.severity = localized;
        }
        Ok(message)
    }
}

impl From<&tokio_postgres::error::DbError> for ServerMessage {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        Self {
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} (SQLSTATE {})",
            self.severity, self.message, self.code
        )?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl Error {
    pub(super) fn new(phase: Phase, at: impl Into<String>, kind: Kind) -> Self {
        let at = at.into();
        Self(Box::new(Inner { phase, at, kind }))
    }

    /// An error of the control client's, with its server message if it has one.
    pub fn from_client(error: tokio_postgres::Error) -> Self {
        let kind = match error.as_db_error() {
            Some(message) => Kind::Server(message.into()),
            None => Kind::Client(error),
        };
        Self::new(Phase::Query, "", kind)
    }

    /// All hosts failed; never empty. A single error stands for itself.
    pub(super) fn of_hosts(mut errors: Vec<Self>) -> Self {
        match errors.len() {
            1 => errors.swap_remove(0),
            _ => Self::new(Phase::Connect, "", Kind::Hosts(errors)),
        }
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.0.kind
    }

    /// The server's SQLSTATE, if it is the server who failed the step.
    pub fn sqlstate(&self) -> Option<&str> {
        self.server().map(|message| message.code.as_str())
    }

    /// The server's words, if it is the server who failed the step.
    pub fn server(&self) -> Option<&ServerMessage> {
        match &self.0.kind {
            Kind::Server(message) => Some(message),
            _ => None,
        }
    }

    /// The connection is gone without a word, as when the server was killed or threw us out after
    /// `wal_sender_timeout`.
    pub fn closed(&self) -> bool {
        matches!(self.0.kind, Kind::Closed | Kind::Io(_))
    }

    /// The server ended the stream in good order, as it does when it is shut down.
    pub fn ended(&self) -> bool {
        matches!(self.0.kind, Kind::Ended)
    }

    /// Another host of the list may do. After an answer from a server the rest is not tried
    /// (libpq, "Specifying Multiple Hosts"), unless it says that it is not ready.
    pub(super) fn another_host_may_do(&self) -> bool {
        match &self.0.kind {
            Kind::Resolve(_)
            | Kind::Unreachable(_)
            | Kind::Timeout(_)
            | Kind::TlsRefused
            | Kind::TlsHandshake(_)
            | Kind::ReadOnly
            | Kind::Io(_)
            | Kind::Closed => true,
            Kind::Server(message) => message.code == "57P03",
            _ => false,
        }
    }

    /// The same host, asked with or without TLS instead, may do: `pg_hba.conf` tells them apart.
    pub(super) fn other_encryption_may_do(&self, sslmode: SslMode, encrypted: bool) -> bool {
        match &self.0.kind {
            Kind::TlsHandshake(_) => sslmode == SslMode::Prefer,
            Kind::Server(message) => {
                let other = encrypted == (sslmode == SslMode::Prefer);
                message.code == "28000" && other
            }
            _ => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, kind) = (&self.0.at, &self.0.kind);
        f.write_str(match self.0.phase {
            Phase::Connect => "connect to Postgres",
            Phase::LogIn => "log in to Postgres",
            Phase::Query => "run a command on Postgres",
            Phase::Start => "start replication from Postgres",
            Phase::Stream => "stream from Postgres",
        })?;
        match at.as_str() {
            "" => write!(f, ": {kind}"),
            at => write!(f, " at {at}: {kind}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("phase", &self.0.phase)
            .field("at", &self.0.at)
            .field("kind", &self.0.kind)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0.kind)
    }
}
