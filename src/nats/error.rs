//! What can go wrong between us and a NATS server, and what it means for whoever waits.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::wire::Malformed;
use crate::error::chain;
use crate::tls::SetupError;

/// There is no connection, and why. Match on [`kind`](Self::kind), or ask what it means.
pub struct ConnectError(Box<Inner>);

struct Inner {
    /// `host:port`, empty if it is about all of them.
    at: String,
    kind: ConnectErrorKind,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectErrorKind {
    /// A server's URL is none.
    #[error("{url:?} is not a server address: {reason}")]
    Address {
        /// Without user information.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no server in the list.
    #[error("no server is named")]
    NoServer,
    /// A user, key or file to sign in with cannot be used. Nothing was sent.
    #[error("the credentials cannot be used")]
    Credentials(#[source] CredentialsError),
    /// DNS.
    #[error("the host name cannot be resolved")]
    Resolve(#[source] io::Error),
    /// TCP.
    #[error("the server cannot be reached")]
    Unreachable(#[source] io::Error),
    /// Until signed in.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// TLS is wanted.
    #[error("the server does not offer TLS")]
    TlsRefused,
    /// A file, above all.
    #[error("TLS cannot be set up")]
    TlsSetup(#[source] SetupError),
    /// A certificate, above all; the server's or ours.
    #[error("the TLS handshake failed")]
    TlsHandshake(#[source] io::Error),
    /// The server does not know us.
    #[error("the server says: {0}")]
    Refused(String),
    /// The server knows us, and lets us in no longer.
    #[error("the server says: {0}")]
    Expired(String),
    /// The server does not want us for another reason.
    #[error("the server says: {0}")]
    Server(String),
    /// Another server should be used.
    #[error("the server is about to shut down")]
    LameDuck,
    /// Before we were signed in.
    #[error("the server closed the connection")]
    Closed,
    /// Before we were signed in.
    #[error("the connection was lost")]
    Lost(#[source] io::Error),
    /// It is no NATS server.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// None of several would do.
    #[error("none of the {} servers could be used: {}", .0.len(), join(.0))]
    Servers(Vec<ConnectError>),
}

/// What to sign in with cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A user is missing.
    #[error("nats.password is set without nats.user")]
    NoUser,
    /// The file cannot be read.
    #[error("read nats.creds {}", .0.display())]
    Creds(PathBuf, #[source] io::Error),
    /// The file was read.
    #[error("read nats.creds {}: it holds no {missing}", .path.display())]
    CredsLack {
        /// The file.
        path: PathBuf,
        /// `JWT` or `seed`
        missing: &'static str,
    },
    /// Its seed is none.
    #[error("read nats.creds {}: the seed cannot be used", .0.display())]
    CredsSeed(PathBuf, #[source] nkeys::error::Error),
    /// The seed is none.
    #[error("nats.nkey is not a seed")]
    Nkey(#[source] nkeys::error::Error),
    /// The key cannot sign.
    #[error("sign the server's nonce")]
    Sign(#[source] nkeys::error::Error),
}

fn join(errors: &[ConnectError]) -> String {
    let lines: Vec<_> = errors.iter().map(|error| chain(error)).collect();
    lines.join("; ")
}

impl ConnectError {
    pub(super) fn new(at: impl Into<String>, kind: ConnectErrorKind) -> Self {
        let at = at.into();
        Self(Box::new(Inner { at, kind }))
    }

    /// All servers failed. A single error stands for itself.
    pub(super) fn of_servers(mut errors: Vec<Self>) -> Self {
        match errors.len() {
            0 => Self::new("", ConnectErrorKind::NoServer),
            1 => errors.swap_remove(0),
            _ => Self::new("", ConnectErrorKind::Servers(errors)),
        }
    }

    /// Why.
    pub fn kind(&self) -> &ConnectErrorKind {
        &self.0.kind
    }

    /// A server does not take our credentials, or we have none that could be sent. Those that have
    /// expired are being renewed, as a rule.
    pub fn refused(&self) -> bool {
        use ConnectErrorKind::{Credentials, Refused};
        let nkey = |error: &CredentialsError| {
            matches!(error, CredentialsError::Nkey(_) | CredentialsError::Sign(_))
        };
        match self.kind() {
            Refused(_) => true,
            Credentials(error) => nkey(error),
            _ => false,
        }
    }

    /// Certificates are what stands in the way, at some server.
    pub fn tls(&self) -> bool {
        use ConnectErrorKind::{Servers, TlsHandshake, TlsRefused, TlsSetup};
        match self.kind() {
            TlsRefused | TlsSetup(_) | TlsHandshake(_) => true,
            Servers(errors) => errors.iter().any(Self::tls),
            _ => false,
        }
    }

    /// The next one of the list may do. They all have the same accounts.
    pub(super) fn another_server_may_do(&self) -> bool {
        use ConnectErrorKind::{Credentials, TlsSetup};
        !self.refused() && !matches!(self.kind(), Credentials(_) | TlsSetup(_))
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, kind) = (&self.0.at, &self.0.kind);
        match at.as_str() {
            "" => write!(f, "connect to NATS: {kind}"),
            at => write!(f, "connect to NATS at {at}: {kind}"),
        }
    }
}

impl fmt::Debug for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectError")
            .field("at", &self.0.at)
            .field("kind", &self.0.kind)
            .finish()
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0.kind)
    }
}

/// The first thing that went wrong with a connection, which ended it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Broken {
    /// Without a word.
    #[error("the connection was lost")]
    Lost(#[source] Arc<io::Error>),
    /// By the server, or by us.
    #[error("the connection was closed")]
    Closed,
    /// We may not publish there. It is not said which message it was.
    #[error("the server says: {0}")]
    PublishDenied(String),
    /// We may not subscribe to our inbox: nothing is ever answered.
    #[error("the server says: {0}")]
    SubscriptionDenied(String),
    /// A line was longer than its `max_control_line`. It is not said which one, nor how long one
    /// may be. The longest that was sent had so many bytes: that is too many.
    #[error("the server says: maximum control line exceeded; the longest had {0} bytes")]
    LineTooLong(usize),
    /// Anything else that a server does not take.
    #[error("the server says: {0}")]
    Server(String),
    /// Lame duck mode: what is sent from now on may be lost.
    #[error("the server is about to shut down")]
    LameDuck,
    /// It answered no PING.
    #[error("the server has been silent for {0:?}")]
    Silent(Duration),
    /// What came is none of this protocol.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// More answers are left lying than any window has.
    #[error("more than {0} bytes of replies are not taken")]
    Untaken(usize),
}

impl Broken {
    /// What an -ERR means, on a connection with such a longest line. `Permissions Violation for
    /// Publish to "…"` and `… Subscription to "…"` (nats-server, client.go), `maximum control line
    /// exceeded` (errors.go), in whatever case.
    pub(super) fn said(text: &[u8], longest_line: usize) -> Self {
        let text = String::from_utf8_lossy(text).into_owned();
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix("permissions violation for ") {
            Some(what) if what.starts_with("publish") => Self::PublishDenied(text),
            Some(what) if what.starts_with("subscription") => Self::SubscriptionDenied(text),
            None if lower == "maximum control line exceeded" => Self::LineTooLong(longest_line),
            _ => Self::Server(text),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Lost(Arc::new(error))
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// It may or may not have been received.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// It may or may not have been received.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// It was received, and nobody is there to answer.
    #[error("nobody answers")]
    NoResponders,
    /// The cluster has no leader just now; these are its words.
    #[error("{0}")]
    Leaderless(String),
    /// It was not sent: it is no subject.
    #[error("{0:?} is no subject")]
    Subject(String),
    /// It was not sent: the server would close the connection.
    #[error("{bytes} bytes are more than the {bytes_max} that the server takes")]
    TooLarge {
        /// Of headers and body.
        bytes: usize,
        /// `max_payload` of the server.
        bytes_max: usize,
    },
    /// It was not sent: the server would close the connection.
    #[error("a line of {bytes} bytes, of which the server takes {bytes_max} (max_control_line)")]
    LineTooLong {
        /// With its subject.
        bytes: usize,
        /// As far as is known.
        bytes_max: usize,
    },
    /// It was not sent: too many others wait for an answer, or for the socket.
    #[error("too many requests wait")]
    TooMany,
    /// The answer is none.
    #[error("the answer is not understood")]
    Answer(#[source] Arc<serde_json::Error>),
}
