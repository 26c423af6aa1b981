//! `outjet config`, and how every command comes by its configuration.

use std::collections::BTreeMap;
use std::io::Write;

use crate::cli;
use crate::config::{Config, DEFAULTS, Override, SEARCHED, Sources, json_schema};
use crate::error::Failure;

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
            print(out, config.show().as_bytes())
        }
        cli::Config::Default => print(out, DEFAULTS.as_bytes()),
        cli::Config::Schema => print(out, format!("{:#}\n", json_schema()).as_bytes()),
    }
}

/// Writes the whole output of a command.
pub(super) fn print(out: &mut dyn Write, text: &[u8]) -> Result<(), Failure> {
    let written = out.write_all(text).and_then(|()| out.flush());
    written.map_err(super::unwritten)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::error::Exit;

    fn printed(typed: &[&str]) -> Result<String, Failure> {
        let cli = cli::Cli::try_parse_from(typed).unwrap();
        let cli::Command::Config(command) = &cli.command else {
            panic!("not config: {:?}", cli.command);
        };
        let mut out = Vec::new();
        config(command, &cli.global, &BTreeMap::new(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn default_prints_the_documented_file_and_schema_prints_json() {
        assert_eq!(printed(&["outjet", "config", "default"]).unwrap(), DEFAULTS);
        let schema = printed(&["outjet", "config", "schema"]).unwrap();
        assert!(
            serde_json::from_str::<serde_json::Value>(&schema)
                .unwrap()
                .is_object()
        );
    }

    #[test]
    fn a_flag_of_its_own_goes_before_set_and_is_named_in_errors() {
        let typed = [
            "outjet",
            "config",
            "show",
            "--log-level",
            "warn",
            "--set",
            "log.level=debug",
        ];
        assert!(printed(&typed).unwrap().contains("  level: warn "));
        let failure = printed(&["outjet", "config", "show", "--log-format", "xml"]).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert_eq!(failure.problem.cause, "the flag --log-format");
    }
}
