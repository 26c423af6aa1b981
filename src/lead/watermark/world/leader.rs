//! A leader: the shipped code, and what the relay and the sink do with it, in their order.

use std::collections::VecDeque;

use super::{Rule, World, event, lsn, row_of};
use crate::event::Position;
use crate::event::lineage::{Lineage, Mark, Place};
use crate::guard::{Entry, Guard, Stream, Verdict, late_max};
use crate::lead::record::{Keeper, Urgency, read};
use crate::lead::watermark::{Facts, Record, Switch, Watermark, judge};
use crate::lead::window::{Limits, Window};
use crate::lsn::Lsn;
use crate::sink::jetstream::Standing;
use crate::sink::jetstream::append::memory::{Memory, Merge};
use crate::sink::jetstream::append::ring::{Passed, Ring};
use crate::sink::{At, Write, Written};

/// Most events in flight.
const IN_FLIGHT_MAX: usize = 3;

/// Most events in the window.
const WINDOW: Limits = Limits {
    events_max: 4,
    bytes_max: 1000,
};

/// What is on its way to the server.
pub(super) enum Message {
    Publish {
        number: u64,
        row: super::Row,
        mark: Mark,
        /// `Nats-Msg-Id`, unless it was left out.
        id: Option<String>,
        expected: u64,
    },
    Write(Write),
}

/// What the server answers.
pub(super) enum Answer {
    Publish(u64, Reply),
    Write(Written),
}

pub(super) enum Reply {
    Stored(u64),
    Duplicate(u64),
    Refused,
}

/// The merge, as `tail::Search`.
enum Search {
    Pending,
    Reading {
        guard: Box<Guard>,
        begin: u64,
        next: u64,
        cut: bool,
    },
    Finished,
}

/// One term.
pub(super) struct Leader {
    lineage: Lineage,
    ring: Ring,
    memory: Memory,
    search: Search,
    watermark: Watermark,
    window: Window,
    keeper: Keeper,
    /// The place of the row that is read next.
    next: u64,
    /// Where the stream ended when the connection was made.
    last: u64,
    way: VecDeque<Message>,
    answers: VecDeque<Answer>,
    /// An uncertain event is under way: its number, and what it expected.
    asking: Option<(u64, u64)>,
    writing: bool,
}

impl Leader {
    pub(super) fn is_idle(&self) -> bool {
        self.window.events() == 0 && self.way.is_empty() && self.answers.is_empty()
    }
}

impl World {
    fn leader(&mut self) -> &mut Leader {
        self.leader.as_mut().expect("somebody leads")
    }

    /// `record::claim` and `JetStream::begin`.
    pub(super) fn lead(&mut self, dies: u8) {
        let lineage = self.postgres.lineage();
        let flush = lsn(self.postgres.flush());
        let start = lsn(self.postgres.slot);
        let last = self.stream.len() as u64;
        let standing = Standing {
            created: "then".to_owned(),
            last_sequence: last,
            newest: self.newest(&lineage),
            holds: false,
            letters: None,
            delayed: None,
            record_replicas: 1,
            server_id: String::new(),
        };
        let history: Vec<Switch> = lineage.ended().iter().map(Switch::from).collect();
        let mut blank = Record::blank(lineage.source(), &history, start);
        blank.stream_created.clone_from(&standing.created);
        let revision = self.bucket.as_ref().map_or(0, |kept| kept.revision);
        let found = self.bucket.as_ref().and_then(read);
        let found = found.unwrap_or_else(|| blank.clone());
        let instance = format!("instance {}", self.instance);
        let mut keeper = Keeper::claim(found, revision, (&instance, ""));
        self.store(&mut keeper);
        if dies == 1 {
            return;
        }
        let mut record = keeper.record().clone();
        let at_stored = record.stored.as_ref().map(|place| self.found_at(place));
        match self.without {
            Some(Rule::IdOfP) => {
                record.settled = record.settled.map(|settled| super::super::Settled {
                    id: None,
                    ..settled
                });
            }
            Some(Rule::Timeline) => {
                record.source = lineage.source().clone();
                record.history.clone_from(&blank.history);
            }
            _ => {}
        }
        let confirmed_here = self.confirmed_here;
        let confirmed_here = confirmed_here.filter(|(on, _)| *on == self.postgres.timeline);
        let facts = Facts {
            source: lineage.source(),
            history: &blank.history,
            start,
            slot_used: true,
            flush,
            standby: false,
            confirmed_here: match self.without {
                Some(Rule::SlotAboveC) => lsn(u64::MAX),
                _ => confirmed_here.map_or(Lsn::ZERO, |(_, confirmed)| lsn(confirmed)),
            },
            stream_created: &standing.created,
            last_sequence: last,
            newest: standing.newest,
            holds: standing.holds,
            letters: None,
            delayed: None,
            at_stored: at_stored.unwrap_or(At::Nothing),
            current: false,
            void: self.void,
        };
        let verdict = match judge(&record, &facts) {
            Ok(verdict) => verdict,
            Err(refusal) => {
                self.halted = Some(refusal);
                return;
            }
        };
        if keeper.adopt(verdict.record) {
            self.store(&mut keeper);
        }
        if dies == 2 {
            return;
        }
        self.void = false;
        self.excuse(keeper.record());
        let mut memory = Memory::new(&lineage, false);
        memory.begin(keeper.past(&verdict.watermark, flush), last);
        let first = (1..).find(|place| super::commit_of(*place) >= start.as_u64());
        self.leader = Some(Leader {
            ring: Ring::new(false),
            memory,
            lineage,
            search: Search::Finished,
            watermark: verdict.watermark,
            window: Window::new(WINDOW, start),
            keeper,
            next: first.expect("it is endless"),
            last,
            way: VecDeque::new(),
            answers: VecDeque::new(),
            asking: None,
            writing: false,
        });
        self.leader().ring.restart(last);
        self.reconcile(true);
    }

    /// `Keeper::store`.
    fn store(&mut self, keeper: &mut Keeper) {
        let write = keeper.write(keeper.record().confirmed, 0);
        let written = self.keep(&write);
        keeper.written(written).expect("nobody else leads");
    }

    /// `tail::newest_marks`.
    fn newest(&self, lineage: &Lineage) -> Option<Position> {
        let there = self.stream.iter().rev().filter(|stored| stored.there);
        let mark = there.filter_map(|stored| stored.mark.as_ref()).next();
        mark.filter(|mark| lineage.holds(mark))
            .map(|mark| mark.position)
    }

    /// `JetStream::found_at`.
    fn found_at(&self, place: &Place) -> At {
        let stored = self.stream.get(place.sequence as usize - 1);
        match stored.filter(|stored| stored.there) {
            None => At::Nothing,
            Some(stored)
                if stored
                    .mark
                    .as_ref()
                    .is_some_and(|mark| mark.position == place.position && mark.id == place.id) =>
            {
                At::Same
            }
            Some(_) => At::Other,
        }
    }

    /// The end of the term: what is on its way may still arrive.
    pub(super) fn end_term(&mut self) -> bool {
        let leader = self.leader.take().expect("somebody leads");
        self.old.push(leader.way);
        self.old.retain(|connection| !connection.is_empty());
        true
    }

    fn void(&mut self) {
        self.end_term();
        self.void = true;
    }

    /// `Relay::take_event`, of a whole transaction.
    pub(super) fn read(&mut self) -> bool {
        let leader = self.leader.as_mut().expect("somebody leads");
        let row = self
            .postgres
            .rows()
            .find(|(place, _)| leader.next <= *place);
        let room = leader.window.has_room() && leader.keeper.has_room(leader.ring.end());
        let Some((place, generation)) = row.filter(|_| room) else {
            return false;
        };
        leader.next = place + 1;
        let mut event = event((place, generation));
        leader.window.begin();
        match leader.watermark.take(event.position, &event.id) {
            Ok(known) => event.known = known,
            Err(_) => {
                self.void();
                return true;
            }
        }
        leader.window.hand_over(1, 0);
        leader.window.commit(lsn(super::end_of(place)));
        leader.memory.handed_over(leader.ring.end(), &event);
        leader.ring.push(event);
        true
    }

    pub(super) fn keepalive(&mut self) -> bool {
        let without = self.without == Some(Rule::Keepalive);
        let leader = self.leader.as_mut().expect("somebody leads");
        let next = self
            .postgres
            .rows()
            .find(|(place, _)| leader.next <= *place);
        let wal_end = match next {
            Some((place, _)) => super::commit_of(place) - 1,
            None => self.postgres.flush(),
        };
        if !without && leader.watermark.keepalive(lsn(wal_end)).is_err() {
            self.void();
            return true;
        }
        leader.window.keepalive(lsn(wal_end));
        true
    }

    /// `JetStream::pump`, of one event.
    pub(super) fn pump(&mut self) -> bool {
        let without = self.without;
        let leader = self.leader();
        if leader.asking.is_some() {
            return false;
        }
        let Some(waiting) = leader.ring.waiting() else {
            return false;
        };
        if waiting.event.known {
            leader.ring.settle(Passed::Recorded);
            return self.settle();
        }
        let in_flight = leader.ring.in_flight();
        let careful = leader.memory.is_careful(&leader.ring) && without != Some(Rule::Slow);
        let room = if careful { 1 } else { IN_FLIGHT_MAX };
        if in_flight > 0 && in_flight >= room {
            return false;
        }
        if let Some(place) = self.find() {
            let leader = self.leader();
            leader.memory.settled_at(place.1);
            leader.ring.settle(Passed::Known(Some(place)));
            return self.settle();
        }
        let leader = self.leader();
        let uncertain = leader.memory.is_uncertain(&leader.ring);
        if uncertain && without != Some(Rule::Vacant) {
            return in_flight == 0 && self.send_uncertain();
        }
        leader.memory.send(&leader.ring);
        self.publish();
        true
    }

    /// `JetStream::send_uncertain`, up to the answer.
    fn send_uncertain(&mut self) -> bool {
        let leader = self.leader.as_mut().expect("somebody leads");
        let waiting = leader.ring.waiting().expect("an event waits");
        if let Some(sequence) = waiting.duplicate_of
            && leader.memory.proves(sequence, waiting.places)
            && !self.stream[sequence as usize - 1].there
        {
            leader.memory.settled_at(sequence);
            leader.ring.settle(Passed::Known(None));
            return self.settle();
        }
        let row = row_of(waiting.event);
        leader.ring.doubt();
        let sent = self.publish();
        self.leader().asking = Some(sent);
        self.uncertain.insert(row);
        true
    }

    fn publish(&mut self) -> (u64, u64) {
        let leader = self.leader();
        let waiting = leader.ring.waiting().expect("an event waits");
        let (row, position) = (row_of(waiting.event), waiting.event.position);
        let id = waiting.event.id.clone();
        let named = waiting.duplicate_of.is_none();
        let (number, expected) = leader.ring.send();
        let source = leader.lineage.source().clone();
        leader.way.push_back(Message::Publish {
            number,
            row,
            mark: Mark {
                source,
                position,
                id: id.clone(),
            },
            id: named.then_some(id),
            expected,
        });
        (number, expected)
    }

    /// What `run_epoch` does after each turn.
    fn settle(&mut self) -> bool {
        let without = self.without;
        let leader = self.leader();
        let mut settled = leader.ring.take_settled();
        if settled.to.is_none() {
            return true;
        }
        leader.memory.settle(&mut settled, &leader.ring);
        if without == Some(Rule::Base)
            && let Some(place) = &settled.stored_at
        {
            settled.base = place.sequence;
        }
        leader.window.settle(settled.events());
        leader.keeper.settle(&settled);
        true
    }

    pub(super) fn arrive(&mut self) -> bool {
        let Some(message) = self.leader().way.pop_front() else {
            return false;
        };
        let answer = self.take(message);
        self.leader().answers.push_back(answer);
        true
    }

    /// `JetStream::take_replies`: all that are there, even if one of them ends the epoch.
    pub(super) fn hear(&mut self) -> bool {
        if self.leader().answers.is_empty() {
            return false;
        }
        let mut broken = false;
        while let Some(answer) = self.leader().answers.pop_front() {
            match answer {
                Answer::Publish(number, reply) => broken |= self.take_reply(number, &reply),
                Answer::Write(written) => {
                    if !self.written(written) {
                        return true;
                    }
                }
            }
        }
        if broken {
            return self.reconnect();
        }
        self.settle()
    }

    /// Whether it ends the epoch.
    fn take_reply(&mut self, number: u64, reply: &Reply) -> bool {
        let leader = self.leader();
        let asked = leader.asking.take();
        match *reply {
            Reply::Stored(sequence) => {
                if leader.ring.acknowledge(number, (sequence, 1)).is_ok() {
                    return false;
                }
            }
            Reply::Duplicate(sequence) => {
                leader.ring.refuse_duplicate(number, sequence);
                if let Some((_, expected)) = asked {
                    leader.ring.restart(expected);
                    return false;
                }
            }
            Reply::Refused => {
                leader.ring.refuse(number);
            }
        }
        leader.memory.refused(&leader.ring);
        true
    }

    /// A new connection: `continue_in_a_new_epoch`.
    pub(super) fn reconnect(&mut self) -> bool {
        let last = self.stream.len() as u64;
        let leader = self.leader.as_mut().expect("somebody leads");
        self.old.push(std::mem::take(&mut leader.way));
        self.old.retain(|connection| !connection.is_empty());
        leader.answers.clear();
        leader.asking = None;
        leader.last = last;
        leader.ring.restart(last);
        self.reconcile(false);
        let there = Written::Found(self.bucket.clone());
        if self.leader().writing && !self.written(there) {
            return true;
        }
        self.settle()
    }

    /// Whether the term goes on. An old write fits only into a bucket that was put back.
    fn written(&mut self, written: Written) -> bool {
        let leader = self.leader();
        leader.writing = false;
        let goes_on = leader.keeper.written(written).is_ok();
        if !goes_on {
            assert!(self.touched || self.hung, "nobody else leads");
            self.end_term();
        }
        goes_on
    }

    /// `JetStream::reconcile`.
    fn reconcile(&mut self, first: bool) {
        let leader = self.leader.as_mut().expect("somebody leads");
        if !first {
            leader.memory.reconnected(&leader.ring, leader.last);
        }
        if !leader.memory.complete() {
            let lowest = self.stream.iter().position(|stored| stored.there);
            let within = &self.stream[lowest.unwrap_or(self.stream.len())..];
            let deleted = within.iter().any(|stored| !stored.there);
            leader.search = match leader.last {
                0 => Search::Finished,
                _ => Search::Pending,
            };
            leader.memory.search(deleted, &leader.ring);
            return;
        }
        leader.search = Search::Finished;
        let base = leader.memory.base(first, (&leader.ring, leader.last));
        let (found, settled_to) = leader.memory.reading();
        found.begin(base + 1);
        for (sequence, stored) in (1..).zip(&self.stream).skip(base as usize) {
            if stored.there {
                let mark = stored.mark.clone();
                found.offer(Stream::Main, Entry { sequence, mark }, settled_to);
            }
        }
        found.end(leader.last);
        leader.memory.read(first, &leader.ring);
    }

    /// `JetStream::find`.
    fn find(&mut self) -> Option<(Stream, u64)> {
        let leader = self.leader.as_mut().expect("somebody leads");
        let waiting = leader.ring.waiting().expect("an event waits").event;
        if leader.memory.complete() {
            return leader.memory.place_of(waiting);
        }
        let position = waiting.position;
        if matches!(leader.search, Search::Pending) {
            let search = self.begin_search(position);
            self.leader().search = search;
        }
        let leader = self.leader.as_mut().expect("somebody leads");
        let waiting = leader.ring.waiting().expect("an event waits").event;
        let (mut place, mut odd, mut cut_off, mut behind) = (None, false, false, None);
        if let Search::Reading {
            guard,
            begin,
            next,
            cut,
        } = &mut leader.search
        {
            let late_max = late_max(IN_FLIGHT_MAX as u64);
            let begins_behind = begin.saturating_sub(1 + late_max);
            behind = Some(if *cut { 0 } else { begins_behind });
            place = loop {
                match guard.judge(waiting.position, &waiting.id) {
                    Verdict::Stored(sequence) => break Some(sequence),
                    Verdict::Absent => break None,
                    Verdict::Unknown => {}
                }
                let there = (*next..=leader.last).find(|at| self.stream[*at as usize - 1].there);
                match there {
                    None => guard.end(leader.last),
                    Some(sequence) => {
                        *next = sequence + 1;
                        let mark = self.stream[sequence as usize - 1].mark.clone();
                        guard.offer(Entry { sequence, mark });
                    }
                }
            };
            (odd, cut_off) = (guard.odd(), *cut || guard.vacant());
            if guard.finished() {
                leader.search = Search::Finished;
            }
        }
        let finished = matches!(leader.search, Search::Finished);
        let merge = Merge {
            odd,
            cut: cut_off,
            behind,
            ended: finished.then_some((leader.last, 0)),
        };
        leader.memory.merged(merge, &leader.ring);
        place.map(|sequence| (Stream::Main, sequence))
    }

    /// `Tail::search`: jumps back in growing steps to one of ours behind the first event.
    fn begin_search(&self, position: Position) -> Search {
        let leader = self.leader.as_ref().expect("somebody leads");
        let ours = |sequence: &u64| {
            let stored = &self.stream[*sequence as usize - 1];
            let mark = stored.mark.as_ref().filter(|_| stored.there)?;
            leader
                .lineage
                .holds(mark)
                .then_some((*sequence, mark.position))
        };
        let there = self.stream.iter().position(|stored| stored.there);
        let first = there.map_or(leader.last + 1, |at| at as u64 + 1);
        let (mut at, mut end, mut jump) = (leader.last, leader.last, 1);
        let mut begin = None;
        while at >= first && at > 0 {
            if let Some((found, stored)) = (at..=end).find_map(|sequence| ours(&sequence))
                && stored < position
            {
                begin = Some(self.look_back(found, first));
                break;
            }
            end = at - 1;
            at = at.saturating_sub(jump);
            jump *= 2;
        }
        let cut = begin.is_none() && first > 1;
        let next = begin.unwrap_or(first.max(1));
        let guard = Box::new(Guard::new(
            leader.lineage.clone(),
            next,
            IN_FLIGHT_MAX as u64,
        ));
        Search::Reading {
            guard,
            begin: next,
            next,
            cut,
        }
    }

    /// `Reader::look_back`: further for each stranger.
    fn look_back(&self, found: u64, first: u64) -> u64 {
        let mut oldest = found.saturating_sub(late_max(IN_FLIGHT_MAX as u64));
        let (mut at, mut begins_at) = (found, found);
        while at > oldest.max(first).max(1) {
            at -= 1;
            let stored = &self.stream[at as usize - 1];
            if stored.there {
                begins_at = at;
                if stored.mark.is_none() {
                    oldest = oldest.saturating_sub(1);
                }
            }
        }
        begins_at
    }

    /// `Relay::keep_record`.
    pub(super) fn record(&mut self) -> bool {
        let leader = self.leader();
        let confirmed = leader.window.confirmed().lsn();
        if leader.watermark.pending() || leader.keeper.urgency(confirmed) == Urgency::None {
            return false;
        }
        let write = leader.keeper.write(confirmed, 0);
        leader.way.push_back(Message::Write(write));
        leader.writing = true;
        true
    }

    /// `Relay::queue_status`.
    pub(super) fn status(&mut self) -> bool {
        let without = self.without;
        let leader = self.leader();
        let confirmed = match leader.watermark.pending() {
            true => leader.window.confirmed_within(Lsn::ZERO),
            false if without == Some(Rule::RecordFirst) => leader.window.confirmed(),
            false => leader.keeper.confirmed(&leader.window),
        };
        let newly = leader.window.newly(confirmed);
        self.confirmed_here = Some((self.postgres.timeline, confirmed.lsn().as_u64()));
        let Some(newly) = newly else {
            return false;
        };
        self.postgres.slot = self.postgres.slot.max(newly.lsn().as_u64());
        true
    }
}
