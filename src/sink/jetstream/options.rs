//! What the JetStream sink must be told. The configuration builds it; nothing here reads files.

use std::time::Duration;

use async_nats::jetstream::stream::SubjectTransform;

use super::names::{OBJECTS, TOO_LARGE, invalid_subject, private_prefix, schedules_prefix};
use crate::event::Rejected;
use crate::event::lineage::Source;
use crate::event::route;
pub use crate::nats::Options as NatsOptions;
use crate::sink::Kept;

/// A new leader of a replicated stream may not have caught up yet with what it has in its log; it
/// does within an election or two.
pub const BEHIND_MAX: Duration = Duration::from_secs(5);

/// Everything the sink must be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to reach NATS.
    pub nats: NatsOptions,
    /// The stream that is appended to.
    pub stream: StreamOptions,
    /// The stream of what cannot be published; `None` to stop there.
    pub dead_letters: Option<StreamOptions>,
    /// Whether those take what is too large, and what is wrong with an event otherwise.
    pub buries: Buries,
    /// Whether what a leader knows is kept beside the stream.
    pub record: bool,
    /// Whose events it speaks of: where they are ours, the newest of the stream may be those of the
    /// cluster that ours has replaced.
    pub whose: fn(&Kept) -> Option<Source>,
    /// Whether ours takes the place of another cluster now.
    pub takes_over: bool,
    /// What stands behind this sequence number was not read when it was decided what is to be
    /// appended; `None`: the guard, or the record, knows of it.
    pub read_to: Option<u64>,
    /// The bucket for bodies that no message holds; `None`: their events cannot be published.
    pub bodies: Option<StreamOptions>,
    /// The stream of what is delayed; `None` to publish that like all else.
    pub delayed: Option<StreamOptions>,
    /// Most events sent and not acknowledged. A server queues 10 000 (2.11) or 100 000 (2.12)
    /// messages a stream and refuses more; beyond 4096 nothing gets faster.
    pub in_flight_max: usize,
    /// Most bytes of events that are ever handed over and not settled.
    pub in_flight_bytes_max: usize,
    /// How long events may be in flight without a single acknowledgement.
    pub ack_timeout: Duration,
    /// How long an event must have been in the stream before it is released; zero: it is at once.
    pub hold: Duration,
    /// After how long without a settled event a failed attempt is the last; `None`: never.
    pub give_up_after: Option<Duration>,
}

impl Options {
    /// The stream alone, without its dead letters, its bodies and what is delayed.
    pub fn of_stream(&self) -> Self {
        Self {
            dead_letters: None,
            bodies: None,
            delayed: None,
            record: false,
            ..self.clone()
        }
    }

    /// The stream of the dead letters as one of its own.
    pub fn of_dead_letters(&self) -> Self {
        let stream = self.stream.dead_letters();
        Self {
            stream,
            ..self.of_stream()
        }
    }

    /// The stream of the bucket as one of its own, if there is a bucket.
    pub fn of_bodies(&self) -> Option<Self> {
        let stream = self.bodies.clone()?;
        Some(Self {
            stream,
            ..self.of_stream()
        })
    }

    /// The stream of what is delayed as one of its own.
    pub fn of_delayed(&self) -> Self {
        let stream = self.stream.delayed();
        Self {
            stream,
            ..self.of_stream()
        }
    }
}

/// What becomes a dead letter. It stops before the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buries {
    /// What no message holds.
    pub oversize: bool,
    /// All else that cannot be published.
    pub others: bool,
}

impl Buries {
    pub(crate) fn takes(self, rejected: &Rejected) -> bool {
        match rejected.reason {
            TOO_LARGE => self.oversize,
            _ => self.others,
        }
    }
}

/// The stream that is appended to, and how it is made if it is missing.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Its name.
    pub name: String,
    /// What it stores events under.
    pub subjects: Vec<String>,
    /// Whether it also listens on these.
    pub ingress: Ingress,
    /// Whether others write into it, too.
    pub shared: bool,
    /// Copies in the cluster.
    pub replicas: usize,
    /// File, or memory.
    pub storage: Storage,
    /// Whether a missing stream is created.
    pub create: bool,
    /// How long the server remembers message ids: about 200 bytes each.
    pub duplicate_window: Duration,
    /// How long messages are kept; zero for ever.
    pub max_age: Duration,
    /// How many bytes are kept before the server refuses more; `None` without limit.
    pub max_bytes: Option<u64>,
    /// Whether it must be able to store the events of a transaction together (`allow_atomic`).
    pub atomic: bool,
    /// Whether its messages may have an end (`allow_msg_ttl`), where the server can do that.
    pub expires: bool,
    /// Whether the server must write into it what is due (`allow_msg_schedules`).
    pub schedules: bool,
    /// Whether it is a bucket of an object store, made as all clients of NATS make them.
    pub objects: bool,
}

impl StreamOptions {
    /// What of our subjects a stream takes that listens on these.
    pub(crate) fn subjects_among(&self, found: &[String]) -> Vec<String> {
        let ours = self.subjects.iter();
        let both = ours.flat_map(|ours| found.iter().map(|found| route::intersection(ours, found)));
        both.flatten().collect()
    }

    /// The stream of its dead letters, `<name>_DLQ`: made like it, and kept until somebody has
    /// looked.
    pub fn dead_letters(&self) -> Self {
        let mut subjects: Vec<_> = self.subjects.iter().map(|s| format!("dlq.{s}")).collect();
        let invalid = invalid_subject(&self.name);
        if !subjects
            .iter()
            .any(|pattern| route::matches(pattern, &invalid))
        {
            subjects.push(invalid);
        }
        Self {
            name: format!("{}_DLQ", self.name),
            subjects,
            max_age: Duration::ZERO,
            max_bytes: None,
            atomic: false,
            expires: false,
            shared: false,
            ..self.clone()
        }
    }

    /// The stream of a bucket: made like it, on the subjects that clients know.
    pub fn bodies(&self, bucket: &str, max_age: Duration) -> Self {
        let window = self.duplicate_window;
        Self {
            name: format!("{OBJECTS}{bucket}"),
            subjects: ["C", "M"]
                .map(|kind| format!("$O.{bucket}.{kind}.>"))
                .into(),
            ingress: Ingress::Public,
            max_age,
            max_bytes: None,
            // The server takes none that is longer than max_age.
            duplicate_window: if max_age.is_zero() {
                window
            } else {
                window.min(max_age)
            },
            atomic: false,
            expires: false,
            objects: true,
            ..self.clone()
        }
    }

    /// The name of the bucket whose stream this is.
    pub(crate) fn bucket(&self) -> &str {
        self.name.strip_prefix(OBJECTS).unwrap_or(&self.name)
    }

    /// What the stream listens on.
    pub(crate) fn entrances(&self) -> Vec<String> {
        let subjects = self.subjects.iter();
        let entrances = subjects.map(|subject| self.ingress.entrance(&self.name, subject));
        entrances.collect()
    }

    /// The stream of what is delayed, `<name>_DELAYED`: made like it, without a limit that a
    /// schedule could fall to before it is due.
    pub fn delayed(&self) -> Self {
        let subjects = self.subjects.iter().map(|s| format!("delayed.{s}"));
        let schedules = format!("{}.>", schedules_prefix(&self.name));
        Self {
            name: format!("{}_DELAYED", self.name),
            subjects: subjects.chain([schedules]).collect(),
            max_age: Duration::ZERO,
            max_bytes: None,
            atomic: true,
            schedules: true,
            shared: false,
            // A schedule names the subject that its event appears on: the stream must take that.
            ingress: Ingress::Public,
            ..self.clone()
        }
    }
}

/// On which subjects a stream takes its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// On those that it stores them under, and that consumers see.
    Public,
    /// On private ones, `_outjet.<STREAM>.<subject>` for each of its subjects, so that whoever
    /// publishes to the public ones writes nothing into it. The server takes the prefix off before
    /// it stores, counts or tells consumers anything (`subject_transform`, nats-server 2.10).
    Private,
}

impl Ingress {
    /// Where to publish what a stream is to store under a subject or pattern.
    pub(crate) fn entrance(self, stream: &str, subject: &str) -> String {
        match self {
            Self::Public => subject.to_owned(),
            Self::Private => private_prefix(stream) + subject,
        }
    }

    /// What the stream does to the subjects of what it takes.
    pub(crate) fn transform(self, stream: &str) -> Option<SubjectTransform> {
        match self {
            Self::Public => None,
            Self::Private => Some(SubjectTransform {
                source: private_prefix(stream) + ">",
                destination: ">".to_owned(),
            }),
        }
    }

    /// The arguments of `nats stream edit` for a stream with these public subjects.
    pub(crate) fn edit(self, stream: &str, subjects: &[String]) -> String {
        let entrances = subjects.iter().map(|s| self.entrance(stream, s));
        let entrances = entrances.collect::<Vec<_>>().join(",");
        format!("nats stream edit {stream} --subjects '{entrances}'")
    }
}

/// Where a stream keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory: lost with the servers.
    Memory,
}
