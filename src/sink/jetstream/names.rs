//! What things are called in NATS: headers, subjects, streams, buckets, and the reasons of dead
//! letters. Pure.

use sha2::{Digest, Sha256};

use crate::event::Event;
use crate::event::lineage::Source;

/// Whose event a message is, its place in the commit order, and its id: [`PLAIN_ID`] where
/// [`MESSAGE_ID`] was left out.
pub(crate) const SOURCE: &str = "Outjet-Source";
pub(crate) const POSITION: &str = "Outjet-Position";
pub(crate) const MESSAGE_ID: &str = "Nats-Msg-Id";
pub(crate) const PLAIN_ID: &str = "Outjet-Id";

/// On what was published before and goes out again.
pub(crate) const REPLAY: &str = "Outjet-Replay";

/// What a dead letter says about itself besides.
pub(crate) const REASON: &str = "Outjet-Reason";
pub(crate) const ERROR: &str = "Outjet-Error";
pub(crate) const TABLE: &str = "Outjet-Table";
/// The length of a body that was too large to be kept; the row is found by table and id.
pub(crate) const BODY_BYTES: &str = "Outjet-Body-Bytes";

/// The header that makes the chain.
pub(crate) const EXPECTED_LAST_SEQUENCE: &str = "Nats-Expected-Last-Sequence";
pub(crate) const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
pub(crate) const EXPECTED_STREAM: &str = "Nats-Expected-Stream";

/// How long the server keeps a message.
pub(crate) const TTL: &str = "Nats-TTL";

/// Atomic batches (ADR-50).
pub(crate) const BATCH_ID: &str = "Nats-Batch-Id";
pub(crate) const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
pub(crate) const BATCH_COMMIT: &str = "Nats-Batch-Commit";

/// What these three and the expectation take at most, with an id of 43 characters (a number behind
/// the last token of an inbox).
pub(crate) const BATCH_HEADER_BYTES: usize = 160;

/// Message schedules (ADR-51).
pub(crate) const SCHEDULE: &str = "Nats-Schedule";
pub(crate) const SCHEDULE_TARGET: &str = "Nats-Schedule-Target";
pub(crate) const SCHEDULE_TTL: &str = "Nats-Schedule-TTL";

/// What tells that a key of a bucket was deleted (ADR-8).
pub(crate) const KV_OPERATION: &str = "KV-Operation";

/// The reason of dead letters that no message holds.
pub(crate) const TOO_LARGE: &str = "too_large";

/// The reason of dead letters whose subject no server takes, or this one does not.
pub(crate) const UNFIT_SUBJECT: &str = "subject";

/// The reason of dead letters that cannot be kept until they are due.
pub(crate) const NOT_DELAYED: &str = "delayed";

/// The subject of dead letters that have none of their own. Ends with the stream's name, because
/// no two streams of an account may listen on the same subject.
pub(crate) fn invalid_subject(stream: &str) -> String {
    format!("dlq._invalid.{stream}")
}

/// What the private subjects of all streams begin with.
pub(crate) const PRIVATE: &str = "_outjet.";

/// What the private subjects of a stream begin with.
pub(crate) fn private_prefix(stream: &str) -> String {
    format!("{PRIVATE}{stream}.")
}

/// What stands before the subject of an event that was delayed.
pub(crate) const TARGET_PREFIX: &str = "delayed.";

/// The last token of a mark's subject.
const MARK: &str = "mark";

/// What the schedules of a stream have their subjects under.
pub(crate) fn schedules_prefix(stream: &str) -> String {
    format!("_outjet.delayed.{stream}")
}

/// The subject of an event's mark.
pub(crate) fn mark_subject(stream: &str, event: &Event) -> String {
    format!("{}.{MARK}", schedule_subject(stream, event))
}

/// The subject of an event's schedule.
pub(crate) fn schedule_subject(stream: &str, event: &Event) -> String {
    let Event { position, id, .. } = event;
    format!("{}.{}.{position}", schedules_prefix(stream), token(id))
}

/// The subject of the schedules of all events with this id.
pub(crate) fn schedules_of(stream: &str, id: &str) -> String {
    format!("{}.{}.*", schedules_prefix(stream), token(id))
}

/// An id as one token, different for different ids.
fn token(id: &str) -> String {
    let mut token = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' => token.push(byte.into()),
            _ => token.push_str(&format!("%{byte:02X}")),
        }
    }
    token
}

/// How the name of an object bucket's stream begins.
pub(crate) const OBJECTS: &str = "OBJ_";

/// The bucket of a stream's records: `OUTJET_<STREAM>`. Names of buckets have fewer characters than
/// names of streams; the hash keeps two streams apart that would have the same.
pub(crate) fn record_bucket(stream: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if stream.chars().all(plain) {
        return format!("OUTJET_{stream}");
    }
    let replaced: String = stream
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    let hash = Sha256::digest(stream.as_bytes());
    let digits: String = hash
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("OUTJET_{replaced}{digits}")
}

/// The stream that this bucket is.
pub(crate) fn record_stream(stream: &str) -> String {
    format!("KV_{}", record_bucket(stream))
}

/// The key of a slot's record. Streams that are shared may have writers of several clusters.
pub(crate) fn record_key(shared: bool, source: &Source) -> String {
    match shared {
        true => format!("{}.{}", source.system, source.slot),
        false => source.slot.clone(),
    }
}

/// Where to publish to a subject of a record's bucket.
pub(crate) fn record_entrance(domain: Option<&str>, subject: &str) -> String {
    match domain {
        // No twin in another domain answers this (nats.go, kv.go: useJSPfx).
        Some(domain) => format!("$JS.{domain}.API.{subject}"),
        None => subject.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::route;

    #[test]
    fn different_ids_have_different_subjects_of_one_token() {
        let ids = ["a", "A", "a.b", "a%2Eb", "public.t:7", "ä", "*", ">", "a b"];
        let mut tokens: Vec<_> = ids.iter().map(|id| token(id)).collect();
        for token in &tokens {
            assert_eq!(route::check_subject(&format!("x.{token}")), Ok(()));
            assert!(route::matches("x.*", &format!("x.{token}")), "{token}");
        }
        tokens.sort();
        tokens.dedup();
        assert_eq!(tokens.len(), ids.len());
    }
}
