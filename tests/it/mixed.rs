//! What is tested alone elsewhere, all at once: whole transactions of rows and messages with dead
//! letters among them, held back, in another format and under a prefix, replayed meanwhile, while
//! leaders and servers die.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use crate::atomic::settled;
use crate::delivery::{Delivery, SOON};
use crate::harness::drain::{self, Stored, Verdict};
use crate::harness::outbox::Random;
use crate::harness::postgres::{Session, Stop};
use crate::harness::{Wait, until};

/// The servers' duplicate window cannot help.
const CONFIG: &str = "
stream: {duplicate_window: 100ms, hold: 2s, subjects: ['shadow.>']}
publish: {transactions: atomic, ack_timeout: 1s, format: structured, subject_prefix: shadow}
";

/// Two rows, two messages, and one of each that cannot be published.
const TRANSACTION: &str = "
BEGIN;
SELECT outbox.emit('order', '1', 'row', '{\"b\": 1}');
SELECT outbox.emit_wal('order', '2', 'message', '{\"total\": 9.50}');
SELECT outbox.emit('order', '3', 'bad', headers => '{\"bad name\": \"x\"}');
SELECT outbox.emit_wal('order', '4', 'bad', '{}', topic => repeat('x', 2000));
SELECT outbox.emit('order', '5', 'row', '{\"b\": 1}');
SELECT outbox.emit_wal('order', '6', 'message', '{\"total\": 9.50}');
COMMIT";

/// What of it can be published, and how often it is committed in a round.
const WHOLE: usize = 4;
const TRANSACTIONS: u64 = 40;
const ROUNDS: u64 = 4;

async fn commit(session: &Session) {
    for _ in 0..TRANSACTIONS {
        session.run(TRANSACTION).await;
    }
}

fn id(message: &Stored) -> String {
    message.id().expect("an id").to_owned()
}

fn replayed(message: &Stored) -> bool {
    message.header("Outjet-Replay").is_some()
}

fn whole(stored: &[Stored]) -> Result<(), String> {
    let mut transactions: BTreeMap<&str, Vec<&Stored>> = BTreeMap::new();
    for message in stored.iter().filter(|message| !replayed(message)) {
        let position = message.header("Outjet-Position").expect("a position");
        let (commit, _) = position.split_once('-').expect("a position");
        transactions.entry(commit).or_default().push(message);
    }
    for (commit, events) in transactions {
        if events.len() != WHOLE {
            return Err(format!("transaction {commit} in parts"));
        }
        let batch = events[0].header("Nats-Batch-Id");
        assert!(batch.is_some());
        assert!(events.iter().all(|e| e.header("Nats-Batch-Id") == batch));
    }
    Ok(())
}

async fn letters(delivery: &Delivery) -> Vec<String> {
    let letters = drain::messages(&delivery.world.nats.jetstream().await, "OUTBOX_DLQ").await;
    letters.iter().map(id).collect()
}

/// Every event once, where it belongs, in commit order; replays apart.
async fn assert_exact(delivery: &Delivery) -> Vec<Stored> {
    delivery.confirmed().await;
    let stored = delivery.stored().await;
    whole(&stored).expect("whole transactions");
    let letters = letters(delivery).await;
    let bad: HashSet<&str> = letters.iter().map(String::as_str).collect();
    let committed = delivery.judge.committed().await.into_iter();
    let (rejected, published): (Vec<_>, Vec<_>) =
        committed.partition(|id| bad.contains(id.as_str()));
    let first = stored.iter().filter(|message| !replayed(message));
    Verdict::of(&published, &first.map(id).collect::<Vec<_>>()).assert_exact();
    Verdict::of(&rejected, &letters).assert_exact();
    assert_eq!(rejected.len() as u64, 2 * TRANSACTIONS * ROUNDS);
    stored
}

#[tokio::test]
async fn all_at_once_each_event_is_stored_once_whole_and_in_order_whatever_is_killed() {
    let mut delivery = Delivery::batching(CONFIG).await;
    let mut random = Random(23);
    let mut last = 0;
    let mut handed_over = 0;
    for round in 0..ROUNDS {
        commit(&delivery.session).await;
        let mut outjet = delivery.run();
        let enough = last + 1 + random.below(TRANSACTIONS * 3);
        until("more is stored", SOON, async || {
            assert_eq!(outjet.exited(), None);
            let stored = delivery.count().await;
            Wait::ready_if(stored >= enough, stored)
        })
        .await;
        settled(&delivery, whole).await;
        if round == 1 {
            let replay = ["replay", "--where", "type = 'row'"];
            let done = delivery.outjet(replay).output().await;
            assert_eq!(done.code, Some(0), "{done:?}");
            handed_over = 2 * TRANSACTIONS * (round + 1);
        }
        outjet.kill().await;
        match round {
            2 => {
                delivery.world.postgres.restart(Stop::Immediate).await;
                delivery.session = delivery.world.postgres.connect().await;
            }
            _ => {
                delivery.world.nats.kill().await;
                delivery.world.nats.start_again().await;
            }
        }
        last = delivery.count().await;
    }
    let _outjet = delivery.run();
    let stored = assert_exact(&delivery).await;
    let again = stored.iter().filter(|message| replayed(message));
    assert_eq!(again.count() as u64, handed_over);
    for message in stored {
        let kind = message.subject.strip_prefix("shadow.events.order.");
        let body: Value = serde_json::from_slice(&message.payload).expect("JSON");
        assert_eq!(body["type"].as_str(), kind);
        let text = std::str::from_utf8(&message.payload).expect("UTF-8");
        let payload = match kind {
            Some("row") => r#""data":{"b": 1}"#,
            _ => r#""data":{"total": 9.50}"#,
        };
        assert!(text.contains(payload), "{text}");
    }
    let verified = delivery.outjet(["verify"]).output().await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
}
