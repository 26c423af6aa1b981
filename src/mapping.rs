//! Which columns of an outbox table mean what, by name; resolved to column numbers whenever the
//! server describes the table. Pure.

use std::sync::Arc;

use crate::pg::pgoutput::{Relation, Tuple, TupleValue};

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
    /// A business key by which consumers may drop repeats.
    DedupKey,
}

impl Field {
    /// Every field, with the key it has in the configuration and in templates.
    pub const ALL: [(Self, &'static str); 16] = [
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
        (Self::DedupKey, "dedup_key"),
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
}

/// How the rows of one table are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    schema: String,
    table: String,
    fields: Vec<(Field, Origin)>,
}

impl Mapping {
    /// A table of which nothing is known yet.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            table: table.into(),
            fields: Vec::new(),
        }
    }

    /// A table with the columns of `outbox.events` as `sql/install.sql` makes it.
    pub fn native(schema: impl Into<String>, table: impl Into<String>) -> Self {
        let mut mapping = Self::new(schema, table);
        let absent = [Field::Tracestate, Field::Baggage];
        for (field, key) in Field::ALL {
            if !absent.contains(&field) {
                mapping.set(field, Origin::Column(key.to_owned()));
            }
        }
        mapping
    }

    /// Says where a field comes from, instead of what was said before.
    pub fn set(&mut self, field: Field, origin: Origin) {
        self.fields.retain(|(known, _)| *known != field);
        self.fields.push((field, origin));
    }

    /// Whether anything is said of a field.
    pub fn has(&self, field: Field) -> bool {
        self.fields.iter().any(|(known, _)| *known == field)
    }

    /// The schema.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The columns that must exist, with what they are for.
    pub fn columns(&self) -> impl Iterator<Item = (Field, &str)> {
        self.fields
            .iter()
            .filter_map(|(field, origin)| match origin {
                Origin::Column(name) => Some((*field, name.as_str())),
                Origin::Constant(_) => None,
            })
    }

    fn origin(&self, key: &str) -> Option<Origin> {
        let field = Field::named(key)?;
        self.fields
            .iter()
            .find(|(known, _)| *known == field)
            .map(|(_, origin)| origin.clone())
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

/// A mapping, resolved against the columns that a table has now.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `schema.table`.
    pub table: Arc<str>,
    columns: usize,
    picks: Vec<(Field, Pick)>,
    subject: Vec<Option<Pick>>,
}

/// Where a value stands in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pick {
    Column { number: usize, type_oid: u32 },
    Constant(String),
}

/// A value of a row: its text form and the oid of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    /// As Postgres gives it.
    pub text: &'a [u8],
    /// In `pg_type`; 0 for a constant.
    pub type_oid: u32,
}

impl Plan {
    /// Resolves a mapping, and the fields of the subject template: fields of the mapping or, where
    /// there is no such field, columns of the table.
    pub fn resolve<'t>(
        mapping: &Mapping,
        relation: &Relation<'_>,
        template: impl Iterator<Item = &'t str>,
    ) -> Result<Self, MappingError> {
        let columns = relation.columns.iter();
        let columns: Vec<_> = columns.map(|c| (c.name, c.type_oid)).collect();
        Self::of_columns(mapping, &columns, template)
    }

    /// The same for columns that no relation describes: name and type, in the order of the values.
    pub fn of_columns<'t>(
        mapping: &Mapping,
        columns: &[(&str, u32)],
        template: impl Iterator<Item = &'t str>,
    ) -> Result<Self, MappingError> {
        let table = format!("{}.{}", mapping.schema, mapping.table);
        let pick = |origin: &Origin, field: &str| match origin {
            Origin::Constant(value) => Ok(Pick::Constant(value.clone())),
            Origin::Column(name) => find(columns, name).ok_or_else(|| MappingError {
                table: table.clone(),
                column: name.clone(),
                field: field.to_owned(),
                found: columns
                    .iter()
                    .map(|(name, _)| *name)
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        };
        let picks = mapping.fields.iter();
        let picks = picks.map(|(field, origin)| Ok((*field, pick(origin, field.key())?)));
        let picks = picks.collect::<Result<_, _>>()?;
        let subject = template.map(|name| match mapping.origin(name) {
            Some(origin) => pick(&origin, name).map(Some),
            // A field that this table does not map is an empty value, not a missing column.
            None if Field::named(name).is_some() => Ok(find(columns, name)),
            None => pick(&Origin::Column(name.to_owned()), "the subject").map(Some),
        });
        let subject = subject.collect::<Result<_, _>>()?;
        Ok(Self {
            table: table.into(),
            columns: columns.len(),
            picks,
            subject,
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
        self.row(values)
    }

    /// Takes values that came otherwise, in the order of the columns.
    pub fn row<'a>(&self, values: Vec<Option<&'a [u8]>>) -> Option<Row<'a>> {
        (values.len() == self.columns).then_some(Row { values })
    }

    /// The value of a field; `None` if NULL or not mapped.
    pub fn value<'a>(&'a self, row: &Row<'a>, field: Field) -> Option<Value<'a>> {
        let (_, pick) = self.picks.iter().find(|(known, _)| *known == field)?;
        row.value(pick)
    }

    /// The value of a field of the subject template, by its number.
    pub fn subject_value<'a>(&'a self, row: &Row<'a>, number: usize) -> Option<Value<'a>> {
        row.value(self.subject.get(number)?.as_ref()?)
    }
}

fn find(columns: &[(&str, u32)], name: &str) -> Option<Pick> {
    let mut columns = columns.iter().enumerate();
    let (number, (_, type_oid)) = columns.find(|(_, (column, _))| *column == name)?;
    Some(Pick::Column {
        number,
        type_oid: *type_oid,
    })
}

/// The values of one inserted row.
#[derive(Debug)]
pub struct Row<'a> {
    values: Vec<Option<&'a [u8]>>,
}

impl<'a> Row<'a> {
    fn value(&self, pick: &'a Pick) -> Option<Value<'a>> {
        match pick {
            Pick::Constant(text) => Some(Value {
                text: text.as_bytes(),
                type_oid: 0,
            }),
            Pick::Column { number, type_oid } => {
                let text = (*self.values.get(*number)?)?;
                Some(Value {
                    text,
                    type_oid: *type_oid,
                })
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pg::pgoutput::{Column, Message, decode, encode};

    /// `(name, type oid)` of a table's columns.
    pub(crate) type Columns<'a> = &'a [(&'a str, u32)];

    /// The bytes by which the server describes a table.
    pub(crate) fn described(oid: u32, (schema, name): (&str, &str), columns: Columns) -> Vec<u8> {
        let nothing = [&b"R"[..], &oid.to_be_bytes(), b"\0\0d\0\0"].concat();
        let Ok(Message::Relation(nothing)) = decode(&nothing) else {
            panic!("a relation without columns is one");
        };
        let relation = Relation {
            namespace: schema,
            name,
            ..nothing
        };
        let columns: Vec<_> = columns
            .iter()
            .map(|&(name, type_oid)| Column {
                key: false,
                name,
                type_oid,
                typmod: -1,
            })
            .collect();
        encode::relation(&relation, &columns)
    }

    fn resolve(
        mapping: &Mapping,
        columns: Columns,
        template: &[&str],
    ) -> Result<Plan, MappingError> {
        let described = described(1, ("app", "outbox"), columns);
        let Ok(Message::Relation(relation)) = decode(&described) else {
            panic!("not a relation");
        };
        Plan::resolve(mapping, &relation, template.iter().copied())
    }

    fn read(plan: &Plan, values: &[TupleValue<'_>], check: impl FnOnce(Option<Row<'_>>)) {
        let insert = encode::insert(1, values);
        let Ok(Message::Insert { tuple, .. }) = decode(&insert) else {
            panic!("not an insert");
        };
        check(plan.read(tuple));
    }

    fn mapped(fields: &[(Field, &str)]) -> Mapping {
        let mut mapping = Mapping::new("app", "outbox");
        for (field, column) in fields {
            mapping.set(*field, Origin::Column((*column).to_owned()));
        }
        mapping
    }

    #[test]
    fn every_field_has_a_key_of_its_own() {
        for (field, key) in Field::ALL {
            assert_eq!(field.key(), key);
            assert_eq!(Field::named(key), Some(field));
        }
        assert_eq!(Field::named("Id"), None);
        assert_eq!(Field::named(""), None);
    }

    #[test]
    fn native_wants_every_column_that_the_schema_has_and_no_other() {
        let install = include_str!("../sql/install.sql");
        for (field, column) in Mapping::native("outbox", "events").columns() {
            assert_eq!(field.key(), column);
            assert!(install.contains(&format!("      {column} ")), "{column}");
        }
    }

    #[test]
    fn what_is_said_last_of_a_field_counts() {
        let mut mapping = mapped(&[(Field::Id, "a"), (Field::Id, "b")]);
        assert_eq!(mapping.columns().collect::<Vec<_>>(), [(Field::Id, "b")]);
        mapping.set(Field::Id, Origin::Constant("c".to_owned()));
        assert_eq!(mapping.columns().count(), 0);
        assert!(mapping.has(Field::Id));
    }

    #[test]
    fn columns_are_found_by_name_wherever_they_stand() {
        let mapping = mapped(&[(Field::Id, "key"), (Field::Payload, "body")]);
        let plan = resolve(&mapping, &[("body", 114), ("x", 23), ("key", 20)], &[]).unwrap();
        let values = [
            TupleValue::Text(b"{}"),
            TupleValue::Null,
            TupleValue::Text(b"7"),
        ];
        read(&plan, &values, |row| {
            let row = row.unwrap();
            let id = plan.value(&row, Field::Id).unwrap();
            assert_eq!((id.text, id.type_oid), (&b"7"[..], 20));
            let body = plan.value(&row, Field::Payload).unwrap();
            assert_eq!((body.text, body.type_oid), (&b"{}"[..], 114));
            assert_eq!(plan.value(&row, Field::Topic), None);
        });
    }

    #[test]
    fn missing_column_is_named_with_those_that_there_are() {
        let mapping = mapped(&[(Field::Type, "event_type")]);
        let error = resolve(&mapping, &[("id", 20), ("kind", 25)], &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "table app.outbox has no column \"event_type\", which is mapped to type; \
             it has id, kind"
        );
    }

    #[test]
    fn constant_has_no_type_and_needs_no_column() {
        let mut mapping = Mapping::new("app", "outbox");
        mapping.set(Field::AggregateType, Origin::Constant("order".to_owned()));
        let plan = resolve(&mapping, &[("id", 20)], &["aggregatetype"]).unwrap();
        read(&plan, &[TupleValue::Null], |row| {
            let row = row.unwrap();
            let wanted = Some(Value {
                text: b"order",
                type_oid: 0,
            });
            assert_eq!(plan.value(&row, Field::AggregateType), wanted);
            assert_eq!(plan.subject_value(&row, 0), wanted);
        });
    }

    #[test]
    fn template_takes_fields_then_columns_and_leaves_a_field_without_column_empty() {
        let mapping = mapped(&[(Field::Type, "kind")]);
        let columns = [("kind", 25), ("region", 25), ("tenant_id", 25)];
        let template = ["type", "region", "tenant_id", "aggregatetype"];
        let plan = resolve(&mapping, &columns, &template).unwrap();
        let values = [b"paid", &b"eu"[..], b"acme"].map(TupleValue::Text);
        read(&plan, &values, |row| {
            let row = row.unwrap();
            let texts = [0, 1, 2, 3, 4].map(|number| plan.subject_value(&row, number));
            let texts = texts.map(|value| value.map(|value| value.text));
            let wanted = [Some(&b"paid"[..]), Some(b"eu"), Some(b"acme"), None, None];
            assert_eq!(texts, wanted);
        });
        let error = resolve(&mapping, &columns, &["country"]).unwrap_err();
        assert_eq!(error.field, "the subject");
        assert_eq!(error.column, "country");
    }

    #[test]
    fn row_that_does_not_fit_its_description_is_not_read() {
        let mapping = mapped(&[(Field::Id, "id")]);
        let plan = resolve(&mapping, &[("id", 20), ("x", 25)], &[]).unwrap();
        let text = TupleValue::Text(b"1");
        let fits = |values: &[TupleValue<'_>], fits| {
            read(&plan, values, |row| assert_eq!(row.is_some(), fits));
        };
        fits(&[text, text], true);
        fits(&[text, TupleValue::Null], true);
        fits(&[text], false);
        fits(&[text, text, text], false);
        fits(&[text, TupleValue::Unchanged], false);
        fits(&[text, TupleValue::Binary(b"1")], false);
    }
}
