//! What happens to the database, and what of it must arrive.

use std::time::Duration;

use outjet::lsn::Lsn;
use time::OffsetDateTime;
use tokio::time::{sleep, timeout};

use super::{World, number};
use crate::judge::Due;
use crate::postgres::{Event, Phase, Row, SlotAfter, SlotView, Xid};
use crate::scene::MAX_PAYLOAD;

impl World {
    /// A few transactions, each committed at once.
    pub(super) fn write(&mut self) {
        for _ in 0..self.random.between(1, 12) {
            let Some(xid) = self.postgres.begin() else {
                return;
            };
            let most = if self.random.once_in(20) { 60 } else { 4 };
            for _ in 0..self.random.between(1, most) {
                self.insert(xid);
            }
            let end = self.postgres.commit(xid);
            self.say(&format!("committed up to event {}: {end:?}", self.next));
        }
    }

    fn insert(&mut self, xid: Xid) {
        self.next += 1;
        // An event of its own all the same.
        let mut id = self.next;
        if self.reuses_ids && self.random.once_in(10) {
            id = self.random.between(1, self.next);
            self.say(&format!("event {} bears the id of event {id}", self.next));
        }
        let id = uuid::Uuid::from_u128(u128::from(id)).to_string();
        let mut row = Row::new(id, format!("{{\"n\": {}}}", self.next));
        if self.scene.oversize && !self.reuses_ids && self.random.once_in(15) {
            let pad = "x".repeat(self.random.index(2 * MAX_PAYLOAD));
            row.payload = Some(format!("{{\"n\": {}, \"pad\": \"{pad}\"}}", self.next));
        }
        if self.scene.delays && self.random.once_in(5) {
            row.deliver_at = Some(self.some_time());
        }
        row.aggregateid = self.random.between(1, 5).to_string();
        self.postgres.insert(xid, row);
        if self.random.once_in(10) {
            self.postgres.message(xid, "foreign", b"?");
        }
    }

    /// Shortly before now, or later.
    fn some_time(&mut self) -> String {
        let seconds = self.random.below(40) as i64 - 5;
        let at = self.nats.now() + seconds * 1_000_000_000;
        let at = OffsetDateTime::from_unix_timestamp_nanos(at.into()).expect("a time");
        let (date, (hour, minute, second)) = (at.date(), at.to_hms());
        format!("{date} {hour:02}:{minute:02}:{second:02}+00")
    }

    /// Begins, goes on with, or commits one of several open transactions.
    pub(super) fn overlap(&mut self) {
        if self.open.len() < 4
            && let Some(xid) = self.postgres.begin()
        {
            self.open.push(xid);
        }
        for _ in 0..self.random.between(1, 8) {
            if !self.open.is_empty() {
                let xid = *self.random.of(&self.open);
                self.insert(xid);
            }
        }
        if !self.open.is_empty() && !self.random.once_in(3) {
            let xid = self.open.swap_remove(self.random.index(self.open.len()));
            let end = self.postgres.commit(xid);
            self.say(&format!("committed {xid:?}: {end:?}"));
        }
    }

    pub(super) fn roll_back(&mut self) {
        if let Some(xid) = self.open.pop() {
            self.say(&format!("rolled back {xid:?}"));
            self.postgres.rollback(xid);
        }
    }

    pub(super) async fn crash_postgres(&mut self) {
        self.say("Postgres crashes");
        self.postgres.crash();
        self.open.clear();
        sleep(Duration::from_millis(self.random.below(5_000))).await;
        self.postgres.start();
    }

    pub(super) async fn shut_down_postgres(&mut self) {
        self.say("Postgres is shut down");
        self.postgres.fast_shutdown();
        self.open.clear();
        let limit = Duration::from_millis(self.random.below(30_000));
        let _ = timeout(limit, self.postgres.stopped()).await;
        if self.postgres.phase() != Phase::Down {
            self.postgres.crash();
        }
        self.postgres.start();
    }

    pub(super) fn terminate_walsender(&mut self) {
        self.say("the walsender is terminated");
        self.postgres.terminate_walsender();
    }

    pub(super) fn terminate_sessions(&mut self) {
        self.say("all sessions are terminated");
        self.postgres.terminate_sessions();
    }

    pub(super) async fn freeze(&mut self) {
        self.say("the walsender is frozen");
        self.postgres.freeze(true);
        sleep(Duration::from_millis(self.random.below(30_000))).await;
        self.postgres.freeze(false);
    }

    pub(super) fn set_synchronous(&mut self) {
        let synchronous = self.random.once_in(2);
        self.say(&format!("synchronous_standby_names is set: {synchronous}"));
        self.postgres.set_synchronous(synchronous);
    }

    /// The end of most histories, so it comes less often than the others.
    pub(super) fn lose_slot(&mut self) {
        if self.random.once_in(4) {
            self.say("the slot is lost");
            self.postgres.lose_slot();
        }
    }

    pub(super) fn advance_slot(&mut self) {
        self.move_slot(|world| {
            let to = Lsn::new(world.postgres.flushed().as_u64() - world.random.below(4_000));
            world.postgres.advance_slot(to)
        });
    }

    pub(super) fn recreate_slot(&mut self) {
        self.move_slot(|world| world.postgres.drop_slot() && world.postgres.create_slot());
    }

    /// By hand, with everybody stopped.
    pub(super) fn move_slot(&mut self, deed: impl FnOnce(&mut Self) -> bool) {
        while !self.instances.is_empty() {
            self.kill();
        }
        let Some(before) = self.postgres.slot() else {
            return;
        };
        if !deed(self) {
            return;
        }
        self.moved = true;
        let after = self.postgres.slot().expect("a slot").confirmed;
        self.say(&format!(
            "the slot is moved from {} to {after}",
            before.confirmed
        ));
        let found = self.found();
        let stored = |number| found.iter().any(|found| found.number == number);
        for due in self.due() {
            if due.end > after {
                continue;
            }
            self.moved_past.insert(due.number);
            if due.owed() && !stored(due.number) {
                self.say(&format!("event {} is passed over", due.number));
                // The record names what is held back as if it were confirmed.
                match self.lost_while_held.contains(&due.number) {
                    true => self.forgotten.insert(due.number),
                    false => self.passed_over.insert(due.number),
                };
            }
        }
    }

    pub(super) fn promote(&mut self) {
        let lost = self.random.of_any_size(14);
        let until = Lsn::new(self.postgres.flushed().as_u64().saturating_sub(lost));
        let slot = self.postgres.slot().map_or(until, |slot| slot.saved);
        let slot = match self.random.below(8) {
            0 => SlotAfter::Gone,
            1..=3 => SlotAfter::InStep,
            _ => SlotAfter::At(slot),
        };
        self.say(&format!(
            "a standby is promoted at {until}, its slot {slot:?}"
        ));
        self.postgres.promote(until, slot);
        self.open.clear();
    }

    /// The slot, if it can be read.
    pub(super) fn slot(&self) -> Option<SlotView> {
        self.postgres.slot().filter(|slot| !slot.lost)
    }

    pub(super) fn due(&self) -> Vec<Due> {
        let log = self.postgres.log();
        let due = log.iter().filter_map(|committed| match &committed.event {
            Event::Row(row) if committed.published => {
                let number = number(row.payload.as_deref()?.as_bytes());
                Some(Due {
                    number,
                    end: committed.end_lsn,
                    delayed: row.deliver_at.is_some(),
                    cut_off: committed.lost || self.forgotten.contains(&number),
                    passed_over: self.passed_over.contains(&number),
                })
            }
            _ => None,
        });
        due.collect()
    }
}
