//! `outjet check`: every prerequisite in Postgres, passed or failed, each failure with its fix.

use std::io;

use tokio_postgres::Client;

use super::{Out, unwritten};
use crate::config::Config;
use crate::error::{Disposition, Failure, Problem};
use crate::guard::Source;
use crate::pg::catalog::Facts;
use crate::pg::control::Control;
use crate::pg::params::Params;
use crate::pg::replication::Session;
use crate::preflight::{self, Check, Options, Verdict};
use crate::route;
use crate::sink::jetstream;

/// How outjet's connections call themselves; instances may add to it.
const APPLICATION_NAME: &str = "outjet";

/// Checks Postgres, then NATS, and writes what was found. True if nothing failed.
pub async fn check_all(config: &Config, params: &Params, out: Out<'_>) -> Result<bool, Failure> {
    let options = config.preflight_options();
    // Both may be asked for even where the other cannot be reached.
    let (mut checks, slot) = match Control::connect(params).await {
        Ok(control) => check(control.client(), &options).await?,
        Err(error) => (unreachable(error.failure(params)), None),
    };
    if checks.iter().all(|check| check.failure().is_none()) {
        checks.push(replication(params).await);
    }
    checks.extend(nats(config, slot).await?);
    write(&checks, out).map_err(unwritten)
}

/// Whether a replication session can be opened: pg_hba and poolers may refuse just that.
async fn replication(params: &Params) -> Check {
    let verdict = match Session::connect(params, &[]).await {
        Ok(session) => {
            session.close().await;
            Verdict::Pass("a replication connection is let in".to_owned())
        }
        Err(error) => Verdict::Fail(error.failure(params)),
    };
    Check {
        group: "server",
        name: "replication",
        verdict,
    }
}

/// NATS and the stream; `source` is who we would write as.
async fn nats(config: &Config, source: Option<Source>) -> Result<Vec<Check>, Failure> {
    let mut options = config.sink_options();
    let creates = options.stream.create;
    options.stream.create = false;
    let name = options.stream.name.clone();
    let check = |group, name, verdict| Check {
        group,
        name,
        verdict,
    };
    let sample = config.sample_subject()?;
    let found = jetstream::inspect(&options).await.and_then(|found| {
        source
            .iter()
            .try_for_each(|source| found.check_writer(source))
            .map(|()| found)
    });
    Ok(match found {
        Ok(found) => {
            let mut checks = vec![
                check("nats", "reachable", Verdict::Pass(options.nats.display())),
                check("stream", "exists", Verdict::Pass(found.summary())),
                check("stream", "subjects", covers(&found, &sample, &options)),
            ];
            let warn = |warning: &&'static str| {
                let fix = format!("`nats stream edit {name}`, if that is not what you want");
                let problem =
                    Problem::new(format!("stream {name}: {warning}"), "as configured", fix);
                check("stream", "safety", Verdict::Warn(problem))
            };
            checks.extend(found.warnings.iter().map(warn));
            checks
        }
        Err(jetstream::Error::StreamMissing(_)) if creates => {
            let created = format!("stream {name} is missing; setup and run create it");
            vec![
                check("nats", "reachable", Verdict::Pass(options.nats.display())),
                check("stream", "exists", Verdict::Pass(created)),
            ]
        }
        Err(error) => {
            let (group, what) = match &error {
                jetstream::Error::OtherSource { .. } => ("stream", "writer"),
                jetstream::Error::StreamMissing(_) | jetstream::Error::StreamRefused { .. } => {
                    ("stream", "exists")
                }
                _ => ("nats", "reachable"),
            };
            vec![check(group, what, Verdict::Fail(error.failure(&options)))]
        }
    })
}

/// Whether the stream listens on what the template makes.
fn covers(found: &jetstream::Inspection, sample: &str, options: &jetstream::Options) -> Verdict {
    if found
        .subjects
        .iter()
        .any(|pattern| route::matches(pattern, sample))
    {
        return Verdict::Pass(found.subjects.join(", "));
    }
    let uncovered = jetstream::Error::Uncovered {
        name: options.stream.name.clone(),
        subjects: found.subjects.join(", "),
        subject: sample.to_owned(),
    };
    Verdict::Fail(uncovered.failure(options))
}

/// Reads and judges everything in Postgres; also says who we would write as.
pub async fn check(
    client: &Client,
    options: &Options,
) -> Result<(Vec<Check>, Option<Source>), Failure> {
    let names = options.table_names();
    let facts = Facts::read(client, &options.slot, &options.publication, &names)
        .await
        .map_err(|error| error.failure())?;
    let mut checks = vec![Check {
        group: "server",
        name: "reachable",
        verdict: Verdict::Pass(format!(
            "connected to {} as {}",
            facts.server.database, facts.server.role
        )),
    }];
    let judged = preflight::judge(&facts, options);
    checks.extend(judged.into_iter().map(|check| led(check, &facts)));
    // The timeline is not compared.
    let system = facts.server.system_identifier;
    let source = Source {
        system,
        timeline: 0,
        slot: options.slot.clone(),
    };
    Ok((checks, Some(source)))
}

/// The only check there is when the server cannot be reached or refuses us.
pub fn unreachable(failure: Failure) -> Vec<Check> {
    vec![Check {
        group: "server",
        name: "reachable",
        verdict: Verdict::Fail(failure),
    }]
}

/// Writes one line for each check, three for what is wrong. True if nothing failed.
pub fn write(checks: &[Check], out: Out<'_>) -> io::Result<bool> {
    for check in checks {
        let place = format!("{} {}", check.group, check.name);
        match &check.verdict {
            Verdict::Pass(found) => writeln!(out, "ok    {place:<20}  {found}")?,
            Verdict::Warn(problem) => writeln!(out, "warn  {place:<20}  {}", indented(problem))?,
            Verdict::Fail(failure) => {
                writeln!(out, "FAIL  {place:<20}  {}", indented(&failure.problem))?;
            }
        }
    }
    Ok(checks.iter().all(|check| check.failure().is_none()))
}

fn indented(problem: &Problem) -> String {
    problem.to_string().replace('\n', "\n      ")
}

/// A slot that another outjet holds is as it should be: there is a leader.
fn led(check: Check, facts: &Facts) -> Check {
    let standby = |failure: &&Failure| failure.disposition == Disposition::Standby;
    let Some(failure) = check.failure().filter(standby) else {
        return check;
    };
    let holder = facts.slot.as_ref().and_then(|slot| slot.holder.as_ref());
    let name = holder.and_then(|holder| holder.application_name.as_deref());
    let verdict = match (holder, name) {
        (Some(holder), Some(name)) if name.starts_with(APPLICATION_NAME) => {
            Verdict::Pass(format!("led by {holder}"))
        }
        // Nobody to be seen: it ended between two looks.
        (None, _) => Verdict::Pass(failure.problem.cause.clone()),
        (Some(_), _) => Verdict::Warn(failure.problem.clone()),
    };
    Check { verdict, ..check }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::catalog::Holder;
    use crate::preflight::tests::{facts, options};

    fn text(facts: &Facts) -> (String, bool) {
        let checks: Vec<Check> = preflight::judge(facts, &options())
            .into_iter()
            .map(|check| led(check, facts))
            .collect();
        let mut out = Vec::new();
        let passed = write(&checks, &mut out).expect("memory takes everything");
        (String::from_utf8(out).expect("text"), passed)
    }

    fn held_by(application_name: &str) -> Facts {
        let mut facts = facts();
        if let Some(slot) = &mut facts.slot {
            slot.active = true;
            slot.holder = Some(Holder {
                pid: 7,
                application_name: Some(application_name.to_owned()),
                client_addr: None,
                since: None,
            });
        }
        facts
    }

    #[test]
    fn slot_that_another_outjet_holds_passes() {
        let (text, passed) = text(&held_by("outjet@host-a"));
        let line = "ok    slot holder           led by pid 7, application \"outjet@host-a\"\n";
        assert!(text.ends_with(line), "{text}");
        assert!(passed);
    }

    #[test]
    fn slot_that_a_stranger_holds_is_warned_about() {
        let (text, passed) = text(&held_by("Debezium Streaming"));
        assert!(
            text.contains("warn  slot holder           Replication slot"),
            "{text}"
        );
        assert!(passed);
    }

    #[test]
    fn failure_has_three_lines_and_fails_the_command() {
        let mut facts = facts();
        facts.server.in_recovery = true;
        let (text, passed) = text(&facts);
        let lines = "FAIL  server primary        The server is a standby\n        \
                     cause: pg_is_in_recovery() is true; outjet streams from the primary\n        \
                     fix:   Name the primary";
        assert!(text.contains(lines), "{text}");
        assert!(!passed);
    }
}
