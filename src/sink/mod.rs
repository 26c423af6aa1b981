//! Where events go. A sink knows no LSN, no Postgres and no window: it takes events in commit order
//! and says, in the same order, how many of them are stored.
//!
//! The contract: events arrive through a bounded channel and keep their order. A sink reports an
//! event as settled once it is stored where it belongs, exactly once, and everything before it is
//! settled, too. Trouble that may pass is the sink's to survive; it says so and keeps every event
//! that it has not settled. What a person must mend ends it with a [`Failure`].
//!
//! Both channels are bounded, and a sink that waits for room to report takes no events meanwhile.
//! So nobody may wait for room for events without taking reports: each would wait for the other.
//! Nobody has to, because the channel has a place for every event that may be with the sink
//! ([`running`]).

pub mod jetstream;
pub mod running;

use bytes::Bytes;

use crate::error::{Failure, Problem};
use crate::event::lineage::Place;
use crate::event::{Event, Position};

/// Most portions that are held back at once.
pub const HELD_MAX: usize = 256;

/// Most events that a leader may have handed over and not recorded: what it may have stored lies
/// among so many behind the record.
pub const UNRECORDED_MAX: u64 = 16_384;

/// What a sink is told, in order.
#[derive(Debug)]
pub enum Order {
    /// The next events.
    Append(Vec<Event>),
    /// Bytes to be kept. One write at a time.
    Keep(Write),
}

/// A compare-and-set of bytes that only their writer understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The revision of what they replace; 0: nothing.
    pub expected: u64,
    /// What is to be kept.
    pub bytes: Bytes,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Kept, as this revision.
    Stored(u64),
    /// Refused, or nobody has heard: this is there.
    Found(Option<Kept>),
    /// Nobody takes it, and why.
    Refused(String),
}

/// Bytes that are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which write it was.
    pub revision: u64,
    /// Empty: deleted.
    pub bytes: Bytes,
}

/// What is found where a message of ours was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum At {
    /// That message.
    Same,
    /// None, or none was looked for.
    #[default]
    Nothing,
    /// Another message.
    Other,
}

/// What is known of the events that a sink is about to get.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    /// An event here or behind was never handed to a sink before.
    pub new_from: Position,
    /// What was settled up to here is marked [`Event::known`]; `None`: nothing is known.
    pub settled_to: Option<Position>,
    /// What was stored and lies beyond stands behind this sequence number.
    pub stored: u64,
    /// Where the newest of what was settled is stored, or 0: no less than that number.
    pub newest: u64,
    /// The same of the dead letters.
    pub letters: u64,
}

impl Past {
    /// None of the events that come were handed to a sink before.
    pub const NONE: Self = Self {
        new_from: Position {
            commit: 0,
            index: 0,
        },
        settled_to: None,
        stored: 0,
        newest: 0,
        letters: 0,
    };
}

/// The oldest events that were not settled are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Stored just now.
    pub stored: usize,
    /// Of these, so many may have been stored before.
    pub uncertain: usize,
    /// The record knew them.
    pub recorded: usize,
    /// Found stored already.
    pub known: usize,
    /// Stored just now among the dead letters, because they cannot be published.
    pub dead_lettered: usize,
    /// Their schedules were stored just now: the server publishes them when they are due.
    pub delayed_events: usize,
    /// The newest of them.
    pub to: Option<(Position, String)>,
    /// The newest of their messages in the stream.
    pub stored_at: Option<Place>,
    /// No event beyond `to` is stored at this sequence number or before it; 0: as before.
    pub base: u64,
    /// The same of the dead letters, or 0: it is a message of theirs.
    pub letters: u64,
    /// The last sequence number of what is delayed that one of them has, or 0.
    pub delayed: u64,
}

impl Settled {
    /// How many.
    pub fn events(&self) -> usize {
        self.stored + self.recorded + self.known + self.dead_lettered + self.delayed_events
    }
}

/// What a sink says, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Events were settled.
    Settled(Settled),
    /// What became of a write.
    Written(Written),
    /// What was settled since the last portion, and before this report, is a portion that is held
    /// back. Only of a sink that holds, and at most [`HELD_MAX`] times more often than `Released`.
    Held,
    /// The oldest portion has been where it belongs for long enough, and is still there.
    Released,
    /// Released events are gone from the stream: about as many as this, and what is to be done.
    Gap(u64, Problem),
    /// Nothing gets through; it is being tried again.
    Down(Failure),
    /// It gets through again.
    Up,
}
