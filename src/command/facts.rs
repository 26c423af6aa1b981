//! What Postgres says, read for whoever types a command, and the first thing that is wrong with it.

use tokio_postgres::Client;

use super::{Out, unwritten};
use crate::error::{Disposition, Failure};
use crate::event::lineage::Source;
use crate::lsn::Lsn;
use crate::pg::catalog::{self, Facts, Slot};
use crate::preflight::{Check, Options};

/// A slot in use is no reason not to set up: there is a leader.
pub(super) fn refuse(checks: &[Check]) -> Result<(), Failure> {
    checks
        .iter()
        .filter_map(Check::failure)
        .find(|failure| failure.disposition != Disposition::Standby)
        .map_or(Ok(()), |failure| Err(failure.clone()))
}

/// Of the server, the slot, the publication and the tables.
pub(super) async fn read(client: &Client, options: &Options) -> Result<Facts, Failure> {
    let names = options.table_names();
    Facts::read(client, &options.slot, &options.publication, &names)
        .await
        .map_err(|error| error.failure())
}

/// Creating a slot waits for these, and says nothing.
pub(super) async fn tell_open_writers(client: &Client, out: Out<'_>) -> Result<(), Failure> {
    let writers = catalog::open_writers(client).await;
    for writer in writers.map_err(|error| error.failure())? {
        writeln!(
            out,
            "waiting  for a transaction to end: pid {}, application \"{}\", begun {}",
            writer.pid,
            writer.application_name.unwrap_or_default(),
            writer.since.as_deref().unwrap_or("at an unknown time")
        )
        .map_err(unwritten)?;
    }
    out.flush().map_err(unwritten)
}

/// Who we would write as. The timeline is not known.
pub(super) fn source(facts: &Facts, wanted: &Options) -> Source {
    Source {
        system: facts.server.system_identifier.clone(),
        timeline: 0,
        slot: wanted.slot.clone(),
    }
}

/// Where a slot is confirmed.
pub(super) async fn confirmed(client: &Client, slot: &str) -> Result<Option<Lsn>, Failure> {
    let found = Slot::read(client, slot).await;
    let found = found.map_err(|error| error.failure())?;
    Ok(found.and_then(|slot| slot.confirmed_flush))
}
