//! The configuration: reads YAML, environment and flags, and checks them into plain values. Knows
//! no subsystem: what a template or a connection string means is theirs to say. Every input comes
//! in as an argument.
//!
//! A new key takes a line in `keys.rs` (meaning, type, limits) and one in `config/outjet.yaml` (the
//! default, and a comment for users). What it must agree on with other keys goes into `check.rs`,
//! and who is told of it into `build.rs`. Tests fail while either file lacks a key of the other.

mod build;
mod check;
mod keys;
mod layers;
mod limits;
mod lists;
mod names;
mod problem;
mod raw;
mod redact;
mod schema;
mod section;
mod show;
#[cfg(test)]
mod tests;
mod value;
mod yaml;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};

pub use keys::{
    ClaimCheck, Http, Log, Messages, Nats, Postgres, Publish, Retention, Sections, Stream, Tls,
};
pub use layers::Override;
pub use lists::{Published, Route, Table};
pub use names::TableName;
pub use raw::Origin;
pub use redact::redact_url;
pub use schema::json_schema;
pub use section::SecretFile;
pub use value::{
    Column, Columns, Field, Format, Ingress, Listen, LogFormat, LogLevel, Manage, OnDelayed,
    OnOversize, OnReject, Preset, Secret, SslMode, Storage, Transactions, duration, duration_text,
};

use crate::error::Failure;
use keys::Raw;
use problem::{ConfigFile, config_failure};
use raw::Node;

/// Where a configuration file is looked for when none is named.
pub const SEARCHED: [&str; 2] = ["./outjet.yaml", "/etc/outjet/outjet.yaml"];

/// `config/outjet.yaml`: every key with its default and its meaning.
pub const DEFAULTS: &str = layers::DEFAULTS;

/// Where a configuration comes from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The file that was asked for; it must exist.
    pub file: Option<&'a Path>,
    /// Without one: the first of these that exists.
    pub searched: &'a [&'a str],
    /// The environment.
    pub environment: &'a BTreeMap<String, String>,
    /// What the command line says; later ones go before earlier ones.
    pub overrides: &'a [Override],
}

/// A checked configuration: its [`Sections`], and where they come from.
#[derive(Debug)]
pub struct Config {
    sections: Sections,
    /// The file that was read.
    pub file: Option<PathBuf>,
    raw: Raw,
}

impl Deref for Config {
    type Target = Sections;

    fn deref(&self) -> &Sections {
        &self.sections
    }
}

impl Nats {
    /// The servers, one by one.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.url.expose().split(',').map(str::trim)
    }
}

impl Config {
    /// Reads every source, and checks what comes of them.
    pub fn load(sources: &Sources<'_>) -> Result<Self, Failure> {
        let config_file = open(sources)?;
        let mut raw = layers::defaults();
        if let Some(config_file) = &config_file {
            raw.overlay(layers::file(config_file)?);
        }
        layers::environment(&mut raw, sources.environment)?;
        layers::flags(&mut raw, sources.overrides)?;
        layers::secret_files(&mut raw, config_file.as_ref())?;
        check::config(raw, config_file.as_ref())
    }
}

#[cfg(any(test, fuzzing))]
impl Config {
    /// Reads a file's text, and nothing that it names.
    pub fn of_text(text: &str) -> Result<Self, Failure> {
        let config_file = ConfigFile {
            path: "outjet.yaml".into(),
            text: text.to_owned(),
        };
        let mut raw = layers::defaults();
        raw.overlay(layers::file(&config_file)?);
        check::config(raw, Some(&config_file))
    }
}

/// The configuration file, if there is one.
fn open(sources: &Sources<'_>) -> Result<Option<ConfigFile>, Failure> {
    if let Some(path) = sources.file {
        return read(path).map(Some);
    }
    let found = sources
        .searched
        .iter()
        .map(Path::new)
        .find(|path| path.exists());
    found.map(read).transpose()
}

fn read(path: &Path) -> Result<ConfigFile, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        config_failure(
            format!("cannot read the configuration file {}", path.display()),
            error.to_string(),
            "name a readable file with -c, or none: every key has a default",
        )
    })?;
    let path = path.to_owned();
    Ok(ConfigFile { path, text })
}
