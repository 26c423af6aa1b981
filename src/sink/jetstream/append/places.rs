//! Where the events that are sent will stand in the stream, as far as that is known before their
//! replies come. Pure.
//!
//! Of a stream with one writer it is known exactly: each event right behind its predecessor. Among
//! other writers it is known that an event cannot stand before what was seen before it was sent.

/// The places that events get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    shared: bool,
    /// Of one writer: the last sequence of the stream once all that was sent is stored. Among
    /// others: the highest that was seen.
    last_sequence: u64,
}

impl Places {
    /// In a stream that others may write, too, or not.
    pub(crate) fn new(shared: bool) -> Self {
        let last_sequence = 0;
        Self {
            shared,
            last_sequence,
        }
    }

    /// The stream is found to end here.
    pub(crate) fn begin(&mut self, last_sequence: u64) {
        self.last_sequence = match self.shared {
            true => self.last_sequence.max(last_sequence),
            false => last_sequence,
        };
    }

    /// The place before those that so many events get, which are sent now.
    pub(crate) fn take(&mut self, events: u64) -> u64 {
        let before = self.last_sequence;
        if !self.shared {
            self.last_sequence += events;
        }
        before
    }

    /// Whether an event that was to have one place, or that place at the least, may have been
    /// stored at another.
    pub(crate) fn fits(&self, place: u64, stored: u64) -> bool {
        if self.shared {
            stored >= place
        } else {
            stored == place
        }
    }

    /// An event was stored.
    pub(crate) fn stored(&mut self, sequence: u64) {
        self.last_sequence = self.last_sequence.max(sequence);
    }

    /// Takes down a place whose answer was never heard: each that it may be, or the lowest.
    pub(crate) fn keep(&self, places: &mut Vec<u64>, place: u64) {
        let enough = self.shared && !places.is_empty();
        if !enough && !places.contains(&place) {
            places.push(place);
        }
    }

    /// What the next event stands behind.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.last_sequence
    }
}
