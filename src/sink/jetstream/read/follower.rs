//! Follows a stream as a consumer of it does: what is stored from now on, as soon as the server
//! sends it. Headers are all that is asked for.

use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use futures_util::StreamExt;

use super::super::client::Desk;
use super::super::error::Error;
use super::super::names::{MESSAGE_ID, PLAIN_ID, REPLAY};
use super::super::options::Options;
use super::foreign::Foreign;
use crate::error::chain;
use crate::event::route;

/// A stream that is followed from its end.
pub struct Follower {
    connection: Foreign,
    messages: Ordered,
}

impl Follower {
    /// Begins at the end of the stream of `options`. [`Error::StreamMissing`] if there is none,
    /// [`Error::Uncovered`] if it does not take `subject`. The consumer is the server's to remove,
    /// half a minute after the connection has gone.
    pub async fn open(options: &Options, subject: &str) -> Result<Self, Error> {
        let mut options = options.of_stream();
        options.stream.create = false;
        let desk = Box::pin(Desk::open(&options)).await?;
        let name = options.stream.name;
        let subjects = &desk.streams.info.config.subjects;
        if !subjects
            .iter()
            .any(|pattern| route::matches(pattern, subject))
        {
            return Err(Error::Uncovered {
                name,
                subjects: subjects.join(", "),
                subject: subject.to_owned(),
            });
        }
        let connection = Box::pin(Foreign::open(&options.nats)).await?;
        let inbox = connection.client.new_inbox();
        // The inbox ends with what is nobody else's.
        let own = inbox.rsplit('.').next().unwrap_or_default();
        let consumer = OrderedConfig {
            name: Some(format!("outjet-{own}")),
            deliver_subject: inbox.clone(),
            deliver_policy: DeliverPolicy::New,
            replay_policy: ReplayPolicy::Instant,
            headers_only: true,
            ..OrderedConfig::default()
        };
        let follow = async {
            let broken = |error: &(dyn std::error::Error + 'static)| {
                Error::Broken(format!("follow the stream: {}", chain(error)))
            };
            let made = connection.context.create_consumer_on_stream(consumer, name);
            let consumer = made.await.map_err(|error| broken(&error))?;
            consumer.messages().await.map_err(|error| broken(&error))
        };
        let messages = connection.unless_broken(Box::pin(follow)).await?;
        Ok(Self {
            connection,
            messages,
        })
    }

    /// What publishing does not take: for whom the server has refused.
    pub fn rights(options: &Options) -> String {
        let (api, name) = (options.nats.api(), &options.stream.name);
        format!(
            "allow our user to publish to {api}.STREAM.INFO.{name}, {api}.CONSUMER.CREATE.{name}.> \
             and $JS.FC.{name}.>, and to subscribe to its inboxes"
        )
    }

    /// The id of the next event; what has none, or is published again, is passed over. Cancel-safe:
    /// nothing is kept across an await but in the client's queue.
    pub async fn next(&mut self) -> Result<String, Error> {
        let messages = &mut self.messages;
        let next = async {
            loop {
                let message = match messages.next().await {
                    Some(Ok(message)) => message,
                    Some(Err(error)) => return Err(Error::Broken(chain(&error))),
                    None => return Err(Error::Broken("the consumer ended".to_owned())),
                };
                let Some(headers) = &message.headers else {
                    continue;
                };
                let id = headers.get(MESSAGE_ID).or_else(|| headers.get(PLAIN_ID));
                if let Some(id) = id.filter(|_| headers.get(REPLAY).is_none()) {
                    return Ok(id.as_str().to_owned());
                }
            }
        };
        self.connection.unless_broken(next).await
    }
}
