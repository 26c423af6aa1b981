//! From the options to a connection that is signed in: servers, addresses, TLS, INFO, CONNECT, up
//! to the PONG that says that we are let in.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::address::{Address, addresses};
use super::auth::Identity;
use super::connection::{Connection, inbox};
use super::error::{ConnectError, ConnectErrorKind as Kind};
use super::options::Options;
use super::tls;
use super::wire::{self, Connect, Operation, Server};
use crate::net::Stream;

/// The protocol that has INFO at any time.
const PROTOCOL: u8 = 1;

/// What comes before we are signed in comes from a stranger: a few INFOs at most.
const RECEIVED_BYTES_MAX: usize = 2 * wire::TEXT_BYTES_MAX;

impl Connection {
    /// Tries the servers in turn, from the one that let us in last, with every address they have,
    /// until one lets us in. Each address has `connect_timeout`.
    pub async fn open(options: &Options) -> Result<Self, ConnectError> {
        let identity = Identity::read(options).await;
        let identity = identity.map_err(|error| ConnectError::new("", Kind::Credentials(error)))?;
        let mut failed = Vec::new();
        let servers = addresses(options)?;
        let first = options.entered.load(Ordering::Relaxed);
        for at in (first..).take(servers.len()) {
            let at = at % servers.len();
            let server = &servers[at];
            match connect_server(options, &identity, server).await {
                Ok(connection) => {
                    options.entered.store(at, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(kind) => {
                    let error = ConnectError::new(server.at(), kind);
                    if !error.another_server_may_do() {
                        return Err(error);
                    }
                    failed.push(error);
                }
            }
        }
        Err(ConnectError::of_servers(failed))
    }
}

async fn connect_server(
    options: &Options,
    identity: &Identity,
    server: &Address,
) -> Result<Connection, Kind> {
    let limit = options.connect_timeout;
    let resolve = tokio::net::lookup_host((server.host.as_str(), server.port));
    let found = timeout(limit, resolve).await;
    let found = found.map_err(|_| Kind::TimedOut(limit))?;
    let mut last = Kind::Resolve(io::ErrorKind::NotFound.into());
    for address in found.map_err(Kind::Resolve)? {
        let sign_in = Box::pin(sign_in(options, identity, (server, address)));
        match timeout(limit, sign_in).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(kind)) => last = kind,
            Err(_) => last = Kind::TimedOut(limit),
        }
    }
    Err(last)
}

async fn sign_in(
    options: &Options,
    identity: &Identity,
    (address, socket): (&Address, SocketAddr),
) -> Result<Connection, Kind> {
    let dialled = options.network.dial(socket, |_| Ok(())).await;
    let mut talk = Talk::over(dialled.map_err(Kind::Unreachable)?);
    if options.tls_first {
        talk = talk.encrypt(options, address).await?;
    }
    let mut server = talk.server().await?;
    if server.lame_duck {
        return Err(Kind::LameDuck);
    }
    let configured = options.tls_ca.is_some() || options.tls_client.is_some();
    let wanted = address.tls || configured;
    if !talk.encrypted && (wanted || server.tls_required) {
        if !(server.tls_required || server.tls_available) {
            return Err(Kind::TlsRefused);
        }
        talk = talk.encrypt(options, address).await?;
    }
    let credentials = identity.prove(&server.nonce).map_err(Kind::Credentials)?;
    let connect = Connect {
        verbose: false,
        pedantic: false,
        tls_required: talk.encrypted,
        name: &options.name,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: PROTOCOL,
        echo: true,
        headers: true,
        no_responders: true,
        credentials,
    };
    talk.enter(&connect, &mut server).await?;
    let inbox = inbox(options.inbox_prefix.as_deref(), &options.network);
    let said = (server, &talk.received[..]);
    Ok(Connection::signed_in(talk.stream, said, inbox))
}

/// What is said before a connection is one.
struct Talk {
    stream: Box<dyn Stream>,
    encrypted: bool,
    received: Vec<u8>,
}

impl Talk {
    fn over(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            encrypted: false,
            received: Vec::new(),
        }
    }

    async fn encrypt(self, options: &Options, address: &Address) -> Result<Self, Kind> {
        // What came unencrypted must not be taken for part of what is protected.
        if !self.received.is_empty() {
            return Err(Kind::Malformed(wire::Malformed("what follows INFO")));
        }
        let config = tls::client_config(options).map_err(Kind::TlsSetup)?;
        let name = crate::tls::server_name(&address.host).map_err(Kind::TlsSetup)?;
        let stream = TlsConnector::from(config).connect(name, self.stream).await;
        let stream = stream.map_err(Kind::TlsHandshake)?;
        Ok(Self {
            stream: Box::new(stream),
            encrypted: true,
            received: Vec::new(),
        })
    }

    /// The server's first word.
    async fn server(&mut self) -> Result<Server, Kind> {
        self.next(|operation| match operation {
            Operation::Info(json) => Ok(Some(Server::parse(json)?)),
            Operation::Error(text) => Err(refusal(text)),
            _ => Err(Kind::Malformed(wire::Malformed("the server's first word"))),
        })
        .await
    }

    /// Signs in. The server may describe itself once more.
    async fn enter(&mut self, connect: &Connect<'_>, server: &mut Server) -> Result<(), Kind> {
        let mut output = Vec::new();
        wire::connect(&mut output, connect);
        output.extend_from_slice(wire::PING);
        let written = async {
            self.stream.write_all(&output).await?;
            self.stream.flush().await
        };
        let written = written.await;
        let answered = self.next(|operation| match operation {
            Operation::Pong => Ok(Some(())),
            Operation::Error(text) => Err(refusal(text)),
            Operation::Info(json) => {
                *server = Server::parse(json)?;
                Ok(None)
            }
            _ => Ok(None),
        });
        match (answered.await, written) {
            // It may have said why before it closed the connection.
            (Err(Kind::Closed | Kind::Lost(_)), Err(error)) => Err(of_stream(error)),
            (answered, _) => answered,
        }
    }

    /// The first operation that `read` makes something of.
    async fn next<T>(
        &mut self,
        mut read: impl FnMut(Operation<'_>) -> Result<Option<T>, Kind>,
    ) -> Result<T, Kind> {
        loop {
            while let Some((operation, bytes)) = wire::parse(&self.received)? {
                let done = read(operation)?;
                self.received.drain(..bytes);
                if let Some(done) = done {
                    return Ok(done);
                }
            }
            if self.received.len() > RECEIVED_BYTES_MAX {
                return Err(Kind::Malformed(wire::Malformed("what a server says first")));
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) => return Err(Kind::Closed),
                Ok(_) => {}
                Err(error) => return Err(of_stream(error)),
            }
        }
    }
}

/// With TLS 1.3 a server that does not like our certificate says so after the handshake.
fn of_stream(error: io::Error) -> Kind {
    let of_tls = error
        .get_ref()
        .is_some_and(|inner| inner.is::<rustls::Error>());
    match (of_tls, error.kind()) {
        (true, _) => Kind::TlsHandshake(error),
        (false, io::ErrorKind::UnexpectedEof) => Kind::Closed,
        (false, _) => Kind::Lost(error),
    }
}

/// What an -ERR before the PONG means. The words are those of nats-server (errors.go); others are
/// shown.
fn refusal(text: &[u8]) -> Kind {
    let text = String::from_utf8_lossy(text).into_owned();
    let lower = text.to_ascii_lowercase();
    if lower.contains("authorization violation") {
        Kind::Refused(text)
    } else if lower.contains("authentication expired") || lower.contains("authentication revoked") {
        Kind::Expired(text)
    } else {
        Kind::Server(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart_by_the_servers_words() {
        assert!(matches!(
            refusal(b"Authorization Violation"),
            Kind::Refused(_)
        ));
        for expired in [
            "User Authentication Expired",
            "User Authentication Revoked",
            "Account Authentication Expired",
        ] {
            assert!(
                matches!(refusal(expired.as_bytes()), Kind::Expired(_)),
                "{expired}"
            );
        }
        assert!(matches!(
            refusal(b"maximum connections exceeded"),
            Kind::Server(_)
        ));
    }
}
