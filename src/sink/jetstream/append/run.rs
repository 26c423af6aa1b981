//! An epoch is opened, run until something breaks, and followed by the next.

use std::future::pending;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::info;

use super::super::aside::bodies::Bodies;
use super::super::aside::letters::Letters;
use super::super::bucket::Bucket;
use super::super::client::{Client, Connection, Streams};
use super::super::error::Error;
use super::super::tail::{self, Bounds, Search};
use super::Appender;
use super::epoch::{Back, Epoch, Errand};
use super::witness::{self, Witness};
use crate::nats::{Answers, Message};
use crate::sink::{Order, Report, Settled};

impl Appender {
    /// Connects, checks the streams or creates them, and checks that they are ours to write.
    pub(crate) async fn open_epoch(&mut self) -> Result<Epoch, Error> {
        let connection = Box::pin(Connection::open(&self.options)).await?;
        let Connection {
            mut link,
            client,
            streams,
        } = connection;
        link.limit_lines(self.lines_taken.connected(&client.server().0));
        self.check_seen(&streams)?;
        let looked = link.during(Box::pin(self.look_around(&client, &streams)));
        let Around {
            newest,
            bucket,
            bodies,
        } = match looked.await.map_err(|error| self.without_it(error)) {
            // The connection is of no more use.
            Err(Error::BucketDenied(_)) => return Box::pin(self.open_epoch()).await,
            looked => looked?,
        };
        let last_sequence = streams.info.state.last_sequence;
        self.ring.restart(last_sequence);
        let letters = streams.letters.as_ref();
        let letters = letters.map(|(_, info)| Letters::new(info, link.message_bytes_max(info)));
        Ok(Epoch {
            link,
            client,
            streams,
            bucket,
            written: None,
            tail: Search::Finished,
            errand: None,
            unsendable: None,
            letters,
            bodies,
            delayed: None,
            last_sequence,
            newest,
            staged: Vec::new(),
            progress_at: Instant::now(),
        })
    }

    /// What must be known of the streams before anything is sent.
    async fn look_around(&self, client: &Client, streams: &Streams) -> Result<Around, Error> {
        let bounds = Bounds::of(&streams.info);
        let beside = (client, &streams.info.config);
        if !self.memory.complete() {
            let newest = Box::pin(tail::newest_marks(&streams.stream, bounds)).await?;
            Box::pin(self.check_newest(beside, &newest)).await?;
        }
        Box::pin(self.check_newest_stands(&streams.stream)).await?;
        Box::pin(self.check_unread(streams)).await?;
        Ok(Around {
            newest: match self.hold.holds() {
                true => Box::pin(witness::newest(&streams.stream, bounds)).await?,
                false => Witness::default(),
            },
            bucket: Box::pin(self.open_bucket(beside)).await?,
            bodies: match &self.options.bodies {
                Some(bucket) => Some(Box::pin(Bodies::open(client, bucket)).await?),
                None => None,
            },
        })
    }

    /// The next epoch, after the end of one.
    pub(crate) async fn next_epoch(
        &mut self,
        reports: &mpsc::Sender<Report>,
    ) -> Result<Epoch, Error> {
        let opened = self.open_epoch().await;
        let mut epoch = opened.map_err(Error::of_a_leader)?;
        self.reconcile(&mut epoch, false).await?;
        self.settle_write(&mut epoch, reports).await?;
        Ok(epoch)
    }

    /// Runs until the relay closes the channel, or the epoch ends.
    pub(crate) async fn run_epoch(
        &mut self,
        mut epoch: Epoch,
        orders: &mut mpsc::Receiver<Order>,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        let epoch = &mut epoch;
        loop {
            // Replies come before new events in `select`; under load there is always one.
            while let Ok(order) = orders.try_recv() {
                self.take_order(epoch, order, reports).await?;
            }
            let pumped = self.pump(epoch).await;
            // Also if this was the end: what is stored is to be confirmed.
            let settled = self.ring.take_settled();
            if settled.to.is_some() {
                self.book(epoch, &settled);
                self.settled(settled, reports).await;
            } else if self.down && self.ring.waiting().is_none() && self.ring.in_flight() == 0 {
                self.recovered(reports).await;
            }
            let more = pumped?;
            match self.select(epoch, orders, more).await? {
                Action::Send => {}
                Action::Closed => return Ok(()),
                Action::Order(order) => self.take_order(epoch, order, reports).await?,
                Action::Replies => self.take_replies(epoch)?,
                Action::Written(answer) => self.take_written(epoch, &answer, reports).await?,
                Action::Back(back) => self.take_back(epoch, *back)?,
                Action::Look => Box::pin(self.look(epoch, reports)).await?,
            }
        }
    }

    async fn take_order(
        &mut self,
        epoch: &mut Epoch,
        order: Order,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        match order {
            Order::Append(batch) => {
                for event in batch {
                    self.memory.handed_over(self.ring.end(), &event);
                    self.ring.push(event);
                }
                Ok(())
            }
            Order::Keep(write) => self.send_write(epoch, write, reports).await,
        }
    }

    /// Chooses what to do next. Cancel-safe: what a branch waits for lives in the epoch, in a
    /// channel, or is a timer. `more`: something can be sent at once.
    async fn select(
        &self,
        epoch: &mut Epoch,
        orders: &mut mpsc::Receiver<Order>,
        more: bool,
    ) -> Result<Action, Error> {
        let in_flight = self.ring.in_flight();
        let ack_timeout = self.options.ack_timeout;
        let deadline = epoch.progress_at + ack_timeout;
        let look_at = self.hold.wake_at();
        let Epoch {
            link,
            written,
            errand,
            ..
        } = epoch;
        tokio::select! {
            biased;
            ready = link.ready() => ready.map(|()| Action::Replies),
            answer = next_of(written) => Ok(Action::Written(answer?)),
            () = tokio::time::sleep_until(deadline), if in_flight > 0 => {
                Err(Error::Broken(format!("no acknowledgement for {}", seconds(ack_timeout))))
            }
            () = tokio::time::sleep_until(look_at), if in_flight == 0 => Ok(Action::Look),
            back = end_of(errand) => Ok(Action::Back(Box::new(back))),
            order = orders.recv() => Ok(order.map_or(Action::Closed, Action::Order)),
            () = std::future::ready(()), if more => Ok(Action::Send),
        }
    }

    async fn settled(&mut self, mut settled: Settled, reports: &mpsc::Sender<Report>) {
        self.memory.settle(&mut settled, &self.ring);
        let _ = reports.send(Report::Settled(settled)).await;
        if self.hold.close() {
            let _ = reports.send(Report::Held).await;
        }
        self.recovered(reports).await;
    }

    async fn recovered(&mut self, reports: &mpsc::Sender<Report>) {
        if let Some(attempts) = self.backoff.worked() {
            info!(attempts, "events get through to NATS again");
        }
        if std::mem::take(&mut self.down) {
            let _ = reports.send(Report::Up).await;
        }
    }
}

/// What is found where nothing was sent yet.
struct Around {
    newest: Witness,
    bucket: Result<Bucket, String>,
    bodies: Option<Bodies>,
}

/// What an epoch does next.
enum Action {
    /// The relay is done.
    Closed,
    Order(Order),
    Send,
    /// Replies have come, or there is room.
    Replies,
    /// The answer to the write.
    Written(Message),
    /// The errand is done.
    Back(Box<Back>),
    /// It is time to see whether the stream is what it was.
    Look,
}

async fn next_of(answers: &mut Option<Answers>) -> Result<Message, Error> {
    match answers {
        Some(answers) => Ok(answers.next().await?),
        None => pending().await,
    }
}

async fn end_of(errand: &mut Option<Errand>) -> Back {
    let back = match errand {
        Some(errand) => errand.await,
        None => pending().await,
    };
    *errand = None;
    back
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
