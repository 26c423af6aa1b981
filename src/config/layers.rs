//! Lays the sources of the configuration over each other: default, file, conventional environment,
//! `OUTJET_...`, flags. Knows what may be written where, not what it means.

use std::collections::BTreeMap;

use super::keys::Raw;
use super::problem::{ConfigFile, config_failure, origin_place};
use super::raw::{Given, Node, Origin, SetError};
use super::value::{Setting, nearest};
use super::yaml::yaml_message;
use crate::error::{Exit, Failure, Problem};

/// Every key with its default and its meaning.
pub(super) const DEFAULTS: &str = include_str!("../../config/outjet.yaml");

/// Variables that other programs know, too, and the keys that they are for. The NATS names are
/// those of the nats CLI.
pub(super) const CONVENTIONAL: [(&str, &str); 15] = [
    ("DATABASE_URL", "postgres.url"),
    ("DATABASE_URL_FILE", "postgres.url_file"),
    ("NATS_URL", "nats.url"),
    ("NATS_URL_FILE", "nats.url_file"),
    ("NATS_CREDS", "nats.creds"),
    ("NATS_NKEY", "nats.nkey"),
    ("NATS_NKEY_FILE", "nats.nkey_file"),
    ("NATS_USER", "nats.user"),
    ("NATS_PASSWORD", "nats.password"),
    ("NATS_PASSWORD_FILE", "nats.password_file"),
    ("NATS_TOKEN", "nats.token"),
    ("NATS_TOKEN_FILE", "nats.token_file"),
    ("NATS_CA", "nats.tls.ca"),
    ("NATS_CERT", "nats.tls.cert"),
    ("NATS_KEY", "nats.tls.key"),
];

/// A value from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The flag as messages name it.
    pub flag: String,
    /// `section.key`.
    pub key: String,
    /// The text, as a variable would hold it.
    pub value: String,
}

impl Override {
    /// Takes the argument of `--set`.
    pub fn from_set(assignment: &str) -> Result<Self, Failure> {
        let Some((key, value)) = assignment.split_once('=') else {
            let problem = Problem::new(
                format!("--set {assignment} is not an assignment"),
                "there is no = in it",
                "write --set KEY=VALUE, as in --set stream.name=ORDERS",
            );
            return Err(Failure::halt(Exit::Usage, problem));
        };
        Ok(Self {
            flag: format!("--set {key}"),
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// The lowest layer.
pub(super) fn defaults() -> Raw {
    let mut raw: Raw = serde_saphyr::from_str(DEFAULTS).expect("a test reads config/outjet.yaml");
    raw.make_default();
    raw
}

/// Reads a configuration file.
pub(super) fn file(config_file: &ConfigFile) -> Result<Raw, Failure> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let raw: Option<Raw> = serde_saphyr::from_str_with_options(&config_file.text, options)
        .map_err(|error| config_file.refuse_yaml(&error))?;
    Ok(raw.unwrap_or_default())
}

/// Lays the environment over `raw`. An empty variable counts as absent, since many deployment
/// tools cannot leave one out.
pub(super) fn environment(
    raw: &mut Raw,
    variables: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    for (name, key) in CONVENTIONAL {
        if let Some(text) = variables.get(name).filter(|text| !text.is_empty()) {
            set(raw, key, text, Origin::Conventional(name.to_owned()))?;
        }
    }
    for (name, text) in variables {
        let Some(rest) = name.strip_prefix("OUTJET_") else {
            continue;
        };
        if text.is_empty() || is_service_link(rest) {
            continue;
        }
        let path = rest.to_lowercase().replace("__", ".");
        set(raw, &path, text, Origin::Variable(name.clone()))?;
    }
    Ok(())
}

/// Lays the flags over `raw`.
pub(super) fn flags(raw: &mut Raw, overrides: &[Override]) -> Result<(), Failure> {
    for given in overrides {
        set(
            raw,
            &given.key,
            &given.value,
            Origin::Flag(given.flag.clone()),
        )?;
    }
    Ok(())
}

/// Whether Kubernetes made the variable for a service whose name begins with `outjet`
/// (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>):
/// such a service beside us must not keep us from starting.
fn is_service_link(rest: &str) -> bool {
    if rest.contains("__") {
        return false;
    }
    let words: Vec<&str> = rest.split('_').collect();
    let number = |word: &str| word.parse::<u16>().is_ok();
    let protocol = |word: &str| matches!(word, "TCP" | "UDP" | "SCTP");
    words.ends_with(&["SERVICE", "HOST"])
        || words.windows(2).any(|pair| pair == ["SERVICE", "PORT"])
        || words.ends_with(&["PORT"])
        || words
            .windows(3)
            .any(|run| run[0] == "PORT" && number(run[1]) && protocol(run[2]))
}

fn set(raw: &mut Raw, key: &str, text: &str, origin: Origin) -> Result<(), Failure> {
    match raw.set(key, text, origin.clone()) {
        Ok(()) => Ok(()),
        Err(SetError::NoSuchKey) => Err(no_such_key(key, &origin)),
        Err(SetError::Yaml(error)) => Err(config_failure(
            format!("{key}: {}", yaml_message(&error)),
            origin_place(&origin, None, 0),
            format!("write a YAML list on one line, as in {}", example(key)),
        )),
    }
}

fn example(key: &str) -> &'static str {
    match key {
        "tables" => "[{name: outbox.events}]",
        "publish.routes" => "[{match: order.>, to: events.order.{1}}]",
        _ => "[events.>]",
    }
}

fn no_such_key(key: &str, origin: &Origin) -> Failure {
    let paths: Vec<String> = Raw::all_keys().into_iter().map(|key| key.path).collect();
    let words: Vec<&str> = paths.iter().map(String::as_str).collect();
    let variable = |path: &str| format!("OUTJET_{}", path.replace('.', "__").to_uppercase());
    let written = |path: &str| match origin {
        Origin::Variable(_) => variable(path),
        _ => path.to_owned(),
    };
    let fix = match nearest(key, &words) {
        Some(path) => format!("did you mean {}?", written(path)),
        None => "remove it; `outjet config default` shows every key".to_owned(),
    };
    let place = origin_place(origin, None, 0);
    let problem = match origin {
        Origin::Variable(name) => format!("{name} names no key of the configuration"),
        _ => format!("unknown key `{key}`"),
    };
    let cause = format!("{place} stands for the key {key}, which does not exist");
    config_failure(problem, cause, fix)
}

/// Puts the content of `<key>_file` where the key itself would stand, and of the file that
/// `nats.nkey` may name.
pub(super) fn secret_files(raw: &mut Raw, config_file: Option<&ConfigFile>) -> Result<(), Failure> {
    let (postgres, nats) = (&mut raw.postgres, &mut raw.nats);
    replace(
        "postgres.url",
        &mut postgres.url,
        &postgres.url_file,
        config_file,
    )?;
    replace("nats.url", &mut nats.url, &nats.url_file, config_file)?;
    replace("nats.nkey", &mut nats.nkey, &nats.nkey_file, config_file)?;
    replace(
        "nats.password",
        &mut nats.password,
        &nats.password_file,
        config_file,
    )?;
    replace("nats.token", &mut nats.token, &nats.token_file, config_file)?;
    let Some(nkey) = nats.nkey.as_mut().filter(|nkey| !is_seed(&nkey.written)) else {
        return Ok(());
    };
    // The path is not repeated: it may be a seed with a typing mistake.
    let text = std::fs::read_to_string(&nkey.written).ok();
    let seed = text
        .map(|text| text.trim().to_owned())
        .filter(|text| is_seed(text));
    nkey.written = seed.ok_or_else(|| {
        config_failure(
            "nats.nkey is neither a seed nor a file with one",
            origin_place(&nkey.origin, config_file, 1),
            "give the user's seed (58 characters, SU...) or a readable file that holds just that",
        )
    })?;
    Ok(())
}

/// Whether it looks like the seed of a user (32 bytes, prefix and checksum in base32: NATS ADR-14).
fn is_seed(text: &str) -> bool {
    let base32 = |c: char| c.is_ascii_uppercase() || ('2'..='7').contains(&c);
    text.len() == 58 && text.starts_with("SU") && text.chars().all(base32)
}

/// The one from the higher layer goes before the other; two from the same layer contradict.
fn replace<T: Setting<Written = String>>(
    key: &str,
    value: &mut Option<Given<T>>,
    file: &Option<Given<String>>,
    config_file: Option<&ConfigFile>,
) -> Result<(), Failure> {
    let Some(file) = file else {
        return Ok(());
    };
    let rank = value.as_ref().map(|value| value.origin.rank());
    if rank > Some(file.origin.rank()) {
        return Ok(());
    }
    let place = origin_place(&file.origin, config_file, file.written.chars().count());
    if rank == Some(file.origin.rank()) {
        let problem = format!("{key} and {key}_file are both given");
        return Err(config_failure(problem, place, "remove one of the two"));
    }
    let text = std::fs::read_to_string(&file.written).map_err(|error| {
        let problem = format!("{key}_file: cannot read {}: {error}", file.written);
        config_failure(problem, place, "name a file that outjet may read")
    })?;
    *value = Some(Given {
        written: text.trim_end_matches(['\r', '\n']).to_owned(),
        origin: file.origin.clone(),
    });
    Ok(())
}
