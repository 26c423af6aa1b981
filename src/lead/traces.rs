//! What is left of an outbox that was published before: the record, and the newest events of the
//! stream. Where there is any of it and no slot, a new slot would begin too late: what was
//! committed since the last one went is in none.

use crate::error::{Exit, Failure, Problem};
use crate::event::lineage::{Mark, Source};
use crate::lead::record;
use crate::lead::watermark::{self, Record};
use crate::lsn::Lsn;
use crate::pg::catalog::Facts;
use crate::preflight;
use crate::sink::At;
use crate::sink::jetstream::{self, Error, Shelf};

/// What was found beside the stream and at its end. Without a stream: nothing.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    /// The record of our slot, if it can be read.
    pub record: Option<Record>,
    /// When the stream was created, RFC 3339.
    pub stream_created: String,
    /// Whether a leader records, or would make the bucket to do so.
    pub recordable: bool,
    /// Its last sequence number.
    pub last_sequence: u64,
    /// What is found at the record's S.
    pub at_stored: At,
    stream: String,
    shared: bool,
    newest: Vec<Mark>,
}

impl Traces {
    /// Looks for them, and creates nothing. Of `ours` the timeline does not matter.
    pub async fn find(options: &jetstream::Options, ours: &Source) -> Result<Self, Error> {
        let mut options = options.of_stream();
        let creates = std::mem::take(&mut options.stream.create);
        let found = match Box::pin(jetstream::inspect(&options)).await {
            Err(Error::StreamMissing(_)) => {
                return Ok(Self {
                    recordable: creates,
                    ..Self::default()
                });
            }
            found => found?,
        };
        let kept = async {
            let shelf = Box::pin(Shelf::open(&options, ours)).await?;
            let record = shelf.read().await?.as_ref().and_then(record::read);
            let stored = record.as_ref().and_then(|record| record.stored.as_ref());
            let at_stored = match stored {
                Some(place) => shelf.found_at(place, ours).await?.0,
                None => At::Nothing,
            };
            let recordable = creates || shelf.missing().is_none();
            Ok((record, at_stored, (recordable, shelf.stream_created().0)))
        };
        let (record, at_stored, (recordable, stream_created)) = match kept.await {
            // Who may not read it leads without it.
            Err(Error::BucketDenied(_) | Error::PublishDenied(_)) => Default::default(),
            kept => kept?,
        };
        Ok(Self {
            record,
            recordable,
            stream_created,
            last_sequence: found.last_sequence,
            at_stored,
            stream: found.name,
            shared: found.shared,
            newest: found.newest,
        })
    }

    /// The slot of another cluster in whose place ours would come, as after a dump was restored
    /// elsewhere: that of the record, else that of the newest event, if its slot has our name.
    pub fn other_house(&self, ours: &Source) -> Option<&Source> {
        let source = match &self.record {
            Some(record) => &record.source,
            None if self.shared => return None,
            None => &self.newest.first()?.source,
        };
        (source.system != ours.system && source.slot == ours.slot).then_some(source)
    }

    /// The newest event of the stream; of a slot, if others write into the stream, too.
    pub fn newest(&self, ours: &Source) -> Option<&Mark> {
        let mut newest = self.newest.iter();
        match self.shared {
            true => newest.find(|mark| mark.source.same_slot(ours)),
            false => newest.next(),
        }
    }

    /// Why no slot may be made where there is none; `None`: nothing is known to be lost by it.
    pub fn slot_gone(&self, facts: &Facts, options: &preflight::Options) -> Option<Failure> {
        if facts.slot.is_some() {
            return None;
        }
        let ours = Source {
            system: facts.server.system_identifier.clone(),
            timeline: 0,
            slot: options.slot.clone(),
        };
        if let Some(other) = self.other_house(&ours) {
            return Some(self.moved_house(&ours, other));
        }
        let newest = (self.stream.as_str(), self.newest.as_slice());
        let gone = preflight::slot_gone(facts, options, newest);
        gone.or_else(|| {
            let record = self.record.as_ref();
            let led = record.filter(|it| it.term > 0);
            let used = led.filter(|it| it.settled.is_some() || it.confirmed > Lsn::ZERO)?;
            Some(self.gone(facts, used))
        })
    }

    /// Why nobody leads with a slot that was read before and starts here; `None`: nothing is known
    /// against it.
    pub fn slot_unknown(&self, slot: &str, start: Lsn) -> Option<Failure> {
        let known = self.record.is_some() || self.last_sequence > 0 || !self.recordable;
        (!known).then(|| watermark::unknown(slot, start))
    }

    /// What is said of a missing slot where nobody can tell whether there was one.
    pub fn unknown(options: &preflight::Options, error: &Error) -> Failure {
        let problem = Problem::new(
            format!("replication slot \"{}\" does not exist", options.slot),
            format!("whether it has fed the stream before is not known: {error}"),
            "`outjet setup`, once NATS can be reached: it makes the slot unless there was one; \
             then `outjet recover` does",
        );
        Failure::halt(Exit::CheckFailed, problem)
    }

    /// The record alone tells: what it held is gone from the stream, or nothing was published yet.
    fn gone(&self, facts: &Facts, record: &Record) -> Failure {
        let (slot, confirmed) = (&record.source.slot, record.confirmed);
        let current = facts.server.current;
        let problem = Problem::new(
            format!(
                "slot {slot} is missing, but the record beside stream {} shows that it was in use",
                self.stream
            ),
            format!(
                "it was confirmed up to {confirmed}; {} bytes of WAL follow, up to {current}, and \
                 are in no slot",
                current.bytes_since(confirmed)
            ),
            RECOVER,
        );
        Failure::halt(Exit::Config, problem)
    }

    /// Another cluster has published into the stream through a slot of our name.
    pub fn moved_house(&self, ours: &Source, other: &Source) -> Failure {
        let Source { system, slot, .. } = ours;
        let newest = match self.newest(other) {
            Some(mark) => format!(
                "the stream's newest event is {} of system {}, slot {}, at {}",
                mark.id, mark.source.system, mark.source.slot, mark.position
            ),
            None => "the stream holds no event of an outjet".to_owned(),
        };
        let problem = Problem::new(
            format!(
                "stream {} was written from slot {slot} of another cluster",
                self.stream
            ),
            format!(
                "that has system identifier {}, this one {system}; {newest}",
                other.system
            ),
            "if this cluster has taken its place (restored from a dump, upgraded, moved): \
             `outjet recover --yes`; else name the other one in DATABASE_URL, or give this one a \
             stream of its own (stream.name)",
        );
        Failure::halt(Exit::CheckFailed, problem)
    }
}

const RECOVER: &str = "`outjet recover`: it makes the slot again, and publishes the rows of the \
                       outbox tables that the stream lacks";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Position;
    use crate::preflight::tests::{facts, options};

    fn source(system: &str, slot: &str) -> Source {
        Source {
            system: system.to_owned(),
            timeline: 1,
            slot: slot.to_owned(),
        }
    }

    fn newest(source: &Source) -> Vec<Mark> {
        vec![Mark {
            source: source.clone(),
            position: Position {
                commit: 0x200,
                index: 0,
            },
            id: "a".to_owned(),
        }]
    }

    fn record(source: &Source) -> Record {
        Record {
            term: 1,
            ..Record::blank(source, &[], Lsn::new(0x100))
        }
    }

    fn refused(traces: &Traces) -> Option<(String, String)> {
        let mut facts = facts();
        assert_eq!(traces.slot_gone(&facts, &options()), None, "it exists");
        facts.slot = None;
        let Problem { problem, fix, .. } = traces.slot_gone(&facts, &options())?.problem;
        Some((problem, fix))
    }

    #[test]
    fn slot_is_made_where_nobody_has_published_and_beside_the_slots_of_others() {
        assert_eq!(refused(&Traces::default()), None);
        let ours = source(&facts().server.system_identifier, "outjet");
        let others = [source(&ours.system, "other"), source("7", "other")];
        for other in others {
            let traces = Traces {
                newest: newest(&other),
                ..Traces::default()
            };
            assert_eq!(refused(&traces), None);
        }
        let shared = Traces {
            shared: true,
            newest: newest(&source("7", "outjet")),
            ..Traces::default()
        };
        assert_eq!(refused(&shared), None);
    }

    #[test]
    fn slot_is_not_made_beside_its_events_or_its_record() {
        let ours = source(&facts().server.system_identifier, "outjet");
        let stored = Traces {
            newest: newest(&ours),
            ..Traces::default()
        };
        let recorded = Traces {
            record: Some(record(&ours)),
            ..Traces::default()
        };
        for (traces, says) in [(stored, "holds events from it"), (recorded, "was in use")] {
            let (problem, fix) = refused(&traces).expect("refused");
            assert!(problem.ends_with(says), "{problem}");
            assert!(fix.starts_with("`outjet recover`: "), "{fix}");
        }
    }

    #[test]
    fn slot_is_not_made_in_the_place_of_another_clusters() {
        let other = source("7", "outjet");
        let stored = Traces {
            newest: newest(&other),
            ..Traces::default()
        };
        let recorded = Traces {
            record: Some(record(&other)),
            ..Traces::default()
        };
        for traces in [stored, recorded] {
            let (_, fix) = refused(&traces).expect("refused");
            assert!(fix.contains("`outjet recover --yes`"), "{fix}");
        }
        // Taken over: the newest event is still the other's.
        let ours = source(&facts().server.system_identifier, "outjet");
        let heir = Traces {
            newest: newest(&other),
            record: Some(record(&ours)),
            ..Traces::default()
        };
        assert_eq!(heir.other_house(&ours), None);
    }
}
