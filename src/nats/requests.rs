//! Requests on a connection, from anywhere: a handle appends them to what the connection sends, and
//! whoever drives the connection hands the answers back. Knows no socket.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::error::{Broken, RequestError};
use super::wire::{self, Delivery, Draft, Headers, ReplyTo, Server};

/// Most requests that wait for an answer. Ours go one after the other, but for the parts of a body.
const WAITING_MAX: usize = 4096;

/// Most bytes that may wait for the socket when a request is added: a message of any size, and as
/// much again.
const BACKLOG_BYTES_MAX: usize = 2 * wire::PAYLOAD_BYTES_MAX;

/// Most answers to one request that are kept. One is what is asked for; more come where streams of
/// several JetStream domains listen, and those after the eighth say nothing new.
const ANSWERS_MAX: usize = 8;

/// What stands between the inbox and the number of a request; the replies to what is published have
/// the number alone.
const MARK: char = 'r';

/// A handle to a connection that somebody drives: see [`super::Connection`].
#[derive(Debug)]
pub struct Requests {
    shared: Arc<Shared>,
}

/// What is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// Where.
    pub subject: &'a str,
    /// With which headers, `Name: value\r\n` each; empty for none.
    pub lines: &'a [u8],
    /// And what.
    pub body: &'a [u8],
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Message {
    block: Bytes,
    /// Without its headers.
    pub body: Bytes,
}

impl Message {
    /// Its headers; empty if it has none.
    pub fn headers(&self) -> Headers<'_> {
        Headers::new(&self.block)
    }
}

impl Requests {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        shared.handles.fetch_add(1, Ordering::Relaxed);
        Self { shared }
    }

    /// Asks, and waits for the first answer.
    pub async fn request(
        &self,
        request: Request<'_>,
        within: Duration,
    ) -> Result<Message, RequestError> {
        let mut answers = self.ask(request)?;
        match timeout(within, answers.next()).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(RequestError::TimedOut(within)),
        }
    }

    /// Asks, and returns where everybody's answers come.
    pub fn ask(&self, request: Request<'_>) -> Result<Answers, RequestError> {
        let Request {
            subject,
            lines,
            body,
        } = request;
        if !wire::is_subject(subject) {
            return Err(RequestError::Subject(subject.to_owned()));
        }
        let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
        let mut queue = self.shared.queue();
        if let Some(broken) = &queue.ended {
            return Err(broken.clone().into());
        }
        let backlog = queue.pending.len() + self.shared.backlog_bytes.load(Ordering::Relaxed);
        if queue.waiting.len() >= WAITING_MAX || backlog > BACKLOG_BYTES_MAX {
            return Err(RequestError::TooMany);
        }
        let number = queue.next;
        let reply = ReplyTo {
            prefix: &self.shared.marked,
            number,
        };
        append(&mut queue, (subject, reply), (lines, body))?;
        queue.next += 1;
        queue.waiting.insert(number, sender);
        self.shared.pending.store(true, Ordering::Release);
        drop(queue);
        self.shared.driver.wake();
        let requests = self.clone();
        Ok(Answers {
            requests,
            number,
            receiver,
        })
    }

    /// How long the line of the next request is.
    pub fn line_bytes(&self, subject: &str) -> usize {
        let (prefix, number) = (&*self.shared.marked, self.shared.queue().next);
        wire::line_bytes(subject, Some(ReplyTo { prefix, number }))
    }

    /// Longest line that the server takes, as far as is known.
    pub fn line_bytes_max(&self) -> usize {
        self.shared.line_bytes_max()
    }

    /// The server, as it last described itself.
    pub fn server(&self) -> Arc<Server> {
        Arc::clone(&self.shared.queue().server)
    }
}

impl Clone for Requests {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.shared))
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        if self.shared.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.driver.wake();
        }
    }
}

/// Writes a request behind the others, or nothing.
fn append(
    queue: &mut Queue,
    (subject, reply): (&str, ReplyTo<'_>),
    (lines, body): (&[u8], &[u8]),
) -> Result<(), RequestError> {
    let (line_bytes, bytes_max) = (wire::line_bytes(subject, Some(reply)), queue.line_bytes_max);
    if line_bytes > bytes_max {
        let bytes = line_bytes;
        return Err(RequestError::LineTooLong { bytes, bytes_max });
    }
    queue.longest_line = queue.longest_line.max(line_bytes);
    let bytes_max = queue.server.max_payload;
    let fits = |bytes: usize| match bytes > bytes_max {
        true => Err(RequestError::TooLarge { bytes, bytes_max }),
        false => Ok(()),
    };
    if lines.is_empty() {
        fits(body.len())?;
        wire::publish(&mut queue.pending, subject, Some(reply), body);
        return Ok(());
    }
    let mut draft = Draft::new(&mut queue.pending, subject, Some(reply));
    draft.lines(lines);
    fits(draft.header_bytes() + body.len())?;
    draft.send(body);
    Ok(())
}

/// The answers to one request, as they come.
#[derive(Debug)]
pub struct Answers {
    requests: Requests,
    number: u64,
    receiver: mpsc::Receiver<Message>,
}

impl Answers {
    /// The next one. Cancel-safe, as `recv` of a channel is.
    pub async fn next(&mut self) -> Result<Message, Broken> {
        let next = self.receiver.recv().await;
        next.ok_or_else(|| self.broken())
    }

    /// One that has come.
    pub fn try_next(&mut self) -> Option<Message> {
        self.receiver.try_recv().ok()
    }

    fn broken(&self) -> Broken {
        let ended = &self.requests.shared.queue().ended;
        ended.clone().unwrap_or(Broken::Closed)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.requests.shared.queue().waiting.remove(&self.number);
    }
}

/// What the handles and the connection have in common.
#[derive(Debug)]
pub(super) struct Shared {
    /// `<inbox>.`: what the subjects of replies to what is published begin with.
    pub(super) inbox: Box<[u8]>,
    /// `MSG <inbox>.`: how such a reply begins.
    pub(super) reply: Box<[u8]>,
    /// The same for replies to requests.
    marked: Box<[u8]>,
    queue: Mutex<Queue>,
    /// Whether there are requests in the queue: asked for every message.
    pending: AtomicBool,
    /// How many bytes the connection had queued when it was last driven.
    backlog_bytes: AtomicUsize,
    handles: AtomicUsize,
    driver: AtomicWaker,
}

#[derive(Debug)]
struct Queue {
    /// Requests that the connection has not taken yet.
    pending: Vec<u8>,
    /// Who waits for the answers to which.
    waiting: BTreeMap<u64, mpsc::Sender<Message>>,
    next: u64,
    /// How long the longest line is.
    longest_line: usize,
    /// How long one may be.
    line_bytes_max: usize,
    server: Arc<Server>,
    ended: Option<Broken>,
}

impl Shared {
    pub(super) fn new(inbox: &str, server: Server) -> Self {
        Self {
            inbox: format!("{inbox}.").into_bytes().into(),
            reply: format!("MSG {inbox}.").into_bytes().into(),
            marked: format!("{inbox}.{MARK}").into_bytes().into(),
            queue: Mutex::new(Queue {
                pending: Vec::new(),
                waiting: BTreeMap::new(),
                next: 0,
                longest_line: 0,
                line_bytes_max: wire::CONTROL_LINE_BYTES_MAX,
                server: Arc::new(server),
                ended: None,
            }),
            pending: AtomicBool::new(false),
            backlog_bytes: AtomicUsize::new(0),
            handles: AtomicUsize::new(0),
            driver: AtomicWaker::new(),
        }
    }

    /// Nobody panics while it is locked; and if somebody did, it would be whole.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is to be woken for a request.
    pub(super) fn register(&self, driver: &Waker) {
        self.driver.register(driver);
    }

    /// Moves the requests to the end of what is sent.
    #[inline]
    pub(super) fn take(&self, output: &mut Vec<u8>) {
        if self.pending.load(Ordering::Acquire) {
            self.take_pending(output);
        }
    }

    #[cold]
    fn take_pending(&self, output: &mut Vec<u8>) {
        let mut queue = self.queue();
        self.pending.store(false, Ordering::Relaxed);
        match output.is_empty() {
            true => std::mem::swap(output, &mut queue.pending),
            false => output.append(&mut queue.pending),
        }
    }

    /// How many bytes of requests are still to be taken.
    pub(super) fn pending_bytes(&self) -> usize {
        match self.pending.load(Ordering::Acquire) {
            true => self.queue().pending.len(),
            false => 0,
        }
    }

    pub(super) fn note_backlog(&self, bytes: usize) {
        self.backlog_bytes.store(bytes, Ordering::Relaxed);
    }

    /// No handle is left.
    pub(super) fn abandoned(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 0
    }

    /// The number of a reply to what was published; what answers a request is handed over.
    pub(super) fn dispatch(&self, delivery: &Delivery<'_>) -> Option<u64> {
        let last = delivery.subject.strip_prefix(&*self.inbox)?;
        match last.strip_prefix(&[MARK as u8]) {
            None => wire::number(last),
            Some(number) => {
                self.answer(wire::number(number)?, delivery);
                None
            }
        }
    }

    /// Whoever does not wait any longer, or has enough, gets nothing.
    fn answer(&self, number: u64, delivery: &Delivery<'_>) {
        let Some(waiting) = self.queue().waiting.get(&number).cloned() else {
            return;
        };
        let message = Message {
            block: Bytes::copy_from_slice(delivery.headers.as_bytes()),
            body: Bytes::copy_from_slice(delivery.body),
        };
        // It is full, or the receiver is gone.
        drop(waiting.try_send(message));
    }

    /// The server has described itself anew.
    pub(super) fn describe(&self, server: Server) {
        self.queue().server = Arc::new(server);
    }

    /// How long the longest line is of what was asked.
    pub(super) fn longest_line(&self) -> usize {
        self.queue().longest_line
    }

    /// Longest line that the server takes, as far as is known.
    pub(super) fn line_bytes_max(&self) -> usize {
        self.queue().line_bytes_max
    }

    /// It is known to take no longer lines.
    pub(super) fn limit_lines(&self, bytes_max: usize) {
        self.queue().line_bytes_max = bytes_max;
    }

    /// Nothing is sent or answered from now on.
    pub(super) fn end(&self, broken: &Broken) {
        let mut queue = self.queue();
        queue.ended.get_or_insert_with(|| broken.clone());
        queue.pending = Vec::new();
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        // Whoever waits is woken by this, and may ask why at once.
        drop(waiting);
    }

    /// The server, as it last described itself.
    pub(super) fn server(&self) -> Arc<Server> {
        Arc::clone(&self.queue().server)
    }
}
