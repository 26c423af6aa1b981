//! A row that is to go out again, as outjet itself writes it into the log: a message of the prefix
//! [`HANDOVER`] that whoever leads reads as an Insert of that row. It brings the columns along,
//! because the server describes a table only before a row of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};

use super::{AssembleError, HANDOVER, Options, Reason, Rejection, RowReader, Step, Transaction};
use crate::event::Position;
use crate::event::mapping::Plan;

/// The content of such a message, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// The slot of those whom it is for: all slots of a database send it.
    pub slot: String,
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// The row's id, for whoever cannot map it.
    pub id: String,
    /// What stands before the subject; may be empty.
    pub subject_prefix: String,
    /// For each column its name, the oid of its type, and its value in text form, as an Insert has
    /// it.
    pub row: Vec<(String, u32, Option<Text>)>,
}

/// A value in text form, which is UTF-8 in all databases but those of `SQL_ASCII`: in JSON a text,
/// or else `{"base64": …}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Spelled")]
pub struct Text(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Spelled {
    Utf8(String),
    Other { base64: String },
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text.serialize(serializer),
            Err(_) => {
                let base64 = STANDARD.encode(&self.0);
                Spelled::Other { base64 }.serialize(serializer)
            }
        }
    }
}

impl TryFrom<Spelled> for Text {
    type Error = base64::DecodeError;

    fn try_from(spelled: Spelled) -> Result<Self, Self::Error> {
        Ok(Self(match spelled {
            Spelled::Utf8(text) => text.into_bytes(),
            Spelled::Other { base64 } => STANDARD.decode(base64)?,
        }))
    }
}

/// Makes the event of it; what cannot be one is a rejection, since the message may be anybody's.
pub(super) fn take(
    options: &Options,
    (open, position): (&mut Transaction, Position),
    (content, reserved): (Bytes, &mut u64),
) -> Result<Step, AssembleError> {
    let reject = |(table, id): (String, String), reason: String| {
        Ok(Step::Rejected(Box::new(Rejection {
            position,
            table: table.into(),
            id,
            reason: Reason::Message(reason),
            subject: String::new(),
            payload: content.clone(),
        })))
    };
    let handed: Handover = match serde_json::from_slice(&content) {
        Ok(handed) => handed,
        Err(error) => {
            let reason = format!("not outjet's (at character {})", error.column());
            return reject((HANDOVER.to_owned(), String::new()), reason);
        }
    };
    if handed.slot != options.slot {
        return Ok(Step::Nothing);
    }
    let table = format!("{}.{}", handed.schema, handed.table);
    let named = (table, handed.id.clone());
    if options.prefixes.is_empty() {
        return reject(named, "messages.prefixes is empty".to_owned());
    }
    let mut tables = options.tables.iter();
    let mapping = tables.find(|t| t.schema() == handed.schema && t.table() == handed.table);
    let Some(mapping) = mapping else {
        let reason = format!("{} is not among the tables of whoever leads", named.0);
        return reject(named, reason);
    };
    let columns: Vec<_> = handed
        .row
        .iter()
        .map(|(name, oid, _)| (&**name, *oid))
        .collect();
    let plan = match Plan::resolve(mapping, &columns, options.subject.fields()) {
        Ok(plan) => plan,
        Err(error) => return reject(named, error.to_string()),
    };
    let values = handed.row.iter();
    let values = values.map(|(_, _, value)| value.as_ref().map(|Text(bytes)| bytes.as_slice()));
    let reader = RowReader {
        options,
        plan: &plan,
        source: &options.source_of(&plan.table),
        row: plan.row(values.collect()),
        body: &content,
        again: Some(&handed.subject_prefix),
    };
    Ok(reader.step(position, open.committed(), reserved))
}
