//! One NATS connection with its inbox and its stream: what an epoch stands on. A connection that
//! breaks is never used again: the client would connect again behind our back, drop what it had
//! buffered and send what it had queued, so that events were missing in between. It is kept from
//! that.

use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_nats::jetstream::context::{
    Context, ContextBuilder, CreateStreamErrorKind, GetStreamErrorKind,
};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use async_nats::{Client, ConnectOptions, Event, HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::FutureExt;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use super::error::Error;
use super::messages::Messages;
use super::options::{NatsOptions, Options, Storage, StreamOptions};
use crate::error::chain;
use crate::nats::SignIn;

/// How often an idle connection is tried: a dead one is noticed after about two of these.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Most messages that wait in the client for a slow socket. They outlive the connection, because
/// the client does, so there should be few; with fewer, the client and we wait for each other.
const QUEUE_MAX: usize = 512;

/// Of a stream with other writers, which tells a copy of a message by its id alone: a leader that
/// is cut off is succeeded within seconds, and what it has sent must be known for longer.
pub const SHARED_WINDOW_MIN: Duration = Duration::from_secs(60);

/// Nobody listens on port 0.
const NOWHERE: &str = "nats://127.0.0.1:0";

/// Header blocks of 64 KiB and more are refused (error 10097).
pub(crate) const HEADER_BYTES_MAX: usize = 64 * 1024 - 1;

/// A connection, as long as it lives.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) context: Context,
    pub(crate) replies: Subscriber,
    /// Replies come to `<inbox>.<number>`.
    pub(crate) inbox: String,
    /// The first thing that went wrong with the connection.
    pub(crate) broken: watch::Receiver<Option<String>>,
    pub(crate) stream: Messages,
    pub(crate) info: Info,
    pub(crate) letters: Option<(Messages, Info)>,
    /// The stream was missing and was created.
    pub(crate) created: bool,
    /// Of our streams: an acknowledgement of another one proves nothing.
    pub(crate) domain: Option<String>,
    /// It was told that another one answers.
    pub(crate) told_twin: AtomicBool,
}

impl Connection {
    /// Connects, subscribes to an inbox of its own, and reads the stream; creates it if told so.
    pub(crate) async fn open(options: &Options) -> Result<Self, Error> {
        let (client, broken) = connect(options).await?;
        let inbox = client.new_inbox();
        let subscribed = client.subscribe(format!("{inbox}.*")).await;
        let replies = subscribed.map_err(|error| Error::Broken(error.to_string()))?;
        let context = context(&client, options);
        check_version(&client, &options.stream)?;
        let read = Box::pin(read_usable(&context, &options.stream));
        let (info, created) = unless_broken(&broken, read).await?;
        let messages = |stream: &StreamOptions, info: &Info| {
            let messages = Messages::new(context.clone(), &stream.name);
            match options.stream.shared {
                true => messages.among_others(&info.config.subjects),
                false => messages,
            }
        };
        // The client does not read it, and the answer to a creation does not have it.
        let standing = async { messages(&options.stream, &info).standing().await };
        let domain = unless_broken(&broken, Box::pin(standing)).await?.domain;
        let letters = match &options.dead_letters {
            None => None,
            Some(stream) => {
                let read = Box::pin(read_usable(&context, stream));
                let (info, _) = unless_broken(&broken, read).await?;
                Some((messages(stream, &info), info))
            }
        };
        let stream = messages(&options.stream, &info);
        Ok(Self {
            client,
            context,
            replies,
            inbox,
            broken,
            stream,
            info,
            letters,
            created,
            domain,
            told_twin: AtomicBool::new(false),
        })
    }

    /// One more stream; creates it if told so.
    pub(crate) async fn open_stream(&self, stream: &StreamOptions) -> Result<Info, Error> {
        check_version(&self.client, stream)?;
        Ok(read_usable(&self.context, stream).await?.0)
    }

    /// The server's id, which is that of its process, and its name.
    pub(crate) fn server(&self) -> (String, String) {
        let server = self.client.server_info();
        (server.server_id, server.server_name)
    }

    /// Whether the server is this old or newer.
    pub(crate) fn is_compatible(&self, major: i64, minor: i64, patch: i64) -> bool {
        self.client.is_server_compatible(major, minor, patch)
    }

    /// Does something with the connection, which may break meanwhile: the client would only wait.
    pub(crate) async fn unless_broken<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        unless_broken(&self.broken, work).await
    }

    /// Hands a message to the client. Waits for the socket where its queue is full; that no message
    /// of it was taken for `within` means that none will be.
    pub(crate) async fn publish(
        &self,
        (subject, reply): (String, Option<String>),
        (headers, payload): (HeaderMap, Bytes),
        within: Duration,
    ) -> Result<(), Error> {
        let client = &self.client;
        let mut publish = pin!(async {
            match reply {
                Some(reply) => {
                    client
                        .publish_with_reply_and_headers(subject, reply, headers, payload)
                        .await
                }
                None => client.publish_with_headers(subject, headers, payload).await,
            }
        });
        let published = match publish.as_mut().now_or_never() {
            Some(published) => published,
            None => {
                let patient = tokio::time::timeout(within, publish);
                let patient = self.unless_broken(async { Ok(patient.await) }).await?;
                let stalled = || Error::Broken(format!("nothing is taken for {within:?}"));
                patient.map_err(|_| stalled())?
            }
        };
        published.map_err(|error| Error::Broken(format!("publish: {error}")))
    }

    /// Most bytes of headers and body that one message of a stream may have.
    pub(crate) fn message_bytes_max(&self, info: &Info) -> usize {
        let payload = self.client.max_payload();
        usize::try_from(info.config.max_message_size)
            .ok()
            .filter(|max| *max > 0)
            .map_or(payload, |max| max.min(payload))
    }
}

/// Connects, and tells whatever is the first trouble with the connection.
async fn connect(options: &Options) -> Result<(Client, watch::Receiver<Option<String>>), Error> {
    let (trouble, broken) = watch::channel(None);
    let nats = connect_options(&options.nats)?
        .client_capacity(QUEUE_MAX)
        // Room for an acknowledgement each, and one of a twin: what does not fit is dropped.
        .subscription_capacity(2 * options.in_flight_max + 1024)
        .event_callback(move |event| {
            let trouble = trouble.clone();
            async move { note(&trouble, &event) }
        });
    let nats = match &options.nats.creds {
        None => nats,
        Some(path) => nats.credentials_file(path).await.map_err(|error| {
            Error::Unusable(format!("read nats.creds {}: {error}", path.display()))
        })?,
    };
    let connecting = nats.connect(options.nats.servers.clone());
    match tokio::time::timeout(options.nats.connect_timeout, connecting).await {
        Ok(Ok(client)) if !jetstream_offered(&client) => Err(Error::NoJetStream),
        Ok(Ok(client)) => {
            let kept = client.set_server_pool(NOWHERE).await;
            kept.map_err(|error| Error::Broken(chain(&error)))?;
            Ok((client, broken))
        }
        Ok(Err(error)) => Err(Error::Connect(error)),
        Err(_) => Err(Error::ConnectTimeout),
    }
}

fn jetstream_offered(client: &Client) -> bool {
    client.try_server_info().is_none_or(|info| info.jetstream)
}

fn connect_options(nats: &NatsOptions) -> Result<ConnectOptions, Error> {
    let mut connect = ConnectOptions::new()
        .name(&nats.name)
        .connection_timeout(nats.connect_timeout)
        .ping_interval(PING_INTERVAL)
        // One round over the servers; and then over none, which ends the connection's task.
        .max_reconnects(nats.servers.len())
        .ignore_discovered_servers();
    match (&nats.user, &nats.password) {
        (Some(user), password) => {
            let password = password.clone().unwrap_or_default();
            connect = connect.user_and_password(user.clone(), password);
        }
        (None, Some(_)) => {
            return Err(Error::Unusable(
                "nats.password is set without nats.user".to_owned(),
            ));
        }
        // The client reads no user information from URLs. What is configured on its own goes first.
        (None, None) => match nats.of_url() {
            Some(SignIn::User { user, password }) => {
                connect = connect.user_and_password(user, password);
            }
            Some(SignIn::Token(token)) => connect = connect.token(token),
            None => {}
        },
    }
    if let Some(token) = &nats.token {
        connect = connect.token(token.clone());
    }
    if let Some(seed) = &nats.nkey {
        connect = connect.nkey(seed.clone());
    }
    if let Some(ca) = &nats.tls_ca {
        connect = connect.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let Some((cert, key)) = &nats.tls_client {
        connect = connect
            .add_client_certificate(cert.clone(), key.clone())
            .require_tls(true);
    }
    if nats.tls_first {
        connect = connect.tls_first();
    }
    if let Some(prefix) = &nats.inbox_prefix {
        connect = connect.custom_inbox_prefix(prefix);
    }
    Ok(connect)
}

fn context(client: &Client, options: &Options) -> Context {
    let builder = ContextBuilder::new().timeout(options.nats.connect_timeout);
    match &options.nats.domain {
        Some(domain) => builder.domain(domain).build(client.clone()),
        None => builder.build(client.clone()),
    }
}

/// Keeps the first trouble: what follows is its consequence.
fn note(trouble: &watch::Sender<Option<String>>, event: &Event) {
    let text = match event {
        Event::Connected => return,
        Event::Disconnected => "the connection was lost".to_owned(),
        Event::LameDuckMode => "the server is about to shut down".to_owned(),
        Event::Draining | Event::Closed => "the connection was closed".to_owned(),
        Event::SlowConsumer(_) => "acknowledgements were dropped".to_owned(),
        Event::ServerError(error) => format!("the server says: {error}"),
        Event::ClientError(error) => format!("the client says: {error}"),
    };
    trouble.send_if_modified(|first| {
        let news = first.is_none();
        if news {
            *first = Some(text);
        }
        news
    });
}

/// A stream of anybody's, of any kind, that is only read; and what says that the connection breaks.
pub(crate) async fn open_any(
    options: &Options,
) -> Result<(Messages, Info, watch::Receiver<Option<String>>), Error> {
    let (client, broken) = connect(options).await?;
    let context = context(&client, options);
    let read = Box::pin(read_or_create(&context, &options.stream));
    let (info, _) = unless_broken(&broken, read).await?;
    Ok((Messages::new(context, &options.stream.name), info, broken))
}

pub(crate) async fn unless_broken<T>(
    broken: &watch::Receiver<Option<String>>,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut broken = broken.clone();
    tokio::select! {
        biased;
        why = until_broken(&mut broken) => Err(why),
        done = work => done,
    }
}

/// Waits for the first trouble with a connection. Cancel-safe, as `wait_for` is.
pub(crate) async fn until_broken(broken: &mut watch::Receiver<Option<String>>) -> Error {
    let said = match broken.wait_for(Option::is_some).await {
        Ok(said) => said.clone().unwrap_or_default(),
        Err(_) => "the connection was closed".to_owned(),
    };
    // A denied subscription or publish is answered on the connection, not on the inbox.
    if said.contains("ermissions Violation for Publish") {
        Error::PublishDenied(said)
    } else if said.contains("ermissions Violation") {
        Error::InboxDenied(said)
    } else {
        Error::Broken(said)
    }
}

/// Before a stream is made: older servers take the setting, and forget it. 2.12.0 takes no message
/// ids in a batch.
fn check_version(client: &Client, stream: &StreamOptions) -> Result<(), Error> {
    if !stream.atomic || client.is_server_compatible(2, 12, 1) {
        return Ok(());
    }
    let version = client.server_info().version;
    Err(if stream.schedules {
        Error::NoSchedules { version }
    } else {
        Error::NoBatches { version }
    })
}

/// A stream that can be appended to.
async fn read_usable(context: &Context, stream: &StreamOptions) -> Result<(Info, bool), Error> {
    let (mut info, created) = read_or_create(context, stream).await?;
    if stream.schedules {
        return match lacks(&info.config) {
            None => Ok((info, created)),
            Some(lack) => Err(Error::NotScheduling {
                name: stream.name.clone(),
                lack,
            }),
        };
    }
    if stream.objects {
        return match lacks_as_bucket(&info.config) {
            None => Ok((info, created)),
            Some(lack) => Err(Error::NoBucket {
                name: stream.name.clone(),
                lack,
            }),
        };
    }
    // From here on a subject is what a message is stored under.
    info.config.subjects = stream.public_subjects(&info.config)?;
    if stream.shared {
        info.config.subjects = stream.subjects_among(&info.config.subjects);
    }
    match refusal(&info.config, stream.shared) {
        None if stream.atomic && !info.config.allow_atomic_publish => Err(Error::NotAtomic {
            name: stream.name.clone(),
        }),
        None => Ok((info, created)),
        Some(reason) => Err(Error::StreamRefused {
            name: stream.name.clone(),
            reason,
        }),
    }
}

async fn read_or_create(context: &Context, stream: &StreamOptions) -> Result<(Info, bool), Error> {
    match context.get_stream(&stream.name).await {
        Ok(found) => Ok((found.cached_info().clone(), false)),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.code() == 404 => {
                create(context, stream).await
            }
            GetStreamErrorKind::JetStream(error) => Err(refused(&error)),
            GetStreamErrorKind::Request => {
                Err(Error::Broken(format!("read the stream: {}", chain(&error))))
            }
            GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => Err(
                Error::Unusable(format!("{:?} is no stream name", stream.name)),
            ),
        },
    }
}

fn refused(error: &async_nats::jetstream::Error) -> Error {
    use async_nats::jetstream::ErrorCode as Code;
    match error.error_code() {
        Code::JETSTREAM_NOT_ENABLED => Error::NoJetStream,
        Code::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT | Code::NO_ACCOUNT => Error::NoJetStreamForAccount,
        _ => Error::Broken(format!("read the stream: {error}")),
    }
}

async fn create(context: &Context, stream: &StreamOptions) -> Result<(Info, bool), Error> {
    if !stream.create {
        return Err(Error::StreamMissing(stream.name.clone()));
    }
    match context.create_stream(config(stream)).await {
        Ok(created) => Ok((created.cached_info().clone(), true)),
        Err(error) => match error.kind() {
            CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::JetStreamUnavailable => {
                Err(Error::Broken(format!("create the stream: {error}")))
            }
            _ => Err(Error::StreamNotCreated {
                name: stream.name.clone(),
                reason: chain(&error),
            }),
        },
    }
}

/// The configuration that a missing stream is created with.
pub fn config(stream: &StreamOptions) -> Config {
    Config {
        name: stream.name.clone(),
        subjects: stream.entrances(),
        subject_transform: stream.ingress.transform(&stream.name),
        num_replicas: stream.replicas,
        storage: match stream.storage {
            Storage::File => StorageType::File,
            Storage::Memory => StorageType::Memory,
        },
        duplicate_window: stream.duplicate_window,
        max_age: stream.max_age,
        max_bytes: stream
            .max_bytes
            .and_then(|max| i64::try_from(max).ok())
            .unwrap_or(-1),
        // A full stream refuses new events, which wait in Postgres, instead of dropping old ones
        // that nobody has read.
        discard: match stream.schedules {
            true => DiscardPolicy::Old, // the server takes no other there
            false => DiscardPolicy::New,
        },
        allow_atomic_publish: stream.atomic,
        // A server before 2.11 takes the setting, and forgets it.
        allow_message_ttl: stream.expires,
        allow_message_schedules: stream.schedules,
        allow_rollup: stream.objects,
        allow_direct: stream.objects,
        description: Some(match stream.shared {
            true => "written by outjet, and by others".to_owned(),
            false => "written by outjet, and by nobody else".to_owned(),
        }),
        ..Config::default()
    }
}

/// What keeps a stream from keeping what is delayed.
fn lacks(config: &Config) -> Option<&'static str> {
    let wanted = [
        (config.allow_message_schedules, "allow_msg_schedules"),
        (config.allow_message_ttl, "allow_msg_ttl"),
        (config.allow_atomic_publish, "allow_atomic"),
        (!config.no_ack, "no_ack: false"),
        (!config.sealed, "sealed: false"),
    ];
    let mut lacking = wanted.into_iter().filter(|(has, _)| !has);
    lacking.next().map(|(_, setting)| setting)
}

/// What keeps a stream from being a bucket that keeps what is acknowledged.
fn lacks_as_bucket(config: &Config) -> Option<&'static str> {
    let wanted = [
        (config.allow_rollup, "allow_rollup_hdrs"),
        (config.discard == DiscardPolicy::New, "discard: new"),
        (!config.no_ack, "no_ack: false"),
        (!config.sealed, "sealed: false"),
    ];
    let mut lacking = wanted.into_iter().filter(|(has, _)| !has);
    lacking.next().map(|(_, setting)| setting)
}

/// Why a stream cannot be appended to: the server itself would write into it, unless it is shared,
/// or an acknowledgement would not mean that the event is stored.
fn refusal(config: &Config, shared: bool) -> Option<&'static str> {
    let refusals = [
        (config.no_ack, "no_ack: the server never acknowledges"),
        (config.mirror.is_some(), "it is a mirror"),
        (
            !shared && config.sources.as_ref().is_some_and(|s| !s.is_empty()),
            "it has sources",
        ),
        (config.sealed, "it is sealed"),
        (
            config.persist_mode == Some(async_nats::jetstream::stream::PersistenceMode::Async),
            "persist_mode async: acknowledged before it is written",
        ),
        (
            !shared
                && config
                    .subject_delete_marker_ttl
                    .is_some_and(|ttl| !ttl.is_zero()),
            "subject_delete_marker_ttl: the server writes delete markers",
        ),
        (
            config.allow_message_counter,
            "allow_msg_counter: it only takes counters",
        ),
        (
            !shared && config.allow_message_schedules,
            "allow_msg_schedules: the server writes what is due",
        ),
    ];
    refusals
        .into_iter()
        .find(|(refused, _)| *refused)
        .map(|(_, reason)| reason)
}

/// What is worth knowing of a stream that can be used.
pub fn warnings(config: &Config, shared: bool) -> Vec<&'static str> {
    let limited = config.max_messages > 0 || config.max_bytes > 0;
    let warnings = [
        (
            config.discard == DiscardPolicy::Old && limited,
            "discard old with a limit: events nobody has read may be dropped",
        ),
        (
            config.retention == RetentionPolicy::Interest,
            "interest retention: events are dropped while no consumer exists",
        ),
        (
            config.storage == StorageType::Memory,
            "memory storage: lost with the servers",
        ),
        (
            config.num_replicas == 1,
            "one replica: lost with its server's disk",
        ),
        (
            shared && config.duplicate_window < SHARED_WINDOW_MIN,
            "shared, with a duplicate window of less than a minute: what arrives later than that \
             for a second time is stored twice",
        ),
        (
            shared && config.retention != RetentionPolicy::Limits,
            "shared, and messages vanish when they are consumed: what Postgres sends again later \
             than the duplicate window is stored again",
        ),
    ];
    warnings
        .into_iter()
        .filter(|(warned, _)| *warned)
        .map(|(_, warning)| warning)
        .collect()
}

/// Whether messages may vanish before anybody says so: what arrives late is then known by its id
/// alone.
pub(crate) fn vanishing(config: &Config) -> bool {
    let limited = config.max_messages > 0 || config.max_bytes > 0;
    config.allow_message_ttl
        || !config.max_age.is_zero()
        || config.retention != RetentionPolicy::Limits
        || config.max_messages_per_subject > 0
        || config.discard == DiscardPolicy::Old && limited
}

/// When a stream was created, RFC 3339.
pub(crate) fn created(info: &Info) -> String {
    info.created.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::sink::jetstream::{Buries, Ingress};

    const INFO: &[u8] = b"INFO {\"server_id\":\"A\",\"server_name\":\"a\",\"host\":\"127.0.0.1\",\
        \"port\":4222,\"version\":\"2.12.1\",\"headers\":true,\"jetstream\":true,\
        \"max_payload\":1048576,\"proto\":1,\"client_id\":1,\"go\":\"go1\"}\r\n";

    fn options(server: String) -> Options {
        Options {
            nats: NatsOptions::of_servers(vec![server]),
            stream: StreamOptions {
                name: "S".to_owned(),
                subjects: Vec::new(),
                ingress: Ingress::Public,
                shared: true,
                replicas: 1,
                storage: Storage::File,
                create: false,
                duplicate_window: Duration::ZERO,
                max_age: Duration::ZERO,
                max_bytes: None,
                atomic: false,
                expires: false,
                schedules: false,
                objects: false,
            },
            dead_letters: None,
            buries: Buries {
                oversize: false,
                others: false,
            },
            bodies: None,
            delayed: None,
            record: false,
            whose: |_| None,
            takes_over: false,
            read_to: None,
            in_flight_max: 1,
            in_flight_bytes_max: 1,
            ack_timeout: Duration::from_secs(1),
            hold: Duration::ZERO,
            give_up_after: None,
        }
    }

    #[test]
    fn stream_that_the_server_writes_can_be_shared_and_no_stream_without_acknowledgements() {
        let written = Config {
            sources: Some(vec![Default::default()]),
            subject_delete_marker_ttl: Some(Duration::from_secs(1)),
            allow_message_schedules: true,
            ..Config::default()
        };
        assert_eq!(refusal(&written, true), None);
        assert_eq!(refusal(&written, false), Some("it has sources"));
        let silent = Config {
            no_ack: true,
            ..written
        };
        assert!(refusal(&silent, true).is_some());
    }

    /// What was queued would go out on the next one, and what was buffered would be missing.
    #[tokio::test]
    async fn connection_that_is_lost_is_not_made_again_by_the_client() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let options = options(format!("nats://{address}"));
        let serve = async {
            let (mut socket, _) = listener.accept().await.expect("a client");
            socket.write_all(INFO).await.expect("sent");
            let mut said = Vec::new();
            while !said.ends_with(b"PING\r\n") {
                socket.read_buf(&mut said).await.expect("it speaks");
            }
            socket.write_all(b"PONG\r\n").await.expect("sent");
            socket
        };
        let (connected, socket) = tokio::join!(connect(&options), serve);
        let (client, mut broken) = connected.expect("connected");
        drop(socket);
        until_broken(&mut broken).await;
        // Until the connection's task has ended.
        while client.flush().await.is_ok() {}
        let again = tokio::time::timeout(Duration::from_millis(100), listener.accept());
        assert!(again.await.is_err(), "it was made again");
    }
}
