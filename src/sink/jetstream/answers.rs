//! Whose answer it is. A hub and a leaf node may each have a stream on our subjects. Then both
//! store what is published, and both answer. An acknowledgement of the other one proves nothing
//! about ours. It is passed over, and the publish waits on for ours, until its timeout.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tracing::warn;

use super::client::Connection;
use super::error::Error;
use super::reply::Reply;

impl Connection {
    /// Publishes one message and waits for what `stream` answers. Not with the client's request,
    /// which takes the first answer, whosever it is.
    pub(crate) async fn request(
        &self,
        (subject, headers, payload): (String, HeaderMap, Bytes),
        (stream, within): (&str, Duration),
    ) -> Result<Reply, Error> {
        let message = (subject, headers, payload);
        let mut answers = self.ask(message, within).await?;
        let answer = async {
            while let Some(message) = answers.next().await {
                if let Some(reply) = self.read(&message, stream) {
                    return Ok(reply);
                }
            }
            Err(Error::Broken("the connection was closed".to_owned()))
        };
        self.patient(answer, within).await
    }

    /// Publishes one message, and returns where everybody's answers come.
    pub(crate) async fn ask(
        &self,
        (subject, headers, payload): (String, HeaderMap, Bytes),
        within: Duration,
    ) -> Result<Subscriber, Error> {
        let inbox = self.client.new_inbox();
        let subscribe = async {
            let answers = self.client.subscribe(inbox.clone()).await;
            answers.map_err(|error| Error::Broken(error.to_string()))
        };
        let answers = self.patient(subscribe, within).await?;
        let publish = self.publish((subject, Some(inbox)), (headers, payload), within);
        publish.await?;
        Ok(answers)
    }

    /// Reads an answer to a publish that was meant for `stream`. `None`: somebody else's.
    pub(crate) fn read(&self, message: &Message, stream: &str) -> Option<Reply> {
        match Reply::read(message, stream, self.domain.as_deref()) {
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

    async fn patient<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
        within: Duration,
    ) -> Result<T, Error> {
        let silent = |_| Error::Broken(format!("publish: no acknowledgement for {within:?}"));
        let work = async { tokio::time::timeout(within, work).await.map_err(silent)? };
        self.unless_broken(Box::pin(work)).await
    }
}

const TWIN_ANSWERS: &str = "a stream of another JetStream domain answers, too; it stores what we \
    publish";
