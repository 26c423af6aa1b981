//! What is done with an event that does not simply go out: its body goes into the bucket, it is
//! kept until it is due, or it is a dead letter. Each is an errand, on which the event waits:
//! nothing behind it is sent, and whatever the server says meanwhile is heard. Bodies and letters
//! wait for what comes before them to be stored.

use std::sync::Arc;

use super::super::aside::bodies::{Bodies, outgoing};
use super::super::aside::delayed::{self, Delayed, Scheduled};
use super::super::aside::letters::{self, Letter};
use super::super::error::Error;
use super::super::names::TOO_LARGE;
use super::Appender;
use super::epoch::{Back, Epoch};
use super::ring::{Passed, Waiting};
use crate::event::Rejected;
use crate::fault;

impl Appender {
    /// The waiting event cannot be sent as it is: without its body, or it is a dead letter.
    pub(crate) fn set_aside(&self, epoch: &mut Epoch, unsendable: Error) -> Result<(), Error> {
        let Waiting { event, .. } = self.ring.waiting().expect("an event waits");
        let too_large = |error: &Error| error.rejected().is_some_and(|r| r.reason == TOO_LARGE);
        let helps = |bodies: &mut Bodies| too_large(&unsendable) && bodies.helps(event);
        let Some(mut bodies) = epoch.bodies.take_if(helps) else {
            return self.bury(epoch, unsendable);
        };
        let (client, event) = (epoch.client.clone(), event.clone());
        let (now, within) = (self.options.nats.network.now(), self.options.ack_timeout);
        epoch.errand = Some(Box::pin(async move {
            let stored = bodies.store(&client, (&event, now), within).await;
            Back::Detached(Box::new(bodies), stored, unsendable)
        }));
        Ok(())
    }

    /// Appends the waiting event to the dead letters, if there are any for it.
    fn bury(&self, epoch: &mut Epoch, unsendable: Error) -> Result<(), Error> {
        let Waiting { event, .. } = self.ring.waiting().expect("an event waits");
        let buried = |rejected: &&Rejected| self.options.buries.takes(rejected);
        let rejected = unsendable.rejected().filter(buried);
        let (Some(rejected), Some(letters)) = (rejected, &epoch.letters) else {
            return Err(unsendable);
        };
        let source = &self.source;
        let letter = Letter {
            event,
            rejected,
            source,
        };
        let message = letters.compose(&letter, (&epoch.client, &self.options.stream))?;
        let (client, rejected) = (epoch.client.clone(), rejected.clone());
        let (name, last) = (letters.name().to_owned(), letters.last_sequence());
        let within = self.options.ack_timeout;
        epoch.errand = Some(Box::pin(async move {
            let appended = letters::append(&client, &message, (&name, last), within).await;
            Back::Buried(appended, rejected)
        }));
        Ok(())
    }

    /// Whether the server is to keep the waiting event until it is due.
    pub(crate) fn is_delayed(&self) -> bool {
        let Waiting { event, .. } = self.ring.waiting().expect("an event waits");
        let due = event.deliver_at.is_some() && event.rejected.is_none();
        due && self.options.delayed.is_some()
    }

    /// Whether the schedule of the waiting event was stored before, and it is not to be kept now:
    /// `publish.delayed` has changed. Otherwise the server finds out ([`Delayed::store`]). Without
    /// the right to look it was not.
    pub(crate) async fn was_delayed(&self, epoch: &mut Epoch) -> Result<bool, Error> {
        let Waiting { event, .. } = self.ring.waiting().expect("an event waits");
        let may_be = event.deliver_at.is_some() && self.memory.is_past(&self.ring);
        if !may_be || self.is_delayed() || self.schedules_denied {
            return Ok(false);
        }
        let asked = (event, self.source.as_str());
        let looked = delayed::is_marked(&epoch.client, &self.options.stream, asked);
        epoch.link.during(Box::pin(looked)).await
    }

    /// Has the server keep the waiting event.
    pub(crate) fn delay(&self, epoch: &mut Epoch) {
        let Waiting { event, .. } = self.ring.waiting().expect("an event waits");
        let sent = outgoing(&epoch.bodies, event).clone();
        let (client, delayed) = (epoch.client.clone(), epoch.delayed.take());
        let (options, source) = (Arc::clone(&self.options), self.source.clone());
        epoch.errand = Some(Box::pin(async move {
            let stream = options.delayed.as_ref().expect("events are delayed");
            let opened = match delayed {
                Some(open) => Ok(open),
                None => Delayed::open(&client, stream).await,
            };
            let mut delayed = match opened {
                Ok(open) => open,
                Err(error) => return Back::Delayed(None, Err(delayed::refused(&sent, error))),
            };
            let stored = delayed.store(&client, (&sent, &source), &options).await;
            let passed = stored.map(|scheduled| match scheduled {
                Scheduled::Now(sequence) => Passed::Delayed(sequence),
                Scheduled::Before => Passed::Known(None),
            });
            Back::Delayed(Some(delayed), passed)
        }));
    }

    /// An errand has come to its end.
    pub(crate) fn take_back(&mut self, epoch: &mut Epoch, back: Back) -> Result<(), Error> {
        match back {
            Back::Detached(bodies, stored, unsendable) => {
                epoch.bodies = Some(*bodies);
                match stored? {
                    true => Ok(()),
                    false => self.bury(epoch, unsendable),
                }
            }
            Back::Buried(appended, rejected) => {
                appended?;
                let letters = epoch.letters.as_mut().expect("there are dead letters");
                letters.appended();
                let letter = Passed::DeadLettered(letters.last_sequence());
                fault::point("letter_stored");
                let Waiting { event, .. } = self.ring.waiting().expect("an event waits");
                self.buried.log(event, &rejected);
                self.pass(epoch, |ring| ring.settle(letter));
                Ok(())
            }
            Back::Delayed(delayed, passed) => {
                epoch.delayed = delayed;
                match passed {
                    Ok(how) => {
                        fault::point("schedule_stored");
                        self.pass(epoch, |ring| ring.settle(how));
                        Ok(())
                    }
                    Err(error) if error.rejected().is_none() => Err(error),
                    Err(unsendable) => {
                        epoch.unsendable = Some(unsendable);
                        Ok(())
                    }
                }
            }
        }
    }
}
