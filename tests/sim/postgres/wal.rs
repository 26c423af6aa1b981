//! The write-ahead log of one server: records in order, open transactions, timelines. Knows no
//! slot and no connection.
//!
//! Invariant: records never overlap, and a transaction is in the log when it is committed, not
//! before; its rows took their places as they were written.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use outjet::lsn::Lsn;

use super::pgoutput::{self, Place};
use super::row::Row;

/// A transaction, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xid(pub(crate) u32);

/// What was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Into `outbox.events`.
    Row(Arc<Row>),
    /// A transactional message.
    Message {
        /// Its prefix.
        prefix: String,
        /// Its content.
        content: Bytes,
    },
}

/// An event with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    /// Of its commit.
    pub(crate) timeline: u32,
    /// Where the commit record starts: the transaction's half of its position.
    pub(crate) commit_lsn: Lsn,
    /// Where the commit record ends.
    pub(crate) end_lsn: Lsn,
    /// Of all that the slot sends of this transaction, from 0: the other half.
    pub(crate) index: u32,
    /// The event.
    pub(crate) event: Event,
    /// The table was published when it was written (messages: always).
    pub(crate) published: bool,
    /// A promotion has cut it off.
    pub(crate) lost: bool,
}

/// How the publication stood to a row when it was written: decoding sees the catalog of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    Member,
    /// The table is not in it.
    Outside,
    /// There is no publication of that name.
    NoPublication,
    /// It is, and a text of it cannot be said in UTF-8.
    Untranslatable,
}

/// What the catalog says of a row when it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) membership: Membership,
    /// Which edition of the catalog says so.
    pub(super) edition: u32,
}

/// What a transaction has written.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Of its record: the start for a row, the end for a message (`logicalmsg_decode`).
    pub(super) lsn: u64,
    /// What pgoutput says.
    pub(super) body: Bytes,
    /// `None`: a row of some other table.
    pub(super) event: Option<Event>,
    pub(super) membership: Membership,
    pub(super) edition: u32,
}

/// A committed transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) place: Place,
    /// Where its first record starts.
    pub(super) first: u64,
    pub(super) changes: Vec<Change>,
    timeline: u32,
}

/// A record that matters to decoding.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Commit(Arc<Transaction>),
    /// A message outside of transactions.
    Message(Bytes),
    /// Running transactions: decoding may begin at `restart` once this is confirmed.
    Running {
        restart: u64,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) kind: Kind,
}

#[derive(Debug)]
struct Open {
    first: Option<u64>,
    /// The last record of running transactions before its first own.
    restart: u64,
    changes: Vec<Change>,
    created_at: String,
}

#[derive(Debug)]
pub(super) struct Wal {
    /// In order of their start.
    pub(super) records: Vec<Record>,
    open: BTreeMap<Xid, Open>,
    next_xid: u32,
    end: u64,
    /// What survives a crash, and what walsenders may read.
    pub(super) flushed: u64,
    last_running: u64,
    pub(super) timeline: u32,
    /// Earlier timelines and where they ended.
    pub(super) history: Vec<(u32, u64)>,
    /// Cut off by promotions: (how many events of the log came before, the events).
    lost: Vec<Committed>,
}

/// Header and alignment of a record that carries `bytes` (about: `XLogRecord` is 24 bytes).
fn record_bytes(bytes: u64) -> u64 {
    (32 + bytes).next_multiple_of(8)
}

/// A commit record without anything special, as 15 writes it.
const COMMIT_BYTES: u64 = 48;

impl Wal {
    pub(super) fn new(start: u64) -> Self {
        Self {
            records: Vec::new(),
            open: BTreeMap::new(),
            next_xid: 730,
            end: start,
            flushed: start,
            last_running: start,
            timeline: 1,
            history: Vec::new(),
            lost: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, created_at: String) -> Xid {
        let xid = Xid(self.next_xid);
        self.next_xid += 1;
        let open = Open {
            first: None,
            restart: 0,
            changes: Vec::new(),
            created_at,
        };
        self.open.insert(xid, open);
        xid
    }

    pub(super) fn insert(&mut self, xid: Xid, row: Row, standing: Standing) {
        let Some(open) = self.open.get(&xid) else {
            return;
        };
        let body = pgoutput::insert(&row, &open.created_at);
        let bytes = body.len() as u64;
        self.write(xid, bytes, |start, _| Change {
            lsn: start,
            body,
            event: Some(Event::Row(Arc::new(row))),
            membership: standing.membership,
            edition: standing.edition,
        });
    }

    pub(super) fn message(&mut self, xid: Xid, prefix: &str, content: &[u8]) {
        let bytes = (prefix.len() + content.len()) as u64;
        self.write(xid, bytes, |_, end| Change {
            lsn: end,
            body: pgoutput::message(true, end, (prefix, content)),
            event: Some(Event::Message {
                prefix: prefix.to_owned(),
                content: Bytes::copy_from_slice(content),
            }),
            membership: Membership::Member,
            edition: 0,
        });
    }

    /// A row of some other table.
    fn elsewhere(&mut self, xid: Xid, bytes: u64, standing: Standing) {
        self.write(xid, bytes, |start, _| Change {
            lsn: start,
            body: Bytes::new(),
            event: None,
            membership: standing.membership,
            edition: standing.edition,
        });
    }

    pub(super) fn rollback(&mut self, xid: Xid) {
        if self
            .open
            .remove(&xid)
            .is_some_and(|open| open.first.is_some())
        {
            self.append(8);
        }
    }

    /// `time`: microseconds since 2000.
    pub(super) fn commit(&mut self, xid: Xid, time: i64) -> Option<u64> {
        let open = self.open.remove(&xid)?;
        let Some(first) = open.first else {
            // Nothing was written: no commit record either.
            return Some(self.flushed);
        };
        let commit = self.end;
        self.end += COMMIT_BYTES;
        let place = Place {
            commit,
            end: self.end,
            time,
            xid: xid.0,
        };
        let transaction = Transaction {
            place,
            first,
            changes: open.changes,
            timeline: self.timeline,
        };
        self.record(commit, Kind::Commit(Arc::new(transaction)));
        self.flushed = self.end;
        Some(self.end)
    }

    pub(super) fn signal(&mut self, prefix: &str, content: &[u8]) {
        let start = self.append((prefix.len() + content.len()) as u64);
        let body = pgoutput::message(false, self.end, (prefix, content));
        self.record(start, Kind::Message(body));
        self.flushed = self.end;
    }

    pub(super) fn unpublished(&mut self, bytes: u64, time: i64, standing: Standing) -> u64 {
        let xid = self.begin(String::new());
        self.elsewhere(xid, bytes, standing);
        self.commit(xid, time).expect("it is open")
    }

    /// A transaction that changes the catalog: no row of a table.
    pub(super) fn catalog(&mut self, time: i64) {
        let xid = self.begin(String::new());
        let start = self.append(200);
        self.started(xid, start);
        self.commit(xid, time).expect("it is open");
    }

    pub(super) fn traffic(&mut self, bytes: u64) {
        self.append(bytes);
        self.flushed = self.end;
    }

    pub(super) fn running_xacts(&mut self) {
        let start = self.append(24);
        let restart = self.open.values().filter(|open| open.first.is_some());
        let restart = restart.map(|open| open.restart).min().unwrap_or(start);
        self.record(start, Kind::Running { restart });
        self.last_running = start;
        self.flushed = self.end;
    }

    /// Open transactions and what was not flushed are gone.
    pub(super) fn crash(&mut self) {
        self.open.clear();
        self.end = self.flushed;
    }

    pub(super) fn end_all(&mut self) {
        while let Some((&xid, _)) = self.open.first_key_value() {
            self.rollback(xid);
        }
        self.flushed = self.end;
    }

    /// Ends the timeline at the end of the last record that ends at or before `until`.
    pub(super) fn promote(&mut self, until: u64) -> u64 {
        self.crash();
        let kept = self.records.partition_point(|record| record.end <= until);
        let cut = self.records.split_off(kept);
        for record in &cut {
            if let Kind::Commit(transaction) = &record.kind {
                self.lost.extend(committed(transaction, true));
            }
        }
        // Between records it may be anything that is not one of those we know.
        let next = cut.first().map_or(self.flushed, |record| record.start);
        let switch = until.min(next).min(self.flushed);
        // A standby that has not come as far as an earlier switch has not seen that, either.
        let seen = self.history.partition_point(|(_, at)| *at <= switch);
        let parent = self
            .history
            .get(seen)
            .map_or(self.timeline, |(parent, _)| *parent);
        self.history.truncate(seen);
        self.history.push((parent, switch));
        self.timeline += 1;
        self.end = switch;
        self.flushed = switch;
        self.last_running = self.last_running.min(switch);
        self.traffic(80);
        switch
    }

    /// Lost ones stand where they stood: before what has their LSNs now.
    pub(super) fn log(&self) -> Vec<Committed> {
        let commits = self.records.iter().filter_map(|record| match &record.kind {
            Kind::Commit(transaction) => Some(committed(transaction, false)),
            Kind::Message(_) | Kind::Running { .. } => None,
        });
        let mut log: Vec<_> = self.lost.iter().cloned().chain(commits.flatten()).collect();
        log.sort_by_key(|event| (event.timeline, event.commit_lsn, event.index));
        log
    }

    /// The first record that ends after `lsn`.
    pub(super) fn index_after(&self, lsn: u64) -> usize {
        self.records.partition_point(|record| record.end <= lsn)
    }

    /// The start of the record that this is inside of; else itself.
    pub(super) fn boundary(&self, lsn: u64) -> u64 {
        let record = self.records.get(self.index_after(lsn));
        record.map_or(lsn, |record| lsn.min(record.start))
    }

    /// Where decoding may begin that needs nothing that is open now.
    pub(super) fn last_running(&self) -> u64 {
        self.last_running
    }

    fn write(&mut self, xid: Xid, bytes: u64, change: impl FnOnce(u64, u64) -> Change) {
        if !self.open.contains_key(&xid) {
            return;
        }
        let start = self.append(bytes);
        let change = change(start, self.end);
        self.started(xid, start);
        if let Some(open) = self.open.get_mut(&xid) {
            open.changes.push(change);
        }
    }

    fn started(&mut self, xid: Xid, start: u64) {
        let restart = self.last_running;
        if let Some(open) = self.open.get_mut(&xid)
            && open.first.is_none()
        {
            open.first = Some(start);
            open.restart = restart;
        }
    }

    /// Takes room; returns its start.
    fn append(&mut self, bytes: u64) -> u64 {
        let start = self.end;
        self.end += record_bytes(bytes);
        start
    }

    fn record(&mut self, start: u64, kind: Kind) {
        let end = self.end;
        self.records.push(Record { start, end, kind });
    }
}

fn committed(transaction: &Transaction, lost: bool) -> impl Iterator<Item = Committed> + '_ {
    let mut index = 0;
    let events = transaction.changes.iter();
    let events = events.filter_map(|change| Some((change, change.event.clone()?)));
    events.map(move |(change, event)| {
        let published = change.membership == Membership::Member;
        let committed = Committed {
            timeline: transaction.timeline,
            commit_lsn: Lsn::new(transaction.place.commit),
            end_lsn: Lsn::new(transaction.place.end),
            index,
            event,
            published,
            lost,
        };
        index += u32::from(published);
        committed
    })
}
