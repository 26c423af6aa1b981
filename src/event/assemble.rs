//! From pgoutput messages to events: the only module that knows both. Keeps the relations that the
//! server described and the open transaction; pure.
//!
//! An event's position counts every row and message that the slot sends in its transaction,
//! published or not, so that a changed mapping does not move it.

mod handover;
mod message;
mod rejection;
mod unsent;
mod values;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::format::{Body, Fields, Format, Json, rfc3339};
use super::mapping::{Field, Mapping, MappingError, Plan, Row, Value};
use super::route::{Route, RouteError, Template, check_subject};
use super::{Event, Headers, Position, header_is_sound};
use crate::lsn::Lsn;
use crate::pg::pgoutput::{DecodeError, Message, PgTime, Relation, Tuple, decode};
pub use handover::{Handover, Text};
use message::MessageTable;
pub use rejection::{Reason, Rejection};
pub use unsent::Unsent;
use values::{flag, in_json, is_json, media_type, texts, unhex};

/// The prefix of the messages by which outjet itself hands a row to whoever leads.
pub const HANDOVER: &str = "outjet";

/// What events are made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// The outbox tables.
    pub tables: Vec<Mapping>,
    /// The prefixes of logical messages that are events.
    pub prefixes: Vec<String>,
    /// The subject of a row without a topic.
    pub subject: Template,
    /// What becomes of subjects; the first match wins.
    pub routes: Vec<Route>,
    /// What stands before every subject, whatever it was made of.
    pub subject_prefix: Option<String>,
    /// The headers.
    pub format: Format,
    /// `ce-source`; `/<database>/<schema>.<table>` if `None`.
    pub source: Option<String>,
    /// The database's name.
    pub database: String,
    /// The slot's name: rows may be handed over to another one of the same database.
    pub slot: String,
}

impl Options {
    /// The default subject template (DESIGN §8).
    pub fn default_subject() -> Result<Template, RouteError> {
        Template::parse("events.{aggregatetype}.{type}")
    }

    /// `ce-source` of what comes from a table, or with a prefix.
    fn source_of(&self, table: &str) -> String {
        let source = self.source.clone();
        source.unwrap_or_else(|| format!("/{}/{table}", self.database))
    }
}

/// What a message means for the relay.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// A transaction starts; this is when it was committed.
    Begin(PgTime),
    /// An event of the open transaction.
    Event(Event),
    /// A row or message of the open transaction that cannot become an event.
    Rejected(Box<Rejection>),
    /// The transaction ends; this is what may be confirmed for it.
    Commit(Lsn),
}

/// Why the stream cannot be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// The bytes are not a message.
    #[error("decode a pgoutput message")]
    Decode(#[from] DecodeError),
    /// The messages do not come in the order of the protocol.
    #[error("{0} came out of turn")]
    OutOfTurn(&'static str),
    /// A row of a relation that was never described.
    #[error("a row of relation {0} came before its description")]
    Undescribed(u32),
    /// A row of a table that the configuration does not name.
    #[error("the publication sends rows of {0}, which is not configured")]
    Unmapped(String),
    /// A column is missing.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// A row that does not fit its relation.
    #[error("a row of {0} does not have the columns of its description")]
    Row(String),
}

/// What was passed over; for counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Headers of rows with a reserved name.
    pub headers: u64,
    /// Logical messages of prefixes that are not configured.
    pub messages: u64,
    /// Logical messages of configured prefixes that belong to no transaction.
    pub loose_messages: u64,
    /// Updates, deletes and truncates, which the publication should not send.
    pub changes: u64,
}

/// The state of one term.
#[derive(Debug)]
pub struct Assembler {
    options: Options,
    relations: HashMap<u32, Described>,
    /// By prefix; made for the first message of each.
    messages: BTreeMap<String, MessageTable>,
    open: Option<Transaction>,
    newest_commit: Lsn,
    passed: Passed,
}

/// A table that the server has described.
#[derive(Debug)]
enum Described {
    Outbox { plan: Box<Plan>, source: String },
    Other(String),
}

#[derive(Debug)]
struct Transaction {
    commit_lsn: Lsn,
    commit_time: PgTime,
    /// RFC 3339; made for the first event.
    committed: Option<String>,
    next_index: u32,
}

impl Assembler {
    /// For a stream that starts now.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            relations: HashMap::new(),
            messages: BTreeMap::new(),
            open: None,
            newest_commit: Lsn::ZERO,
            passed: Passed::default(),
        }
    }

    /// Takes the next message. An event's body shares `body`.
    pub fn take(&mut self, body: &Bytes) -> Result<Step, AssembleError> {
        match decode(body)? {
            Message::Begin {
                commit_lsn,
                commit_time,
                ..
            } => self.begin(commit_lsn, commit_time),
            Message::Commit {
                commit_lsn,
                end_lsn,
                ..
            } => self.commit(commit_lsn, end_lsn),
            Message::Relation(relation) => self.describe(&relation),
            Message::Insert { relation, tuple } => self.insert(relation, tuple, body),
            Message::Update { .. } | Message::Delete { .. } | Message::Truncate { .. } => {
                self.passed.changes += 1;
                self.next_position("a change").map(|_| Step::Nothing)
            }
            Message::Logical(message) => self.message(&message, body),
            Message::Origin { .. } | Message::Type { .. } => Ok(Step::Nothing),
        }
    }

    /// What was passed over so far.
    pub fn passed(&self) -> Passed {
        self.passed
    }

    fn begin(&mut self, commit_lsn: Lsn, commit_time: PgTime) -> Result<Step, AssembleError> {
        // Commit LSNs strictly increase on the wire; the guard and the window rest on it.
        if self.open.is_some() || commit_lsn <= self.newest_commit {
            return Err(AssembleError::OutOfTurn("Begin"));
        }
        self.newest_commit = commit_lsn;
        self.open = Some(Transaction {
            commit_lsn,
            commit_time,
            committed: None,
            next_index: 0,
        });
        Ok(Step::Begin(commit_time))
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<Step, AssembleError> {
        let open = self
            .open
            .take()
            .filter(|open| open.commit_lsn == commit_lsn);
        if open.is_none() || end_lsn <= commit_lsn {
            return Err(AssembleError::OutOfTurn("Commit"));
        }
        Ok(Step::Commit(end_lsn))
    }

    fn describe(&mut self, relation: &Relation<'_>) -> Result<Step, AssembleError> {
        let Relation {
            oid,
            namespace: schema,
            name: table,
            ..
        } = *relation;
        let mut tables = self.options.tables.iter();
        let mapping = tables.find(|known| known.schema() == schema && known.table() == table);
        let known = match mapping {
            Some(mapping) => {
                let columns = relation.columns.iter();
                let columns: Vec<_> = columns.map(|c| (c.name, c.type_oid)).collect();
                let plan = Plan::resolve(mapping, &columns, self.options.subject.fields())?;
                let source = self.options.source_of(&plan.table);
                let plan = Box::new(plan);
                Described::Outbox { plan, source }
            }
            // Leaf partitions are described, too; their rows come as the root's.
            None => Described::Other(format!("{schema}.{table}")),
        };
        self.relations.insert(oid, known);
        Ok(Step::Nothing)
    }

    fn insert(
        &mut self,
        relation: u32,
        tuple: Tuple<'_>,
        body: &Bytes,
    ) -> Result<Step, AssembleError> {
        let position = self.next_position("Insert")?;
        let (plan, source) = match self.relations.get(&relation) {
            Some(Described::Outbox { plan, source }) => (plan, source),
            Some(Described::Other(table)) => return Err(AssembleError::Unmapped(table.clone())),
            None => return Err(AssembleError::Undescribed(relation)),
        };
        let row = plan
            .read(tuple)
            .ok_or_else(|| AssembleError::Row(plan.table.to_string()))?;
        let open = self
            .open
            .as_mut()
            .ok_or(AssembleError::OutOfTurn("Insert"))?;
        let committed = open.committed();
        let reader = RowReader {
            options: &self.options,
            plan,
            source,
            row,
            body,
            again: None,
        };
        Ok(reader.step(position, committed, &mut self.passed.headers))
    }

    fn next_position(&mut self, what: &'static str) -> Result<Position, AssembleError> {
        let open = self.open.as_mut().ok_or(AssembleError::OutOfTurn(what))?;
        let index = open.next_index;
        open.next_index = index.checked_add(1).ok_or(AssembleError::OutOfTurn(what))?;
        Ok(Position {
            commit: open.commit_lsn.as_u64(),
            index,
        })
    }
}

impl Transaction {
    /// RFC 3339.
    fn committed(&mut self) -> &str {
        self.committed
            .get_or_insert_with(|| timestamp(self.commit_time))
    }
}

/// RFC 3339 with microseconds, UTC.
pub fn timestamp(time: PgTime) -> String {
    let nanos = i128::from(time.to_unix_micros()) * 1000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    time.and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// What fields are that do not stand in the row as they are sent.
struct Made<'a> {
    created: Option<String>,
    deliver_at: Option<String>,
    expires_at: Option<String>,
    pii_fields: Option<Vec<String>>,
    extra: Vec<(&'a str, &'a str)>,
}

/// One row on its way to an event.
struct RowReader<'a> {
    options: &'a Options,
    plan: &'a Plan,
    source: &'a str,
    row: Row<'a>,
    body: &'a Bytes,
    /// It goes out again, with this before its subject.
    again: Option<&'a str>,
}

impl RowReader<'_> {
    fn step(&self, position: Position, committed: &str, reserved: &mut u64) -> Step {
        let read = self.read(position, committed, reserved);
        read.map_or_else(Step::Rejected, Step::Event)
    }

    fn read(
        &self,
        position: Position,
        committed: &str,
        reserved: &mut u64,
    ) -> Result<Event, Box<Rejection>> {
        self.event(position, committed, reserved).map_err(|reason| {
            Box::new(Rejection {
                position,
                table: self.plan.table.clone(),
                id: self.lossy_id(),
                subject: self.subject().unwrap_or_default(),
                payload: self.raw_payload(),
                reason,
            })
        })
    }

    fn event(
        &self,
        position: Position,
        committed: &str,
        reserved: &mut u64,
    ) -> Result<Event, Reason> {
        if let Some(fault) = &self.row.fault {
            return Err(fault.clone().into());
        }
        let id = self.text(Field::Id)?;
        // All rows with an empty one would be the same event to consumers.
        let id = id.filter(|id| !id.trim().is_empty()).ok_or(Reason::NoId)?;
        let (payload, type_oid) = self.payload()?;
        let deliver_at = self.time(Field::DeliverAt)?;
        let expires_at = self.time(Field::ExpiresAt)?;
        let made = Made {
            created: self.text(Field::CreatedAt)?.and_then(rfc3339),
            deliver_at: deliver_at.as_ref().map(|(text, _)| text.clone()),
            expires_at: expires_at.as_ref().map(|(text, _)| text.clone()),
            pii_fields: self.value(Field::PiiFields).map(texts).transpose()?,
            extra: self.extra()?,
        };
        let fields = Fields {
            id,
            committed,
            ..self.fields(type_oid, &made)?
        };
        let mut headers = Headers::with_capacity(512);
        let format = self.options.format;
        format.dress(&mut headers, &fields);
        self.custom_headers(&mut headers, reserved)?;
        let wrapped = match format.wraps() {
            true => format.body(&fields, body(&payload, type_oid, fields.content_type)?),
            false => None,
        };
        let (payload, wrapped) = match wrapped {
            Some((body, wrapped)) => (body, Some(Box::new(wrapped))),
            None => (payload, None),
        };
        let id = message_id(&self.plan.table, id);
        if let Some(name) = headers.unsound() {
            return Err(Reason::Header(name.to_owned()));
        }
        if !header_is_sound(MESSAGE_ID, &id) {
            return Err(Reason::Header(MESSAGE_ID.to_owned()));
        }
        Ok(Event {
            position,
            id,
            subject: self.subject()?,
            headers,
            payload,
            wrapped,
            table: self.plan.table.clone(),
            deliver_at: deliver_at
                .map(|(_, at)| at)
                .filter(|at| is_after(*at, committed)),
            expires_at: expires_at.map(|(_, at)| at),
            replayed: self.again.is_some(),
            rejected: None,
            followers: 0,
            known: false,
        })
    }

    fn fields<'s>(
        &'s self,
        type_oid: Option<u32>,
        made: &'s Made<'_>,
    ) -> Result<Fields<'s>, Reason> {
        let suggested = type_oid.and_then(media_type);
        Ok(Fields {
            id: "",
            committed: "",
            source: self.source,
            kind: self.text(Field::Type)?,
            aggregatetype: self.text(Field::AggregateType)?,
            aggregateid: self.text(Field::AggregateId)?,
            created: made.created.as_deref(),
            deliver_at: made.deliver_at.as_deref(),
            expires_at: made.expires_at.as_deref(),
            content_type: self.text(Field::ContentType)?.or(suggested),
            tenant: self.text(Field::TenantId)?,
            correlation: self.text(Field::CorrelationId)?,
            dedup_key: self.text(Field::DedupKey)?,
            traceparent: self.text(Field::Traceparent)?,
            tracestate: self.text(Field::Tracestate)?,
            baggage: self.text(Field::Baggage)?,
            schema_version: self.json(Field::SchemaVersion)?,
            trace_id: self.text(Field::TraceId)?,
            producer: self.text(Field::Producer)?,
            pii: self.text(Field::Pii)?.map(flag),
            pii_fields: made.pii_fields.as_deref(),
            consent: self.json(Field::Consent)?,
            metadata: self.json(Field::Metadata)?,
            extra: &made.extra,
        })
    }

    fn value(&self, field: Field) -> Option<Value<'_>> {
        self.plan.value(&self.row, field)
    }

    fn text(&self, field: Field) -> Result<Option<&str>, Reason> {
        let value = self.value(field);
        value.map(|value| utf8(value, field.key())).transpose()
    }

    /// As RFC 3339, and as such. Without a time zone it is one of UTC. `None` also for an end that
    /// nobody will see.
    fn time(&self, field: Field) -> Result<Option<(String, OffsetDateTime)>, Reason> {
        const TIMESTAMP: u32 = 1114;
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let mut text = utf8(value, field.key())?.to_owned();
        if field == Field::ExpiresAt && text == "infinity" {
            return Ok(None);
        }
        if value.type_oid == TIMESTAMP {
            text.push_str("+00");
        }
        let text = rfc3339(&text).unwrap_or(text);
        let time = OffsetDateTime::parse(&text, &Rfc3339).ok();
        match time {
            Some(time) if time.year() < YEARS_END => Ok(Some((text, time))),
            Some(_) if field == Field::ExpiresAt => Ok(None),
            Some(_) | None => Err(Reason::Time(field.key())),
        }
    }

    fn json(&self, field: Field) -> Result<Option<Json<'_>>, Reason> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        let text = utf8(value, field.key())?;
        Ok(Some(in_json(text, value.type_oid)))
    }

    /// Columns that become headers.
    fn extra(&self) -> Result<Vec<(&str, &str)>, Reason> {
        let extra = self.plan.extra(&self.row);
        let texts = extra.map(|(header, value)| Ok((header, utf8(value, "an extra column")?)));
        texts.collect()
    }

    fn lossy_id(&self) -> String {
        let id = self.plan.value(&self.row, Field::Id);
        id.map(|id| String::from_utf8_lossy(id.text).into_owned())
            .unwrap_or_default()
    }

    fn subject(&self) -> Result<String, Reason> {
        let mut subject = String::with_capacity(64);
        // An empty one is what languages without NULL write.
        if let Some(topic) = self.text(Field::Topic)?.filter(|topic| !topic.is_empty()) {
            super::route::push_value(&mut subject, topic, false);
        } else {
            // A value that is not UTF-8 becomes underscores, like all that a subject cannot hold.
            self.options.subject.render(&mut subject, |number| {
                let value = self.plan.subject_value(&self.row, number)?;
                Some(std::str::from_utf8(value.text).unwrap_or("_"))
            });
        }
        let mut routes = self.options.routes.iter();
        let mut subject = routes
            .find_map(|route| route.apply(&subject))
            .unwrap_or(subject);
        if let Some(prefix) = &self.options.subject_prefix {
            subject.insert(0, '.');
            subject.insert_str(0, prefix);
        }
        let subject = match self.again {
            Some(prefix) => format!("{prefix}{subject}"),
            None => subject,
        };
        match check_subject(&subject) {
            Ok(()) => Ok(subject),
            Err(why) => Err(Reason::Subject { subject, why }),
        }
    }

    /// The payload, and the oid of its type; none if it is NULL.
    fn payload(&self) -> Result<(Bytes, Option<u32>), Reason> {
        let payload = self.value(Field::Payload);
        let raw = self.value(Field::PayloadRaw);
        let (value, key) = match (payload, raw) {
            (Some(_), Some(_)) => return Err(Reason::TwoPayloads),
            (Some(value), None) => (value, Field::Payload.key()),
            (None, Some(value)) => (value, Field::PayloadRaw.key()),
            (None, None) => return Ok((Bytes::new(), None)),
        };
        let bytes = match value.type_oid {
            BYTEA => unhex(value.text).ok_or(Reason::Bytea(key))?,
            _ if holds(self.body, value.text) => self.body.slice_ref(value.text),
            _ => Bytes::copy_from_slice(value.text),
        };
        Ok((bytes, Some(value.type_oid)))
    }

    /// The first body there is, as Postgres prints it.
    fn raw_payload(&self) -> Bytes {
        let fields = [Field::Payload, Field::PayloadRaw].into_iter();
        let mut bodies = fields.filter_map(|field| self.plan.value(&self.row, field));
        let body = bodies.next();
        body.map_or_else(Bytes::new, |value| Bytes::copy_from_slice(value.text))
    }

    /// Passes the row's own headers on, except those that the server, a format or we give a
    /// meaning: `Nats-Rollup` would purge the stream.
    fn custom_headers(&self, headers: &mut Headers, reserved: &mut u64) -> Result<(), Reason> {
        let Some(value) = self.value(Field::Headers) else {
            return Ok(());
        };
        // PHP writes an empty map as a list.
        if matches!(value.text.trim_ascii(), b"" | b"[]") {
            return Ok(());
        }
        // As they are written: a number is passed on with all of its digits.
        let object: Option<BTreeMap<String, &RawValue>> = json(value.text)?;
        for (name, value) in object.iter().flatten() {
            let reserved_here = is_reserved(name) || self.options.format.reserves(name);
            if reserved_here || headers.find(name).is_some() {
                *reserved += 1;
                continue;
            }
            if value.get().starts_with('[') {
                for value in json::<Vec<&RawValue>>(value.get().as_bytes())? {
                    push_custom(headers, name, value.get())?;
                }
            } else {
                push_custom(headers, name, value.get())?;
            }
        }
        Ok(())
    }
}

/// A server counts nanoseconds, in 63 bits: they end in 2262.
const YEARS_END: i32 = 2200;

/// `committed`: RFC 3339. By the commit and not by a clock, so that it is the same for a row that
/// is sent again later.
fn is_after(time: OffsetDateTime, committed: &str) -> bool {
    OffsetDateTime::parse(committed, &Rfc3339).is_ok_and(|committed| time > committed)
}

/// Whether a value lies where it was read; a constant does not.
fn holds(body: &Bytes, value: &[u8]) -> bool {
    body.as_ptr_range().contains(&value.as_ptr())
}

/// A payload as a body of JSON can hold it.
fn body<'a>(
    payload: &'a Bytes,
    type_oid: Option<u32>,
    content_type: Option<&str>,
) -> Result<Body<'a>, Reason> {
    let Some(type_oid) = type_oid else {
        return Ok(Body::Absent);
    };
    if type_oid == BYTEA {
        return Ok(Body::Bytes(payload));
    }
    let text = std::str::from_utf8(payload).map_err(|_| Reason::NotUtf8("payload"))?;
    Ok(Body::Json(match type_oid {
        JSON | JSONB => Json::Raw(text),
        _ if content_type.is_some_and(is_json) => {
            let checked: Result<&RawValue, _> = serde_json::from_str(text);
            Json::Raw(checked.map_err(|_| Reason::Payload)?.get())
        }
        _ => Json::Text(text),
    }))
}

/// Reads JSON of a row's headers. What is wrong with it is told without a word of it.
fn json<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Reason> {
    serde_json::from_slice(text).map_err(|error| {
        let what = match error.classify() {
            Category::Data => "another type was found",
            Category::Syntax | Category::Eof | Category::Io => "it is not well-formed",
        };
        let column = error.column();
        Reason::Headers(format!("{what} at character {column}"))
    })
}

fn push_custom(headers: &mut Headers, name: &str, json_text: &str) -> Result<(), Reason> {
    match json_text.as_bytes().first() {
        Some(b'"') => headers.push(name, &json::<String>(json_text.as_bytes())?),
        Some(b'n') => {}
        // An object too: pollers that put JSON into headers write it as text.
        _ => headers.push(name, json_text),
    }
    Ok(())
}

fn is_reserved(name: &str) -> bool {
    let starts = |prefix: &str| {
        name.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    starts("nats-") || starts("outjet-") || starts("ce-")
}

fn utf8<'a>(value: Value<'a>, name: &'static str) -> Result<&'a str, Reason> {
    std::str::from_utf8(value.text).map_err(|_| Reason::NotUtf8(name))
}

/// What consumers de-duplicate by.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// A UUID is unique by itself; other ids are within their table. Without spaces around it, which
/// `char(n)` has: who reads a header back gets it without them, and the guard compares ids.
fn message_id(table: &str, id: &str) -> String {
    if is_uuid(id) {
        id.to_owned()
    } else {
        format!("{table}:{id}").trim().to_owned()
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// `pg_type.oid` of the types that matter (`pg_type.dat`).
const BYTEA: u32 = 17;
const JSON: u32 = 114;
const JSONB: u32 = 3802;

#[cfg(test)]
mod tests;
