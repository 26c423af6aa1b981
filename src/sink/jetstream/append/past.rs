//! What may be stored already when an event is to be sent: by a leader before us, or by a
//! connection of ours that broke. Behind the record it is read into a set
//! ([`crate::guard::Found`]); where there is none, it is found by a merge with the stream's tail
//! ([`Search`]), until that has come to its end. [`Memory`] decides what follows. What was delayed
//! has a mark that answers for it ([`super::super::aside::delayed`]).

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::super::aside::letters::Letters;
use super::super::client::Streams;
use super::super::error::Error;
use super::super::options::Options;
use super::super::reply::Reply;
use super::super::tail::{self, Bounds, Search, Start};
use super::Appender;
use super::epoch::Epoch;
use super::memory::{Memory, Merge};
use super::ring::{Passed, Waiting};
use crate::event::lineage::Mark;
use crate::guard::Stream;
use crate::sink::Past;

impl Appender {
    /// Says what is known of the events that come. Before the first of them.
    pub(crate) async fn remember(&mut self, epoch: &mut Epoch, past: Past) -> Result<(), Error> {
        epoch.refresh().await?;
        let last = epoch.last_sequence;
        self.memory.begin(past, last);
        self.ring.restart(last);
        self.reconcile(epoch, true).await
    }

    /// Refuses to append where another event was stored after it was decided what is lacking: what
    /// the connection of a dead outjet still held, or what three replicas had not agreed on. Once
    /// one of ours stands behind what was read, whatever expects that place is refused.
    ///
    /// ```text
    ///  stream  ──1──2──3──4──►     read up to 2; 3, an event that was lacking then
    /// ```
    pub(crate) async fn check_unread(&self, streams: &Streams) -> Result<(), Error> {
        let read_to = self.options.read_to;
        let Some(read_to) = read_to.filter(|read_to| self.ring.heard() <= *read_to) else {
            return Ok(());
        };
        let ours = self.lineage.source();
        let shared = self.options.stream.shared;
        let is_new = |mark: &Mark| {
            let known = self.ring.holds(mark.position, &mark.id);
            !known && (!shared || mark.source.same_slot(ours))
        };
        let last = streams.info.state.last_sequence;
        let found = tail::first_of(&streams.stream, (read_to + 1, last), is_new);
        match Box::pin(found).await? {
            None => Ok(()),
            Some(sequence) => Err(Error::StoredSince {
                name: self.options.stream.name.clone(),
                sequence,
            }),
        }
    }

    /// Finds out what a new connection must know; `first` of the term.
    pub(crate) async fn reconcile(&mut self, epoch: &mut Epoch, first: bool) -> Result<(), Error> {
        if !first {
            self.memory.reconnected(&self.ring, epoch.last_sequence);
        }
        if !self.memory.complete() {
            epoch.tail = Search::new(Bounds::of(&epoch.streams.info));
            let deleted = epoch.streams.info.state.deleted_count.unwrap_or(0) > 0;
            self.memory.search(deleted, &self.ring);
            return Ok(());
        }
        epoch.tail = Search::Finished;
        let memory = &mut self.memory;
        let last = epoch.last_sequence;
        let base = memory.base(first, (&self.ring, last));
        let read = Box::pin(read_all(&epoch.streams, memory, (base, last)));
        epoch.link.during(read).await?;
        if let Some(timeline) = memory.successor() {
            return Err(Error::Succeeded {
                name: self.options.stream.name.clone(),
                timeline,
            });
        }
        memory.read(first, &self.ring);
        Ok(())
    }

    /// How the waiting event was settled, if it was, wherever it belongs.
    pub(crate) async fn find(&mut self, epoch: &mut Epoch) -> Result<Option<Passed>, Error> {
        if let Some(place) = self.find_place(epoch).await? {
            if let (Stream::Main, sequence) = place {
                self.memory.settled_at(sequence);
            }
            return Ok(Some(Passed::Known(Some(place))));
        }
        let delayed = self.was_delayed(epoch).await?;
        Ok(delayed.then_some(Passed::Known(None)))
    }

    /// Where the waiting event is stored in the stream, or among the dead letters.
    async fn find_place(&mut self, epoch: &mut Epoch) -> Result<Option<(Stream, u64)>, Error> {
        let waiting = self.ring.waiting().expect("an event waits");
        let event = waiting.event;
        if self.memory.complete() {
            let place = self.memory.place_of(event);
            if place.is_some() || !self.options.stream.shared {
                return Ok(place);
            }
            let own = self.own_duplicate(epoch).await?;
            return Ok(own.map(|sequence| (Stream::Main, sequence)));
        }
        let Epoch { link, streams, .. } = epoch;
        if let Some(letters) = &mut epoch.letters
            && let Some((messages, _)) = &streams.letters
        {
            let letter = letters.place_of(messages, &self.lineage, event);
            if let Some(sequence) = link.during(Box::pin(letter)).await? {
                return Ok(Some((Stream::Letters, sequence)));
            }
        }
        let Options {
            in_flight_max,
            in_flight_bytes_max,
            ..
        } = *self.options;
        let start = |bounds| Start {
            bounds,
            first: event.position,
            events_max: in_flight_max,
            bytes_max: in_flight_bytes_max,
        };
        let stream = &streams.stream;
        let place = epoch.tail.place_of(stream, &self.lineage, start, event);
        let place = link.during(Box::pin(place)).await?;
        let (odd, cut, behind) = (epoch.tail.odd(), epoch.tail.cut(), epoch.tail.behind());
        epoch.tail.finish();
        let letters = epoch.letters.as_ref();
        let ended = epoch.tail.is_finished() && letters.is_none_or(Letters::is_searched);
        let ended = ended.then(|| {
            let letters = letters.map_or(0, Letters::last_sequence);
            (epoch.last_sequence, letters)
        });
        let merge = Merge {
            odd,
            cut,
            behind,
            ended,
        };
        self.memory.merged(merge, &self.ring);
        Ok(place.map(|sequence| (Stream::Main, sequence)))
    }

    /// Sends the waiting event, which is uncertain and alone.
    pub(crate) async fn send_uncertain(&mut self, epoch: &mut Epoch) -> Result<(), Error> {
        let waiting = self.ring.waiting().expect("an event waits");
        if let Some(sequence) = waiting.duplicate_of
            && self.was_stored_at(epoch, waiting, sequence).await?
        {
            self.memory.settled_at(sequence);
            let found = Passed::Known(None);
            self.pass(epoch, |ring| ring.settle(found));
            return Ok(());
        }
        let message = match self.compose(epoch, false) {
            Ok(message) => message,
            Err(unsendable) => {
                // It may have been sent while other settings let it.
                if waiting.event.rejected.is_none() {
                    self.ring.doubt();
                }
                return self.set_aside(epoch, unsendable);
            }
        };
        self.ring.doubt();
        let (number, expected) = self.ring.send();
        let ours = (self.options.stream.name.as_str(), self.options.ack_timeout);
        let answer = epoch.client.request(message.outgoing(), ours);
        let answer = epoch.link.during(Box::pin(answer));
        let reason = match answer.await? {
            Reply::Stored { sequence, together } => {
                match self.ring.acknowledge(number, (sequence, together)) {
                    Ok(()) => {
                        self.doubts.log(sequence);
                        return Ok(());
                    }
                    Err(mismatch) => mismatch.to_string(),
                }
            }
            Reply::Duplicate(sequence) => {
                // Nothing was stored: it waits again, and the next attempt expects the same.
                self.ring.refuse_duplicate(number, sequence);
                self.ring.restart(expected);
                return Ok(());
            }
            Reply::Refused(reason) => {
                self.ring.refuse(number);
                reason
            }
            Reply::Unclear(reason) => reason,
        };
        self.memory.refused(&self.ring);
        Err(Error::Broken(format!(
            "an event was not acknowledged as expected: {reason}"
        )))
    }

    /// Whether the server's `duplicate` proves that the waiting event was stored: its sequence
    /// number holds no message, and lies where it may have been stored and no other event was.
    /// On three replicas, servers before 2.12 call a duplicate what they have refused.
    async fn was_stored_at(
        &self,
        epoch: &mut Epoch,
        waiting: Waiting<'_>,
        sequence: u64,
    ) -> Result<bool, Error> {
        let replicas = epoch.streams.info.config.num_replicas;
        let proves = replicas == 1 || epoch.client.is_compatible(2, 12, 0);
        if !proves || !self.memory.proves(sequence, waiting.places) {
            return Ok(false);
        }
        let gone = tail::is_gone(&epoch.streams.stream, sequence);
        epoch.link.during(Box::pin(gone)).await
    }
}

/// Reads the stream and the dead letters.
async fn read_all(
    streams: &Streams,
    memory: &mut Memory,
    (base, last): (u64, u64),
) -> Result<(), Error> {
    let letters_base = memory.letters();
    let (found, settled_to) = memory.reading();
    let main = (&streams.stream, Stream::Main);
    tail::find(found, main, (base + 1, last), settled_to).await?;
    if let Some((letters, info)) = &streams.letters {
        let range = (letters_base + 1, info.state.last_sequence);
        tail::find(found, (letters, Stream::Letters), range, settled_to).await?;
    }
    Ok(())
}

/// Says that events are uncertain: at once, then now and then.
#[derive(Default)]
pub(crate) struct Doubts {
    events: u64,
    logged_at: Option<Instant>,
}

impl Doubts {
    /// A long past may hold many.
    const LOG_INTERVAL: Duration = Duration::from_secs(30);

    fn log(&mut self, sequence: u64) {
        self.events += 1;
        let due = |at: Instant| at.elapsed() >= Self::LOG_INTERVAL;
        if self.logged_at.is_none_or(due) {
            self.logged_at = Some(Instant::now());
            let events = self.events;
            warn!(
                events,
                sequence,
                "an event was sent that may have been stored before: its message vanished, or it \
                 never was"
            );
        }
    }
}
