//! What outjet prints about itself: completions for shells, and its manual page.

use std::io::{self, Write};

use clap::CommandFactory;

use super::config::print;
use crate::cli::{Cli, Completions};
use crate::error::{Exit, Failure, Problem};

/// Prints the completions.
pub fn completions(command: &Completions, out: &mut dyn Write) -> Result<(), Failure> {
    // clap_complete panics where it cannot write: it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(command.shell, &mut Cli::command(), "outjet", &mut script);
    print(out, &script)
}

/// Prints the manual page: the program's, then those of its commands.
pub fn man(out: &mut dyn Write) -> Result<(), Failure> {
    let mut page = Vec::new();
    render(&mut page).map_err(|error| {
        let fix = "report it as a bug of outjet";
        let problem = Problem::new("cannot render the manual page", error.to_string(), fix);
        Failure::halt(Exit::Bug, problem)
    })?;
    print(out, &page)
}

fn render(page: &mut Vec<u8>) -> io::Result<()> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    render_with_commands(&program, page)
}

fn render_with_commands(program: &clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    clap_mangen::Man::new(program.clone()).render(page)?;
    let mut commands = program.get_subcommands();
    commands.try_for_each(|command| render_with_commands(command, page))
}

#[cfg(test)]
mod tests {
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn every_shell_learns_the_commands() {
        for shell in [
            Shell::Bash,
            Shell::Zsh,
            Shell::Fish,
            Shell::Elvish,
            Shell::PowerShell,
        ] {
            let mut out = Vec::new();
            completions(&Completions { shell }, &mut out).unwrap();
            assert!(
                String::from_utf8(out).unwrap().contains("exit-on-halt"),
                "{shell}"
            );
        }
    }

    #[test]
    fn the_manual_page_names_every_command() {
        let mut out = Vec::new();
        man(&mut out).unwrap();
        let page = String::from_utf8(out).unwrap();
        for command in Cli::command().get_subcommands() {
            let name = format!("outjet\\-{}", command.get_name().replace('-', "\\-"));
            assert!(page.contains(&name), "{name}");
        }
    }
}
