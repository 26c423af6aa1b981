//! The frames of one connection. All that is half read or half written lives in [`Conn`], so every
//! future here can be dropped at any await without losing a byte. Knows the message header, not the
//! messages.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::error::{Error, Kind, Phase, ServerMessage};
use super::socket::{Protection, Socket};

/// A connection, logged in once [`logged_in`](Self::logged_in) was called.
pub(super) struct Conn {
    socket: Socket,
    /// Received and not yet split into frames.
    received: BytesMut,
    /// How much of all chunks was used up so far.
    used_bytes: u64,
    /// Handed to us and not yet taken by the socket.
    queued: BytesMut,
    /// Bytes may still stand in the TLS layer.
    unflushed: bool,
    /// Larger messages are an error.
    message_bytes_max: usize,
    /// For error messages: `host:port`.
    at: String,
    /// Set while errors are made, so that they say what was being done.
    pub(super) phase: Phase,
    /// ParameterStatus, BackendKeyData and ReadyForQuery as the server sent them at the end of the
    /// login: [`super::control`] repeats them to its client.
    pub(super) greeting: BytesMut,
    /// The process that serves us, as the login names it.
    pub(super) backend_pid: i32,
    /// ReadyForQuery that are still to come for commands whose futures were dropped.
    pub(super) ready_owed: usize,
    /// Notices in the order in which they came; see [`NOTICES_MAX`].
    pub(super) notices: VecDeque<ServerMessage>,
}

/// A chunk of the read buffer: the walsender flushes after each message while the reader keeps up,
/// and fills the socket buffer (some hundred kB on loopback) when it does not. Frames kept by
/// others keep their chunk, so it should not be much larger.
pub(super) const CHUNK_BYTES: usize = 128 * 1024;

/// With less room than this a chunk is left behind: a read costs a system call whatever its size.
const READ_BYTES_MIN: usize = 8 * 1024;

/// The server builds no message larger than its allocation limit of 1 GiB (MaxAllocSize,
/// memutils.h), so a greater length is a broken or hostile stream.
pub(super) const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Before the login is complete the peer is a stranger; libpq gives such messages 2000 bytes
/// (pqParseInput / PQconnectPoll) and errors 30 000.
const LOGIN_MESSAGE_BYTES_MAX: usize = 30_000;

/// A server that sends more notices with one command is not worth listening to.
const NOTICES_MAX: usize = 100;

/// What has come on the sessions of this process since they were logged in, in bytes.
static HEARD_BYTES: AtomicU64 = AtomicU64::new(0);

/// A session has received something.
pub(super) fn heard(bytes: usize) {
    HEARD_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// How much all of them have.
pub(super) fn heard_bytes() -> u64 {
    HEARD_BYTES.load(Ordering::Relaxed)
}

/// A frame: type, and the whole message including its five-byte header.
pub(super) struct Packet {
    pub(super) tag: u8,
    bytes: BytesMut,
}

impl Packet {
    /// The whole message.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What follows type and length.
    pub(super) fn body(self) -> Bytes {
        self.bytes.freeze().slice(HEADER_BYTES..)
    }

    /// For every message but CopyBothResponse, which postgres-protocol does not know.
    pub(super) fn parse(mut self) -> Result<Message, Kind> {
        match Message::parse(&mut self.bytes).map_err(Kind::Parse)? {
            Some(message) => Ok(message),
            None => Err(Kind::Malformed("a message")),
        }
    }
}

/// The frames (type and body) of what is received in these portions, up to the first that is
/// refused; and whether one was.
#[cfg(any(test, fuzzing))]
pub(crate) fn frames<'a>(
    portions: impl Iterator<Item = &'a [u8]>,
    bytes_max: usize,
) -> (Vec<(u8, Bytes)>, bool) {
    let (_, ours) = tokio::io::duplex(1);
    let mut conn = Conn::scripted(ours, bytes_max);
    let mut frames = Vec::new();
    for portion in portions {
        conn.reserve();
        conn.received.extend_from_slice(portion);
        loop {
            match conn.split() {
                Ok(Some(packet)) => frames.push((packet.tag, packet.body())),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    let used: usize = frames
        .iter()
        .map(|(_, body)| HEADER_BYTES + body.len())
        .sum();
    assert!(conn.used_bytes() >= used as u64, "bytes were used up");
    (frames, false)
}

/// Type and length.
const HEADER_BYTES: usize = 5;

impl Conn {
    /// A connection to a stranger, who is to log us in. `at`: its `host:port`.
    pub(super) fn new(socket: Socket, at: String) -> Self {
        Self {
            socket,
            received: BytesMut::new(),
            used_bytes: 0,
            queued: BytesMut::new(),
            unflushed: false,
            message_bytes_max: LOGIN_MESSAGE_BYTES_MAX,
            at,
            phase: Phase::LogIn,
            greeting: BytesMut::new(),
            backend_pid: 0,
            ready_owed: 0,
            notices: VecDeque::new(),
        }
    }

    /// A connection that is past its login, with the other end in the hands of a test.
    #[cfg(any(test, fuzzing))]
    pub(super) fn scripted(stream: tokio::io::DuplexStream, message_bytes_max: usize) -> Self {
        let mut conn = Self::new(
            Socket::scripted(stream, Protection::None),
            "test:0".to_owned(),
        );
        conn.message_bytes_max = message_bytes_max;
        conn
    }

    /// The peer has logged us in: it may send messages of any length.
    pub(super) fn logged_in(&mut self) {
        self.message_bytes_max = MESSAGE_BYTES_MAX;
    }

    /// What protects this connection.
    pub(super) fn protection(&self) -> &Protection {
        &self.socket.protection
    }

    /// Nobody on the network can read what is sent.
    pub(super) fn private(&self) -> bool {
        self.socket.private()
    }

    /// `kind` with what was being done.
    pub(super) fn error(&self, kind: Kind) -> Error {
        Error::new(self.phase, self.at.clone(), kind)
    }

    /// Appends a message; it leaves with the next read or flush.
    pub(super) fn queue(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), Kind> {
        let before = self.queued.len();
        write(&mut self.queued).map_err(|error| {
            self.queued.truncate(before);
            Kind::Encode(error)
        })
    }

    /// All that was queued has been handed to the operating system.
    pub(super) fn flushed(&self) -> bool {
        self.queued.is_empty() && !self.unflushed
    }

    /// Nothing is queued; what the TLS layer holds does not count.
    pub(super) fn queue_empty(&self) -> bool {
        self.queued.is_empty()
    }

    /// Writes what is queued. Cancel-safe: what is left stays queued.
    pub(super) async fn flush(&mut self) -> Result<(), Kind> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Kind>> {
        while !self.queued.is_empty() {
            self.unflushed = true;
            let written = ready!(pin!(self.socket.write_buf(&mut self.queued)).poll(cx));
            if written.map_err(Kind::Io)? == 0 {
                return Poll::Ready(Err(Kind::Io(std::io::ErrorKind::WriteZero.into())));
            }
        }
        if self.unflushed {
            ready!(pin!(self.socket.flush()).poll(cx)).map_err(Kind::Io)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The next message that is no notice, parameter status or notification: those may come at any
    /// time and are kept or dropped here. A server's error is an `Err`. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Packet, Kind> {
        loop {
            let packet = self.recv().await?;
            match packet.tag {
                b'N' => {
                    let notice = notice(packet)?;
                    tracing::debug!(message = %notice, "notice from Postgres");
                    self.notices.truncate(NOTICES_MAX - 1);
                    self.notices.push_back(notice);
                }
                b'S' if self.phase != Phase::LogIn => {}
                b'A' => {}
                b'E' => return Err(Kind::Server(server_error(packet)?)),
                _ => return Ok(packet),
            }
        }
    }

    /// The next message, whatever it is; writes what is queued while it waits. Cancel-safe.
    pub(super) async fn recv(&mut self) -> Result<Packet, Kind> {
        loop {
            if let Some(packet) = self.split()? {
                return Ok(packet);
            }
            self.fill().await?;
        }
    }

    /// One read, of whatever is there. Cancel-safe.
    async fn fill(&mut self) -> Result<(), Kind> {
        self.reserve();
        poll_fn(|cx| {
            // Reading goes on even if the server takes nothing at the moment.
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            match ready!(pin!(self.socket.read_buf(&mut self.received)).poll(cx)) {
                Ok(0) => Poll::Ready(Err(Kind::Closed)),
                Ok(bytes) => {
                    if self.phase != Phase::LogIn {
                        heard(bytes);
                    }
                    Poll::Ready(Ok(()))
                }
                // TLS without close_notify, which Postgres does not send when it is killed.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Err(Kind::Closed))
                }
                Err(error) => Poll::Ready(Err(Kind::Io(error))),
            }
        })
        .await
    }

    /// Makes room for the next read. The announced length of a message is not believed beyond
    /// doubling what has really come.
    fn reserve(&mut self) {
        let missing = match Header::parse(&self.received) {
            Ok(Some(header)) => (header.len() as usize + 1).saturating_sub(self.received.len()),
            _ => 0,
        };
        let wanted = missing.min(self.received.len().max(CHUNK_BYTES));
        let room = self.received.capacity() - self.received.len();
        if room < wanted.max(READ_BYTES_MIN) {
            // The beginning of a message moves to the next chunk, and its old place is lost.
            self.used_bytes += self.received.len() as u64;
            self.received.reserve(wanted.max(CHUNK_BYTES));
        }
    }

    /// A message that is already here, complete.
    pub(super) fn split(&mut self) -> Result<Option<Packet>, Kind> {
        let header = Header::parse(&self.received).map_err(Kind::Parse)?;
        let Some(header) = header else {
            return Ok(None);
        };
        // Header::parse has refused lengths below four.
        let bytes = header.len() as usize + 1;
        let bytes_max = self.message_bytes_max;
        if bytes > bytes_max {
            return Err(Kind::TooLarge { bytes, bytes_max });
        }
        if self.received.len() < bytes {
            return Ok(None);
        }
        let packet = Packet {
            tag: header.tag(),
            bytes: self.received.split_to(bytes),
        };
        self.used_bytes += bytes as u64;
        if bytes > CHUNK_BYTES {
            // Else the buffer would stay as large as the largest message for ever.
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES.max(self.received.len()));
            chunk.extend_from_slice(&self.received);
            self.received = chunk;
        }
        Ok(Some(packet))
    }

    /// How much of all chunks was used up by what was taken so far, in bytes.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Says good-bye and reads until the server has closed: closing a socket with unread bytes
    /// resets the connection, and the server may then never see what we sent last.
    pub(super) async fn close(mut self) {
        frontend::terminate(&mut self.queued);
        let farewell = async {
            self.flush().await?;
            loop {
                self.received.clear();
                self.fill().await?;
            }
        };
        let result: Result<Result<(), Kind>, _> = timeout(CLOSE_TIMEOUT, farewell).await;
        if let Ok(Err(kind)) = result
            && !matches!(kind, Kind::Closed)
        {
            tracing::debug!(error = %kind, "closing the connection to Postgres");
        }
    }

    /// Splits off the socket, with what was read too much.
    pub(super) fn into_socket(self) -> (Socket, BytesMut) {
        (self.socket, self.received)
    }
}

/// A backend that is not stuck ends within milliseconds of Terminate.
const CLOSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// A NoticeResponse.
pub(super) fn notice(packet: Packet) -> Result<ServerMessage, Kind> {
    match packet.parse()? {
        Message::NoticeResponse(body) => ServerMessage::read(body.fields()),
        _ => Err(Kind::Malformed("a NoticeResponse")),
    }
}

/// An ErrorResponse.
pub(super) fn server_error(packet: Packet) -> Result<ServerMessage, Kind> {
    match packet.parse()? {
        Message::ErrorResponse(body) => ServerMessage::read(body.fields()),
        _ => Err(Kind::Malformed("an ErrorResponse")),
    }
}
