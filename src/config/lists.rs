//! The values that are lists: texts, tables with their mapped columns, routes. Knows what one entry
//! may be; whether the entries fit together is `check`'s to say.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use serde_saphyr::Spanned;

use super::names::{TableName, check_header};
use super::value::{Column, Columns, Field, Preset, Refusal, Scalar, Setting};

impl Setting for Vec<String> {
    type Written = Vec<Spanned<String>>;

    fn from_text(text: &str) -> Result<Self::Written, Box<serde_saphyr::Error>> {
        yaml(text)
    }

    fn read(written: &Self::Written) -> Result<Self, Refusal> {
        written.iter().map(read_scalar).collect()
    }

    fn shown(written: &Self::Written) -> String {
        flow(written)
    }

    fn schema() -> Value {
        json!({"type": "array", "items": {"type": "string"}})
    }
}

/// A rule that changes a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The subjects that it changes.
    pub pattern: String,
    /// What they become.
    pub to: String,
}

/// A [`Route`] as it is written.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    #[serde(rename = "match")]
    pattern: Spanned<String>,
    to: Spanned<String>,
}

impl Setting for Vec<Route> {
    type Written = Vec<RawRoute>;

    fn from_text(text: &str) -> Result<Self::Written, Box<serde_saphyr::Error>> {
        yaml(text)
    }

    fn read(written: &Self::Written) -> Result<Self, Refusal> {
        let route = |raw: &RawRoute| {
            Ok(Route {
                pattern: read_scalar(&raw.pattern)?,
                to: read_scalar(&raw.to)?,
            })
        };
        written.iter().map(route).collect()
    }

    fn shown(written: &Self::Written) -> String {
        flow(written)
    }

    fn schema() -> Value {
        json!({"type": "array", "items": {
            "type": "object",
            "properties": {"match": {"type": "string"}, "to": {"type": "string"}},
            "required": ["match", "to"],
            "additionalProperties": false,
        }})
    }
}

/// An outbox table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which one.
    pub name: TableName,
    /// The layout that it starts from.
    pub preset: Preset,
    /// What differs from the preset, or is added to it.
    pub columns: Columns,
    /// Age at which a row is deleted; `None`: never.
    pub keep: Option<Duration>,
    /// Further columns, with the headers that they become.
    pub extra_columns: BTreeMap<String, String>,
    /// How a row shows that a poller has published it; `None`: as the preset says.
    pub published: Option<Published>,
}

/// How a row shows that a poller has published it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// It does not.
    Never,
    /// By a column.
    By {
        /// Its name.
        column: String,
        /// What stands there; `None`: anything but NULL, 0 and false.
        value: Option<String>,
    },
}

/// A [`Table`] as it is written.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTable {
    name: Spanned<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preset: Option<Spanned<String>>,
    #[serde(default, skip_serializing_if = "RawColumns::is_empty")]
    columns: RawColumns,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep: Option<Spanned<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    extra_columns: BTreeMap<String, Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<Spanned<RawPublished>>,
}

impl Setting for Vec<Table> {
    type Written = Vec<RawTable>;

    fn from_text(text: &str) -> Result<Self::Written, Box<serde_saphyr::Error>> {
        yaml(text)
    }

    fn read(written: &Self::Written) -> Result<Self, Refusal> {
        written.iter().map(RawTable::read).collect()
    }

    fn shown(written: &Self::Written) -> String {
        flow(written)
    }

    fn schema() -> Value {
        let fields = Field::WORDS
            .iter()
            .map(|word| ((*word).to_owned(), RawColumn::schema()));
        json!({"type": "array", "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "preset": <Preset as Scalar>::schema(),
                "columns": {
                    "type": "object",
                    "properties": fields.collect::<serde_json::Map<_, _>>(),
                    "additionalProperties": false,
                },
                "keep": <Duration as Scalar>::schema(),
                "extra_columns": {"type": "object", "additionalProperties": {"type": "string"}},
                "published": RawPublished::schema(),
            },
            "required": ["name"],
            "additionalProperties": false,
        }})
    }
}

impl RawTable {
    fn read(&self) -> Result<Table, Refusal> {
        let preset = match &self.preset {
            Some(preset) => read_scalar(preset)?,
            None => Preset::Native,
        };
        let mut columns = Columns::new();
        for (field, column) in &self.columns.0 {
            if columns
                .insert(read_scalar(field)?, read_column(column)?)
                .is_some()
            {
                let what = format!("`{}` is mapped twice", field.value);
                return Err(at(field, Refusal::new(what, "remove one of the two")));
            }
        }
        let table = Table {
            name: read_scalar(&self.name)?,
            preset,
            columns,
            keep: self.keep.as_ref().map(read_scalar).transpose()?,
            extra_columns: self.extra_columns()?,
            published: self.published.as_ref().map(read_published).transpose()?,
        };
        table.check().map_err(|refusal| at(&self.name, refusal))?;
        Ok(table)
    }

    fn extra_columns(&self) -> Result<BTreeMap<String, String>, Refusal> {
        let header = |(column, header): (&String, &Spanned<String>)| {
            check_header(&header.value).map_err(|refusal| {
                let what = format!("header `{}` {}", header.value, refusal.what);
                at(header, Refusal { what, ..refusal })
            })?;
            Ok((column.clone(), header.value.clone()))
        };
        self.extra_columns.iter().map(header).collect()
    }
}

impl Table {
    /// Whether events can be made of the rows at all.
    fn check(&self) -> Result<(), Refusal> {
        let name = &self.name;
        if let Some(Column::Constant(_)) = self.columns.get(&Field::Id) {
            let what = format!("all events of {name} would have the same id");
            return Err(Refusal::new(
                what,
                "map id to the column that identifies a row",
            ));
        }
        if self.keep.is_some() && name.ours() {
            let what = format!("{name} has keep, and expires by its partitions");
            return Err(Refusal::new(what, "write retention.keep instead"));
        }
        if self.preset != Preset::None {
            return Ok(());
        }
        if !self.columns.contains_key(&Field::Id) {
            let what = format!("{name} has neither a preset nor a column for `id`");
            let fix = "add `columns: {id: <column>, ...}`, with the column that identifies a row";
            return Err(Refusal::new(what, fix));
        }
        let body = [Field::Payload, Field::PayloadRaw];
        if !body.iter().any(|field| self.columns.contains_key(field)) {
            let what = format!("{name} has neither a preset nor a column for `payload`");
            let fix = "add `payload: <column>` (text or JSON) or `payload_raw: <column>` (bytea)";
            return Err(Refusal::new(what, fix));
        }
        Ok(())
    }
}

/// `columns` in the order in which it is written.
#[derive(Debug, Default)]
struct RawColumns(Vec<(Spanned<String>, Spanned<RawColumn>)>);

impl RawColumns {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for RawColumns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawColumns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping from fields to columns")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawColumns, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(RawColumns(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for RawColumns {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0
                .iter()
                .map(|(field, column)| (&field.value, &column.value)),
        )
    }
}

/// A [`Column`] as it is written: its name, or where else the value comes from.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum RawColumn {
    Named(String),
    Elsewhere(RawElsewhere),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawElsewhere {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    optional: Option<bool>,
}

impl<'de> Deserialize<'de> for RawColumn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = RawColumn;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a column, {value: text} or {json: column.key}")
            }

            fn visit_str<E>(self, name: &str) -> Result<RawColumn, E> {
                Ok(RawColumn::Named(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawColumn, A::Error> {
                let map = serde::de::value::MapAccessDeserializer::new(map);
                RawElsewhere::deserialize(map).map(RawColumn::Elsewhere)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl RawColumn {
    fn schema() -> Value {
        let one = |key: &str| {
            json!({
                "type": "object",
                "properties": {key: {"type": "string"}},
                "required": [key],
                "additionalProperties": false,
            })
        };
        let mut path = one("json");
        path["properties"]["optional"] = json!({"type": "boolean"});
        json!({"oneOf": [{"type": "string"}, one("value"), path, one("properties")]})
    }
}

fn read_column(column: &Spanned<RawColumn>) -> Result<Column, Refusal> {
    match &column.value {
        RawColumn::Named(name) if name.is_empty() => {
            let refusal = Refusal::new("a column has no name", "write the name of the column");
            Err(at(column, refusal))
        }
        RawColumn::Named(name) => Ok(Column::Named(name.clone())),
        RawColumn::Elsewhere(raw) => raw.read().map_err(|refusal| at(column, refusal)),
    }
}

impl RawElsewhere {
    fn read(&self) -> Result<Column, Refusal> {
        const FIX: &str = "write one of `{value: text}`, `{json: column.key}`, \
                           `{json: column.key, optional: true}` and `{properties: column.key}`";
        let path = |path: &str| match path.contains('.') && !path.split('.').any(str::is_empty) {
            true => Ok(path.to_owned()),
            false => Err(Refusal::new(format!("`{path}` is not a path"), FIX)),
        };
        match (&self.value, &self.json, &self.properties, self.optional) {
            (Some(text), None, None, None) => Ok(Column::Constant(text.clone())),
            (None, Some(json), None, optional) => Ok(Column::Json {
                path: path(json)?,
                optional: optional == Some(true),
            }),
            (None, None, Some(properties), None) => Ok(Column::Properties(path(properties)?)),
            _ => Err(Refusal::new(
                "a column is given in no way that is known",
                FIX,
            )),
        }
    }
}

/// A [`Published`] as it is written: `none`, a column, or a column and what stands there.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum RawPublished {
    Word(String),
    Value(RawValue),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawValue {
    column: String,
    value: String,
}

impl<'de> Deserialize<'de> for RawPublished {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = RawPublished;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a column, {column: name, value: text} or none")
            }

            fn visit_str<E>(self, word: &str) -> Result<RawPublished, E> {
                Ok(RawPublished::Word(word.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawPublished, A::Error> {
                let map = serde::de::value::MapAccessDeserializer::new(map);
                RawValue::deserialize(map).map(RawPublished::Value)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl RawPublished {
    fn schema() -> Value {
        let text = json!({"type": "string"});
        json!({"oneOf": [text, {
            "type": "object",
            "properties": {"column": text, "value": text},
            "required": ["column", "value"],
            "additionalProperties": false,
        }]})
    }
}

fn read_published(published: &Spanned<RawPublished>) -> Result<Published, Refusal> {
    let (column, value) = match &published.value {
        RawPublished::Word(word) if word == "none" => return Ok(Published::Never),
        RawPublished::Word(column) => (column, None),
        RawPublished::Value(raw) => (&raw.column, Some(raw.value.clone())),
    };
    if column.is_empty() {
        let refusal = Refusal::new("a column has no name", "write the name of the column");
        return Err(at(published, refusal));
    }
    let column = column.clone();
    Ok(Published::By { column, value })
}

/// A scalar inside a list.
fn read_scalar<T: Scalar>(text: &Spanned<String>) -> Result<T, Refusal> {
    <T as Setting>::read(&text.value).map_err(|refusal| at(text, refusal))
}

fn at<T>(spanned: &Spanned<T>, refusal: Refusal) -> Refusal {
    let place = Some(spanned.referenced);
    Refusal { place, ..refusal }
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, Box<serde_saphyr::Error>> {
    serde_saphyr::from_str(text).map_err(Box::new)
}

/// JSON, which is YAML on one line.
fn flow<T: Serialize>(written: &T) -> String {
    serde_json::to_string(written).expect("lists hold texts and maps of texts only")
}
