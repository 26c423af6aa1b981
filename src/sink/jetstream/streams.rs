//! What a stream must be to be appended to, how one is made that is missing, and what is worth
//! knowing of one that is there. Asks through an [`Api`], and knows no connection.

use std::time::Duration;

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, PersistenceMode, RetentionPolicy, StorageType,
};
use time::format_description::well_known::Rfc3339;

use super::error::Error;
use super::options::{Storage, StreamOptions};
use crate::nats::wire::Server;
use crate::nats::{Api, ApiError, RequestError};

/// Of a stream with other writers, which tells a copy of a message by its id alone: a leader that
/// is cut off is succeeded within seconds, and what it has sent must be known for longer.
pub const SHARED_WINDOW_MIN: Duration = Duration::from_secs(60);

/// Before a stream is made: older servers take the setting, and forget it. 2.12.0 takes no message
/// ids in a batch.
fn check_version(server: &Server, stream: &StreamOptions) -> Result<(), Error> {
    if !stream.atomic || server.at_least(2, 12, 1) {
        return Ok(());
    }
    let version = server.version.clone();
    Err(if stream.schedules {
        Error::NoSchedules { version }
    } else {
        Error::NoBatches { version }
    })
}

/// A stream that can be appended to; whether it was missing and was created.
pub(crate) async fn read_usable(api: &Api, stream: &StreamOptions) -> Result<(Info, bool), Error> {
    check_version(&api.requests().server(), stream)?;
    let (mut info, created) = read_or_create(api, stream).await?;
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

/// A stream of any kind.
pub(crate) async fn read_or_create(
    api: &Api,
    stream: &StreamOptions,
) -> Result<(Info, bool), Error> {
    match api.stream(&stream.name).await {
        Ok(Ok(found)) => Ok((found, false)),
        Ok(Err(error)) if error.missing() => Ok((create(api, stream).await?, true)),
        Ok(Err(error)) => Err(refused(&error)),
        Err(RequestError::Subject(name)) => {
            Err(Error::Unusable(format!("{name:?} is no stream name")))
        }
        Err(error) => Err(Error::unanswered("read the stream", error)),
    }
}

/// `JSNotEnabledErr`, and `JSNotEnabledForAccountErr` and `JSNoAccountErr` of nats-server.
const NOT_ENABLED: u64 = 10076;
const NOT_FOR_ACCOUNT: [u64; 2] = [10039, 10035];

fn refused(error: &ApiError) -> Error {
    match error.err_code {
        NOT_ENABLED => Error::NoJetStream,
        code if NOT_FOR_ACCOUNT.contains(&code) => Error::NoJetStreamForAccount,
        _ => Error::Broken(format!("read the stream: {error}")),
    }
}

async fn create(api: &Api, stream: &StreamOptions) -> Result<Info, Error> {
    if !stream.create {
        return Err(Error::StreamMissing(stream.name.clone()));
    }
    let created = api.create_stream(&config(stream)).await;
    let created = created.map_err(|error| Error::unanswered("create the stream", error))?;
    created.map_err(|error| Error::StreamNotCreated {
        name: stream.name.clone(),
        reason: error.to_string(),
    })
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
            config.persist_mode == Some(PersistenceMode::Async),
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
pub(crate) fn warnings(config: &Config, shared: bool) -> Vec<&'static str> {
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
    use super::*;

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
}
