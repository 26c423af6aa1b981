//! What the record and the stream say of the outbox before it is recovered, and what the record
//! says afterwards.

use bytes::Bytes;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::config::Config;
use crate::error::Failure;
use crate::event::Position;
use crate::event::lineage::{Lineage, Source};
use crate::lead::record;
use crate::lead::traces::Traces;
use crate::lead::watermark::{self, Gap, Record, Refusal, Settled, Shows, Switch, Verdict, judge};
use crate::lsn::Lsn;
use crate::pg::catalog;
use crate::sink::jetstream::{Error, Options, Shelf};
use crate::sink::{Write, Written};

/// How often the record is written anew because something else was there: copies that have halted
/// claim it every now and then.
const WRITES_MAX: usize = 5;

/// Where the slot begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slots {
    /// It was there, and stays.
    Kept(Lsn),
    /// It is made, with all that was committed before.
    Made(Lsn),
}

/// What is known before.
pub(super) struct State {
    lineage: Lineage,
    history: Vec<Switch>,
    traces: Traces,
    /// Up to where the server has written.
    current: Lsn,
    holds: bool,
    slot_used: bool,
    /// Nothing can be told of the slot but by this.
    judged: Judged,
}

enum Judged {
    /// There is no record, or nothing is wrong.
    Closed,
    /// What was committed before the slot begins may not be published; the first byte, if it is
    /// known.
    Open(Option<Gap>),
}

impl State {
    /// Reads the record and the stream. Of a slot that exists `facts` must be older: what it
    /// confirms is recorded before.
    pub(super) async fn find(
        (config, client): (&Config, &Client),
        lineage: Lineage,
        facts: &catalog::Facts,
    ) -> Result<Self, Failure> {
        let options = config.sink_options();
        let traces = Box::pin(Traces::find(&options, lineage.source())).await;
        let traces = traces.map_err(|error| error.failure(&options.of_stream()))?;
        let mut state = Self {
            history: lineage.ended().iter().map(Switch::from).collect(),
            lineage,
            traces,
            current: facts.server.current,
            holds: false,
            slot_used: false,
            judged: Judged::Closed,
        };
        state.holds = !options.hold.is_zero();
        let used = catalog::slot_used(client, &state.source().slot).await;
        state.slot_used = used.map_err(|error| error.failure())?;
        let slot = facts.slot.as_ref().filter(|slot| !slot.lost());
        let start = slot.and_then(|slot| slot.confirmed_flush);
        if let Some(record) = &state.traces.record {
            let dead = watermark::dead(record, (state.lineage.source(), &state.history));
            state.lineage.learn(dead.iter().map(Switch::pair).collect());
            state.judged = state.judge(record, start.unwrap_or(Lsn::ZERO))?;
        } else if state.other_house().is_some() {
            state.judged = Judged::Open(None);
        } else if let Some(start) = start {
            state.judged = state.judge_unrecorded(start);
        }
        Ok(state)
    }

    pub(super) fn source(&self) -> &Source {
        self.lineage.source()
    }

    pub(super) fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// The slot of another cluster that ours takes the place of.
    pub(super) fn other_house(&self) -> Option<&Source> {
        self.traces.other_house(self.source())
    }

    /// Why nothing is done without `--yes`.
    pub(super) fn moved_house(&self, other: &Source) -> Failure {
        self.traces.moved_house(self.source(), other)
    }

    /// Whether there is anything to close before a slot that exists.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.judged, Judged::Open(_))
    }

    /// What was not published before a slot that begins here.
    pub(super) fn gap(&self, to: Lsn) -> Option<Gap> {
        if let Judged::Open(Some(gap)) = self.judged {
            return Some(gap);
        }
        if self.other_house().is_some() {
            return None;
        }
        let confirmed = self.traces.record.as_ref().map(|record| record.confirmed);
        let newest = self.traces.newest(self.source());
        let newest = newest.map(|mark| Lsn::new(mark.position.commit));
        let from = confirmed.or(newest).filter(|from| *from < to)?;
        let shown_by = Shows::Slot;
        Some(Gap { from, to, shown_by })
    }

    fn judge(&self, record: &Record, start: Lsn) -> Result<Judged, Failure> {
        let facts = self.facts(start);
        match judge(record, &facts) {
            Ok(Verdict { record, .. }) => match record.gap {
                Some(gap) => Ok(Judged::Open(Some(gap))),
                None => Ok(Judged::Closed),
            },
            Err(Refusal::OtherSystem(_) | Refusal::PutBack(_)) => Ok(Judged::Open(None)),
            Err(
                refusal @ (Refusal::Version(_)
                | Refusal::OlderTimeline(_)
                | Refusal::Moved(_)
                | Refusal::Unknown
                | Refusal::Behind(_)),
            ) => Err(refusal.failure(&facts)),
        }
    }

    /// Of a slot that nobody has recorded. Where nothing ever is, what was published since would
    /// be compared again by each call.
    fn judge_unrecorded(&self, start: Lsn) -> Judged {
        if !self.traces.recordable && self.traces.last_sequence > 0 {
            return Judged::Closed;
        }
        match watermark::judge_unrecorded(&self.facts(start)) {
            Ok(None) => Judged::Closed,
            Ok(Some(gap)) => Judged::Open(Some(gap)),
            Err(_) => Judged::Open(None),
        }
    }

    /// What the judge must know where nobody leads: a gap is found, and no reason to halt.
    fn facts(&self, start: Lsn) -> watermark::Facts<'_> {
        watermark::Facts {
            source: self.source(),
            history: &self.history,
            start,
            slot_used: self.slot_used,
            flush: self.current.max(start),
            standby: false,
            confirmed_here: Lsn::ZERO,
            stream_created: &self.traces.stream_created,
            last_sequence: self.traces.last_sequence,
            newest: self.newest(),
            holds: self.holds,
            letters: None,
            delayed: None,
            at_stored: self.traces.at_stored,
            current: false,
            void: false,
        }
    }

    /// Where the stream's newest event of ours is.
    fn newest(&self) -> Option<Position> {
        let newest = self.traces.newest(self.source());
        let newest = newest.filter(|mark| self.lineage.holds(mark));
        newest.map(|mark| mark.position)
    }

    /// Writes the record of a slot that begins here; `Err`: why there is none.
    pub(super) async fn record(
        &self,
        options: &Options,
        slot: Slots,
    ) -> Result<Result<(), String>, Failure> {
        let failure = |error: Error| error.failure(&options.of_stream());
        let shelf = match Box::pin(Shelf::open(options, self.source())).await {
            Err(Error::BucketDenied(why) | Error::PublishDenied(why)) => return Ok(Err(why)),
            shelf => shelf.map_err(failure)?,
        };
        if let Some(why) = shelf.missing() {
            return Ok(Err(why.to_owned()));
        }
        let (stream_created, server_id) = shelf.stream_created();
        for _ in 0..WRITES_MAX {
            let kept = shelf.read().await.map_err(failure)?;
            let found = kept.as_ref().and_then(record::read);
            let record = Record {
                stream_created: stream_created.clone(),
                server_id: server_id.clone(),
                term: found.as_ref().map_or(0, |found| found.term) + 1,
                // Whoever leads by now has claimed another.
                instance: Uuid::now_v7().to_string(),
                ..self.next(found.as_ref(), slot)
            };
            let bytes = serde_json::to_vec(&record).expect("a record is JSON");
            let write = Write {
                expected: kept.map_or(0, |kept| kept.revision),
                bytes: Bytes::from(bytes),
            };
            match shelf.write(&write).await.map_err(failure)? {
                Written::Stored(_) => return Ok(Ok(())),
                Written::Found(_) => {}
                Written::Refused(why) => return Err(record::not_written(&why)),
            }
        }
        Err(record::not_written("it changes all the time"))
    }

    /// What is known of a slot that begins here.
    ///
    /// One that is made sends nothing that was stored before. One that is kept may send what was:
    /// everything below it is settled, and what was stored beyond is found as ever.
    fn next(&self, found: Option<&Record>, slot: Slots) -> Record {
        let (Slots::Kept(at) | Slots::Made(at)) = slot;
        let blank = Record::blank(self.source(), &self.history, at);
        if matches!(slot, Slots::Made(_)) || self.other_house().is_some() {
            return blank;
        }
        let judged = found.and_then(|found| judge(found, &self.facts(at)).ok());
        let record = judged.map_or(blank, |verdict| verdict.record);
        let settled = record.settled.filter(|known| known.position >= below(at));
        Record {
            settled: settled.or(Some(Settled {
                position: below(at),
                id: None,
            })),
            gap: None,
            ..record
        }
    }
}

/// Behind all that was committed before.
fn below(at: Lsn) -> Position {
    Position {
        commit: at.as_u64().saturating_sub(1),
        index: u32::MAX,
    }
}
