//! The record of what is settled, as commands show it and hold it against the servers: `status` and
//! `verify`. Reads only.

use std::fmt;

use serde::Serialize;
use tokio_postgres::Client;

use crate::config::Config;
use crate::error::{Failure, Problem};
use crate::event::Position;
use crate::event::lineage::Source;
use crate::lead::record::read;
use crate::lead::watermark::{self, Facts, Gap, Record, Void};
use crate::lsn::Lsn;
use crate::pg::catalog::StatementError;
use crate::sink::At;
use crate::sink::jetstream::{self, Shelf};

/// A record that was read; or why there is none.
pub(super) struct RecordRead {
    pub(super) record: Result<Record, String>,
    shelf: Option<Shelf>,
    source: Source,
    options: jetstream::Options,
}

impl RecordRead {
    /// Reads it. Without the rights there is none.
    pub(super) async fn read(config: &Config, system: &str) -> Result<Self, Failure> {
        let mut options = config.sink_options();
        options.stream.create = false;
        let source = Source {
            system: system.to_owned(),
            timeline: 0,
            slot: config.postgres.slot.clone(),
        };
        let mut found = Self {
            record: Err(String::new()),
            shelf: None,
            source,
            options,
        };
        let opened = Box::pin(Shelf::open(&found.options, &found.source)).await;
        let kept = match opened {
            Ok(shelf) => {
                let kept = shelf.read().await;
                found.shelf = Some(shelf);
                kept
            }
            Err(error) => Err(error),
        };
        let missing = || found.shelf.as_ref().and_then(Shelf::missing);
        let none = || missing().unwrap_or("nobody has led yet").to_owned();
        found.record = match kept {
            Ok(kept) => {
                let led = kept.as_ref().and_then(read).filter(|it| it.term > 0);
                led.ok_or_else(none)
            }
            Err(jetstream::Error::BucketDenied(why)) => Err(why),
            Err(error) => return Err(error.failure(&found.options.of_stream())),
        };
        Ok(found)
    }

    /// What does not agree with Postgres or the stream: what the next leader would say, and what
    /// the record says itself. `confirmed` of the slot must have been read before the record.
    pub(super) async fn contradictions(
        &self,
        client: &Client,
        confirmed: Option<Lsn>,
    ) -> Result<Vec<Problem>, Failure> {
        let (Ok(record), Some(shelf)) = (&self.record, &self.shelf) else {
            return Ok(Vec::new());
        };
        let (end, timeline) = end_of_log(client).await?;
        let (at_stored, last_sequence) = match &record.stored {
            Some(place) => {
                let found = shelf.found_at(place, &self.source).await;
                found.map_err(|error| error.failure(shelf.options()))?
            }
            None => (At::Nothing, u64::MAX),
        };
        let stream_created = shelf.stream_created().0;
        let source = Source {
            timeline,
            ..self.source.clone()
        };
        let beside = &self.options;
        let letters = match record.letters {
            0 => None,
            _ => Some(last_of(&beside.of_dead_letters()).await?),
        };
        let delayed = match record.delayed {
            0 => None,
            _ => Some(last_of(&beside.of_delayed()).await?),
        };
        let facts = Facts {
            source: &source,
            history: &record.history,
            start: confirmed.unwrap_or(record.confirmed),
            slot_used: true,
            flush: end,
            standby: false,
            confirmed_here: Lsn::ZERO,
            stream_created: &stream_created,
            last_sequence,
            newest: self.newest().await?,
            holds: !beside.hold.is_zero(),
            letters,
            delayed,
            at_stored,
            current: false,
            void: false,
        };
        Ok(judged(record, &facts))
    }

    /// Where the stream's newest event of ours is.
    async fn newest(&self) -> Result<Option<Position>, Failure> {
        let options = self.options.of_stream();
        let found = Box::pin(jetstream::inspect(&options)).await;
        let found = found.map_err(|error| error.failure(&options))?;
        let mut newest = found.newest.iter();
        let own = newest.find(|mark| mark.source.same_slot(&self.source));
        Ok(own.map(|mark| mark.position))
    }
}

/// The last sequence number of a stream beside the main one; 0: it is gone.
async fn last_of(options: &jetstream::Options) -> Result<u64, Failure> {
    match Box::pin(jetstream::inspect(options)).await {
        Ok(found) => Ok(found.last_sequence),
        Err(jetstream::Error::StreamMissing(_)) => Ok(0),
        Err(error) => Err(error.failure(options)),
    }
}

/// What the judge of the next term says.
fn judged(record: &Record, facts: &Facts<'_>) -> Vec<Problem> {
    let slot = &facts.source.slot;
    let open = record.gap.map(|gap| gap.problem(slot));
    // What was left behind on another timeline is cut off by the next leader, who knows where.
    if record.source.timeline < facts.source.timeline {
        return open.into_iter().collect();
    }
    match watermark::judge(record, facts) {
        Err(refusal) => vec![refusal.failure(facts).problem],
        Ok(verdict) => {
            let moved = verdict.gap.map(|gap| gap.problem(slot));
            let void = verdict.void.map(does_not_hold);
            void.into_iter().chain(moved.or(open)).collect()
        }
    }
}

fn does_not_hold(void: Void) -> Problem {
    Problem::new(
        "the record of what is settled does not hold",
        void.to_string(),
        "nothing if that was on purpose: the next leader searches the stream instead; else see \
         what became of the stream (`nats stream info`), and whether rows are missing above",
    )
}

/// Up to where the log is written, and the server's timeline.
async fn end_of_log(client: &Client) -> Result<(Lsn, u32), Failure> {
    let sql = "SELECT pg_current_wal_insert_lsn()::text, \
               substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";
    let row = client.query_one(sql, &[]).await;
    let row = row.and_then(|row| Ok((row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?)));
    let (end, timeline) =
        row.map_err(|error| StatementError::new("read the end of the WAL", error).failure())?;
    let timeline = u32::from_str_radix(&timeline, 16).unwrap_or_default();
    Ok((end.parse().unwrap_or(Lsn::ZERO), timeline))
}

/// The record, for `--json`. Fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordStatus {
    /// The position up to which everything is settled; null: nothing is known.
    pub settled_position: Option<String>,
    /// The commit's LSN in it.
    pub settled_lsn: Option<String>,
    /// The sequence number behind which everything else of ours is stored.
    pub stored_sequence: Option<u64>,
    /// The highest LSN that may have been confirmed.
    pub confirmed_lsn: String,
    /// Counts stints of leading.
    pub term: u64,
    /// Who leads, or led last.
    pub instance: String,
    /// What was confirmed and read by no outjet; null: nothing.
    pub gap: Option<GapStatus>,
}

/// A gap, for `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GapStatus {
    /// It begins here.
    pub from_lsn: String,
    /// It ends here.
    pub to_lsn: String,
    /// WAL between them.
    pub bytes: u64,
    /// What is wrong.
    pub problem: String,
    /// Why.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl RecordStatus {
    /// What a record says of a slot.
    pub fn new(record: &Record, slot: &str) -> Self {
        let settled = record.settled.as_ref().map(|settled| settled.position);
        Self {
            settled_position: settled.map(|position| position.to_string()),
            settled_lsn: settled.map(|position| Lsn::new(position.commit).to_string()),
            stored_sequence: record.stored.as_ref().map(|place| place.sequence),
            confirmed_lsn: record.confirmed.to_string(),
            term: record.term,
            instance: record.instance.clone(),
            gap: record.gap.map(|gap| GapStatus::new(gap, slot)),
        }
    }
}

impl GapStatus {
    fn new(gap: Gap, slot: &str) -> Self {
        let Problem {
            problem,
            cause,
            fix,
        } = gap.problem(slot);
        Self {
            from_lsn: gap.from.to_string(),
            to_lsn: gap.to.to_string(),
            bytes: gap.to.bytes_since(gap.from),
            problem,
            cause,
            fix,
        }
    }
}

/// On lines of a name and a value.
impl fmt::Display for RecordStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            settled_position,
            settled_lsn,
            stored_sequence,
            confirmed_lsn,
            term,
            instance,
            gap,
        } = self;
        match (settled_position, settled_lsn) {
            (Some(position), Some(lsn)) => write!(f, "settled up to {position} (commit {lsn})")?,
            _ => write!(f, "nothing known to be settled")?,
        }
        if let Some(sequence) = stored_sequence {
            write!(f, ", stored at sequence {sequence}")?;
        }
        write!(
            f,
            "\n              confirmed up to {confirmed_lsn}, term {term}, instance {instance}"
        )?;
        let Some(gap) = gap else {
            return Ok(());
        };
        let GapStatus {
            problem,
            cause,
            fix,
            ..
        } = gap;
        write!(f, "\ngap           {}", Problem::new(problem, cause, fix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::lineage::Place;
    use crate::lead::watermark::Settled;

    fn source() -> Source {
        Source::parse("7/1/outjet").expect("a source")
    }

    fn record() -> Record {
        let position = Position {
            commit: 0x100,
            index: 0,
        };
        let id = "a".to_owned();
        Record {
            version: watermark::VERSION,
            source: source(),
            history: Vec::new(),
            dead: Vec::new(),
            stream_created: "then".to_owned(),
            settled: Some(Settled {
                position,
                id: Some(id.clone()),
            }),
            stored: Some(Place {
                sequence: 3,
                position,
                id,
            }),
            base: 3,
            letters: 2,
            delayed: 0,
            confirmed: Lsn::new(0x180),
            gap: None,
            term: 2,
            instance: "i".to_owned(),
            server_id: String::new(),
        }
    }

    fn problems(record: &Record, change: impl FnOnce(&mut Facts<'_>)) -> Vec<String> {
        let source = source();
        let mut facts = Facts {
            source: &source,
            history: &[],
            start: Lsn::new(0x180),
            slot_used: true,
            flush: Lsn::new(0x200),
            standby: false,
            confirmed_here: Lsn::ZERO,
            stream_created: "then",
            last_sequence: 3,
            newest: Some(Position {
                commit: 0x100,
                index: 0,
            }),
            holds: false,
            letters: Some(2),
            delayed: None,
            at_stored: At::Same,
            current: false,
            void: false,
        };
        change(&mut facts);
        let found = judged(record, &facts);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn record_that_agrees_with_the_servers_has_no_contradictions() {
        assert_eq!(problems(&record(), |_| ()), Vec::<String>::new());
        // It was consumed, or has expired.
        let vanished = problems(&record(), |facts| facts.at_stored = At::Nothing);
        assert_eq!(vanished, Vec::<String>::new());
    }

    #[test]
    fn each_contradiction_is_one_problem() {
        let found = [
            problems(&record(), |facts| facts.start = Lsn::new(0x181)),
            problems(&record(), |facts| facts.flush = Lsn::new(0x17F)),
            problems(&record(), |facts| facts.last_sequence = 2),
            problems(&record(), |facts| facts.at_stored = At::Other),
            problems(&record(), |facts| facts.stream_created = "now"),
            problems(&record(), |facts| {
                (facts.letters, facts.start) = (Some(1), Lsn::new(0x100));
            }),
        ];
        let expected = [
            "slot outjet was moved: events may be missing",
            "the server was put back to an earlier state",
            "the stream ends at 2, before sequence 3",
            "another message has sequence 3",
            "the stream was created anew",
            "the dead letters, or what is delayed, lost their end",
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(expected), "{found:?}");
        }
    }

    #[test]
    fn stream_that_lost_what_was_confirmed_is_told_with_the_way_to_get_it_back() {
        let found = problems(&record(), |facts| {
            (facts.last_sequence, facts.newest) = (2, None);
        });
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains("the stream may lack events"), "{found:?}");
        assert!(found[1].contains("`outjet recover`"), "{found:?}");
    }

    #[test]
    fn open_gap_is_told_once_with_its_fix() {
        let gap = Gap {
            from: Lsn::new(0x80),
            to: Lsn::new(0x100),
            shown_by: watermark::Shows::Slot,
        };
        let open = Record {
            gap: Some(gap),
            ..record()
        };
        let found = problems(&open, |_| ());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("0/100"), "{found:?}");
        let text = RecordStatus::new(&open, "outjet").to_string();
        assert!(
            text.contains("\ngap           slot outjet was moved"),
            "{text}"
        );
        assert!(text.contains("`outjet recover` publishes"), "{text}");
    }
}
