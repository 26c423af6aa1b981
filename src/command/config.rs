//! `outjet config`, and how every command comes by its configuration.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::cli;
use crate::config::{Config, DEFAULTS, Override, SEARCHED, Sources, json_schema};
use crate::error::{Exit, Failure, Problem};

/// Reads the configuration that the command line asks for.
pub fn load(
    global: &cli::Global,
    environment: &BTreeMap<String, String>,
) -> Result<Config, Failure> {
    Config::load(&Sources {
        file: global.config.as_deref(),
        searched: &SEARCHED,
        environment,
        overrides: &overrides(global)?,
    })
}

/// What the command line sets. The flags of their own go before `--set`.
fn overrides(global: &cli::Global) -> Result<Vec<Override>, Failure> {
    let mut overrides = global
        .set
        .iter()
        .map(|set| Override::from_set(set))
        .collect::<Result<Vec<_>, _>>()?;
    let flags = [
        ("--log-level", "log.level", &global.log_level),
        ("--log-format", "log.format", &global.log_format),
    ];
    for (flag, key, value) in flags {
        overrides.extend(value.as_ref().map(|value| Override {
            flag: flag.to_owned(),
            key: key.to_owned(),
            value: value.clone(),
        }));
    }
    Ok(overrides)
}

/// Does what `outjet config` is told. Only `show` reads the configuration.
pub fn config(
    command: &cli::Config,
    global: &cli::Global,
    environment: &BTreeMap<String, String>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match command {
        cli::Config::Show => {
            let config = load(global, environment)?;
            print(out, &config.show())
        }
        cli::Config::Default => print(out, DEFAULTS),
        cli::Config::Schema => print(out, &format!("{:#}\n", json_schema())),
    }
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // `outjet config default | head`: whoever reads has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::halt(
            Exit::Unavailable,
            Problem::new(
                "cannot write the output",
                error.to_string(),
                "make room or another place for it",
            ),
        )),
    }
}
