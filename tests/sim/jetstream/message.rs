//! Messages on the wire, from the server's side.

/// What a client publishes.
#[derive(Clone, Copy)]
pub(super) struct Published<'a> {
    pub(super) subject: &'a str,
    /// The whole block, `NATS/1.0` included; empty: none.
    pub(super) headers: &'a [u8],
    pub(super) body: &'a [u8],
    /// Which connection; `None`: a stranger's.
    pub(super) by: Option<u64>,
}

impl Published<'_> {
    /// The first value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        header(self.headers, name)
    }
}

/// The first value of a header of a block.
pub(super) fn header<'a>(block: &'a [u8], name: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(block).ok()?;
    let mut lines = text.split("\r\n").skip(1);
    lines.find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        Some(value.trim())
    })
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Connect,
    Ping,
    Pong,
    Subscribe {
        pattern: &'a str,
        number: u64,
    },
    Unsubscribe(u64),
    Publish {
        subject: &'a str,
        reply: Option<&'a str>,
        headers: &'a [u8],
        body: &'a [u8],
    },
}

/// The first thing said, and how many bytes it takes; `None`: not all of it is there.
pub(super) fn parse(bytes: &[u8]) -> Option<(Said<'_>, usize)> {
    let length = memchr::memmem::find(bytes, b"\r\n")?;
    let line = std::str::from_utf8(&bytes[..length]).expect("a client speaks UTF-8");
    let rest = length + 2;
    let (verb, words) = line.split_once(' ').unwrap_or((line, ""));
    // Sizes may be padded with spaces.
    let words: Vec<&str> = words.split_ascii_whitespace().collect();
    let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("{line}"));
    let said = match (verb, &words[..]) {
        ("CONNECT", _) => Said::Connect,
        ("PING", _) => Said::Ping,
        ("PONG", _) => Said::Pong,
        ("SUB", [pattern, sid]) => Said::Subscribe {
            pattern,
            number: number(sid),
        },
        ("UNSUB", [sid]) => Said::Unsubscribe(number(sid)),
        ("PUB", [subject, reply @ .., whole]) => {
            return published(&bytes[rest..], (subject, reply), (0, size(whole)))
                .map(|(said, bytes)| (said, rest + bytes));
        }
        ("HPUB", [subject, reply @ .., first, whole]) => {
            return published(&bytes[rest..], (subject, reply), (size(first), size(whole)))
                .map(|(said, bytes)| (said, rest + bytes));
        }
        _ => panic!("not understood: {line}"),
    };
    Some((said, rest))
}

fn size(word: &str) -> usize {
    word.parse()
        .unwrap_or_else(|_| panic!("{word:?} is no size"))
}

fn published<'a>(
    bytes: &'a [u8],
    (subject, reply): (&'a str, &[&'a str]),
    (first, whole): (usize, usize),
) -> Option<(Said<'a>, usize)> {
    let message = bytes.get(..whole)?;
    bytes.get(whole..whole + 2)?;
    let (headers, body) = message.split_at(first);
    let reply = reply.first().copied();
    let said = Said::Publish {
        subject,
        reply,
        headers,
        body,
    };
    Some((said, whole + 2))
}

/// Writes a message to a client.
pub(super) fn deliver(
    output: &mut Vec<u8>,
    (subject, number): (&str, u64),
    (headers, body): (&[u8], &[u8]),
) {
    let whole = headers.len() + body.len();
    let line = match headers.len() {
        0 => format!("MSG {subject} {number} {whole}\r\n"),
        first => format!("HMSG {subject} {number} {first} {whole}\r\n"),
    };
    for part in [line.as_bytes(), headers, body, b"\r\n"] {
        output.extend_from_slice(part);
    }
}

/// Whether a subject is one of a pattern.
pub(super) fn matches(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    for token in pattern.split('.') {
        match (token, subject.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_match_patterns() {
        for (pattern, subject, expected) in [
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            (">", "a", true),
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
        ] {
            assert_eq!(matches(pattern, subject), expected, "{pattern} {subject}");
        }
    }

    #[test]
    fn what_is_not_all_there_is_waited_for() {
        let whole = b"HPUB a b    12       15\r\nNATS/1.0\r\n\r\nabc\r\nPING\r\n";
        for length in 0..whole.len() - 6 {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
        let said = Said::Publish {
            subject: "a",
            reply: Some("b"),
            headers: b"NATS/1.0\r\n\r\n",
            body: b"abc",
        };
        assert_eq!(parse(whole), Some((said, whole.len() - 6)));
    }
}
