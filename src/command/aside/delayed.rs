//! `outjet delayed`: what the server keeps until it is due.

use serde::Serialize;

use crate::cli;
use crate::command::{Out, unwritten};
use crate::config::Config;
use crate::error::Failure;
use crate::sink::jetstream::{Error, Options, Schedule, Schedules};

/// Does what was typed. `false`: an event that was named is not among what is delayed.
pub(in crate::command) async fn delayed(
    typed: &cli::Delayed,
    config: &Config,
    out: Out<'_>,
) -> Result<bool, Failure> {
    let options = config.sink_options();
    let schedules = match Schedules::open(&options).await {
        Ok(schedules) => Some(schedules),
        // Nobody has needed it yet, or could.
        Err(Error::StreamMissing(_) | Error::NoSchedules { .. }) => None,
        Err(error) => return Err(error.failure(&options.of_delayed())),
    };
    match typed {
        cli::Delayed::List(typed) => list(schedules, &options, typed, out).await,
        cli::Delayed::Cancel(typed) => {
            let mut all = true;
            for id in &typed.ids {
                let cancelled = match &schedules {
                    Some(schedules) => schedules.cancel(id).await,
                    None => Ok(false),
                };
                let cancelled = cancelled.map_err(|error| error.failure(&options))?;
                let done = if cancelled { "cancelled" } else { "absent   " };
                writeln!(out, "{done}  delayed event {id}").map_err(unwritten)?;
                all &= cancelled;
            }
            Ok(all)
        }
    }
}

/// A line of `list --json`. Fields are added, never renamed.
#[derive(Serialize)]
struct Line<'a> {
    sequence: u64,
    due: &'a str,
    id: &'a str,
    subject: &'a str,
}

async fn list(
    schedules: Option<Schedules>,
    options: &Options,
    typed: &cli::ListMessages,
    out: Out<'_>,
) -> Result<bool, Failure> {
    let (mut from, mut listed) = (typed.from, 0);
    while listed < typed.limit
        && let Some(schedules) = &schedules
    {
        let next = schedules.next(from).await;
        let Some(next) = next.map_err(|error| error.failure(options))? else {
            break;
        };
        write(&next, (typed.json, listed == 0), out)?;
        from = next.sequence() + 1;
        listed += 1;
    }
    if listed == 0 && !typed.json {
        writeln!(out, "no delayed events").map_err(unwritten)?;
    }
    Ok(true)
}

fn write(schedule: &Schedule, (json, first): (bool, bool), out: Out<'_>) -> Result<(), Failure> {
    let (sequence, due) = (schedule.sequence(), schedule.due());
    let (id, subject) = (schedule.id(), schedule.subject());
    if json {
        let line = Line {
            sequence,
            due,
            id,
            subject,
        };
        let json = serde_json::to_string(&line).unwrap_or_default();
        return writeln!(out, "{json}").map_err(unwritten);
    }
    if first {
        let (seq, at) = ("SEQ", "DUE");
        writeln!(out, "{seq:<7}{at:<29}ID, SUBJECT").map_err(unwritten)?;
    }
    writeln!(out, "{sequence:<7}{due:<29}{id}, {subject}").map_err(unwritten)
}
