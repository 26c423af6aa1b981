//! What the commands do, each in a module of its own, in folders by what a person is doing. They
//! write to where they are told and return a failure; the program turns that into an exit code.

mod again;
mod aside;
mod bench;
pub mod config;
pub mod emit;
mod facts;
pub mod look;
mod progress;
mod recover;
mod rows;
mod run;
pub mod set_up;
pub mod shell;
mod shutdown;
mod stored;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

use clap::ColorChoice;

use self::again::{replay, retry};
use self::aside::{dead_letters, delayed};
use self::look::{check, compare, inspect, status, tail, verify};
use self::set_up::{drop, setup};
use self::shutdown::Signals;
use crate::cli::{self, Cli, Command};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::pg::control::Control;
use crate::pg::params::Params;
use crate::pg::silence;

/// Does what was typed. `false`: a check failed.
pub fn dispatch(
    cli: &Cli,
    environment: &BTreeMap<String, String>,
    out: Out<'_>,
) -> Result<bool, Failure> {
    match &cli.command {
        Command::Config(command) => {
            config::config(command, &cli.global, environment, out).map(|()| true)
        }
        Command::Completions(typed) => shell::completions(typed, out).map(|()| true),
        Command::Man => shell::man(out).map(|()| true),
        Command::Run(_)
        | Command::Setup(_)
        | Command::Check
        | Command::Status(_)
        | Command::Inspect(_)
        | Command::Emit(_)
        | Command::Tail(_)
        | Command::Bench(_)
        | Command::Verify(_)
        | Command::Compare(_)
        | Command::Recover(_)
        | Command::DeadLetters(_)
        | Command::Delayed(_)
        | Command::Replay(_)
        | Command::Drop(_) => connected(cli, environment, out),
    }
}

/// The commands that talk to servers.
fn connected(
    cli: &Cli,
    environment: &BTreeMap<String, String>,
    out: Out<'_>,
) -> Result<bool, Failure> {
    let config = config::load(&cli.global, environment)?;
    // One provider of cryptography for the process: the NATS client asks for it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // One thread: the tasks hand each other small things, and Postgres' walsender, which is
    // single-threaded, too, costs more per event than all of them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| {
        Failure::halt(
            Exit::Unavailable,
            Problem::new(
                "threads cannot be started",
                error.to_string(),
                "raise the limit of processes (ulimit -u, pids.max)",
            ),
        )
    })?;
    let color = colored(cli.global.color, environment);
    let done = runtime.block_on(async {
        match &cli.command {
            Command::Delayed(typed) => delayed::delayed(typed, &config, out).await,
            Command::DeadLetters(
                typed @ (cli::DeadLetters::List(_)
                | cli::DeadLetters::Show(_)
                | cli::DeadLetters::Drop(_)),
            ) => dead_letters::dead_letters(typed, &config, out).await,
            Command::Run(typed) => run::run(typed, &config, environment, color).await,
            // Each look is limited by itself.
            Command::Status(typed) => {
                let params = config.params(environment)?;
                let shown = status::status_all(typed, &config, &params, out).await;
                shown.map(|()| true)
            }
            command => {
                let params = config.params(environment)?;
                let work = one_shot(command, &config, &params, out);
                unless_stalled(&params, Box::pin(work)).await
            }
        }
    });
    // What a second signal left behind must not keep the process.
    runtime.shutdown_background();
    done
}

async fn one_shot(
    command: &Command,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<bool, Failure> {
    match command {
        Command::Check => Box::pin(check::check_all(config, params, out)).await,
        Command::Setup(typed) if typed.backfill => Box::pin(recover::backfill(config, params, out))
            .await
            .map(|()| true),
        Command::Setup(typed) => setup::setup_all(config, params, typed.dry_run, out)
            .await
            .map(|()| true),
        Command::Inspect(typed) => inspect::inspect(typed, config, params, out)
            .await
            .map(|()| true),
        Command::Emit(typed) => emit::emit_all(typed, params, out).await.map(|()| true),
        Command::Tail(typed) => tail::tail(typed, config, params).await.map(|()| true),
        Command::Bench(typed) => Box::pin(bench::bench(typed, config, params, out)).await,
        Command::Verify(typed) => Box::pin(verify::verify(typed, config, params, out)).await,
        Command::Compare(typed) => Box::pin(compare::compare(typed, config, params, out)).await,
        Command::Recover(typed) => Box::pin(recover::recover(typed, config, params, out))
            .await
            .map(|()| true),
        Command::Replay(typed) => replay::replay(typed, config, params, out)
            .await
            .map(|()| true),
        Command::Drop(typed) => drop::drop_all(typed, config, params, out)
            .await
            .map(|()| true),
        Command::DeadLetters(cli::DeadLetters::Retry(typed)) => {
            retry::retry(typed, config, params, out).await
        }
        Command::Run(_)
        | Command::Status(_)
        | Command::DeadLetters(_)
        | Command::Delayed(_)
        | Command::Config(_)
        | Command::Completions(_)
        | Command::Man => {
            unreachable!("dispatched before")
        }
    }
}

/// What ends a command that Postgres would keep for ever: nothing comes, and nobody is let in.
/// However long a server works on a query or waits for a lock, it does let in.
async fn unless_stalled<T>(
    params: &Params,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        done = work => done,
        error = silence::stalled(params) => {
            let mut failure = error.failure(params);
            let seconds = silence::SILENCE_MAX.as_secs();
            let cause = &mut failure.problem.cause;
            *cause = format!("nothing has come for {seconds} s, and then a new session: {cause}");
            Err(failure)
        }
    }
}

/// The control connection of a one-shot command.
async fn connect(params: &Params) -> Result<Control, Failure> {
    Control::connect(params)
        .await
        .map_err(|error| error.failure(params))
}

/// For a command that a signal ends in good order.
fn signals() -> Result<Signals, Failure> {
    Signals::take().map_err(|error| {
        let problem = Problem::new(
            "signals cannot be waited for",
            error.to_string(),
            "please report this with the name of the operating system",
        );
        Failure::halt(Exit::Bug, problem)
    })
}

fn colored(choice: ColorChoice, environment: &BTreeMap<String, String>) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        // https://no-color.org
        ColorChoice::Auto => {
            let refused = environment
                .get("NO_COLOR")
                .is_some_and(|value| !value.is_empty());
            !refused && io::stderr().is_terminal()
        }
    }
}

/// Where a command writes its answer.
pub type Out<'a> = &'a mut (dyn Write + Send);

/// The answer cannot be written: a closed pipe, a full disk.
fn unwritten(error: io::Error) -> Failure {
    Failure::halt(
        Exit::Unavailable,
        Problem::new(
            "the answer cannot be written",
            error.to_string(),
            "look where standard output goes",
        ),
    )
}
