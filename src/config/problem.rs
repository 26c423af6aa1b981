//! Mistakes in the configuration, said so that they can be found: the place, the line with a caret,
//! and what was probably meant. Decides nothing about what a mistake is.

use std::path::PathBuf;

use serde_saphyr::{Error, Location, MessageFormatter, UserMessageFormatter};

use super::raw::{Origin, Raw};
use super::value::nearest;
use crate::error::{Exit, Failure, Problem};

/// A configuration file that has been read.
#[derive(Debug)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

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

    /// `file:line:column`, the line, and a caret below the place.
    pub(super) fn place(&self, location: Location, marked: usize) -> String {
        const INDENT: &str = "         ";
        let path = self.path.display();
        let (number, column) = (location.line(), location.column());
        let at = format!("{path}:{number}:{column}");
        let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
        let Some(line) = self.text.lines().nth(index) else {
            return at;
        };
        let gutter = " ".repeat(number.to_string().len());
        let before = usize::try_from(column.saturating_sub(1)).unwrap_or(0);
        // A tab stays a tab, so that the caret stands below its place.
        let blank = |c: char| if c == '\t' { '\t' } else { ' ' };
        let blanks: String = line
            .chars()
            .chain(std::iter::repeat(' '))
            .take(before)
            .map(blank)
            .collect();
        let carets = "^".repeat(marked.max(1));
        let line = hide_secrets(line);
        format!("{at}\n{INDENT}{number} | {line}\n{INDENT}{gutter} | {blanks}{carets}")
    }
}

/// The line without what follows a key whose value is secret.
fn hide_secrets(line: &str) -> String {
    const SECRETS: [&str; 4] = ["url:", "password:", "token:", "nkey:"];
    let ends = SECRETS
        .iter()
        .filter_map(|key| line.find(key).map(|at| at + key.len()));
    match ends.min() {
        Some(end) if !line[end..].trim().is_empty() => format!("{} ***", &line[..end]),
        _ => line.to_owned(),
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

/// Where a value came from, for `cause`. `marked` characters of the file are pointed at.
pub(super) fn origin_place(
    origin: &Origin,
    config_file: Option<&ConfigFile>,
    marked: usize,
) -> String {
    match (origin, config_file) {
        (Origin::File(location), Some(config_file)) => config_file.place(*location, marked),
        (Origin::File(_), None) => "the configuration file".to_owned(),
        (Origin::Default, _) => "the default (config/outjet.yaml)".to_owned(),
        (Origin::Conventional(name) | Origin::Variable(name), _) => {
            format!("the environment variable {name}")
        }
        (Origin::Flag(flag), _) => format!("the flag {flag}"),
    }
}

/// Ends the program with the exit code for a wrong configuration.
pub(super) fn config_failure(
    problem: impl Into<String>,
    cause: impl Into<String>,
    fix: impl Into<String>,
) -> Failure {
    Failure::halt(Exit::Config, Problem::new(problem, cause, fix))
}
