//! One connection to one server, over any byte stream. It is never made again: the first thing that
//! goes wrong ends it, and is kept as the reason. No task stands behind it: whoever owns it drives
//! it, by awaiting [`ready`](Connection::ready).
//!
//! All that is half read or half written lives in [`Connection`], so every future here can be
//! dropped at any await without losing a byte.

mod received;
mod silence;

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::received::Received;
use self::silence::Silence;
use super::error::Broken;
use super::requests::{Requests, Shared};
use super::wire::{self, Delivery, Draft, Headers, Operation, ReplyTo, Server};
use crate::net::{Network, Stream};

/// With more than this queued, nothing should be added: a write of 64 KiB costs a server as little
/// for each message as a larger one, and what is queued is held twice.
pub const QUEUED_BYTES_FULL: usize = 256 * 1024;

/// An output buffer that a large message has made larger than this is given back.
const OUTPUT_BYTES_KEPT: usize = 4 * QUEUED_BYTES_FULL;

/// Most bytes of replies to what was published that are kept while something else is done: half a
/// million, more than any server queues.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long a server may take what is still queued when a connection is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The number of our only subscription.
const SUBSCRIPTION: u64 = 1;

/// What stands between the number and the length in its messages.
const SUBSCRIBED: &[u8] = b" 1 ";

/// What replies go to where nothing else is configured.
const INBOX_PREFIX: &str = "_INBOX";

/// A connection that is signed in and has subscribed to an inbox of its own.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// Handed to us; all but the first `taken` bytes wait for the stream.
    output: Vec<u8>,
    taken: usize,
    /// Bytes may still be in the stream, as in a TLS layer.
    unflushed: bool,
    /// There was more queued than should be.
    was_full: bool,
    /// The stream takes nothing any more. What the server said before is read first.
    unwritable: Option<io::Error>,
    received: Received,
    /// A reply to what was published that was found in `received`, and not yet taken.
    found: Option<Found>,
    /// Replies that came while something else was done: older than `found`.
    kept: Received,
    silence: Silence,
    shared: Arc<Shared>,
    max_payload: usize,
    /// No line was longer, but for those of requests.
    longest_line: usize,
    line_bytes_max: usize,
    ended: Option<Broken>,
}

/// A reply to what was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The number that was given with the message.
    pub number: u64,
    /// Its headers; with status 503 where no stream listens.
    pub headers: Headers<'a>,
    /// What the server says.
    pub body: &'a [u8],
}

/// Where a reply lies in the bytes that were received.
#[derive(Clone, Debug)]
struct Found {
    number: u64,
    header_bytes: usize,
    /// Headers and body.
    message: Range<usize>,
    /// All of it.
    operation: Range<usize>,
}

impl Found {
    fn new(
        number: u64,
        (header_bytes, message_bytes): (usize, usize),
        operation: Range<usize>,
    ) -> Self {
        let end = operation.end - b"\r\n".len();
        Self {
            number,
            header_bytes,
            message: end - message_bytes..end,
            operation,
        }
    }

    fn reply<'a>(&self, bytes: &'a [u8]) -> Reply<'a> {
        let (headers, body) = bytes[self.message.clone()].split_at(self.header_bytes);
        Reply {
            number: self.number,
            headers: Headers::new(headers),
            body,
        }
    }
}

impl Connection {
    /// A connection over a stream whose server has signed us in.
    pub fn over(stream: impl Stream + 'static, server: Server, inbox_prefix: Option<&str>) -> Self {
        let inbox = inbox(inbox_prefix, &Network::default());
        Self::signed_in(Box::new(stream), (server, &[]), inbox)
    }

    /// The same, with what the server has said since.
    pub(super) fn signed_in(
        stream: Box<dyn Stream>,
        (server, said): (Server, &[u8]),
        inbox: String,
    ) -> Self {
        let max_payload = server.max_payload;
        let mut output = Vec::new();
        wire::subscribe(&mut output, &format!("{inbox}.*"), SUBSCRIPTION);
        let longest_line = output.len();
        Self {
            stream,
            output,
            taken: 0,
            unflushed: false,
            was_full: false,
            unwritable: None,
            received: Received::with(said),
            found: None,
            kept: Received::default(),
            silence: Silence::default(),
            shared: Arc::new(Shared::new(&inbox, server)),
            max_payload,
            longest_line,
            line_bytes_max: wire::CONTROL_LINE_BYTES_MAX,
            ended: None,
        }
    }

    /// Begins a message to `subject`, behind all that was queued before. Its reply comes as
    /// [`Reply`] with this number. The caller sees to it that subject and headers are sound and the
    /// whole is no larger than [`max_payload`](Self::max_payload).
    #[inline]
    pub fn message(&mut self, subject: &str, reply: Option<u64>) -> Draft<'_> {
        self.shared.take(&mut self.output);
        let prefix = &*self.shared.inbox;
        let reply = reply.map(|number| ReplyTo { prefix, number });
        let draft = Draft::new(&mut self.output, subject, reply);
        self.longest_line = self.longest_line.max(draft.line_bytes());
        draft
    }

    /// The same for a message without headers, at once.
    pub fn publish(&mut self, subject: &str, reply: Option<u64>, body: &[u8]) {
        self.shared.take(&mut self.output);
        let prefix = &*self.shared.inbox;
        let reply = reply.map(|number| ReplyTo { prefix, number });
        let line_bytes = wire::line_bytes(subject, reply);
        self.longest_line = self.longest_line.max(line_bytes);
        wire::publish(&mut self.output, subject, reply, body);
    }

    /// A handle for requests. Their answers come while the connection is driven.
    pub fn requests(&self) -> Requests {
        Requests::new(Arc::clone(&self.shared))
    }

    /// Drives the connection: what is queued is written, what comes is read. Resolves as soon as
    /// there is a reply to take; also once when a queue that was [full](Self::full) is half empty;
    /// and with the reason when the connection has ended, whenever it is asked.
    ///
    /// Cancel-safe: nothing lives in the future.
    pub async fn ready(&mut self) -> Result<(), Broken> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// Drives the connection while something else is done, such as a request. Replies to what was
    /// published are kept. Cancel-safe if `work` is.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Broken> {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.poll_during(cx).map(Err),
        })
        .await
    }

    /// The next reply to what was published, of those that have come.
    #[inline]
    pub fn next_reply(&mut self) -> Option<Reply<'_>> {
        if !self.kept.is_empty() {
            return self.next_kept();
        }
        let found = match self.found.take() {
            Some(found) => found,
            None => self.find()?,
        };
        Some(found.reply(self.received.all()))
    }

    /// Has a task drive the connection, until no handle is left. Replies to what was published
    /// before are dropped.
    pub fn spawn(self) -> Driven {
        let requests = self.requests();
        let mut task = JoinSet::new();
        task.spawn(self.serve());
        Driven { requests, task }
    }

    /// Sends what is queued, and closes. A server that does not take it is left. What was sent last
    /// may be lost where its reply was not awaited: closing a socket with unread bytes resets it.
    pub async fn close(mut self) {
        let sent = poll_fn(|cx| {
            self.shared.take(&mut self.output);
            if let Poll::Ready(Err(error)) = self.poll_write(cx) {
                self.unwritable = Some(error);
            }
            match self.queued() == 0 || self.unwritable.is_some() || self.ended.is_some() {
                true => Pin::new(&mut self.stream).poll_shutdown(cx),
                false => Poll::Pending,
            }
        });
        // The server may have closed it already.
        drop(timeout(CLOSE_TIMEOUT, sent).await);
    }

    /// What its replies come to begins with this and a dot.
    pub fn inbox(&self) -> &str {
        let inbox = &self.shared.inbox;
        str::from_utf8(&inbox[..inbox.len() - 1]).expect("made of a str")
    }

    /// How many bytes the socket has not yet taken.
    #[inline]
    pub fn queued(&self) -> usize {
        self.output.len() - self.taken + self.shared.pending_bytes()
    }

    /// Whether so much is queued that nothing should be added.
    pub fn full(&self) -> bool {
        self.queued() >= QUEUED_BYTES_FULL
    }

    /// Most bytes of headers and body that the server takes at this moment.
    pub fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// Longest line that the server takes, as far as is known.
    pub fn line_bytes_max(&self) -> usize {
        self.line_bytes_max
    }

    /// It is known to take no longer lines.
    pub fn limit_lines(&mut self, bytes_max: usize) {
        self.line_bytes_max = bytes_max;
        self.shared.limit_lines(bytes_max);
    }

    /// How long the line of a message is.
    pub fn line_bytes(&self, subject: &str, number: u64) -> usize {
        let prefix = &*self.shared.inbox;
        wire::line_bytes(subject, Some(ReplyTo { prefix, number }))
    }

    /// The server, as it last described itself.
    pub fn server(&self) -> Arc<Server> {
        self.shared.server()
    }

    /// What ended the connection.
    pub fn ended(&self) -> Option<&Broken> {
        self.ended.as_ref()
    }

    async fn serve(mut self) {
        let ended = poll_fn(|cx| {
            let ended = self.poll_during(cx).map(drop);
            self.kept = Received::default();
            match self.shared.abandoned() {
                true => Poll::Ready(()),
                false => ended,
            }
        });
        ended.await;
        self.close().await;
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let driven = self.drive(cx, |connection| {
            if connection.found.is_none() {
                connection.found = connection.find();
            }
            let replies = connection.found.is_some() || !connection.kept.is_empty();
            Ok(replies || connection.has_room_again())
        });
        driven.map(|ended| ended.map_or(Ok(()), Err))
    }

    /// Resolves with the reason when the connection has ended, and never before.
    fn poll_during(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        let driven = self.drive(cx, |connection| {
            connection.keep_all()?;
            Ok(false)
        });
        driven.map(|ended| ended.unwrap_or(Broken::Closed))
    }

    /// Writes and reads until `enough` says so of what was read, or the stream has no more at the
    /// moment; or until the connection has ended, with the reason.
    fn drive(
        &mut self,
        cx: &mut Context<'_>,
        enough: impl Fn(&mut Self) -> Result<bool, Broken>,
    ) -> Poll<Option<Broken>> {
        self.shared.register(cx.waker());
        let driven = self.try_drive(cx, enough);
        self.shared.note_backlog(self.output.len() - self.taken);
        match driven {
            Err(broken) => Poll::Ready(Some(self.end(broken))),
            Ok(true) => Poll::Ready(None),
            Ok(false) => Poll::Pending,
        }
    }

    fn try_drive(
        &mut self,
        cx: &mut Context<'_>,
        enough: impl Fn(&mut Self) -> Result<bool, Broken>,
    ) -> Result<bool, Broken> {
        loop {
            if let Some(broken) = &self.ended {
                return Err(broken.clone());
            }
            self.shared.take(&mut self.output);
            self.write(cx);
            let enough = enough(self)?;
            // An operation that was read may have ended it.
            if enough || self.ended.is_some() {
                return self.ended.clone().map_or(Ok(true), Err);
            }
            match self.received.poll_fill(&mut self.stream, cx) {
                Poll::Ready(Ok(0)) => return Err(self.lost().unwrap_or(Broken::Closed)),
                Poll::Ready(Ok(_)) => self.silence.heard(),
                Poll::Ready(Err(error)) => return Err(self.lost().unwrap_or(error.into())),
                Poll::Pending => break,
            }
        }
        if self.silence.poll(cx)? {
            self.output.extend_from_slice(wire::PING);
        }
        // Pings, and answers to what was read last.
        self.write(cx);
        self.lost().map_or(Ok(false), Err)
    }

    /// The server may have said why before it stopped to take anything, so that is read first.
    fn lost(&mut self) -> Option<Broken> {
        self.unwritable.take().map(Broken::from)
    }

    fn write(&mut self, cx: &mut Context<'_>) {
        if self.unwritable.is_none()
            && let Poll::Ready(Err(error)) = self.poll_write(cx)
        {
            self.unwritable = Some(error);
        }
    }

    /// Writes what the stream takes, in as few pieces as it lets us.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.was_full |= self.output.len() - self.taken >= QUEUED_BYTES_FULL;
        while self.taken < self.output.len() {
            self.unflushed = true;
            let rest = &self.output[self.taken..];
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => self.taken += bytes,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.compact();
                    return Poll::Pending;
                }
            }
        }
        self.taken = 0;
        self.output.clear();
        if self.output.capacity() > OUTPUT_BYTES_KEPT {
            self.output = Vec::new();
        }
        if self.unflushed {
            std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// What was taken would be kept as long as something is queued: so no more of it than of that.
    fn compact(&mut self) {
        if self.taken > self.output.len() / 2 {
            self.output.drain(..self.taken);
            self.taken = 0;
        }
    }

    fn has_room_again(&mut self) -> bool {
        let room = self.was_full && self.queued() <= QUEUED_BYTES_FULL / 2;
        self.was_full &= !room;
        room
    }

    /// The next reply in what was received. Everything before it is dealt with.
    fn find(&mut self) -> Option<Found> {
        if self.ended.is_some() {
            return None;
        }
        let around = (&*self.shared.reply, SUBSCRIBED);
        match wire::parse_numbered(self.received.rest(), around) {
            Some((number, body, bytes)) => {
                let message_bytes = body.len();
                let operation = self.received.take(bytes);
                Some(Found::new(number, (0, message_bytes), operation))
            }
            None => self.find_any(),
        }
    }

    fn find_any(&mut self) -> Option<Found> {
        while self.ended.is_none() {
            let parsed = wire::parse(self.received.rest());
            let (operation, bytes) = match parsed {
                Ok(Some(parsed)) => parsed,
                Ok(None) => return None,
                Err(error) => {
                    self.end(error.into());
                    return None;
                }
            };
            let reply = match operation {
                Operation::Message(delivery) => {
                    let number = self.shared.dispatch(&delivery);
                    number.map(|number| (number, lengths(&delivery)))
                }
                Operation::Ping => {
                    self.output.extend_from_slice(wire::PONG);
                    None
                }
                Operation::Pong | Operation::Ok => None,
                Operation::Error(text) => {
                    let longest = self.longest_line.max(self.shared.longest_line());
                    let broken = Broken::said(text, longest);
                    self.end(broken);
                    None
                }
                Operation::Info(json) => {
                    let server = Server::parse(json);
                    self.describe(server);
                    None
                }
            };
            let operation = self.received.take(bytes);
            if let Some((number, lengths)) = reply {
                return Some(Found::new(number, lengths, operation));
            }
        }
        None
    }

    /// The server says anew what it is.
    fn describe(&mut self, server: Result<Server, wire::Malformed>) {
        match server {
            Ok(server) if server.lame_duck => drop(self.end(Broken::LameDuck)),
            Ok(server) => {
                self.max_payload = server.max_payload;
                self.shared.describe(server);
            }
            Err(error) => drop(self.end(error.into())),
        }
    }

    /// Puts the replies aside that have come, so that what comes behind them is found.
    fn keep_all(&mut self) -> Result<(), Broken> {
        loop {
            let found = match self.found.take() {
                Some(found) => found,
                None => match self.find() {
                    Some(found) => found,
                    None => return Ok(()),
                },
            };
            if self.kept.rest().len() > KEPT_BYTES_MAX {
                return Err(Broken::Untaken(KEPT_BYTES_MAX));
            }
            self.kept.append(&self.received.all()[found.operation]);
        }
    }

    #[cold]
    fn next_kept(&mut self) -> Option<Reply<'_>> {
        let parsed = wire::parse(self.kept.rest());
        let Ok(Some((Operation::Message(delivery), bytes))) = parsed else {
            unreachable!("replies alone are kept, as they were parsed");
        };
        let number = self.shared.dispatch(&delivery)?;
        let lengths = lengths(&delivery);
        let operation = self.kept.take(bytes);
        Some(Found::new(number, lengths, operation).reply(self.kept.all()))
    }

    /// Keeps the first reason, and returns it.
    fn end(&mut self, broken: Broken) -> Broken {
        let broken = self.ended.get_or_insert(broken).clone();
        self.shared.end(&broken);
        broken
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end(Broken::Closed);
    }
}

/// A connection that a task drives. Dropped, it ends at once.
#[derive(Debug)]
pub struct Driven {
    requests: Requests,
    /// One task. A set, because dropping it ends the task.
    task: JoinSet<()>,
}

impl Driven {
    /// A handle for requests.
    pub fn requests(&self) -> Requests {
        self.requests.clone()
    }

    /// Closes the connection, once all other handles are dropped and what is queued is sent.
    pub async fn close(mut self) {
        drop(self.requests);
        // However it ends, it ends.
        let _ = self.task.join_next().await;
    }
}

/// Of the headers, and of the whole.
fn lengths(delivery: &Delivery<'_>) -> (usize, usize) {
    let header_bytes = delivery.headers.as_bytes().len();
    (header_bytes, header_bytes + delivery.body.len())
}

/// An inbox that nobody else has: 128 bits in 22 letters and digits, as other clients' ids.
pub(super) fn inbox(prefix: Option<&str>, network: &Network) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut rest = network.unique().as_u128();
    let mut digit = || {
        let digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
        char::from(digit)
    };
    let unique: String = (0..22).map(|_| digit()).collect();
    format!("{}.{unique}", prefix.unwrap_or(INBOX_PREFIX))
}

#[cfg(test)]
mod tests;
