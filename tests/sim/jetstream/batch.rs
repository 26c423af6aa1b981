//! Atomic batches (ADR-50): staged until the last one comes, then stored together or not at all.

use bytes::Bytes;

use super::accept::{Marks, Outcome, check_features};
use super::header::number;
use super::json::Refusal;
use super::store::Draft;
use super::stream::Stream;
use super::version::Version;

/// What has come of a batch.
pub(super) struct Batch {
    messages: Vec<Message>,
    /// When the last of it came.
    since: i64,
}

struct Message {
    subject: Bytes,
    headers: Bytes,
    body: Bytes,
}

/// A batch is forgotten when nothing of it has come for so long.
const IDLE: i64 = 10_000_000_000;

/// Most that are open in one stream, and most messages of one.
const OPEN_MAX: usize = 50;
const MESSAGES_MAX: usize = 1000;

const ID_BYTES_MAX: usize = 64;

fn incomplete() -> Outcome {
    let text = "atomic publish batch is incomplete";
    Outcome::Refused(Refusal::new(400, 10176, text))
}

impl Stream {
    /// Takes a message of a batch.
    pub(super) fn accept_in_batch(
        &mut self,
        draft: Draft<'_>,
        marks: &Marks<'_>,
        version: Version,
    ) -> Outcome {
        let refused = |err_code, text| Outcome::Refused(Refusal::new(400, err_code, text));
        if !self.config.allow_atomic {
            return refused(10174, "atomic publish is disabled");
        }
        let id = marks.batch.unwrap_or_default();
        if id.len() > ID_BYTES_MAX {
            return refused(10179, "atomic publish batch ID is invalid");
        }
        let Some(sequence) = marks.batch_sequence.and_then(number) else {
            return refused(10175, "atomic publish sequence is missing");
        };
        let now = draft.time;
        self.batches.retain(|_, batch| now - batch.since < IDLE);
        let commit = match marks.batch_commit {
            None => None,
            Some(b"1") => Some(Commit::WithThis),
            Some(b"eob") if version.has_end_of_batch() => Some(Commit::WithoutThis),
            Some(_) => {
                self.batches.remove(id);
                return refused(10200, "atomic publish batch commit is invalid");
            }
        };
        if let Err(refusal) = self.stage((id, sequence), &draft) {
            return refusal;
        }
        let Some(commit) = commit else {
            return Outcome::Staged;
        };
        let mut batch = self.batches.remove(id).expect("it was just staged");
        if commit == Commit::WithoutThis {
            batch.end_before_last();
        }
        match self.check_batch(&batch, now, version) {
            Err(refusal) => Outcome::Refused(refusal),
            Ok(()) => self.commit(&batch, (draft, id), version),
        }
    }

    fn stage(&mut self, (id, sequence): (&[u8], u64), draft: &Draft<'_>) -> Result<(), Outcome> {
        let (open, now) = (self.batches.len(), draft.time);
        if sequence == 1 {
            if self.batches.remove(id).is_some() {
                return Err(incomplete());
            }
            if open >= OPEN_MAX {
                let text = "atomic publish too many inflight";
                return Err(Outcome::Refused(Refusal::new(429, 10210, text)));
            }
            let messages = Vec::new();
            let since = now;
            self.batches.insert(id.to_vec(), Batch { messages, since });
        }
        let Some(batch) = self.batches.get_mut(id) else {
            return Err(incomplete());
        };
        if batch.messages.len() as u64 + 1 != sequence {
            self.batches.remove(id);
            return Err(incomplete());
        }
        if batch.messages.len() >= MESSAGES_MAX {
            self.batches.remove(id);
            let text = "atomic publish batch is too large: 1000";
            return Err(Outcome::Refused(Refusal::new(400, 10199, text)));
        }
        batch.since = now;
        batch.messages.push(Message {
            subject: Bytes::copy_from_slice(draft.subject),
            headers: Bytes::copy_from_slice(draft.headers),
            body: Bytes::copy_from_slice(draft.body),
        });
        Ok(())
    }

    fn check_batch(&self, batch: &Batch, now: i64, version: Version) -> Result<(), Refusal> {
        let mut ids: Vec<&[u8]> = Vec::new();
        let mut bytes = 0;
        for (index, message) in batch.messages.iter().enumerate() {
            let marks = Marks::read(&message.headers);
            check_features(&self.config, &marks, version)?;
            if let Some(id) = marks.id {
                if !version.has_ids_in_batches() {
                    let text = "atomic publish unsupported header used: Nats-Msg-Id";
                    return Err(Refusal::new(400, 10177, text));
                }
                if ids.contains(&id) || self.known_id(id, now).is_some() {
                    let text = "atomic publish batch contains duplicate message id";
                    return Err(Refusal::new(400, 10201, text));
                }
                ids.push(id);
            }
            if let Some(expected) = marks.expected_last {
                let last = self.store.last() + index as u64;
                if number(expected) != Some(last) {
                    return Err(Refusal::wrong_sequence(last));
                }
                // Only the first may say it, even where it is right.
                if index > 0 {
                    return Err(Refusal::new(400, 10164, "wrong last sequence"));
                }
            }
            if let Some(expected) = marks.expected_last_of_subject {
                self.check_in_batch((batch, index), expected)?;
            }
            let draft = message.draft(now);
            self.check_size(&draft)?;
            bytes += self.size_of(&draft);
        }
        let subject = batch.messages.first().map(|first| &first.subject);
        let room = (batch.messages.len() as u64, bytes);
        self.check_room(subject.map_or(b"", |subject| subject), room, version)
    }

    /// A batch that has a message with this subject already has moved its last sequence number.
    fn check_in_batch(
        &self,
        (batch, index): (&Batch, usize),
        expected: &[u8],
    ) -> Result<(), Refusal> {
        let subject = &batch.messages[index].subject;
        let mut before = batch.messages[..index].iter();
        if before.any(|message| message.subject == subject) {
            return Err(Refusal::new(400, 10164, "wrong last sequence"));
        }
        let last = self.store.last_of(subject);
        let last = last.map_or(0, |stored| stored.sequence);
        match number(expected) == Some(last) {
            true => Ok(()),
            false => Err(Refusal::wrong_sequence(last)),
        }
    }

    fn commit(
        &mut self,
        batch: &Batch,
        (last, id): (Draft<'_>, &[u8]),
        version: Version,
    ) -> Outcome {
        let mut sequence = 0;
        for message in &batch.messages {
            let marks = Marks::read(&message.headers);
            let draft = Draft {
                writer: last.writer,
                ..message.draft(last.time)
            };
            sequence = self.store_with(draft, &marks, version);
        }
        let id = String::from_utf8_lossy(id).into_owned();
        Outcome::Committed(sequence, id, batch.messages.len())
    }
}

impl Batch {
    /// The last message only says that the one before it was the last.
    fn end_before_last(&mut self) {
        self.messages.pop();
        if let Some(last) = self.messages.last_mut() {
            let mut headers = last.headers.to_vec();
            headers.truncate(headers.len().saturating_sub(b"\r\n".len()));
            headers.extend_from_slice(b"Nats-Batch-Commit: 1\r\n\r\n");
            last.headers = headers.into();
        }
    }
}

impl Message {
    fn draft(&self, time: i64) -> Draft<'_> {
        Draft {
            subject: &self.subject,
            headers: &self.headers,
            body: &self.body,
            writer: super::Writer::Stranger,
            time,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Commit {
    WithThis,
    WithoutThis,
}
