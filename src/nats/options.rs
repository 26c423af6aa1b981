//! How to reach NATS and sign in there. The configuration builds it; nothing here reads files.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::net::Network;

/// How to reach NATS. All ways of authentication can be combined.
#[derive(Clone)]
pub struct Options {
    /// URLs, tried in turn, from the one that let us in last.
    pub servers: Vec<String>,
    /// Which one that is, for all clones.
    pub entered: Arc<AtomicUsize>,
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
    /// For each address, until signed in; and for each request.
    pub connect_timeout: Duration,
    /// The prefix of reply subjects; `_INBOX` if `None`.
    pub inbox_prefix: Option<String>,
    /// The JetStream domain.
    pub domain: Option<String>,
    /// What connections are made with.
    pub network: Network,
}

/// Shows no secrets.
impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("nats::Options")
            .field("servers", &self.display())
            .finish_non_exhaustive()
    }
}

impl Options {
    /// What the subjects of JetStream's requests begin with.
    pub(crate) fn api(&self) -> String {
        match &self.domain {
            Some(domain) => format!("$JS.{domain}.API"),
            None => "$JS.API".to_owned(),
        }
    }

    /// The servers without user information, for messages.
    pub fn display(&self) -> String {
        let hidden = self.servers.iter().map(|server| without_secrets(server));
        hidden.collect::<Vec<_>>().join(",")
    }

    /// How to sign in, of the first URL that says it.
    pub(crate) fn of_url(&self) -> Option<SignIn> {
        let mut authorities = self.servers.iter().map(|server| {
            let (_, rest) = server.split_once("://").unwrap_or(("", server));
            rest.split('/').next().unwrap_or_default()
        });
        let (before_at, _) = authorities.find_map(|authority| authority.rsplit_once('@'))?;
        Some(match before_at.split_once(':') {
            Some((user, password)) => SignIn::User {
                user: percent_decode(user),
                password: percent_decode(password),
            },
            None => SignIn::Token(percent_decode(before_at)),
        })
    }
}

/// A URL without its user information.
pub(super) fn without_secrets(server: &str) -> String {
    match server.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before
                .split_once("://")
                .map_or("nats", |(scheme, _)| scheme);
            format!("{scheme}://{host}")
        }
        None => server.to_owned(),
    }
}

/// What stands before the `@` of a URL.
#[derive(PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(crate) enum SignIn {
    /// `user:password@`
    User { user: String, password: String },
    /// `token@`
    Token(String),
}

/// `%40` is `@`, and so on; what is no such escape stays as it is.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.first_chunk().filter(|_| *first == b'%').and_then(hex);
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digits: &[u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    u8::try_from(high? << 4 | low?).ok()
}

#[cfg(test)]
impl Options {
    /// Without anything else.
    pub(crate) fn of_servers(servers: Vec<String>) -> Self {
        Self {
            servers,
            entered: Arc::default(),
            name: String::new(),
            user: None,
            password: None,
            token: None,
            nkey: None,
            creds: None,
            tls_ca: None,
            tls_client: None,
            tls_first: false,
            connect_timeout: Duration::from_secs(1),
            inbox_prefix: None,
            domain: None,
            network: Network::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_url(servers: &[&str]) -> Option<SignIn> {
        let servers = servers.iter().map(|server| (*server).to_owned());
        Options::of_servers(servers.collect()).of_url()
    }

    fn user(user: &str, password: &str) -> Option<SignIn> {
        let (user, password) = (user.to_owned(), password.to_owned());
        Some(SignIn::User { user, password })
    }

    #[test]
    fn url_says_who_signs_in() {
        assert_eq!(
            of_url(&["nats://a:1", "nats://me:secret@b:1"]),
            user("me", "secret")
        );
        assert_eq!(of_url(&["me:secret@a:1"]), user("me", "secret"));
        assert_eq!(of_url(&["tls://me:@a"]), user("me", ""));
        let token = SignIn::Token("s3cret".to_owned());
        assert_eq!(of_url(&["nats://s3cret@a"]), Some(token));
        assert_eq!(of_url(&["nats://a:4222", "b"]), None);
        assert_eq!(of_url(&["ws://a/path@x"]), None);
    }

    #[test]
    fn escapes_of_a_url_are_read() {
        assert_eq!(of_url(&["nats://m%65:%40%3a%2F@a"]), user("me", "@:/"));
        assert_eq!(of_url(&["nats://%zz:100%@a"]), user("%zz", "100%"));
        assert_eq!(of_url(&["nats://a:b@c@host"]), user("a", "b@c"));
    }
}
