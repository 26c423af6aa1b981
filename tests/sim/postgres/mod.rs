//! A model of one Postgres server, 14 to 18, as far as outjet meets it: a write-ahead log with
//! transactions in commit order, one logical slot, walsenders that speak pgoutput, and sessions
//! that answer outjet's own queries. Knows nothing of outjet but those queries' text.
//!
//! Invariant: nothing here asks the world. Time is `tokio::time` (paused, in a simulation), ids
//! count up, and nothing is iterated in an order of chance: the same calls at the same instants
//! give the same bytes.

mod backend;
mod command;
mod conformance;
mod pgoutput;
mod row;
mod rules;
mod slot;
mod sql;
mod stage;
mod state;
mod talk;
mod wal;
mod walsender;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outjet::lsn::Lsn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

pub(crate) use self::row::Row;
pub(crate) use self::slot::SlotView;
pub(crate) use self::state::Phase;
use self::state::State;
pub(crate) use self::wal::{Committed, Event, Xid};

/// What a server is from the beginning.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// 14 to 18.
    pub(crate) major: u32,
    /// The system identifier; promotions keep it.
    pub(crate) system: u64,
    /// The only database.
    pub(crate) database: String,
    /// The slot that there may be. It exists from the start, at [`Options::start`].
    pub(crate) slot: String,
    /// The publication: `FOR TABLE outbox.events`, inserts, by the root.
    pub(crate) publication: String,
    /// Where the log begins.
    pub(crate) start: Lsn,
}

impl Options {
    /// Database, slot and publication are all called `outjet`.
    pub(crate) fn new(major: u32) -> Self {
        assert!(
            (14..=18).contains(&major),
            "Postgres {major} is not modelled"
        );
        let name = || "outjet".to_owned();
        Self {
            major,
            system: 7_710_494_952_070_725_283,
            database: name(),
            slot: name(),
            publication: name(),
            start: Lsn::new(0x150_0000),
        }
    }
}

/// A server. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Postgres {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// The log has grown, or a backend must look at its own fate.
    changed: Notify,
}

/// What becomes of the slot when a standby is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotAfter {
    /// As it stood (but not beyond the end of the log): kept in step.
    InStep,
    /// As it stood when this was confirmed; never beyond where it stands, or the end of the log.
    At(Lsn),
    /// The standby had none: 14 to 16, or one that was made without failover.
    Gone,
}

/// What writers and operators do. None of it waits.
impl Postgres {
    /// A running primary with an empty outbox and a slot that nobody has read.
    pub(crate) fn new(options: Options) -> Self {
        Self::of(State::new(options))
    }

    fn of(state: State) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Notify::new(),
            }),
        }
    }

    /// Plays the server's side of one connection until it ends. Dropping the future is the death of
    /// the backend, as by `kill -9` of it alone: its slot is free at once. A client that is gone
    /// without a word (neither readable nor closed) is noticed only by `wal_sender_timeout`.
    pub(crate) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        backend::serve(self, stream).await;
    }

    /// Whether it accepts connections. While it shuts down it does, and refuses them with 57P03.
    pub(crate) fn is_up(&self) -> bool {
        self.state().phase != Phase::Down
    }

    /// Whether it runs, shuts down or is down.
    pub(crate) fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Opens a transaction; `None`: the server is not up. Writes nothing yet.
    pub(crate) fn begin(&self) -> Option<Xid> {
        self.state().begin()
    }

    /// Writes a row into `outbox.events`. Without effect if the transaction is gone (a crash).
    pub(crate) fn insert(&self, xid: Xid, row: Row) {
        self.state().insert(xid, row);
    }

    /// The same with a text that UTF-8 lacks, in a database of another encoding: each walsender
    /// that comes to it ends with an error (22P05), and goes no further.
    pub(crate) fn insert_untranslatable(&self, xid: Xid, row: Row) {
        self.state().insert_untranslatable(xid, row);
    }

    /// Drops the publication, or makes it. What is written without it, in whatever table, ends each
    /// walsender that comes to it with an error (42704, up to 17), or is left out, with a notice
    /// (18).
    pub(crate) fn set_publication(&self, there: bool) {
        self.state().set_publication(there);
    }

    /// Takes `outbox.events` into the publication, or out of it: rows written then are not sent.
    pub(crate) fn set_published(&self, published: bool) {
        self.state().set_published(published);
    }

    /// Somebody alters the table, in nothing that matters: it is described again before its next
    /// row.
    pub(crate) fn alter_table(&self) {
        self.state().edit_catalog();
    }

    /// Whether `synchronous_standby_names` is set. Writers do not wait in this model; walsenders of
    /// 15 and newer say at once how far they are with each transaction that they leave out.
    pub(crate) fn set_synchronous(&self, synchronous: bool) {
        self.state().catalog.synchronous = synchronous;
    }

    /// `pg_logical_emit_message(true, …)`.
    pub(crate) fn message(&self, xid: Xid, prefix: &str, content: &[u8]) {
        self.state().message(xid, prefix, content);
    }

    /// Ends a transaction without effect.
    pub(crate) fn rollback(&self, xid: Xid) {
        self.state().rollback(xid);
    }

    /// Commits, and flushes the log. The end of the commit record; `None`: the transaction is gone,
    /// nothing of it was committed.
    pub(crate) fn commit(&self, xid: Xid) -> Option<Lsn> {
        let end = self.state().commit(xid);
        self.shared.changed.notify_waiters();
        end
    }

    /// `pg_logical_emit_message(false, …)`, flushed: no transaction, sent even so.
    pub(crate) fn signal(&self, prefix: &str, content: &[u8]) {
        self.state().signal(prefix, content);
        self.shared.changed.notify_waiters();
    }

    /// Log of no transaction of this database: vacuum, other databases, physical changes.
    pub(crate) fn traffic(&self, bytes: u64) {
        self.state().traffic(bytes);
        self.shared.changed.notify_waiters();
    }

    /// A committed transaction that touches other tables only: 14 sends its Begin and Commit.
    pub(crate) fn unpublished(&self, bytes: u64) -> Option<Lsn> {
        let end = self.state().unpublished(bytes);
        self.shared.changed.notify_waiters();
        end
    }

    /// What the background writer logs every 15 s: only when a walsender reads it (and the client
    /// confirms beyond it) can `restart_lsn` move and the slot be saved.
    pub(crate) fn running_xacts(&self) {
        self.state().running_xacts();
        self.shared.changed.notify_waiters();
    }

    /// A checkpoint: [`Postgres::running_xacts`], and the slot is saved if it is dirty.
    pub(crate) fn checkpoint(&self) {
        self.state().checkpoint();
        self.shared.changed.notify_waiters();
    }

    /// Everything committed so far, in commit order, also what a promotion has lost since.
    pub(crate) fn log(&self) -> Vec<Committed> {
        self.state().wal.log()
    }

    /// How far the log is flushed: `pg_current_wal_flush_lsn()`.
    pub(crate) fn flushed(&self) -> Lsn {
        Lsn::new(self.state().wal.flushed)
    }

    /// The slot; `None`: there is none.
    pub(crate) fn slot(&self) -> Option<SlotView> {
        self.state().slot.as_ref().map(slot::Slot::view)
    }

    /// Makes the slot at the end of the log. `false`: there is one.
    pub(crate) fn create_slot(&self) -> bool {
        self.state().create_slot()
    }

    /// Drops it. `false`: there is none, or it is in use (55006).
    pub(crate) fn drop_slot(&self) -> bool {
        self.state().drop_slot()
    }

    /// `pg_replication_slot_advance`: not beyond the end of the log; saved with the next
    /// checkpoint. Positions inside of a record count as its start: operators know none. `false`:
    /// there is no slot, it is in use, lost, or further than that.
    pub(crate) fn advance_slot(&self, to: Lsn) -> bool {
        let mut state = self.state();
        let to = state.wal.boundary(to.as_u64());
        state.advance_slot(Lsn::new(to))
    }

    /// `pg_terminate_backend` of the slot's walsender. `false`: there is none.
    pub(crate) fn terminate_walsender(&self) -> bool {
        let found = self.state().terminate_walsender();
        self.shared.changed.notify_waiters();
        found
    }

    /// `pg_terminate_backend` of all sessions.
    pub(crate) fn terminate_sessions(&self) {
        self.state().terminate_sessions();
        self.shared.changed.notify_waiters();
    }

    /// The slot is given up, as beyond `max_slot_wal_keep_size`: who streams it is terminated, and
    /// it is refused (55000) from then on. `false`: there is none.
    pub(crate) fn lose_slot(&self) -> bool {
        let found = self.state().lose_slot();
        self.shared.changed.notify_waiters();
        found
    }

    /// SIGSTOP (and SIGCONT) of every walsender that streams, also later ones: they neither read
    /// nor write, and hold the slot whatever becomes of their client.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.state().frozen = frozen;
        self.shared.changed.notify_waiters();
    }

    /// `kill -9` or power loss: connections end without a word, open transactions are gone, what
    /// was not flushed is gone, and the slot is as it was last saved. Down until [`Self::start`].
    pub(crate) fn crash(&self) {
        self.state().crash();
        self.shared.changed.notify_waiters();
    }

    /// SIGINT: sessions end with 57P01, new ones are refused, a walsender that streams ends when
    /// its client has confirmed everything (`WalSndDone`) or is gone; then the server is down.
    pub(crate) fn fast_shutdown(&self) {
        self.state().fast_shutdown();
        self.shared.changed.notify_waiters();
    }

    /// Waits until it is down.
    pub(crate) async fn stopped(&self) {
        loop {
            let changed = self.shared.changed.notified();
            if !self.is_up() {
                return;
            }
            changed.await;
        }
    }

    /// Starts it after [`Self::crash`] or [`Self::fast_shutdown`]. On 14–16 the slot is as it was
    /// last saved, even after a clean shutdown.
    pub(crate) fn start(&self) {
        self.state().start();
    }

    /// A crash, after which it is started as a standby that hears of nothing new: sessions are told
    /// so, nothing can be written, and up to 15 no slot is streamed (0A000). Until
    /// [`Self::promote`].
    pub(crate) fn stand_by(&self) {
        self.state().stand_by();
        self.shared.changed.notify_waiters();
    }

    /// A standby that had this log up to `until` takes over on a new timeline, as this very server:
    /// a crash, what ends later is lost (its LSNs are used again), and the server is up. Positions
    /// inside of a record count as its start.
    pub(crate) fn promote(&self, until: Lsn, slot: SlotAfter) {
        self.state().promote(until.as_u64(), slot);
        self.shared.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panics with the lock held has failed already.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
