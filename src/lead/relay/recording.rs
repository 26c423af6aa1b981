//! The record is written before what it says is confirmed: when, and how long nothing may be
//! confirmed because it is not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Error, Relay};
use crate::fault;
use crate::lead::record::{Superseded, Urgency};
use crate::lead::window::Confirmed;
use crate::lsn::Lsn;
use crate::sink::{Order, Written};

impl Relay {
    /// How often it is written while only the server's log moves: nobody waits for it then, unless
    /// commits do.
    const IDLE_PAUSE: Duration = Duration::from_secs(1);

    /// What the next status update may carry.
    pub(super) fn confirmable(&self) -> Confirmed {
        match self.watermark.pending() {
            true => self.window.confirmed_within(Lsn::ZERO),
            false => self.keeper.confirmed(&self.window),
        }
    }

    /// Writes the record if it is time for it. What is held back is recorded like all that is
    /// stored: when it is confirmed, the record has been there as long as the events, and a broker
    /// that forgets one has forgotten the other.
    pub(super) fn keep_record(&mut self) {
        let now = Instant::now();
        let pause = match self.urgency() {
            _ if self.watermark.pending() => None,
            Urgency::None => None,
            Urgency::Idle | Urgency::Soon if self.stop_at.is_some() => Some(Duration::ZERO),
            Urgency::Idle if !self.hurried() => Some(Self::IDLE_PAUSE),
            Urgency::Idle | Urgency::Soon => Some(Self::STATUS_PAUSE),
        };
        let due = pause.map(|pause| self.written_at + pause);
        if due.is_none_or(|due| due > now) {
            self.write_due = due.or(self.keeper.not_before());
            return;
        }
        self.written_at = now;
        self.write_due = None;
        fault::point("record_written");
        let write = self.keeper.write(self.window.stored(), self.handed_over);
        self.sink.order(Order::Keep(write));
    }

    /// What became of a write.
    pub(super) fn take_written(&mut self, written: Written) -> Result<(), Error> {
        let written = self.keeper.written(written);
        written.map_err(|Superseded { term }| Error::Superseded(term))?;
        self.vitals.recorded(self.keeper.shown());
        Ok(())
    }

    /// Whether nothing is left to be recorded, or nothing can be.
    pub(super) fn is_recorded(&self) -> bool {
        let settled = self.window.stored();
        self.watermark.pending() || self.down.is_some() || self.keeper.is_current(settled)
    }

    /// Until when the record must be written, or the term ends.
    pub(super) fn unwritten_until(&self) -> Option<Instant> {
        let since = self.keeper.unwritten_since()?;
        Some(since + self.options.record_timeout)
    }

    /// Ends the stint if nothing can be recorded.
    pub(super) fn check_record(&self) -> Result<(), Error> {
        match self.unwritten_until() {
            Some(until) if until <= Instant::now() => {
                Err(Error::Unrecorded(self.options.record_timeout))
            }
            _ => Ok(()),
        }
    }

    fn urgency(&self) -> Urgency {
        self.keeper.urgency(self.window.stored())
    }

    /// Whether somebody waits for what is confirmed: a server that asks, or commits.
    fn hurried(&self) -> bool {
        self.asked.is_some() || self.questioned || self.synchronous.load(Ordering::Relaxed)
    }
}
