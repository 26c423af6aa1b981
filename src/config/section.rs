//! From what is written to what is meant: [`section!`] declares both at once, and [`Part`] makes
//! the one of the other. A value that is refused is named with its place. Knows no key.

use super::problem::{ConfigFile, config_failure, origin_place};
use super::raw::{Given, Leaf, Node, Origin, join};
use super::value::{Refusal, Setting};
use crate::error::Failure;

/// A part of the checked configuration: a section, a value, or a value that may be absent.
pub(super) trait Part: Sized {
    /// The same part as it is written.
    type Raw: Node;

    /// Reads each value and holds it against its own limits.
    fn check(raw: &Self::Raw, at: &At<'_>) -> Result<Self, Failure>;
}

/// With a default, there is always a value.
impl<T: Setting> Part for T {
    type Raw = Leaf<T>;

    fn check(raw: &Leaf<T>, at: &At<'_>) -> Result<Self, Failure> {
        let value = at.read(raw)?.value;
        Ok(value.expect("config/outjet.yaml gives every such key a value"))
    }
}

impl<T: Setting> Part for Option<T> {
    type Raw = Leaf<T>;

    fn check(raw: &Leaf<T>, at: &At<'_>) -> Result<Self, Failure> {
        Ok(at.read(raw)?.value)
    }
}

/// A `<key>_file`. What is in the file stands in the key itself by now, and nothing is left here.
#[derive(Debug)]
pub struct SecretFile;

impl Part for SecretFile {
    type Raw = Leaf<String>;

    fn check(_: &Leaf<String>, _: &At<'_>) -> Result<Self, Failure> {
        Ok(Self)
    }
}

/// Declares a section: the public struct, what YAML is read into, and how the one is made of the
/// other. Each of its keys has
///
/// - `key: T`, or `key: Option<T>` if it has no default; `T` is a [`Setting`] or another section;
/// - `where test`, if not every `T` will do: a `fn(&T) -> Result<(), Refusal>`;
/// - `=> F = convert`, if the public struct has an `F` for it instead: a function to that.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $key:ident: $part:ty $(where $test:expr)? $(=> $field:ty = $convert:expr)?,
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $key: section!(@field $part $(, $field)?),)+
        }

        const _: () = {
            use super::{raw::*, section::*};

            #[derive(Debug, Default, serde::Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub(super) struct Raw {
                $(
                    #[serde(deserialize_with = "nothing_is_default")]
                    pub(super) $key: <$part as Part>::Raw,
                )+
            }

            impl Part for $name {
                type Raw = Raw;

                fn check(raw: &Raw, at: &At<'_>) -> Result<Self, crate::error::Failure> {
                    Ok(Self { $($key: {
                        let at = at.key(stringify!($key));
                        $(at.read(&raw.$key)?.and(|value| $test(value))?;)?
                        let part = <$part as Part>::check(&raw.$key, &at)?;
                        $(let part = $convert(part);)?
                        part
                    },)+ })
                }
            }

            impl Node for Raw {
                fn keys(path: &str, _: &str, keys: &mut Vec<Key>) {
                    $(<$part as Part>::Raw::keys(
                        &join(path, stringify!($key)), concat!($($doc),+), keys,
                    );)+
                }

                fn overlay(&mut self, over: Self) {
                    $(self.$key.overlay(over.$key);)+
                }

                fn set(&mut self, path: &str, text: &str, from: Origin) -> Result<(), SetError> {
                    let (key, rest) = path.split_once('.').unwrap_or((path, ""));
                    match key {
                        $(stringify!($key) => self.$key.set(rest, text, from),)+
                        _ => Err(SetError::NoSuchKey),
                    }
                }

                fn make_default(&mut self) {
                    $(self.$key.make_default();)+
                }

                fn each(&self, path: &str, visit: Visit<'_>) {
                    $(self.$key.each(&join(path, stringify!($key)), visit);)+
                }
            }
        };
    };
    (@field $part:ty) => { $part };
    (@field $part:ty, $field:ty) => { $field };
}

pub(super) use section;

/// Which key it is, and the file that its value may stand in.
pub(super) struct At<'a> {
    key: String,
    config_file: Option<&'a ConfigFile>,
}

impl<'a> At<'a> {
    /// Where no key is named yet.
    pub(super) fn top(config_file: Option<&'a ConfigFile>) -> Self {
        let key = String::new();
        Self { key, config_file }
    }

    /// A key of this section; `path` may lead through others.
    pub(super) fn key(&self, path: &str) -> Self {
        Self {
            key: join(&self.key, path),
            ..*self
        }
    }

    /// Reads the value, if there is one.
    pub(super) fn read<T: Setting>(&self, raw: &Leaf<T>) -> Result<Read<T>, Failure> {
        let mut read = Read {
            key: self.key.clone(),
            place: String::new(),
            shown: String::new(),
            value: None,
        };
        let Some(given) = raw else {
            return Ok(read);
        };
        read.shown = T::quoted(&given.written);
        // A text is marked as a whole, of a list or a secret only where it begins.
        let text = read.shown.strip_prefix('`');
        let text = text.and_then(|text| text.strip_suffix('`'));
        let marked = text.map_or(1, |text| text.chars().count());
        read.place = origin_place(&given.origin, self.config_file, marked);
        match T::read(&given.written) {
            Ok(value) => read.value = Some(value),
            Err(refusal) => {
                read.place = self.closer(given, &refusal).unwrap_or(read.place);
                return Err(read.refuse(&refusal.what, refusal.fix));
            }
        }
        Ok(read)
    }

    /// The place in the file that the refusal knows.
    fn closer<T: Setting>(&self, given: &Given<T>, refusal: &Refusal) -> Option<String> {
        match given.origin {
            Origin::File(_) => Some(self.config_file?.place(refusal.place?, 1)),
            _ => None,
        }
    }
}

/// A value that has been read, with what an error about it needs.
pub(super) struct Read<T> {
    key: String,
    place: String,
    shown: String,
    value: Option<T>,
}

impl<T> Read<T> {
    /// Demands what `test` demands of the value, if there is one.
    pub(super) fn and(self, test: impl FnOnce(&T) -> Result<(), Refusal>) -> Result<Self, Failure> {
        match self.value.as_ref().map(test) {
            Some(Err(refusal)) => {
                Err(self.refuse(&format!("{} {}", self.shown, refusal.what), refusal.fix))
            }
            Some(Ok(())) | None => Ok(self),
        }
    }

    /// Names the value's place.
    pub(super) fn refuse(&self, what: &str, fix: impl Into<String>) -> Failure {
        config_failure(format!("{}: {what}", self.key), self.place.clone(), fix)
    }
}
