//! What an event says of itself, and how: CloudEvents in binary or structured mode, an envelope, or
//! the least that consumers need. Pure; gets the fields of a row as text and knows neither tables
//! nor NATS. JSON from a row is never written anew: its bytes stand in a body as they came.
//!
//! CloudEvents NATS binding 1.0.3: attributes are headers `ce-…`, their values percent-encoded; or
//! members of a JSON object under `Content-Type: application/cloudevents+json`.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::{Encoding, Headers, Wrapped, all};

/// How an event is dressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// CloudEvents 1.0, binary mode: the body as it is, attributes as `ce-*` headers.
    CloudEvents,
    /// The body as it is; id, position and trace context as headers.
    Minimal,
    /// CloudEvents 1.0, structured mode: attributes and payload as one JSON object.
    Structured,
    /// A JSON object with the payload in it and, around it, version, tenant, producer, privacy.
    Envelope,
}

/// The fields of a row that a format can use. Text as Postgres gives it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    /// The row's id.
    pub id: &'a str,
    /// `ce-source`, where the row names no producer.
    pub source: &'a str,
    /// The event type.
    pub kind: Option<&'a str>,
    /// The type of the aggregate.
    pub aggregatetype: Option<&'a str>,
    /// The id of the aggregate: the ordering key.
    pub aggregateid: Option<&'a str>,
    /// RFC 3339.
    pub created: Option<&'a str>,
    /// RFC 3339: when consumers are to get it.
    pub deliver_at: Option<&'a str>,
    /// RFC 3339: from when on it is of no use.
    pub expires_at: Option<&'a str>,
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
    /// The version of the payload's schema.
    pub schema_version: Option<Json<'a>>,
    /// The trace, where there is no trace context.
    pub trace_id: Option<&'a str>,
    /// Who made the event.
    pub producer: Option<&'a str>,
    /// Whether the payload holds personal data.
    pub pii: Option<bool>,
    /// Which members of it do.
    pub pii_fields: Option<&'a [String]>,
    /// What the person agreed to.
    pub consent: Option<Json<'a>>,
    /// JSON beside the payload.
    pub metadata: Option<Json<'a>>,
    /// Headers from columns of their own; those that begin with `ce-` are attributes.
    pub extra: &'a [(&'a str, &'a str)],
}

/// A value as it stands in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Json<'a> {
    /// JSON already: a number, `true`, an object.
    Raw(&'a str),
    /// A text, without quotes.
    Text(&'a str),
}

impl<'a> Json<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Raw(text) | Self::Text(text) => text,
        }
    }
}

/// A payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// NULL.
    Absent,
    /// JSON, or text that is none.
    Json(Json<'a>),
    /// Bytes of any kind.
    Bytes(&'a [u8]),
}

impl Format {
    /// Whether the body is one that this format writes around the payload.
    pub fn wraps(self) -> bool {
        match self {
            Self::CloudEvents | Self::Minimal => false,
            Self::Structured | Self::Envelope => true,
        }
    }

    /// Whether a row cannot have a header of this name, because of what it means in this format:
    /// by `Content-Type` a consumer tells the modes of CloudEvents apart.
    pub fn reserves(self, name: &str) -> bool {
        self != Self::Minimal && name.eq_ignore_ascii_case("content-type")
    }

    /// Adds the headers of this format.
    pub fn dress(self, headers: &mut Headers, fields: &Fields<'_>) {
        match self {
            Self::CloudEvents => cloudevents(headers, fields),
            Self::Structured => headers.push("Content-Type", "application/cloudevents+json"),
            Self::Envelope => headers.push("Content-Type", "application/json"),
            Self::Minimal => {}
        }
        let plain = [
            ("Outjet-Dedup-Key", fields.dedup_key),
            ("Outjet-Deliver-At", fields.deliver_at),
            ("Outjet-Expires-At", fields.expires_at),
            ("traceparent", fields.traceparent),
            ("tracestate", fields.tracestate),
            ("baggage", fields.baggage),
            ("Outjet-Pii", fields.pii.filter(|pii| *pii).map(|_| "true")),
            ("Outjet-Consent", fields.consent.map(Json::text)),
        ];
        for (name, value) in plain {
            if let Some(value) = value {
                headers.push(name, value);
            }
        }
        if let Some(names) = fields.pii_fields {
            headers.push_with("Outjet-Pii-Fields", |text| text.push_str(&names.join(",")));
        }
        for (name, value) in fields.extra {
            if !name.starts_with(ATTRIBUTE) {
                headers.push(name, value);
            } else if self == Self::CloudEvents && !value.is_empty() {
                headers.push(name, &percent_encoded(value));
            }
        }
    }

    /// The body, if this format writes one, and where the payload is in it.
    pub fn body(self, fields: &Fields<'_>, payload: Body<'_>) -> Option<(Bytes, Wrapped)> {
        match self {
            Self::CloudEvents | Self::Minimal => None,
            Self::Structured => Some(structured(fields, payload)),
            Self::Envelope => Some(envelope(fields, payload)),
        }
    }
}

/// What the header of an attribute begins with.
pub const ATTRIBUTE: &str = "ce-";

/// Every attribute that has a value, by the name of its header; the value in parts.
fn attributes(fields: &Fields<'_>, mut put: impl FnMut(&'static str, &[&str])) {
    // An attribute that is absent or empty is not sent (CloudEvents 1.0, "Attributes").
    let mut attribute = |name, value: Option<&str>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            put(name, &[value]);
        }
    };
    let producer = fields.producer.filter(|producer| !producer.is_empty());
    attribute("ce-specversion", Some("1.0"));
    attribute("ce-id", Some(fields.id));
    attribute("ce-source", Some(producer.unwrap_or(fields.source)));
    attribute("ce-type", fields.kind);
    attribute("ce-subject", fields.aggregateid);
    attribute("ce-time", fields.created);
    attribute("ce-recordedtime", Some(fields.committed));
    // CloudEvents, extension "Expiry Time".
    attribute("ce-expirytime", fields.expires_at);
    attribute("ce-datacontenttype", fields.content_type);
    attribute("ce-correlationid", fields.correlation);
    attribute("ce-tenantid", fields.tenant);
    attribute("ce-schemaversion", fields.schema_version.map(Json::text));
    attribute("ce-traceid", fields.trace_id);
    if let (Some(kind), Some(id)) = (fields.aggregatetype, fields.aggregateid) {
        put("ce-partitionkey", &[kind, ":", id]);
    }
}

fn cloudevents(headers: &mut Headers, fields: &Fields<'_>) {
    attributes(fields, |name, parts| {
        headers.push_with(name, |text| {
            parts.iter().for_each(|part| percent_encode(text, part));
        });
    });
}

/// CloudEvents JSON format 1.0: bytes are `data_base64`; JSON is `data`, and so is text, a string.
fn structured(fields: &Fields<'_>, payload: Body<'_>) -> (Bytes, Wrapped) {
    let mut object = Object::new(payload);
    attributes(fields, |name, parts| {
        let value = parts.concat();
        object.member(&name[ATTRIBUTE.len()..], Some(Json::Text(&value)));
    });
    for (name, value) in fields.extra {
        if let Some(name) = name.strip_prefix(ATTRIBUTE).filter(|_| !value.is_empty()) {
            object.member(name, Some(Json::Text(value)));
        }
    }
    object.payload(["data", "data_base64"], payload);
    object.end()
}

fn envelope(fields: &Fields<'_>, payload: Body<'_>) -> (Bytes, Wrapped) {
    let mut object = Object::new(payload);
    let text = |value: Option<_>| value.map(Json::Text);
    object.member("event", text(fields.kind));
    object.member("schema_version", fields.schema_version);
    object.member("idempotency_key", text(fields.dedup_key));
    object.member("trace_id", text(fields.trace_id));
    object.member("correlation_id", text(fields.correlation));
    object.member("tenant_id", text(fields.tenant));
    object.member("occurred_at", text(fields.created));
    object.member("producer", text(fields.producer));
    let privacy = privacy(fields);
    object.member("privacy", privacy.as_deref().map(Json::Raw));
    match payload {
        // A consumer of the envelope reads the member whether or not there is something in it.
        Body::Absent => object.member("payload", Some(Json::Raw("null"))),
        payload => object.payload(["payload", "payload_base64"], payload),
    }
    object.wrapped.expected = true;
    object.member("metadata", fields.metadata);
    object.end()
}

fn privacy(fields: &Fields<'_>) -> Option<String> {
    let mut object = Object::new(Body::Absent);
    let pii = fields.pii.map(|pii| if pii { "true" } else { "false" });
    object.member("pii", pii.map(Json::Raw));
    let names = fields
        .pii_fields
        .map(|names| serde_json::json!(names).to_string());
    object.member("fields", names.as_deref().map(Json::Raw));
    object.member("consent", fields.consent);
    (object.text.len() > 1).then(|| object.close())
}

/// A JSON object in the making.
struct Object {
    text: String,
    wrapped: Wrapped,
}

impl Object {
    /// With room for a payload and what usually stands around it.
    fn new(payload: Body<'_>) -> Self {
        let room = match payload {
            Body::Absent => 0,
            Body::Json(json) => json.text().len(),
            Body::Bytes(bytes) => bytes.len() * 4 / 3,
        };
        let mut text = String::with_capacity(room + 512);
        text.push('{');
        let wrapped = Wrapped {
            member: 0,
            value: 0,
            end: 0,
            encoding: Encoding::Json,
            expected: false,
        };
        Self { text, wrapped }
    }

    fn member(&mut self, name: &str, value: Option<Json<'_>>) {
        let Some(value) = value else { return };
        if self.text.len() > 1 {
            self.text.push(',');
        }
        self.string(name);
        self.text.push(':');
        match value {
            Json::Raw(json) => self.text.push_str(json),
            Json::Text(text) => self.string(text),
        }
    }

    fn payload(&mut self, [name, encoded]: [&str; 2], payload: Body<'_>) {
        let begin = self.text.len() + usize::from(self.text.len() > 1);
        let (name, encoding) = match payload {
            Body::Absent => return,
            Body::Json(json) => {
                self.member(name, Some(json));
                match json {
                    Json::Raw(_) => (name, Encoding::Json),
                    Json::Text(_) => (name, Encoding::Text),
                }
            }
            Body::Bytes(bytes) => {
                let text = BASE64.encode(bytes);
                self.member(encoded, Some(Json::Text(&text)));
                (encoded, Encoding::Base64)
            }
        };
        self.wrapped = Wrapped {
            member: begin,
            value: begin + name.len() + "\"\":".len(),
            end: self.text.len(),
            encoding,
            ..self.wrapped
        };
    }

    fn string(&mut self, text: &str) {
        let plain = |byte: u8| byte >= b' ' && !matches!(byte, b'"' | b'\\');
        if text.bytes().all(plain) {
            self.text.push('"');
            self.text.push_str(text);
            self.text.push('"');
        } else {
            self.text.push_str(&serde_json::json!(text).to_string());
        }
    }

    fn close(mut self) -> String {
        self.text.push('}');
        self.text
    }

    fn end(self) -> (Bytes, Wrapped) {
        let wrapped = self.wrapped;
        (self.close().into(), wrapped)
    }
}

fn percent_encoded(value: &str) -> String {
    let mut text = String::new();
    percent_encode(&mut text, value);
    text
}

/// Appends a header value as the binding wants it (3.1.3.2): space, double quote, percent and all
/// that is not printable ASCII as percent-encoded UTF-8.
fn percent_encode(text: &mut String, value: &str) {
    let plain = |byte: u8| (b'!'..=b'~').contains(&byte) & (byte != b'\x22') & (byte != b'%');
    if all(value, plain) {
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
    plain.then(|| [date, "T", time, "Z"].concat())
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
mod tests;
