//! What happens to the stream, and what of it was ever stored.

use std::collections::BTreeMap;

use outjet::lsn::Lsn;
use uuid::Uuid;

use super::{RECORDS, STREAM, World};
use crate::jetstream::{Gone, Leader, Stored, Writer};
use crate::judge::{Due, Found, Place};
use crate::scene::{IN_FLIGHT_MAX, WHOLE_MAX};

impl World {
    pub(super) fn restart_nats(&mut self) {
        self.say("nats-server restarts");
        self.nats.restart();
    }

    pub(super) async fn fill(&mut self) {
        self.say("the stream is full");
        self.nats.set_full(STREAM, true);
        self.a_while().await;
        self.nats.set_full(STREAM, false);
    }

    pub(super) async fn pause_nats(&mut self) {
        self.say("nats-server is paused");
        self.nats.pause(true);
        self.a_while().await;
        self.nats.pause(false);
    }

    pub(super) async fn lame_duck(&mut self) {
        self.say("nats-server is about to shut down");
        self.nats.lame_duck();
        self.a_while().await;
        self.nats.restart();
    }

    pub(super) async fn depose(&mut self) {
        let leaders = [Leader::NoResponders, Leader::Silent, Leader::NoQuorum];
        let leader = *self.random.of(&leaders);
        self.say(&format!("the streams' leader: {leader:?}"));
        self.nats.set_leader(None, leader);
        self.a_while().await;
        self.nats.set_leader(None, Leader::Present);
    }

    pub(super) fn purge(&mut self) {
        let stored = self.stored(STREAM).len() as u64;
        let purged = self.nats.purge(STREAM, self.random.below(stored + 1));
        self.vanished |= purged > 0;
        self.say(&format!("{purged} messages are purged"));
    }

    pub(super) fn publish_strange(&mut self) {
        self.say("a stranger publishes");
        self.nats.publish("events.strange.made", "", b"?");
    }

    pub(super) fn lose_record(&mut self) {
        // The first was written long ago.
        let most = self.stored(RECORDS).len().saturating_sub(1);
        let count = most.min(self.random.index(3) + 1);
        let lost = self.lose(RECORDS, count).len();
        self.say(&format!("{lost} writes of the record are lost"));
        // Nothing tells the slot from one that was moved beyond what is recorded.
        self.moved |= lost > 0;
    }

    /// Some of the newest messages.
    pub(super) fn vanish(&mut self) {
        let stored = self.stored(STREAM).len() as u64;
        for _ in 0..self.random.between(1, 4) {
            let sequence = stored.saturating_sub(self.random.of_any_size(5));
            if self.nats.delete(STREAM, sequence) {
                self.vanished = true;
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

    /// All that a stream has ever stored since it was made, but for what it has lost.
    pub(super) fn stored(&self, stream: &str) -> Vec<Stored> {
        let all = self.nats.stored(stream).into_iter();
        let all = all.filter(|incarnation| incarnation.ended.is_none());
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

    /// A power failure. What was not held back for long enough is forgotten.
    pub(super) fn lose_tail(&mut self) {
        let count = usize::try_from(self.random.of_any_size(6)).expect("small");
        let lost = self.lose(STREAM, count);
        self.say(&format!(
            "the last {} messages of the stream are lost",
            lost.len()
        ));
        self.lost(&lost);
    }

    /// Somebody deletes the stream and makes it again.
    pub(super) fn remake(&mut self) {
        let lost = self.stored(STREAM);
        self.say("the stream is made again");
        self.nats.recreate(STREAM);
        self.moved = true;
        self.lost(&lost);
    }

    fn lost(&mut self, lost: &[Stored]) {
        let hold = i64::try_from(self.scene.hold.as_nanos()).expect("seconds");
        self.blind |= !lost.is_empty();
        self.moved |= !lost.is_empty();
        let ours = lost
            .iter()
            .filter(|message| message.writer != Writer::Stranger);
        let held =
            |message: &&Stored| message.gone.is_none() && self.nats.now() - message.time < hold;
        let (held, kept): (Vec<_>, Vec<_>) = ours.partition(held);
        self.forgotten.extend(kept.into_iter().map(number));
        for number in held.into_iter().map(number) {
            // Somebody may have confirmed what was held back.
            if self.moved_past.contains(&number) {
                self.forgotten.insert(number);
            }
            self.lost_while_held.insert(number);
        }
    }

    pub(super) fn found(&self) -> Vec<Found> {
        let mut found = Vec::new();
        let places = [
            (STREAM, Place::Main),
            ("OUTBOX_DLQ", Place::Dead),
            ("OUTBOX_DELAYED", Place::Kept),
        ];
        for (stream, place) in places {
            let mut disturbed = 0;
            for message in self.stored(stream) {
                let place = match (place, message.writer) {
                    (_, Writer::Stranger) => {
                        disturbed = message.sequence + IN_FLIGHT_MAX;
                        continue;
                    }
                    (Place::Kept, Writer::Connection(_)) if is_mark(&message) => continue,
                    (Place::Kept, Writer::Server) => Place::Appeared,
                    _ => place,
                };
                found.push(Found {
                    number: number(&message),
                    place,
                    disturbed: self.scene.shared || message.sequence <= disturbed,
                });
            }
        }
        found
    }

    /// In which batch each event of a transaction was stored that must appear as a whole.
    pub(super) fn batches(&self) -> BTreeMap<Lsn, Vec<Option<String>>> {
        let mut transactions: BTreeMap<Lsn, Vec<u64>> = BTreeMap::new();
        for due in self.due().into_iter().filter(Due::owed) {
            transactions.entry(due.end).or_default().push(due.number);
        }
        transactions.retain(|_, numbers| numbers.len() <= WHOLE_MAX);
        let ours = self.stored(STREAM).into_iter();
        let ours = ours.filter(|message| message.writer != Writer::Stranger);
        let batch = |message: &Stored| {
            let batch = message.header("Nats-Batch-Id")?;
            Some(String::from_utf8_lossy(batch).into_owned())
        };
        let batches: BTreeMap<u64, Option<String>> = ours
            .map(|message| (number(&message), batch(&message)))
            .collect();
        let stored = |numbers: Vec<u64>| {
            let stored = numbers.iter().filter_map(|number| batches.get(number));
            stored.cloned().collect()
        };
        let transactions = transactions.into_iter();
        transactions
            .map(|(end, numbers)| (end, stored(numbers)))
            .collect()
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
                number(&message),
                header("Outjet-Position"),
                header("Outjet-Source"),
                header("Nats-Msg-Id"),
                if message.gone.is_none() { "" } else { ", gone" },
            );
            self.say(&words);
        }
    }
}

/// Only that another one was delayed.
fn is_mark(message: &Stored) -> bool {
    message.header("Nats-Schedule").is_none()
}

/// An event's number: in its body, or, if that is not there, its id.
fn number(message: &Stored) -> u64 {
    if !message.body.is_empty() {
        return super::number(&message.body);
    }
    let id = ["Nats-Msg-Id", "Outjet-Id"].map(|name| message.header(name));
    let id = id.into_iter().flatten().next().unwrap_or_default();
    let id = Uuid::try_parse_ascii(id).expect("the id of an event");
    u64::try_from(id.as_u128()).expect("the id of an event")
}
