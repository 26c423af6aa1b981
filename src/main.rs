//! The `outjet` program: reads the command line, does what it says, and turns the end into an exit
//! code. Every other decision is the library's.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::panic;
use std::process::{self, ExitCode};

use clap::Parser;
use outjet::cli::Cli;
use outjet::command;
use outjet::error::{Exit, Failure, Problem};

/// An event passes through a few dozen small allocations, most of them in the NATS client's header
/// map; this allocator makes them cheaper than the system's (`scripts/bench`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    exit_at_a_panic();
    decline_huge_pages();
    let cli = Cli::parse();
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match command::dispatch(&cli, &environment, &mut Answer(io::stdout())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => code(Exit::CheckFailed),
        Err(failure) => {
            say(&failure);
            code(failure.exit)
        }
    }
}

/// Standard output. Who closes it, as `head` does, has seen enough: the command goes on without,
/// because what it does is not half done by that, and ends as it would have.
struct Answer(io::Stdout);

impl Write for Answer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        unless_closed(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_closed(self.0.flush(), ())
    }
}

fn unless_closed<T>(written: io::Result<T>, all: T) -> io::Result<T> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(all),
        written => written,
    }
}

/// A panic is a bug of ours. The process ends with a message and a code, as after any failure,
/// whichever task panicked: a task that ended alone might never be noticed. It ends before anything
/// unwinds or aborts, so every build does the same (`panic = "abort"` would end in a signal).
/// Nothing is lost: the slot still has what was not confirmed.
fn exit_at_a_panic() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        // Says what and where, and with RUST_BACKTRACE the way there.
        default(panicked);
        let place = panicked.location().map(ToString::to_string);
        let problem = Problem::new(
            "outjet has a bug",
            format!(
                "it panicked at {}, version {}",
                place.unwrap_or_default(),
                env!("CARGO_PKG_VERSION")
            ),
            "please report this with the lines above; start it again: it goes on where it ended",
        );
        let failure = Failure::halt(Exit::Bug, problem);
        say(&failure);
        process::exit(failure.exit as i32);
    }));
}

/// The allocator asks for pages of 2 MiB, each resident as a whole once a byte of it was used: with
/// a full window of events of 8 kB 61 to 79 MiB were resident with them, and 46 are without.
fn decline_huge_pages() {
    // A kernel without them or a sandbox that forbids the call costs memory, and nothing else.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// A closed standard error must not change the exit code.
fn say(failure: &Failure) {
    let _ = writeln!(io::stderr(), "outjet: {failure}");
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
