//! Rows and messages that cannot become events, and what is wrong with them.

use std::sync::Arc;

use bytes::Bytes;

use super::{MESSAGE_ID, message_id};
use crate::event::mapping::Fault;
use crate::event::{Event, Headers, Position, Rejected, header_is_sound};

/// A row that cannot become an event: wrong in itself, whatever is configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {id:?} of {table} at {position}: {reason}")]
pub struct Rejection {
    /// The row's place in the commit order.
    pub position: Position,
    /// `schema.table`, or the prefix of a message.
    pub table: Arc<str>,
    /// The row's id, as far as it can be read.
    pub id: String,
    /// What is wrong with it.
    pub reason: Reason,
    /// Empty if it cannot be told.
    pub(super) subject: String,
    pub(super) payload: Bytes,
}

impl Rejection {
    /// What is left of the row, for the dead letters.
    pub fn into_event(self) -> Event {
        let rejected = Rejected {
            reason: self.reason.word(),
            error: self.reason.to_string(),
        };
        let id = message_id(&self.table, &self.id);
        let told = !self.id.is_empty() && header_is_sound(MESSAGE_ID, &id);
        Event {
            position: self.position,
            id: if told { id } else { self.position.to_string() },
            subject: self.subject,
            headers: Headers::default(),
            payload: self.payload,
            wrapped: None,
            table: self.table,
            deliver_at: None,
            expires_at: None,
            replayed: false,
            rejected: Some(Box::new(rejected)),
            followers: 0,
            known: false,
        }
    }
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Nothing could tell it from others.
    #[error("its id is NULL or empty")]
    NoId,
    /// Text in another encoding, as `SQL_ASCII` databases hold it.
    #[error("{0} is not valid UTF-8")]
    NotUtf8(&'static str),
    /// Two bodies.
    #[error("both payload and payload_raw are set")]
    TwoPayloads,
    /// A bytea that is not printed as `bytea_output = hex` does.
    #[error("{0} is not in the hex format of bytea")]
    Bytea(&'static str),
    /// The headers column does not hold a JSON object of strings, numbers, booleans or arrays of
    /// these.
    #[error("headers is not a JSON object of texts: {0}")]
    Headers(String),
    /// A header, by its name, that would break the framing or our own headers.
    #[error("header {0:?} has a name or a value that NATS cannot carry")]
    Header(String),
    /// A logical message does not hold what a row of `outbox.events` would.
    #[error("the message is not an event: {0}")]
    Message(String),
    /// What is inside a column cannot be had.
    #[error(transparent)]
    Inside(#[from] Fault),
    /// A payload that a JSON body cannot hold.
    #[error("the payload is not well-formed JSON, as its content type says")]
    Payload,
    /// A list of another shape.
    #[error("{0} is not a list of texts")]
    List(&'static str),
    /// A time that is none, or that no server keeps an event until.
    #[error("{0} is not a time before the year 2200")]
    Time(&'static str),
    /// No server takes this subject.
    #[error("its subject cannot be published to, {why}: {subject:?}")]
    Subject {
        /// The subject.
        subject: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Reason {
    /// `Outjet-Reason` of a dead letter.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::NoId => "no_id",
            Self::NotUtf8(_) => "not_utf8",
            Self::TwoPayloads => "two_payloads",
            Self::Bytea(_) => "bytea",
            Self::Headers(_) | Self::Header(_) => "header",
            Self::Message(_) => "message",
            Self::Inside(_) => "inside_column",
            Self::Payload => "payload",
            Self::List(_) => "list",
            Self::Time(_) => "time",
            Self::Subject { .. } => "subject",
        }
    }
}
