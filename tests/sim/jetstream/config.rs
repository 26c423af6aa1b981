//! The configuration of a stream, as it is asked for and as the server shows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::Refusal;
use super::subject;
use super::version::Version;

/// `StreamConfig` of nats-server, in its order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) subjects: Vec<String>,
    pub(crate) retention: Retention,
    pub(crate) max_consumers: i64,
    pub(crate) max_msgs: i64,
    pub(crate) max_bytes: i64,
    /// Nanoseconds; 0: for ever.
    pub(crate) max_age: i64,
    pub(crate) max_msgs_per_subject: i64,
    pub(crate) max_msg_size: i64,
    pub(crate) discard: Discard,
    pub(crate) storage: Storage,
    pub(crate) num_replicas: usize,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) no_ack: bool,
    /// Nanoseconds.
    pub(crate) duplicate_window: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) placement: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mirror: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sources: Option<Value>,
    pub(crate) compression: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) first_seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject_transform: Option<Transform>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) republish: Option<Value>,
    pub(crate) allow_direct: bool,
    pub(crate) mirror_direct: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) discard_new_per_subject: bool,
    pub(crate) sealed: bool,
    pub(crate) deny_delete: bool,
    pub(crate) deny_purge: bool,
    pub(crate) allow_rollup_hdrs: bool,
    pub(crate) consumer_limits: Option<Value>,
    /// `None` before 2.11.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) allow_msg_ttl: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject_delete_marker_ttl: Option<i64>,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) allow_msg_counter: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) allow_atomic: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) allow_msg_schedules: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) persist_mode: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) allow_batched: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
    /// What no server knows.
    #[serde(flatten, skip_serializing)]
    unknown: BTreeMap<String, Value>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How long messages are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Retention {
    /// Until a limit.
    #[default]
    Limits,
    /// Until all consumers have them; not at all without any.
    Interest,
    /// Until one has them.
    WorkQueue,
}

/// What a full stream does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Discard {
    /// It drops its oldest messages.
    #[default]
    Old,
    /// It refuses new ones.
    New,
}

/// Where messages are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Storage {
    /// On disk.
    #[default]
    File,
    /// In memory: gone with the servers, and so is the stream of one replica.
    Memory,
}

/// What is done to subjects before anything is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transform {
    pub(crate) src: String,
    pub(crate) dest: String,
}

/// Two minutes, unless said otherwise.
const WINDOW: i64 = 120_000_000_000;

impl Config {
    /// Reads what a client asks for.
    pub(super) fn read(body: &[u8], version: Version) -> Result<Self, Refusal> {
        let read: Result<Self, _> = serde_json::from_slice(body);
        let mut config = read.map_err(|error| {
            let text = match version.strict() {
                true => format!("invalid JSON: {error}"),
                false => "invalid JSON".to_owned(),
            };
            Refusal::said(400, 10025, text)
        })?;
        let unknown = std::mem::take(&mut config.unknown).into_keys().next();
        if let Some(unknown) = unknown.filter(|_| version.strict()) {
            let text = format!(r#"invalid JSON: json: unknown field "{unknown}""#);
            return Err(Refusal::said(400, 10025, text));
        }
        config.fill(version);
        Ok(config)
    }

    /// Puts in what was left out, and takes out what this server does not know.
    fn fill(&mut self, version: Version) {
        if self.subjects.is_empty() && self.mirror.is_none() && self.sources.is_none() {
            self.subjects.push(self.name.clone());
        }
        for limit in [
            &mut self.max_consumers,
            &mut self.max_msgs,
            &mut self.max_bytes,
            &mut self.max_msgs_per_subject,
            &mut self.max_msg_size,
        ] {
            if *limit == 0 {
                *limit = -1;
            }
        }
        self.num_replicas = self.num_replicas.max(1);
        if self.duplicate_window == 0 {
            self.duplicate_window = match self.max_age {
                1..WINDOW => self.max_age,
                _ => WINDOW,
            };
        }
        if self.compression.is_empty() {
            "none".clone_into(&mut self.compression);
        }
        self.consumer_limits
            .get_or_insert_with(|| Value::Object(serde_json::Map::new()));
        self.allow_msg_ttl = version
            .has_ttl()
            .then(|| self.allow_msg_ttl.unwrap_or_default());
        if !version.has_batches() {
            self.allow_atomic = false;
            self.allow_msg_schedules = false;
            self.allow_msg_counter = false;
            self.allow_batched = false;
            self.persist_mode = None;
        }
        self.seal();
        self.allow_rollup_hdrs |= self.allow_msg_schedules;
        self.metadata.retain(|name, _| !name.starts_with("_nats."));
        if version.has_ttl() {
            let level = version.api_level().to_string();
            let required = self.required_level().to_string();
            let metadata = &mut self.metadata;
            metadata.insert("_nats.level".to_owned(), level);
            metadata.insert("_nats.req.level".to_owned(), required);
            metadata.insert("_nats.ver".to_owned(), version.text());
        }
    }

    pub(super) fn seal(&mut self) {
        if self.sealed {
            self.deny_delete = true;
            self.deny_purge = true;
            self.discard = Discard::New;
        }
    }

    fn required_level(&self) -> u8 {
        let ttl = self.has_ttl() || self.subject_delete_marker_ttl.is_some();
        if self.allow_batched {
            4
        } else if self.allow_atomic || self.allow_msg_schedules || self.allow_msg_counter {
            2
        } else {
            u8::from(ttl)
        }
    }

    /// Why no stream can be like this.
    pub(super) fn check(&self, servers: usize) -> Result<(), Refusal> {
        if self.max_age > 0 && self.duplicate_window > self.max_age {
            let text = "duplicates window can not be larger then max age";
            return Err(Refusal::new(500, 10052, text));
        }
        if self.num_replicas > servers {
            let text = match servers {
                1 => "replicas > 1 not supported in non-clustered mode",
                _ => "no suitable peers for placement",
            };
            return Err(Refusal::new(500, 10074, text));
        }
        Ok(())
    }

    /// Why a stream cannot become like this.
    pub(super) fn check_update(&self, new: &Self) -> Result<(), Refusal> {
        let text = if self.has_ttl() && !new.has_ttl() {
            "message TTL status can not be disabled"
        } else if self.sealed && !new.sealed {
            "stream configuration update can not unseal a sealed stream"
        } else if self.storage != new.storage {
            "stream configuration update can not change storage type"
        } else if self.retention != new.retention {
            "stream configuration update can not change retention policy to/from workqueue"
        } else {
            return Ok(());
        };
        Err(Refusal::new(500, 10052, text))
    }

    /// As the server shows it.
    pub(super) fn json(&self) -> String {
        let json = serde_json::to_string(self).expect("texts and numbers are JSON");
        let json = json.replace('&', "\\u0026").replace('<', "\\u003c");
        json.replace('>', "\\u003e")
    }

    pub(super) fn has_ttl(&self) -> bool {
        self.allow_msg_ttl == Some(true)
    }

    pub(super) fn vanishes_when_consumed(&self) -> bool {
        self.retention != Retention::Limits
    }

    /// Whether it listens on a subject.
    pub(super) fn listens(&self, subject: &[u8]) -> bool {
        let mut patterns = self.subjects.iter();
        patterns.any(|pattern| subject::matches(pattern.as_bytes(), subject))
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let mut ours = self.subjects.iter();
        ours.any(|one| {
            let mut theirs = other.subjects.iter();
            theirs.any(|other| subject::overlap(one.as_bytes(), other.as_bytes()))
        })
    }
}
