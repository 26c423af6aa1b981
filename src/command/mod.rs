//! The commands: what each does with what was typed and configured.

pub mod config;
pub mod shell;
