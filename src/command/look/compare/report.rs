//! What `outjet compare` says.

use serde_json::{Value, json};
use tokio_postgres::Row;

use crate::command::{Out, unwritten};
use crate::error::{Exit, Failure, Problem};
use crate::pg::catalog::StatementError;

/// Most events of a kind that are named.
pub(super) const NAMED_MAX: i64 = 5;

/// What can be said of an event: the word, and whether the streams then differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Both,
    OnlyOurs,
    OnlyTheirs,
    RepeatedOurs,
    RepeatedTheirs,
    Subject,
    Body,
    Swapped,
    WithoutId,
    NotYet,
    Earlier,
}

impl Kind {
    /// In the order in which they are told, with the words of `sql/compare.sql`.
    const ALL: [(Self, &'static str); 11] = [
        (Self::Both, "both"),
        (Self::OnlyOurs, "only_ours"),
        (Self::OnlyTheirs, "only_theirs"),
        (Self::RepeatedOurs, "repeated_ours"),
        (Self::RepeatedTheirs, "repeated_theirs"),
        (Self::Subject, "subject"),
        (Self::Body, "body"),
        (Self::Swapped, "swapped"),
        (Self::WithoutId, "without_id"),
        (Self::NotYet, "not_yet"),
        (Self::Earlier, "earlier"),
    ];

    fn is_difference(self, bodies: bool) -> bool {
        match self {
            Self::Both | Self::NotYet | Self::Earlier => false,
            Self::Body => bodies,
            Self::OnlyOurs
            | Self::OnlyTheirs
            | Self::RepeatedOurs
            | Self::RepeatedTheirs
            | Self::Subject
            | Self::Swapped
            | Self::WithoutId => true,
        }
    }
}

/// What was found.
pub(super) struct Report {
    ours: Side,
    theirs: Side,
    /// Bodies must be the same.
    bodies: bool,
    found: Vec<Found>,
}

struct Side {
    stream: String,
    messages: u64,
}

struct Found {
    kind: Kind,
    word: &'static str,
    events: i64,
    first: Vec<Value>,
}

impl Report {
    /// Takes the streams with how many messages of them were compared, and the answer of
    /// `sql/compare.sql`.
    pub(super) fn new(
        ours: (&str, u64),
        theirs: (&str, u64),
        bodies: bool,
        rows: &[Row],
    ) -> Result<Self, Failure> {
        let side = |(stream, messages): (&str, u64)| Side {
            stream: stream.to_owned(),
            messages,
        };
        let mut found: Vec<_> = Kind::ALL
            .map(|(kind, word)| Found {
                kind,
                word,
                events: 0,
                first: Vec::new(),
            })
            .into();
        for row in rows {
            let (word, events, first) = read(row)
                .map_err(|error| StatementError::new("read what was compared", error).failure())?;
            if let Some(found) = found.iter_mut().find(|found| found.word == word) {
                found.events = events;
                found.first = serde_json::from_str(first).unwrap_or_default();
            }
        }
        Ok(Self {
            ours: side(ours),
            theirs: side(theirs),
            bodies,
            found,
        })
    }

    /// Refuses streams of which nothing can be said because no event is in both.
    pub(super) fn refuse_strangers(self) -> Result<Self, Failure> {
        if self.events(Kind::Both) > 0 {
            return Ok(self);
        }
        let Self { ours, theirs, .. } = &self;
        let mut cause = format!(
            "{} has {} messages, {} has {}",
            ours.stream, ours.messages, theirs.stream, theirs.messages
        );
        let without = self.events(Kind::WithoutId);
        if without > 0 {
            cause += &format!("; {without} of them have no id");
        }
        let lone = [Kind::OnlyOurs, Kind::OnlyTheirs, Kind::NotYet];
        let lone = self.found.iter().filter(|found| lone.contains(&found.kind));
        for example in lone.filter_map(|found| found.first.first()) {
            cause += &format!("; {}", shown(example));
        }
        Err(Failure::halt(
            Exit::CheckFailed,
            Problem::new(
                format!(
                    "{} and {} have no event in common",
                    ours.stream, theirs.stream
                ),
                cause,
                "let both relays publish for a while; if they do, say where the ids stand: \
                 --id-header, --id-json, --our-id-header",
            ),
        ))
    }

    pub(super) fn is_same(&self) -> bool {
        let mut found = self.found.iter();
        !found.any(|found| found.events > 0 && found.kind.is_difference(self.bodies))
    }

    pub(super) fn json(&self) -> Value {
        let side = |side: &Side| json!({"stream": side.stream, "messages": side.messages});
        let mut report = json!({
            "same": self.is_same(),
            "ours": side(&self.ours),
            "theirs": side(&self.theirs),
        });
        for found in &self.found {
            report[found.word] = match found.kind {
                Kind::Both => found.events.into(),
                _ => json!({"count": found.events, "first": found.first}),
            };
        }
        report
    }

    pub(super) fn print(&self, out: Out<'_>) -> Result<(), Failure> {
        let (ours, theirs) = (&self.ours.stream, &self.theirs.stream);
        let labels = self.found.iter().map(|found| match found.kind {
            Kind::Both => "in both".to_owned(),
            Kind::OnlyOurs => format!("only in {ours}"),
            Kind::OnlyTheirs => format!("only in {theirs}"),
            Kind::RepeatedOurs => format!("more often in {ours}"),
            Kind::RepeatedTheirs => format!("more often in {theirs}"),
            Kind::Subject => "other subject".to_owned(),
            Kind::Body => "other body".to_owned(),
            Kind::Swapped => format!("swapped in {theirs}"),
            Kind::WithoutId => "without an id".to_owned(),
            Kind::NotYet => "not yet in both".to_owned(),
            Kind::Earlier => "before both ran".to_owned(),
        });
        let labels: Vec<String> = labels.collect();
        let width = labels.iter().map(String::len).max().unwrap_or(0);
        for (label, found) in labels.iter().zip(&self.found) {
            writeln!(out, "{label:width$}  {:>8}", found.events).map_err(unwritten)?;
            for example in &found.first {
                writeln!(out, "    {}", shown(example)).map_err(unwritten)?;
            }
        }
        let verdict = match self.is_same() {
            true => "the same",
            false => "they differ",
        };
        writeln!(
            out,
            "{} messages in {ours}, {} in {theirs}: {verdict}",
            self.ours.messages, self.theirs.messages
        )
        .map_err(unwritten)
    }

    fn events(&self, kind: Kind) -> i64 {
        let mut found = self.found.iter();
        found
            .find(|found| found.kind == kind)
            .map_or(0, |found| found.events)
    }
}

/// A kind, how many events there are of it, and the first of them.
fn read(row: &Row) -> Result<(&str, i64, &str), tokio_postgres::Error> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

/// `7f0c…: 5 events.order.placed | 9 events.order.paid`: in outjet's stream, and in the other.
fn shown(example: &Value) -> String {
    let text = |key: &str| example[key].as_str().unwrap_or("-").to_owned();
    let place = |sequence: &str, subject: &str| match example[sequence].as_i64() {
        Some(at) => format!("{at} {}", text(subject)),
        None => "-".to_owned(),
    };
    let ours = place("our_sequence", "our_subject");
    let theirs = place("their_sequence", "their_subject");
    format!(
        "{}: {ours} | {theirs}, stored {}",
        text("id"),
        text("stored")
    )
}
