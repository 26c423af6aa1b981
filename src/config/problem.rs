//! Mistakes in the configuration, said so that they can be found: the place, and the line with a
//! caret. Decides nothing about what a mistake is.

use std::path::PathBuf;

use serde_saphyr::Location;

use super::raw::Origin;
use crate::error::{Exit, Failure, Problem};

/// A configuration file that has been read.
#[derive(Debug)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

impl ConfigFile {
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
