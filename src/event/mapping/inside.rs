//! A value that lies inside a column: at a path of keys in a JSON object, or under a key of Java
//! properties.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Where in which column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The column.
    pub column: String,
    /// The keys, outermost first. Properties have one.
    pub keys: Vec<String>,
    /// How the column is read.
    pub syntax: Syntax,
    /// That there is no value is no mistake.
    pub optional: bool,
}

/// How the text of a column is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// An object of JSON.
    Json,
    /// `java.util.Properties`, as `store` writes them.
    Properties,
}

impl Inside {
    /// Takes `column.key.key`; of properties all behind the first dot is one key.
    pub fn new(path: &str, syntax: Syntax, optional: bool) -> Self {
        let (column, rest) = path.split_once('.').unwrap_or((path, ""));
        let keys = match syntax {
            Syntax::Json => rest.split('.').map(str::to_owned).collect(),
            Syntax::Properties => vec![rest.to_owned()],
        };
        Self {
            column: column.to_owned(),
            keys,
            syntax,
            optional,
        }
    }

    /// Looks the value up. `Ok(None)`: it is not there, or null.
    pub(super) fn find(&self, text: &[u8]) -> Result<Option<Inner>, &'static str> {
        let text = std::str::from_utf8(text).map_err(|_| "the column is not valid UTF-8")?;
        match self.syntax {
            Syntax::Json => find_json(text, &self.keys),
            Syntax::Properties => Ok(self.keys.first().and_then(|key| find_property(text, key))),
        }
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.column, self.keys.join("."))
    }
}

/// What is inside a column, as it is written there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inner {
    /// JSON, as it stands.
    Json(Box<str>),
    /// Text.
    Text(String),
}

impl Inner {
    /// Without the quotes and escapes of JSON, if it is a text.
    pub(super) fn plain(self) -> Result<Self, &'static str> {
        match self {
            Self::Json(json) if json.starts_with('"') => {
                let text = serde_json::from_str(&json);
                text.map(Self::Text).map_err(|_| MALFORMED)
            }
            other => Ok(other),
        }
    }
}

const MALFORMED: &str = "the column is not well-formed JSON";

fn find_json(text: &str, keys: &[String]) -> Result<Option<Inner>, &'static str> {
    let mut at: &RawValue = serde_json::from_str(text).map_err(|_| MALFORMED)?;
    for key in keys {
        match at.get() {
            "null" => return Ok(None),
            object if object.starts_with('{') => {}
            _ => return Err("what should hold it is not a JSON object"),
        }
        let mut json = serde_json::Deserializer::from_str(at.get());
        match (Member { key }).deserialize(&mut json) {
            Ok(Some(inner)) => at = inner,
            Ok(None) => return Ok(None),
            Err(_) => return Err(MALFORMED),
        }
    }
    match at.get() {
        "null" => Ok(None),
        json => Ok(Some(Inner::Json(json.into()))),
    }
}

/// One member of an object, as it stands; the last of several with the same key, as Postgres
/// takes it. The others are passed over without being kept.
struct Member<'k> {
    key: &'k str,
}

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            if key == self.key {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// A key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// The value of a key in the format of `java.util.Properties.load`; the last of several.
fn find_property(text: &str, wanted: &str) -> Option<Inner> {
    let mut found = None;
    let mut lines = text.lines();
    while let Some(first) = lines.next() {
        let mut line = first.trim_start().to_owned();
        if line.starts_with(['#', '!']) {
            continue;
        }
        // An odd number of backslashes at its end joins the next line to it.
        while line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1 {
            line.pop();
            line.push_str(lines.next().unwrap_or_default().trim_start());
        }
        let (key, value) = split_property(&line);
        if unescape(key) == wanted {
            found = Some(Inner::Text(unescape(value)));
        }
    }
    found
}

/// The key ends at the first `=`, `:` or blank without a backslash before it.
fn split_property(line: &str) -> (&str, &str) {
    let mut escaped = false;
    let blank = |c: char| matches!(c, ' ' | '\t' | '\u{c}');
    let ends = |c: char| {
        let ends = !escaped && (blank(c) || matches!(c, '=' | ':'));
        escaped = !escaped && c == '\\';
        ends
    };
    let Some(end) = line.find(ends) else {
        return (line, "");
    };
    let rest = line[end..].trim_start_matches(blank);
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (&line[..end], rest.trim_start_matches(blank))
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    // What \u names are UTF-16 units, two of them beyond the basic plane.
    let mut units = Vec::new();
    let mut characters = text.chars();
    loop {
        let next = characters.next();
        let escaped = if next == Some('\\') {
            characters.next()
        } else {
            None
        };
        if escaped == Some('u') {
            let digits: String = characters.by_ref().take(4).collect();
            units.push(u16::from_str_radix(&digits, 16).unwrap_or(0xfffd));
            continue;
        }
        plain.push_str(&String::from_utf16_lossy(&units));
        units.clear();
        match (next, escaped) {
            (None, _) => return plain,
            (_, Some('t')) => plain.push('\t'),
            (_, Some('n')) => plain.push('\n'),
            (_, Some('r')) => plain.push('\r'),
            (_, Some('f')) => plain.push('\u{c}'),
            (_, Some(other)) => plain.push(other),
            (Some('\\'), None) => {}
            (Some(other), None) => plain.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(path: &str, text: &str) -> Result<Option<String>, &'static str> {
        let found = Inside::new(path, Syntax::Json, true).find(text.as_bytes())?;
        let plain = found.map(Inner::plain).transpose()?;
        Ok(plain.map(|found| match found {
            Inner::Json(json) => json.into(),
            Inner::Text(text) => text,
        }))
    }

    #[test]
    fn value_at_a_path_is_found_as_it_is_written() {
        let text = r#" {"a": {"b": "x\ny", "n": 1.50, "o": {"k": [1,  2]}, "t": true}, "a.b": 7} "#;
        let found = |path| json(path, text).unwrap();
        assert_eq!(found("c.a.b").as_deref(), Some("x\ny"));
        assert_eq!(found("c.a.n").as_deref(), Some("1.50"));
        assert_eq!(found("c.a.o").as_deref(), Some(r#"{"k": [1,  2]}"#));
        assert_eq!(found("c.a.t").as_deref(), Some("true"));
    }

    #[test]
    fn last_of_equal_keys_counts_however_it_is_spelt() {
        assert_eq!(
            json("c.k", r#"{"k": 1, "\u006b": "2"}"#),
            Ok(Some("2".to_owned()))
        );
    }

    #[test]
    fn absent_and_null_are_no_value() {
        for text in [
            "{}",
            "null",
            r#"{"a": null}"#,
            r#"{"a": {}}"#,
            r#"{"b": {"a": 1}}"#,
        ] {
            assert_eq!(json("c.a.b", text), Ok(None), "{text}");
        }
        assert_eq!(json("c.a", r#"{"a": null}"#), Ok(None));
    }

    #[test]
    fn what_is_no_object_on_the_way_is_told() {
        for text in ["7", "[]", r#""a""#, r#"{"a": 1}"#, r#"{"a": ["b"]}"#] {
            assert!(
                json("c.a.b", text)
                    .unwrap_err()
                    .contains("not a JSON object"),
                "{text}"
            );
        }
        for text in ["", "{", r#"{"a": }"#, "{} x"] {
            assert_eq!(json("c.a.b", text), Err(MALFORMED), "{text}");
        }
        let invalid = Inside::new("c.a", Syntax::Json, true).find(b"{\"a\": \"\xff\"}");
        assert_eq!(invalid, Err("the column is not valid UTF-8"));
    }

    fn property(key: &str, text: &str) -> Option<String> {
        match find_property(text, key) {
            Some(Inner::Text(text)) => Some(text),
            Some(Inner::Json(json)) => panic!("{json}"),
            None => None,
        }
    }

    #[test]
    fn properties_are_read_as_java_writes_them() {
        let text = "#Sat Nov 21 05:26:15 UTC 2026\r\n\
                    traceparent=00-4bf9-00f0-01\r\n\
                    tracestate=a\\=1,b\\:2 \\u00fc\\uD83D\\uDE00\n\
                    ! no=property\n\
                    long  :  one \\\n   two\\\\\n\
                    a\\ key = v\n\
                    alone\n\
                    twice=1\ntwice=2";
        let found = |key| property(key, text);
        assert_eq!(found("traceparent").as_deref(), Some("00-4bf9-00f0-01"));
        assert_eq!(found("tracestate").as_deref(), Some("a=1,b:2 ü😀"));
        assert_eq!(found("long").as_deref(), Some("one two\\"));
        assert_eq!(found("a key").as_deref(), Some("v"));
        assert_eq!(found("alone").as_deref(), Some(""));
        assert_eq!(found("twice").as_deref(), Some("2"));
        for absent in ["no", "! no", "one", "baggage"] {
            assert_eq!(found(absent), None, "{absent}");
        }
    }
}
