//! Names as Postgres and NATS allow them: slots, tables, streams, subjects. Pure checks.

use std::fmt;
use std::str::FromStr;

use super::value::{Refusal, Scalar};

/// Postgres's limit for a name (`NAMEDATALEN` - 1).
const NAME_BYTES_MAX: usize = 63;
/// nats-server's limit for the name of a stream (`JSMaxNameLen`).
const STREAM_NAME_BYTES_MAX: usize = 255;
/// The stream's name begins with `OBJ_`.
const BUCKET_NAME_BYTES_MAX: usize = STREAM_NAME_BYTES_MAX - 4;

/// A table with its schema, unquoted: what the catalog says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub table: String,
}

impl TableName {
    /// The table that `outjet setup` makes.
    pub(super) fn ours(&self) -> bool {
        self.schema == "outbox" && self.table == "events"
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = |name: &str| match plain(name) {
            true => name.to_owned(),
            false => format!("\"{}\"", name.replace('"', "\"\"")),
        };
        write!(f, "{}.{}", quote(&self.schema), quote(&self.table))
    }
}

impl FromStr for TableName {
    type Err = String;

    /// By the rules of SQL. The error says what to write.
    fn from_str(text: &str) -> Result<Self, String> {
        <Self as Scalar>::parse(text).map_err(|refusal| refusal.fix)
    }
}

/// Whether Postgres reads the name without quotes as it stands.
fn plain(name: &str) -> bool {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let later = |c: char| first(c) || c.is_ascii_digit() || c == '$';
    name.starts_with(first) && name.chars().all(later)
}

impl Scalar for TableName {
    /// Takes `schema.table` by the rules of SQL: what is not quoted is folded to lower case, inside
    /// quotes everything stands as it is, and `""` is one quote.
    fn parse(text: &str) -> Result<Self, Refusal> {
        let (schema, rest) = identifier(text)?;
        let Some(rest) = rest.strip_prefix('.') else {
            return Err(match rest {
                "" => {
                    let fix = format!("write it with its schema: public.{text}");
                    Refusal::new("has no schema", fix)
                }
                _ => not_a_name(),
            });
        };
        let (table, rest) = identifier(rest)?;
        match rest {
            "" => Ok(Self { schema, table }),
            _ if rest.starts_with('.') => Err(Refusal::new(
                "has more than two parts",
                "write schema.table; the database is part of postgres.url",
            )),
            _ => Err(not_a_name()),
        }
    }
}

fn not_a_name() -> Refusal {
    Refusal::new(
        "is not the name of a table",
        "write schema.table; names with other characters than a-z, 0-9 and _ in quotes, \
         with YAML's own quotes around them: '\"My Schema\".events'",
    )
}

/// One identifier from the front of `text`, and what follows it.
fn identifier(text: &str) -> Result<(String, &str), Refusal> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted_identifier(quoted)?,
        None => {
            let part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
            let rest = text.trim_start_matches(part);
            let name = &text[..text.len() - rest.len()];
            if name.starts_with(|c: char| c.is_ascii_digit() || c == '$') {
                return Err(not_a_name());
            }
            (name.to_ascii_lowercase(), rest)
        }
    };
    if name.is_empty() || name.contains('\0') {
        return Err(not_a_name());
    }
    if name.len() > NAME_BYTES_MAX {
        let what = format!("has a name of {} bytes", name.len());
        let fix = format!("Postgres allows {NAME_BYTES_MAX}; write the name as the catalog has it");
        return Err(Refusal::new(what, fix));
    }
    Ok((name, rest))
}

/// The rest of an identifier whose opening quote has been read.
fn quoted_identifier(text: &str) -> Result<(String, &str), Refusal> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let Some((part, after)) = rest.split_once('"') else {
            return Err(Refusal::new(
                "has a quote without an end",
                "add the closing quote",
            ));
        };
        name.push_str(part);
        let Some(after) = after.strip_prefix('"') else {
            return Ok((name, after));
        };
        name.push('"');
        rest = after;
    }
}

/// Whether Postgres takes `name` for a slot.
pub(super) fn check_slot(name: &str) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(allowed) {
        return Ok(());
    }
    let fix = format!("use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and _, as Postgres demands");
    Err(Refusal::new("is not a name for a replication slot", fix))
}

/// Whether Postgres takes `name` for a publication.
pub(super) fn check_publication(name: &str) -> Result<(), Refusal> {
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let fix = format!("use 1 to {NAME_BYTES_MAX} bytes, as Postgres demands");
    Err(Refusal::new("is not a name for a publication", fix))
}

/// Whether nats-server takes `name` for a stream; slashes would become directories.
pub(super) fn check_stream(name: &str) -> Result<(), Refusal> {
    let refused = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    if !name.is_empty() && name.len() <= STREAM_NAME_BYTES_MAX && !name.contains(refused) {
        return Ok(());
    }
    let fix = format!(
        "use 1 to {STREAM_NAME_BYTES_MAX} bytes without blanks, dots, *, >, / and \\: OUTBOX"
    );
    Err(Refusal::new("is not a name for a stream", fix))
}

/// A bucket of the object store: its stream is `OBJ_<bucket>`, its subjects `$O.<bucket>.…`.
pub(super) fn check_bucket(name: &str) -> Result<(), Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.is_empty() && name.len() <= BUCKET_NAME_BYTES_MAX && name.chars().all(plain) {
        return Ok(());
    }
    let fix = format!(
        "use 1 to {BUCKET_NAME_BYTES_MAX} characters of A-Z, a-z, 0-9, _ and -: OUTJET_BODIES"
    );
    Err(Refusal::new("is not a name for a bucket", fix))
}

/// Whether `pattern` is a subject, possibly with `*` for a token and a final `>`.
pub(super) fn check_pattern(pattern: &str) -> Result<(), Refusal> {
    let refused = |what: &str, fix: &str| Err(Refusal::new(what, fix));
    if pattern.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return refused(
            "holds a blank",
            "subjects are tokens between dots: events.order",
        );
    }
    if pattern.starts_with('$') {
        return refused(
            "begins with $",
            "that is the server's own; choose another subject",
        );
    }
    let last = pattern.split('.').count() - 1;
    for (at, token) in pattern.split('.').enumerate() {
        match token {
            "" => return refused("has an empty token", "write something between any two dots"),
            ">" if at != last => return refused("has > before its end", "> may only be last"),
            "*" | ">" => {}
            _ if token.contains(['*', '>']) => {
                return refused(
                    "has a token with a wildcard in it",
                    "* and > stand alone: a.*.b",
                );
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether `prefix` can stand before a subject.
pub(super) fn check_prefix(prefix: &str) -> Result<(), Refusal> {
    check_pattern(prefix)?;
    match prefix.contains(['*', '>']) {
        true => Err(Refusal::new(
            "has a wildcard",
            "write a subject without * and >",
        )),
        false => Ok(()),
    }
}

/// Whether a column can become the header of this name: one that neither the server nor outjet
/// gives a meaning.
pub(super) fn check_header(name: &str) -> Result<(), Refusal> {
    const OURS: [&str; 14] = [
        "specversion",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "recordedtime",
        "datacontenttype",
        "correlationid",
        "tenantid",
        "schemaversion",
        "traceid",
        "partitionkey",
        "data",
    ];
    let refused = |what: &str| {
        let fix = "write a name such as X-Region, or ce-region for an attribute of CloudEvents";
        Err(Refusal::new(what, fix))
    };
    let lower = name.to_ascii_lowercase();
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
        return refused("is not a name that NATS can carry");
    }
    if lower.starts_with("nats-") || lower.starts_with("outjet-") || lower == "content-type" {
        return refused("is reserved");
    }
    let Some(attribute) = lower.strip_prefix("ce-") else {
        return Ok(());
    };
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    // CloudEvents 1.0, "Naming Conventions".
    if !name.starts_with("ce-") || attribute.is_empty() || !name[3..].bytes().all(allowed) {
        return refused("is not an attribute of CloudEvents: ce- and a-z, 0-9");
    }
    match OURS.contains(&attribute) {
        true => refused("is made of another column: map that in `columns`"),
        false => Ok(()),
    }
}
