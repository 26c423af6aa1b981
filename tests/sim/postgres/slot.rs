//! The logical slot: where it stands, and what of that would survive a crash.

use outjet::lsn::Lsn;
use tokio::time::Instant;

/// What a slot says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotView {
    /// `confirmed_flush_lsn`, in memory.
    pub(crate) confirmed: Lsn,
    /// `confirmed_flush_lsn`, as a crash would leave it.
    pub(crate) saved: Lsn,
    /// `restart_lsn`; `None`: lost.
    pub(crate) restart: Option<Lsn>,
    /// The walsender that holds it.
    pub(crate) active_pid: Option<i32>,
    /// `wal_status` is `lost`.
    pub(crate) lost: bool,
}

/// What is kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) confirmed: u64,
    pub(super) restart: u64,
}

/// A slot. `LogicalConfirmReceivedLocation` and its neighbours, logical.c.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) now: Position,
    saved: Position,
    /// Saved with the next checkpoint.
    dirty: bool,
    /// Once what lies before `.0` is confirmed, `restart_lsn` may move to `.1`.
    candidate: Option<(u64, u64)>,
    pub(super) active_pid: Option<i32>,
    pub(super) lost: bool,
    /// `total_txns > 0` in `pg_stat_replication_slots`; a crash forgets it.
    pub(super) used: bool,
    pub(super) inactive_since: Instant,
}

impl Slot {
    /// A new one is saved as it is made.
    pub(super) fn new(confirmed: u64, restart: u64) -> Self {
        let now = Position { confirmed, restart };
        Self {
            now,
            saved: now,
            dirty: false,
            candidate: None,
            active_pid: None,
            lost: false,
            used: false,
            inactive_since: Instant::now(),
        }
    }

    /// A status update. Never back: the minor versions of August 2025 and later.
    pub(super) fn confirm(&mut self, flush: u64) {
        self.now.confirmed = self.now.confirmed.max(flush);
        if let Some((valid, restart)) = self.candidate
            && valid <= flush
        {
            self.candidate = None;
            self.now.restart = self.now.restart.max(restart);
            self.save();
        }
    }

    /// Decoding has come past a record of running transactions: `LogicalIncreaseRestartDecoding…`.
    pub(super) fn offer_restart(&mut self, at: u64, restart: u64) {
        if restart <= self.now.restart {
            return;
        }
        if at <= self.now.confirmed {
            self.candidate = Some((at, restart));
            self.confirm(self.now.confirmed);
        } else if self.candidate.is_none() {
            // A newer one would never be reached by a client that is always a little late.
            self.candidate = Some((at, restart));
        }
    }

    /// By hand.
    pub(super) fn advance(&mut self, to: u64) {
        self.confirm(to);
        self.dirty = true;
    }

    pub(super) fn checkpoint(&mut self) {
        if self.dirty {
            self.save();
        }
    }

    pub(super) fn save(&mut self) {
        self.saved = self.now;
        self.dirty = false;
    }

    /// As read from disk.
    pub(super) fn rewind(&mut self) {
        self.now = self.saved;
        self.dirty = false;
        self.candidate = None;
        self.active_pid = None;
        self.inactive_since = Instant::now();
    }

    /// The walsender is gone.
    pub(super) fn release(&mut self) {
        self.active_pid = None;
        self.inactive_since = Instant::now();
    }

    pub(super) fn view(&self) -> SlotView {
        SlotView {
            confirmed: Lsn::new(self.now.confirmed),
            saved: Lsn::new(self.saved.confirmed),
            restart: (!self.lost).then(|| Lsn::new(self.now.restart)),
            active_pid: self.active_pid,
            lost: self.lost,
        }
    }
}
