//! A message with headers while it is written, straight into the output. Pure.

use super::{ReplyTo, push_address, push_number};

/// A message that is being written behind everything that was sent before. Dropped, it leaves
/// nothing behind.
///
/// The line of a message says how long its headers are, which is not known while they are written.
/// So the lengths get fields of a fixed width, filled in at the end: fields may be told apart by
/// any number of spaces (docs.nats.io, "Client Protocol"; stored by nats-server 2.10.26 and
/// 2.15.1).
#[derive(Debug)]
pub struct Draft<'a> {
    output: &'a mut Vec<u8>,
    /// Where the message begins.
    start: usize,
    /// Where the fields of the lengths begin.
    lengths: usize,
    /// Where the headers begin.
    block: usize,
    sent: bool,
}

/// Header blocks have less than 64 KiB (error 10097 otherwise).
const HEADER_WIDTH: usize = 5;

/// A message has at most 64 MiB.
const TOTAL_WIDTH: usize = 8;

const BLANK: &[u8; HEADER_WIDTH + 1 + TOTAL_WIDTH + 2] = b"              \r\n";

const VERSION: &[u8] = b"NATS/1.0\r\n";

/// How many bytes the line of a message takes, as servers count it for their `max_control_line`:
/// without the operation (`overMaxControlLineLimit`, nats-server, parser.go). A message without
/// headers has a few less.
pub fn line_bytes(subject: &str, reply: Option<ReplyTo<'_>>) -> usize {
    let digits = |number: u64| number.checked_ilog10().unwrap_or(0) as usize + 1;
    let reply = reply.map(|ReplyTo { prefix, number }| prefix.len() + digits(number) + 1);
    let lengths = HEADER_WIDTH + 1 + TOTAL_WIDTH;
    subject.len() + 1 + reply.unwrap_or(0) + lengths
}

impl<'a> Draft<'a> {
    /// Begins a message to `subject`.
    pub fn new(output: &'a mut Vec<u8>, subject: &str, reply: Option<ReplyTo<'_>>) -> Self {
        let start = output.len();
        output.extend_from_slice(b"HPUB ");
        push_address(output, subject, reply);
        let lengths = output.len();
        output.extend_from_slice(BLANK);
        let block = output.len();
        output.extend_from_slice(VERSION);
        Self {
            output,
            start,
            lengths,
            block,
            sent: false,
        }
    }

    /// Headers as whole lines, `Name: value\r\n` each.
    pub fn lines(&mut self, lines: &[u8]) {
        debug_assert!(lines.is_empty() || lines.ends_with(b"\r\n"));
        self.output.extend_from_slice(lines);
    }

    /// One header. There is no control character in it.
    pub fn line(&mut self, name: &str, value: &[u8]) {
        debug_assert!(!value.iter().any(|byte| matches!(byte, b'\r' | b'\n')));
        self.output.extend_from_slice(name.as_bytes());
        self.output.extend_from_slice(b": ");
        self.output.extend_from_slice(value);
        self.output.extend_from_slice(b"\r\n");
    }

    /// One header that is a number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.output.extend_from_slice(name.as_bytes());
        self.output.extend_from_slice(b": ");
        push_number(self.output, value);
        self.output.extend_from_slice(b"\r\n");
    }

    /// How long its line is, as [`line_bytes`] counts it.
    pub fn line_bytes(&self) -> usize {
        self.block - self.start - b"HPUB \r\n".len()
    }

    /// How many bytes the headers take so far, as the server counts them.
    pub fn header_bytes(&self) -> usize {
        self.output.len() - self.block + b"\r\n".len()
    }

    /// Ends the message.
    pub fn send(mut self, body: &[u8]) {
        let header_bytes = self.header_bytes();
        self.output.extend_from_slice(b"\r\n");
        self.output.extend_from_slice(body);
        self.output.extend_from_slice(b"\r\n");
        let total = (self.lengths + HEADER_WIDTH + 1, TOTAL_WIDTH);
        self.fill_in(total, header_bytes + body.len());
        self.fill_in((self.lengths, HEADER_WIDTH), header_bytes);
        self.sent = true;
    }

    /// Writes a length to the right end of its field, which grows if it must: then the server
    /// refuses the message, and says why.
    fn fill_in(&mut self, (at, width): (usize, usize), length: usize) {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(length).as_bytes();
        match width.checked_sub(digits.len()) {
            Some(blank) => {
                self.output[at + blank..at + width].copy_from_slice(digits);
            }
            None => drop(self.output.splice(at..at + width, digits.iter().copied())),
        }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.sent {
            self.output.truncate(self.start);
        }
    }
}
