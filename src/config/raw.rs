//! The configuration as it is written, layer by layer: which value a key has, and where it came
//! from. Knows no key and nothing about what a value means.

use std::fmt;

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_saphyr::{Location, Spanned};

use super::value::Setting;

/// Where a value came from; what stands further down goes before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `config/outjet.yaml`, which is part of the program.
    Default,
    /// The configuration file.
    File(Location),
    /// A variable that other programs know, too: `DATABASE_URL`.
    Conventional(String),
    /// A variable that only outjet knows: `OUTJET_STREAM__NAME`.
    Variable(String),
    /// A flag on the command line.
    Flag(String),
}

impl Origin {
    /// A value of a higher rank goes before one of a lower.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File(_) => 1,
            Self::Conventional(_) => 2,
            Self::Variable(_) => 3,
            Self::Flag(_) => 4,
        }
    }
}

/// A value as it was written.
pub(super) struct Given<T: Setting> {
    pub(super) written: T::Written,
    pub(super) origin: Origin,
}

/// A key's value, if it has one.
pub(super) type Leaf<T> = Option<Given<T>>;

impl<T: Setting> fmt::Debug for Given<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", T::shown(&self.written), self.origin)
    }
}

impl<'de, T: Setting> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T::Written>::deserialize(deserializer)?;
        Ok(Self {
            written: spanned.value,
            origin: Origin::File(spanned.referenced),
        })
    }
}

/// A key that can have a value.
#[derive(Debug)]
pub(super) struct Key {
    /// `section.key`.
    pub(super) path: String,
    /// One sentence.
    pub(super) about: String,
    /// The JSON Schema of its value.
    pub(super) schema: Value,
}

/// Why a text cannot be the value of a key.
#[derive(Debug)]
pub(super) enum SetError {
    NoSuchKey,
    Yaml(Box<serde_saphyr::Error>),
}

/// A value for a person: as YAML without secrets, and where it came from.
pub(super) type Shown<'a> = (String, &'a Origin);

/// Takes each key with its path and, if it has one, its value.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&str, Option<Shown<'_>>);

/// A section of keys, or one key.
pub(super) trait Node {
    /// Adds every key from here on.
    fn keys(path: &str, about: &str, keys: &mut Vec<Key>);
    /// Takes what `over` has.
    fn overlay(&mut self, over: Self);
    /// Gives the key at `path` the value that is written as `text`.
    fn set(&mut self, path: &str, text: &str, origin: Origin) -> Result<(), SetError>;
    /// Marks everything here as the default.
    fn make_default(&mut self);
    /// Calls `visit` for each key.
    fn each(&self, path: &str, visit: Visit<'_>);

    /// Every key, in the order of the documentation.
    fn all_keys() -> Vec<Key> {
        let mut keys = Vec::new();
        Self::keys("", "", &mut keys);
        keys
    }
}

impl<T: Setting> Node for Leaf<T> {
    fn keys(path: &str, about: &str, keys: &mut Vec<Key>) {
        keys.push(Key {
            path: path.to_owned(),
            about: about.trim().to_owned(),
            schema: T::schema(),
        });
    }

    fn overlay(&mut self, over: Self) {
        if over.is_some() {
            *self = over;
        }
    }

    fn set(&mut self, path: &str, text: &str, origin: Origin) -> Result<(), SetError> {
        if !path.is_empty() {
            return Err(SetError::NoSuchKey);
        }
        let written = T::from_text(text).map_err(SetError::Yaml)?;
        *self = Some(Given { written, origin });
        Ok(())
    }

    fn make_default(&mut self) {
        if let Some(given) = self {
            given.origin = Origin::Default;
        }
    }

    fn each(&self, path: &str, visit: Visit<'_>) {
        let shown = |given: &Given<T>| T::shown(&given.written);
        visit(
            path,
            self.as_ref().map(|given| (shown(given), &given.origin)),
        );
    }
}

/// Lets a key or a section stand without a value (`nats:` with everything below it commented out).
pub(super) fn nothing_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

pub(super) fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        _ => format!("{path}.{key}"),
    }
}
