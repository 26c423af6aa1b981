//! An event as it leaves: a subject, headers, a body, and its place in the commit order. Knows
//! neither SQL nor NATS.
//!
//! The modules below make events of rows ([`assemble`]): which column means what ([`mapping`]),
//! what an event says of itself ([`format`](mod@format)), and its subject ([`route`]).

pub mod assemble;
pub mod format;
pub mod lineage;
pub mod mapping;
pub mod route;
mod wrapped;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use memchr::memmem::Finder;
use time::OffsetDateTime;

pub use wrapped::{Encoding, REFERENCE, Wrapped};

/// One event, ready to be sent. Cheap to keep until it is settled: the body is shared with the
/// buffer that it was read into.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the commit order.
    pub position: Position,
    /// What consumers and the replay guard know it by.
    pub id: String,
    /// Where it goes.
    pub subject: String,
    /// Headers of the format and of the row; what the sink needs for itself, it adds.
    pub headers: Headers,
    /// The body: the payload as it stood in the row, or what the format wrote around it.
    pub payload: Bytes,
    /// Where the payload is in a body that the format wrote.
    pub wrapped: Option<Box<Wrapped>>,
    /// `schema.table` of the row, or the prefix of a message.
    pub table: Arc<str>,
    /// Consumers are to get it then and not before: it was committed earlier than that.
    pub deliver_at: Option<OffsetDateTime>,
    /// It is of no use from then on.
    pub expires_at: Option<OffsetDateTime>,
    /// It was published before and goes out again, on purpose.
    pub replayed: bool,
    /// Why it cannot be published: it belongs to the dead letters. The other fields then hold what
    /// could be read; the subject may be empty.
    pub rejected: Option<Box<Rejected>>,
    /// How many events come right behind it that are to appear in the stream together with it.
    pub followers: u16,
    /// The record says that it is settled.
    pub known: bool,
}

/// What is wrong with an event, whatever is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// In one word of a fixed set: for programs.
    pub reason: &'static str,
    /// In a sentence: for people.
    pub error: String,
}

impl Event {
    /// What it costs to hold, in bytes: its texts, its body and the structures around them.
    pub fn size(&self) -> usize {
        self.id.len()
            + self.subject.len()
            + self.headers.lines.capacity()
            + self.payload.len()
            + size_of::<Self>()
    }
}

/// Shows no payload: it may be anything, and logs are read by others.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            position,
            id,
            subject,
            ..
        } = self;
        write!(
            f,
            "Event({position} {id} on {subject}, {} bytes)",
            self.payload.len()
        )
    }
}

/// Headers as they are sent: a line `<name>: <value>\r\n` for each, in the order in which they were
/// added; a name may appear again. What cannot be sent is not added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    lines: String,
    unsound: Option<Box<str>>,
}

const COLON: &str = ": ";
const LINE_END: &str = "\r\n";

impl Headers {
    /// Room for lines of so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            lines: String::with_capacity(bytes),
            unsound: None,
        }
    }

    /// Adds a header.
    pub fn push(&mut self, name: &str, value: &str) {
        self.push_with(name, |text| text.push_str(value));
    }

    /// Adds a header whose value `write` appends.
    pub fn push_with(&mut self, name: &str, write: impl FnOnce(&mut String)) {
        let begin = self.lines.len();
        self.lines.push_str(name);
        self.lines.push_str(COLON);
        let value = self.lines.len();
        write(&mut self.lines);
        if header_is_sound(name, &self.lines[value..]) {
            self.lines.push_str(LINE_END);
        } else {
            self.lines.truncate(begin);
            self.unsound.get_or_insert_with(|| name.into());
        }
    }

    /// The name of the first header that could not be added ([`header_is_sound`]).
    pub fn unsound(&self) -> Option<&str> {
        self.unsound.as_deref()
    }

    /// All of them as they are sent.
    pub fn lines(&self) -> &str {
        &self.lines
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.lines.split_terminator(LINE_END);
        lines.filter_map(|line| line.split_once(COLON))
    }

    /// The first value of a name, compared as the server does: exactly.
    pub fn find(&self, name: &str) -> Option<&str> {
        let mut all = self.iter();
        all.find_map(|(known, value)| (known == name).then_some(value))
    }
}

/// Whether a header can be sent as it is: a name of printable ASCII without `:` (ADR-4), a value
/// without control characters; the server checks neither and consumers break. And neither mentions
/// the header that keeps the order: older servers look for that name as for any text and, if they
/// first find it elsewhere, take the message out of order (2.10.26 does, 2.15.1 does not;
/// nats-server pull request 7065).
pub fn header_is_sound(name: &str, value: &str) -> bool {
    let name_ok = !name.is_empty() && all(name, |b| b.is_ascii_graphic() & (b != b':'));
    let ascii_ok = all(value, |b| (b >= b' ') & (b != 0x7f) | (b == b'\t'));
    let value_ok =
        ascii_ok && (value.is_ascii() || !value.chars().any(|c| c.is_control() && c != '\t'));
    name_ok && value_ok && !mentions_chain(name) && !mentions_chain(value)
}

/// Whether each byte is such a one. Without a branch for each, which costs more than to go on.
pub(crate) fn all(text: &str, such: impl Fn(u8) -> bool) -> bool {
    text.bytes().fold(true, |all, byte| all & such(byte))
}

fn mentions_chain(text: &str) -> bool {
    const CHAIN: &str = "Nats-Expected-Last-Sequence";
    static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(CHAIN));
    text.len() >= CHAIN.len() && FINDER.find(text.as_bytes()).is_some()
}

/// An event's place in the commit order of its source: the LSN of its commit record and its index
/// among the rows and messages of that transaction. The text form
/// (`<commit_lsn, 16 hex>-<index, 8 hex>`) sorts the same way.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(into = "String", try_from = "String")]
pub struct Position {
    /// Names the transaction; opaque here.
    pub commit: u64,
    /// From 0, counting what the slot sends in the transaction, published or not.
    pub index: u32,
}

impl Position {
    /// Appends its text form, without what formatting costs: every event has one.
    pub fn push_to(self, text: &mut String) {
        push_hex(text, (self.commit, 16));
        text.push('-');
        push_hex(text, (self.index.into(), 8));
    }
}

/// Appends so many hexadecimal digits of a number.
fn push_hex(text: &mut String, (number, digits): (u64, u32)) {
    for digit in (0..digits).rev() {
        let digit = (number >> (4 * digit)) & 0xf;
        text.push(char::from(b"0123456789ABCDEF"[digit as usize]));
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}-{:08X}", self.commit, self.index)
    }
}

impl From<Position> for String {
    fn from(position: Position) -> Self {
        position.to_string()
    }
}

impl TryFrom<String> for Position {
    type Error = ParsePositionError;

    fn try_from(text: String) -> Result<Self, ParsePositionError> {
        text.parse()
    }
}

/// The text is not a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position (expected 16 and 8 hexadecimal digits, as in 00000000017B8480-00000001)")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, ParsePositionError> {
        let hex = |digits: &str, len| {
            let plain = digits.len() == len && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
                .ok_or(ParsePositionError)
        };
        let (commit, index) = text.split_once('-').ok_or(ParsePositionError)?;
        let index = u32::try_from(hex(index, 8)?).map_err(|_| ParsePositionError)?;
        Ok(Self {
            commit: hex(commit, 16)?,
            index,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_come_back_in_order_with_repeats() {
        let mut headers = Headers::default();
        headers.push("a", "1");
        headers.push("b", "");
        headers.push_with("a", |text| text.push_str("two: 2"));
        assert_eq!(headers.lines(), "a: 1\r\nb: \r\na: two: 2\r\n");
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [("a", "1"), ("b", ""), ("a", "two: 2")]);
        assert_eq!(headers.find("a"), Some("1"));
        assert_eq!(headers.unsound(), None);
    }

    #[test]
    fn header_that_is_not_sound_is_not_sent_and_is_told() {
        let mut headers = Headers::default();
        headers.push("a", "1");
        headers.push("b", "2\r\nNats-Rollup: all");
        headers.push("c\n", "3");
        headers.push("d", "4");
        assert_eq!(headers.lines(), "a: 1\r\nd: 4\r\n");
        assert_eq!(headers.unsound(), Some("b"));
    }

    #[test]
    fn a_header_that_would_break_framing_is_not_sound() {
        assert!(header_is_sound("X-Trace", "grün,\t100 %"));
        for (name, value) in [
            ("", "x"),
            ("a b", "x"),
            ("a:b", "x"),
            ("ü", "x"),
            ("a\r", "x"),
            ("a", "x\r\nNats-Rollup: all"),
            ("a", "\0"),
            ("a", "\u{7f}"),
            ("a", "\u{85}"),
            ("X-Nats-Expected-Last-Sequence", "1"),
            ("a", "see Nats-Expected-Last-Sequence: 7"),
        ] {
            assert!(!header_is_sound(name, value), "{name:?}: {value:?}");
        }
    }

    #[test]
    fn text_that_is_no_position_is_refused() {
        for text in [
            "",
            "-",
            "00000000017B8480",
            "17B8480-1",
            "+0000000017B8480-00000001",
            "00000000017B8480-000000001",
            "00000000017B8480_00000001",
        ] {
            assert_eq!(
                text.parse::<Position>(),
                Err(ParsePositionError),
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn positions_sort_as_their_text(a: (u64, u32), b: (u64, u32)) {
            let position = |(commit, index)| Position { commit, index };
            let (a, b) = (position(a), position(b));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
            prop_assert_eq!(a.to_string().parse(), Ok(a));
            let mut text = String::new();
            a.push_to(&mut text);
            prop_assert_eq!(text, a.to_string());
        }
    }
}
