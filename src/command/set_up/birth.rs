//! What `outjet setup` records beside the stream once it has made a slot, in nobody's term: that
//! the slot was made for this stream. One that was read already and comes without it, to a stream
//! that has never held a message, was made for another one
//! ([`crate::lead::watermark::judge_unrecorded`]).

use bytes::Bytes;
use tokio_postgres::Client;

use crate::command::facts::confirmed;
use crate::config::Config;
use crate::error::Failure;
use crate::event::lineage::{Lineage, Source};
use crate::lead::record;
use crate::lead::watermark::{Record, Switch};
use crate::lsn::Lsn;
use crate::pg;
use crate::pg::params::Params;
use crate::pg::replication::Session;
use crate::sink::Write;
use crate::sink::jetstream::{Error, Shelf};

/// Records where a slot begins that was made just now. Without a bucket nothing is recorded.
pub(super) async fn record(
    client: &Client,
    config: &Config,
    params: &Params,
) -> Result<(), Failure> {
    let slot = &config.postgres.slot;
    let (session, lineage) = identify(params, slot).await?;
    session.close().await;
    let begins_at = confirmed(client, slot).await?.unwrap_or(Lsn::ZERO);
    let history: Vec<Switch> = lineage.ended().iter().map(Switch::from).collect();
    let options = config.sink_options();
    let written = async {
        let shelf = Box::pin(Shelf::open(&options, lineage.source())).await?;
        let kept = shelf.read().await?;
        if kept
            .as_ref()
            .and_then(record::read)
            .is_some_and(|it| it.term > 0)
        {
            return Ok(());
        }
        let (stream_created, server_id) = shelf.stream_created();
        let born = Record {
            stream_created,
            server_id,
            ..Record::blank(lineage.source(), &history, begins_at)
        };
        let bytes = serde_json::to_vec(&born).expect("a record is JSON");
        let write = Write {
            expected: kept.map_or(0, |kept| kept.revision),
            bytes: Bytes::from(bytes),
        };
        // Another copy that sets up, or leads by now, has written the same or more.
        shelf.write(&write).await.map(drop)
    };
    match written.await {
        Err(Error::BucketDenied(_) | Error::PublishDenied(_)) => Ok(()),
        written => written.map_err(|error| error.failure(&options.of_stream())),
    }
}

/// A replication session, and who we are there.
pub(in crate::command) async fn identify(
    params: &Params,
    slot: &str,
) -> Result<(Session, Lineage), Failure> {
    let failure = |error: pg::Error| error.failure(params);
    let session = Session::connect(params, &[]).await;
    let mut session = session.map_err(failure)?;
    let system = session.identify_system().await.map_err(failure)?;
    let history = session.timeline_history(system.timeline).await;
    let ended = history.map_err(failure)?.into_iter();
    let ended = ended.map(|switch| (switch.timeline, switch.ended_at.as_u64()));
    let source = Source {
        system: system.id,
        timeline: system.timeline,
        slot: slot.to_owned(),
    };
    Ok((session, Lineage::new(source, ended.collect())))
}
