//! `outjet status --watch`: looks again and again. On a terminal it draws in place, elsewhere it
//! writes a line for each look. A server that goes away is shown, not an end; who stops reading
//! ends it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use tokio::time::Instant;

use super::{Look, Report, now, size};
use crate::cli;
use crate::command::unwritten;
use crate::error::{Failure, Problem};

/// To the top; what stood there is overwritten, because an empty screen in between would flicker.
const HOME: &str = "\x1b[H";

/// Clears the screen, once.
const CLEAR: &str = "\x1b[2J";

/// Clears to the end of the line, and to the end of the screen.
const REST_OF_LINE: &str = "\x1b[K\n";
const REST_OF_SCREEN: &str = "\x1b[J";

/// Writes the first look and those that follow, until nobody reads them.
pub(super) async fn watch(
    typed: &cli::Status,
    first: Look,
    look: impl AsyncFn() -> Result<Look, Failure>,
) -> Result<(), Failure> {
    // Not the program's answer, which goes on when its reader has gone: this would never end.
    let mut out = io::stdout();
    let mut view = View {
        json: typed.json,
        in_place: out.is_terminal() && !typed.json,
        before: None,
    };
    if view.in_place {
        write!(out, "{CLEAR}").map_err(unwritten)?;
    }
    let mut seen = Ok(first);
    loop {
        let shown = view.show(seen.map_err(|failure: Failure| failure.problem));
        let written = out.write_all(shown.as_bytes()).and_then(|()| out.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(unwritten)?,
        }
        tokio::time::sleep(typed.interval).await;
        seen = look().await;
    }
}

struct View {
    json: bool,
    in_place: bool,
    /// The last sequence number of the stream and when it was read.
    before: Option<(Instant, u64)>,
}

impl View {
    fn show(&mut self, seen: Result<Look, Problem>) -> String {
        let stream = seen
            .as_ref()
            .ok()
            .and_then(|look| look.stream.as_ref().ok());
        let rate = self.rate(stream.map(|stream| stream.last_sequence));
        if self.json {
            let report = match seen {
                Ok(look) => look.report(),
                Err(problem) => unseen(&problem),
            };
            return serde_json::to_string(&report).unwrap_or_default() + "\n";
        }
        match self.in_place {
            true => drawing(&seen, rate),
            false => line(&seen, rate),
        }
    }

    /// Messages per second since the last look.
    fn rate(&mut self, sequence: Option<u64>) -> Option<f64> {
        let now = Instant::now();
        let read = sequence.map(|sequence| (now, sequence));
        let (at, before) = std::mem::replace(&mut self.before, read)?;
        // A stream that was made again starts anew.
        let stored = sequence?.checked_sub(before)?;
        Some(stored as f64 / now.duration_since(at).as_secs_f64().max(f64::EPSILON))
    }
}

/// A look that failed, for `--json`.
fn unseen(problem: &Problem) -> Report {
    Report {
        at: now(),
        postgres: None,
        stream: None,
        problem: Some(format!("{}: {}", problem.problem, problem.cause)),
        dead_letters: None,
        record: None,
        no_record: None,
    }
}

/// The whole screen.
fn drawing(seen: &Result<Look, Problem>, rate: Option<f64>) -> String {
    let mut text = Vec::new();
    let written = match seen {
        Ok(look) => look.write(&mut text),
        Err(problem) => writeln!(text, "{problem}"),
    };
    written.expect("memory takes everything");
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if let Some(rate) = rate {
        let _ = writeln!(text, "throughput    {rate:.0} messages/s");
    }
    let at = now().unwrap_or_default();
    let _ = write!(text, "\n{at}, ends with Ctrl-C\n");
    let text = text.replace('\n', REST_OF_LINE);
    format!("{HOME}{text}{REST_OF_SCREEN}")
}

/// What matters, in one line.
fn line(seen: &Result<Look, Problem>, rate: Option<f64>) -> String {
    let mut line = now().unwrap_or_default();
    match seen {
        Ok(look) => {
            let slot = look.postgres.slot_status.as_ref();
            let leader = slot.map_or_else(|| "no slot".to_owned(), |slot| slot.leader());
            let lag = size(slot.and_then(|slot| slot.lag_bytes));
            let retained = size(slot.and_then(|slot| slot.retained_wal_bytes));
            let _ = write!(
                line,
                "  leader {leader}  lag {lag}  retained WAL {retained}"
            );
            match &look.stream {
                Ok(stream) => {
                    let _ = write!(line, "  last sequence {}", stream.last_sequence);
                }
                Err(problem) => line.push_str(&told(problem)),
            }
        }
        Err(problem) => line.push_str(&told(problem)),
    }
    if let Some(rate) = rate {
        let _ = write!(line, "  {rate:.0} messages/s");
    }
    if let Ok(Look {
        dead_letters: Some(letters @ 1..),
        ..
    }) = seen
    {
        let _ = write!(line, "  dead letters {letters}");
    }
    line + "\n"
}

fn told(problem: &Problem) -> String {
    let Problem { problem, cause, .. } = problem;
    format!("  {problem}: {cause}").replace('\n', " ")
}
