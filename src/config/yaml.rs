//! What is wrong with YAML, or with a key in it, and what was probably meant.

use serde_saphyr::{Error, MessageFormatter, UserMessageFormatter};

use super::keys::Raw;
use super::problem::{ConfigFile, config_failure};
use super::raw::Node;
use super::value::nearest;
use crate::error::Failure;

impl ConfigFile {
    /// What is wrong with the file as YAML, or with a key of it.
    pub(super) fn refuse_yaml(&self, error: &Error) -> Failure {
        let error = error.without_snippet();
        let (what, fix, marked) = describe(error);
        let cause = match error.location() {
            Some(location) => self.place(location, marked),
            None => self.path.display().to_string(),
        };
        config_failure(format!("{}: {what}", self.path.display()), cause, fix)
    }
}

/// What is wrong, what to do, and how many characters of the line to mark.
fn describe(error: &Error) -> (String, String, usize) {
    const SEE: &str = "`outjet config default` shows every key";
    match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => {
            let fix = match suggest(field, expected) {
                Some(key) => format!("did you mean `{key}`? {SEE}"),
                None => format!("remove it; {SEE}"),
            };
            (format!("unknown key `{field}`"), fix, field.chars().count())
        }
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or("?");
            let fix = "keep one of them".to_owned();
            (
                format!("the key `{key}` stands twice"),
                fix,
                key.chars().count(),
            )
        }
        Error::SerdeMissingField { field, .. } => {
            let fix = format!("add `{field}: ...`");
            (format!("the key `{field}` is missing"), fix, 1)
        }
        Error::SerdeInvalidType {
            unexpected,
            expected,
            ..
        } => {
            let fix = format!("write {expected} here; {SEE}");
            (
                format!("{unexpected} stands in the place of {expected}"),
                fix,
                1,
            )
        }
        Error::Unexpected { expected, .. } => {
            let (needed, fix) = match *expected {
                "mapping start" => ("a section", "write its keys below it, indented"),
                "sequence start" => ("a list", "write it in brackets: [a, b]"),
                "string scalar" => ("a single value", "write it without brackets"),
                other => (other, "correct the YAML there"),
            };
            (
                format!("{needed} must stand here"),
                format!("{fix}; {SEE}"),
                1,
            )
        }
        Error::AliasError { error, .. } => describe(error),
        _ => {
            let what = UserMessageFormatter.format_message(error).into_owned();
            (what, format!("correct the YAML there; {SEE}"), 1)
        }
    }
}

/// The key that was meant: one of those that are possible here, else the same name elsewhere.
fn suggest(field: &str, here: &[&str]) -> Option<String> {
    if let Some(key) = nearest(field, here) {
        return Some(key.to_owned());
    }
    let elsewhere = |path: &str| path.rsplit('.').next() == Some(field);
    let keys = Raw::all_keys().into_iter().map(|key| key.path);
    keys.into_iter().find(|path| elsewhere(path))
}

/// What is wrong with YAML in a variable or a flag.
pub(super) fn yaml_message(error: &Error) -> String {
    describe(error.without_snippet()).0
}
