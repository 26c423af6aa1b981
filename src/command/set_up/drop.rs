//! `outjet drop`: slot and publication together, as a slot without its publication is no more good,
//! and the record beside the stream, which would keep `outjet setup` from making another.
//! Refuses while events would be lost by it. Leaves the schema and its rows alone.

use std::io::IsTerminal;

use tokio_postgres::Client;

use crate::cli;
use crate::command::{Out, connect, unwritten};
use crate::config::Config;
use crate::error::{Exit, Failure, Problem};
use crate::event::lineage::Source;
use crate::lead::record;
use crate::pg::catalog::{self, Facts, Server, Slot, Unconfirmed};
use crate::pg::ddl;
use crate::pg::params::Params;
use crate::preflight::Options;
use crate::sink::jetstream::{Error, Options as Sink, Shelf};

/// Changes that are looked at for an unconfirmed event; more is too much to look through (14 shows
/// two for each transaction that touches other tables).
const CHANGES_MAX: i32 = 100_000;

/// Asks, unless told not to, and drops.
pub async fn drop_all(
    typed: &cli::Drop,
    config: &Config,
    params: &Params,
    out: Out<'_>,
) -> Result<(), Failure> {
    let options = config.preflight_options();
    if !typed.yes && !agreed(&options, params)? {
        return writeln!(out, "nothing was dropped").map_err(unwritten);
    }
    let control = connect(params).await?;
    let client = control.client();
    let done = async {
        drop(client, &options, typed.force, out).await?;
        let server = Server::read(client).await;
        server.map_err(|error| error.failure())
    };
    let done = done.await;
    control.close().await;
    let ours = Source {
        system: done?.system_identifier,
        timeline: 0,
        slot: options.slot,
    };
    drop_record(&config.sink_options(), &ours, out).await
}

/// Removes the record of the slot, last: a record without its slot is in nobody's way but
/// `outjet setup`'s, and typing `outjet drop` again removes it.
async fn drop_record(options: &Sink, ours: &Source, out: Out<'_>) -> Result<(), Failure> {
    let what = format!("record of slot {}", ours.slot);
    match Box::pin(remove_record(options, ours)).await {
        Ok(Ok((true, bucket))) => writeln!(out, "dropped  {what} in bucket {bucket}"),
        Ok(Ok((false, bucket))) => writeln!(out, "absent   {what} in bucket {bucket}"),
        Ok(Err(why)) => writeln!(out, "kept     {what}: {why}"),
        Err(Error::StreamMissing(_)) => writeln!(out, "absent   {what}: there is no stream"),
        Err(error) => {
            let Problem { problem, cause, .. } = error.failure(&options.of_stream()).problem;
            writeln!(
                out,
                "kept     {what}, if there is one: {problem}: {cause}; to remove it, `outjet drop` \
                 again"
            )
        }
    }
    .map_err(unwritten)
}

/// Whether there was one, and in which bucket; or why it stays.
async fn remove_record(
    options: &Sink,
    ours: &Source,
) -> Result<Result<(bool, String), String>, Error> {
    let mut options = options.of_stream();
    options.stream.create = false;
    let shelf = Shelf::open(&options, ours).await?;
    let kept = shelf.read().await?.filter(|kept| !kept.bytes.is_empty());
    let Some(kept) = kept else {
        return Ok(Ok((false, shelf.name())));
    };
    if let Some(record) = record::read(&kept).filter(|it| it.source.system != ours.system) {
        return Ok(Err(format!(
            "it is of the cluster with system identifier {}",
            record.source.system
        )));
    }
    shelf.remove().await?;
    Ok(Ok((true, shelf.name())))
}

/// Asks on the terminal; without one there is nobody to ask.
fn agreed(options: &Options, params: &Params) -> Result<bool, Failure> {
    let Options {
        slot, publication, ..
    } = options;
    if !std::io::stdin().is_terminal() {
        let problem = Problem::new(
            "dropping wants an answer, and there is no terminal to ask on",
            "standard input is not a terminal",
            "type `outjet drop --yes` if you mean it",
        );
        return Err(Failure::halt(Exit::Usage, problem));
    }
    eprint!("Drop slot {slot} and publication {publication} at {params}? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(unwritten)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Drops the slot and the publication, as far as they exist. `force` drops a slot with unconfirmed
/// events, never one in use.
pub async fn drop(
    client: &Client,
    options: &Options,
    force: bool,
    out: Out<'_>,
) -> Result<(), Failure> {
    let facts = Facts::read(client, &options.slot, &options.publication, &[])
        .await
        .map_err(|error| error.failure())?;
    let mut drops = Vec::new();
    if let Some(slot) = &facts.slot {
        refuse_foreign(slot, &facts)?;
        refuse_active(slot)?;
        if !force {
            refuse_unconfirmed(client, slot, &facts).await?;
        }
        drops.push(ddl::drop_slot(&slot.name));
    }
    if facts.publication.is_some() {
        // First within the transaction: whoever may not drop it must not lose the slot, which goes
        // at once and for good.
        drops.insert(0, ddl::drop_publication(&options.publication));
    }
    let slot = format!("replication slot {}", options.slot);
    let publication = format!("publication {}", options.publication);
    let what = format!("{slot} and {publication}");
    execute(client, &what, &drops.concat()).await?;
    let parts = [
        (facts.slot.is_some(), slot),
        (facts.publication.is_some(), publication),
    ];
    for (existed, what) in parts {
        let done = if existed { "dropped" } else { "absent " };
        writeln!(out, "{done}  {what}").map_err(unwritten)?;
    }
    if facts.server.schema_installed {
        let hint = "kept     schema outbox, with its rows; sql/uninstall.sql removes it";
        writeln!(out, "{hint}").map_err(unwritten)?;
    }
    Ok(())
}

fn refuse_foreign(slot: &Slot, facts: &Facts) -> Result<(), Failure> {
    let (plugin, database) = (slot.plugin.as_deref(), slot.database.as_deref());
    if plugin == Some("pgoutput") && database == Some(&facts.server.database) {
        return Ok(());
    }
    Err(Failure::halt(
        Exit::CheckFailed,
        Problem::new(
            format!("replication slot \"{}\" is not outjet's", slot.name),
            format!(
                "its output plugin is {}, its database {}; ours are pgoutput and {}",
                plugin.unwrap_or("none"),
                database.unwrap_or("none"),
                facts.server.database
            ),
            "name outjet's slot in postgres.slot, and its database in DATABASE_URL",
        ),
    ))
}

fn refuse_active(slot: &Slot) -> Result<(), Failure> {
    if !slot.active {
        return Ok(());
    }
    let holder = match &slot.holder {
        Some(holder) => format!("held by {holder}"),
        None => "held by a backend that is just ending".to_owned(),
    };
    Err(Failure::halt(
        Exit::CheckFailed,
        Problem::new(
            format!("replication slot \"{}\" is in use", slot.name),
            holder,
            "stop every outjet first, then `outjet drop`",
        ),
    ))
}

/// Looks into the slot. It may be dropped only if all of what it holds was seen, and no event.
async fn refuse_unconfirmed(client: &Client, slot: &Slot, facts: &Facts) -> Result<(), Failure> {
    let name = &slot.name;
    let refused = |cause: String| {
        Failure::halt(
            Exit::CheckFailed,
            Problem::new(
                format!("dropping replication slot \"{name}\" may lose events"),
                cause,
                "`outjet run` publishes them; or, to lose them, `outjet drop --force`",
            ),
        )
    };
    if slot.lost() {
        return Err(refused(
            "it is lost, so that nobody knows what it held".into(),
        ));
    }
    let Some(publication) = &facts.publication else {
        return Err(refused(
            "its publication is missing, so that nobody knows what it holds".into(),
        ));
    };
    let found = catalog::unconfirmed(client, name, &publication.name, CHANGES_MAX)
        .await
        .map_err(|error| refused(format!("looking into it failed: {}", error.cause())))?;
    judge(found).map_or(Ok(()), |cause| Err(refused(cause)))
}

/// Whether a slot that nobody uses holds no event. `false` also if that cannot be told.
pub(in crate::command) async fn holds_nothing(
    client: &Client,
    slot: &str,
    publication: &str,
) -> bool {
    let found = catalog::unconfirmed(client, slot, publication, CHANGES_MAX).await;
    found.is_ok_and(|found| judge(found).is_none())
}

/// Why not to drop a slot that holds this.
fn judge(found: Unconfirmed) -> Option<String> {
    let all_seen = found.changes < i64::from(CHANGES_MAX);
    match (found.events, all_seen) {
        (0, true) => None,
        (0, false) => Some(format!(
            "it holds more than {CHANGES_MAX} changes, too many to look through"
        )),
        (events, true) => Some(format!("{events} events are not confirmed")),
        (events, false) => Some(format!("more than {events} events are not confirmed")),
    }
}

async fn execute(client: &Client, what: &str, sql: &str) -> Result<(), Failure> {
    let done = client.batch_execute(sql).await;
    done.map_err(|error| catalog::StatementError::new(format!("drop {what}"), error).failure())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_is_free_of_events_only_if_all_of_it_was_seen() {
        let judge = |changes, events| judge(Unconfirmed { changes, events });
        let full = i64::from(CHANGES_MAX);
        assert_eq!(judge(0, 0), None);
        assert_eq!(judge(full - 1, 0), None);
        assert!(judge(full, 0).is_some_and(|cause| cause.contains("too many")));
        assert_eq!(judge(9, 3).as_deref(), Some("3 events are not confirmed"));
        assert!(judge(full, 3).is_some_and(|cause| cause.starts_with("more than 3")));
    }
}
