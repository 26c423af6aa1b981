//! Subjects and patterns, as bytes. Empty tokens match nothing but themselves.

/// Whether a subject has a pattern.
pub(super) fn matches(pattern: &[u8], subject: &[u8]) -> bool {
    let (mut pattern, mut subject) = (pattern, subject);
    loop {
        if pattern == b">" {
            return !subject.is_empty();
        }
        let (ours, pattern_rest) = token(pattern);
        let (theirs, subject_rest) = token(subject);
        if ours != b"*" && ours != theirs {
            return false;
        }
        match (pattern_rest, subject_rest) {
            (None, None) => return true,
            (Some(next), Some(rest)) => (pattern, subject) = (next, rest),
            (Some(_), None) | (None, Some(_)) => return false,
        }
    }
}

/// Whether two patterns have a subject in common.
pub(super) fn overlap(one: &[u8], other: &[u8]) -> bool {
    if one == b">" || other == b">" {
        return true;
    }
    let ((a, a_rest), (b, b_rest)) = (token(one), token(other));
    if a != b && a != b"*" && b != b"*" {
        return false;
    }
    match (a_rest, b_rest) {
        (None, None) => true,
        (Some(a), Some(b)) => overlap(a, b),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Whether a server takes a message for it at all.
pub(super) fn is_valid(subject: &[u8]) -> bool {
    subject
        .split(|byte| *byte == b'.')
        .all(|token| !token.is_empty())
}

fn token(subject: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'.', subject) {
        Some(at) => (&subject[..at], Some(&subject[at + 1..])),
        None => (subject, None),
    }
}

/// `subject_transform` from `<prefix>.>` to `>` or to `<prefix>.>`.
pub(super) fn transform(subject: &[u8], source: &str, destination: &str) -> Option<Vec<u8>> {
    let from = source.strip_suffix('>')?;
    let to = destination.strip_suffix('>')?;
    let rest = subject.strip_prefix(from.as_bytes())?;
    let mut transformed = to.as_bytes().to_vec();
    transformed.extend_from_slice(rest);
    Some(transformed)
}
