//! A byte stream to one server: TCP or Unix socket, TLS if wanted. Knows nothing of what is said
//! over it, but for the request that starts TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::certificate::server_end_point;
use super::error::Kind;
use super::params::{Address, Host, Params, SslMode, SslNegotiation};
use super::tls;
use crate::net::Stream;
use crate::tls::server_name;

/// An open connection, before anything of Postgres's protocol proper was said.
pub(super) struct Socket {
    stream: Box<dyn Stream>,
    /// What protects it.
    pub(super) protection: Protection,
}

/// Who could listen or change bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Protection {
    /// Anybody on the way.
    None,
    /// Nobody but the machine's administrator.
    Unix,
    /// TLS, with the channel binding if the certificate allows one.
    Tls {
        /// `tls-server-end-point`.
        server_end_point: Option<Vec<u8>>,
    },
}

/// One attempt's way to go about TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encryption {
    /// Do not ask for it.
    Plain,
    /// Take it if the server offers it.
    IfOffered,
    /// Or fail.
    Required,
}

impl Encryption {
    /// What to try, in this order, on a server at `address`. Unix sockets never use TLS.
    pub(super) fn attempts(params: &Params, address: &Address) -> &'static [Self] {
        match (address, params.sslmode) {
            (Address::Unix(_), _) | (_, SslMode::Disable) => &[Self::Plain],
            (_, SslMode::Allow) => &[Self::Plain, Self::Required],
            (_, SslMode::Prefer) => &[Self::IfOffered, Self::Plain],
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Self::Required],
        }
    }
}

/// Where to connect to, resolved.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Every address of `host`, in the order in which they are tried.
pub(super) async fn resolve(host: &Host) -> Result<Vec<Target>, Kind> {
    let (name, port) = match &host.address {
        Address::Unix(directory) => {
            let path = directory.join(format!(".s.PGSQL.{}", host.port));
            return Ok(vec![Target::Unix(path)]);
        }
        Address::Tcp {
            addr: Some(addr), ..
        } => return Ok(vec![Target::Tcp((*addr, host.port).into())]),
        Address::Tcp { name, addr: None } => (name.as_str(), host.port),
    };
    let found = tokio::net::lookup_host((name, port))
        .await
        .map_err(Kind::Resolve)?;
    let targets: Vec<_> = found.map(Target::Tcp).collect();
    if targets.is_empty() {
        return Err(Kind::Resolve(io::ErrorKind::NotFound.into()));
    }
    Ok(targets)
}

impl Socket {
    /// Connects to `target`, one of the addresses of `host`.
    pub(super) async fn open(
        params: &Params,
        host: &Host,
        target: &Target,
        encryption: Encryption,
    ) -> Result<Self, Kind> {
        let address = match target {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(Kind::Unreachable)?;
                return Ok(Self::new(Box::new(stream), Protection::Unix));
            }
            Target::Tcp(address) => address,
        };
        let set = |tcp: &TcpStream| set_options(tcp, params);
        let dialled = params.network.dial(*address, set).await;
        let mut stream = dialled.map_err(Kind::Unreachable)?;
        match encryption {
            Encryption::Plain => Ok(Self::new(stream, Protection::None)),
            Encryption::IfOffered | Encryption::Required => {
                if params.sslnegotiation == SslNegotiation::Direct {
                    return encrypt(params, host, address.ip(), stream).await;
                }
                if request_tls(&mut stream).await? {
                    return encrypt(params, host, address.ip(), stream).await;
                }
                match encryption {
                    Encryption::Required => Err(Kind::TlsRefused),
                    _ => Ok(Self::new(stream, Protection::None)),
                }
            }
        }
    }

    fn new(stream: Box<dyn Stream>, protection: Protection) -> Self {
        Self { stream, protection }
    }

    /// The other end is in the hands of a test.
    #[cfg(any(test, fuzzing))]
    pub(super) fn scripted(stream: tokio::io::DuplexStream, protection: Protection) -> Self {
        Self::new(Box::new(stream), protection)
    }

    /// Nobody on the network can read what is sent.
    pub(super) fn private(&self) -> bool {
        self.protection != Protection::None
    }

    /// TLS is on.
    pub(super) fn encrypted(&self) -> bool {
        matches!(self.protection, Protection::Tls { .. })
    }
}

fn set_options(stream: &TcpStream, params: &Params) -> io::Result<()> {
    let socket = SockRef::from(stream);
    if let Some(keepalives) = params.keepalives {
        let mut options = TcpKeepalive::new().with_time(keepalives.idle);
        if let Some(interval) = keepalives.interval {
            options = options.with_interval(interval);
        }
        if let Some(count) = keepalives.count {
            options = options.with_retries(count);
        }
        socket.set_tcp_keepalive(&options)?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(params.tcp_user_timeout)?;
    Ok(())
}

/// Asks for TLS; the answer is a single byte (protocol.sgml, "SSL Session Encryption").
async fn request_tls(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<bool, Kind> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(Kind::Io)?;
    // A second byte before our ClientHello is not the server's: somebody on the way wants it to be
    // taken for part of the encrypted session (CVE-2021-23222). What comes later goes to TLS,
    // never to the protocol.
    let mut answer = [0; 2];
    match (stream.read(&mut answer).await.map_err(Kind::Io)?, answer[0]) {
        (0, _) => Err(Kind::Closed),
        (1, b'S') => Ok(true),
        (1, b'N') => Ok(false),
        (2, b'S' | b'N') => Err(Kind::Malformed(
            "bytes that follow the answer to SSLRequest",
        )),
        // The server is not authenticated yet: its words are not shown (CVE-2024-10977).
        (_, b'E') => Err(Kind::Malformed("an error in answer to SSLRequest")),
        _ => Err(Kind::Malformed("the answer to SSLRequest")),
    }
}

async fn encrypt(
    params: &Params,
    host: &Host,
    ip: IpAddr,
    stream: Box<dyn Stream>,
) -> Result<Socket, Kind> {
    let config = tls::client_config(params).map_err(Kind::TlsSetup)?;
    let name = match &host.address {
        Address::Tcp { name, .. } => server_name(name),
        Address::Unix(_) => Ok(ip.into()),
    };
    let name = match name {
        // Without a name to check any will do.
        Err(_) if params.sslmode < SslMode::VerifyFull => ip.into(),
        name => name.map_err(|error| Kind::TlsSetup(error.into()))?,
    };
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(Kind::TlsHandshake)?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let server_end_point = certificates.first().and_then(|leaf| server_end_point(leaf));
    let protection = Protection::Tls { server_end_point };
    Ok(Socket::new(Box::new(stream), protection))
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer_to_request(answer: &[u8]) -> Result<bool, Kind> {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let peer = async {
            let mut request = [0; 8];
            theirs.read_exact(&mut request).await.unwrap();
            assert_eq!(request, [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);
            theirs.write_all(answer).await.unwrap();
            theirs.shutdown().await.unwrap();
        };
        tokio::join!(request_tls(&mut ours), peer).0
    }

    #[tokio::test]
    async fn tls_starts_only_after_a_single_s() {
        assert!(answer_to_request(b"S").await.unwrap());
        assert!(!answer_to_request(b"N").await.unwrap());
        assert!(matches!(answer_to_request(b"").await, Err(Kind::Closed)));
        for wrong in [&b"SR"[..], b"NR", b"X"] {
            assert!(matches!(
                answer_to_request(wrong).await,
                Err(Kind::Malformed(_))
            ));
        }
    }

    #[tokio::test]
    async fn words_of_an_unauthenticated_server_are_not_repeated() {
        let error = answer_to_request(b"E\0\0\0\x10Mforged\0\0")
            .await
            .unwrap_err();
        assert!(!format!("{error} {error:?}").contains("forged"));
    }
}
