//! One client's connection: what it says is taken as it comes, and what is there for it is written
//! as soon as it takes it. All that waits is in the hub, so that the connection can be dropped at
//! any time.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::hub::Hub;
use super::wire::{self, Said};

/// How much is read at once.
const READ_BYTES: usize = 32 * 1024;

/// Serves a connection until one side closes it.
pub(super) async fn serve(hub: Arc<Mutex<Hub>>, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let number = lock(&hub).open();
    let mut session = Session {
        hub,
        number,
        stream,
        input: Vec::new(),
        output: Vec::new(),
        written: 0,
        // Its own memory, because most of the time none is needed.
        room: vec![0; READ_BYTES].into_boxed_slice(),
    };
    let mut alarm = pin!(None);
    poll_fn(|cx| session.poll(cx, alarm.as_mut())).await;
}

fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Session<S> {
    hub: Arc<Mutex<Hub>>,
    number: u64,
    stream: S,
    /// What was read and is not whole yet.
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    room: Box<[u8]>,
}

impl<S> Drop for Session<S> {
    fn drop(&mut self) {
        lock(&self.hub).close(self.number);
    }
}

/// What there is to do.
struct Work {
    closing: bool,
    due: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    fn poll(&mut self, cx: &mut Context<'_>, mut alarm: Pin<&mut Option<Sleep>>) -> Poll<()> {
        loop {
            let Some(work) = self.take(cx) else {
                return Poll::Pending;
            };
            let gone = self.poll_write(cx);
            if gone == Poll::Ready(Err(())) {
                return Poll::Ready(());
            }
            if work.closing {
                return match gone {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(_) => Pin::new(&mut self.stream).poll_shutdown(cx).map(drop),
                };
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(())) => continue,
                Poll::Ready(Err(())) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            let Some(due) = work.due else {
                alarm.set(None);
                return Poll::Pending;
            };
            alarm.set(Some(sleep_until(due)));
            let alarm = alarm.as_mut().as_pin_mut().expect("it was just set");
            if alarm.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Takes what is to be written. `None`: the server stands still.
    fn take(&mut self, cx: &Context<'_>) -> Option<Work> {
        let mut hub = lock(&self.hub);
        let paused = hub.paused;
        let due = if paused {
            None
        } else {
            hub.send_due(self.number)
        };
        let connection = hub.connection(self.number);
        connection.waker = Some(cx.waker().clone());
        if paused && !connection.closing {
            return None;
        }
        if self.output.is_empty() {
            std::mem::swap(&mut self.output, &mut connection.output);
        }
        let closing = connection.closing;
        Some(Work { closing, due })
    }

    /// `Err`: the client is gone.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(())),
                Poll::Ready(Ok(bytes)) => self.written += bytes,
                Poll::Pending => return Poll::Pending,
            }
        }
        self.output.clear();
        self.written = 0;
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        flushed.map_err(drop)
    }

    /// Reads once, and does what was said. `Err`: the client is gone.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        let mut room = ReadBuf::new(&mut self.room);
        match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(())),
            Poll::Ready(Ok(())) => {}
        }
        let read = room.filled();
        if read.is_empty() {
            return Poll::Ready(Err(()));
        }
        self.input.extend_from_slice(read);
        self.obey();
        Poll::Ready(Ok(()))
    }

    fn obey(&mut self) {
        let mut hub = lock(&self.hub);
        hub.advance();
        let mut taken = 0;
        while !hub.connection(self.number).closing {
            match wire::parse(&self.input[taken..], hub.limits()) {
                Ok(None) => break,
                Ok(Some((said, bytes))) => {
                    obey(&mut hub, self.number, said);
                    taken += bytes;
                }
                Err(fault) => {
                    let connection = hub.connection(self.number);
                    let error = format!("-ERR '{}'\r\n", fault.text());
                    connection.output.extend_from_slice(error.as_bytes());
                    connection.closing = true;
                }
            }
        }
        self.input.drain(..taken);
    }
}

fn obey(hub: &mut Hub, number: u64, said: Said<'_>) {
    match said {
        Said::Publish(published) => hub.publish(number, &published),
        Said::Subscribe {
            subject,
            number: id,
        } => hub.subscribe(number, (subject, id)),
        Said::Unsubscribe { number: id, after } => {
            hub.connection(number).unsubscribe(id, after);
        }
        Said::Connect(_) => hub.connection(number).connected = true,
        Said::Pong => {}
        Said::Ping => {
            let info = hub.info(number, true);
            let names = hub.options.version.names_subjects();
            let connection = hub.connection(number);
            connection.output.extend_from_slice(b"PONG\r\n");
            if connection.connected && !connection.signed_in {
                connection.signed_in = true;
                if names {
                    connection.output.extend_from_slice(&info);
                }
            }
        }
    }
}
