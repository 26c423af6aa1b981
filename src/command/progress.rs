//! A bar on standard error for who watches a long command.

use std::io::{IsTerminal, Write};

use tokio::time::Instant;

/// So many of so many; shown on a terminal alone.
pub(super) struct Progress {
    all: u64,
    started: Instant,
    shown: bool,
}

impl Progress {
    /// Begins now.
    pub(super) fn of(all: u64) -> Self {
        Self {
            all: all.max(1),
            started: Instant::now(),
            shown: std::io::stderr().is_terminal(),
        }
    }

    /// Draws the bar anew.
    pub(super) fn show(&self, done: u64) {
        const WIDTH: u64 = 30;
        if !self.shown {
            return;
        }
        let all = self.all;
        let bar = "#".repeat(usize::try_from(done * WIDTH / all).unwrap_or_default());
        let percent = done * 100 / all;
        let rate = done as f64 / self.started.elapsed().as_secs_f64().max(0.001);
        let width = WIDTH as usize;
        // Who watches may have gone.
        let _ = write!(
            std::io::stderr(),
            "\r[{bar:<width$}] {percent:>3} %  {done} of {all}  {rate:.0}/s  "
        );
    }

    /// Leaves the line.
    pub(super) fn end(&self) {
        if self.shown {
            let _ = writeln!(std::io::stderr());
        }
    }
}
