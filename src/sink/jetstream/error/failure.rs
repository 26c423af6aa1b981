//! What an operator reads about an error, and what is to be done.

use std::error::Error as _;

use async_nats::jetstream::stream::SubjectTransform;

use super::super::names::{record_bucket, record_entrance, record_stream};
use super::super::options::{Buries, Ingress, Options, StreamOptions};
use super::Error;
use crate::error::{Disposition, Exit, Failure, Problem, chain};
use crate::event::route;
use crate::nats::{ConnectError, ConnectErrorKind};

impl Error {
    /// For whom it may concern, with the fix.
    pub fn failure(&self, options: &Options) -> Failure {
        let (disposition, exit) = self.consequence();
        let problem = Problem::new(
            self.problem(options),
            self.cause(options),
            self.fix(options),
        );
        Failure {
            disposition,
            exit,
            problem,
        }
    }

    /// What a stream that has lost released events means.
    pub(crate) fn gap(&self, options: &Options) -> Problem {
        let name = &options.stream.name;
        Problem::new(
            format!("stream {name:?} lacks events that were confirmed to Postgres"),
            format!("it {}; {}", self.reason(), self.cause(options)),
            "`outjet verify` names the rows that are missing; `outjet replay` publishes them \
             again; a longer stream.hold outlives such a loss",
        )
    }

    fn reason(&self) -> &str {
        match self {
            Self::StreamChanged { reason, .. } => reason,
            _ => "has changed",
        }
    }

    fn consequence(&self) -> (Disposition, Exit) {
        match self {
            Self::Connect(error) => match Refusal::of(error) {
                Refusal::Credentials => (Disposition::Halt, Exit::NotPermitted),
                Refusal::Setting | Refusal::Address => (Disposition::Halt, Exit::Config),
                Refusal::Tls | Refusal::Silence | Refusal::Absence => {
                    (Disposition::Retry, Exit::Unavailable)
                }
            },
            Self::StreamChanged { .. }
            | Self::BodyRefused { .. }
            | Self::BucketDenied(_)
            | Self::StoredSince { .. }
            | Self::Succeeded { .. }
            | Self::LineTooLong(_)
            | Self::Broken(_) => (Disposition::Retry, Exit::Unavailable),
            Self::InboxDenied(_) | Self::PublishDenied(_) => {
                (Disposition::Halt, Exit::NotPermitted)
            }
            Self::Unusable(_)
            | Self::NoJetStream
            | Self::NoJetStreamForAccount
            | Self::StreamMissing(_)
            | Self::StreamNotCreated { .. }
            | Self::StreamRefused { .. }
            | Self::NoBatches { .. }
            | Self::NoSchedules { .. }
            | Self::NotScheduling { .. }
            | Self::NoBucket { .. }
            | Self::NotAtomic { .. }
            | Self::OtherIngress { .. }
            | Self::OtherSource { .. }
            | Self::OlderTimeline { .. }
            | Self::Twins { .. }
            | Self::Uncovered { .. }
            | Self::Unsendable { .. } => (Disposition::Halt, Exit::Config),
        }
    }

    fn problem(&self, options: &Options) -> String {
        let servers = options.nats.display();
        match self {
            Self::Unusable(_) => NOT_SET_UP.to_owned(),
            Self::Connect(error) => match Refusal::of(error) {
                Refusal::Credentials => format!("NATS at {servers} refuses our credentials"),
                Refusal::Setting => NOT_SET_UP.to_owned(),
                Refusal::Address | Refusal::Tls | Refusal::Silence | Refusal::Absence => {
                    format!("NATS at {servers} cannot be reached")
                }
            },
            Self::NoJetStream => format!("NATS at {servers} has no JetStream"),
            Self::NoJetStreamForAccount => {
                format!("NATS at {servers} has no JetStream for our account")
            }
            Self::InboxDenied(_) => format!("NATS at {servers} does not answer us"),
            Self::PublishDenied(_) => format!("NATS at {servers} does not let us publish"),
            Self::StreamMissing(_)
            | Self::StreamNotCreated { .. }
            | Self::StreamRefused { .. }
            | Self::NoBatches { .. }
            | Self::NoSchedules { .. }
            | Self::NotScheduling { .. }
            | Self::NoBucket { .. }
            | Self::BodyRefused { .. }
            | Self::NotAtomic { .. }
            | Self::OtherIngress { .. }
            | Self::OtherSource { .. }
            | Self::OlderTimeline { .. }
            | Self::Twins { .. }
            | Self::Uncovered { .. }
            | Self::Unsendable { .. }
            | Self::StoredSince { .. }
            | Self::Succeeded { .. }
            | Self::StreamChanged { .. } => self.to_string(),
            Self::BucketDenied(_) => format!(
                "NATS at {servers} does not let us use bucket {}",
                record_bucket(&options.stream.name)
            ),
            Self::LineTooLong(_) | Self::Broken(_) => {
                format!("events do not get through to NATS at {servers}")
            }
        }
    }

    fn cause(&self, options: &Options) -> String {
        match self {
            Self::Connect(error) => connect_cause(error.kind()),
            Self::NoJetStream => "the server does not offer it".to_owned(),
            Self::NoJetStreamForAccount => {
                "the account that we log in to has no JetStream".to_owned()
            }
            Self::InboxDenied(why) | Self::PublishDenied(why) | Self::BucketDenied(why) => {
                why.clone()
            }
            Self::StreamMissing(_) => "stream.manage is check, so it is not created".to_owned(),
            Self::StreamNotCreated { reason, .. } | Self::BodyRefused { reason, .. } => {
                reason.clone()
            }
            Self::StreamRefused { .. } => {
                "with it, exactly once and commit order cannot hold".to_owned()
            }
            Self::NoBatches { .. } => {
                "publish.transactions is atomic, which takes nats-server 2.12.1".to_owned()
            }
            Self::NoSchedules { .. } => {
                "publish.delayed is schedule, which takes nats-server 2.12.1".to_owned()
            }
            Self::NotScheduling { .. } => {
                "publish.delayed is schedule, and the stream was made without it".to_owned()
            }
            Self::NoBucket { .. } => NO_BUCKET.to_owned(),
            Self::NotAtomic { .. } => {
                "publish.transactions is atomic, and the stream was made without allow_atomic"
                    .to_owned()
            }
            Self::OtherIngress { found, .. } => found.clone(),
            Self::OtherSource { found, ours, .. } => format!(
                "its last event came through slot {:?} of the cluster with system identifier {}, \
                 and we use slot {:?} of {}; two writers would displace each other's events",
                found.slot, found.system, ours.slot, ours.system
            ),
            Self::OlderTimeline { ours, .. } => format!(
                "the server is on timeline {ours}: an old primary that was started again beside \
                 its successor, or a copy of it"
            ),
            Self::Succeeded { .. } => SUCCEEDED.to_owned(),
            Self::Twins {
                streams, domain, ..
            } => {
                let (streams, ours) = (streams.join(" and "), domain.as_deref());
                let ours = ours.map_or("has no domain".to_owned(), |d| format!("is in domain {d}"));
                format!(
                    "streams {streams}: ours {ours}, and one behind a leaf node, in another \
                     JetStream domain, listens on the same subjects; it stores our events, too"
                )
            }
            Self::Uncovered { subjects, .. } => format!("it listens on {subjects}"),
            Self::Unsendable { rejected, .. } => {
                let why = match options.buries {
                    buries if buries.takes(rejected) => "not even its dead letter fits",
                    Buries { others: true, .. } => "publish.on_oversize is halt",
                    _ => "publish.on_reject is halt",
                };
                format!("{why}: nothing after it is sent")
            }
            Self::StreamChanged { .. } => CHANGED.to_owned(),
            Self::StoredSince { .. } => STORED_SINCE.to_owned(),
            Self::Unusable(why) | Self::Broken(why) => why.clone(),
            Self::LineTooLong(bytes) => format!(
                "the server says: maximum control line exceeded; the longest had {bytes} bytes"
            ),
        }
    }

    fn fix(&self, options: &Options) -> String {
        let name = &options.stream.name;
        match self {
            Self::Unusable(_) => SETTING_FIX.to_owned(),
            Self::Connect(error) => connect_fix(Refusal::of(error), options),
            Self::NoJetStream => {
                "start nats-server with `-js -sd /data`, or with a jetstream {} block".to_owned()
            }
            Self::NoJetStreamForAccount => {
                "enable jetstream for the account in the server's configuration".to_owned()
            }
            Self::InboxDenied(_) | Self::PublishDenied(_) => permissions(options),
            Self::StreamMissing(_) => "`outjet setup`, or set stream.manage to create".to_owned(),
            Self::StreamNotCreated { name, .. } => format!(
                "correct the section stream of the configuration, or create it: \
                 `nats stream add {name}`"
            ),
            Self::StreamRefused { name, .. } => {
                format!("change it with `nats stream edit {name}`, or name another in stream.name")
            }
            Self::NoBatches { .. } => {
                "upgrade the server, or set publish.transactions to pipelined".to_owned()
            }
            Self::NoSchedules { .. } => {
                "upgrade the server, or set publish.delayed to now".to_owned()
            }
            Self::NotScheduling { name, .. } => format!(
                "`nats stream edit {name} --allow-schedules --allow-msg-ttl --allow-batch`, or set \
                 publish.delayed to now"
            ),
            Self::NoBucket { .. } => "name another in publish.claim_check.bucket".to_owned(),
            Self::BodyRefused { name, .. } => make_room(name),
            Self::NotAtomic { .. } => format!(
                "`nats stream edit {name} --allow-batch`, or set publish.transactions to pipelined"
            ),
            Self::OtherIngress { name, subjects, .. } => {
                ingress_fix(options.stream.ingress, name, subjects)
            }
            Self::OtherSource { .. } => "give each outjet a stream of its own (stream.name), \
                 or use the database and the slot that the stream was written from; or set \
                 stream.shared in all of them"
                .to_owned(),
            Self::OlderTimeline { .. } => "stop this server (two primaries lose events), and name \
                 the one that was promoted in DATABASE_URL"
                .to_owned(),
            Self::Succeeded { .. } => SUCCEEDED_FIX.to_owned(),
            Self::Twins { .. } => "give the other stream other subjects, or ours \
                 (stream.subjects): `nats --js-domain DOMAIN stream edit NAME --subjects …`"
                .to_owned(),
            Self::Uncovered {
                name,
                subject,
                subjects,
            } => uncovered_fix(&options.stream, (name, subjects), subject),
            Self::Unsendable { .. } => "raise the server's limit, or correct what writes \
                 such rows; the event is sent as soon as it fits"
                .to_owned(),
            Self::StreamChanged { .. } => "nothing: what Postgres still has is sent again; \
                 `outjet verify` tells whether that is all, and `outjet recover` publishes the rest"
                .to_owned(),
            Self::StoredSince { .. } => {
                "type the command again: it appends only what the stream lacks".to_owned()
            }
            Self::BucketDenied(_) => format!("allow our user to publish to {}", of_record(options)),
            Self::LineTooLong(_) => LINE_FIX.to_owned(),
            Self::Broken(_) => {
                format!("nothing if it passes; else `nats stream info {name}` and the server's log")
            }
        }
    }
}

/// What is done about a line that is too long.
const LINE_FIX: &str = "nothing: an event whose subject does not fit becomes a dead letter; \
    max_control_line in the server's configuration says what fits";

/// Why a stream is not what it was.
const CHANGED: &str = "somebody changed it, or the server lost what it had not written to disk";

/// Why a stream that was read holds more.
const STORED_SINCE: &str =
    "it was under way when an outjet ended or NATS was away, and may be a row that was lacking";

/// Why a stream is no bucket for bodies.
const NO_BUCKET: &str = "publish.on_oversize is object_store, and it was not made as a bucket";

/// Why the stream is ahead of a leader, and what to do.
const SUCCEEDED: &str = "a standby of the database was promoted, and another outjet leads there";
const SUCCEEDED_FIX: &str = "nothing: this one looks again which server it is connected to";

fn make_room(bucket: &str) -> String {
    format!(
        "nothing if it passes; else make room: `nats stream edit {bucket} --max-bytes`, or delete \
         objects that nobody needs"
    )
}

fn uncovered_fix(ours: &StreamOptions, (name, subjects): (&str, &str), subject: &str) -> String {
    if ours.shared && name == ours.name {
        // What others have there is not known here.
        return format!(
            "add {subject:?} to stream.subjects, and to the stream's own with \
             `nats stream edit {name}`; or change publish.subject"
        );
    }
    let edit = ours.ingress.edit(name, &with_subject(subjects, subject));
    format!("`{edit}`, or change publish.subject")
}

/// The whole list, because the flag replaces what was there; the server refuses it if two of its
/// subjects overlap.
fn with_subject(subjects: &str, added: &str) -> Vec<String> {
    let listed = subjects.split(", ").filter(|subject| !subject.is_empty());
    let kept = listed.filter(|subject| !route::contains(added, subject));
    kept.chain([added]).map(str::to_owned).collect()
}

/// How a stream becomes what `stream.ingress` says; consumers notice nothing.
fn ingress_fix(ingress: Ingress, name: &str, subjects: &[String]) -> String {
    let edit = ingress.edit(name, subjects);
    match ingress.transform(name) {
        Some(SubjectTransform {
            source,
            destination,
        }) => format!(
            "`{edit} --transform-source '{source}' --transform-destination '{destination}'`, \
             or set stream.ingress to public"
        ),
        None => format!("`{edit} --no-transform`, or set stream.ingress to private"),
    }
}

const NOT_SET_UP: &str = "the connection to NATS cannot be set up";

const SETTING_FIX: &str = "correct the section nats of the configuration";

const TLS_FIX: &str = "set nats.tls.ca (NATS_CA), and cert and key if the server wants them; \
    the host in nats.url must be in the server's certificate";

/// What stands in the way of a connection, as far as the fix depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The server does not let us in.
    Credentials,
    /// What we should sign in with cannot be used.
    Setting,
    /// No server is named as one.
    Address,
    /// Certificates.
    Tls,
    /// Something takes our connection, and does not speak.
    Silence,
    /// Nothing is there that we can talk to.
    Absence,
}

impl Refusal {
    fn of(error: &ConnectError) -> Self {
        use ConnectErrorKind as Kind;
        if error.refused() {
            return Self::Credentials;
        }
        match error.kind() {
            Kind::Credentials(_) => Self::Setting,
            Kind::Address { .. } | Kind::NoServer => Self::Address,
            Kind::TimedOut(_) => Self::Silence,
            Kind::TlsRefused | Kind::TlsSetup(_) | Kind::TlsHandshake(_) => Self::Tls,
            Kind::Servers(_) if error.tls() => Self::Tls,
            Kind::Servers(_)
            | Kind::Resolve(_)
            | Kind::Unreachable(_)
            | Kind::Refused(_)
            | Kind::Expired(_)
            | Kind::Server(_)
            | Kind::LameDuck
            | Kind::Closed
            | Kind::Lost(_)
            | Kind::Malformed(_) => Self::Absence,
        }
    }
}

/// The kind says no more than the problem where it has a source.
fn connect_cause(kind: &ConnectErrorKind) -> String {
    match kind {
        ConnectErrorKind::TimedOut(_) => "no answer within nats.connect_timeout".to_owned(),
        kind => kind.source().map_or_else(|| kind.to_string(), chain),
    }
}

fn connect_fix(refusal: Refusal, options: &Options) -> String {
    match refusal {
        Refusal::Credentials => {
            "set nats.creds (NATS_CREDS), nats.user and nats.password, nats.token or nats.nkey"
                .to_owned()
        }
        Refusal::Setting => SETTING_FIX.to_owned(),
        Refusal::Address => "correct nats.url (NATS_URL): nats://host:4222".to_owned(),
        Refusal::Tls => TLS_FIX.to_owned(),
        Refusal::Silence => "check nats.url (NATS_URL) and that the server runs".to_owned(),
        Refusal::Absence => format!(
            "start the server, or correct nats.url (NATS_URL), now {}",
            options.nats.display()
        ),
    }
}

/// The permissions that publishing needs, as the server's configuration spells them.
fn permissions(options: &Options) -> String {
    let inbox = options.nats.inbox_prefix.as_deref().unwrap_or("_INBOX");
    let api = options.nats.api();
    let streams = [&options.stream].into_iter().chain(&options.dead_letters);
    let streams = streams.chain(&options.delayed).chain(&options.bodies);
    let subjects = streams.map(|stream| {
        let (name, subjects) = (&stream.name, stream.entrances().join(", "));
        let purge = match stream.objects {
            true => format!(", {api}.STREAM.PURGE.{name}"),
            false => String::new(),
        };
        format!("{subjects}, {api}.STREAM.INFO.{name}, {api}.STREAM.MSG.GET.{name}{purge}")
    });
    let bucket = options.record.then(|| of_record(options));
    let subjects = subjects.chain(bucket).collect::<Vec<_>>().join(", ");
    format!("allow our user to publish to {subjects} and to subscribe to {inbox}.>")
}

/// What the record takes, as the server's configuration spells it.
fn of_record(options: &Options) -> String {
    let (stream, api) = (&options.stream.name, options.nats.api());
    let (keys, name) = (
        format!("$KV.{}.>", record_bucket(stream)),
        record_stream(stream),
    );
    let create = match options.stream.create {
        true => format!(", {api}.STREAM.CREATE.{name}"),
        false => String::new(),
    };
    format!(
        "{}, {api}.STREAM.INFO.{name}, {api}.STREAM.MSG.GET.{name}{create}",
        record_entrance(options.nats.domain.as_deref(), &keys)
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;
    use crate::nats::{Connection, Options as NatsOptions};

    async fn refusal(server: &str, change: impl FnOnce(&mut NatsOptions)) -> Refusal {
        let mut options = NatsOptions::of_servers(vec![server.to_owned()]);
        change(&mut options);
        match Connection::open(&options).await {
            Ok(_) => panic!("nobody is there"),
            Err(error) => Refusal::of(&error),
        }
    }

    #[tokio::test]
    async fn what_keeps_us_from_a_server_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let refused = |change: fn(&mut NatsOptions)| refusal(&address, change);
        let silent = refused(|nats| nats.connect_timeout = Duration::from_millis(50));
        assert_eq!(silent.await, Refusal::Silence);
        let no_seed = refused(|nats| nats.nkey = Some("none".to_owned()));
        assert_eq!(no_seed.await, Refusal::Credentials);
        let no_user = refused(|nats| nats.password = Some("secret".to_owned()));
        assert_eq!(no_user.await, Refusal::Setting);
        let no_file = refused(|nats| nats.creds = Some("/none/of.creds".into()));
        assert_eq!(no_file.await, Refusal::Setting);
        assert_eq!(refusal("ws://a", |_| {}).await, Refusal::Address);
        let none = refused(|nats| nats.servers.clear());
        assert_eq!(none.await, Refusal::Address);
        drop(listener);
        assert_eq!(refused(|_| {}).await, Refusal::Absence);
        let several = refused(|nats| nats.servers.push(nats.servers[0].clone()));
        assert_eq!(several.await, Refusal::Absence);
    }
}
