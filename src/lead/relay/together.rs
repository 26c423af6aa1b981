//! Gathers the events of a transaction until its end, where they are to appear together: only then
//! it is known how many they are. Those that are too many are let go, and are sent as they come.
//! What is gathered when the relay ends was never handed over. Pure.

use crate::event::Event;

/// The events of the open transaction.
pub(super) struct Together {
    events: Vec<Event>,
    /// Most events that are gathered; 0 for none.
    events_max: usize,
    /// The open transaction was given up.
    given_up: bool,
}

/// Most messages in one batch of nats-server (`streamDefaultMaxAtomicBatchSize`).
const TOGETHER_MAX: usize = 1000;

impl Together {
    /// Gathers nothing unless told to.
    pub(super) fn new(atomic: bool) -> Self {
        Self {
            events: Vec::new(),
            events_max: if atomic { TOGETHER_MAX } else { 0 },
            given_up: false,
        }
    }

    /// How many are gathered.
    pub(super) fn events(&self) -> usize {
        self.events.len()
    }

    /// The next event of the transaction.
    pub(super) fn take(&mut self, event: Event, batch: &mut Vec<Event>) {
        self.events.push(event);
        if self.given_up || self.events.len() > self.events_max {
            self.give_up(batch);
        }
    }

    /// They go as they are, and the rest of the transaction, too.
    pub(super) fn give_up(&mut self, batch: &mut Vec<Event>) {
        self.given_up |= !self.events.is_empty();
        batch.append(&mut self.events);
    }

    /// The transaction is complete.
    pub(super) fn commit(&mut self, batch: &mut Vec<Event>) {
        self.given_up = false;
        let followers = (0..self.events.len() as u16).rev();
        for (event, followers) in self.events.iter_mut().zip(followers) {
            event.followers = followers;
        }
        batch.append(&mut self.events);
    }
}
