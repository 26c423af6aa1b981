//! One stream: what is stored, what was, and what it takes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcDateTime};
use tokio::time::Instant;

use super::Version;
use super::message::{Published, matches};

/// The server's clock: nanoseconds since 1970, from a fixed date on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

/// 2026-01-01.
const BEGIN: u64 = 1_767_225_600_000_000_000;

impl Clock {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> u64 {
        BEGIN + u64::try_from(self.0.elapsed().as_nanos()).expect("a few centuries")
    }
}

/// As JSON has it.
pub(super) fn time_text(nanos: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).expect("a time");
    UtcDateTime::from(time).format(&Rfc3339).expect("a text")
}

/// A message that was stored.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) headers: Vec<u8>,
    pub(crate) body: Vec<u8>,
    /// Nanoseconds since 1970.
    pub(crate) time: u64,
    /// It is still there.
    pub(crate) there: bool,
    /// The connection it came on; `None`: a stranger's.
    pub(crate) by: Option<u64>,
}

pub(super) struct Stream {
    config: Value,
    name: String,
    subjects: Vec<String>,
    window: Duration,
    created: u64,
    /// All that were ever stored, in their order: at `sequence - 1`.
    messages: Vec<Message>,
    /// By id: where it was stored, and when.
    ids: BTreeMap<String, (u64, u64)>,
    /// By subject: the last one's sequence number, of those that are there.
    last_of: BTreeMap<String, u64>,
}

/// Where the server takes the default for a setting.
const WINDOW_USUAL: u64 = 120_000_000_000;

impl Stream {
    /// As it is asked for (`StreamConfig`), with the server's defaults.
    pub(super) fn new(mut config: Value, now: u64) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let name = text(&config["name"]).expect("a name");
        let subjects = config["subjects"].as_array().map_or(&[][..], Vec::as_slice);
        let subjects = subjects.iter().filter_map(text).collect();
        for limit in ["max_consumers", "max_msgs", "max_bytes", "max_msg_size"] {
            if matches!(config[limit].as_i64(), None | Some(0)) {
                config[limit] = json!(-1);
            }
        }
        if matches!(config["duplicate_window"].as_u64(), None | Some(0)) {
            config["duplicate_window"] = json!(WINDOW_USUAL);
        }
        let window = config["duplicate_window"].as_u64().expect("set");
        Self {
            name,
            subjects,
            window: Duration::from_nanos(window),
            config,
            created: now,
            messages: Vec::new(),
            ids: BTreeMap::new(),
            last_of: BTreeMap::new(),
        }
    }

    pub(super) fn listens(&self, subject: &str) -> bool {
        self.subjects
            .iter()
            .any(|pattern| matches(pattern, subject))
    }

    pub(super) fn ever(&self) -> Vec<Message> {
        self.messages.clone()
    }

    fn last(&self) -> u64 {
        self.messages.len() as u64
    }

    /// Stores a message, or not; what is answered (`processJetStreamMsg`, nats-server).
    pub(super) fn store(&mut self, message: &Published<'_>, version: Version, now: u64) -> String {
        if let Some(refusal) = self.refusal(message) {
            return refusal;
        }
        let id = message.header("Nats-Msg-Id").filter(|id| !id.is_empty());
        if let Some(id) = id {
            let window = u64::try_from(self.window.as_nanos()).expect("a few centuries");
            if let Some((sequence, at)) = self.ids.get(id)
                && at + window > now
            {
                return self.answer(*sequence, ",\"duplicate\": true", version);
            }
            self.ids.insert(id.to_owned(), (self.last() + 1, now));
        }
        let sequence = self.last() + 1;
        let subject = message.subject.to_owned();
        let most = self.config["max_msgs_per_subject"].as_i64();
        if most == Some(1)
            && let Some(last) = self.last_of.get(&subject).copied()
        {
            self.delete(last);
        }
        self.last_of.insert(subject.clone(), sequence);
        self.messages.push(Message {
            sequence,
            subject,
            headers: message.headers.to_vec(),
            body: message.body.to_vec(),
            time: now,
            there: true,
            by: message.by,
        });
        self.answer(sequence, "", version)
    }

    fn answer(&self, sequence: u64, more: &str, version: Version) -> String {
        // 2.12 has dropped the space.
        let space = if version < (2, 12, 0) { " " } else { "" };
        format!(
            "{{\"stream\":\"{}\",{space}\"seq\":{sequence}{more}}}",
            self.name
        )
    }

    fn refusal(&self, message: &Published<'_>) -> Option<String> {
        let refused = |code: u16, error: u32, words: String| {
            Some(format!(
                "{{\"error\":{{\"code\":{code},\"err_code\":{error},\"description\":\"{words}\"}},\
                 \"stream\":\"{}\",\"seq\":0}}",
                self.name
            ))
        };
        if let Some(stream) = message.header("Nats-Expected-Stream")
            && stream != self.name
        {
            return refused(400, 10060, "expected stream does not match".to_owned());
        }
        let number = |name: &str| message.header(name)?.parse::<u64>().ok();
        let subject = self
            .last_of
            .get(message.subject)
            .copied()
            .unwrap_or_default();
        if let Some(expected) = number("Nats-Expected-Last-Subject-Sequence")
            && expected != subject
        {
            return refused(400, 10071, format!("wrong last sequence: {subject}"));
        }
        let last = self.last();
        if let Some(expected) = number("Nats-Expected-Last-Sequence")
            && expected != last
        {
            return refused(400, 10071, format!("wrong last sequence: {last}"));
        }
        None
    }

    /// `false`: it is not there.
    pub(super) fn delete(&mut self, sequence: u64) -> bool {
        let index = usize::try_from(sequence).expect("a count").wrapping_sub(1);
        let Some(message) = self.messages.get_mut(index).filter(|message| message.there) else {
            return false;
        };
        message.there = false;
        if self.last_of.get(&message.subject) == Some(&sequence) {
            let subject = message.subject.clone();
            let mut before = self.messages[..index].iter().rev();
            match before.find(|message| message.there && message.subject == subject) {
                Some(before) => self.last_of.insert(subject, before.sequence),
                None => self.last_of.remove(&subject),
            };
        }
        true
    }

    /// The server loses the newest messages, as after a power failure: those that they had replaced
    /// are back, and their ids are forgotten.
    pub(super) fn lose(&mut self, count: usize) -> Vec<Message> {
        let kept = self.messages.len().saturating_sub(count);
        let lost = self.messages.split_off(kept);
        self.ids.retain(|_, (sequence, _)| *sequence <= kept as u64);
        for message in lost.iter().rev() {
            self.last_of.remove(&message.subject);
            let mut before = self.messages.iter_mut().rev();
            if let Some(before) = before.find(|it| it.subject == message.subject) {
                before.there |= self.config["max_msgs_per_subject"].as_i64() == Some(1);
            }
        }
        let there = self.messages.iter().filter(|message| message.there);
        self.last_of = there.map(|it| (it.subject.clone(), it.sequence)).collect();
        lost
    }

    /// Deletes those that are wanted, and counts them.
    pub(super) fn purge(&mut self, wanted: impl Fn(&Message) -> bool) -> u64 {
        let there = self
            .messages
            .iter()
            .filter(|message| message.there && wanted(message));
        let sequences: Vec<u64> = there.map(|message| message.sequence).collect();
        sequences
            .iter()
            .filter(|sequence| self.delete(**sequence))
            .count() as u64
    }

    /// A message that is there: at this number, or the first of a pattern from it on.
    pub(super) fn from(&self, sequence: u64, pattern: Option<&str>) -> Option<&Message> {
        let index = usize::try_from(sequence.max(1) - 1).expect("a count");
        let mut messages = self.messages.iter().skip(index);
        match pattern {
            None => messages
                .next()
                .filter(|message| message.there && sequence > 0),
            Some(pattern) => {
                messages.find(|message| message.there && matches(pattern, &message.subject))
            }
        }
    }

    pub(super) fn last_of(&self, pattern: &str) -> Option<&Message> {
        let mut messages = self.messages.iter().rev();
        messages.find(|message| message.there && matches(pattern, &message.subject))
    }

    /// As `STREAM.INFO` has it.
    pub(super) fn info(&self, now: u64) -> Value {
        let there = || self.messages.iter().filter(|message| message.there);
        let zero = "0001-01-01T00:00:00Z".to_owned();
        let at = |message: Option<&Message>| message.map_or(zero.clone(), |it| time_text(it.time));
        let first = there().next();
        let count = there().count() as u64;
        let first_seq = first.map_or(self.last() + 1, |message| message.sequence);
        let bytes = |message: &Message| message.headers.len() + message.body.len();
        let gaps = self.last() + 1 - first_seq - count;
        let mut info = json!({
            "config": self.config,
            "created": time_text(self.created),
            "state": {
                "messages": count,
                "bytes": there().map(bytes).sum::<usize>(),
                "first_seq": if self.last() == 0 { 0 } else { first_seq },
                "first_ts": at(first),
                "last_seq": self.last(),
                "last_ts": at(self.messages.last()),
                "consumer_count": 0,
            },
            "ts": time_text(now),
        });
        if gaps > 0 {
            info["state"]["num_deleted"] = json!(gaps);
        }
        info
    }

    /// The configuration, with the server's defaults.
    pub(super) fn config(&self) -> &Value {
        &self.config
    }
}
