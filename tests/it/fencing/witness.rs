//! Sees every message that reaches the server, whether the stream takes it or not.

use std::sync::{Arc, Mutex};

use async_nats::Message;
use futures_util::StreamExt;
use tokio::task::JoinSet;

use crate::harness::stage::{SOON, Stage};
use crate::harness::{Wait, until_sync};

/// A plain subscriber beside the stream.
pub(super) struct Witness {
    seen: Arc<Mutex<Vec<Seen>>>,
    _watching: JoinSet<()>,
}

/// A message that arrived.
struct Seen {
    id: String,
    /// Where its acknowledgement is to go: every connection of outjet has its own inbox.
    inbox: String,
}

impl Witness {
    /// Sees what is sent from now on.
    pub(super) async fn of(stage: &Stage) -> Self {
        let client = stage.world.nats.connect().await;
        let mut messages = client.subscribe("events.>").await.expect("a subscription");
        client.flush().await.expect("the server knows it");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut watching = JoinSet::new();
        watching.spawn({
            let seen = Arc::clone(&seen);
            async move {
                while let Some(message) = messages.next().await {
                    seen.lock().expect("nobody panics").push(Seen::of(&message));
                }
            }
        });
        Self {
            seen,
            _watching: watching,
        }
    }

    /// Waits until so many messages have arrived, behind the one of this id, over the connection
    /// that had carried it; returns how many have.
    pub(super) async fn until_followed(&self, id: &str, messages: usize) -> usize {
        until_sync("late messages arrive", SOON, || {
            let seen = self.seen.lock().expect("nobody panics");
            let Some(at) = seen.iter().position(|seen| seen.id == id) else {
                return Wait::NotYet(format!("{id} was not seen"));
            };
            let same = |later: &&Seen| later.inbox == seen[at].inbox;
            let followed = seen[at + 1..].iter().filter(same).count();
            match followed >= messages {
                true => Wait::Ready(followed),
                false => Wait::NotYet(format!("{followed} of {}", seen.len())),
            }
        })
        .await
    }
}

impl Seen {
    fn of(message: &Message) -> Self {
        let headers = message.headers.as_ref().expect("headers");
        let id = headers.get("Nats-Msg-Id").or(headers.get("Outjet-Id"));
        let reply = message.reply.as_ref().expect("a place for the ack");
        let (inbox, _number) = reply.rsplit_once('.').expect("an inbox and a number");
        Self {
            id: id.expect("an id").to_string(),
            inbox: inbox.to_owned(),
        }
    }
}
