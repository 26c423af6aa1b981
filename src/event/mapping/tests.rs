//! Claims about columns, constants and what lies inside columns.

use super::*;
use crate::pg::pgoutput::{Column, Message, Relation, decode, encode};

/// The bytes by which the server describes a table.
pub(crate) fn described(oid: u32, (schema, name): (&str, &str), columns: Columns<'_>) -> Vec<u8> {
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
    columns: Columns<'_>,
    template: &[&str],
) -> Result<Plan, MappingError> {
    Plan::resolve(mapping, columns, template.iter().copied())
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
    let install = include_str!("../../../sql/install.sql");
    for (field, column) in Preset::Native.mapping("outbox", "events").columns() {
        assert_eq!(field, column);
        assert!(install.contains(&format!("      {column} ")), "{column}");
    }
}

#[test]
fn what_is_said_last_of_a_field_counts() {
    let mut mapping = mapped(&[(Field::Id, "a"), (Field::Id, "b")]);
    assert_eq!(mapping.columns().collect::<Vec<_>>(), [("id", "b")]);
    mapping.set(Field::Id, Origin::Constant("c".to_owned()));
    assert_eq!(mapping.columns().count(), 0);
    let plan = resolve(&mapping, &[], &["id"]).unwrap();
    let row = plan.row(Vec::new());
    assert_eq!(plan.subject_value(&row, 0).unwrap().text, b"c");
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

fn inside(path: &str, optional: bool) -> Origin {
    Origin::Inside(Inside::new(path, Syntax::Json, optional))
}

#[test]
fn value_inside_a_column_is_text_or_json_by_what_the_field_is_for() {
    let mut mapping = mapped(&[(Field::Id, "id")]);
    mapping.set(Field::TenantId, inside("meta.tenant", false));
    mapping.set(Field::AggregateId, inside("meta.number", false));
    mapping.set(Field::Payload, inside("meta.tenant", false));
    let columns = [("id", 20), ("meta", 3802)];
    let plan = resolve(&mapping, &columns, &["tenant_id"]).unwrap();
    let row = plan.row(vec![
        Some(b"1"),
        Some(br#"{"tenant": "a\u0063me", "number": 1.0}"#),
    ]);
    assert_eq!(row.fault, None);
    let value = |field| {
        let value = plan.value(&row, field).unwrap();
        (std::str::from_utf8(value.text).unwrap(), value.type_oid)
    };
    assert_eq!(value(Field::TenantId), ("acme", TEXT));
    assert_eq!(value(Field::AggregateId), ("1.0", JSON));
    assert_eq!(value(Field::Payload), (r#""a\u0063me""#, JSON));
    assert_eq!(plan.subject_value(&row, 0).unwrap().text, b"acme");
}

#[test]
fn value_that_is_not_inside_its_column_is_a_fault_unless_it_is_optional() {
    let mut mapping = mapped(&[(Field::Id, "id")]);
    mapping.set(Field::TenantId, inside("meta.tenant", false));
    mapping.set(Field::TraceId, inside("meta.trace", true));
    let plan = resolve(&mapping, &[("id", 20), ("meta", 3802)], &[]).unwrap();
    let fault = |meta: Option<&[u8]>| {
        let row = plan.row(vec![Some(b"1"), meta]);
        assert_eq!(plan.value(&row, Field::TraceId), None);
        row.fault.as_ref().map(Fault::to_string)
    };
    assert_eq!(fault(Some(br#"{"tenant": 7}"#)), None);
    let missing = "tenant_id cannot be read from meta.tenant: there is no value";
    assert_eq!(fault(Some(b"{}")).as_deref(), Some(missing));
    assert_eq!(fault(None).as_deref(), Some(missing));
    assert!(fault(Some(b"[]")).unwrap().ends_with("not a JSON object"));
}

#[test]
fn column_that_a_preset_can_do_without_may_be_missing_and_no_other() {
    let mut mapping = Preset::Debezium.mapping("app", "outbox");
    let bare: Vec<_> = ["id", "aggregatetype", "aggregateid", "type", "payload"]
        .map(|name| (name, 25))
        .into();
    let plan = resolve(&mapping, &bare, &["created_at"]).unwrap();
    let row = plan.row(vec![Some(b"x"); 5]);
    assert_eq!(plan.value(&row, Field::Traceparent), None);
    assert_eq!(plan.subject_value(&row, 0), None);
    assert!(resolve(&mapping, &bare[1..], &[]).is_err());
    // Who names it wants it.
    mapping.set(Field::CreatedAt, Origin::Column("timestamp".to_owned()));
    assert_eq!(
        resolve(&mapping, &bare, &[]).unwrap_err().column,
        "timestamp"
    );
}

#[test]
fn every_preset_has_a_word_an_id_and_a_body_and_is_told_from_the_others() {
    for (preset, word) in Preset::ALL {
        assert_eq!(Preset::named(word), Some(preset));
        let mapping = preset.mapping("app", "outbox");
        let fields: Vec<_> = mapping.columns().map(|(field, _)| field).collect();
        assert!(
            fields.contains(&"id") && fields.contains(&"payload"),
            "{word}"
        );
        let columns: Vec<_> = preset.columns().collect();
        for (other, _) in Preset::ALL
            .into_iter()
            .filter(|(other, _)| *other != preset)
        {
            let same = other.columns().count() == columns.len()
                && other.columns().all(|column| columns.contains(&column));
            assert!(!same, "{word}");
        }
    }
}
