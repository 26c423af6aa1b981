//! `outjet check`: every prerequisite in Postgres, passed or failed, each failure with its fix.

use std::io;
use std::time::Duration;

use tokio_postgres::Client;

use crate::command::{Out, facts, unwritten};
use crate::config::Config;
use crate::error::{Disposition, Exit, Failure, Problem};
use crate::event::lineage::Source;
use crate::event::route;
use crate::lead::traces::Traces;
use crate::pg::catalog::{self, Facts};
use crate::pg::control::Control;
use crate::pg::params::Params;
use crate::pg::replication::Session;
use crate::pg::{self, DIRECT};
use crate::preflight::{self, Check, Options, Verdict};
use crate::sink::jetstream;

/// Checks Postgres, then NATS, and writes what was found. True if nothing failed.
pub async fn check_all(config: &Config, params: &Params, out: Out<'_>) -> Result<bool, Failure> {
    let options = config.preflight_options();
    // Both may be asked for even where the other cannot be reached.
    let (mut checks, slot) = match Control::connect(params).await {
        Ok(control) => {
            let found = check(control.client(), &options).await;
            let unfed = slot_unfed(control.client(), config).await;
            control.close().await;
            let (checks, slot) = found?;
            (but_unfed(checks, unfed?), slot)
        }
        Err(error) => (unreachable(error.failure(params)), None),
    };
    if checks.iter().all(|check| check.failure().is_none()) {
        checks.push(replication(params).await);
    }
    checks.extend(nats(config, slot).await?);
    write(&checks, out).map_err(unwritten)
}

/// Why `outjet setup` makes no slot, where there is none; or why nobody leads with the one that
/// there is, as far as the stream says it.
async fn slot_unfed(client: &Client, config: &Config) -> Result<Option<Failure>, Failure> {
    let wanted = config.preflight_options();
    let facts = facts::read(client, &wanted).await?;
    let ours = facts::source(&facts, &wanted);
    let traces = Box::pin(Traces::find(&config.sink_options(), &ours)).await;
    let Some(slot) = &facts.slot else {
        return Ok(match traces {
            Ok(traces) => traces.slot_gone(&facts, &wanted),
            Err(error) => Some(Traces::unknown(&wanted, &error)),
        });
    };
    // What is wrong with NATS is told by its own checks.
    let (Ok(traces), Some(start)) = (traces, slot.confirmed_flush) else {
        return Ok(None);
    };
    let used = catalog::slot_used(client, &slot.name).await;
    let used = used.map_err(|error| error.failure())?;
    Ok(traces
        .slot_unknown(&slot.name, start)
        .filter(|_| used && !slot.active))
}

/// The checks with a better word for the slot.
fn but_unfed(mut checks: Vec<Check>, unfed: Option<Failure>) -> Vec<Check> {
    let slot = |check: &&mut Check| (check.group, check.name) == ("slot", "exists");
    if let Some(unfed) = unfed
        && let Some(check) = checks.iter_mut().find(slot)
    {
        check.verdict = Verdict::Fail(unfed);
    }
    checks
}

/// Whether a replication session can be opened: pg_hba and poolers may refuse just that.
async fn replication(params: &Params) -> Check {
    let pooled: Result<bool, pg::Error> = async {
        let mut session = Session::connect(params, &[]).await?;
        let pooled = session.pooled().await?;
        session.close().await;
        Ok(pooled)
    }
    .await;
    let verdict = match pooled {
        Ok(false) => Verdict::Pass("a replication connection is let in".to_owned()),
        Ok(true) => Verdict::Warn(pooler(params)),
        Err(error) => Verdict::Fail(error.failure(params)),
    };
    Check {
        group: "server",
        name: "replication",
        verdict,
    }
}

/// One that passes replication on, as PgBouncer does from 1.23 on. It can work.
fn pooler(params: &Params) -> Problem {
    Problem::new(
        format!("a connection pooler answers at {params}"),
        "the process that its login names is not the one that serves us; what is slow or restarted \
         there cuts outjet off, and may keep the slot from a copy that takes over",
        DIRECT,
    )
}

/// A stream beside the main one; `judge` says how bad it is if it cannot be used.
async fn beside(
    name: &'static str,
    mut options: jetstream::Options,
    judge: impl Fn(jetstream::Error) -> Verdict,
) -> Check {
    let creates = std::mem::take(&mut options.stream.create);
    let stream = &options.stream.name;
    let verdict = match jetstream::inspect(&options).await {
        Ok(found) => Verdict::Pass(found.summary()),
        Err(jetstream::Error::StreamMissing(_)) if creates => Verdict::Pass(format!(
            "stream {stream} is missing; setup and run create it"
        )),
        Err(error) => judge(error),
    };
    Check {
        group: "stream",
        name,
        verdict,
    }
}

/// The stream of what is delayed. Whoever delays nothing needs none; but the leader must be allowed
/// to see whether it is there.
async fn delayed(all: &jetstream::Options) -> Check {
    use jetstream::Error::{InboxDenied, PublishDenied};
    let judge = |error: jetstream::Error| match error {
        PublishDenied(_) | InboxDenied(_) => Verdict::Fail(error.failure(all)),
        error => Verdict::Warn(error.failure(all).problem),
    };
    beside("delayed events", all.of_delayed(), judge).await
}

/// Whether the stream drops what has come to its end.
fn expiring(found: &jetstream::Inspection) -> Check {
    let name = &found.name;
    let verdict = match found.expires {
        true => Verdict::Pass("dropped at expires_at".to_owned()),
        false => Verdict::Warn(Problem::new(
            format!("stream {name} keeps events beyond their expires_at"),
            "it was made without allow_msg_ttl, or the server is older than 2.11",
            format!("`nats stream edit {name} --allow-msg-ttl`, if rows have an expires_at"),
        )),
    };
    Check {
        group: "stream",
        name: "expiring events",
        verdict,
    }
}

/// The bucket of the record. outjet works without it, so that nothing of it is a failure.
async fn bucket(all: &jetstream::Options, source: Option<&Source>) -> Vec<Check> {
    let mut options = all.of_stream();
    let creates = std::mem::take(&mut options.stream.create);
    let without = "without it outjet searches the stream after a restart, and what has vanished \
                   from there may be stored twice";
    let warn = |problem: String, fix: String| Verdict::Warn(Problem::new(problem, without, fix));
    let denied = |error: jetstream::Error| {
        let problem = error.failure(all).problem;
        Verdict::Warn(Problem {
            cause: format!("{}; {without}", problem.cause),
            ..problem
        })
    };
    let found = match jetstream::inspect_bucket(&options).await {
        Ok(found) => found,
        Err(error) => return vec![record_check(denied(error))],
    };
    let name = &found.name;
    if let Err(why) = &found.created {
        let verdict = match (found.denied, creates) {
            (true, _) => denied(jetstream::Error::BucketDenied(why.clone())),
            (false, true) => {
                Verdict::Pass(format!("bucket {name} is missing; setup and run create it"))
            }
            (false, false) => warn(why.clone(), format!("`{}`", found.command)),
        };
        return vec![record_check(verdict)];
    }
    let warned = found.warnings.iter().map(|warning| {
        let fix =
            format!("`nats stream edit KV_{name}`, so that the record is as safe as the stream");
        record_check(warn(format!("bucket {name}: {warning}"), fix))
    });
    let warned = warned.collect();
    let Some(source) = source else {
        return warned;
    };
    let tried = match Box::pin(jetstream::Shelf::open(&options, source)).await {
        Ok(shelf) => shelf.try_rights().await,
        Err(error) => Err(error),
    };
    let verdict = match tried {
        Ok(()) => Verdict::Pass(format!("bucket {name}, may be written and read")),
        Err(error) => denied(error),
    };
    [vec![record_check(verdict)], warned].concat()
}

fn record_check(verdict: Verdict) -> Check {
    Check {
        group: "stream",
        name: "record",
        verdict,
    }
}

/// Whether the stream knows an id for as long as a leader that hangs may still deliver it.
fn remembers(found: &jetstream::Inspection, wanted: Duration) -> Option<Check> {
    let (name, window) = (&found.name, found.duplicate_window);
    if !found.vanishing || window >= wanted {
        return None;
    }
    let problem = Problem::new(
        format!("stream {name} forgets the ids of messages after {window:?}"),
        "its messages may vanish (they expire, are consumed, or fall to a limit); what a leader \
         that hangs still delivers then is stored twice, unless its id is known",
        format!(
            "`nats stream edit {name} --dupe-window {}s`",
            wanted.as_secs()
        ),
    );
    Some(Check {
        group: "stream",
        name: "ids",
        verdict: Verdict::Warn(problem),
    })
}

/// NATS and the stream; `source` is who we would write as.
async fn nats(config: &Config, source: Option<Source>) -> Result<Vec<Check>, Failure> {
    let all = config.sink_options();
    let mut options = all.of_stream();
    let creates = options.stream.create;
    options.stream.create = false;
    let name = options.stream.name.clone();
    let check = |group, name, verdict| Check {
        group,
        name,
        verdict,
    };
    let pattern = config.subject_pattern()?;
    let found = match jetstream::inspect(&options).await {
        Ok(found) => written_by(found, source.as_ref(), &all).await,
        Err(error) => Err(error),
    };
    Ok(match found {
        Ok(found) => {
            let mut checks = vec![
                check("nats", "reachable", Verdict::Pass(options.nats.display())),
                rights(&all, &pattern).await,
                check("stream", "exists", Verdict::Pass(found.summary())),
                check(
                    "stream",
                    "subjects",
                    covers(&found.subjects, &pattern, &options),
                ),
            ];
            let warn = |warning: &&'static str| {
                let fix = format!("`nats stream edit {name}`, if that is not what you want");
                let problem =
                    Problem::new(format!("stream {name}: {warning}"), "as configured", fix);
                check("stream", "safety", Verdict::Warn(problem))
            };
            checks.extend(found.warnings.iter().map(warn));
            let fail = |error: jetstream::Error| Verdict::Fail(error.failure(&all));
            if all.dead_letters.is_some() {
                checks.push(beside("dead letters", all.of_dead_letters(), fail).await);
            }
            if let Some(bodies) = all.of_bodies() {
                checks.push(beside("bodies", bodies, fail).await);
            }
            if all.delayed.is_some() {
                checks.push(delayed(&all).await);
            }
            checks.push(expiring(&found));
            checks.extend(remembers(&found, config.duplicate_window_min()));
            checks.extend(Box::pin(bucket(&all, source.as_ref())).await);
            checks
        }
        Err(jetstream::Error::StreamMissing(_)) if creates => {
            let created = format!("stream {name} is missing; setup and run create it");
            vec![
                check("nats", "reachable", Verdict::Pass(options.nats.display())),
                check("stream", "exists", Verdict::Pass(created)),
                check("stream", "subjects", will_cover(&options.stream, &pattern)),
            ]
        }
        Err(error) => {
            let (group, what) = failed(&error);
            vec![check(group, what, Verdict::Fail(error.failure(&all)))]
        }
    })
}

/// Refuses what another slot or another cluster writes, unless the record says that ours has taken
/// its place.
async fn written_by(
    found: jetstream::Inspection,
    source: Option<&Source>,
    options: &jetstream::Options,
) -> Result<jetstream::Inspection, jetstream::Error> {
    let Some(ours) = source else {
        return Ok(found);
    };
    let Err(error) = found.check_writer(ours) else {
        return Ok(found);
    };
    let record = Box::pin(Traces::find(options, ours)).await?.record;
    match record.is_some_and(|record| record.source.same_slot(ours)) {
        true => Ok(found),
        false => Err(error),
    }
}

/// Which check it is that fails with this.
fn failed(error: &jetstream::Error) -> (&'static str, &'static str) {
    use jetstream::Error;
    match error {
        Error::OtherSource { .. } | Error::OlderTimeline { .. } => ("stream", "writer"),
        Error::StreamMissing(_) | Error::StreamRefused { .. } => ("stream", "exists"),
        Error::OtherIngress { .. } => ("stream", "ingress"),
        Error::InboxDenied(_) | Error::PublishDenied(_) => ("nats", "permissions"),
        Error::Twins { .. } => ("stream", "answers"),
        _ => ("nats", "reachable"),
    }
}

/// Whether our user may publish, and read what it has published; and whether that is stored once.
async fn rights(options: &jetstream::Options, pattern: &str) -> Check {
    let tried = jetstream::check_rights(options, pattern).await;
    let (group, name) = match &tried {
        Err(twins @ jetstream::Error::Twins { .. }) => failed(twins),
        Ok(_) | Err(_) => ("nats", "permissions"),
    };
    let verdict = match tried {
        Ok(subjects) => Verdict::Pass(format!("may publish to {}", subjects.join(", "))),
        Err(error) => Verdict::Fail(error.failure(options)),
    };
    Check {
        group,
        name,
        verdict,
    }
}

/// Whether the stream listens on what the template makes. What it takes only in part may be all
/// that the rows ask for: nobody knows before they come.
fn covers(subjects: &[String], pattern: &str, options: &jetstream::Options) -> Verdict {
    let (name, listed) = (&options.stream.name, subjects.join(", "));
    if subjects
        .iter()
        .any(|subject| route::contains(subject, pattern))
    {
        return Verdict::Pass(listed);
    }
    let uncovered = jetstream::Error::Uncovered {
        name: name.clone(),
        subjects: listed,
        subject: pattern.to_owned(),
    };
    let Failure { problem, .. } = uncovered.failure(options);
    if subjects
        .iter()
        .any(|subject| route::overlap(subject, pattern))
    {
        let part = format!("stream {name:?} takes only a part of {pattern:?}");
        return Verdict::Warn(Problem {
            problem: part,
            ..problem
        });
    }
    Verdict::Fail(Failure::halt(Exit::Config, problem))
}

/// The same of a stream that is yet to be made.
fn will_cover(stream: &jetstream::StreamOptions, pattern: &str) -> Verdict {
    let listed = stream.subjects.join(", ");
    let mut subjects = stream.subjects.iter();
    if subjects.any(|subject| route::overlap(subject, pattern)) {
        return Verdict::Pass(listed);
    }
    let problem = Problem::new(
        format!("stream.subjects does not cover subject {pattern:?}"),
        format!("stream {:?} would listen on {listed}", stream.name),
        format!("add {pattern:?} to stream.subjects, or change publish.subject"),
    );
    Verdict::Fail(Failure::halt(Exit::Config, problem))
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
    let verdict = match holder {
        Some(holder) if holder.outjet() => Verdict::Pass(format!("led by {holder}")),
        Some(_) => Verdict::Warn(failure.problem.clone()),
        // Nobody to be seen: it ended between two looks.
        None => Verdict::Pass(failure.problem.cause.clone()),
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
        assert!(text.contains(line), "{text}");
        assert!(passed);
    }

    #[test]
    fn slot_that_a_stranger_holds_is_warned_about() {
        let (text, passed) = text(&held_by("Debezium Streaming"));
        assert!(
            text.contains("warn  slot holder           replication slot"),
            "{text}"
        );
        assert!(passed);
    }

    #[test]
    fn failure_has_three_lines_and_fails_the_command() {
        let mut facts = facts();
        facts.server.in_recovery = true;
        let (text, passed) = text(&facts);
        let lines = "FAIL  server primary        the server is a standby\n        \
                     cause: pg_is_in_recovery() is true; outjet streams from the primary\n        \
                     fix:   name the primary";
        assert!(text.contains(lines), "{text}");
        assert!(!passed);
    }
}
