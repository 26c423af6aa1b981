//! Messages as they are sent, and the header lines that are the sink's.

use bytes::Bytes;

use super::names::{MESSAGE_ID, PLAIN_ID, POSITION, REPLAY};
use crate::event::Event;
use crate::nats::Request;

/// A message on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) subject: &'a str,
    /// Its headers, a line `<name>: <value>\r\n` for each.
    pub(crate) lines: &'a str,
    pub(crate) body: &'a [u8],
}

impl<'a> From<Outgoing<'a>> for Request<'a> {
    fn from(message: Outgoing<'a>) -> Self {
        Self {
            subject: message.subject,
            lines: message.lines.as_bytes(),
            body: message.body,
        }
    }
}

/// The same, kept for later.
#[derive(Clone, Debug)]
pub(crate) struct Composed {
    pub(crate) subject: String,
    pub(crate) lines: String,
    pub(crate) body: Bytes,
}

impl Composed {
    pub(crate) fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            subject: &self.subject,
            lines: &self.lines,
            body: &self.body,
        }
    }

    /// Bytes of headers and body, as the server counts them.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let headers = block_bytes(self.lines.len());
        (headers, headers + self.body.len())
    }
}

/// A value of `Nats-TTL`: whole seconds, of which there must be one (ADR-43).
pub(crate) fn ttl(left: time::Duration) -> String {
    let seconds = left.whole_seconds() + i64::from(left.subsec_nanoseconds() > 0);
    format!("{}s", seconds.max(1))
}

/// What lines of so many bytes take as a header block; the server counts that with the body.
pub(crate) fn block_bytes(lines: usize) -> usize {
    lines + "NATS/1.0\r\n\r\n".len()
}

/// Adds where an event belongs and what it is known by: as [`PLAIN_ID`] where `anonymous`.
pub(crate) fn push_marks(lines: &mut String, event: &Event, anonymous: bool) {
    if event.replayed {
        push(lines, REPLAY, "1");
    }
    push_with(lines, POSITION, |lines| event.position.push_to(lines));
    // The server would take what goes out again for a duplicate, and so would other streams.
    let anonymous = anonymous || event.replayed;
    push(
        lines,
        if anonymous { PLAIN_ID } else { MESSAGE_ID },
        &event.id,
    );
}

/// Adds a header that is a number.
pub(crate) fn push_number(lines: &mut String, name: &str, number: u64) {
    push(lines, name, itoa::Buffer::new().format(number));
}

/// Adds a header whose value was checked, or is ours.
pub(crate) fn push(lines: &mut String, name: &str, value: &str) {
    push_with(lines, name, |lines| lines.push_str(value));
}

/// Adds a header whose value `write` appends.
pub(crate) fn push_with(lines: &mut String, name: &str, write: impl FnOnce(&mut String)) {
    lines.push_str(name);
    lines.push_str(": ");
    write(lines);
    lines.push_str("\r\n");
}

/// The headers of the format and of the row, and whether it goes out again.
pub(crate) fn row_lines(event: &Event) -> String {
    let mut lines = event.headers.lines().to_owned();
    if event.replayed {
        push(&mut lines, REPLAY, "1");
    }
    lines
}
