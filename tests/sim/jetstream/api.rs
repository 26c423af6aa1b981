//! What is asked of JetStream below `$JS.API`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::State;
use super::message::matches;
use super::stream::{Message, Stream, time_text};

impl State {
    /// The answer to a request; `None`: nobody gives any.
    pub(super) fn answer(&mut self, request: &str, body: &[u8], now: u64) -> Option<String> {
        if self.leaderless {
            return None;
        }
        let body = serde_json::from_slice(body).unwrap_or(Value::Null);
        let (kind, answer) = if let Some(name) = request.strip_prefix("STREAM.INFO.") {
            ("stream_info", self.info(name, now))
        } else if request.starts_with("STREAM.CREATE.") {
            ("stream_create", self.create(body, now))
        } else if let Some(name) = request.strip_prefix("STREAM.PURGE.") {
            ("stream_purge", self.purged(name, &body))
        } else if let Some(name) = request.strip_prefix("STREAM.MSG.DELETE.") {
            ("stream_msg_delete", self.deleted(name, &body))
        } else if let Some(name) = request.strip_prefix("STREAM.MSG.GET.") {
            ("stream_msg_get", self.message(name, &body))
        } else {
            panic!("the model does not know {request}");
        };
        let mut answer = answer;
        answer["type"] = json!(format!("io.nats.jetstream.api.v1.{kind}_response"));
        Some(answer.to_string())
    }

    fn info(&self, name: &str, now: u64) -> Value {
        self.streams
            .get(name)
            .map_or_else(missing, |stream| stream.info(now))
    }

    fn create(&mut self, config: Value, now: u64) -> Value {
        let stream = Stream::new(config, now);
        let name = stream.config()["name"].as_str().expect("a name").to_owned();
        if let Some(there) = self.streams.get(&name) {
            return match there.config() == stream.config() {
                true => there.info(now),
                false => error(
                    400,
                    10058,
                    "stream name already in use with a different configuration",
                ),
            };
        }
        let info = stream.info(now);
        self.streams.insert(name, stream);
        info
    }

    fn purged(&mut self, name: &str, purge: &Value) -> Value {
        let Some(stream) = self.streams.get_mut(name) else {
            return missing();
        };
        let filter = purge["filter"].as_str().unwrap_or(">");
        let purged = stream.purge(|message| matches(filter, &message.subject));
        json!({"success": true, "purged": purged})
    }

    fn deleted(&mut self, name: &str, delete: &Value) -> Value {
        let Some(stream) = self.streams.get_mut(name) else {
            return missing();
        };
        let sequence = delete["seq"].as_u64().unwrap_or_default();
        match stream.delete(sequence) {
            true => json!({"success": true}),
            false => error(
                400,
                10043,
                &format!("no message found for sequence {sequence}"),
            ),
        }
    }

    fn message(&self, name: &str, which: &Value) -> Value {
        let Some(stream) = self.streams.get(name) else {
            return missing();
        };
        let sequence = which["seq"].as_u64().unwrap_or_default();
        let found = match (
            which["last_by_subj"].as_str(),
            which["next_by_subj"].as_str(),
        ) {
            (Some(pattern), _) => stream.last_of(pattern),
            (None, pattern) => stream.from(sequence, pattern),
        };
        found.map_or_else(|| error(404, 10037, "no message found"), told)
    }
}

fn told(message: &Message) -> Value {
    let mut told = json!({
        "subject": message.subject,
        "seq": message.sequence,
        "time": time_text(message.time),
    });
    for (name, bytes) in [("hdrs", &message.headers), ("data", &message.body)] {
        if !bytes.is_empty() {
            told[name] = json!(STANDARD.encode(bytes));
        }
    }
    json!({"message": told})
}

fn missing() -> Value {
    error(404, 10059, "stream not found")
}

fn error(code: u16, err_code: u32, description: &str) -> Value {
    json!({"error": {"code": code, "err_code": err_code, "description": description}})
}
