//! Events that cannot be published as they are, and what becomes of them: dropped, or corrected and
//! retried, or left among the dead letters.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_nats::jetstream;
use tokio::time::timeout;

use super::arena::Operator;
use super::plan::LetterFault;
use crate::harness::drain::{self, Stored};
use crate::harness::postgres::Session;

/// Where they are.
const LETTERS: &str = "OUTBOX_DLQ";

/// Ids that begin so have headers that no message can have, where there are such events.
pub(crate) const REJECTED_IDS: &str = "f[0-3]";

/// A broker or a server that is away does nothing.
const PATIENCE: Duration = Duration::from_millis(500);

/// What was done with them.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    /// Ids of those that were dropped, or may have been.
    dropped: HashSet<String>,
    /// How often those of an id were retried, at most.
    retried: HashMap<String, usize>,
}

/// Whether the event of this id cannot be published as it is.
pub(crate) fn is_rejected(id: &str) -> bool {
    let mut letters = id.bytes();
    letters.next() == Some(b'f')
        && letters
            .next()
            .is_some_and(|next| (b'0'..=b'3').contains(&next))
}

impl Letters {
    /// Does it; a retry that takes longer than it may last is killed. Says whether it was begun.
    pub(crate) async fn strike(
        &mut self,
        (operator, url): (&Operator, &str),
        jetstream: &jetstream::Context,
        (fault, lasts): (LetterFault, Duration),
    ) -> bool {
        let chosen = timeout(PATIENCE, chosen(jetstream, fault)).await;
        let Some((sequence, id)) = chosen.ok().flatten() else {
            return false;
        };
        match fault {
            LetterFault::Drop => {
                self.dropped.insert(id);
                let command = format!("dead-letters drop {sequence}");
                let _ = timeout(lasts, operator.types(&command)).await;
            }
            LetterFault::Retry => {
                let corrected = timeout(PATIENCE, correct(url, &id)).await;
                if corrected.ok().flatten().is_none() {
                    return false;
                }
                *self.retried.entry(id).or_default() += 1;
                let command = format!("dead-letters retry {sequence}");
                let _ = timeout(lasts, operator.types(&command)).await;
            }
        }
        true
    }

    /// What is wrong: each is there once, as a letter or corrected. A letter that was dropped need
    /// not be there; one whose retry was killed may be there beside its event, and be retried
    /// again.
    pub(crate) fn problems(
        &self,
        committed: &[String],
        (letters, published): (&[Stored], &HashMap<String, usize>),
    ) -> Vec<String> {
        let mut kept: HashMap<&str, usize> = HashMap::new();
        for letter in letters {
            *kept.entry(letter.id().unwrap_or("no id")).or_default() += 1;
        }
        let ids: HashSet<&str> = committed.iter().map(String::as_str).collect();
        let unknown = kept.keys().filter(|id| !ids.contains(*id));
        let mut problems: Vec<String> = unknown
            .map(|id| format!("a dead letter of {id}, which was never committed so"))
            .collect();
        for id in committed {
            let letters = kept.get(id.as_str()).copied().unwrap_or(0);
            let events = published.get(id).copied().unwrap_or(0);
            let retried = self.retried.get(id).copied().unwrap_or(0);
            let there = letters + events > 0 || self.dropped.contains(id);
            if !there || letters > 1 || events > retried {
                problems.push(format!(
                    "{id} has {letters} dead letters and {events} messages after {retried} retries"
                ));
            }
        }
        problems
    }
}

/// All of them.
pub(crate) async fn all(jetstream: &jetstream::Context) -> Vec<Stored> {
    drain::messages(jetstream, LETTERS).await
}

async fn chosen(jetstream: &jetstream::Context, fault: LetterFault) -> Option<(u64, String)> {
    let stream = jetstream.get_stream(LETTERS).await.ok()?;
    let state = &stream.cached_info().state;
    let sequence = match fault {
        LetterFault::Drop => state.last_sequence,
        LetterFault::Retry => state.first_sequence,
    };
    let letter = stream.get_raw_message(sequence).await.ok()?;
    let id = letter.headers.get("Outjet-Id")?.to_string();
    Some((sequence, id))
}

/// Takes the headers from its row.
async fn correct(url: &str, id: &str) -> Option<()> {
    let session = Session::try_connect(url).await.ok()?;
    let sql = format!("UPDATE outbox.events SET headers = NULL WHERE id = '{id}'");
    session.batch_execute(&sql).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::HeaderMap;

    fn letter(id: &str) -> Stored {
        let mut headers = HeaderMap::new();
        headers.insert("Outjet-Id", id);
        Stored {
            sequence: 1,
            subject: "dlq.elsewhere".to_owned(),
            headers,
            payload: "{}".into(),
            stored_at: time::OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_letter_that_is_missing_doubled_or_published_by_nobody_is_found() {
        let committed = ["f0".to_owned()];
        let mut letters = Letters::default();
        let found = |letters: &Letters, kept: usize, events: usize| {
            let kept = vec![letter("f0"); kept];
            let published = HashMap::from([("f0".to_owned(), events)]);
            letters.problems(&committed, (&kept, &published)).len()
        };
        assert_eq!(found(&letters, 1, 0), 0);
        assert_eq!(found(&letters, 0, 0), 1);
        assert_eq!(found(&letters, 2, 0), 1);
        assert_eq!(found(&letters, 0, 1), 1);
        letters.retried.insert("f0".to_owned(), 1);
        assert_eq!(found(&letters, 0, 1), 0);
        assert_eq!(found(&letters, 1, 1), 0);
        assert_eq!(found(&letters, 0, 2), 1);
        letters.dropped.insert("f0".to_owned());
        assert_eq!(found(&letters, 0, 0), 0);
        assert_eq!(
            letters
                .problems(&[], (&[letter("f0")], &HashMap::new()))
                .len(),
            1
        );
    }
}
