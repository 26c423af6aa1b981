//! What a slot that is kept will send: looked at without consuming it, and left to it.

use bytes::Bytes;
use postgres_protocol::escape::escape_literal;
use tokio_postgres::Client;

use crate::command::stored::execute;
use crate::error::Failure;
use crate::event::assemble::{self, Assembler, Step};
use crate::lead::relay;
use crate::lsn::Lsn;
use crate::pg::catalog::StatementError;
use crate::pg::name::quote;
use crate::pg::params::Params;
use crate::preflight;

/// Changes that are read at once.
const FETCH_CHANGES: usize = 64;

const DOING: &str = "look into the slot";

/// The slot, seen from the transaction with the snapshot.
pub(super) struct Coming<'a> {
    pub(super) client: &'a Client,
    pub(super) params: &'a Params,
    pub(super) wanted: &'a preflight::Options,
}

impl Coming<'_> {
    /// Notes the ids of what it sends of all that was committed before `end`, and perhaps of a
    /// little more. Before the stream is read: what is confirmed in between is in there.
    pub(super) async fn note(&self, options: &assemble::Options, end: Lsn) -> Result<(), Failure> {
        let create = "CREATE TEMP TABLE outjet_coming (id text NOT NULL) ON COMMIT DROP";
        execute(self.client, "make a temporary table", create).await?;
        let slot = escape_literal(&self.wanted.slot);
        let publication = escape_literal(&quote(&self.wanted.publication));
        let declare = format!(
            "DECLARE coming NO SCROLL CURSOR FOR SELECT data FROM \
             pg_logical_slot_peek_binary_changes({slot}, '{end}', NULL, 'proto_version', '1', \
             'publication_names', {publication}, 'messages', 'true')"
        );
        execute(self.client, DOING, &declare).await?;
        let mut assembler = Assembler::new(options.clone());
        let fetch = format!("FETCH {FETCH_CHANGES} FROM coming");
        loop {
            let fetched = self.client.query_typed(&fetch, &[]).await;
            let fetched = fetched.map_err(failure)?;
            if fetched.is_empty() {
                return execute(self.client, DOING, "CLOSE coming").await;
            }
            let mut ids = Vec::with_capacity(FETCH_CHANGES);
            for row in fetched {
                let change: &[u8] = row.try_get(0).map_err(failure)?;
                let step = assembler.take(&Bytes::copy_from_slice(change));
                let step = step.map_err(|error| {
                    let error = relay::Error::Assemble(error);
                    error.failure(self.params)
                })?;
                ids.extend(id(step));
            }
            let insert = "INSERT INTO pg_temp.outjet_coming SELECT unnest($1::text[])";
            self.client
                .execute(insert, &[&ids])
                .await
                .map_err(failure)?;
        }
    }

    /// Counts what was noted as stored. In another house, what the stream has of it would be
    /// published twice: then the slot is of no use, nothing is counted, and it is said how many
    /// that are.
    pub(super) async fn count_as_stored(&self, other_house: bool) -> Result<u64, Failure> {
        if other_house {
            let count = "SELECT count(*) FROM pg_temp.outjet_coming c WHERE EXISTS \
                         (SELECT FROM pg_temp.outjet_stored s WHERE s.id = c.id)";
            let row = self.client.query_one(count, &[]).await.map_err(failure)?;
            let doubled: i64 = row.try_get(0).map_err(failure)?;
            if doubled > 0 {
                return Ok(doubled.unsigned_abs());
            }
        }
        let insert = "INSERT INTO pg_temp.outjet_stored SELECT id, 0, true \
                      FROM pg_temp.outjet_coming; ANALYZE pg_temp.outjet_stored";
        execute(self.client, DOING, insert).await?;
        Ok(0)
    }
}

/// The id of an event that comes for the first time.
fn id(step: Step) -> Option<String> {
    let event = match step {
        Step::Event(event) => event,
        Step::Rejected(rejection) => rejection.into_event(),
        Step::Nothing | Step::Begin(_) | Step::Commit(_) => return None,
    };
    (!event.replayed).then_some(event.id)
}

fn failure(error: tokio_postgres::Error) -> Failure {
    StatementError::new(DOING, error).failure()
}
