//! What is done with an event that does not simply go out: its body goes into the bucket, it is
//! kept until it is due, or it is a dead letter. Each in its turn: what was before it is stored.

use super::super::aside::bodies::outgoing;
use super::super::aside::delayed::{self, Delayed, Scheduled};
use super::super::aside::letters::Letter;
use super::super::error::Error;
use super::super::names::TOO_LARGE;
use super::Appender;
use super::chain::{Passed, Waiting};
use super::epoch::Epoch;
use crate::fault;

impl Appender {
    /// The waiting event cannot be sent as it is: without its body, or it is a dead letter.
    pub(crate) async fn set_aside(
        &mut self,
        epoch: &mut Epoch,
        unsendable: Error,
    ) -> Result<(), Error> {
        match Box::pin(self.detach(epoch, &unsendable)).await? {
            true => Ok(()),
            false => self.bury(epoch, unsendable).await,
        }
    }

    /// Puts the body of the waiting event into the bucket, if that is what it takes to send it.
    async fn detach(&self, epoch: &mut Epoch, unsendable: &Error) -> Result<bool, Error> {
        let Waiting { event, .. } = self.chain.waiting().expect("an event waits");
        let too_large = |error: &Error| error.rejected().is_some_and(|r| r.reason == TOO_LARGE);
        let Some(bodies) = epoch.bodies.as_mut().filter(|_| too_large(unsendable)) else {
            return Ok(false);
        };
        if !bodies.helps(event) {
            return Ok(false);
        }
        let stored = bodies.store(&epoch.connection, event, self.options.ack_timeout);
        Box::pin(stored).await
    }

    /// Appends the waiting event to the dead letters, if there are any for it.
    async fn bury(&mut self, epoch: &mut Epoch, unsendable: Error) -> Result<(), Error> {
        let Waiting { event, .. } = self.chain.waiting().expect("an event waits");
        let (Some(rejected), Some(letters)) = (unsendable.rejected(), &mut epoch.letters) else {
            return Err(unsendable);
        };
        if !self.options.buries.takes(rejected) {
            return Err(unsendable);
        }
        let source = &self.source;
        let letter = Letter {
            event,
            rejected,
            source,
        };
        let appended = letters.append(&epoch.connection, &letter, &self.options);
        Box::pin(appended).await?;
        fault::point("letter_stored");
        self.buried.log(event, rejected);
        let letter = Passed::DeadLettered(letters.last_sequence());
        self.pass(epoch, |chain| chain.settle(letter)).await
    }

    /// Whether the server is to keep the waiting event until it is due.
    pub(crate) fn is_delayed(&self) -> bool {
        let Waiting { event, .. } = self.chain.waiting().expect("an event waits");
        let due = event.deliver_at.is_some() && event.rejected.is_none();
        due && self.options.delayed.is_some()
    }

    /// Whether the schedule of the waiting event was stored before, and it is not to be kept now:
    /// `publish.delayed` has changed. Otherwise the server finds out ([`Delayed::store`]). Without
    /// the right to look it was not.
    pub(crate) async fn was_delayed(&self, epoch: &Epoch) -> Result<bool, Error> {
        let Waiting { event, .. } = self.chain.waiting().expect("an event waits");
        let may_be = event.deliver_at.is_some() && self.memory.is_past(&self.chain);
        if !may_be || self.is_delayed() || self.schedules_denied {
            return Ok(false);
        }
        let connection = &epoch.connection;
        let looked = delayed::is_marked(connection, &self.options.stream, (event, &self.source));
        connection.unless_broken(Box::pin(looked)).await
    }

    /// Has the server keep the waiting event, and says how it was settled.
    pub(crate) async fn delay(&self, epoch: &mut Epoch) -> Result<Passed, Error> {
        let Waiting { event, .. } = self.chain.waiting().expect("an event waits");
        let options = &self.options;
        let stream = options.delayed.as_ref().expect("events are delayed");
        let delayed = match &mut epoch.delayed {
            Some(open) => open,
            None => {
                let opened = Delayed::open(&epoch.connection, stream).await;
                let opened = opened.map_err(|error| delayed::refused(event, error))?;
                epoch.delayed.insert(opened)
            }
        };
        let event = outgoing(&epoch.bodies, event);
        let store = delayed.store(&epoch.connection, (event, &self.source), options);
        let stored = Box::pin(store).await?;
        fault::point("schedule_stored");
        Ok(match stored {
            Scheduled::Now(sequence) => Passed::Delayed(sequence),
            Scheduled::Before => Passed::Known(None),
        })
    }
}
