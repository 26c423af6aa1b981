//! What an event's headers say: CloudEvents in binary mode, or the least that consumers need. Pure;
//! gets the fields of a row as text and knows neither tables nor NATS.
//!
//! CloudEvents NATS binding 1.0.3: attributes are headers `ce-…`, their values percent-encoded.

use std::fmt::Write as _;

use crate::event::Headers;

/// How an event is dressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// CloudEvents 1.0, binary mode: the body as it is, attributes as `ce-*` headers.
    CloudEvents,
    /// The body as it is; id, position and trace context as headers.
    Minimal,
}

/// The fields of a row that a format can use. Text as Postgres gives it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    /// The row's id.
    pub id: &'a str,
    /// `ce-source`.
    pub source: &'a str,
    /// The event type.
    pub kind: Option<&'a str>,
    /// The type of the aggregate.
    pub aggregatetype: Option<&'a str>,
    /// The id of the aggregate: the ordering key.
    pub aggregateid: Option<&'a str>,
    /// RFC 3339.
    pub created: Option<&'a str>,
    /// RFC 3339: when it was committed.
    pub committed: &'a str,
    /// The media type of the body.
    pub content_type: Option<&'a str>,
    /// The tenant.
    pub tenant: Option<&'a str>,
    /// The correlation id.
    pub correlation: Option<&'a str>,
    /// The business key by which consumers may drop repeats.
    pub dedup_key: Option<&'a str>,
    /// W3C trace context, unchanged.
    pub traceparent: Option<&'a str>,
    /// W3C trace context, unchanged.
    pub tracestate: Option<&'a str>,
    /// W3C baggage, unchanged.
    pub baggage: Option<&'a str>,
}

impl Format {
    /// Adds the headers of this format.
    pub fn dress(self, headers: &mut Headers, fields: &Fields<'_>) {
        if self == Self::CloudEvents {
            cloudevents(headers, fields);
        }
        let plain = [
            ("Outjet-Dedup-Key", fields.dedup_key),
            ("traceparent", fields.traceparent),
            ("tracestate", fields.tracestate),
            ("baggage", fields.baggage),
        ];
        for (name, value) in plain {
            if let Some(value) = value {
                headers.push_str(name, value);
            }
        }
    }
}

fn cloudevents(headers: &mut Headers, fields: &Fields<'_>) {
    headers.push_str("ce-specversion", "1.0");
    let mut attribute = |name, value: Option<&str>| {
        // An attribute that is absent or empty is not sent (CloudEvents 1.0, "Attributes").
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            headers.push_with(name, |text| percent_encode(text, value));
        }
    };
    attribute("ce-id", Some(fields.id));
    attribute("ce-source", Some(fields.source));
    attribute("ce-type", fields.kind);
    attribute("ce-subject", fields.aggregateid);
    attribute("ce-time", fields.created);
    attribute("ce-recordedtime", Some(fields.committed));
    attribute("ce-datacontenttype", fields.content_type);
    attribute("ce-correlationid", fields.correlation);
    attribute("ce-tenantid", fields.tenant);
    if let (Some(kind), Some(id)) = (fields.aggregatetype, fields.aggregateid) {
        headers.push_with("ce-partitionkey", |text| {
            percent_encode(text, kind);
            text.push(':');
            percent_encode(text, id);
        });
    }
}

/// Appends a header value as the binding wants it (3.1.3.2): space, double quote, percent and all
/// that is not printable ASCII as percent-encoded UTF-8.
fn percent_encode(text: &mut String, value: &str) {
    let plain = |byte: u8| matches!(byte, b'!' | b'#'..=b'$' | b'&'..=b'~');
    if value.bytes().all(plain) {
        return text.push_str(value);
    }
    for character in value.chars() {
        if u8::try_from(character).is_ok_and(plain) {
            text.push(character);
        } else {
            for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                write!(text, "%{byte:02X}").expect("a String takes all text");
            }
        }
    }
}

/// `2026-11-21 05:26:15.123456+00`, as a session with `DateStyle = ISO` and `TimeZone = UTC` prints
/// a `timestamptz`, in RFC 3339. `None` for what has no such form: infinity, years before Christ or
/// of five digits, a timestamp without time zone, other text.
pub fn rfc3339(timestamptz: &str) -> Option<String> {
    let (date, time) = timestamptz.split_once(' ')?;
    let time = time.strip_suffix("+00")?;
    let (seconds, fraction) = time.split_at_checked(8)?;
    let digits = |text: &str| (1..=6).contains(&text.len()) && looks_like(text, "000000");
    let plain = looks_like(date, "0000-00-00")
        && date.len() == 10
        && looks_like(seconds, "00:00:00")
        && (fraction.is_empty() || fraction.strip_prefix('.').is_some_and(digits));
    plain.then(|| format!("{date}T{time}Z"))
}

/// Whether each byte is as in the pattern, where `0` is any digit.
fn looks_like(text: &str, pattern: &str) -> bool {
    text.bytes()
        .zip(pattern.bytes())
        .all(|(byte, wanted)| match wanted {
            b'0' => byte.is_ascii_digit(),
            _ => byte == wanted,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: Fields<'static> = Fields {
        id: "42",
        source: "/app/outbox.events",
        kind: Some("order placed"),
        aggregatetype: Some("order"),
        aggregateid: Some("ä\"%"),
        created: Some("2026-11-21T05:26:15Z"),
        committed: "2026-11-21T05:26:16Z",
        content_type: Some("application/json"),
        tenant: Some(""),
        correlation: None,
        dedup_key: Some("k"),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        tracestate: None,
        baggage: Some("a=1"),
    };

    fn headers(format: Format) -> Vec<(String, String)> {
        let mut headers = Headers::default();
        format.dress(&mut headers, &FIELDS);
        headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn cloudevents_attributes_are_percent_encoded_headers() {
        let expected = [
            ("ce-specversion", "1.0"),
            ("ce-id", "42"),
            ("ce-source", "/app/outbox.events"),
            ("ce-type", "order%20placed"),
            ("ce-subject", "%C3%A4%22%25"),
            ("ce-time", "2026-11-21T05:26:15Z"),
            ("ce-recordedtime", "2026-11-21T05:26:16Z"),
            ("ce-datacontenttype", "application/json"),
            ("ce-partitionkey", "order:%C3%A4%22%25"),
            ("Outjet-Dedup-Key", "k"),
            (
                "traceparent",
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ),
            ("baggage", "a=1"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(headers(Format::CloudEvents), expected);
    }

    #[test]
    fn minimal_leaves_the_attributes_out() {
        let names: Vec<_> = headers(Format::Minimal)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["Outjet-Dedup-Key", "traceparent", "baggage"]);
    }

    #[test]
    fn timestamps_become_rfc_3339_or_nothing() {
        let of = |text| rfc3339(text);
        assert_eq!(
            of("2026-11-21 05:26:15+00").as_deref(),
            Some("2026-11-21T05:26:15Z")
        );
        assert_eq!(
            of("2026-11-21 05:26:15.5+00").as_deref(),
            Some("2026-11-21T05:26:15.5Z")
        );
        for text in [
            "infinity",
            "0044-03-15 12:00:00+00 BC",
            "2026-11-21 05:26:15",
            "12026-11-21 05:26:15+00",
            "2026-11-21 05:26:15.+00",
            "2026-11-21 05:26:15.1234567+00",
            "2026-11-21 05:26:15x5+00",
            "yesterday, 05:26:15+00",
            "2026-11-21 5:26:15+00",
            "2026-11-21 ü5:26:5+00",
            "+00",
        ] {
            assert_eq!(of(text), None, "{text:?}");
        }
    }
}
