//! What was received and not yet taken. One buffer, used over and over; it grows for a message that
//! is larger, and is given back after it.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Some hundred replies: what a server that is under load writes at once.
const RECEIVED_BYTES: usize = 64 * 1024;

/// With less room than this a read is not worth its system call.
const READ_BYTES_MIN: usize = 8 * 1024;

/// Bytes that come at the end and are taken from the front.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// All of it is written over; so it need not be initialised for each read.
    bytes: Vec<u8>,
    /// Where the rest begins, and where it ends.
    start: usize,
    end: usize,
}

impl Received {
    /// What was received by somebody else.
    pub(super) fn with(bytes: &[u8]) -> Self {
        let mut received = Self::default();
        received.append(bytes);
        received
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// What was not taken yet.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The whole buffer: ranges that [`take`](Self::take) has returned lie in it until something
    /// is added.
    pub(super) fn all(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes so many bytes from the front.
    pub(super) fn take(&mut self, bytes: usize) -> Range<usize> {
        let taken = self.start..self.start + bytes;
        assert!(taken.end <= self.end, "only what was received is taken");
        self.start = taken.end;
        taken
    }

    /// Adds what is there already.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// One read of whatever is there; 0 is the end.
    pub(super) fn poll_fill(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.make_room(READ_BYTES_MIN);
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        match ready!(Pin::new(stream).poll_read(cx, &mut room)) {
            Ok(()) => {
                let bytes = room.filled().len();
                self.end += bytes;
                Poll::Ready(Ok(bytes))
            }
            // TLS without close_notify, which a server that is killed does not send.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// The length that a message announces is not believed: the buffer doubles as it fills.
    fn make_room(&mut self, wanted: usize) {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
            if self.bytes.len() > RECEIVED_BYTES {
                self.bytes = Vec::new();
            }
        }
        if self.bytes.len() - self.end >= wanted {
            return;
        }
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = self.bytes.len() - self.end;
        if room < wanted {
            let bytes = (self.end + wanted).max(2 * self.bytes.len());
            self.bytes.resize(bytes.max(RECEIVED_BYTES), 0);
        }
    }
}
