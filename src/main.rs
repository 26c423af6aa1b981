//! The `outjet` program: reads the command line, does what it says, and turns the end into an exit
//! code. Every other decision is the library's.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use outjet::cli::Cli;
use outjet::command;
use outjet::error::{Exit, Failure};

/// An event passes through a few dozen small allocations, most of them in the NATS client's header
/// map; this allocator makes them cheaper than the system's (`scripts/bench`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
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
