//! What is demanded of a single value, whatever the others are. `names` has what Postgres and NATS
//! demand of a name.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::lists::{Route, Table};
use super::names::check_pattern;
use super::redact::{has_sound_port, redact_url};
use super::value::{Bytes, Refusal, Url, duration_text};
use crate::event::assemble;

/// nats-server refuses shorter ones (`JSStreamDuplicateWindow`, minimum 100 ms).
pub(super) const STREAM_TIMES: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::MAX;
/// Below, an event is hardly published when it is deleted; above, nobody means to delete.
pub(super) const KEEPS: RangeInclusive<Duration> =
    Duration::from_secs(3600)..=Duration::from_secs(3650 * 24 * 3600);

/// What has a smallest and a largest value.
pub(super) trait Limited: PartialOrd {
    const MAX: Self;

    fn text(&self) -> String;
}

impl Limited for Duration {
    const MAX: Self = Self::MAX;

    fn text(&self) -> String {
        duration_text(*self)
    }
}

impl Limited for Bytes {
    const MAX: Self = Self(i64::MAX.unsigned_abs());

    fn text(&self) -> String {
        self.to_string()
    }
}

impl Limited for u32 {
    const MAX: Self = Self::MAX;

    fn text(&self) -> String {
        self.to_string()
    }
}

pub(super) fn within<T: Limited>(range: RangeInclusive<T>) -> impl Fn(&T) -> Result<(), Refusal> {
    move |value| {
        let (least, most) = (range.start().text(), range.end().text());
        let fix = match *range.end() == T::MAX {
            true => format!("write {least} or more"),
            false => format!("write {least} to {most}"),
        };
        if value < range.start() {
            return Err(Refusal::new("is too little", fix));
        }
        match value > range.end() {
            true => Err(Refusal::new("is too much", fix)),
            false => Ok(()),
        }
    }
}

/// An age of messages: zero is none.
pub(super) fn lasting(age: &Duration) -> Result<(), Refusal> {
    match age.is_zero() {
        true => Ok(()),
        false => within(STREAM_TIMES)(age),
    }
}

pub(super) fn not_empty(text: &str) -> Result<(), Refusal> {
    match text.is_empty() {
        true => Err(Refusal::new(
            "is empty",
            "write something, or leave the key out",
        )),
        false => Ok(()),
    }
}

pub(super) fn check_servers(Url(url): &Url) -> Result<(), Refusal> {
    const FIX: &str = "write nats://host:4222 or tls://host:4222, several separated by commas";
    for server in url.expose().split(',') {
        let (scheme, host) = server.split_once("://").unwrap_or(("nats", server));
        if host.trim().is_empty() {
            return Err(Refusal::new(
                "has an empty place where a server should stand",
                FIX,
            ));
        }
        // Shown is the whole: a comma in a password makes servers of its parts.
        if !has_sound_port(host.trim()) {
            let what = format!("has a port that is no number: {}", redact_url(url.expose()));
            return Err(Refusal::new(
                what,
                "write the port as a number, and a comma in a password as %2C",
            ));
        }
        if !matches!(scheme.trim(), "nats" | "tls") {
            let what = format!("has an unknown scheme: {}", redact_url(url.expose()));
            return Err(Refusal::new(what, FIX));
        }
    }
    Ok(())
}

pub(super) fn check_tables(tables: &[Table]) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for Table { name, keep, .. } in tables {
        if !seen.insert(name) {
            let what = format!("names {name} twice");
            return Err(Refusal::new(what, "remove one of the two"));
        }
        let Some(keep) = keep else { continue };
        within(KEEPS)(keep).map_err(|refusal| Refusal {
            what: format!("has keep: {}, which {}", duration_text(*keep), refusal.what),
            ..refusal
        })?;
    }
    Ok(())
}

pub(super) fn check_subjects(subjects: &[String]) -> Result<(), Refusal> {
    if subjects.is_empty() {
        return Err(Refusal::new(
            "is empty",
            "write at least one subject: [events.>]",
        ));
    }
    subjects
        .iter()
        .try_for_each(|subject| named(subject, check_pattern(subject)))
}

pub(super) fn check_prefixes(prefixes: &[String]) -> Result<(), Refusal> {
    let reserved = |prefix: &&String| *prefix == assemble::HANDOVER;
    if prefixes.iter().any(|prefix| prefix.is_empty()) {
        return Err(Refusal::new("has an empty prefix", "remove it"));
    }
    match prefixes.iter().find(reserved) {
        Some(prefix) => Err(Refusal::new(
            format!("has `{prefix}`, which outjet itself uses for `outjet replay`"),
            "choose another prefix",
        )),
        None => Ok(()),
    }
}

pub(super) fn check_routes(routes: &[Route]) -> Result<(), Refusal> {
    routes.iter().try_for_each(|route| {
        named(&route.pattern, check_pattern(&route.pattern))?;
        named(&route.to, not_empty(&route.to))
    })
}

/// Says which entry of the list it is.
fn named(entry: &str, result: Result<(), Refusal>) -> Result<(), Refusal> {
    result.map_err(|refusal| Refusal {
        what: format!("has `{entry}`, which {}", refusal.what),
        ..refusal
    })
}
