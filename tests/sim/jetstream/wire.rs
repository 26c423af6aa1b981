//! What a client says (docs.nats.io, "Client Protocol"). Pure.

use super::header::number;

/// An operation of a client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Connect(&'a [u8]),
    Ping,
    Pong,
    Subscribe {
        subject: &'a [u8],
        number: &'a [u8],
    },
    Unsubscribe {
        number: &'a [u8],
        after: Option<u64>,
    },
    Publish(Published<'a>),
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Published<'a> {
    pub(super) subject: &'a [u8],
    /// Empty if none is wanted.
    pub(super) reply: &'a [u8],
    /// Empty, or from `NATS/1.0` to the empty line.
    pub(super) headers: &'a [u8],
    pub(super) body: &'a [u8],
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    LineTooLong,
    PayloadTooLong,
    NotUnderstood,
}

impl Fault {
    /// What the server says first.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::LineTooLong => "maximum control line exceeded",
            Self::PayloadTooLong => "Maximum Payload Violation",
            Self::NotUnderstood => "Unknown Protocol Operation",
        }
    }
}

/// The most that a server takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) payload: usize,
    pub(super) line: usize,
}

/// The next operation, and how many bytes it takes; `None`: it is not all there.
pub(super) fn parse(input: &[u8], limits: Limits) -> Result<Option<(Said<'_>, usize)>, Fault> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        let too_long = input.len() > limits.line && !input.starts_with(b"CONNECT");
        return if too_long {
            Err(Fault::LineTooLong)
        } else {
            Ok(None)
        };
    };
    let line = &input[..end];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let after = end + 1;
    let (name, arguments) = match line.iter().position(u8::is_ascii_whitespace) {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, &b""[..]),
    };
    let is = |operation: &str| name.eq_ignore_ascii_case(operation.as_bytes());
    if !is("CONNECT") && arguments.len() > limits.line {
        return Err(Fault::LineTooLong);
    }
    if is("PUB") || is("HPUB") {
        return message((input, after), arguments, (is("HPUB"), limits));
    }
    let mut fields = arguments
        .split(u8::is_ascii_whitespace)
        .filter(|it| !it.is_empty());
    let mut field = || fields.next().ok_or(Fault::NotUnderstood);
    let said = if is("PING") {
        Said::Ping
    } else if is("PONG") {
        Said::Pong
    } else if is("CONNECT") {
        Said::Connect(arguments)
    } else if is("SUB") {
        let (subject, second) = (field()?, field()?);
        // A queue group may stand between them.
        let number = field().unwrap_or(second);
        Said::Subscribe { subject, number }
    } else if is("UNSUB") {
        let number = field()?;
        let after = field().ok().and_then(self::number);
        Said::Unsubscribe { number, after }
    } else {
        return Err(Fault::NotUnderstood);
    };
    Ok(Some((said, after)))
}

fn message<'a>(
    (input, after): (&'a [u8], usize),
    arguments: &'a [u8],
    (with_headers, limits): (bool, Limits),
) -> Result<Option<(Said<'a>, usize)>, Fault> {
    let mut fields: [&[u8]; 5] = [b""; 5];
    let mut found = 0;
    for field in arguments.split(u8::is_ascii_whitespace) {
        if !field.is_empty() {
            *fields.get_mut(found).ok_or(Fault::NotUnderstood)? = field;
            found += 1;
        }
    }
    let lengths = if with_headers { 2 } else { 1 };
    let reply = match found.checked_sub(lengths) {
        Some(1) => &b""[..],
        Some(2) => fields[1],
        _ => return Err(Fault::NotUnderstood),
    };
    let length = |field: &[u8]| {
        let length = number(field).and_then(|length| usize::try_from(length).ok());
        length.ok_or(Fault::NotUnderstood)
    };
    let bytes = length(fields[found - 1])?;
    let header_bytes = if with_headers {
        length(fields[found - 2])?
    } else {
        0
    };
    if bytes > limits.payload {
        return Err(Fault::PayloadTooLong);
    }
    if header_bytes > bytes {
        return Err(Fault::NotUnderstood);
    }
    let whole = after + bytes + b"\r\n".len();
    if input.len() < whole {
        return Ok(None);
    }
    let (headers, body) = input[after..after + bytes].split_at(header_bytes);
    let subject = fields[0];
    let published = Published {
        subject,
        reply,
        headers,
        body,
    };
    Ok(Some((Said::Publish(published), whole)))
}
