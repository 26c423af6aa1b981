//! The control connection: a tokio-postgres client on a connection that we have logged in
//! ourselves, so that TLS, authentication and error messages are the same as for replication.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls};

use super::connect::connect;
use super::error::Error;
use super::params::Params;
use super::socket::Socket;
use super::wire::heard;

/// A connection for SQL. Dropping it closes it.
pub struct Control {
    client: Client,
    /// Does the reading and writing for `client`; aborted when dropped.
    connection: JoinSet<()>,
}

impl Control {
    /// Logs in, with only those startup parameters that every pooler lets pass.
    pub async fn connect(params: &Params) -> Result<Self, Error> {
        let mut conn = connect(params, &[]).await?;
        let greeting = std::mem::take(&mut conn.greeting);
        let (socket, received) = conn.into_socket();
        let stream = LoggedIn::new(socket, &greeting, &received);
        // The user is named so that it does not ask the system for one.
        let mut config = Config::new();
        config.user(params.user.as_str());
        let connected = config.connect_raw(stream, NoTls).await;
        let (client, connection) = connected.map_err(Error::from_client)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                // Whoever uses the client meets the error there.
                tracing::debug!(%error, "control connection ended");
            }
        });
        Ok(Self {
            client,
            connection: tasks,
        })
    }

    /// Ends the session in good order: a server that is still answering when the socket goes logs
    /// a lost connection, as FATAL.
    pub async fn close(self) {
        let Self {
            client,
            mut connection,
        } = self;
        drop(client);
        // Whether it ends well or late, it ends.
        let _ = tokio::time::timeout(CLOSE_MAX, connection.join_next()).await;
    }

    /// For queries. Its errors become ours by [`Error::from_client`].
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// How long an orderly end may take: an answer or two are outstanding.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Plays the server's part of a login that has taken place already: swallows the client's startup
/// packet and repeats what the server said after it. From then on, the socket.
struct LoggedIn {
    socket: Socket,
    /// To be read before anything from the socket.
    reply: Bytes,
    /// The client has begun to read the reply, so what it writes from now on is for the server: a
    /// client says nothing after its startup packet until it has been let in.
    replied: bool,
}

/// 'R', length 8, 0.
const AUTHENTICATION_OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";

impl LoggedIn {
    fn new(socket: Socket, greeting: &[u8], received: &[u8]) -> Self {
        let mut reply = BytesMut::from(AUTHENTICATION_OK);
        reply.extend_from_slice(greeting);
        reply.extend_from_slice(received);
        Self {
            socket,
            reply: reply.freeze(),
            replied: false,
        }
    }
}

impl AsyncRead for LoggedIn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.replied = true;
        if self.reply.is_empty() {
            let before = buf.filled().len();
            let read = Pin::new(&mut self.socket).poll_read(cx, buf);
            heard(buf.filled().len() - before);
            return read;
        }
        let bytes = self.reply.len().min(buf.remaining());
        buf.put_slice(&self.reply[..bytes]);
        self.reply.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LoggedIn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.replied {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
