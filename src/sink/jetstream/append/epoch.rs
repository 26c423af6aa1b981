//! What an epoch has: one connection with all that stands and falls with it.

use std::pin::Pin;

use tokio::time::Instant;

use super::super::aside::bodies::Bodies;
use super::super::aside::delayed::Delayed;
use super::super::aside::letters::Letters;
use super::super::bucket::Bucket;
use super::super::client::{Client, Link, Streams};
use super::super::error::Error;
use super::super::headers::Composed;
use super::super::tail::Search;
use super::ring::Passed;
use super::witness::Witness;
use crate::event::Rejected;
use crate::nats::Answers;

/// One connection with its chain.
pub(crate) struct Epoch {
    pub(crate) link: Link,
    pub(crate) client: Client,
    pub(crate) streams: Streams,
    /// What is kept beside the stream; or why nothing is.
    pub(crate) bucket: Result<Bucket, String>,
    /// Where the answers to a write come.
    pub(crate) written: Option<Answers>,
    pub(crate) tail: Search,
    /// The waiting event is being set aside, and nothing behind it is sent.
    pub(crate) errand: Option<Errand>,
    /// What the waiting event is set aside for, once all before it is stored.
    pub(crate) unsendable: Option<Error>,
    pub(crate) letters: Option<Letters>,
    /// Away with an errand, now and then.
    pub(crate) bodies: Option<Bodies>,
    /// So is this. Opened for the first event that is delayed.
    pub(crate) delayed: Option<Delayed>,
    /// Where the stream ended when the epoch began.
    pub(crate) last_sequence: u64,
    /// What stood there.
    pub(crate) newest: Witness,
    /// The messages of the events that are staged, without the headers of a batch.
    pub(crate) staged: Vec<Composed>,
    /// When the last acknowledgement came, or the first event went out after a pause.
    pub(crate) progress_at: Instant,
}

/// Sets the waiting event aside. It takes along what it needs, and brings it back.
pub(crate) type Errand = Pin<Box<dyn Future<Output = Back> + Send>>;

/// What comes of an errand.
pub(crate) enum Back {
    /// Whether its body is in the bucket; or it is unsendable as before.
    Detached(Box<Bodies>, Result<bool, Error>, Error),
    /// It is a dead letter, for this reason.
    Buried(Result<(), Error>, Rejected),
    /// How it was settled.
    Delayed(Option<Delayed>, Result<Passed, Error>),
}

impl Epoch {
    /// Reads once more where the streams end.
    pub(crate) async fn refresh(&mut self) -> Result<(), Error> {
        let Self {
            link,
            client,
            streams,
            ..
        } = self;
        let api = &client.api;
        let state = async |name: &str| {
            let found = api.stream(name).await;
            let found = found.map_err(|error| Error::unanswered("read the stream", error))?;
            let found =
                found.map_err(|error| Error::Broken(format!("read the stream: {error}")))?;
            Ok::<_, Error>(found.state)
        };
        let read = Box::pin(state(&streams.info.config.name));
        streams.info.state = link.during(read).await?;
        self.last_sequence = streams.info.state.last_sequence;
        if let Some((_, info)) = &mut streams.letters {
            info.state = link.during(Box::pin(state(&info.config.name))).await?;
            self.letters = Some(Letters::new(info, link.message_bytes_max(info)));
        }
        Ok(())
    }
}
