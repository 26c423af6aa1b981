//! What can go wrong on the way into a stream. What an operator reads about it is in `failure`.

mod failure;

use crate::error::chain;
use crate::event::lineage::Source;
use crate::event::{Event, Position, Rejected};
use crate::nats::{Broken, ConnectError, RequestError};

/// Why the sink cannot go on, or not yet.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or value of the configuration cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// No connection.
    #[error(transparent)]
    Connect(ConnectError),
    /// The server runs without JetStream.
    #[error("JetStream is not enabled on the server")]
    NoJetStream,
    /// The account has no JetStream.
    #[error("JetStream is not enabled for the account")]
    NoJetStreamForAccount,
    /// Replies do not reach us.
    #[error("no reply on the inbox: {0}")]
    InboxDenied(String),
    /// We may not publish what we must.
    #[error("a publish was denied: {0}")]
    PublishDenied(String),
    /// We may not use the bucket of the record.
    #[error("the bucket of the record was denied: {0}")]
    BucketDenied(String),
    /// The stream does not exist and is not to be created.
    #[error("stream {0:?} does not exist")]
    StreamMissing(String),
    /// The server would not create the stream.
    #[error("create stream {name:?}: {reason}")]
    StreamNotCreated {
        /// The stream.
        name: String,
        /// The server's words.
        reason: String,
    },
    /// The stream is of a kind that cannot be appended to safely.
    #[error("stream {name:?} cannot be used: {reason}")]
    StreamRefused {
        /// The stream.
        name: String,
        /// Which property stands against it.
        reason: &'static str,
    },
    /// The server is too old for what is configured.
    #[error("nats-server {version} stores no transaction as a whole")]
    NoBatches {
        /// Its version.
        version: String,
    },
    /// The server is too old to keep what is delayed.
    #[error("nats-server {version} keeps no event until it is due")]
    NoSchedules {
        /// Its version.
        version: String,
    },
    /// The stream was made without what keeping takes.
    #[error("stream {name:?} keeps no event until it is due: it lacks {lack}")]
    NotScheduling {
        /// The stream.
        name: String,
        /// Which setting.
        lack: &'static str,
    },
    /// The stream was not made as a bucket.
    #[error("stream {name:?} keeps no bodies: it lacks {lack}")]
    NoBucket {
        /// The stream.
        name: String,
        /// Which setting.
        lack: &'static str,
    },
    /// The bucket did not take a body, this time.
    #[error("{name} does not take the body of event {id:?}")]
    BodyRefused {
        /// The stream of the bucket.
        name: String,
        /// The event's id.
        id: String,
        /// The server's words.
        reason: String,
    },
    /// The stream was made without what is configured.
    #[error("stream {name:?} takes no transaction as a whole")]
    NotAtomic {
        /// The stream.
        name: String,
    },
    /// The stream takes events on other subjects than it should.
    #[error("stream {name:?} does not take events as stream.ingress says")]
    OtherIngress {
        /// The stream.
        name: String,
        /// How it does.
        found: String,
        /// Its subjects as consumers see them.
        subjects: Vec<String>,
    },
    /// The stream is written by somebody else.
    #[error("stream {name:?} is written by another source")]
    OtherSource {
        /// The stream.
        name: String,
        /// Who wrote its last event.
        found: Box<Source>,
        /// Who we are; the timeline does not matter.
        ours: Box<Source>,
    },
    /// An event was stored that was not there when it was decided what is to be appended.
    #[error("an event was stored at sequence {sequence} of stream {name:?} after that was read")]
    StoredSince {
        /// The stream.
        name: String,
        /// Where.
        sequence: u64,
    },
    /// The stream holds events of a timeline that this server does not have yet, or never will.
    #[error("stream {name:?} is ahead of this server: it holds events of timeline {found}")]
    OlderTimeline {
        /// The stream.
        name: String,
        /// The timeline of its last event.
        found: u32,
        /// The server's.
        ours: u32,
    },
    /// While we led, an outjet has led on a later timeline: a standby was promoted.
    #[error("stream {name:?} holds events of timeline {timeline}, which began after ours")]
    Succeeded {
        /// The stream.
        name: String,
        /// The later one.
        timeline: u32,
    },
    /// Two streams store what we publish.
    #[error("{} streams answer what is published to {subject:?}", .streams.len())]
    Twins {
        /// What was published to.
        subject: String,
        /// The streams that answered.
        streams: Vec<String>,
        /// The JetStream domain of ours.
        domain: Option<String>,
    },
    /// No subject of the stream matches.
    #[error("stream {name:?} does not cover subject {subject:?}")]
    Uncovered {
        /// The stream.
        name: String,
        /// What it listens on.
        subjects: String,
        /// What we would publish to.
        subject: String,
    },
    /// An event that no server takes.
    #[error("event {id:?} at {position} cannot be sent: {}", .rejected.error)]
    Unsendable {
        /// The event's place.
        position: Position,
        /// The event's id.
        id: String,
        /// What is wrong with it.
        rejected: Rejected,
    },
    /// The server closes the connection over a line of so many bytes, or of fewer.
    #[error("the server takes no line of {0} bytes")]
    LineTooLong(usize),
    /// The stream is not the one that it was.
    #[error("stream {name:?} {reason}")]
    StreamChanged {
        /// The stream.
        name: String,
        /// What changed.
        reason: String,
        /// About how many events are lost that were released.
        gap: u64,
    },
    /// The connection, a request or an acknowledgement failed: the outcome is unknown.
    #[error("{0}")]
    Broken(String),
}

impl Error {
    /// The same for who has led already: a server that was the right one is none any more.
    pub(crate) fn of_a_leader(self) -> Self {
        match self {
            Self::OlderTimeline { name, found, .. } => Self::Succeeded {
                name,
                timeline: found,
            },
            error => error,
        }
    }

    /// A request has no answer: the connection has ended, or not even that is known.
    pub(crate) fn unanswered(what: &str, error: RequestError) -> Self {
        match error {
            RequestError::Broken(broken) => broken.into(),
            error => Self::Broken(format!("{what}: {}", chain(&error))),
        }
    }

    /// The event cannot be sent as it is.
    pub(crate) fn unsendable(event: &Event, rejected: Rejected) -> Self {
        Self::Unsendable {
            position: event.position,
            id: event.id.clone(),
            rejected,
        }
    }

    /// What is wrong with the event alone, if it is that.
    pub(crate) fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Unsendable { rejected, .. } => Some(rejected),
            _ => None,
        }
    }
}

impl From<Broken> for Error {
    /// What is denied is told on the connection, and no request is answered any more.
    fn from(broken: Broken) -> Self {
        let said = chain(&broken);
        match broken {
            Broken::PublishDenied(_) => Self::PublishDenied(said),
            Broken::SubscriptionDenied(_) => Self::InboxDenied(said),
            Broken::LineTooLong(bytes) => Self::LineTooLong(bytes),
            Broken::Lost(_)
            | Broken::Closed
            | Broken::Server(_)
            | Broken::LameDuck
            | Broken::Silent(_)
            | Broken::Malformed(_)
            | Broken::Untaken(_) => Self::Broken(said),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn denial_is_told_from_whatever_else_ends_a_connection() {
        let said = || "Permissions Violation for Publish to \"a\"".to_owned();
        let denied = Error::from(Broken::PublishDenied(said()));
        let text = format!("the server says: {}", said());
        assert!(matches!(denied, Error::PublishDenied(why) if why == text));
        let denied = Error::from(Broken::SubscriptionDenied(said()));
        assert!(matches!(denied, Error::InboxDenied(_)), "{denied:?}");
        let reset = Arc::new(io::Error::other("reset"));
        let lost = Error::from(Broken::Lost(reset));
        assert_eq!(lost.to_string(), "the connection was lost: reset");
    }

    #[test]
    fn request_without_an_answer_says_what_was_asked() {
        let late = RequestError::TimedOut(Duration::from_secs(2));
        let error = Error::unanswered("read the stream", late);
        assert_eq!(error.to_string(), "read the stream: no answer within 2s");
        let closed = RequestError::Broken(Broken::Closed);
        let error = Error::unanswered("read the stream", closed);
        assert_eq!(error.to_string(), "the connection was closed");
    }
}
