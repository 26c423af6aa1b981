//! Header blocks: `NATS/1.0`, a line for each header, an empty line.

use std::fmt::Write as _;

/// The first value of a header. As the server does, by its exact name.
pub(super) fn value<'a>(block: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let name = name.as_bytes();
    let mut rest = block;
    while let Some((line, next)) = split_line(rest) {
        if let Some(after) = line.strip_prefix(name)
            && let Some(value) = after.strip_prefix(b":")
        {
            return Some(value.trim_ascii());
        }
        rest = next;
    }
    None
}

fn split_line(block: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', block)?;
    let line = &block[..end];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Some((line, &block[end + 1..]))
}

/// Every header as a whole line, without the first and the empty one.
fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = block;
    let lines = std::iter::from_fn(move || {
        let (line, next) = split_line(rest)?;
        rest = next;
        Some(line)
    });
    lines.skip(1).filter(|line| !line.is_empty())
}

/// A block of these lines; empty for none.
pub(super) fn block(lines: &str) -> Vec<u8> {
    match lines {
        "" => Vec::new(),
        lines => format!("NATS/1.0\r\n{lines}\r\n").into_bytes(),
    }
}

/// A block without the headers whose name begins so.
pub(super) fn without(block: &[u8], prefixes: &[&str]) -> String {
    let mut kept = String::new();
    for line in lines(block) {
        let line = String::from_utf8_lossy(line);
        if !prefixes.iter().any(|prefix| line.starts_with(prefix)) {
            let _ = write!(kept, "{line}\r\n");
        }
    }
    kept
}

/// What a consumer that publishes a message again gives it.
pub(super) fn copied(block: &[u8], with_id: bool) -> String {
    let expected = ["Nats-Expected-", "Nats-Batch-"];
    match with_id {
        true => without(block, &expected),
        false => without(block, &[expected[0], expected[1], "Nats-Msg-Id:"]),
    }
}

/// A number in digits.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Where an acknowledgement says that something was stored.
pub(super) fn sequence(answer: &[u8]) -> Option<u64> {
    let answer = str::from_utf8(answer).ok()?;
    if answer.contains("\"error\":") || answer.contains("\"duplicate\"") {
        return None;
    }
    let (_, rest) = answer.split_once("\"seq\":")?;
    let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
    digits.parse().ok()
}
