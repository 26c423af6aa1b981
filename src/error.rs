//! What went wrong, said so that a person can act on it: problem, cause, fix; and what the program
//! does about it. Subsystems have error types of their own; what an operator meets ends up here.

use std::fmt;

/// Three lines for an operator. `Display` prints all three.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What does not work, with the names involved.
    pub problem: String,
    /// Why, with the value observed or the server's own words.
    pub cause: String,
    /// What to do, with the command to type.
    pub fix: String,
}

impl Problem {
    /// Takes the three lines in the order in which they are printed.
    pub fn new(
        problem: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            problem: problem.into(),
            cause: cause.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.problem)?;
        writeln!(f, "  cause: {}", self.cause)?;
        write!(f, "  fix:   {}", self.fix)
    }
}

/// What `run` does about the end of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It may pass by itself: try again for ever, with backoff.
    Retry,
    /// Somebody else leads: poll for the slot.
    Standby,
    /// A person must act: give up the slot, look now and then whether the cause is gone.
    Halt,
}

/// The process exit codes (0 is success).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A check failed.
    CheckFailed = 1,
    /// The command line was wrong.
    Usage = 2,
    /// `run --exit-on-halt` halted.
    Halted = 65,
    /// A server cannot be reached (one-shot commands).
    Unavailable = 69,
    /// A bug in outjet.
    Bug = 70,
    /// A server refused us (one-shot commands).
    NotPermitted = 77,
    /// The configuration is wrong.
    Config = 78,
}

/// A problem with its consequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What `run` does.
    pub disposition: Disposition,
    /// What a one-shot command exits with.
    pub exit: Exit,
    /// What is said.
    pub problem: Problem,
}

impl Failure {
    /// A person must act before it can work.
    pub fn halt(exit: Exit, problem: Problem) -> Self {
        Self {
            disposition: Disposition::Halt,
            exit,
            problem,
        }
    }

    /// It may pass by itself.
    pub fn retry(problem: Problem) -> Self {
        Self {
            disposition: Disposition::Retry,
            exit: Exit::Unavailable,
            problem,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl std::error::Error for Failure {}

/// An error and its sources on one line, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        // Some libraries' errors print their source themselves.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = inner.source();
    }
    line
}
