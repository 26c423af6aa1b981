//! Guesses how a table's columns are to be read: by the presets, else by the names that people give
//! such columns.

use super::{Field, Preset};

/// What the columns of a table suggest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detected {
    /// It has every column of this preset, and of no larger one.
    Preset(Preset),
    /// It has one column for each of these fields.
    Columns(Vec<(Field, String)>),
    /// It has several columns for one field: these.
    Ambiguous(Vec<(Field, Vec<String>)>),
    /// It lacks a column for these fields, which every event needs.
    Lacks(Vec<Field>),
}

/// Names of columns, by what they are used for in other people's tables.
const SYNONYMS: [(Field, &[&str]); 10] = [
    (Field::Id, &["id", "event_id", "uuid", "message_id"]),
    (
        Field::Topic,
        &["topic", "subject", "destination", "channel"],
    ),
    (
        Field::AggregateType,
        &["aggregatetype", "aggregate_type", "entity_type"],
    ),
    (
        Field::AggregateId,
        &[
            "aggregateid",
            "aggregate_id",
            "entity_id",
            "partition_key",
            "key",
        ],
    ),
    (
        Field::Type,
        &["type", "event_type", "message_type", "event_name", "name"],
    ),
    (Field::Payload, &["payload", "data", "body", "event_data"]),
    (Field::Headers, &["headers", "metadata"]),
    (Field::TenantId, &["tenant_id", "tenant"]),
    (Field::CorrelationId, &["correlation_id"]),
    (
        Field::CreatedAt,
        &[
            "created_at",
            "occurred_at",
            "occurred_on",
            "timestamp",
            "creation_time",
        ],
    ),
];

/// Looks at the names of all columns of a table.
pub fn detect(columns: &[&str]) -> Detected {
    let has = |name: &str| columns.contains(&name);
    let presets = Preset::ALL.into_iter().map(|(preset, _)| preset);
    let fitting = presets.filter(|preset| preset.columns().all(has));
    if let Some(preset) = fitting.max_by_key(|preset| preset.columns().count()) {
        return Detected::Preset(preset);
    }
    let (mut found, mut several) = (Vec::new(), Vec::new());
    for (field, names) in SYNONYMS {
        let mut named = names.iter().filter(|name| has(name));
        match (named.next(), named.next()) {
            (None, _) => {}
            (Some(name), None) => found.push((field, (*name).to_owned())),
            (Some(_), Some(_)) => {
                let all = names.iter().filter(|name| has(name));
                several.push((field, all.map(|name| (*name).to_owned()).collect()));
            }
        }
    }
    if !several.is_empty() {
        return Detected::Ambiguous(several);
    }
    let lacks = |field: &Field| !found.iter().any(|(known, _)| known == field);
    let lacking: Vec<_> = [Field::Id, Field::Payload]
        .into_iter()
        .filter(lacks)
        .collect();
    match lacking.is_empty() {
        true => Detected::Columns(found),
        false => Detected::Lacks(lacking),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_detected_by_its_columns_whatever_else_there_is() {
        for (preset, word) in Preset::ALL {
            let mut columns: Vec<_> = preset.columns().collect();
            columns.push("something_else");
            assert_eq!(detect(&columns), Detected::Preset(preset), "{word}");
        }
    }

    #[test]
    fn other_tables_are_read_by_the_usual_names() {
        let expected = [
            (Field::Id, "event_id"),
            (Field::AggregateId, "entity_id"),
            (Field::Payload, "body"),
        ];
        let expected = expected.map(|(field, name)| (field, name.to_owned()));
        let found = detect(&["body", "event_id", "entity_id", "colour"]);
        assert_eq!(found, Detected::Columns(expected.into()));
    }

    #[test]
    fn two_columns_for_one_field_are_candidates_and_none_is_lacking() {
        let both = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        let expected = vec![
            (Field::Id, both(["id", "event_id"])),
            (Field::Payload, both(["payload", "data"])),
        ];
        let found = detect(&["data", "payload", "event_id", "id", "type"]);
        assert_eq!(found, Detected::Ambiguous(expected));
        assert_eq!(
            detect(&["id", "type"]),
            Detected::Lacks(vec![Field::Payload])
        );
    }
}
