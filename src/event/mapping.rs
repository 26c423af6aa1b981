//! Which columns of an outbox table mean what, by name; resolved to column numbers whenever the
//! server describes the table. Pure.

mod detect;
mod inside;
mod presets;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

pub use detect::{Detected, detect};
pub use inside::{Inside, Syntax};
pub use presets::Preset;

use crate::pg::pgoutput::{Tuple, TupleValue};
use inside::Inner;

/// What a column can mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// The event's id. Must not be NULL.
    Id,
    /// An explicit subject, before routes; the template if NULL.
    Topic,
    /// The type of the aggregate.
    AggregateType,
    /// The id of the aggregate.
    AggregateId,
    /// The event type.
    Type,
    /// The body: json, jsonb, text, anything that has a text form; bytea as its bytes.
    Payload,
    /// A second place for the body, for rows whose `Payload` is NULL.
    PayloadRaw,
    /// The media type of the body.
    ContentType,
    /// A JSON object of headers: `{"name": "value"}` or `{"name": ["v1", "v2"]}`.
    Headers,
    /// The tenant.
    TenantId,
    /// The correlation id.
    CorrelationId,
    /// W3C trace context.
    Traceparent,
    /// W3C trace context.
    Tracestate,
    /// W3C baggage.
    Baggage,
    /// When the event occurred.
    CreatedAt,
    /// When consumers are to get it, and not before.
    DeliverAt,
    /// From when on it is of no use.
    ExpiresAt,
    /// A business key by which consumers may drop repeats.
    DedupKey,
    /// The version of the payload's schema.
    SchemaVersion,
    /// The trace that the event belongs to, where there is no trace context.
    TraceId,
    /// Who made the event: the source of CloudEvents, where it is not NULL.
    Producer,
    /// Whether the payload holds personal data.
    Pii,
    /// Which members of it are personal data.
    PiiFields,
    /// What the person agreed to.
    Consent,
    /// JSON beside the payload, for the format `envelope`.
    Metadata,
}

impl Field {
    /// Every field, with the key it has in the configuration and in templates.
    pub const ALL: [(Self, &'static str); 25] = [
        (Self::Id, "id"),
        (Self::Topic, "topic"),
        (Self::AggregateType, "aggregatetype"),
        (Self::AggregateId, "aggregateid"),
        (Self::Type, "type"),
        (Self::Payload, "payload"),
        (Self::PayloadRaw, "payload_raw"),
        (Self::ContentType, "content_type"),
        (Self::Headers, "headers"),
        (Self::TenantId, "tenant_id"),
        (Self::CorrelationId, "correlation_id"),
        (Self::Traceparent, "traceparent"),
        (Self::Tracestate, "tracestate"),
        (Self::Baggage, "baggage"),
        (Self::CreatedAt, "created_at"),
        (Self::DeliverAt, "deliver_at"),
        (Self::ExpiresAt, "expires_at"),
        (Self::DedupKey, "dedup_key"),
        (Self::SchemaVersion, "schema_version"),
        (Self::TraceId, "trace_id"),
        (Self::Producer, "producer"),
        (Self::Pii, "pii"),
        (Self::PiiFields, "pii_fields"),
        (Self::Consent, "consent"),
        (Self::Metadata, "metadata"),
    ];

    /// The field with this key.
    pub fn named(key: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == key)
            .map(|(field, _)| *field)
    }

    /// The key in the configuration and in templates.
    pub fn key(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(field, _)| *field == self)
            .map_or("", |(_, key)| key)
    }
}

/// Where a field's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The column of this name.
    Column(String),
    /// The same for every row.
    Constant(String),
    /// A place inside a column.
    Inside(Inside),
}

impl Origin {
    fn column(&self) -> Option<&str> {
        match self {
            Self::Column(name) => Some(name),
            Self::Inside(inside) => Some(&inside.column),
            Self::Constant(_) => None,
        }
    }
}

/// A header that a column becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraColumn {
    /// The column.
    pub column: String,
    /// The header. `ce-…` is an attribute of CloudEvents, and only sent in its formats.
    pub header: Arc<str>,
}

/// How a row shows that a poller has published it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The column that the poller writes.
    pub column: String,
    /// What stands there then; `None`: anything but NULL, 0 and false, a time or a flag.
    pub value: Option<String>,
    /// The column need not exist; then no row is marked by it.
    pub dispensable: bool,
}

impl Marker {
    /// One that a table has as a rule.
    pub fn expected(column: &str, value: Option<&str>) -> Self {
        Self {
            column: column.to_owned(),
            value: value.map(str::to_owned),
            dispensable: true,
        }
    }
}

/// How the rows of one table are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    schema: String,
    table: String,
    fields: Vec<(Field, Origin)>,
    /// Fields of a preset whose column need not exist.
    dispensable: Vec<Field>,
    /// Columns that become headers.
    pub extra: Vec<ExtraColumn>,
    /// A row that bears one of these was published by a poller. Only looked at where rows are
    /// compared with the stream.
    pub published: Vec<Marker>,
}

impl Mapping {
    /// A table of which nothing is known yet, but what most pollers call their mark.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            table: table.into(),
            fields: Vec::new(),
            dispensable: Vec::new(),
            extra: Vec::new(),
            published: vec![Marker::expected("published_at", None)],
        }
    }

    /// Says where a field comes from, instead of what was said before.
    pub fn set(&mut self, field: Field, origin: Origin) {
        self.fields.retain(|(known, _)| *known != field);
        self.dispensable.retain(|known| *known != field);
        self.fields.push((field, origin));
    }

    /// The mapping of a table that is known to have some columns and lack others: what need not
    /// exist does, or is left out.
    #[must_use]
    pub fn of_columns(mut self, has: impl Fn(&str) -> bool) -> Self {
        let dispensable = std::mem::take(&mut self.dispensable);
        self.fields.retain(|(field, origin)| {
            !dispensable.contains(field) || origin.column().is_none_or(&has)
        });
        self.published
            .retain(|marker| !marker.dispensable || has(&marker.column));
        self
    }

    /// The schema.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The columns that must exist, with what they are for: the key of a field, or a header.
    pub fn columns(&self) -> impl Iterator<Item = (&str, &str)> {
        let fields = self.fields.iter();
        let needed = fields.filter(|(field, _)| !self.dispensable.contains(field));
        let needed = needed.filter_map(|(field, origin)| {
            // Whatever is looked up in it, the column itself holds an object, as headers do.
            let key = match origin {
                Origin::Inside(_) => Field::Metadata.key(),
                Origin::Column(_) | Origin::Constant(_) => field.key(),
            };
            origin.column().map(|column| (key, column))
        });
        let extra = self.extra.iter();
        needed.chain(extra.map(|extra| (extra.header.as_ref(), extra.column.as_str())))
    }

    /// Whether anything is taken from a column.
    pub fn reads(&self, column: &str) -> bool {
        let mut origins = self.fields.iter().filter_map(|(_, origin)| origin.column());
        origins.any(|read| read == column) || self.extra.iter().any(|extra| extra.column == column)
    }

    /// The column that is a field.
    pub fn column_of(&self, field: Field) -> Option<&str> {
        let mut fields = self.fields.iter();
        match fields.find(|(known, _)| *known == field)? {
            (_, Origin::Column(name)) if !self.dispensable.contains(&field) => Some(name),
            _ => None,
        }
    }

    fn origin(&self, key: &str) -> Option<(Field, &Origin)> {
        let field = Field::named(key)?;
        let mut fields = self.fields.iter();
        let (_, origin) = fields.find(|(known, _)| *known == field)?;
        Some((field, origin))
    }
}

/// A column that the mapping or the subject template names does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table {table} has no column {column:?}, which is mapped to {field}; it has {found}")]
pub struct MappingError {
    /// `schema.table`.
    pub table: String,
    /// The column that is missing.
    pub column: String,
    /// The field that it stands for.
    pub field: String,
    /// The columns there are, separated by commas.
    pub found: String,
}

/// The columns that a table has now: name and oid of the type, in order.
pub type Columns<'a> = &'a [(&'a str, u32)];

/// A mapping, resolved against the columns that a table has now.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `schema.table`.
    pub table: Arc<str>,
    columns: usize,
    /// By [`Field`].
    picks: [Option<Pick>; Field::ALL.len()],
    subject: Vec<Option<Pick>>,
    extra: Vec<(Arc<str>, Pick)>,
    /// What is looked up in columns of every row.
    inside: Vec<Lookup>,
}

/// Where a value stands in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pick {
    Column {
        number: usize,
        type_oid: u32,
    },
    Constant(String),
    /// By its number among what is looked up.
    Inside(usize),
}

/// A value inside a column.
#[derive(Clone, Debug)]
struct Lookup {
    number: usize,
    inside: Inside,
    /// The field, for messages.
    field: Box<str>,
    /// JSON is taken as it stands, not as the text in it.
    raw: bool,
}

/// A value of a row: its text form and the oid of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    /// As Postgres gives it.
    pub text: &'a [u8],
    /// In `pg_type`; 0 for a constant.
    pub type_oid: u32,
}

/// `pg_type.oid` of what is found inside columns (`pg_type.dat`).
const JSON: u32 = 114;
const TEXT: u32 = 25;

impl Plan {
    /// Resolves a mapping, and the fields of the subject template: fields of the mapping or, where
    /// there is no such field, columns of the table.
    pub fn resolve<'t>(
        mapping: &Mapping,
        columns: Columns<'_>,
        template: impl Iterator<Item = &'t str>,
    ) -> Result<Self, MappingError> {
        let mut resolver = Resolver {
            table: format!("{}.{}", mapping.schema, mapping.table),
            columns,
            inside: Vec::new(),
        };
        let mut picks = [const { None }; Field::ALL.len()];
        for (field, origin) in &mapping.fields {
            let missing = |column| resolver.find(column).is_none();
            let dispensable = mapping.dispensable.contains(field);
            if dispensable && origin.column().is_some_and(missing) {
                continue;
            }
            picks[*field as usize] = Some(resolver.pick(origin, field.key())?);
        }
        let mut subject = Vec::new();
        for name in template {
            subject.push(match mapping.origin(name) {
                Some((field, _)) => picks[field as usize].clone(),
                // A field that this table does not map is an empty value, not a missing column.
                None if Field::named(name).is_some() => resolver.find(name),
                None => Some(resolver.column(name, "the subject")?),
            });
        }
        let extra = mapping.extra.iter();
        let extra = extra.map(|ExtraColumn { column, header }| {
            Ok((header.clone(), resolver.column(column, header)?))
        });
        let extra = extra.collect::<Result<_, _>>()?;
        Ok(Self {
            table: resolver.table.into(),
            columns: columns.len(),
            picks,
            subject,
            extra,
            inside: resolver.inside,
        })
    }

    /// Takes the values of an Insert. `None` if there are more or fewer of them than columns, or if
    /// one has no text form, which an Insert without the option `binary` never has.
    pub fn read<'a>(&self, tuple: Tuple<'a>) -> Option<Row<'a>> {
        if tuple.len() != self.columns {
            return None;
        }
        let mut values = Vec::with_capacity(tuple.len());
        for value in tuple.iter() {
            values.push(match value {
                TupleValue::Null => None,
                TupleValue::Text(text) => Some(text),
                TupleValue::Unchanged | TupleValue::Binary(_) => return None,
            });
        }
        Some(self.row(values))
    }

    /// Takes the values of the columns, one for each.
    pub fn row<'a>(&self, values: Vec<Option<&'a [u8]>>) -> Row<'a> {
        debug_assert_eq!(values.len(), self.columns);
        let mut row = Row {
            values,
            inside: Vec::new(),
            fault: None,
        };
        for lookup in &self.inside {
            let found = lookup.find(&row.values).unwrap_or_else(|fault| {
                row.fault.get_or_insert(fault);
                None
            });
            row.inside.push(found);
        }
        row
    }

    /// The value of a field; `None` if NULL or not mapped.
    pub fn value<'a>(&'a self, row: &'a Row<'a>, field: Field) -> Option<Value<'a>> {
        row.value(self.picks[field as usize].as_ref()?)
    }

    /// The value of a field of the subject template, by its number.
    pub fn subject_value<'a>(&'a self, row: &'a Row<'a>, number: usize) -> Option<Value<'a>> {
        row.value(self.subject.get(number)?.as_ref()?)
    }

    /// The headers that columns become, but those that are NULL.
    pub fn extra<'a>(&'a self, row: &'a Row<'a>) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        let extra = self.extra.iter();
        extra.filter_map(|(header, pick)| Some((header.as_ref(), row.value(pick)?)))
    }
}

/// Finds columns by their names, and gathers what is to be looked up in them.
struct Resolver<'a> {
    table: String,
    columns: Columns<'a>,
    inside: Vec<Lookup>,
}

impl Resolver<'_> {
    fn pick(&mut self, origin: &Origin, field: &str) -> Result<Pick, MappingError> {
        match origin {
            Origin::Constant(value) => Ok(Pick::Constant(value.clone())),
            Origin::Column(name) => self.column(name, field),
            Origin::Inside(inside) => {
                let Pick::Column { number, .. } = self.column(&inside.column, field)? else {
                    unreachable!("a column is picked as a column");
                };
                let json = [
                    "payload",
                    "payload_raw",
                    "headers",
                    "pii_fields",
                    "metadata",
                ];
                self.inside.push(Lookup {
                    number,
                    inside: inside.clone(),
                    field: field.into(),
                    raw: json.contains(&field),
                });
                Ok(Pick::Inside(self.inside.len() - 1))
            }
        }
    }

    fn column(&self, name: &str, field: &str) -> Result<Pick, MappingError> {
        self.find(name).ok_or_else(|| {
            let found: Vec<_> = self.columns.iter().map(|(name, _)| *name).collect();
            MappingError {
                table: self.table.clone(),
                column: name.to_owned(),
                field: field.to_owned(),
                found: found.join(", "),
            }
        })
    }

    fn find(&self, wanted: &str) -> Option<Pick> {
        let mut columns = self.columns.iter().enumerate();
        let (number, (_, type_oid)) = columns.find(|(_, (name, _))| *name == wanted)?;
        Some(Pick::Column {
            number,
            type_oid: *type_oid,
        })
    }
}

impl Lookup {
    fn find(&self, values: &[Option<&[u8]>]) -> Result<Option<Inner>, Fault> {
        let fault = |why| Fault {
            field: self.field.clone(),
            path: self.inside.to_string(),
            why,
        };
        let found = match values.get(self.number).copied().flatten() {
            Some(text) => self.inside.find(text).map_err(fault)?,
            None => None,
        };
        match found {
            None if self.inside.optional => Ok(None),
            None => Err(fault("there is no value")),
            Some(found) if self.raw => Ok(Some(found)),
            Some(found) => found.plain().map(Some).map_err(fault),
        }
    }
}

/// A value that cannot be had from inside a column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} cannot be read from {path}: {why}")]
pub struct Fault {
    field: Box<str>,
    path: String,
    why: &'static str,
}

/// The values of one inserted row.
#[derive(Debug)]
pub struct Row<'a> {
    values: Vec<Option<&'a [u8]>>,
    inside: Vec<Option<Inner>>,
    /// The first value that cannot be had; it counts as NULL.
    pub fault: Option<Fault>,
}

impl<'a> Row<'a> {
    fn value(&'a self, pick: &'a Pick) -> Option<Value<'a>> {
        let copy = |text: &'a str, type_oid| Value {
            text: text.as_bytes(),
            type_oid,
        };
        match pick {
            Pick::Constant(text) => Some(copy(text, 0)),
            Pick::Column { number, type_oid } => Some(Value {
                text: (*self.values.get(*number)?)?,
                type_oid: *type_oid,
            }),
            Pick::Inside(number) => match self.inside.get(*number)?.as_ref()? {
                Inner::Json(json) => Some(copy(json, JSON)),
                Inner::Text(text) => Some(copy(text, TEXT)),
            },
        }
    }
}
