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
//! The relay never waits for room, because its channel has a place for every event of the window.

pub mod jetstream;

use crate::error::{Failure, Problem};

/// Most portions that are held back at once.
pub const HELD_MAX: usize = 256;

/// What a sink says, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The oldest events that were not settled are now.
    Settled {
        /// Stored just now.
        stored: usize,
        /// Found stored already.
        known: usize,
        /// Stored just now among the dead letters, because they cannot be published.
        dead_lettered: usize,
        /// Their schedules were stored just now: the server publishes them when they are due.
        delayed: usize,
    },
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
