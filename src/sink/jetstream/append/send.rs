//! Sends what waits, in order, and takes the replies.

use async_nats::{HeaderMap, HeaderValue, Message};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::aside::bodies::outgoing;
use super::super::client::HEADER_BYTES_MAX;
use super::super::error::Error;
use super::super::headers::{headers, wire_len};
use super::super::names::{
    BATCH_COMMIT, BATCH_HEADER_BYTES, BATCH_ID, BATCH_SEQUENCE, EXPECTED_LAST_SEQUENCE, TOO_LARGE,
};
use super::super::reply::Reply;
use super::Appender;
use super::chain::{Chain, Passed};
use super::epoch::Epoch;
use super::record;
use crate::event::route;
use crate::event::{Event, Rejected};
use crate::fault;
use crate::sink::Report;

/// Most bytes that may be under way at once, but for one event: 1 Gbit/s over 64 ms. A client that
/// was given up keeps what it could not send for as long as it lives, so there should be little,
/// whatever the events' size.
const IN_FLIGHT_BYTES_MAX: usize = 8 * 1024 * 1024;

impl Appender {
    /// Sends what may be sent. `true`: there is more, but something was waited for, and what came
    /// meanwhile goes first.
    pub(crate) async fn pump(&mut self, epoch: &mut Epoch) -> Result<bool, Error> {
        while let Some(waiting) = self.chain.waiting() {
            if waiting.event.known {
                self.pass(epoch, |chain| chain.settle(Passed::Recorded))
                    .await?;
                continue;
            }
            if !self.has_room() {
                break;
            }
            if let Some(known) = self.find(epoch).await? {
                self.pass(epoch, |chain| chain.settle(known)).await?;
                continue;
            }
            if self.is_delayed() {
                match self.delay(epoch).await {
                    Ok(how) => self.pass(epoch, |chain| chain.settle(how)).await?,
                    Err(error) if error.rejected().is_none() => return Err(error),
                    Err(_) if self.chain.in_flight() > 0 => break,
                    Err(unsendable) => self.set_aside(epoch, unsendable).await?,
                }
                return Ok(true);
            }
            if self.memory.is_uncertain(&self.chain) && self.chain.staged() == 0 {
                if self.chain.in_flight() > 0 {
                    break;
                }
                self.send_uncertain(epoch).await?;
                return Ok(true);
            }
            match self.send(epoch).await? {
                Sent::UnderWay => {}
                Sent::NotYet => break,
                Sent::Aside => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Sends the waiting event, or stages it with those that go together.
    async fn send(&mut self, epoch: &mut Epoch) -> Result<Sent, Error> {
        let waiting = self.chain.waiting().expect("an event waits");
        let together = waiting.event.followers > 0 || self.chain.staged() > 0;
        let (subject, headers, payload) = match self.compose(epoch, together) {
            Ok(message) => message,
            // First everything before this event is stored. The end of the sink would take the
            // connection along, and what it has not sent yet.
            Err(_) if self.chain.in_flight() > 0 => return Ok(Sent::NotYet),
            Err(unsendable) => {
                self.set_aside(epoch, unsendable).await?;
                return Ok(Sent::Aside);
            }
        };
        if together {
            let batch = &mut epoch.batch;
            batch.push(subject, headers, payload);
            self.pass(epoch, Chain::stage).await?;
            return Ok(Sent::UnderWay);
        }
        if self.chain.in_flight() == 0 {
            epoch.progress_at = Instant::now();
        }
        self.memory.send(&self.chain);
        fault::point("judged");
        let (number, _) = self.chain.send();
        let connection = &epoch.connection;
        let reply = format!("{}.{number}", connection.inbox);
        let publish = connection.publish(
            (subject, Some(reply)),
            (headers, payload),
            self.options.ack_timeout,
        );
        publish.await?;
        fault::point("published");
        Ok(Sent::UnderWay)
    }

    /// The message of the waiting event: what it is published to, its headers and its body.
    pub(crate) fn compose(
        &self,
        epoch: &Epoch,
        together: bool,
    ) -> Result<(String, HeaderMap, Bytes), Error> {
        let waiting = self.chain.waiting().expect("an event waits");
        let event = outgoing(&epoch.bodies, waiting.event);
        let stream = &epoch.connection.info.config;
        let anonymous = waiting.duplicate_of.is_some();
        let mut headers = headers((event, &self.source), anonymous, stream);
        let mut headers_bytes = wire_len(&headers) + BATCH_HEADER_BYTES;
        if !together && !self.shared() {
            let expected = HeaderValue::from(self.chain.last_sequence());
            headers.insert(EXPECTED_LAST_SEQUENCE, expected);
            headers_bytes = wire_len(&headers);
        }
        self.check(epoch, event, headers_bytes)?;
        Ok((self.entrance(event), headers, event.payload.clone()))
    }

    fn entrance(&self, event: &Event) -> String {
        let stream = &self.options.stream;
        stream.ingress.entrance(&stream.name, &event.subject)
    }

    /// What no server takes must not be sent: it would close the connection or never answer.
    fn check(&self, epoch: &Epoch, event: &Event, headers: usize) -> Result<(), Error> {
        if let Some(rejected) = &event.rejected {
            return Err(Error::unsendable(event, (**rejected).clone()));
        }
        let subjects = &epoch.connection.info.config.subjects;
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
        let bytes = headers + event.payload.len();
        let error = if headers > HEADER_BYTES_MAX {
            format!("{headers} bytes of headers, a server takes {HEADER_BYTES_MAX}")
        } else if bytes > epoch.message_bytes_max {
            let max = epoch.message_bytes_max;
            format!("{bytes} bytes with headers, the server takes {max} (max_payload)")
        } else {
            return Ok(());
        };
        let reason = TOO_LARGE;
        Err(Error::unsendable(event, Rejected { reason, error }))
    }

    /// Whether the waiting event may go out, and those that go with it: all of them or none.
    fn has_room(&self) -> bool {
        let (in_flight, staged) = (self.chain.in_flight(), self.chain.staged());
        if staged > 0 {
            return true;
        }
        if self.hold.wants_look() {
            return false;
        }
        if in_flight == 0 {
            return true;
        }
        let Some(waiting) = self.chain.waiting() else {
            return true;
        };
        let followers = waiting.event.followers;
        let room = if self.memory.is_careful(&self.chain) {
            1
        } else {
            self.options.in_flight_max
        };
        let full = self.chain.in_flight_bytes() >= IN_FLIGHT_BYTES_MAX;
        in_flight + usize::from(followers) < room && !full
    }

    /// Passes the waiting event; if it was the last of those that go together, they go.
    pub(crate) async fn pass(
        &mut self,
        epoch: &mut Epoch,
        how: impl FnOnce(&mut Chain),
    ) -> Result<(), Error> {
        let waiting = self.chain.waiting().expect("an event waits");
        let last = waiting.event.followers == 0;
        how(&mut self.chain);
        if last && self.chain.staged() > 0 {
            self.send_staged(epoch).await?;
        }
        Ok(())
    }

    async fn send_staged(&mut self, epoch: &mut Epoch) -> Result<(), Error> {
        if self.chain.in_flight() == 0 {
            epoch.progress_at = Instant::now();
        }
        let messages = epoch.batch.take();
        let (number, expected) = self.chain.send_staged();
        let connection = &epoch.connection;
        let reply = format!("{}.{number}", connection.inbox);
        // Unique, as the inbox is; its last token is short enough.
        let name = connection.inbox.rsplit('.').next().unwrap_or_default();
        let id = format!("{name}-{number}");
        let size = messages.len();
        for (index, (subject, mut headers, payload)) in messages.into_iter().enumerate() {
            let last = index + 1 == size;
            if index == 0 {
                headers.insert(EXPECTED_LAST_SEQUENCE, HeaderValue::from(expected));
            }
            if size > 1 {
                headers.insert(BATCH_ID, id.as_str());
                headers.insert(BATCH_SEQUENCE, HeaderValue::from(index as u64 + 1));
            }
            if size > 1 && last {
                headers.insert(BATCH_COMMIT, "1");
            }
            let publish = connection.publish(
                (subject, last.then(|| reply.clone())),
                (headers, payload),
                self.options.ack_timeout,
            );
            publish.await?;
            fault::point(if last {
                "published"
            } else {
                "published_in_part"
            });
        }
        Ok(())
    }

    /// Takes a reply and those that are there already, even if one of them ends the epoch: each
    /// says what became of an event.
    pub(crate) async fn take_replies(
        &mut self,
        epoch: &mut Epoch,
        first: Box<Message>,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        let mut taken = Ok(());
        let mut next = Some(*first);
        while let Some(message) = next {
            let took = match message.subject.ends_with(record::REPLY) {
                true => self.take_written(epoch, &message, reports).await,
                false => self.take_reply(epoch, &message),
            };
            taken = taken.and(took);
            let replies = &mut epoch.connection.replies;
            next = replies.next().now_or_never().flatten();
        }
        taken
    }

    fn take_reply(&mut self, epoch: &mut Epoch, message: &Message) -> Result<(), Error> {
        fault::point("answered");
        let connection = &epoch.connection;
        let Some(reply) = connection.read(message, &self.options.stream.name) else {
            return Ok(());
        };
        let number = message
            .subject
            .rsplit('.')
            .next()
            .and_then(|token| token.parse().ok());
        let number =
            number.ok_or_else(|| Error::Broken(format!("reply to {}", message.subject)))?;
        // Where it is only a copy that came late, nobody is to be found out.
        let copy = self.shared() && matches!(reply, Reply::Duplicate(_));
        let reason = match reply {
            Reply::Stored { sequence, together } => {
                match self.chain.acknowledge(number, (sequence, together)) {
                    Ok(()) => {
                        epoch.progress_at = Instant::now();
                        return Ok(());
                    }
                    Err(mismatch) => mismatch.to_string(),
                }
            }
            Reply::Duplicate(0) if self.shared() => {
                // 2.10: it is under way already, nobody knows where to.
                self.chain.refuse(number);
                "the server calls it a duplicate".to_owned()
            }
            Reply::Duplicate(sequence) => {
                // Whether it really stands there, the guard finds out.
                self.chain.refuse_duplicate(number, sequence);
                "the server calls it a duplicate".to_owned()
            }
            Reply::Refused(reason) => match self.chain.refuse(number) {
                true => reason,
                // Ours has stored it; so this is another stream's.
                false => return Ok(()),
            },
            Reply::Unclear(reason) => reason,
        };
        if !copy {
            self.memory.refused(&self.chain);
        }
        Err(Error::Broken(format!(
            "an event was not acknowledged as expected: {reason}"
        )))
    }
}

/// What became of an event that was to be sent.
enum Sent {
    /// It is, or goes with the next.
    UnderWay,
    /// Not before everything else has been acknowledged.
    NotYet,
    /// It is stored elsewhere.
    Aside,
}
