//! One NATS connection with its inbox and its streams: what an epoch stands on. A connection that
//! breaks is never used again.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_nats::jetstream::stream::Info;

use super::error::Error;
use super::messages::Messages;
use super::options::{Options, StreamOptions};
use super::streams::{read_or_create, read_usable};
use crate::nats::wire::Draft;
use crate::nats::{self, Api, Driven, Reply};

/// Header blocks of 64 KiB and more are refused (error 10097).
pub(crate) const HEADER_BYTES_MAX: usize = 64 * 1024 - 1;

/// A connection, as long as it lives.
pub(crate) struct Connection {
    pub(crate) link: Link,
    pub(crate) client: Client,
    pub(crate) streams: Streams,
}

/// What was found on a connection.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) info: Info,
    /// The stream was missing and was created.
    pub(crate) created: bool,
    pub(crate) stream: Messages,
    pub(crate) letters: Option<(Messages, Info)>,
}

impl Connection {
    /// Connects and reads the stream; creates it if told so.
    pub(crate) async fn open(options: &Options) -> Result<Self, Error> {
        let connection = nats::Connection::open(&options.nats).await;
        let mut link = Link(connection.map_err(Error::Connect)?);
        if !link.0.server().jetstream {
            return Err(Error::NoJetStream);
        }
        let api = Api::new(link.0.requests(), &options.nats);
        // The inbox ends with what is nobody else's.
        let name = link.0.inbox().rsplit('.').next().unwrap_or_default().into();
        let opened = Box::pin(Client::open((api, name), options));
        let (client, streams) = link.0.during(opened).await??;
        Ok(Self {
            link,
            client,
            streams,
        })
    }
}

/// The connection itself, which goes on only while it is driven.
pub(crate) struct Link(nats::Connection);

impl Link {
    /// Drives the connection while something waits for an answer on it. Replies to what was
    /// published are kept. Cancel-safe if `work` is.
    pub(crate) async fn during<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.0.during(work).await?
    }

    /// Drives the connection until there is a reply to take, or room in its queue again.
    pub(crate) async fn ready(&mut self) -> Result<(), Error> {
        Ok(self.0.ready().await?)
    }

    /// The next reply to what was published.
    pub(crate) fn next_reply(&mut self) -> Option<Reply<'_>> {
        self.0.next_reply()
    }

    /// Begins a message behind those that were begun before.
    pub(crate) fn message(&mut self, subject: &str, reply: Option<u64>) -> Draft<'_> {
        self.0.message(subject, reply)
    }

    /// Whether so much waits for the socket that nothing should be added.
    pub(crate) fn is_full(&self) -> bool {
        self.0.full()
    }

    /// It is known that the server takes no longer lines.
    pub(crate) fn limit_lines(&mut self, bytes_max: usize) {
        self.0.limit_lines(bytes_max);
    }

    /// How long the line of a message is that is begun here.
    pub(crate) fn line(&self, subject: &str, number: u64) -> Line {
        Line {
            bytes: self.0.line_bytes(subject, number),
            bytes_max: self.0.line_bytes_max(),
        }
    }

    /// Most bytes of headers and body that one message of a stream may have.
    pub(crate) fn message_bytes_max(&self, info: &Info) -> usize {
        message_bytes_max(self.0.max_payload(), info)
    }
}

/// The line that a message begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) bytes: usize,
    /// Most that the server takes, as far as is known.
    pub(crate) bytes_max: usize,
}

impl Line {
    pub(crate) fn fits(self) -> bool {
        self.bytes <= self.bytes_max
    }
}

impl fmt::Display for Line {
    /// Of one that does not fit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, bytes_max } = self;
        write!(
            f,
            "it takes a line of {bytes} bytes, the server takes {bytes_max} at most \
             (max_control_line)"
        )
    }
}

fn message_bytes_max(payload: usize, info: &Info) -> usize {
    usize::try_from(info.config.max_message_size)
        .ok()
        .filter(|max| *max > 0)
        .map_or(payload, |max| max.min(payload))
}

/// Asks what there is to ask on a connection that somebody drives. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) api: Api,
    /// Of this connection and no other.
    pub(crate) name: Arc<str>,
    /// Of our streams: an acknowledgement of another one proves nothing.
    pub(crate) domain: Option<Arc<str>>,
    /// It was told that another one answers.
    pub(super) told_twin: Arc<AtomicBool>,
}

impl Client {
    async fn open(
        (api, name): (Api, Arc<str>),
        options: &Options,
    ) -> Result<(Self, Streams), Error> {
        let (info, created) = Box::pin(read_usable(&api, &options.stream)).await?;
        let letters = match &options.dead_letters {
            None => None,
            Some(stream) => {
                let (info, _) = Box::pin(read_usable(&api, stream)).await?;
                Some((messages(&api, (options, stream), &info), info))
            }
        };
        let stream = messages(&api, (options, &options.stream), &info);
        // Not in the answer to a creation.
        let domain = stream.standing().await?.domain;
        let client = Self {
            api,
            name,
            domain: domain.map(Arc::from),
            told_twin: Arc::default(),
        };
        let streams = Streams {
            info,
            created,
            stream,
            letters,
        };
        Ok((client, streams))
    }

    /// One more stream; creates it if told so.
    pub(crate) async fn open_stream(&self, stream: &StreamOptions) -> Result<Info, Error> {
        Ok(read_usable(&self.api, stream).await?.0)
    }

    /// Reads any stream.
    pub(crate) fn messages(&self, stream: &str) -> Messages {
        Messages::new(self.api.clone(), stream)
    }

    /// The server's id, which is that of its process, and its name.
    pub(crate) fn server(&self) -> (String, String) {
        let server = self.api.requests().server();
        (server.id.clone(), server.name.clone())
    }

    /// How long the line is of a message that waits for its answer.
    pub(crate) fn line(&self, subject: &str) -> Line {
        let requests = self.api.requests();
        Line {
            bytes: requests.line_bytes(subject),
            bytes_max: requests.line_bytes_max(),
        }
    }

    /// Whether the server is this old or newer.
    pub(crate) fn is_compatible(&self, major: u64, minor: u64, patch: u64) -> bool {
        self.api.requests().server().at_least(major, minor, patch)
    }

    /// Most bytes of headers and body that one message of a stream may have.
    pub(crate) fn message_bytes_max(&self, info: &Info) -> usize {
        message_bytes_max(self.api.requests().server().max_payload, info)
    }
}

fn messages(api: &Api, (options, stream): (&Options, &StreamOptions), info: &Info) -> Messages {
    let messages = Messages::new(api.clone(), &stream.name);
    match options.stream.shared {
        true => messages.among_others(&info.config.subjects),
        false => messages,
    }
}

/// The same for commands, which have a task that drives the connection.
pub(crate) struct Desk {
    pub(crate) client: Client,
    pub(crate) streams: Streams,
    /// Ends with it.
    _driven: Driven,
}

impl Desk {
    /// Connects and reads the stream; creates it if told so.
    pub(crate) async fn open(options: &Options) -> Result<Self, Error> {
        let Connection {
            link,
            client,
            streams,
        } = Box::pin(Connection::open(options)).await?;
        Ok(Self {
            client,
            streams,
            _driven: link.0.spawn(),
        })
    }
}

/// A stream of anybody's, of any kind, that is only read.
pub(crate) async fn open_any(options: &Options) -> Result<(Messages, Info, Driven), Error> {
    let connection = nats::Connection::open(&options.nats).await;
    let connection = connection.map_err(Error::Connect)?;
    if !connection.server().jetstream {
        return Err(Error::NoJetStream);
    }
    let driven = connection.spawn();
    let api = Api::new(driven.requests(), &options.nats);
    let (info, _) = Box::pin(read_or_create(&api, &options.stream)).await?;
    Ok((Messages::new(api, &options.stream.name), info, driven))
}
