//! Whose answer it is. A hub and a leaf node may each have a stream on our subjects. Then both
//! store what is published, and both answer. An acknowledgement of the other one proves nothing
//! about ours. It is passed over, and the publish waits on for ours, until its timeout.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use super::client::Client;
use super::error::Error;
use super::headers::Outgoing;
use super::reply::Reply;
use crate::nats::Answers;
use crate::nats::wire::Headers;

impl Client {
    /// Publishes one message and waits for what `stream` answers. Not for the first answer,
    /// whosever it is.
    pub(crate) async fn request(
        &self,
        message: Outgoing<'_>,
        (stream, within): (&str, Duration),
    ) -> Result<Reply, Error> {
        let mut answers = self.ask(message)?;
        let answer = async {
            loop {
                let answer = answers.next().await?;
                if let Some(reply) = self.read((answer.headers(), &answer.body), stream) {
                    return Ok(reply);
                }
            }
        };
        let silent = || Error::Broken(format!("publish: no acknowledgement for {within:?}"));
        timeout(within, answer).await.map_err(|_| silent())?
    }

    /// Publishes one message, and returns where everybody's answers come.
    pub(crate) fn ask(&self, message: Outgoing<'_>) -> Result<Answers, Error> {
        let asked = self.api.requests().ask(message.into());
        asked.map_err(|error| Error::unanswered("publish", error))
    }

    /// Reads an answer to a publish that was meant for `stream`. `None`: somebody else's.
    pub(crate) fn read(&self, answer: (Headers<'_>, &[u8]), stream: &str) -> Option<Reply> {
        match Reply::read(answer, stream, self.domain.as_deref()) {
            Ok(reply) => Some(reply),
            Err(twin) => {
                // Once for each connection: it comes with every event.
                if !self.told_twin.swap(true, Ordering::Relaxed) {
                    warn!(%twin, fix = "`outjet check` says more", "{TWIN_ANSWERS}");
                }
                None
            }
        }
    }
}

const TWIN_ANSWERS: &str = "a stream of another JetStream domain answers, too; it stores what we \
    publish";
