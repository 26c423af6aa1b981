//! What a server is at one moment: its log, its slot, its catalog and who is connected. All that a
//! writer, an operator or a backend can do to it happens here, at once.

use std::collections::BTreeMap;

use outjet::lsn::Lsn;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::row::Row;
use super::slot::Slot;
use super::wal::{Kind, Membership, Standing, Wal, Xid};
use super::{Options, SlotAfter};

/// Whether it takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It runs.
    Up,
    /// It waits for its walsenders.
    Stopping,
    /// It is down.
    Down,
}

/// What the catalog and the settings say; all as outjet wants it, from the start.
#[derive(Clone, Debug)]
pub(crate) struct Catalog {
    /// The publication exists. Rows written without it cannot be decoded (14–17), or are skipped
    /// with a notice (18).
    pub(crate) publication: bool,
    /// `outbox.events` is in it. Rows written while it is not are not sent.
    pub(crate) published: bool,
    /// Counts its changes: walsenders look again then.
    pub(super) edition: u32,
    /// `outbox.events` exists, as far as queries can tell.
    pub(crate) table: bool,
    /// Our role has the REPLICATION attribute, as far as queries can tell.
    pub(crate) replication: bool,
    /// `synchronous_standby_names` is set. Commits do not wait in this model; walsenders of 15 and
    /// newer send a keepalive for each transaction that they skip.
    pub(crate) synchronous: bool,
    /// A standby: sessions are told so, and logical decoding is refused up to 15.
    pub(crate) in_recovery: bool,
    /// The slot was made with failover (17 and newer).
    pub(crate) failover: bool,
    /// `wal_level`, as far as queries can tell.
    pub(crate) wal_level: String,
    /// Physical slots of standbys, by name.
    pub(crate) standbys: Vec<String>,
}

/// A connected client, as `pg_stat_activity` has it.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    pub(super) application: String,
    pub(super) walsender: bool,
    /// It streams from the slot.
    pub(super) streaming: bool,
    /// Write and flush positions of its last status update.
    pub(super) replied: (u64, u64),
    pub(super) terminated: bool,
    pub(super) since: Instant,
}

/// What a backend finds when it looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    /// It says 57P01 and ends.
    Terminated,
    /// It ends without a word.
    Killed,
}

pub(super) struct State {
    pub(super) options: Options,
    pub(super) catalog: Catalog,
    pub(super) phase: Phase,
    pub(super) frozen: bool,
    pub(super) wal: Wal,
    pub(super) slot: Option<Slot>,
    pub(super) backends: BTreeMap<i32, Backend>,
    next_pid: i32,
    epoch: Instant,
}

/// 2026-01-01 00:00:00 UTC, when every server starts, in seconds since 1970.
const STARTED: i64 = 1_767_225_600;

/// 2000-01-01 00:00:00 UTC, likewise: Postgres counts from there.
const POSTGRES_EPOCH: i64 = 946_684_800;

impl State {
    pub(super) fn new(options: Options) -> Self {
        let start = options.start.as_u64();
        let mut wal = Wal::new(start);
        wal.running_xacts();
        Self {
            slot: Some(Slot::new(wal.flushed, wal.last_running())),
            catalog: Catalog {
                publication: true,
                published: true,
                edition: 1,
                table: true,
                replication: true,
                synchronous: false,
                in_recovery: false,
                failover: options.major >= 17,
                wal_level: "logical".to_owned(),
                standbys: Vec::new(),
            },
            phase: Phase::Up,
            frozen: false,
            wal,
            backends: BTreeMap::new(),
            next_pid: 1000,
            epoch: Instant::now(),
            options,
        }
    }

    /// Microseconds since 2000.
    pub(super) fn micros(&self, at: Instant) -> i64 {
        let elapsed = at.saturating_duration_since(self.epoch).as_micros();
        let elapsed = i64::try_from(elapsed).expect("a simulation ends");
        (STARTED - POSTGRES_EPOCH) * 1_000_000 + elapsed
    }

    pub(super) fn now(&self) -> i64 {
        self.micros(Instant::now())
    }

    /// As a `timestamptz` in UTC.
    pub(super) fn text(micros: i64) -> String {
        let at = OffsetDateTime::from_unix_timestamp_nanos(
            i128::from(micros + POSTGRES_EPOCH * 1_000_000) * 1000,
        );
        let at = at.expect("a date of this age");
        let (date, time) = (at.date(), at.time());
        let fraction = format!(".{:06}", time.microsecond());
        format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02}{}+00",
            date.year(),
            u8::from(date.month()),
            date.day(),
            time.hour(),
            time.minute(),
            time.second(),
            fraction.trim_end_matches('0').trim_end_matches('.'),
        )
    }

    pub(super) fn begin(&mut self) -> Option<Xid> {
        let now = Self::text(self.now());
        self.writable().then(|| self.wal.begin(now))
    }

    fn writable(&self) -> bool {
        self.phase == Phase::Up && !self.catalog.in_recovery
    }

    pub(super) fn insert(&mut self, xid: Xid, row: Row) {
        self.wal.insert(xid, row, self.standing());
    }

    pub(super) fn insert_untranslatable(&mut self, xid: Xid, row: Row) {
        let mut standing = self.standing();
        if standing.membership == Membership::Member {
            standing.membership = Membership::Untranslatable;
        }
        self.wal.insert(xid, row, standing);
    }

    /// Of a row of the outbox that is written now.
    fn standing(&self) -> Standing {
        let membership = match (self.catalog.publication, self.catalog.published) {
            (false, _) => Membership::NoPublication,
            (true, false) => Membership::Outside,
            (true, true) => Membership::Member,
        };
        Standing {
            membership,
            edition: self.catalog.edition,
        }
    }

    pub(super) fn set_publication(&mut self, there: bool) {
        self.catalog.publication = there;
        // A new one is made for the table.
        self.catalog.published = there;
        self.edit_catalog();
    }

    pub(super) fn set_published(&mut self, published: bool) {
        self.catalog.published = published;
        self.edit_catalog();
    }

    /// Writes a transaction that changes what is known of the table.
    pub(super) fn edit_catalog(&mut self) {
        self.catalog.edition += 1;
        let now = self.now();
        self.wal.catalog(now);
    }

    pub(super) fn message(&mut self, xid: Xid, prefix: &str, content: &[u8]) {
        self.wal.message(xid, prefix, content);
    }

    pub(super) fn rollback(&mut self, xid: Xid) {
        self.wal.rollback(xid);
    }

    pub(super) fn commit(&mut self, xid: Xid) -> Option<Lsn> {
        let now = self.now();
        self.wal.commit(xid, now).map(Lsn::new)
    }

    pub(super) fn signal(&mut self, prefix: &str, content: &[u8]) {
        if self.writable() {
            self.wal.signal(prefix, content);
        }
    }

    pub(super) fn traffic(&mut self, bytes: u64) {
        if self.writable() {
            self.wal.traffic(bytes);
        }
    }

    pub(super) fn unpublished(&mut self, bytes: u64) -> Option<Lsn> {
        let now = self.now();
        let up = self.writable();
        let mut standing = self.standing();
        if standing.membership == Membership::Member {
            standing.membership = Membership::Outside;
        }
        up.then(|| Lsn::new(self.wal.unpublished(bytes, now, standing)))
    }

    pub(super) fn running_xacts(&mut self) {
        if self.writable() {
            self.wal.running_xacts();
        }
    }

    pub(super) fn checkpoint(&mut self) {
        if !self.writable() {
            return;
        }
        if let Some(slot) = &mut self.slot {
            slot.checkpoint();
        }
        self.wal.running_xacts();
        self.wal.traffic(80);
    }

    pub(super) fn create_slot(&mut self) -> bool {
        let makes = self.slot.is_none() && self.writable();
        if makes {
            self.wal.running_xacts();
            self.slot = Some(Slot::new(self.wal.flushed, self.wal.last_running()));
        }
        makes
    }

    pub(super) fn drop_slot(&mut self) -> bool {
        let free = self
            .slot
            .as_ref()
            .is_some_and(|slot| slot.active_pid.is_none());
        if free {
            self.slot = None;
        }
        free
    }

    pub(super) fn advance_slot(&mut self, to: Lsn) -> bool {
        let to = to.as_u64().min(self.wal.flushed);
        let Some(slot) = &mut self.slot else {
            return false;
        };
        if slot.active_pid.is_some() || slot.lost || to < slot.now.confirmed {
            return false;
        }
        // It decodes up to there.
        let from = self.wal.index_after(slot.now.restart);
        let records = self.wal.records[from..].iter();
        for record in records.take_while(|record| record.start < to) {
            if let Kind::Running { restart } = record.kind {
                slot.offer_restart(record.start, restart);
            }
        }
        slot.advance(to);
        true
    }

    pub(super) fn lose_slot(&mut self) -> bool {
        let Some(slot) = &mut self.slot else {
            return false;
        };
        slot.lost = true;
        self.terminate_walsender();
        true
    }

    pub(super) fn terminate_sessions(&mut self) {
        for backend in self.backends.values_mut() {
            backend.terminated = true;
        }
    }

    pub(super) fn terminate_walsender(&mut self) -> bool {
        let pid = self.slot.as_ref().and_then(|slot| slot.active_pid);
        let backend = pid.and_then(|pid| self.backends.get_mut(&pid));
        backend.map(|backend| backend.terminated = true).is_some()
    }

    pub(super) fn crash(&mut self) {
        self.phase = Phase::Down;
        self.backends.clear();
        self.wal.crash();
        if let Some(slot) = &mut self.slot {
            slot.rewind();
            slot.used = false;
        }
    }

    pub(super) fn fast_shutdown(&mut self) {
        if self.phase != Phase::Up {
            return;
        }
        self.phase = Phase::Stopping;
        self.wal.end_all();
        for backend in self.backends.values_mut().filter(|it| !it.streaming) {
            backend.terminated = true;
        }
        self.stop_if_alone();
    }

    pub(super) fn start(&mut self) {
        if self.phase == Phase::Down {
            self.phase = Phase::Up;
            if !self.catalog.in_recovery {
                self.wal.traffic(80);
            }
        }
    }

    pub(super) fn stand_by(&mut self) {
        self.crash();
        self.catalog.in_recovery = true;
        self.phase = Phase::Up;
    }

    pub(super) fn promote(&mut self, until: u64, slot: SlotAfter) {
        self.crash();
        let end = self.wal.promote(until);
        let kept = self.slot.take().and_then(|old| {
            let confirmed = match slot {
                SlotAfter::InStep => old.now.confirmed,
                SlotAfter::At(lsn) => old.now.confirmed.min(lsn.as_u64()),
                SlotAfter::Gone => return None,
            };
            let confirmed = confirmed.min(end);
            Some(Slot::new(confirmed, old.now.restart.min(confirmed)))
        });
        self.slot = kept;
        self.catalog.in_recovery = false;
        self.phase = Phase::Up;
    }

    /// A client has logged in; its process id.
    pub(super) fn enter(&mut self, application: String, walsender: bool) -> i32 {
        let pid = self.next_pid;
        self.next_pid += 1;
        let backend = Backend {
            application,
            walsender,
            streaming: false,
            replied: (0, 0),
            terminated: false,
            since: Instant::now(),
        };
        self.backends.insert(pid, backend);
        pid
    }

    /// It is gone. Without effect if a crash came first.
    pub(super) fn leave(&mut self, pid: i32) {
        self.release(pid);
        if self.backends.remove(&pid).is_some() {
            self.stop_if_alone();
        }
    }

    /// It streams no more.
    pub(super) fn release(&mut self, pid: i32) {
        if let Some(slot) = self
            .slot
            .as_mut()
            .filter(|slot| slot.active_pid == Some(pid))
        {
            slot.release();
        }
        if let Some(backend) = self.backends.get_mut(&pid) {
            backend.streaming = false;
            backend.terminated |= self.phase != Phase::Up;
        }
    }

    pub(super) fn fate(&self, pid: i32) -> Fate {
        match self.backends.get(&pid) {
            None => Fate::Killed,
            Some(backend) if backend.terminated => Fate::Terminated,
            Some(_) => Fate::Lives,
        }
    }

    /// When the last walsender is gone the shutdown checkpoint is written, which saves slots whose
    /// confirmed position has moved from 17 on (`CheckPointReplicationSlots(is_shutdown)`).
    fn stop_if_alone(&mut self) {
        let streams = self.backends.values().any(|backend| backend.streaming);
        if self.phase != Phase::Stopping || streams {
            return;
        }
        self.wal.traffic(80);
        if let Some(slot) = &mut self.slot {
            match self.options.major {
                17.. => slot.save(),
                _ => slot.checkpoint(),
            }
            slot.rewind();
        }
        self.phase = Phase::Down;
    }
}
