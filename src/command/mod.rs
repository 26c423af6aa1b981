//! What the commands do, each in a module of its own. They write to where they are told and return
//! a failure; the program turns that into an exit code.

pub mod check;
pub mod config;
pub mod drop;
pub mod emit;
pub mod setup;
pub mod status;

use std::io::{self, Write};

use crate::error::{Exit, Failure, Problem};

/// Where a command writes its answer.
pub type Out<'a> = &'a mut (dyn Write + Send);

/// The answer cannot be written: a closed pipe, a full disk.
fn unwritten(error: io::Error) -> Failure {
    Failure::halt(
        Exit::Unavailable,
        Problem::new(
            "The answer cannot be written",
            error.to_string(),
            "Look where standard output goes.",
        ),
    )
}
