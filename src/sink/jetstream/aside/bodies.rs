//! Bodies that no message holds go into a bucket of the JetStream object store, and their events go
//! out without them and say where they are (a claim check). Each in its turn: when everything
//! before it is stored, and nothing behind it is sent meanwhile.
//!
//! An object is written as all clients of NATS write one: its chunks under a random name, then the
//! message that makes them an object. So what is cut off leaves no half of an object, two writers
//! at once leave a whole one, and consumers read it with their client. The client's own `put` would
//! leave the chunks of what the bucket refused, and tells a full bucket from a broken connection
//! by its text alone.
//!
//! An object is named by the event's id and the body's digest: whoever sends the event again finds
//! it there; and in a reference the name says what a consumer must get, whoever wrote the object.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::object_store::{ObjectInfo, ObjectOptions};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tracing::debug;

use super::super::client::{Client, HEADER_BYTES_MAX};
use super::super::error::Error;
use super::super::headers::{Outgoing, block_bytes, row_lines};
use super::super::messages::Messages;
use super::super::options::StreamOptions;
use super::super::reply::Reply;
use crate::event::Event;
use crate::fault;

/// What all clients choose if nobody says otherwise.
const CHUNK_BYTES: usize = 128 * 1024;

/// What a reference and our own headers take at most beside those of the row.
const OWN_HEADER_BYTES: usize = 2048;

/// As much of an id as the name of an object has: it becomes part of a subject.
const ID_CHARS_MAX: usize = 64;

/// The bucket of an `Options::bodies`, for one epoch.
pub(crate) struct Bodies {
    stream: String,
    bucket: String,
    chunk_bytes: usize,
    /// What it takes if it is empty.
    bytes_max: usize,
    /// Its objects vanish after a time.
    ages: bool,
    messages: Messages,
    puts: u64,
    /// The last event whose body is in the bucket, without it.
    reference: Option<Event>,
}

/// The event as it is sent: without its body, if that is in the bucket.
pub(crate) fn outgoing<'a>(bodies: &'a Option<Bodies>, event: &'a Event) -> &'a Event {
    let reference = bodies.as_ref().and_then(|bodies| bodies.reference.as_ref());
    reference
        .filter(|reference| reference.position == event.position)
        .unwrap_or(event)
}

impl Bodies {
    /// Whether the event can be sent once its body is in the bucket, and that was not tried yet.
    pub(crate) fn helps(&self, event: &Event) -> bool {
        let headers = block_bytes(row_lines(event).len()) + OWN_HEADER_BYTES;
        let tried = self.reference.as_ref().map(|event| event.position);
        let fits = headers <= HEADER_BYTES_MAX && event.payload.len() <= self.bytes_max;
        tried != Some(event.position) && fits
    }

    /// Opens the bucket, or creates it if told so.
    pub(crate) async fn open(client: &Client, stream: &StreamOptions) -> Result<Self, Error> {
        let found = Box::pin(client.open_stream(stream)).await?;
        Ok(Self {
            stream: stream.name.clone(),
            bucket: stream.bucket().to_owned(),
            chunk_bytes: CHUNK_BYTES.min(client.message_bytes_max(&found)),
            bytes_max: usize::try_from(found.config.max_bytes)
                .ok()
                .filter(|max| *max > 0)
                .unwrap_or(usize::MAX),
            ages: !found.config.max_age.is_zero(),
            messages: client.messages(&stream.name),
            puts: 0,
            reference: None,
        })
    }

    /// Has the body in the bucket, and makes the reference. `false`: there is no body, or the
    /// object's subject is too long for the server.
    pub(crate) async fn store(
        &mut self,
        client: &Client,
        (event, now): (&Event, OffsetDateTime),
        within: Duration,
    ) -> Result<bool, Error> {
        let body = event.payload_alone();
        if body.is_empty() {
            return Ok(false);
        }
        let object = self.object((client, now), &event.id, &body).await;
        let name = &object.name;
        if !client.line(&self.subject_of(name)).fits() {
            return Ok(false);
        }
        let known = self.known(name).await?;
        let there = known
            .as_ref()
            .is_some_and(|known| known.digest == object.digest);
        // What goes out again is to be there for as long as what goes out for the first time.
        if !there || self.ages && event.replayed {
            let put = self.put(client, (&object, &body), within);
            if let Err(reason) = Box::pin(put).await? {
                self.purge(&object.nuid).await?;
                return Err(Error::BodyRefused {
                    name: self.stream.clone(),
                    id: event.id.clone(),
                    reason,
                });
            }
            if let Some(known) = &known {
                self.purge(&known.nuid).await?;
            }
        }
        fault::point("body_stored");
        let bytes = body.len();
        debug!(id = event.id, position = %event.position, bytes, name, "a body is in the bucket");
        let reference = format!("nats-object://{}/{name}", self.bucket);
        self.reference = Some(event.referring_to(&reference));
        Ok(true)
    }

    /// What the object of this body is to be.
    async fn object(
        &mut self,
        (client, now): (&Client, OffsetDateTime),
        id: &str,
        body: &Bytes,
    ) -> ObjectInfo {
        let digest = digest(body).await;
        self.puts += 1;
        ObjectInfo {
            name: object_name(id, &digest),
            description: None,
            metadata: HashMap::new(),
            headers: None,
            options: Some(ObjectOptions {
                link: None,
                max_chunk_size: Some(self.chunk_bytes),
            }),
            bucket: self.bucket.clone(),
            // Unique, as the connection's name is.
            nuid: format!("{}{}", client.name, self.puts),
            size: body.len(),
            chunks: body.len().div_ceil(self.chunk_bytes),
            // Other clients want a time.
            modified: Some(now),
            digest: Some(format!("SHA-256={}", URL_SAFE.encode(digest))),
            deleted: false,
        }
    }

    /// The object of this name that is there.
    async fn known(&self, name: &str) -> Result<Option<ObjectInfo>, Error> {
        let subject = self.subject_of(name);
        let last = Box::pin(self.messages.last_whole_of(&subject)).await?;
        let known = last.and_then(|last| serde_json::from_slice(&last.body).ok());
        Ok(known.filter(|known: &ObjectInfo| !known.deleted))
    }

    /// Writes an object. The inner error is what the bucket says against it.
    async fn put(
        &self,
        client: &Client,
        (object, body): (&ObjectInfo, &Bytes),
        within: Duration,
    ) -> Result<Result<(), String>, Error> {
        let chunks = self.chunks_of(&object.nuid);
        let mut from = 0;
        while from < body.len() {
            let to = body.len().min(from + self.chunk_bytes);
            let chunk = Outgoing {
                subject: &chunks,
                lines: "",
                body: &body[from..to],
            };
            let appended = self.append(client, chunk, within).await?;
            if appended.is_err() {
                return Ok(appended);
            }
            fault::point("body_in_part");
            from = to;
        }
        // The last of its name is the only one.
        let object_message = Outgoing {
            subject: &self.subject_of(&object.name),
            lines: "Nats-Rollup: sub\r\n",
            body: &serde_json::to_vec(object).expect("texts and numbers are JSON"),
        };
        self.append(client, object_message, within).await
    }

    async fn append(
        &self,
        client: &Client,
        message: Outgoing<'_>,
        within: Duration,
    ) -> Result<Result<(), String>, Error> {
        let answer = client.request(message, (&self.stream, within));
        Ok(match answer.await? {
            Reply::Stored { .. } => Ok(()),
            Reply::Duplicate(_) => Err("the server calls it a duplicate".to_owned()),
            Reply::Refused(reason) | Reply::Unclear(reason) => Err(reason),
        })
    }

    async fn purge(&self, nuid: &str) -> Result<(), Error> {
        let chunks = self.chunks_of(nuid);
        Box::pin(self.messages.purge(&chunks)).await.map(drop)
    }

    fn chunks_of(&self, nuid: &str) -> String {
        format!("$O.{}.C.{nuid}", self.bucket)
    }

    /// Where the message stands that makes chunks an object.
    fn subject_of(&self, name: &str) -> String {
        format!("$O.{}.M.{}", self.bucket, URL_SAFE.encode(name))
    }
}

/// SHA-256; lets others run meanwhile.
async fn digest(body: &Bytes) -> [u8; 32] {
    let mut sha = Sha256::new();
    for part in body.chunks(CHUNK_BYTES) {
        sha.update(part);
        tokio::task::yield_now().await;
    }
    sha.finalize().into()
}

/// `<id>/<digest in hex>`: characters that stand in a URI as they are.
fn object_name(id: &str, digest: &[u8; 32]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    let id = id.chars().take(ID_CHARS_MAX);
    let id = id.map(|c| if plain(c) { c } else { '_' });
    let digest = digest.iter().map(|byte| format!("{byte:02x}"));
    id.chain(['/']).collect::<String>() + &digest.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_an_object_stands_in_a_uri_as_it_is_and_differs_with_the_body() {
        let name = |id: &str, body: u8| object_name(id, &[body; 32]);
        let zeros = "00".repeat(32);
        assert_eq!(name("public.t:7", 0), format!("public.t:7/{zeros}"));
        assert_eq!(name("a/b %\u{fc}", 0), format!("a_b___/{zeros}"));
        assert_ne!(name("a/b", 0), name("a b", 1));
        let long = name(&"x".repeat(5000), 0);
        assert_eq!(long, format!("{}/{zeros}", "x".repeat(ID_CHARS_MAX)));
    }
}
