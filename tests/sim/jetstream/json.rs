//! What the server answers, in its own words and order.

use std::borrow::Cow;
use std::fmt::Write as _;

use time::OffsetDateTime;

use super::version::Version;

/// Why something is refused (`server/errors.json`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) err_code: u16,
    pub(super) text: Cow<'static, str>,
}

impl Refusal {
    pub(super) const fn new(code: u16, err_code: u16, text: &'static str) -> Self {
        let text = Cow::Borrowed(text);
        Self {
            code,
            err_code,
            text,
        }
    }

    pub(super) fn said(code: u16, err_code: u16, text: String) -> Self {
        let text = Cow::Owned(text);
        Self {
            code,
            err_code,
            text,
        }
    }

    pub(super) fn sealed() -> Self {
        Self::new(400, 10109, "invalid operation on sealed stream")
    }

    pub(super) fn wrong_sequence(last: u64) -> Self {
        Self::said(400, 10071, format!("wrong last sequence: {last}"))
    }

    fn push(&self, json: &mut String) {
        let Self {
            code,
            err_code,
            text,
        } = self;
        let text = escaped(text);
        let _ = write!(
            json,
            r#""error":{{"code":{code},"err_code":{err_code},"description":"{text}"}}"#
        );
    }
}

/// As Go writes a text.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '"' | '\\' => escaped.extend(['\\', letter]),
            '>' | '<' | '&' => {
                let _ = write!(escaped, "\\u{:04x}", u32::from(letter));
            }
            _ => escaped.push(letter),
        }
    }
    escaped
}

/// RFC 3339 with as many digits as it takes.
pub(super) fn rfc3339(nanos: i64) -> String {
    if nanos == 0 {
        return "0001-01-01T00:00:00Z".to_owned();
    }
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos.into());
    let time = time.expect("a time within centuries");
    let (date, fraction) = (time.date(), time.nanosecond());
    let mut text = format!(
        "{date}T{:02}:{:02}:{:02}",
        time.hour(),
        time.minute(),
        time.second()
    );
    if fraction > 0 {
        let digits = format!("{fraction:09}");
        let _ = write!(text, ".{}", digits.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// What is answered to what was stored; `batch`: its id and size.
pub(super) fn stored(
    (stream, sequence): (&str, u64),
    domain: Option<&str>,
    batch: Option<(&str, usize)>,
    version: Version,
) -> String {
    let mut json = plain((stream, sequence), domain, version);
    if let Some((id, count)) = batch {
        let _ = write!(json, r#","batch":"{id}","count":{count}"#);
    }
    json.push('}');
    json
}

/// An acknowledgement, but for what ends it.
fn plain((stream, sequence): (&str, u64), domain: Option<&str>, version: Version) -> String {
    let mut json = String::with_capacity(64);
    let _ = write!(json, r#"{{"stream":"{stream}","#);
    let space = if version.spaces_acks() { " " } else { "" };
    json.push_str(space);
    if let Some(domain) = domain {
        let _ = write!(json, r#""domain":"{domain}",{space}"#);
    }
    let _ = write!(json, r#""seq":{sequence}"#);
    json
}

/// What is answered to a duplicate.
pub(super) fn duplicate(
    stream_and_sequence: (&str, u64),
    domain: Option<&str>,
    version: Version,
) -> String {
    plain(stream_and_sequence, domain, version) + r#","duplicate": true}"#
}

/// What is answered to what was refused.
pub(super) fn refused(stream: &str, refusal: &Refusal) -> String {
    let mut json = String::with_capacity(128);
    json.push('{');
    refusal.push(&mut json);
    let _ = write!(json, r#","stream":"{stream}","seq":0}}"#);
    json
}

/// The beginning of an answer to a request: without its end.
pub(super) fn response(kind: &str) -> String {
    format!(r#"{{"type":"io.nats.jetstream.api.v1.{kind}_response""#)
}

/// A request was refused.
pub(super) fn request_refused(kind: &str, refusal: &Refusal) -> String {
    let mut json = response(kind);
    json.push(',');
    refusal.push(&mut json);
    json.push_str(match kind {
        "stream_info" => r#","total":0,"offset":0,"limit":0"#,
        "stream_purge" => r#","purged":0"#,
        _ => "",
    });
    json.push('}');
    json
}

/// A request was done.
pub(super) fn success(kind: &str) -> String {
    response(kind) + r#","success":true}"#
}
