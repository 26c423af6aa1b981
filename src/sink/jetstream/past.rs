//! What may be stored already when an event is to be sent: by a leader before us, or by a connection
//! of ours that broke. Behind the record it is found in a set ([`Found`]); where there is none, by
//! a merge with the stream's tail ([`super::tail::Search`]), until that has come to its end.
//!
//! A sequence number without a message proves nothing. Where there is one, an event that is not
//! found and that somebody may have sent before is *uncertain*: it goes out alone, with its id. The
//! server's answer `duplicate` settles it only if it names such a number that settled no other
//! event; otherwise the event is stored, perhaps for the second time: twice rather than lost.
//!
//! A dead connection that still delivers follows the plan of its time. Where that may not be ours,
//! because the stream holds anything but our events in order, one event is in flight at a time: or
//! the old connection could take the place of one of ours, and the next of ours be stored twice.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::chain::Passed;
use super::client::Connection;
use super::error::Error;
use super::letters::Letters;
use super::messages::Messages;
use super::options::Options;
use super::reply::Reply;
use super::tail::{self, Bounds, Search, Start};
use super::{JetStream, epoch_mut};
use crate::event::lineage::Lineage;
use crate::event::{Event, Position};
use crate::guard::{Found, Stream};
use crate::sink::{Past, Settled, UNRECORDED_MAX};

/// What is known of the past of a term.
pub(super) struct Memory {
    past: Past,
    found: Found,
    /// Nothing but `found` has to be asked; before, the tail of the stream is merged.
    complete: bool,
    /// What lies beyond `settled_to` is stored behind these sequence numbers.
    base: u64,
    letters: u64,
    delayed: u64,
    settled_to: Option<Position>,
    /// A sequence number holds no message, and an event of ours may have stood there.
    vacant: bool,
    /// `base` stays until this is settled: what comes before may stand at a vacant number.
    vacant_until: Option<Position>,
    /// Vacant numbers that have settled an event.
    used: HashSet<u64>,
    /// Below this number, events in the ring may have been found by the merge.
    merged_until: u64,
    /// From this number on, an event was not handed to a sink before.
    past_until: u64,
    /// The past may hold events that follow another plan.
    odd: bool,
    doubts: Doubts,
}

impl Memory {
    pub(super) fn new(lineage: &Lineage) -> Self {
        Self {
            past: Past::NONE,
            found: Found::new(lineage.clone()),
            complete: false,
            base: 0,
            letters: 0,
            delayed: 0,
            settled_to: None,
            vacant: false,
            vacant_until: None,
            used: HashSet::new(),
            merged_until: 0,
            past_until: u64::MAX,
            odd: false,
            doubts: Doubts::default(),
        }
    }

    /// Whether the merge is over, or was never needed.
    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    /// Event number `number` was handed over.
    pub(super) fn handed_over(&mut self, number: u64, event: &Event) {
        if self.past.settled_to.is_some() && !event.known && self.past_until == u64::MAX {
            self.past_until = number + UNRECORDED_MAX;
        }
    }

    fn is_past(&self, number: u64, position: Position) -> bool {
        position < self.past.new_from && number < self.past_until
    }
}

impl JetStream {
    /// Says what is known of the events that come. Before the first of them.
    pub(super) async fn remember(&mut self, past: Past) -> Result<(), Error> {
        self.memory.past = past;
        self.memory.settled_to = past.settled_to;
        self.memory.complete = past.settled_to.is_some();
        self.memory.base = past.stored;
        self.memory.letters = past.letters;
        self.memory.delayed = past.delayed;
        let epoch = epoch_mut(&mut self.epoch);
        epoch.refresh().await?;
        let last = epoch.last_sequence;
        self.chain.restart(last);
        self.reconcile(true).await
    }

    /// Finds out what a new connection must know; `first` of the term.
    pub(super) async fn reconcile(&mut self, first: bool) -> Result<(), Error> {
        let shared = self.shared();
        let epoch = epoch_mut(&mut self.epoch);
        let connection = &epoch.connection;
        let bounds = Bounds {
            first: 0,
            last: epoch.last_sequence,
        };
        if !self.memory.complete {
            epoch.tail = Search::new(Bounds::of(&connection.info));
            let deleted = connection.info.state.deleted_count.unwrap_or(0) > 0;
            self.memory.vacant |= deleted && !shared;
            return Ok(());
        }
        epoch.tail = Search::Finished;
        let memory = &mut self.memory;
        // Whatever others have stored there: what was never sent is not there.
        let base = match shared && !first {
            true => self
                .chain
                .floor()
                .map_or(bounds.last, |floor| floor.min(bounds.last)),
            false => memory.base,
        };
        // Some may have been stored before publish.delayed was changed.
        let delays = self.options.delayed.is_some() || memory.delayed > 0;
        let delayed = delays.then(|| self.options.stream.delayed().name);
        let range = (base, bounds.last);
        let read = Box::pin(read_all(connection, memory, range, delayed.as_deref()));
        connection.unless_broken(read).await?;
        if shared {
            return Ok(());
        }
        if memory.found.vacant() {
            memory.vacant = true;
            let sent = self.chain.newest();
            let until = if first {
                Some(memory.past.new_from)
            } else {
                sent
            };
            memory.vacant_until = memory.vacant_until.max(until);
        }
        if memory.found.odd() {
            memory.odd |= first;
            self.careful_until = self.careful_until.max(self.chain.next_number());
        }
        Ok(())
    }

    /// Where the waiting event is stored, wherever it belongs.
    pub(super) async fn find(&mut self) -> Result<Option<(Stream, u64)>, Error> {
        let waiting = self.chain.waiting().expect("an event waits");
        let event = waiting.event;
        if self.memory.complete {
            let place = self.memory.found.place_of(event.position, &event.id);
            if place.is_some() || !self.options.stream.shared {
                return Ok(place);
            }
            let own = self.own_duplicate().await?;
            return Ok(own.map(|sequence| (Stream::Main, sequence)));
        }
        let epoch = epoch_mut(&mut self.epoch);
        if let Some(letters) = &mut epoch.letters {
            let letter = letters.place_of(&epoch.connection, &self.lineage, event);
            if let Some(sequence) = letter.await? {
                return Ok(Some((Stream::Letters, sequence)));
            }
        }
        let Options {
            in_flight_max,
            in_flight_bytes_max,
            ..
        } = self.options;
        let start = |bounds| Start {
            bounds,
            first: event.position,
            events_max: in_flight_max,
            bytes_max: in_flight_bytes_max,
        };
        let stream = &epoch.connection.stream;
        let place = epoch.tail.place_of(stream, &self.lineage, start, event);
        let place = epoch.connection.unless_broken(Box::pin(place)).await?;
        if !self.options.stream.shared {
            self.memory.odd |= epoch.tail.odd();
            self.memory.vacant |= epoch.tail.cut();
        }
        self.memory.merged_until = self.chain.next_number() + 1;
        epoch.tail.finish();
        let letters = epoch.letters.as_ref();
        if epoch.tail.is_finished() && letters.is_none_or(Letters::is_searched) {
            self.memory.complete = true;
            self.memory.base = epoch.last_sequence;
            self.memory.letters = letters.map_or(0, Letters::last_sequence);
        }
        Ok(place.map(|sequence| (Stream::Main, sequence)))
    }

    /// Whether the waiting event, which was not found, may have been stored all the same.
    pub(super) fn is_uncertain(&self) -> bool {
        let waiting = self.chain.waiting().expect("an event waits");
        let past = self
            .memory
            .is_past(self.chain.next_number(), waiting.event.position);
        self.memory.vacant && (past || !waiting.places.is_empty())
    }

    /// Whether an old connection may follow another plan for the waiting event.
    pub(super) fn is_odd(&self) -> bool {
        let waiting = self.chain.waiting().expect("an event waits");
        let number = self.chain.next_number();
        self.memory.odd && self.memory.is_past(number, waiting.event.position)
    }

    /// Sends the waiting event, which is uncertain and alone.
    pub(super) async fn send_uncertain(&mut self) -> Result<(), Error> {
        let waiting = self.chain.waiting().expect("an event waits");
        if let Some(sequence) = waiting.duplicate_of
            && self.was_stored_at(sequence).await?
        {
            self.memory.used.insert(sequence);
            return self.pass(|chain| chain.settle(Passed::Known(None))).await;
        }
        let (subject, headers, payload) = match self.compose(false) {
            Ok(message) => message,
            Err(unsendable) => return self.set_aside(unsendable).await,
        };
        self.chain.doubt();
        let (number, expected) = self.chain.send();
        let epoch = epoch_mut(&mut self.epoch);
        let request = (subject, headers, payload);
        let ours = (self.options.stream.name.as_str(), self.options.ack_timeout);
        let answer = Box::pin(epoch.connection.request(request, ours));
        let reason = match answer.await? {
            Reply::Stored { sequence, together } => {
                match self.chain.acknowledge(number, (sequence, together)) {
                    Ok(()) => {
                        self.memory.doubts.log(sequence);
                        return Ok(());
                    }
                    Err(mismatch) => mismatch.to_string(),
                }
            }
            Reply::Duplicate(sequence) => {
                // Nothing was stored: it waits again, and the next attempt expects the same.
                self.chain.refuse_duplicate(number, sequence);
                self.chain.restart(expected);
                return Ok(());
            }
            Reply::Refused(reason) => {
                self.chain.refuse(number);
                reason
            }
            Reply::Unclear(reason) => reason,
        };
        self.careful_until = self.chain.next_number();
        Err(Error::Broken(format!(
            "an event was not acknowledged as expected: {reason}"
        )))
    }

    /// Whether the server's `duplicate` proves that the waiting event was stored: its sequence
    /// number holds no message, lies where it may have been stored, and settled no other event.
    /// On three replicas, servers before 2.12 call a duplicate what they have refused.
    async fn was_stored_at(&self, sequence: u64) -> Result<bool, Error> {
        let connection = &self.epoch.as_ref().expect("an epoch runs").connection;
        let proves = connection.info.config.num_replicas == 1 || connection.is_compatible(2, 12, 0);
        if !proves || sequence <= self.memory.base || self.memory.used.contains(&sequence) {
            return Ok(false);
        }
        let gone = tail::is_gone(&connection.stream, sequence);
        connection.unless_broken(Box::pin(gone)).await
    }

    /// Takes note of what was settled, and of how far nothing has to be looked for any more.
    pub(super) fn recall(&mut self, settled: &mut Settled) {
        let Some((to, _)) = settled.to else {
            return;
        };
        let memory = &mut self.memory;
        memory.settled_to = Some(to);
        memory.found.forget(to);
        memory.vacant_until = memory.vacant_until.filter(|until| to < *until);
        let left = |stream| !memory.complete || memory.found.left_in(stream);
        if left(Stream::Letters) {
            settled.letters = 0;
        }
        if left(Stream::Delayed) {
            settled.delayed = 0;
        }
        memory.letters = memory.letters.max(settled.letters);
        memory.delayed = memory.delayed.max(settled.delayed);
        let Some(place) = &settled.stored_at else {
            return;
        };
        // Out of order only after a refusal, on a new connection, and where it was found by a merge.
        let odd_until = self.careful_until.max(memory.merged_until);
        let in_order = self.chain.head() >= odd_until && !self.options.stream.shared;
        let base = memory.base.max(place.sequence);
        let alone = in_order
            || self
                .chain
                .lowest_beyond()
                .is_none_or(|lowest| lowest > base);
        if !left(Stream::Main) && memory.vacant_until.is_none() && alone {
            memory.base = base;
            settled.base = base;
        }
    }
}

/// Reads the stream, the dead letters and what is delayed.
async fn read_all(
    connection: &Connection,
    memory: &mut Memory,
    (base, last): (u64, u64),
    delayed: Option<&str>,
) -> Result<(), Error> {
    let Memory {
        found, settled_to, ..
    } = memory;
    let main = (&connection.stream, Stream::Main);
    tail::find(found, main, (base + 1, last), *settled_to).await?;
    if let Some((letters, info)) = &connection.letters {
        let range = (memory.letters + 1, info.state.last_sequence);
        tail::find(found, (letters, Stream::Letters), range, *settled_to).await?;
    }
    if let Some(name) = delayed {
        let delayed = Messages::new(connection.context.clone(), name);
        let range = (memory.delayed + 1, delayed.last_sequence().await?);
        tail::find(found, (&delayed, Stream::Delayed), range, *settled_to).await?;
    }
    Ok(())
}

/// Says that events are uncertain: at once, then now and then.
#[derive(Default)]
struct Doubts {
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
