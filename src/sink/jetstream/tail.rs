//! Reads what stands at the end of the stream, for the guard. Asks the stream's leader, message by
//! message and many at a time: followers may lag behind.

use std::collections::VecDeque;
use std::future::ready;
use std::ops::RangeInclusive;

use async_nats::jetstream::stream::Info;
use futures_util::{StreamExt, TryStreamExt, stream};
use tracing::warn;

use super::error::Error;
use super::messages::{Kept, Messages, Stored};
use super::names::{MESSAGE_ID, PLAIN_ID, POSITION, SOURCE};
use crate::event::lineage::{Lineage, Mark, Place, Source};
use crate::event::{Event, Position};
use crate::guard::{self, Entry, Found, Guard, Verdict, late_max};
use crate::sink::At;

/// Most messages that are read before they are looked at.
const BATCH_MAX: u64 = 1024;

/// Most requests at once.
const REQUESTS_MAX: usize = 256;

/// About how many bytes of messages may be underway: the answers carry the bodies, too.
const BATCH_BYTES: usize = 1024 * 1024;

/// A stranger that takes an event's place lets it come late, behind those that were under way with
/// it; and this many strangers may stand among them where a search begins: some 2 MiB of entries.
const STRANGERS_MAX: u64 = 16 * 1024;

/// The guard's merge with its view of a stream, for one epoch.
#[derive(Debug)]
pub(crate) struct Tail {
    reader: Reader,
    guard: Guard,
    /// All that is looked for is stored behind this sequence number.
    behind: u64,
    /// Where it begins, messages are gone that may have been events at hand.
    cut: bool,
    /// So many strangers' messages were logged.
    told: u64,
}

/// What a search for the first event begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) bounds: Bounds,
    /// The first event to be judged.
    pub(crate) first: Position,
    /// Most events and bytes that are under way at once.
    pub(crate) events_max: usize,
    pub(crate) bytes_max: usize,
}

/// How far the merge of an epoch is.
pub(crate) enum Search {
    /// It starts at the first event that there is.
    Pending(Bounds),
    Reading(Box<Tail>),
    Finished,
}

impl Search {
    /// For a stream of which nothing is known but its bounds.
    pub(crate) fn new(bounds: Bounds) -> Self {
        if bounds.last == 0 {
            Self::Finished
        } else {
            Self::Pending(bounds)
        }
    }

    /// Whether it has nothing more to say.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self, Self::Finished)
    }

    /// Whether the stream holds anything but our own events in order, as far as it was read.
    pub(crate) fn odd(&self) -> bool {
        match self {
            Self::Reading(tail) => tail.guard.odd(),
            Self::Pending(_) | Self::Finished => false,
        }
    }

    /// Whether messages are gone that may have been the events at hand.
    pub(crate) fn cut(&self) -> bool {
        matches!(self, Self::Reading(tail) if tail.cut || tail.guard.vacant())
    }

    /// Behind which sequence number it reads.
    pub(crate) fn behind(&self) -> Option<u64> {
        match self {
            Self::Reading(tail) => Some(tail.behind),
            Self::Pending(_) | Self::Finished => None,
        }
    }

    /// Where the stream holds the event. To be asked in commit order.
    pub(crate) async fn place_of(
        &mut self,
        stream: &Messages,
        lineage: &Lineage,
        start: impl FnOnce(Bounds) -> Start,
        event: &Event,
    ) -> Result<Option<u64>, Error> {
        if let Self::Pending(bounds) = *self {
            let tail = Tail::search(stream.clone(), lineage.clone(), start(bounds)).await?;
            *self = Self::Reading(Box::new(tail));
        }
        let Self::Reading(tail) = self else {
            return Ok(None);
        };
        let place = tail.place_of(event).await?;
        let finished = tail.guard.finished();
        tail.tell_strangers(finished);
        Ok(place)
    }

    /// Takes note that nothing is left to be read.
    pub(crate) fn finish(&mut self) {
        if let Self::Reading(tail) = self
            && tail.guard.finished()
        {
            *self = Self::Finished;
        }
    }
}

impl Tail {
    /// Looks for an entry behind the first event, jumping back in growing steps, each time to the
    /// next one that is ours.
    async fn search(stream: Messages, lineage: Lineage, start: Start) -> Result<Self, Error> {
        let Bounds { first, last } = start.bounds;
        let mut jump = 1;
        let (mut at, mut end) = (last, last);
        let mut reader = None;
        while at >= first && at > 0 {
            let ours = Reader::new(stream.clone(), at, end).next_of(&lineage);
            if let Some((found, position)) = ours.await?
                && position < start.first
            {
                let mut found = Reader::new(stream.clone(), found, last);
                found.look_back(&start, &lineage).await?;
                reader = Some(found);
                break;
            }
            end = at - 1;
            at = at.saturating_sub(jump);
            jump *= 2;
        }
        let cut = reader.is_none() && first > 1;
        let reader = reader.unwrap_or_else(|| Reader::new(stream, first.max(1), last));
        let guard = Guard::new(lineage, reader.begins_at(), start.events_max as u64);
        let told = 0;
        // What may be late may have been so by as much, and have vanished.
        let late_max = late_max(start.events_max as u64);
        let behind = match cut {
            true => 0,
            false => reader.begins_at().saturating_sub(1 + late_max),
        };
        Ok(Self {
            behind,
            reader,
            guard,
            cut,
            told,
        })
    }

    /// Where the next event in commit order is stored.
    async fn place_of(&mut self, event: &Event) -> Result<Option<u64>, Error> {
        loop {
            match self.guard.judge(event.position, &event.id) {
                Verdict::Stored(sequence) => return Ok(Some(sequence)),
                Verdict::Absent => return Ok(None),
                Verdict::Unknown => match self.reader.next().await? {
                    Some(entry) => self.guard.offer(entry),
                    None => self.guard.end(self.reader.last_sequence),
                },
            }
        }
    }

    /// Logs messages of others when the first are seen, and in the end if there were more. Not only
    /// then: an epoch whose first event is refused again comes to no end.
    fn tell_strangers(&mut self, finished: bool) {
        let messages = self.guard.foreign();
        if messages > self.told && (self.told == 0 || finished) {
            tell_strangers(&self.reader.stream, messages);
            self.told = messages;
        }
    }
}

fn tell_strangers(stream: &Messages, messages: u64) {
    if messages > 0 && !stream.shared() {
        warn!(messages, "the stream holds messages that are not ours");
    }
}

/// Reads all that a stream holds from one sequence number to another.
pub(crate) async fn find(
    found: &mut Found,
    (stream, kind): (&Messages, guard::Stream),
    (first, last): (u64, u64),
    settled_to: Option<Position>,
) -> Result<(), Error> {
    let mut reader = Reader::new(stream.clone(), first, last);
    if kind == guard::Stream::Main {
        found.begin(first);
    }
    while let Some(entry) = reader.next().await? {
        found.offer(kind, entry, settled_to);
    }
    if kind == guard::Stream::Main {
        found.end(last);
        tell_strangers(stream, found.foreign());
    }
    Ok(())
}

/// Where the first event stands, between two sequence numbers, that is such a one.
pub(crate) async fn first_of(
    stream: &Messages,
    (first, last): (u64, u64),
    is: impl Fn(&Mark) -> bool,
) -> Result<Option<u64>, Error> {
    let mut reader = Reader::new(stream.clone(), first, last);
    while let Some(Entry { sequence, mark }) = reader.next().await? {
        if mark.is_some_and(|mark| is(&mark)) {
            return Ok(Some(sequence));
        }
    }
    Ok(None)
}

/// Reads a part of the stream from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Reader {
    stream: Messages,
    read: VecDeque<Entry>,
    next_sequence: u64,
    last_sequence: u64,
    batch: u64,
}

impl Reader {
    pub(crate) fn new(stream: Messages, next_sequence: u64, last_sequence: u64) -> Self {
        Self {
            stream,
            read: VecDeque::new(),
            next_sequence,
            last_sequence,
            batch: 8,
        }
    }

    /// Where the next entry of this source stands, and what it bears.
    async fn next_of(mut self, lineage: &Lineage) -> Result<Option<(u64, Position)>, Error> {
        self.batch = 1;
        while let Some(Entry { sequence, mark }) = self.next().await? {
            if let Some(mark) = mark.filter(|mark| lineage.holds(mark)) {
                return Ok(Some((sequence, mark.position)));
            }
        }
        Ok(None)
    }

    /// The first sequence number of what is still to be returned.
    fn begins_at(&self) -> u64 {
        self.read
            .front()
            .map_or(self.next_sequence, |entry| entry.sequence)
    }

    async fn next(&mut self) -> Result<Option<Entry>, Error> {
        if self.read.is_empty() {
            self.read_on().await?;
        }
        Ok(self.read.pop_front())
    }

    /// Begins earlier, by as much as an entry may be late: the one found may be, and what it should
    /// stand before is needed, too.
    async fn look_back(&mut self, start: &Start, lineage: &Lineage) -> Result<(), Error> {
        let late_max = late_max(start.events_max as u64);
        let oldest = self.next_sequence.saturating_sub(late_max);
        let lowest = start.bounds.first.max(1);
        let (mut oldest, mut begin, mut bytes) = (oldest.max(lowest), self.next_sequence, 0);
        let strangers_below = oldest.saturating_sub(STRANGERS_MAX).max(lowest);
        while begin > oldest && bytes < 2 * start.bytes_max {
            let end = begin - 1;
            begin = oldest.max(begin.saturating_sub(self.batch));
            for message in self.fetch_all::<Stored>(begin..=end).await?.iter().rev() {
                let entry = entry(message);
                if lineage.is_foreign(entry.mark.as_ref()) {
                    oldest = strangers_below.max(oldest.saturating_sub(1));
                } else {
                    bytes += message.body_bytes;
                }
                self.read.push_front(entry);
            }
        }
        Ok(())
    }

    async fn read_on(&mut self) -> Result<(), Error> {
        let messages = self.fetch_on::<Stored>().await?;
        self.read.extend(messages.iter().map(entry));
        Ok(())
    }

    /// The next batch of what is left, empty at its end; over a gap, with one request to its end.
    /// In a stream that others write, too, a batch of theirs is a gap.
    pub(crate) async fn fetch_on<M: Kept>(&mut self) -> Result<Vec<M>, Error> {
        while self.next_sequence <= self.last_sequence {
            let end = self.last_sequence.min(self.next_sequence + self.batch - 1);
            let messages = self.fetch_all::<M>(self.next_sequence..=end).await?;
            self.next_sequence = end + 1;
            let ours = |message: &M| message.stored().header(SOURCE).is_some();
            if messages.iter().any(|m| !self.stream.shared() || ours(m)) {
                return Ok(messages);
            }
            self.next_sequence = self.end_of_gap().await?;
        }
        Ok(Vec::new())
    }

    /// Those that are there; then decides how many to ask for next time.
    async fn fetch_all<M: Kept>(
        &mut self,
        sequences: RangeInclusive<u64>,
    ) -> Result<Vec<M>, Error> {
        let questions = stream::iter(sequences.map(|at| M::at(&self.stream, at)));
        let answers = questions.buffered(REQUESTS_MAX);
        let found = answers.try_filter_map(|message| ready(Ok(message)));
        let messages: Vec<_> = Box::pin(found.try_collect()).await?;
        let largest = messages
            .iter()
            .map(|message| message.stored().body_bytes)
            .max();
        self.batch = (self.batch * 2)
            .min(BATCH_MAX)
            .min((BATCH_BYTES / largest.unwrap_or(1).max(1)) as u64)
            .max(1);
        Ok(messages)
    }

    async fn end_of_gap(&self) -> Result<u64, Error> {
        let next = self.stream.ours_from(self.next_sequence).await?;
        Ok(next.map_or(self.last_sequence + 1, |message| message.sequence))
    }
}

/// Whether a message that was stored once is there no more.
pub(crate) async fn is_gone(stream: &Messages, sequence: u64) -> Result<bool, Error> {
    Ok(stream.at(sequence).await?.is_none())
}

/// What a stream holds: the first and the last sequence number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Bounds {
    pub(crate) fn of(info: &Info) -> Self {
        Self {
            first: info.state.first_sequence,
            last: info.state.last_sequence,
        }
    }
}

/// Whether this event stands at a sequence number.
pub(crate) async fn stands_at(
    stream: &Messages,
    (sequence, lineage): (u64, &Lineage),
    event: &Event,
) -> Result<bool, Error> {
    let found = stream.at(sequence).await?;
    let mark = found.and_then(|message| mark(&message));
    Ok(mark.is_some_and(|mark| {
        lineage.holds(&mark) && mark.position == event.position && mark.id == event.id
    }))
}

/// The newest event near the end, if one is found; of a stream that others write, too, that of each
/// source, and what our subjects were last used for.
pub(crate) async fn newest_marks(stream: &Messages, bounds: Bounds) -> Result<Vec<Mark>, Error> {
    // Enough to look past a few strangers; an older event of another source is found by the guard.
    const LOOK_BACK: u64 = 8;
    let mut found = stream.last_of_ours().await?;
    let oldest = bounds
        .first
        .max(bounds.last.saturating_sub(LOOK_BACK))
        .max(1);
    for sequence in (oldest..=bounds.last).rev() {
        let message = stream.at(sequence).await?;
        let marked = message.filter(|message| mark(message).is_some());
        found.extend(marked);
        if !stream.shared() && !found.is_empty() {
            break;
        }
    }
    found.sort_by_key(|message| std::cmp::Reverse(message.sequence));
    let mut newest: Vec<Mark> = Vec::new();
    for mark in found.iter().filter_map(mark) {
        if !newest
            .iter()
            .any(|known| known.source.same_slot(&mark.source))
        {
            newest.push(mark);
        }
    }
    Ok(newest)
}

pub(crate) fn entry(message: &Stored) -> Entry {
    Entry {
        sequence: message.sequence,
        mark: mark(message),
    }
}

pub(crate) fn mark(message: &Stored) -> Option<Mark> {
    Some(Mark {
        source: Source::parse(message.header(SOURCE)?)?,
        position: message.header(POSITION)?.parse().ok()?,
        id: message
            .header(MESSAGE_ID)
            .or_else(|| message.header(PLAIN_ID))?
            .to_owned(),
    })
}

/// Whether a message is the one that had this place.
pub(crate) fn compare(found: Option<&Stored>, place: &Place, source: &Source) -> At {
    match found.map(mark) {
        None => At::Nothing,
        Some(Some(mark))
            if mark.source.same_slot(source)
                && mark.position == place.position
                && mark.id == place.id =>
        {
            At::Same
        }
        Some(_) => At::Other,
    }
}
