//! How far a long command has come, on standard error: a bar on a terminal, and elsewhere, if the
//! command wants that, a line now and then. What is over at once shows nothing.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

/// How often a bar is drawn: less often than commands look, ten times a second.
const DRAW_EVERY: Duration = Duration::from_millis(90);

/// How often a line is said elsewhere: seldom enough for the log of an hour to be read.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// So many of so many.
pub(super) struct Progress {
    all: u64,
    /// What is counted, and what becomes of it.
    what: &'static str,
    done: u64,
    started: Instant,
    shown_at: Instant,
    form: Form,
    /// The bar is on the last line.
    drawn: bool,
    out: Box<dyn Write + Send>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Bar,
    Lines,
    Nothing,
}

impl Progress {
    /// Begins now; shown on a terminal alone.
    pub(super) fn of(all: u64, what: &'static str) -> Self {
        Self::or(Form::Nothing, all, what)
    }

    /// Begins now; a line every few seconds where there is no terminal.
    pub(super) fn or_lines(all: u64, what: &'static str) -> Self {
        Self::or(Form::Lines, all, what)
    }

    fn or(form: Form, all: u64, what: &'static str) -> Self {
        let out = std::io::stderr();
        let form = if out.is_terminal() { Form::Bar } else { form };
        Self::on(Box::new(out), form, (all, what))
    }

    fn on(out: Box<dyn Write + Send>, form: Form, (all, what): (u64, &'static str)) -> Self {
        let now = Instant::now();
        Self {
            all,
            what,
            done: 0,
            started: now,
            shown_at: now,
            form,
            drawn: false,
            out,
        }
    }

    /// So many are done by now: shows it, unless something was shown a moment ago.
    pub(super) fn show(&mut self, done: u64) {
        self.done = done;
        let every = match self.form {
            Form::Bar => DRAW_EVERY,
            Form::Lines => LINE_EVERY,
            Form::Nothing => return,
        };
        if self.shown_at.elapsed() < every {
            return;
        }
        self.shown_at = Instant::now();
        match self.form {
            Form::Bar => self.draw(),
            Form::Lines | Form::Nothing => self.write(&format!("{}\n", self.text())),
        }
    }

    /// Says something else on a line of its own.
    pub(super) fn say(&mut self, line: &str) {
        // ECMA-48: erases the line.
        let erase = if self.drawn { "\r\x1b[K" } else { "" };
        self.drawn = false;
        self.write(&format!("{erase}{line}\n"));
    }

    /// Shows what is done last, and leaves the line.
    pub(super) fn end(&mut self) {
        if self.drawn {
            self.draw();
            self.drawn = false;
            self.write("\n");
        }
    }

    fn draw(&mut self) {
        const WIDTH: u64 = 30;
        let bar = "#".repeat(usize::try_from(self.share(WIDTH)).unwrap_or_default());
        let width = WIDTH as usize;
        self.drawn = true;
        self.write(&format!("\r[{bar:<width$}] {}  ", self.text()));
    }

    fn text(&self) -> String {
        let Self {
            done, all, what, ..
        } = self;
        let percent = self.share(100);
        let rate = *done as f64 / self.started.elapsed().as_secs_f64().max(0.001);
        format!("{percent:>3} %  {done} of {all} {what}  {rate:.0}/s")
    }

    /// The part that is done, of this whole. What was counted may have become more since.
    fn share(&self, whole: u64) -> u64 {
        let all = self.all.max(1);
        self.done.min(all) * whole / all
    }

    fn write(&mut self, text: &str) {
        // Who watches may have gone.
        let _ = self.out.write_all(text.as_bytes());
    }
}

/// The bar of a command that fails, which then says why.
impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
impl Progress {
    /// Nobody watches.
    pub(super) fn unseen() -> Self {
        Self::on(Box::new(std::io::sink()), Form::Nothing, (0, "events"))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What stands on standard error.
    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Screen {
        fn progress(&self, form: Form) -> Progress {
            Progress::on(Box::new(self.clone()), form, (400, "events appended"))
        }

        fn text(&self) -> String {
            let bytes = self.0.lock().expect("one thread");
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("one thread").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    async fn one_a_second(progress: &mut Progress, seconds: u64) {
        for second in 1..=seconds {
            tokio::time::advance(Duration::from_secs(1)).await;
            progress.show(second);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_terminal_a_line_is_said_every_five_seconds() {
        let screen = Screen::default();
        let mut progress = screen.progress(Form::Lines);
        one_a_second(&mut progress, 4).await;
        assert_eq!(screen.text(), "");
        one_a_second(&mut progress, 8).await;
        progress.end();
        let lines = "  0 %  1 of 400 events appended  0/s\n  1 %  6 of 400 events appended  1/s\n";
        assert_eq!(screen.text(), lines);
    }

    #[tokio::test(start_paused = true)]
    async fn bar_ends_before_what_is_said_and_with_the_command() {
        let screen = Screen::default();
        let mut progress = screen.progress(Form::Bar);
        tokio::time::advance(DRAW_EVERY).await;
        progress.show(200);
        progress.show(201);
        progress.say("NATS is away");
        tokio::time::advance(Duration::from_secs(1)).await;
        progress.show(400);
        drop(progress);
        let half = format!(
            "\r[{:<30}]  50 %  200 of 400 events appended",
            "#".repeat(15)
        );
        let all = format!("\r[{}] 100 %  400 of 400 events appended", "#".repeat(30));
        let text = screen.text();
        let (before, after) = text
            .split_once("\r\x1b[KNATS is away\n")
            .expect("a line of its own");
        assert!(
            before.starts_with(&half) && !before.contains("201"),
            "{before:?}"
        );
        assert!(
            after.starts_with(&all) && after.ends_with('\n'),
            "{after:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_at_once_or_has_become_more_breaks_no_bar() {
        let screen = Screen::default();
        let mut progress = screen.progress(Form::Bar);
        progress.show(1);
        progress.end();
        assert_eq!(screen.text(), "");
        tokio::time::advance(DRAW_EVERY).await;
        progress.show(500);
        assert!(
            screen.text().contains("] 100 %  500 of 400"),
            "{}",
            screen.text()
        );
    }
}
