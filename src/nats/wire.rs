//! NATS's protocol as bytes: what a server says, read where it lies, and what a client says,
//! appended to a buffer (docs.nats.io, "Client Protocol"; `server/parser.go` of nats-server). Pure.
//!
//! Reading cannot leave the buffer, and no length that a server announces makes us allocate: what
//! is longer than its bound is refused before it has come.

mod draft;
mod headers;

use memchr::{memchr, memchr2};
use serde::{Deserialize, Serialize};

pub use self::draft::{Draft, line_bytes};
pub use self::headers::Headers;

/// Longest line of a message: the server's own limit for those of its clients, unless it is
/// configured (`MAX_CONTROL_LINE_SIZE`, nats-server), and what it sends has no longer subjects.
pub const CONTROL_LINE_BYTES_MAX: usize = 4096;

/// Longest INFO and -ERR. An INFO names every server of a cluster (some hundred bytes and 50 each).
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Longest message. nats-server has `max_payload` be no larger than `max_pending`, which is 64 MiB
/// unless it is configured.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most bytes of a message that is received: one that is read back comes in base64, in JSON.
pub const RECEIVED_BYTES_MAX: usize = 2 * PAYLOAD_BYTES_MAX;

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// What it is, as JSON: a [`Server`].
    Info(&'a [u8]),
    /// A message for a subscription of ours.
    Message(Delivery<'a>),
    /// It wants a PONG.
    Ping,
    /// It has taken everything before our PING.
    Pong,
    /// Only to clients that are verbose.
    Ok,
    /// What went wrong, without the quotes.
    Error(&'a [u8]),
}

/// A message as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// Where it was published to.
    pub subject: &'a [u8],
    /// Our number for the subscription.
    pub subscription: u64,
    /// Where an answer goes.
    pub reply: Option<&'a [u8]>,
    /// Its headers, empty if it has none.
    pub headers: Headers<'a>,
    /// All else.
    pub body: &'a [u8],
}

/// What a server says is none of this: it, or something between us, speaks another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read {0}")]
pub struct Malformed(pub(super) &'static str);

/// The operation that the buffer begins with, and how many bytes it takes; `None` while more must
/// come.
pub fn parse(buffer: &[u8]) -> Result<Option<(Operation<'_>, usize)>, Malformed> {
    let Some(first) = buffer.first() else {
        return Ok(None);
    };
    match first.to_ascii_lowercase() {
        b'm' => message(buffer, "MSG"),
        b'h' => message(buffer, "HMSG"),
        b'p' => bare(buffer),
        b'+' => bare(buffer),
        b'i' => text(buffer, "INFO", Operation::Info),
        b'-' => text(buffer, "-ERR", |text| Operation::Error(unquoted(text))),
        _ => Err(Malformed("an operation of the server")),
    }
}

/// A message without headers whose subject ends with a number: the number, the body, and how many
/// bytes all of it takes. `around` are the bytes before the number, and those from behind it to the
/// length. This is how servers write the reply to a publish, and it comes for every event: so it is
/// read here in a quarter of the time. All else, and what is incomplete, is left to [`parse`].
#[inline]
pub fn parse_numbered<'a>(
    buffer: &'a [u8],
    around: (&[u8], &[u8]),
) -> Option<(u64, &'a [u8], usize)> {
    let rest = buffer.strip_prefix(around.0)?;
    let (number, rest) = leading_number(rest)?;
    let rest = rest.strip_prefix(around.1)?;
    let (length, rest) = leading_number(rest)?;
    let length = usize::try_from(length).ok();
    let length = length.filter(|length| *length <= RECEIVED_BYTES_MAX)?;
    let rest = rest.strip_prefix(b"\r\n")?;
    let (body, rest) = rest.split_at_checked(length)?;
    let rest = rest.strip_prefix(b"\r\n")?;
    Some((number, body, buffer.len() - rest.len()))
}

/// The digits that stand in front, if they are no more than any number of ours has.
#[inline]
fn leading_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for (index, byte) in bytes.iter().take(NUMBER_DIGITS_MAX + 1).enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return (index > 0).then(|| (number, &bytes[index..]));
        }
        number = number * 10 + u64::from(digit);
    }
    None
}

/// With one digit more no number overflows.
const NUMBER_DIGITS_MAX: usize = 18;

/// What an operation that takes so many bytes is, if it is complete.
type Parsed<'a> = Result<Option<(Operation<'a>, usize)>, Malformed>;

fn message<'a>(buffer: &'a [u8], name: &str) -> Parsed<'a> {
    let Some((line, after)) = line(buffer, CONTROL_LINE_BYTES_MAX)? else {
        return Ok(None);
    };
    let Some(line) = arguments(line, name) else {
        return Err(Malformed("an operation of the server"));
    };
    let [subject, subscription, fields @ ..] = fields(line)?;
    let (reply, header_bytes, bytes) = match (name, fields) {
        ("MSG", [Some(bytes), None, None]) => (None, None, bytes),
        ("MSG", [reply, Some(bytes), None]) => (reply, None, bytes),
        ("HMSG", [Some(header), Some(bytes), None]) => (None, Some(header), bytes),
        ("HMSG", [reply, Some(header), Some(bytes)]) => (reply, Some(header), bytes),
        _ => return Err(Malformed("the lengths of a message")),
    };
    let (Some(subject), Some(subscription)) = (subject, subscription.and_then(number)) else {
        return Err(Malformed("the subject of a message"));
    };
    let bytes = length(bytes, RECEIVED_BYTES_MAX)?;
    let header_bytes = header_bytes.map_or(Ok(0), |header| length(header, bytes))?;
    let Some((whole, rest)) = buffer[after..].split_at_checked(bytes) else {
        return Ok(None);
    };
    match rest {
        [b'\r', b'\n', ..] => {}
        [] | [b'\r'] => return Ok(None),
        _ => return Err(Malformed("the end of a message")),
    }
    let (headers, body) = whole.split_at(header_bytes);
    let message = Operation::Message(Delivery {
        subject,
        subscription,
        reply,
        headers: Headers::new(headers),
        body,
    });
    Ok(Some((message, after + bytes + b"\r\n".len())))
}

fn bare(buffer: &[u8]) -> Parsed<'_> {
    let Some((line, after)) = line(buffer, CONTROL_LINE_BYTES_MAX)? else {
        return Ok(None);
    };
    let known = [
        ("PING", Operation::Ping),
        ("PONG", Operation::Pong),
        ("+OK", Operation::Ok),
    ];
    let found = known
        .into_iter()
        .find(|(name, _)| arguments(line, name).is_some());
    match found {
        Some((_, operation)) => Ok(Some((operation, after))),
        None => Err(Malformed("an operation of the server")),
    }
}

fn text<'a>(
    buffer: &'a [u8],
    name: &str,
    operation: impl FnOnce(&'a [u8]) -> Operation<'a>,
) -> Parsed<'a> {
    let Some((line, after)) = line(buffer, TEXT_BYTES_MAX)? else {
        return Ok(None);
    };
    match arguments(line, name) {
        Some(text) => Ok(Some((operation(text.trim_ascii()), after))),
        None => Err(Malformed("an operation of the server")),
    }
}

/// The first line without its end, and how many bytes it takes with it.
fn line(buffer: &[u8], bytes_max: usize) -> Result<Option<(&[u8], usize)>, Malformed> {
    let within = &buffer[..buffer.len().min(bytes_max)];
    match memchr(b'\n', within) {
        Some(end) => {
            let line = &within[..end];
            Ok(Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1)))
        }
        None if buffer.len() >= bytes_max => Err(Malformed("a line without an end")),
        None => Ok(None),
    }
}

/// What follows the name of an operation, which may be in any case.
fn arguments<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let (named, rest) = line.split_at_checked(name.len())?;
    let is_named = named.eq_ignore_ascii_case(name.as_bytes());
    (is_named && rest.first().is_none_or(|byte| is_space(*byte))).then_some(rest)
}

fn is_space(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The fields of a message's line; there may be several spaces between them.
fn fields(line: &[u8]) -> Result<[Option<&[u8]>; 5], Malformed> {
    let mut fields = [None; 5];
    let mut rest = line;
    for field in &mut fields {
        *field = next_field(&mut rest);
    }
    match next_field(&mut rest) {
        None => Ok(fields),
        Some(_) => Err(Malformed("the fields of a message")),
    }
}

fn next_field<'a>(line: &mut &'a [u8]) -> Option<&'a [u8]> {
    while let [first, rest @ ..] = *line {
        if !is_space(*first) {
            let end = memchr2(b' ', b'\t', line).unwrap_or(line.len());
            let (field, rest) = line.split_at(end);
            *line = rest;
            return Some(field);
        }
        *line = rest;
    }
    None
}

/// Digits as a number.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for digit in digits {
        let digit = u64::from(digit.wrapping_sub(b'0'));
        if digit > 9 {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(digit)?;
    }
    (!digits.is_empty()).then_some(number)
}

fn length(digits: &[u8], bytes_max: usize) -> Result<usize, Malformed> {
    number(digits)
        .and_then(|length| usize::try_from(length).ok())
        .filter(|length| *length <= bytes_max)
        .ok_or(Malformed("the length of a message"))
}

fn unquoted(text: &[u8]) -> &[u8] {
    let inner = text.strip_prefix(b"'").and_then(|t| t.strip_suffix(b"'"));
    inner.unwrap_or(text)
}

/// What a server says of itself (INFO). What it leaves out is empty.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Server {
    /// Of its process.
    #[serde(rename = "server_id")]
    pub id: String,
    /// As configured; else its id.
    #[serde(rename = "server_name")]
    pub name: String,
    /// `2.12.1`
    pub version: String,
    /// Most bytes of headers and body of a message.
    pub max_payload: usize,
    /// Whether it takes headers.
    pub headers: bool,
    /// Whether JetStream runs.
    pub jetstream: bool,
    /// Its JetStream domain.
    pub domain: Option<String>,
    /// It talks over TLS only.
    pub tls_required: bool,
    /// It also talks over TLS.
    pub tls_available: bool,
    /// It lets nobody in without credentials.
    pub auth_required: bool,
    /// To be signed.
    pub nonce: String,
    /// Other servers of its cluster.
    pub connect_urls: Vec<String>,
    /// It is about to shut down: lame duck mode.
    #[serde(rename = "ldm")]
    pub lame_duck: bool,
}

/// What a server has that does not say it: the default of `max_payload`.
const MAX_PAYLOAD_USUAL: usize = 1024 * 1024;

impl Default for Server {
    fn default() -> Self {
        Self {
            id: String::new(),
            name: String::new(),
            version: String::new(),
            max_payload: MAX_PAYLOAD_USUAL,
            headers: false,
            jetstream: false,
            domain: None,
            tls_required: false,
            tls_available: false,
            auth_required: false,
            nonce: String::new(),
            connect_urls: Vec::new(),
            lame_duck: false,
        }
    }
}

impl Server {
    /// Reads an INFO.
    pub fn parse(json: &[u8]) -> Result<Self, Malformed> {
        serde_json::from_slice(json).map_err(|_| Malformed("what the server says of itself"))
    }

    /// Whether its version is this one or newer; one that cannot be read is older.
    pub fn at_least(&self, major: u64, minor: u64, patch: u64) -> bool {
        let version = self.version.strip_prefix('v').unwrap_or(&self.version);
        let mut parts = version.splitn(3, '.').map(|part| {
            let end = part.find(|letter: char| !letter.is_ascii_digit());
            number(&part.as_bytes()[..end.unwrap_or(part.len())])
        });
        let Some(Some(found)) = parts.next() else {
            return false;
        };
        let mut part = || parts.next().flatten().unwrap_or(0);
        (found, part(), part()) >= (major, minor, patch)
    }
}

/// Who a client is and what it understands (CONNECT). Never shown: it holds secrets.
#[derive(Serialize)]
pub struct Connect<'a> {
    /// Whether every operation is answered with +OK.
    pub verbose: bool,
    /// Whether subjects are checked more strictly.
    pub pedantic: bool,
    /// Whether it talks over TLS.
    pub tls_required: bool,
    /// For `nats server report connections`.
    pub name: &'a str,
    /// The language it is written in.
    pub lang: &'a str,
    /// Its version.
    pub version: &'a str,
    /// 1: INFO may come at any time.
    pub protocol: u8,
    /// Whether its own messages come back to its subscriptions.
    pub echo: bool,
    /// It reads headers.
    pub headers: bool,
    /// It is told when nobody listens, with status 503.
    pub no_responders: bool,
    /// Its credentials, each if it has it.
    #[serde(flatten)]
    pub credentials: Credentials<'a>,
}

/// How a client signs in.
#[derive(Clone, Default, Serialize)]
pub struct Credentials<'a> {
    /// A user name,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    /// and its password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<&'a str>,
    /// A token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_token: Option<&'a str>,
    /// A public NKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey: Option<String>,
    /// or a JWT,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<&'a str>,
    /// and the server's nonce, signed, in base64 for URLs.
    #[serde(rename = "sig", skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// Asks whether the server is there.
pub const PING: &[u8] = b"PING\r\n";

/// Answers a PING.
pub const PONG: &[u8] = b"PONG\r\n";

/// Signs in.
pub fn connect(output: &mut Vec<u8>, connect: &Connect<'_>) {
    output.extend_from_slice(b"CONNECT ");
    serde_json::to_writer(&mut *output, connect).expect("a Vec takes it, and no key is refused");
    output.extend_from_slice(b"\r\n");
}

/// Subscribes to what is published to `subject`, under a number of ours.
pub fn subscribe(output: &mut Vec<u8>, subject: &str, subscription: u64) {
    debug_assert!(is_subject(subject));
    output.extend_from_slice(b"SUB ");
    output.extend_from_slice(subject.as_bytes());
    output.push(b' ');
    push_number(output, subscription);
    output.extend_from_slice(b"\r\n");
}

/// Where an answer goes: a subject that ends with a number.
#[derive(Clone, Copy, Debug)]
pub struct ReplyTo<'a> {
    /// All before the number.
    pub prefix: &'a [u8],
    /// Its last digits.
    pub number: u64,
}

/// Publishes a message without headers.
pub fn publish(output: &mut Vec<u8>, subject: &str, reply: Option<ReplyTo<'_>>, body: &[u8]) {
    output.extend_from_slice(b"PUB ");
    push_address(output, subject, reply);
    push_number(output, body.len() as u64);
    output.extend_from_slice(b"\r\n");
    output.extend_from_slice(body);
    output.extend_from_slice(b"\r\n");
}

fn push_address(output: &mut Vec<u8>, subject: &str, reply: Option<ReplyTo<'_>>) {
    debug_assert!(is_subject(subject));
    output.extend_from_slice(subject.as_bytes());
    output.push(b' ');
    if let Some(ReplyTo { prefix, number }) = reply {
        output.extend_from_slice(prefix);
        push_number(output, number);
        output.push(b' ');
    }
}

/// Whether a line with this subject has the fields that it should have.
pub fn is_subject(subject: &str) -> bool {
    let breaks = |byte: u8| byte <= b' ' || byte == 0x7f;
    !subject.is_empty() && !subject.bytes().any(breaks)
}

/// Appends a number in decimal digits.
pub fn push_number(output: &mut Vec<u8>, number: u64) {
    let mut digits = itoa::Buffer::new();
    output.extend_from_slice(digits.format(number).as_bytes());
}

#[cfg(test)]
mod tests;
