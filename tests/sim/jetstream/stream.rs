//! One stream: its messages, the ids it remembers, and what vanishes from it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::Batch;
use super::config::{Config, Discard, Retention};
use super::json::{Refusal, rfc3339};
use super::store::{Draft, Store};
use super::version::Version;
use super::{Gone, Incarnation, Leader, Stored, header, subject};

/// A stream.
pub(super) struct Stream {
    pub(super) name: Arc<str>,
    pub(super) config: Config,
    /// The configuration as the server shows it.
    pub(super) json: String,
    pub(super) store: Store,
    /// Ids, with what had them and when; 0: what was refused.
    ids: BTreeMap<Bytes, (u64, i64)>,
    /// The same in the order in which they are forgotten.
    forgotten: VecDeque<(i64, Bytes)>,
    pub(super) batches: BTreeMap<Vec<u8>, Batch>,
    /// When schedules are due.
    pub(super) schedules: BTreeSet<(i64, u64)>,
    pub(super) consumers: usize,
    pub(super) full: bool,
    pub(super) leader: Leader,
}

impl Stream {
    pub(super) fn new(config: Config, (created, twin): (i64, bool)) -> Self {
        let past = Incarnation {
            stream: config.name.clone(),
            twin,
            created,
            ended: None,
            messages: Vec::new(),
        };
        Self {
            name: config.name.as_str().into(),
            json: config.json(),
            store: Store::new(past, config.storage, config.first_seq),
            config,
            ids: BTreeMap::new(),
            forgotten: VecDeque::new(),
            batches: BTreeMap::new(),
            schedules: BTreeSet::new(),
            consumers: 0,
            full: false,
            leader: Leader::Present,
        }
    }

    pub(super) fn at(&self, sequence: u64) -> Option<&Stored> {
        self.store.at(sequence)
    }

    /// Where to publish what is stored under a subject.
    pub(super) fn entrance(&self, stored: &[u8]) -> Option<String> {
        let entrance = match &self.config.subject_transform {
            None => stored.to_vec(),
            Some(transform) => subject::transform(stored, &transform.dest, &transform.src)?,
        };
        String::from_utf8(entrance).ok()
    }

    pub(super) fn configure(&mut self, change: impl FnOnce(&mut Config), now: i64) {
        change(&mut self.config);
        self.config.seal();
        self.json = self.config.json();
        self.enforce(now);
    }

    /// What an id was used for within the window.
    pub(super) fn known_id(&self, id: &[u8], now: i64) -> Option<u64> {
        let (sequence, at) = *self.ids.get(id)?;
        (now - at < self.config.duplicate_window).then_some(sequence)
    }

    pub(super) fn remember_id(&mut self, id: &[u8], sequence: u64, now: i64) {
        let window = self.config.duplicate_window;
        while let Some((at, _)) = self.forgotten.front()
            && now - at >= window
        {
            let (at, id) = self.forgotten.pop_front().expect("it is there");
            if self.ids.get(&id).is_some_and(|(_, since)| *since == at) {
                self.ids.remove(&id);
            }
        }
        let id = Bytes::copy_from_slice(id);
        self.ids.insert(id.clone(), (sequence, now));
        self.forgotten.push_back((now, id));
    }

    /// As a server does that reads its messages again: only what is there has its id.
    pub(super) fn read_ids_again(&mut self) {
        let found: Vec<_> = self.store.iter().filter_map(identified).collect();
        self.ids.clear();
        self.forgotten.clear();
        for (id, sequence, time) in found {
            self.ids.insert(id.clone(), (sequence, time));
            self.forgotten.push_back((time, id));
        }
    }

    /// Why there is no room for so many messages and bytes, the first of them with this subject.
    pub(super) fn check_room(
        &self,
        subject: &[u8],
        (messages, bytes): (u64, u64),
        version: Version,
    ) -> Result<(), Refusal> {
        let full = |text| Err(Refusal::new(503, 10077, text));
        if self.full {
            return full("maximum bytes exceeded");
        }
        let config = &self.config;
        if config.discard == Discard::Old {
            return Ok(());
        }
        let limit = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
        let at_limit = limit(config.max_msgs_per_subject)
            .is_some_and(|most| self.count_of(subject) as u64 >= most);
        if at_limit {
            return match config.discard_new_per_subject {
                true => full("maximum messages per subject exceeded"),
                // It takes the place of another.
                false => Ok(()),
            };
        }
        if limit(config.max_msgs).is_some_and(|most| self.store.count() + messages > most) {
            return full("maximum messages exceeded");
        }
        let filled = self.store.bytes() + bytes + u64::from(version.keeps_a_byte_free());
        if limit(config.max_bytes).is_some_and(|most| filled > most) {
            return full("maximum bytes exceeded");
        }
        Ok(())
    }

    fn count_of(&self, subject: &[u8]) -> usize {
        let with = self.store.iter().filter(|stored| stored.subject == subject);
        with.count()
    }

    /// Stores a message; there is room for it.
    pub(super) fn append(&mut self, draft: Draft<'_>) -> u64 {
        let sequence = self.store.append(draft);
        let now = self.store.last_time();
        if self.config.retention == Retention::Interest && self.consumers == 0 {
            self.store.remove(sequence, (now, Gone::NoInterest));
        } else {
            self.enforce_subject(draft.subject, now);
            self.enforce(now);
        }
        sequence
    }

    fn enforce_subject(&mut self, subject: &[u8], now: i64) {
        let Ok(most @ 1..) = usize::try_from(self.config.max_msgs_per_subject) else {
            return;
        };
        let with = self.store.iter().filter(|stored| stored.subject == subject);
        let all: Vec<u64> = with.map(|stored| stored.sequence).collect();
        for sequence in &all[..all.len().saturating_sub(most)] {
            self.store.remove(*sequence, (now, Gone::Replaced));
        }
    }

    /// Drops the oldest while there are too many.
    fn enforce(&mut self, now: i64) {
        let over = |limit: i64, found: u64| limit > 0 && found > limit.unsigned_abs();
        while over(self.config.max_msgs, self.store.count())
            || over(self.config.max_bytes, self.store.bytes())
        {
            let oldest = self.store.oldest().expect("there are too many").sequence;
            self.store.remove(oldest, (now, Gone::Limit));
        }
    }

    /// All with this subject but one go.
    pub(super) fn roll_up(&mut self, subject: Option<&[u8]>, (kept, now): (u64, i64)) {
        let replaced = |stored: &&Stored| {
            stored.sequence != kept && subject.is_none_or(|subject| stored.subject == subject)
        };
        let all = self.store.iter().filter(replaced);
        let all: Vec<u64> = all.map(|stored| stored.sequence).collect();
        for sequence in all {
            self.store.remove(sequence, (now, Gone::Replaced));
        }
    }

    pub(super) fn remove_where(
        &mut self,
        which: impl Fn(u64) -> bool,
        (now, gone): (i64, Gone),
    ) -> u64 {
        let all = self.store.iter().map(|stored| stored.sequence);
        let all: Vec<u64> = all.filter(|sequence| which(*sequence)).collect();
        for sequence in &all {
            self.store.remove(*sequence, (now, gone));
        }
        all.len() as u64
    }

    pub(super) fn expire_before(&mut self, time: i64, now: i64) -> u64 {
        let mut expired = 0;
        while let Some(oldest) = self.store.oldest().filter(|oldest| oldest.time <= time) {
            let sequence = oldest.sequence;
            self.store.remove(sequence, (now, Gone::Aged));
            expired += 1;
        }
        expired
    }

    pub(super) fn truncate(&mut self, last: u64, now: i64) {
        self.store.truncate(last, now);
        self.schedules.retain(|(_, sequence)| *sequence <= last);
        self.read_ids_again();
        self.batches.clear();
    }

    /// When something vanishes or appears next.
    pub(super) fn next_due(&self) -> Option<i64> {
        let ages = (self.config.max_age > 0)
            .then(|| self.store.oldest())
            .flatten()
            .map(|oldest| oldest.time + self.config.max_age);
        let ends = self.store.next_end().map(|(at, _)| at);
        let schedules = self.schedules.first().map(|(at, _)| *at);
        [ages, ends, schedules].into_iter().flatten().min()
    }

    /// Everything that is due happens, in order.
    pub(super) fn advance(&mut self, now: i64) {
        while let Some(due) = self.next_due().filter(|due| *due <= now) {
            if self.config.max_age > 0 {
                self.expire_before(due - self.config.max_age, due);
            }
            while let Some((_, sequence)) = self.store.next_end().filter(|(at, _)| *at <= due) {
                self.store.remove(sequence, (due, Gone::Ttl));
            }
            while let Some((at, sequence)) = self.schedules.first().copied() {
                if at > due {
                    break;
                }
                self.schedules.pop_first();
                self.fire(sequence, at);
            }
        }
    }

    /// As STREAM.INFO says it.
    pub(super) fn push_state(&self, json: &mut String, with_deleted: bool) {
        let store = &self.store;
        let first_time = store.oldest().map_or(0, |oldest| oldest.time);
        let _ = write!(
            json,
            r#""state":{{"messages":{},"bytes":{},"first_seq":{},"first_ts":"{}""#,
            store.count(),
            store.bytes(),
            store.first(),
            rfc3339(first_time),
        );
        let (last, last_time) = (store.last(), rfc3339(store.last_time()));
        let _ = write!(json, r#","last_seq":{last},"last_ts":"{last_time}""#);
        let subjects = store.subjects();
        if subjects > 0 {
            let _ = write!(json, r#","num_subjects":{subjects}"#);
        }
        let deleted = store.deleted().count();
        if deleted > 0 {
            let _ = write!(json, r#","num_deleted":{deleted}"#);
            if with_deleted {
                let all: Vec<u64> = store.deleted().collect();
                let _ = write!(json, r#","deleted":{}"#, serde_json::json!(all));
            }
        }
        let _ = write!(json, r#","consumer_count":{}}}"#, self.consumers);
    }
}

fn identified(stored: &Stored) -> Option<(Bytes, u64, i64)> {
    let id = header::value(&stored.headers, "Nats-Msg-Id")?;
    Some((Bytes::copy_from_slice(id), stored.sequence, stored.time))
}
