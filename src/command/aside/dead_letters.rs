//! `outjet dead-letters`: what could not be published, and why.

use serde::Serialize;
use time::format_description::well_known::Rfc3339;

use crate::cli;
use crate::command::{Out, unwritten};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::sink::jetstream::{DeadLetter, Error, Letterbox, Options};

/// Does what was typed. `false`: a letter that was named does not exist.
pub(in crate::command) async fn dead_letters(
    typed: &cli::DeadLetters,
    config: &Config,
    out: Out<'_>,
) -> Result<bool, Failure> {
    let letters = Letters::open(config).await?;
    match typed {
        cli::DeadLetters::List(typed) => letters.list(typed, out).await,
        cli::DeadLetters::Show(typed) => letters.show(typed.sequence, out).await,
        cli::DeadLetters::Drop(typed) => letters.drop(typed, out).await,
        cli::DeadLetters::Retry(_) => unreachable!("dispatched before"),
    }
}

pub(in crate::command) struct Letters {
    letterbox: Option<Letterbox>,
    options: Options,
}

/// A line of `list --json`. Fields are added, never renamed.
#[derive(Serialize)]
struct Line<'a> {
    sequence: u64,
    stored: &'a str,
    reason: &'a str,
    table: &'a str,
    id: &'a str,
    position: &'a str,
    subject: &'a str,
    error: &'a str,
}

impl Letters {
    pub(in crate::command) async fn open(config: &Config) -> Result<Self, Failure> {
        let options = config.sink_options();
        let letterbox = match Letterbox::open(&options).await {
            Ok(letterbox) => Some(letterbox),
            // Nobody has needed it yet.
            Err(Error::StreamMissing(_)) => None,
            Err(error) => return Err(error.failure(&options)),
        };
        Ok(Self { letterbox, options })
    }

    /// The sequence number of the newest when it was opened.
    pub(in crate::command) fn last_sequence(&self) -> u64 {
        self.letterbox.as_ref().map_or(0, Letterbox::last_sequence)
    }

    async fn list(&self, typed: &cli::ListMessages, out: Out<'_>) -> Result<bool, Failure> {
        let mut from = typed.from;
        let mut listed = 0;
        while listed < typed.limit {
            let Some(letter) = self.next(from).await? else {
                break;
            };
            let stored = stored(&letter);
            if typed.json {
                write_json(&letter, &stored, out)?;
            } else {
                if listed == 0 {
                    let (seq, at) = ("SEQ", "STORED");
                    writeln!(out, "{seq:<7}{at:<22}{:<12}ID, TABLE, ERROR", "REASON")
                        .map_err(unwritten)?;
                }
                let stored = stored.split('.').next().unwrap_or_default();
                let (sequence, reason) = (letter.sequence(), letter.reason());
                let (id, table, error) = (letter.id(), letter.table(), letter.error());
                writeln!(
                    out,
                    "{sequence:<7}{stored:<22}{reason:<12}{id}, {table}, {error}"
                )
                .map_err(unwritten)?;
            }
            from = letter.sequence() + 1;
            listed += 1;
        }
        if listed == 0 && !typed.json {
            writeln!(out, "no dead letters").map_err(unwritten)?;
        }
        Ok(true)
    }

    async fn show(&self, sequence: u64, out: Out<'_>) -> Result<bool, Failure> {
        let letter = self.next(sequence).await?;
        let Some(letter) = letter.filter(|letter| letter.sequence() == sequence) else {
            return Err(missing(sequence));
        };
        let headers = letter.headers();
        let mut headers: Vec<String> = headers
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        headers.sort();
        let stored = stored(&letter);
        writeln!(out, "subject: {}\nstored: {stored}", letter.subject()).map_err(unwritten)?;
        for header in headers {
            writeln!(out, "{header}").map_err(unwritten)?;
        }
        writeln!(out).map_err(unwritten)?;
        out.write_all(letter.body()).map_err(unwritten)?;
        if letter.body().last().is_some_and(|byte| *byte != b'\n') {
            writeln!(out).map_err(unwritten)?;
        }
        Ok(true)
    }

    async fn drop(&self, typed: &cli::NamedDeadLetters, out: Out<'_>) -> Result<bool, Failure> {
        let mut dropped_all = true;
        for sequence in &typed.sequences {
            dropped_all &= self.drop_one(*sequence, out).await?;
        }
        let mut from = 1;
        while typed.all
            && let Some(letter) = self.next(from).await?
        {
            self.drop_one(letter.sequence(), out).await?;
            from = letter.sequence() + 1;
        }
        Ok(dropped_all)
    }

    async fn drop_one(&self, sequence: u64, out: Out<'_>) -> Result<bool, Failure> {
        let dropped = self.delete(sequence).await?;
        let done = if dropped { "dropped" } else { "absent " };
        writeln!(out, "{done}  dead letter {sequence}").map_err(unwritten)?;
        Ok(dropped)
    }

    /// Says whether there was one.
    pub(in crate::command) async fn delete(&self, sequence: u64) -> Result<bool, Failure> {
        let Some(letterbox) = &self.letterbox else {
            return Ok(false);
        };
        let deleted = letterbox.drop_letter(sequence).await;
        deleted.map_err(|error| error.failure(&self.options))
    }

    /// The first at or behind a sequence number.
    pub(in crate::command) async fn next(&self, from: u64) -> Result<Option<DeadLetter>, Failure> {
        let Some(letterbox) = &self.letterbox else {
            return Ok(None);
        };
        let letter = letterbox.next(from).await;
        letter.map_err(|error| error.failure(&self.options))
    }
}

fn write_json(letter: &DeadLetter, stored: &str, out: Out<'_>) -> Result<(), Failure> {
    let line = Line {
        sequence: letter.sequence(),
        stored,
        reason: letter.reason(),
        table: letter.table(),
        id: letter.id(),
        position: letter.position(),
        subject: letter.subject(),
        error: letter.error(),
    };
    let json = serde_json::to_string(&line).unwrap_or_default();
    writeln!(out, "{json}").map_err(unwritten)
}

fn stored(letter: &DeadLetter) -> String {
    letter.stored().format(&Rfc3339).unwrap_or_default()
}

fn missing(sequence: u64) -> Failure {
    let problem = Problem::new(
        format!("there is no dead letter {sequence}"),
        "it was dropped, or never stored",
        "`outjet dead-letters list` shows those there are",
    );
    Failure::halt(Exit::CheckFailed, problem)
}
