//! What a person meets: values from every source, and the exact text of every complaint.

#[cfg(test)]
mod mistakes;
#[cfg(test)]
mod sources;
#[cfg(test)]
mod values;

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

/// Loads `yaml` as `outjet.yaml`, under `environment` and `--set` flags.
fn load(yaml: &str, environment: &[(&str, &str)], set: &[&str]) -> Result<Config, Failure> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outjet.yaml");
    std::fs::write(&path, yaml).unwrap();
    let environment: BTreeMap<String, String> = environment
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    let overrides: Vec<_> = set
        .iter()
        .map(|set| Override::from_set(set).unwrap())
        .collect();
    let loaded = Config::load(&Sources {
        file: Some(&path),
        searched: &[],
        environment: &environment,
        overrides: &overrides,
    });
    loaded.map_err(|mut failure| {
        // The folder differs from run to run.
        let prefix = format!("{}/", folder.path().display());
        failure.problem.problem = failure.problem.problem.replace(&prefix, "");
        failure.problem.cause = failure.problem.cause.replace(&prefix, "");
        failure
    })
}

fn yaml(yaml: &str) -> Config {
    load(yaml, &[], &[]).unwrap()
}
