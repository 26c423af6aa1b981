//! Sends what waits, in order, and takes the replies.

use std::borrow::Cow;

use tokio::time::Instant;

use super::super::aside::bodies::outgoing;
use super::super::client::{HEADER_BYTES_MAX, Line};
use super::super::error::Error;
use super::super::headers::{Composed, block_bytes, push, push_marks, push_number, ttl};
use super::super::names::{
    BATCH_HEADER_BYTES, EXPECTED_LAST_SEQUENCE, SOURCE, TOO_LARGE, TTL, UNFIT_SUBJECT,
};
use super::super::options::Ingress;
use super::super::reply::Reply;
use super::Appender;
use super::epoch::Epoch;
use super::ring::{Passed, Ring, Waiting};
use crate::event::route;
use crate::event::{Event, Rejected};
use crate::fault;

/// Most bytes that may be under way at once, but for one event: 1 Gbit/s over 64 ms.
const IN_FLIGHT_BYTES_MAX: usize = 8 * 1024 * 1024;

impl Appender {
    /// Sends what may be sent. `true`: there is more, but something was waited for, and what came
    /// meanwhile goes first.
    pub(crate) async fn pump(&mut self, epoch: &mut Epoch) -> Result<bool, Error> {
        while epoch.errand.is_none()
            && let Some(waiting) = self.ring.waiting()
        {
            if waiting.event.known {
                self.pass(epoch, |ring| ring.settle(Passed::Recorded));
                continue;
            }
            if !self.has_room(epoch) {
                break;
            }
            // First everything before this event is stored.
            if epoch.unsendable.is_some() && self.ring.in_flight() > 0 {
                break;
            }
            if let Some(unsendable) = epoch.unsendable.take() {
                self.set_aside(epoch, unsendable)?;
                continue;
            }
            if self.may_be_found()
                && let Some(known) = Box::pin(self.find(epoch)).await?
            {
                self.pass(epoch, |ring| ring.settle(known));
                continue;
            }
            if self.is_delayed() {
                self.delay(epoch);
                continue;
            }
            if self.memory.is_uncertain(&self.ring) && self.ring.staged() == 0 {
                if self.ring.in_flight() > 0 {
                    break;
                }
                Box::pin(self.send_uncertain(epoch)).await?;
                return Ok(true);
            }
            if let Err(unsendable) = self.send(epoch) {
                if unsendable.rejected().is_none() && self.ring.in_flight() == 0 {
                    return Err(unsendable);
                }
                epoch.unsendable = Some(unsendable);
            }
        }
        Ok(false)
    }

    /// Sends the waiting event, or stages it with those that go together; or says why it cannot be
    /// sent.
    fn send(&mut self, epoch: &mut Epoch) -> Result<(), Error> {
        let waiting = self.ring.waiting().expect("an event waits");
        let together = waiting.event.followers > 0 || self.ring.staged() > 0;
        if together {
            let message = self.compose(epoch, true)?;
            epoch.staged.push(message);
            self.pass(epoch, Ring::stage);
            return Ok(());
        }
        let mut own = std::mem::take(&mut self.lines);
        own.clear();
        self.push_own(&mut own, epoch);
        self.push_expected(&mut own);
        let event = outgoing(&epoch.bodies, waiting.event);
        let lines = event.headers.lines();
        let subject = self.entrance(event);
        let number = self.ring.next_number();
        let line = epoch.link.line(&subject, number);
        self.check(epoch, event, (line, block_bytes(lines.len() + own.len())))?;
        fault::point("judged");
        let mut draft = epoch.link.message(&subject, Some(number));
        draft.lines(lines.as_bytes());
        draft.lines(own.as_bytes());
        draft.send(&event.payload);
        self.lines = own;
        if self.ring.in_flight() == 0 {
            epoch.progress_at = Instant::now();
        }
        self.memory.send(&self.ring);
        self.ring.send();
        fault::point("published");
        Ok(())
    }

    /// The message of the waiting event, with what it expects unless it goes `together` with
    /// others.
    pub(crate) fn compose(&self, epoch: &Epoch, together: bool) -> Result<Composed, Error> {
        let waiting = self.ring.waiting().expect("an event waits");
        let event = outgoing(&epoch.bodies, waiting.event);
        let mut lines = event.headers.lines().to_owned();
        self.push_own(&mut lines, epoch);
        if !together {
            self.push_expected(&mut lines);
        }
        let subject = self.entrance(event).into_owned();
        let (batch, line) = match together {
            // Any of them may be the last one, which is answered.
            true => {
                let line = epoch.link.line(&subject, self.ring.next_number());
                (BATCH_HEADER_BYTES, line)
            }
            false => (0, epoch.client.line(&subject)),
        };
        self.check(epoch, event, (line, block_bytes(lines.len()) + batch))?;
        Ok(Composed {
            subject,
            lines,
            body: event.payload.clone(),
        })
    }

    /// Adds what the waiting event bears besides its own headers.
    fn push_own(&self, lines: &mut String, epoch: &Epoch) {
        let waiting = self.ring.waiting().expect("an event waits");
        let ends = epoch.streams.info.config.allow_message_ttl;
        push(lines, SOURCE, &self.source);
        push_marks(lines, waiting.event, waiting.duplicate_of.is_some());
        if let Some(expires) = waiting.event.expires_at
            && ends
        {
            // What has come to its end already is there for a second.
            push(lines, TTL, &ttl(expires - self.options.nats.network.now()));
        }
    }

    /// Adds the number behind which the waiting event belongs.
    fn push_expected(&self, lines: &mut String) {
        if !self.shared() {
            push_number(lines, EXPECTED_LAST_SEQUENCE, self.ring.last_sequence());
        }
    }

    /// Whether it must be asked where the waiting event is.
    fn may_be_found(&self) -> bool {
        let Waiting {
            event,
            duplicate_of,
            ..
        } = self.ring.waiting().expect("an event waits");
        !self.memory.complete()
            || self.memory.place_of(event).is_some()
            || duplicate_of.is_some()
            || event.deliver_at.is_some()
    }

    fn entrance<'a>(&self, event: &'a Event) -> Cow<'a, str> {
        let stream = &self.options.stream;
        match stream.ingress {
            Ingress::Public => Cow::Borrowed(&event.subject),
            Ingress::Private => stream.ingress.entrance(&stream.name, &event.subject).into(),
        }
    }

    /// What no server takes must not be sent: it would close the connection or never answer.
    fn check(
        &self,
        epoch: &Epoch,
        event: &Event,
        (line, headers): (Line, usize),
    ) -> Result<(), Error> {
        if let Some(rejected) = &event.rejected {
            return Err(Error::unsendable(event, (**rejected).clone()));
        }
        let stream = &epoch.streams.info;
        let subjects = &stream.config.subjects;
        if !subjects
            .iter()
            .any(|pattern| route::matches(pattern, &event.subject))
        {
            if event.replayed {
                // Its subject may have a prefix that one call of a command chose.
                let error = format!("the stream does not cover subject {:?}", event.subject);
                let reason = "uncovered";
                return Err(Error::unsendable(event, Rejected { reason, error }));
            }
            return Err(Error::Uncovered {
                name: self.options.stream.name.clone(),
                subjects: subjects.join(", "),
                subject: event.subject.clone(),
            });
        }
        if !line.fits() {
            let error = format!("its subject is too long: {line}");
            let reason = UNFIT_SUBJECT;
            return Err(Error::unsendable(event, Rejected { reason, error }));
        }
        let (bytes, max) = (
            headers + event.payload.len(),
            epoch.link.message_bytes_max(stream),
        );
        let error = if headers > HEADER_BYTES_MAX {
            format!("{headers} bytes of headers, a server takes {HEADER_BYTES_MAX}")
        } else if bytes > max {
            format!("{bytes} bytes with headers, the server takes {max} (max_payload)")
        } else {
            return Ok(());
        };
        let reason = TOO_LARGE;
        Err(Error::unsendable(event, Rejected { reason, error }))
    }

    /// Whether the waiting event may go out, and those that go with it: all of them or none.
    fn has_room(&self, epoch: &Epoch) -> bool {
        let (in_flight, staged) = (self.ring.in_flight(), self.ring.staged());
        if staged > 0 {
            return true;
        }
        if self.hold.wants_look() {
            return false;
        }
        if in_flight == 0 {
            return true;
        }
        let Some(waiting) = self.ring.waiting() else {
            return true;
        };
        let followers = waiting.event.followers;
        let room = if self.memory.is_careful(&self.ring) {
            1
        } else {
            self.options.in_flight_max
        };
        let full = self.ring.in_flight_bytes() >= IN_FLIGHT_BYTES_MAX || epoch.link.is_full();
        in_flight + usize::from(followers) < room && !full
    }

    /// Passes the waiting event; if it was the last of those that go together, they go.
    pub(crate) fn pass(&mut self, epoch: &mut Epoch, how: impl FnOnce(&mut Ring)) {
        let number = self.ring.next_number();
        how(&mut self.ring);
        if self.ring.staged() > 0 && self.ring.has_passed_last(number) {
            self.send_staged(epoch);
        }
    }

    /// Takes all replies that have come, even if one of them ends the epoch: each says what became
    /// of an event.
    pub(crate) fn take_replies(&mut self, epoch: &mut Epoch) -> Result<(), Error> {
        let Epoch {
            link,
            client,
            progress_at,
            ..
        } = epoch;
        let mut taken = Ok(());
        while let Some(reply) = link.next_reply() {
            fault::point("answered");
            let (number, answer) = (reply.number, (reply.headers, reply.body));
            let Some(reply) = client.read(answer, &self.options.stream.name) else {
                continue;
            };
            match self.take_reply(number, reply) {
                Ok(true) => *progress_at = Instant::now(),
                Ok(false) => {}
                Err(error) => taken = taken.and(Err(error)),
            }
        }
        taken
    }

    /// `true`: it settles events.
    fn take_reply(&mut self, number: u64, reply: Reply) -> Result<bool, Error> {
        // Where it is only a copy that came late, nobody is to be found out.
        let copy = self.shared() && matches!(reply, Reply::Duplicate(_));
        let reason = match reply {
            Reply::Stored { sequence, together } => {
                match self.ring.acknowledge(number, (sequence, together)) {
                    Ok(()) => return Ok(true),
                    Err(mismatch) => mismatch.to_string(),
                }
            }
            Reply::Duplicate(0) if self.shared() => {
                // 2.10: it is under way already, nobody knows where to.
                self.ring.refuse(number);
                "the server calls it a duplicate".to_owned()
            }
            Reply::Duplicate(sequence) => {
                // Whether it really stands there, the guard finds out.
                self.ring.refuse_duplicate(number, sequence);
                "the server calls it a duplicate".to_owned()
            }
            Reply::Refused(reason) => match self.ring.refuse(number) {
                true => reason,
                // Ours has stored it; so this is another stream's.
                false => return Ok(false),
            },
            Reply::Unclear(reason) => reason,
        };
        if !copy {
            self.memory.refused(&self.ring);
        }
        Err(Error::Broken(format!(
            "an event was not acknowledged as expected: {reason}"
        )))
    }
}
