//! Everything handed to the sink and not yet settled, and what may be confirmed because of it.
//! Pure: no clock, no socket, no idea of what an event is.
//!
//! One FIFO holds transactions and, between them, keepalives as barriers without work. An entry
//! leaves at the head only, once it is closed (its commit was read) and nothing of it is
//! outstanding; the LSN of the last entry that left is what may be confirmed. Invariant: nothing
//! that the sink has not settled lies below `confirmed`. It holds because the server sends whole
//! transactions in commit order, and a keepalive's `wal_end` only after every commit before it
//! (`XLogSendLogical` in walsender.c sets `sentPtr` after the record's output).
//!
//! A window that holds confirms later: what has left it is *stored*, and belongs to the next
//! portion. Portions are released in order; then what was stored when a portion was made may be
//! confirmed. A keepalive waits for the portions before it, and needs none of its own.
//!
//! Only this module can make a [`Confirmed`], and the status update takes nothing else.

use std::collections::VecDeque;

use crate::lsn::Lsn;

/// An LSN below which everything is stored: safe to report as flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Confirmed(Lsn);

impl Confirmed {
    /// For the status update.
    pub fn lsn(self) -> Lsn {
        self.0
    }
}

/// How much may be with the sink at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events.
    pub events_max: usize,
    /// Bytes of events, as the caller counts them. A single larger event still passes, alone.
    pub bytes_max: usize,
}

/// The window of one term.
#[derive(Debug)]
pub struct Window {
    entries: VecDeque<Entry>,
    sizes: VecDeque<usize>,
    bytes: usize,
    /// Where the slot stood.
    start: Lsn,
    confirmed: Confirmed,
    /// Everything before it has left; without holding it is confirmed, too.
    stored: Lsn,
    /// Where each portion that is held back ends.
    held: VecDeque<Lsn>,
    /// Whether events were settled that belong to no portion yet.
    unheld: bool,
    holds: bool,
    received: Lsn,
    /// Commit times of transactions with events that have left.
    left: Vec<i64>,
    limits: Limits,
    /// From a limit that was reached until half of it is free.
    full: bool,
}

/// A transaction, or a keepalive (closed, without work).
#[derive(Debug)]
struct Entry {
    /// The highest LSN that may be confirmed once this entry has left.
    end: Lsn,
    outstanding: usize,
    closed: bool,
    /// When it was committed, if it has events. Opaque.
    committed: Option<i64>,
}

impl Window {
    /// Starts where the slot stands: `confirmed_flush` as read before `START_REPLICATION`.
    pub fn new(limits: Limits, confirmed_flush: Lsn) -> Self {
        assert!(limits.events_max > 0, "a window without room never moves");
        Self {
            entries: VecDeque::new(),
            sizes: VecDeque::new(),
            bytes: 0,
            start: confirmed_flush,
            confirmed: Confirmed(confirmed_flush),
            stored: confirmed_flush,
            held: VecDeque::new(),
            unheld: false,
            holds: false,
            received: confirmed_flush,
            left: Vec::new(),
            limits,
            full: false,
        }
    }

    /// The same, but nothing is confirmed before it is released.
    pub fn holding(self) -> Self {
        Self {
            holds: true,
            ..self
        }
    }

    /// A transaction starts.
    pub fn begin(&mut self) {
        assert!(!self.in_transaction(), "transactions arrive one at a time");
        self.entries.push_back(Entry {
            end: self.received,
            outstanding: 0,
            closed: false,
            committed: None,
        });
    }

    /// An event of the open transaction, which was committed at a time that only the caller
    /// understands, goes to the sink.
    pub fn hand_over(&mut self, bytes: usize, committed: i64) {
        let open = self.entries.back_mut().filter(|entry| !entry.closed);
        let open = open.expect("an event belongs to an open transaction");
        open.outstanding += 1;
        open.committed = Some(committed);
        self.sizes.push_back(bytes);
        self.bytes += bytes;
        self.full |= self.reaches(self.limits.events_max, self.limits.bytes_max);
    }

    /// The open transaction ends at `end` (`Commit.end_lsn`: the server sends a transaction again
    /// exactly if its commit record starts below the confirmed LSN, `SnapBuildXactNeedsSkip`).
    pub fn commit(&mut self, end: Lsn) {
        let open = self.entries.back_mut().filter(|entry| !entry.closed);
        let entry = open.expect("a commit ends an open transaction");
        entry.closed = true;
        entry.end = end;
        self.received = self.received.max(end);
        self.advance();
    }

    /// A keepalive was read: nothing below `wal_end` is still to come. Inside a transaction it says
    /// nothing new (`wal_end` is then at most the start of the commit record).
    pub fn keepalive(&mut self, wal_end: Lsn) {
        if self.in_transaction() {
            return;
        }
        self.received = self.received.max(wal_end);
        match self.entries.back_mut() {
            // Without this, barriers and empty transactions pile up behind one stuck event.
            Some(tail) if tail.outstanding == 0 => tail.end = tail.end.max(wal_end),
            _ => self.entries.push_back(Entry {
                end: wal_end,
                outstanding: 0,
                closed: true,
                committed: None,
            }),
        }
        self.advance();
    }

    /// The oldest `events` events are stored.
    pub fn settle(&mut self, events: usize) {
        assert!(
            events <= self.sizes.len(),
            "settled more events than were handed over"
        );
        for size in self.sizes.drain(..events) {
            self.bytes -= size;
        }
        let mut left = events;
        for entry in &mut self.entries {
            let taken = left.min(entry.outstanding);
            entry.outstanding -= taken;
            left -= taken;
            if left == 0 {
                break;
            }
        }
        assert_eq!(left, 0, "every outstanding event belongs to an entry");
        self.unheld |= self.holds && events > 0;
        self.full &= self.reaches(
            self.limits.events_max / 2 + 1,
            self.limits.bytes_max / 2 + 1,
        );
        self.advance();
    }

    /// What was settled since the last portion makes one.
    pub fn hold(&mut self) {
        assert!(self.holds, "what is not held back is confirmed already");
        self.held.push_back(self.stored);
        self.unheld = false;
    }

    /// The oldest portion is safe.
    pub fn release(&mut self) {
        let end = self.held.pop_front().expect("a portion is released once");
        self.confirm(end);
        self.confirm_stored();
    }

    /// Whether one more event may be read. Once full, the window is emptied by half before more is
    /// read: reading for every place that becomes free would make every message a burst of its own
    /// all the way to the disk of NATS (the silly window syndrome, RFC 813).
    pub fn has_room(&self) -> bool {
        !self.full
    }

    /// What may be reported as flushed. Never goes back.
    pub fn confirmed(&self) -> Confirmed {
        self.confirmed
    }

    /// [`confirmed`](Self::confirmed), as far as that lies within a limit.
    pub fn confirmed_within(&self, limit: Lsn) -> Confirmed {
        Confirmed(self.confirmed.0.min(limit).max(self.start))
    }

    /// What is confirmed, once it is beyond where the slot stood: what the server has not sent in
    /// this session is not reported back to it.
    pub fn newly(&self, confirmed: Confirmed) -> Option<Confirmed> {
        (confirmed.0 > self.start).then_some(confirmed)
    }

    /// Everything before it is stored. Never below `confirmed`; beyond it while something is held.
    pub fn stored(&self) -> Lsn {
        self.stored
    }

    /// Portions that are held back.
    pub fn portions(&self) -> usize {
        self.held.len()
    }

    /// The highest LSN up to which everything was read. Never below `confirmed`.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Events handed over and not settled.
    pub fn events(&self) -> usize {
        self.sizes.len()
    }

    /// Bytes handed over and not settled.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The commit times of the transactions with events that have left since the last call.
    pub fn take_left(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.left)
    }

    /// The commit time of the oldest transaction with an event that is not settled.
    pub fn oldest(&self) -> Option<i64> {
        let unsettled = |entry: &&Entry| entry.outstanding > 0;
        let mut unsettled = self.entries.iter().filter(unsettled);
        unsettled.next().and_then(|entry| entry.committed)
    }

    /// Whether the end of a transaction is still to come.
    pub fn in_transaction(&self) -> bool {
        self.entries.back().is_some_and(|entry| !entry.closed)
    }

    fn reaches(&self, events: usize, bytes: usize) -> bool {
        self.sizes.len() >= events || self.bytes >= bytes
    }

    /// Lets closed entries without work leave at the head. Empty transactions coalesce as barriers
    /// do: 14 sends one for every transaction of the database.
    fn advance(&mut self) {
        while let Some(head) = self.entries.front() {
            if !head.closed || head.outstanding > 0 {
                break;
            }
            let end = head.end;
            self.left.extend(head.committed);
            self.entries.pop_front();
            // At the start of a stream keepalives may still lie below the slot's position:
            // decoding starts at restart_lsn.
            self.stored = self.stored.max(end);
        }
        self.confirm_stored();
        self.coalesce();
    }

    /// All that is stored is safe, unless there is still an event to be held back.
    fn confirm_stored(&mut self) {
        if self.held.is_empty() && !self.unheld {
            self.confirm(self.stored);
        }
    }

    fn confirm(&mut self, end: Lsn) {
        assert!(end <= self.stored, "confirmed what is not stored");
        assert!(end <= self.received, "confirmed what was not read");
        self.confirmed = self.confirmed.max(Confirmed(end));
    }

    /// Merges a closed, empty entry at the tail into a closed, empty one before it.
    fn coalesce(&mut self) {
        let count = self.entries.len();
        if count < 2 {
            return;
        }
        let idle = |entry: &Entry| entry.closed && entry.outstanding == 0;
        if idle(&self.entries[count - 1]) && idle(&self.entries[count - 2]) {
            let end = self.entries[count - 1].end;
            self.entries.pop_back();
            self.entries[count - 2].end = self.entries[count - 2].end.max(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: Limits = Limits {
        events_max: 4,
        bytes_max: 100,
    };

    fn lsn(value: u64) -> Lsn {
        Lsn::new(value)
    }

    fn window() -> Window {
        Window::new(ROOM, lsn(10))
    }

    #[test]
    fn where_the_slot_stood_is_not_reported_back() {
        let mut window = window();
        assert_eq!(window.newly(window.confirmed()), None);
        window.keepalive(lsn(10));
        assert_eq!(window.newly(window.confirmed()), None);
        window.keepalive(lsn(11));
        assert_eq!(window.newly(window.confirmed()), Some(Confirmed(lsn(11))));
    }

    #[test]
    fn confirmed_waits_for_the_oldest_event() {
        let mut window = window();
        for end in [20, 30] {
            window.begin();
            window.hand_over(1, 0);
            window.commit(lsn(end));
        }
        assert_eq!(window.confirmed().lsn(), lsn(10));
        window.settle(1);
        assert_eq!(window.confirmed().lsn(), lsn(20));
        window.settle(1);
        assert_eq!(window.confirmed().lsn(), lsn(30));
    }

    #[test]
    fn commit_times_are_told_when_the_last_event_is_settled() {
        let mut window = window();
        for (end, committed) in [(20, 7), (30, 8)] {
            window.begin();
            window.hand_over(1, committed);
            window.hand_over(1, committed);
            window.commit(lsn(end));
        }
        assert_eq!(window.oldest(), Some(7));
        window.settle(1);
        assert_eq!((window.oldest(), window.take_left()), (Some(7), vec![]));
        window.settle(2);
        assert_eq!((window.oldest(), window.take_left()), (Some(8), vec![7]));
        window.settle(1);
        assert_eq!((window.oldest(), window.take_left()), (None, vec![8]));
    }

    #[test]
    fn a_transaction_is_not_confirmed_before_its_commit_was_read() {
        let mut window = window();
        window.begin();
        window.hand_over(1, 0);
        window.settle(1);
        window.keepalive(lsn(50));
        assert_eq!(window.confirmed().lsn(), lsn(10));
        window.commit(lsn(40));
        assert_eq!(window.confirmed().lsn(), lsn(40));
    }

    #[test]
    fn a_keepalive_waits_for_what_was_sent_before_it() {
        let mut window = window();
        window.begin();
        window.hand_over(1, 0);
        window.commit(lsn(20));
        window.keepalive(lsn(25));
        assert_eq!(window.confirmed().lsn(), lsn(10));
        window.settle(1);
        assert_eq!(window.confirmed().lsn(), lsn(25));
    }

    #[test]
    fn an_idle_window_confirms_keepalives_at_once() {
        let mut window = window();
        window.keepalive(lsn(99));
        assert_eq!(window.confirmed().lsn(), lsn(99));
    }

    #[test]
    fn a_keepalive_below_the_slot_does_not_move_it_back() {
        let mut window = window();
        window.keepalive(lsn(5));
        assert_eq!(window.confirmed().lsn(), lsn(10));
        assert_eq!(window.received(), lsn(10));
    }

    #[test]
    fn empty_transactions_behind_a_stuck_event_take_no_memory() {
        let mut window = window();
        window.begin();
        window.hand_over(1, 0);
        window.commit(lsn(20));
        for end in 21..1000 {
            window.begin();
            window.commit(lsn(end));
            window.keepalive(lsn(end));
        }
        assert_eq!(window.entries.len(), 2);
        window.settle(1);
        assert_eq!(window.confirmed().lsn(), lsn(999));
    }

    #[test]
    fn room_ends_exactly_at_either_limit() {
        let mut window = window();
        window.begin();
        for _ in 0..3 {
            window.hand_over(1, 0);
            assert!(window.has_room());
        }
        window.hand_over(1, 0);
        assert!(!window.has_room());
        window.settle(4);
        window.hand_over(99, 0);
        assert!(window.has_room());
        window.hand_over(1, 0);
        assert!(!window.has_room());
    }

    #[test]
    fn a_full_window_has_room_again_when_half_of_it_is_free() {
        let mut window = window();
        window.begin();
        (0..4).for_each(|_| window.hand_over(1, 0));
        window.settle(1);
        assert!(!window.has_room());
        window.settle(1);
        assert!(window.has_room());
        window.hand_over(97, 0);
        assert!(window.has_room());
        window.hand_over(50, 0);
        window.settle(3);
        assert!(window.has_room());
        window.hand_over(1, 0);
        window.hand_over(99, 0);
        window.settle(1);
        assert!(!window.has_room());
    }

    #[test]
    fn held_transactions_leave_the_window_and_are_confirmed_when_released() {
        let mut window = window().holding();
        for end in [20, 30] {
            window.begin();
            (0..4).for_each(|_| window.hand_over(1, 0));
            window.commit(lsn(end));
            window.settle(4);
            assert!(window.has_room());
            window.hold();
        }
        assert_eq!(window.confirmed().lsn(), lsn(10));
        window.release();
        assert_eq!(window.confirmed().lsn(), lsn(20));
        window.release();
        assert_eq!(window.confirmed().lsn(), lsn(30));
    }

    #[test]
    fn what_was_settled_after_a_portion_was_made_is_not_confirmed_with_it() {
        let mut window = window().holding();
        for end in [20, 30] {
            window.begin();
            window.hand_over(1, 0);
            window.commit(lsn(end));
        }
        window.settle(1);
        window.hold();
        window.settle(1);
        window.release();
        assert_eq!(window.confirmed().lsn(), lsn(20));
        window.keepalive(lsn(40));
        assert_eq!(window.confirmed().lsn(), lsn(20));
    }

    #[test]
    fn keepalives_wait_for_what_is_held_and_then_for_nothing() {
        let mut window = window().holding();
        window.keepalive(lsn(15));
        assert_eq!(window.confirmed().lsn(), lsn(15));
        window.begin();
        window.hand_over(1, 0);
        window.commit(lsn(20));
        window.settle(1);
        window.hold();
        (21..1000).for_each(|end| window.keepalive(lsn(end)));
        assert_eq!((window.portions(), window.entries.len()), (1, 0));
        assert_eq!(window.confirmed().lsn(), lsn(15));
        window.release();
        assert_eq!(window.confirmed().lsn(), lsn(999));
    }

    #[test]
    #[should_panic(expected = "a portion is released once")]
    fn releasing_what_is_not_held_is_our_bug() {
        window().holding().release();
    }

    #[test]
    #[should_panic(expected = "settled more events than were handed over")]
    fn settling_what_was_never_handed_over_is_our_bug() {
        window().settle(1);
    }

    /// One step of the naive model: a plain list of (lsn, unsettled events).
    #[derive(Clone, Debug)]
    enum Step {
        Transaction(usize),
        Keepalive,
        Settle(usize),
        Hold,
        Release,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..5usize).prop_map(Step::Transaction),
            Just(Step::Keepalive),
            (0..7usize).prop_map(Step::Settle),
        ]
    }

    fn step_of_a_holder() -> impl Strategy<Value = Step> {
        prop_oneof![3 => step(), 1 => Just(Step::Hold), 1 => Just(Step::Release)]
    }

    proptest! {
        #[test]
        fn confirmed_is_the_end_of_the_settled_prefix(
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut window = window();
            let mut model: Vec<(u64, usize)> = Vec::new();
            let mut now = 10;
            for step in steps {
                now += 1;
                match step {
                    Step::Transaction(events) => {
                        window.begin();
                        (0..events).for_each(|_| window.hand_over(1, 0));
                        window.commit(lsn(now));
                        model.push((now, events));
                    }
                    Step::Keepalive => {
                        window.keepalive(lsn(now));
                        model.push((now, 0));
                    }
                    Step::Settle(wanted) => {
                        let mut left = wanted.min(model.iter().map(|(_, events)| events).sum());
                        window.settle(left);
                        for (_, events) in &mut model {
                            let taken = left.min(*events);
                            *events -= taken;
                            left -= taken;
                        }
                    }
                    Step::Hold | Step::Release => unreachable!("not of this window"),
                }
                let done = model.iter().take_while(|(_, events)| *events == 0).last();
                prop_assert_eq!(window.confirmed().lsn(), lsn(done.map_or(10, |(end, _)| *end)));
                let outstanding: usize = model.iter().map(|(_, events)| events).sum();
                prop_assert_eq!(window.events(), outstanding);
            }
        }

        /// The model: where each transaction and keepalive ends, and how many events come up to it.
        #[test]
        fn held_back_is_what_was_not_released(
            steps in prop::collection::vec(step_of_a_holder(), 1..200),
        ) {
            let mut window = window().holding();
            let mut ends: Vec<(u64, usize)> = Vec::new();
            let (mut events, mut settled, mut released) = (0, 0, 0);
            let mut portions: VecDeque<usize> = VecDeque::new();
            for (now, step) in (11..).zip(steps) {
                match step {
                    Step::Transaction(more) => {
                        window.begin();
                        (0..more).for_each(|_| window.hand_over(1, 0));
                        window.commit(lsn(now));
                        events += more;
                        ends.push((now, events));
                    }
                    Step::Keepalive => {
                        window.keepalive(lsn(now));
                        ends.push((now, events));
                    }
                    Step::Settle(wanted) => {
                        let more = wanted.min(events - settled);
                        window.settle(more);
                        settled += more;
                    }
                    Step::Hold => {
                        window.hold();
                        portions.push_back(settled);
                    }
                    Step::Release => if let Some(portion) = portions.pop_front() {
                        window.release();
                        released = portion;
                    },
                }
                let safe = ends.iter().take_while(|(_, events)| *events <= released).last();
                let safe = lsn(safe.map_or(10, |(end, _)| *end));
                prop_assert!(window.confirmed().lsn() <= safe);
                if released == settled && portions.is_empty() {
                    prop_assert_eq!(window.confirmed().lsn(), safe);
                }
                prop_assert!(window.confirmed().lsn() <= window.stored());
            }
        }
    }
}
