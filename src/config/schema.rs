//! The JSON Schema of the configuration file, for editors.

use serde_json::{Value, json};

use super::keys::Raw;
use super::raw::Node;

/// The schema of the whole file (draft 2020-12).
pub fn json_schema() -> Value {
    let mut root = object();
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("outjet.yaml");
    for key in Raw::all_keys() {
        let mut sections: Vec<&str> = key.path.split('.').collect();
        let Some(name) = sections.pop() else {
            continue;
        };
        let mut node = &mut root;
        for section in sections {
            let properties = &mut node["properties"];
            if properties.get(section).is_none() {
                properties[section] = object();
            }
            node = &mut properties[section];
        }
        let mut schema = nullable(key.schema);
        schema["description"] = json!(key.about);
        node["properties"][name] = schema;
    }
    root
}

fn object() -> Value {
    json!({"type": ["object", "null"], "properties": {}, "additionalProperties": false})
}

/// A key without a value has its default.
fn nullable(mut schema: Value) -> Value {
    schema["type"] = json!([schema["type"], "null"]);
    if let Some(words) = schema["enum"].as_array_mut() {
        words.push(Value::Null);
    }
    schema
}
