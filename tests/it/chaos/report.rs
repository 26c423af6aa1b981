//! What a round has shown, and whether it was perfect.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::contents::{Event, Known};
use super::plan::{Past, Plan};
use crate::harness::Verdict;
use crate::harness::drain::Stored;

/// A fault that was done.
#[derive(Clone, Debug)]
pub(crate) struct Struck {
    /// Since the beginning of the plan.
    pub(crate) at: Duration,
    /// Its kind.
    pub(crate) kind: String,
    /// Whom and how, if there is anything to say.
    pub(crate) details: String,
    /// The stream was running, through what the fault was done to.
    pub(crate) hit: bool,
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hit = if self.hit { "*" } else { " " };
        let at = self.at.as_secs_f64();
        write!(f, "{at:7.2} s {hit} {:<42} {}", self.kind, self.details)
    }
}

/// The end of a round.
pub(crate) struct Report {
    /// What was planned.
    pub(crate) plan: Plan,
    /// What was done.
    pub(crate) struck: Vec<Struck>,
    /// How often another copy came to lead.
    pub(crate) takeovers: u64,
    /// How many stored messages the broker lost.
    pub(crate) forgotten: u64,
    /// How long outjet took for what was left when all faults were over; `None`: it never did it.
    pub(crate) drained_in: Option<Duration>,
    /// Table and stream, by the judge.
    pub(crate) verdict: Verdict,
    /// How many events were committed on a dead timeline alone, and how many of them are stored.
    pub(crate) lost_tail: (usize, usize),
    /// Ids whose message is not what was written, by subject or by body.
    pub(crate) differing: Vec<String>,
    /// Transactions that were sent as a whole, and those of them that do not stand there as one.
    pub(crate) batches: Result<usize, Vec<String>>,
    /// Events that were stored twice, as nobody could know that they were stored once.
    pub(crate) uncertain: usize,
    /// Sequence numbers at which nobody saw an event, and may have missed one.
    pub(crate) unseen: usize,
    /// Events that were taken back.
    pub(crate) rolled_back: usize,
    /// Events of transactions that ended with an error.
    pub(crate) unknown: u64,
    /// Whatever else must not be.
    pub(crate) problems: Vec<String>,
    /// What was done, and what servers and copies have logged.
    pub(crate) logs: Vec<(String, String)>,
}

impl Report {
    /// Whether the stream is what was committed, and nobody had to act.
    pub(crate) fn is_perfect(&self) -> bool {
        self.is_complete()
            && self.verdict.committed > 0
            && self.differing.is_empty()
            && self.problems.is_empty()
            && self
                .batches
                .as_ref()
                .is_ok_and(|whole| (*whole > 0) == self.plan.atomic)
            && self.drained_in.is_some()
    }

    /// Whether each event is there once, and in commit order unless strangers displaced some.
    fn is_complete(&self) -> bool {
        let Verdict {
            missing,
            duplicated,
            uncommitted,
            ..
        } = &self.verdict;
        let once = missing.is_empty() && duplicated.is_empty() && uncommitted.is_empty();
        match self.plan.displaces() {
            true => once,
            false => self.verdict.is_exact(),
        }
    }

    /// Faults that hit a running stream.
    pub(crate) fn hits(&self) -> usize {
        self.struck.iter().filter(|struck| struck.hit).count()
    }

    /// How many of each kind were done, and how many of them hit.
    pub(crate) fn kinds(&self) -> BTreeMap<&str, (usize, usize)> {
        let mut kinds = BTreeMap::new();
        for struck in &self.struck {
            let (done, hit) = kinds.entry(struck.kind.as_str()).or_insert((0, 0));
            *done += 1;
            *hit += usize::from(struck.hit);
        }
        kinds
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} faults, {} of them hit a running stream; {} copies, {} takeovers, \
             {} and {} KiB in flight",
            self.plan.seed,
            self.struck.len(),
            self.hits(),
            self.plan.copies,
            self.takeovers,
            self.plan.first.in_flight_max,
            self.plan.first.in_flight_kib_max,
        )?;
        match self.drained_in {
            Some(took) => writeln!(f, "all was confirmed {took:.1?} after the last fault")?,
            None => writeln!(f, "STUCK: not all was confirmed after the last fault")?,
        }
        if self.plan.hold {
            writeln!(
                f,
                "{} stored messages were lost by the stream",
                self.forgotten
            )?;
        }
        if self.plan.past.is_some() {
            writeln!(
                f,
                "{} events were stored twice as their first messages had vanished, {} messages \
                 expired or vanished unseen",
                self.uncertain, self.unseen,
            )?;
        }
        if self.plan.past == Some(Past::Promoted) {
            let (lost, stored) = self.lost_tail;
            writeln!(f, "lost tail: {lost} events, {stored} of them stored")?;
        }
        write!(
            f,
            "committed {}, stored {}, rolled back {}, of unknown end {}\n\
             missing {}, duplicated {}, out of order {}, never committed {}, differing {}\n",
            self.verdict.committed,
            self.verdict.stored,
            self.rolled_back,
            self.unknown,
            self.verdict.missing.len(),
            self.verdict.duplicated.len(),
            self.verdict.out_of_order.len(),
            self.verdict.uncommitted.len(),
            self.differing.len(),
        )?;
        if !self.is_complete() {
            write!(f, "{}", self.verdict)?;
        }
        match &self.batches {
            Ok(0) => {}
            Ok(whole) => writeln!(f, "{whole} transactions appeared as a whole")?,
            Err(torn) => writeln!(f, "TORN:\n{}", torn.join("\n"))?,
        }
        for id in self.differing.iter().take(5) {
            writeln!(f, "differs: {id}")?;
        }
        for problem in &self.problems {
            writeln!(f, "PROBLEM: {problem}")?;
        }
        Ok(())
    }
}

/// At most what an event takes in outjet's memory beside its payload.
const BESIDE_PAYLOAD_BYTES: usize = 1024;

/// The ids of messages, in their order.
pub(crate) fn ids(stored: &[Stored]) -> Vec<String> {
    stored.iter().map(id).collect()
}

fn id(message: &Stored) -> String {
    message.id().unwrap_or("no id").to_owned()
}

/// How many transactions were sent in a batch; or which of those are torn: not all in the same one,
/// from its first to its last message, one behind the other. With all events there (the verdict),
/// such a transaction was never seen in part. Each event of a torn one is a line.
///
/// Those that may take more than half of what may be under way are not promised to be whole: sent
/// one by one, what is left of them after a restart may be few enough for a batch.
pub(crate) fn batches(stored: &[Stored], plan: &Plan) -> Result<usize, Vec<String>> {
    let mut transactions: BTreeMap<&str, Vec<&Stored>> = BTreeMap::new();
    for message in stored {
        let position = message.header("Outjet-Position").unwrap_or_default();
        let commit = position.split('-').next().unwrap_or_default();
        transactions.entry(commit).or_default().push(message);
    }
    let promised = |events: &[&Stored]| {
        let bytes = events
            .iter()
            .map(|e| e.payload.len() + BESIDE_PAYLOAD_BYTES);
        events.len() <= plan.first.in_flight_max as usize / 2
            && bytes.sum::<usize>() <= plan.first.in_flight_kib_max * 1024 / 2
    };
    transactions.retain(|_, events| {
        promised(events) && events.iter().any(|e| e.header("Nats-Batch-Id").is_some())
    });
    let whole = |events: &[&Stored]| {
        let name = events[0].header("Nats-Batch-Id");
        let in_place = |(index, event): (usize, &&Stored)| {
            event.header("Nats-Batch-Id") == name
                && event.sequence == events[0].sequence + index as u64
                && event.header("Nats-Batch-Sequence") == Some((index + 1).to_string().as_str())
                && event.header("Nats-Batch-Commit").is_some() == (index + 1 == events.len())
        };
        events.iter().enumerate().all(in_place)
    };
    let torn = transactions.iter().filter(|(_, events)| !whole(events));
    let told = |event: &&Stored| {
        let headers = [
            "Outjet-Position",
            "Nats-Batch-Id",
            "Nats-Batch-Sequence",
            "Nats-Batch-Commit",
        ];
        let headers = headers.map(|name| event.header(name).unwrap_or("-"));
        let bytes = event.payload.len();
        format!("{}: {} {bytes} bytes", event.sequence, headers.join(" "))
    };
    let torn: Vec<String> = torn
        .flat_map(|(_, events)| events.iter().map(told))
        .collect();
    if torn.is_empty() {
        Ok(transactions.len())
    } else {
        Err(torn)
    }
}

/// The ids of messages whose subject or body is not what was written.
pub(crate) fn differing(stored: &[Stored]) -> Vec<String> {
    let is_as_written = |message: &&Stored| {
        let event = message.id().and_then(Event::of);
        event.is_some_and(|event| {
            event.payload.as_bytes() == message.payload && event.subject() == message.subject
        })
    };
    let others = stored.iter().filter(|message| !is_as_written(message));
    others.map(id).collect()
}

/// Where the judge, the writers and the table do not tell the same story: then the verdict is worth
/// nothing.
pub(crate) fn disagreements(judged: &[String], table: &[String], known: &Known) -> Vec<String> {
    let judged_ids: HashSet<&str> = judged.iter().map(String::as_str).collect();
    let table_ids: HashSet<&str> = table.iter().map(String::as_str).collect();
    let unknown_to = |ids: &HashSet<&str>| {
        let committed = known.committed.iter().map(String::as_str);
        committed.filter(|id| !ids.contains(id)).collect()
    };
    let taken_back = known.rolled_back.iter().map(String::as_str);
    let found: [(&str, Vec<&str>); 4] = [
        (
            "were committed, and the judge did not see them",
            unknown_to(&judged_ids),
        ),
        (
            "were committed, and are not in the table",
            unknown_to(&table_ids),
        ),
        (
            "were rolled back, and the judge saw them",
            taken_back.filter(|id| judged_ids.contains(id)).collect(),
        ),
        (
            "are in the table or in the judge's list, and not in both",
            table_ids
                .symmetric_difference(&judged_ids)
                .copied()
                .collect(),
        ),
    ];
    let found = found.iter().filter(|(_, ids)| !ids.is_empty());
    let told = found.map(|(what, ids)| {
        let first = &ids[..ids.len().min(3)];
        format!("{} events {what}: {first:?}", ids.len())
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::outbox::Random;

    fn message(id: &str) -> Stored {
        let event = Event::of(id).expect("an id of ours");
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        Stored {
            sequence: 1,
            subject: event.subject(),
            headers,
            payload: event.payload.into(),
            stored_at: time::OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_message_with_another_body_or_subject_is_found() {
        let mut random = Random(1);
        let ids = [random.uuid(), random.uuid(), random.uuid()];
        let mut stored = Vec::from(ids.each_ref().map(|id| message(id)));
        assert_eq!(differing(&stored), Vec::<String>::new());
        stored[1].payload = stored[0].payload.clone();
        stored[2].subject = "events.other.created".to_owned();
        assert_eq!(differing(&stored), ids[1..]);
    }

    #[test]
    fn a_judge_who_overlooks_or_invents_is_found() {
        let ids = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let known = Known {
            committed: ids("a b"),
            rolled_back: ids("x"),
            unknown: 1,
        };
        let agree = |judged, table| disagreements(&ids(judged), &ids(table), &known);
        assert_eq!(agree("a b c", "a b c"), Vec::<String>::new());
        assert_eq!(agree("a c", "a b c").len(), 2);
        assert_eq!(agree("a b", "a b c").len(), 1);
        assert_eq!(agree("a b x", "a b x").len(), 1);
    }
}
