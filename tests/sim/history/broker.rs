//! What happens to the stream, and what of it was ever stored.

use super::{STREAM, World, number};
use crate::jetstream::{Gone, Stored, Writer};
use crate::judge::Found;
use crate::scene::IN_FLIGHT_MAX;

impl World {
    /// Some of the newest messages.
    pub(super) fn vanish(&mut self) {
        let stored = self.stored(STREAM).len() as u64;
        for _ in 0..self.random.between(1, 4) {
            let sequence = stored.saturating_sub(self.random.of_any_size(5));
            if self.nats.delete(STREAM, sequence) {
                self.say(&format!("message {sequence} vanishes"));
            }
        }
    }

    /// One of ours comes again, as somebody copies messages: without expectations, perhaps with its
    /// id.
    pub(super) fn copy(&mut self) {
        let stored = self.stored(STREAM);
        if stored.is_empty() {
            return;
        }
        let message = self.random.of(&stored).clone();
        let block = String::from_utf8_lossy(&message.headers).into_owned();
        let with_id = self.random.once_in(2);
        let lines = block.split("\r\n").skip(1).filter(|line| {
            let kept = with_id || !line.starts_with("Nats-Msg-Id");
            !line.is_empty() && kept && !line.starts_with("Nats-Expected")
        });
        let lines: String = lines.map(|line| format!("{line}\r\n")).collect();
        self.say(&format!("message {} is copied", message.sequence));
        let subject = String::from_utf8_lossy(&message.subject).into_owned();
        self.nats.publish(&subject, &lines, &message.body);
    }

    /// All that a stream has ever stored, but for what it has lost.
    pub(super) fn stored(&self, stream: &str) -> Vec<Stored> {
        let all = self.nats.stored(stream).into_iter();
        let all = all.flat_map(|incarnation| incarnation.messages);
        let lost = |stored: &Stored| matches!(stored.gone, Some((_, Gone::Lost)));
        all.filter(|stored| !lost(stored)).collect()
    }

    /// `kill -9` of a server that has not written its newest messages to disk: they are gone from
    /// a stream, and are returned.
    pub(super) fn lose(&mut self, stream: &str, count: usize) -> Vec<Stored> {
        self.nats.restart();
        let mut stored = self.stored(stream);
        let lost = stored.split_off(stored.len().saturating_sub(count));
        if let Some(first) = lost.first() {
            self.nats.truncate(stream, first.sequence - 1);
        }
        lost
    }

    /// A power failure. Without `stream.hold` nobody promises that it is noticed each time.
    pub(super) fn lose_tail(&mut self) {
        let count = usize::try_from(self.random.of_any_size(6)).expect("small");
        let lost = self.lose(STREAM, count);
        self.say(&format!(
            "the last {} messages of the stream are lost",
            lost.len()
        ));
        self.blind |= !lost.is_empty();
        self.moved |= !lost.is_empty();
        let ours = lost
            .iter()
            .filter(|message| message.writer != Writer::Stranger);
        self.forgotten
            .extend(ours.map(|message| number(&message.body)));
    }

    pub(super) fn found(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for (stream, dead) in [(STREAM, false), ("OUTBOX_DLQ", true)] {
            let mut disturbed = 0;
            for message in self.stored(stream) {
                match message.writer {
                    Writer::Stranger => disturbed = message.sequence + IN_FLIGHT_MAX,
                    Writer::Connection(_) | Writer::Server => found.push(Found {
                        number: number(&message.body),
                        dead,
                        disturbed: message.sequence <= disturbed,
                    }),
                }
            }
        }
        found
    }

    /// What the stream has stored, for a reader of the trace.
    pub(super) fn say_stored(&mut self) {
        for message in self.stored(STREAM) {
            let headers = String::from_utf8_lossy(&message.headers).into_owned();
            let header = |name: &str| {
                let line = headers.lines().find(|line| line.starts_with(name));
                line.unwrap_or_default().to_owned()
            };
            let words = format!(
                "{} stored by {:?} at {}: event {}, {} {} {}{}",
                message.sequence,
                message.writer,
                message.time,
                number(&message.body),
                header("Outjet-Position"),
                header("Outjet-Source"),
                header("Nats-Msg-Id"),
                if message.gone.is_none() { "" } else { ", gone" },
            );
            self.say(&words);
        }
    }
}
