//! Events without a table: what `pg_logical_emit_message` wrote, read as the row that
//! `outbox.events` would have had. Knows JSON.
//!
//! The content is a JSON object. Its keys are the columns of the native outbox and whatever else
//! the subject template names; any other is a mistake, for a misspelt one would be an event that
//! lacks something. What the table wants NOT NULL is wanted here, too.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::value::RawValue;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::{
    AssembleError, Assembler, BYTEA, HANDOVER, JSON, Options, Reason, Rejection, RowReader, Step,
    handover,
};
use crate::event::Position;
use crate::event::mapping::{Field, MappingError, Origin, Plan, Preset};
use crate::pg::pgoutput::LogicalMessage;

/// `pg_type.oid` (`pg_type.dat`).
const TIMESTAMPTZ: u32 = 1184;
const TEXT: u32 = 25;

/// What the table declares NOT NULL, but for the id, which every row must have.
const WANTED: [Field; 3] = [Field::AggregateType, Field::AggregateId, Field::Type];

/// The messages of one prefix, as if they were the rows of a table.
#[derive(Debug)]
pub(super) struct MessageTable {
    pub(super) plan: Plan,
    /// `ce-source`.
    pub(super) source: String,
    columns: Vec<String>,
}

/// A message that is not an event, with its id if that can be read.
pub(super) type Refused = (Reason, String);

impl Assembler {
    /// A message counts in its transaction whatever its prefix.
    pub(super) fn message(
        &mut self,
        message: &LogicalMessage<'_>,
        body: &Bytes,
    ) -> Result<Step, AssembleError> {
        let LogicalMessage {
            transactional,
            prefix,
            content,
            ..
        } = *message;
        let handover = prefix == HANDOVER;
        let ours = handover || self.options.prefixes.iter().any(|known| known == prefix);
        self.passed.messages += u64::from(!ours);
        self.passed.loose_messages += u64::from(ours && !transactional);
        if !transactional {
            return Ok(Step::Nothing);
        }
        let position = self.next_position("a transactional message")?;
        if !ours {
            return Ok(Step::Nothing);
        }
        if handover {
            let open = self
                .open
                .as_mut()
                .ok_or(AssembleError::OutOfTurn(HANDOVER))?;
            let content = (body.slice_ref(content), &mut self.passed.headers);
            return handover::take(&self.options, (open, position), content);
        }
        if !self.messages.contains_key(prefix) {
            let table = MessageTable::new(prefix, &self.options)?;
            self.messages.insert(prefix.to_owned(), table);
        }
        let (Some(table), Some(open)) = (self.messages.get(prefix), &mut self.open) else {
            return Err(AssembleError::OutOfTurn("a transactional message"));
        };
        let committed = open.committed();
        let values = match table.read(content, committed) {
            Ok(values) => values,
            Err(refused) => return Ok(table.reject(refused, (position, body.slice_ref(content)))),
        };
        let row = values.iter().map(|value| value.as_deref()).collect();
        let reader = RowReader {
            options: &self.options,
            plan: &table.plan,
            source: &table.source,
            row: table.plan.row(row),
            body,
            again: None,
        };
        Ok(reader.step(position, committed, &mut self.passed.headers))
    }
}

type Object<'a> = BTreeMap<String, &'a RawValue>;

impl MessageTable {
    pub(super) fn new(prefix: &str, options: &Options) -> Result<Self, MappingError> {
        let mut mapping = Preset::Native.mapping("", prefix);
        let others = [
            Field::DeliverAt,
            Field::ExpiresAt,
            Field::Tracestate,
            Field::Baggage,
        ];
        for field in others {
            mapping.set(field, Origin::Column(field.key().to_owned()));
        }
        let fields = Field::ALL.into_iter();
        let fields = fields.filter(|(field, _)| mapping.column_of(*field).is_some());
        let mut columns: Vec<_> = fields.map(|(field, key)| (key, type_oid(field))).collect();
        let others = options.subject.fields();
        let others = others.filter(|name| Field::named(name).is_none());
        columns.extend(others.map(|name| (name, TEXT)));
        let mut plan = Plan::resolve(&mapping, &columns, options.subject.fields())?;
        plan.table = prefix.into();
        Ok(Self {
            plan,
            source: options.source_of(prefix),
            columns: columns.iter().map(|(name, _)| (*name).to_owned()).collect(),
        })
    }

    /// The values of the columns, in their order. `committed`: RFC 3339.
    pub(super) fn read<'a>(
        &self,
        content: &'a [u8],
        committed: &str,
    ) -> Result<Vec<Option<Cow<'a, [u8]>>>, Refused> {
        let object: Object<'a> = serde_json::from_slice(content).map_err(|error| {
            let reason = format!("it is not a JSON object (at character {})", error.column());
            (Reason::Message(reason), String::new())
        })?;
        self.values(&object, committed).map_err(|reason| {
            let id = object.get(Field::Id.key());
            let id = id.and_then(|id| value(Field::Id.key(), id).ok().flatten());
            let id = id.map(|id| String::from_utf8_lossy(&id).into_owned());
            (Reason::Message(reason), id.unwrap_or_default())
        })
    }

    /// What is left of a message that is not an event: all of it.
    pub(super) fn reject(
        &self,
        (reason, id): Refused,
        (position, content): (Position, Bytes),
    ) -> Step {
        Step::Rejected(Box::new(Rejection {
            position,
            table: self.plan.table.clone(),
            id,
            reason,
            subject: String::new(),
            payload: content,
        }))
    }

    fn values<'a>(
        &self,
        object: &Object<'a>,
        committed: &str,
    ) -> Result<Vec<Option<Cow<'a, [u8]>>>, String> {
        let known = |key: &String| self.columns.contains(key);
        if let Some(key) = object.keys().find(|key| !known(key)) {
            return Err(format!("there is no column {key:?}"));
        }
        let columns = self.columns.iter().map(|name| {
            let given = match object.get(name) {
                Some(raw) => value(name, raw)?,
                None => None,
            };
            let wanted = WANTED.iter().any(|field| field.key() == name);
            match given {
                None if wanted => Err(format!("its {name} is missing")),
                None if name == Field::CreatedAt.key() => {
                    Ok(Some(timestamptz(committed).into_bytes().into()))
                }
                given => Ok(given),
            }
        });
        columns.collect()
    }
}

fn type_oid(field: Field) -> u32 {
    match field {
        Field::Payload | Field::Headers => JSON,
        Field::PayloadRaw => BYTEA,
        Field::CreatedAt | Field::DeliverAt | Field::ExpiresAt => TIMESTAMPTZ,
        _ => TEXT,
    }
}

/// A value as Postgres would give it in text form; JSON stays as it is written.
fn value<'a>(name: &str, raw: &'a RawValue) -> Result<Option<Cow<'a, [u8]>>, String> {
    let json = raw.get();
    let first = json.as_bytes().first();
    let field = Field::named(name);
    if json == "null" {
        return Ok(None);
    }
    if matches!(field, Some(Field::Payload | Field::Headers)) {
        return Ok(Some(json.as_bytes().into()));
    }
    let text = match first {
        Some(b'"') => serde_json::from_str::<String>(json),
        Some(b'{' | b'[') => return Err(format!("its {name} is not a text")),
        // A number with all of its digits.
        _ => return Ok(Some(json.as_bytes().into())),
    };
    let text = text.map_err(|_| format!("its {name} is not a text"))?;
    let text = match field {
        Some(Field::PayloadRaw) => hex(&text).ok_or("its payload_raw is not in base64")?,
        Some(Field::DeliverAt | Field::ExpiresAt) if text.ends_with("infinity") => text,
        Some(Field::CreatedAt | Field::DeliverAt | Field::ExpiresAt) => {
            let time = OffsetDateTime::parse(&text, &Rfc3339).ok();
            let time = time.and_then(|time| time.checked_to_offset(UtcOffset::UTC));
            // Postgres counts microseconds.
            let time = time.and_then(|time| time.replace_microsecond(time.microsecond()).ok());
            let time = time.and_then(|time| time.format(&Rfc3339).ok());
            let time = time.ok_or_else(|| format!("its {name} is not a time as in RFC 3339"))?;
            timestamptz(&time)
        }
        _ => text,
    };
    Ok(Some(text.into_bytes().into()))
}

/// As a session with `DateStyle = ISO` and `TimeZone = UTC` prints it, from RFC 3339 in UTC.
fn timestamptz(rfc3339: &str) -> String {
    rfc3339.replace('T', " ").replace('Z', "+00")
}

/// As a session with `bytea_output = hex` prints it, from base64 with or without line breaks, which
/// Postgres's `encode` makes.
fn hex(base64: &str) -> Option<String> {
    let mut digits = base64.to_owned();
    digits.retain(|c| !c.is_ascii_whitespace());
    let bytes = STANDARD.decode(digits).ok()?;
    let mut hex = String::with_capacity(2 + 2 * bytes.len());
    hex.push_str("\\x");
    for byte in bytes {
        let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or_default();
        hex.push(digit(byte >> 4));
        hex.push(digit(byte & 15));
    }
    Some(hex)
}
