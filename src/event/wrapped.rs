//! Takes the payload out of a body that a format wrote around it, and leaves in its place where it
//! is to be found: the claim check (CloudEvents, extension "Dataref").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::Event;

/// The header of a message whose payload is elsewhere: a URI. CloudEvents' name for it.
pub const REFERENCE: &str = "ce-dataref";

/// Where the payload is in the JSON object that a format wrote around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// Where its member begins.
    pub member: usize,
    /// Where the member's value begins.
    pub value: usize,
    /// Where both end. There is no payload if the value is empty.
    pub end: usize,
    /// What was made of it.
    pub encoding: Encoding,
    /// Readers look for the member `payload`, whether or not there is something in it.
    pub expected: bool,
}

/// How a payload is written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As it is, for it is JSON.
    Json,
    /// As a string.
    Text,
    /// Bytes, as a string in base64.
    Base64,
}

impl Event {
    /// The payload without what the format wrote around it.
    pub fn payload_alone(&self) -> Bytes {
        let Some(wrapped) = &self.wrapped else {
            return self.payload.clone();
        };
        let value = self.payload.slice(wrapped.value..wrapped.end);
        match wrapped.encoding {
            Encoding::Json => value,
            Encoding::Text => {
                let text: String = serde_json::from_slice(&value).expect("a string of ours");
                text.into()
            }
            Encoding::Base64 => {
                let quoted = &value[1..value.len() - 1];
                BASE64.decode(quoted).expect("base64 of ours").into()
            }
        }
    }

    /// The same event without its payload, of which there is some. It is at `reference`: a URI that
    /// stands in JSON and in a header as it is.
    pub fn referring_to(&self, reference: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.push(REFERENCE, reference);
        let payload = match self.wrapped.as_deref() {
            None => Bytes::new(),
            Some(&Wrapped {
                member,
                end,
                expected,
                ..
            }) => {
                let null = if expected { "\"payload\":null," } else { "" };
                let name = REFERENCE.trim_start_matches("ce-");
                let referring = format!("{null}\"{name}\":\"{reference}\"");
                let (before, behind) = (&self.payload[..member], &self.payload[end..]);
                [before, referring.as_bytes(), behind].concat().into()
            }
        };
        Self {
            headers,
            payload,
            wrapped: None,
            ..self.clone()
        }
    }
}
