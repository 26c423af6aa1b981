//! What Postgres's texts mean, by the oids of their types.

use bytes::Bytes;

use super::{BYTEA, JSON, JSONB, Reason, utf8};
use crate::event::format;
use crate::event::mapping::{Field, Value};

/// `pg_type.oid` (`pg_type.dat`).
const BOOL: u32 = 16;
const INTEGERS: [u32; 3] = [20, 21, 23];
const TEXT: u32 = 25;
const XML: u32 = 142;
const TEXT_ARRAY: u32 = 1009;
const VARCHAR_ARRAY: u32 = 1015;
const VARCHAR: u32 = 1043;

/// How a value stands in JSON.
pub(super) fn in_json(text: &str, type_oid: u32) -> format::Json<'_> {
    match (type_oid, text) {
        (BOOL, "t") => format::Json::Raw("true"),
        (BOOL, _) => format::Json::Raw("false"),
        (JSON | JSONB, _) => format::Json::Raw(text),
        (oid, _) if INTEGERS.contains(&oid) => format::Json::Raw(text),
        _ => format::Json::Text(text),
    }
}

/// Whether a media type is one of JSON: `application/json`, `application/problem+json; …`.
pub(super) fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let (_, kind) = media_type.split_once('/').unwrap_or_default();
    let kind = kind.to_ascii_lowercase();
    kind == "json" || kind.ends_with("+json")
}

/// What a flag says, a boolean or whatever else there is; what is not clearly a no is a yes, as
/// privacy wants it.
pub(super) fn flag(text: &str) -> bool {
    let no = ["", "f", "false", "n", "no", "off", "0"];
    !no.iter().any(|word| text.trim().eq_ignore_ascii_case(word))
}

/// A list of texts: an array of Postgres or of JSON, or words separated by commas.
pub(super) fn texts(value: Value<'_>) -> Result<Vec<String>, Reason> {
    let key = Field::PiiFields.key();
    let text = utf8(value, key)?;
    match value.type_oid {
        JSON | JSONB => {
            let list: Result<Option<Vec<String>>, _> = serde_json::from_str(text);
            list.map(Option::unwrap_or_default)
                .map_err(|_| Reason::List(key))
        }
        TEXT_ARRAY | VARCHAR_ARRAY => array(text).ok_or(Reason::List(key)),
        _ => {
            let words = text.split(',').map(str::trim);
            Ok(words
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect())
        }
    }
}

/// Reads `{a,"b c",NULL}`, an array of one dimension (Postgres documentation, "Array Input and
/// Output Syntax"), without its NULLs.
fn array(text: &str) -> Option<Vec<String>> {
    let mut rest = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let (mut element, mut quoted, mut escaped) = (String::new(), false, false);
        let mut end = rest.len();
        for (at, character) in rest.char_indices() {
            match character {
                _ if escaped => {
                    element.push(character);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => quoted = !quoted,
                ',' if !quoted => {
                    end = at;
                    break;
                }
                '{' | '}' if !quoted => return None,
                _ => element.push(character),
            }
        }
        if quoted || escaped {
            return None;
        }
        if !rest[..end].eq_ignore_ascii_case("null") {
            elements.push(element);
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Some(elements)
}

/// The media type that a column's type suggests.
pub(super) fn media_type(type_oid: u32) -> Option<&'static str> {
    match type_oid {
        JSON | JSONB => Some("application/json"),
        BYTEA => Some("application/octet-stream"),
        XML => Some("application/xml"),
        TEXT | VARCHAR => Some("text/plain"),
        _ => None,
    }
}

/// Reads the hex form of bytea: `\x` and two digits a byte.
pub(super) fn unhex(text: &[u8]) -> Option<Bytes> {
    let digits = text.strip_prefix(b"\\x")?;
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    rest.is_empty()
        .then(|| bytes.collect::<Option<Vec<u8>>>())
        .flatten()
        .map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_read_as_postgres_prints_them() {
        let of = |text| array(text).map(|list| list.join("|"));
        assert_eq!(of("{}").as_deref(), Some(""));
        assert_eq!(of("{email,phone}").as_deref(), Some("email|phone"));
        let odd = r#"{"a, b","c\\\"}",NULL,"NULL",""}"#;
        assert_eq!(of(odd).as_deref(), Some(r#"a, b|c\"}|NULL|"#));
        for text in ["", "a", "{a", "{{a},{b}}", r#"{"a}"#] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn json_is_known_by_its_media_type() {
        for json in [
            "application/json",
            "Text/JSON",
            "application/a.b+json ; charset=utf-8",
        ] {
            assert!(is_json(json), "{json}");
        }
        for other in [
            "",
            "json",
            "application/jsonp",
            "application/json-seq",
            "text/plain",
        ] {
            assert!(!is_json(other), "{other}");
        }
    }

    #[test]
    fn what_is_not_clearly_a_no_is_personal() {
        assert!(
            ["f", "FALSE", "0", " no ", ""]
                .iter()
                .all(|text| !flag(text))
        );
        assert!(["t", "true", "1", "unknown"].iter().all(|text| flag(text)));
    }
}
