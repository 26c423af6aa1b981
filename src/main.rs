//! The `outjet` program: reads the command line, does what it says, and turns the end into an exit
//! code. Every other decision is the library's.

use std::collections::BTreeMap;
use std::io::Write;
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
    let cli = Cli::parse();
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    match command::dispatch(&cli, &environment, &mut std::io::stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => code(Exit::CheckFailed),
        Err(failure) => {
            say(&failure);
            code(failure.exit)
        }
    }
}

/// A closed standard error must not change the exit code.
fn say(failure: &Failure) {
    let _ = writeln!(std::io::stderr(), "outjet: {failure}");
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
