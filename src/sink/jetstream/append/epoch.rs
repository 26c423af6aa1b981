//! One connection with its chain: opened, run until something breaks, and followed by the next.

use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::info;

use super::super::aside::bodies::Bodies;
use super::super::aside::delayed::Delayed;
use super::super::aside::letters::Letters;
use super::super::bucket::Bucket;
use super::super::client::{self, Connection};
use super::super::error::Error;
use super::super::tail::{self, Bounds, Search};
use super::Appender;
use super::batch::Batch;
use super::hold::{self, Witness};
use crate::sink::{Order, Report, Settled};

/// One connection with its chain.
pub(crate) struct Epoch {
    pub(crate) connection: Connection,
    /// What is kept beside the stream; or why nothing is.
    pub(crate) bucket: Result<Bucket, String>,
    pub(crate) tail: Search,
    pub(crate) letters: Option<Letters>,
    pub(crate) bodies: Option<Bodies>,
    /// Opened for the first event that is delayed.
    pub(crate) delayed: Option<Delayed>,
    /// Where the stream ended when the epoch began.
    pub(crate) last_sequence: u64,
    /// What stood there.
    pub(crate) newest: Witness,
    pub(crate) message_bytes_max: usize,
    pub(crate) batch: Batch,
    /// When the last acknowledgement came, or the first event went out after a pause.
    pub(crate) progress_at: Instant,
}

impl Appender {
    /// Connects, checks the streams or creates them, and checks that they are ours to write.
    pub(crate) async fn open_epoch(&mut self) -> Result<Epoch, Error> {
        let connection = Box::pin(Connection::open(&self.options)).await?;
        let bounds = Bounds::of(&connection.info);
        self.check_seen(&connection)?;
        if !self.memory.complete() {
            let newest = tail::newest_marks(&connection.stream, bounds);
            let newest = connection.unless_broken(Box::pin(newest)).await?;
            Box::pin(self.check_newest(&connection, &newest)).await?;
        }
        self.check_unread(&connection, bounds.last).await?;
        let newest = match self.hold.holds() {
            true => hold::newest(&connection, bounds).await?,
            false => Witness::default(),
        };
        let bucket = match Box::pin(self.open_bucket(&connection)).await {
            Err(error @ Error::BucketDenied(_)) => {
                // The connection is of no more use.
                self.without_it(error);
                return Box::pin(self.open_epoch()).await;
            }
            opened => opened?,
        };
        self.chain.restart(bounds.last);
        let message_bytes_max = connection.message_bytes_max(&connection.info);
        let letters = connection.letters.as_ref();
        let letters =
            letters.map(|(_, info)| Letters::new(info, connection.message_bytes_max(info)));
        let bodies = match &self.options.bodies {
            Some(bucket) => Some(Bodies::open(&connection, bucket).await?),
            None => None,
        };
        Ok(Epoch {
            connection,
            bucket,
            tail: Search::Finished,
            letters,
            bodies,
            delayed: None,
            last_sequence: bounds.last,
            newest,
            message_bytes_max,
            batch: Batch::default(),
            progress_at: Instant::now(),
        })
    }

    /// The next epoch, after the end of one.
    pub(crate) async fn next_epoch(
        &mut self,
        reports: &mpsc::Sender<Report>,
    ) -> Result<Epoch, Error> {
        let mut epoch = self.open_epoch().await?;
        self.reconcile(&mut epoch, false).await?;
        self.settle_write(&epoch, reports).await?;
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
            let pumped = Box::pin(self.pump(epoch)).await;
            // Also if this was the end: what is stored is to be confirmed.
            let settled = self.chain.take_settled();
            if settled.to.is_some() {
                self.settled(epoch, settled, reports).await;
            } else if self.down && self.chain.waiting().is_none() && self.chain.in_flight() == 0 {
                self.recovered(reports).await;
            }
            let more = pumped?;
            match self.select(epoch, orders, more).await? {
                Action::Send => {}
                Action::Closed => return Ok(()),
                Action::Order(order) => self.take_order(epoch, order, reports).await?,
                Action::Reply(message) => self.take_replies(epoch, message, reports).await?,
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
                    self.memory.handed_over(self.chain.end(), &event);
                    self.chain.push(event);
                }
                Ok(())
            }
            Order::Keep(write) => self.send_write(epoch, write, reports).await,
        }
    }

    /// Chooses what to do next. Cancel-safe: every branch is a receive on a channel or a timer.
    /// `more`: something can be sent at once.
    async fn select(
        &self,
        epoch: &mut Epoch,
        orders: &mut mpsc::Receiver<Order>,
        more: bool,
    ) -> Result<Action, Error> {
        let in_flight = self.chain.in_flight();
        let ack_timeout = self.options.ack_timeout;
        let deadline = epoch.progress_at + ack_timeout;
        let look_at = self.hold.wake_at();
        let Connection {
            replies, broken, ..
        } = &mut epoch.connection;
        tokio::select! {
            biased;
            reply = replies.next() => match reply {
                Some(message) => Ok(Action::Reply(Box::new(message))),
                None => Err(Error::Broken("the connection was closed".to_owned())),
            },
            why = client::until_broken(broken) => Err(why),
            () = tokio::time::sleep_until(deadline), if in_flight > 0 => {
                Err(Error::Broken(format!("no acknowledgement for {}", seconds(ack_timeout))))
            }
            () = tokio::time::sleep_until(look_at), if in_flight == 0 => Ok(Action::Look),
            order = orders.recv() => Ok(order.map_or(Action::Closed, Action::Order)),
            () = std::future::ready(()), if more => Ok(Action::Send),
        }
    }

    async fn settled(
        &mut self,
        epoch: &Epoch,
        mut settled: Settled,
        reports: &mpsc::Sender<Report>,
    ) {
        self.book(epoch, &settled);
        self.memory.settle(&mut settled, &self.chain);
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

impl Epoch {
    /// Reads once more where the streams end.
    pub(crate) async fn refresh(&mut self) -> Result<(), Error> {
        let Connection {
            context,
            info,
            letters,
            ..
        } = &mut self.connection;
        let state = async |name: &str| {
            let found = context.get_stream(name).await;
            let found = found.map_err(|error| Error::Broken(crate::error::chain(&error)))?;
            Ok::<_, Error>(found.cached_info().state.clone())
        };
        info.state = state(&info.config.name).await?;
        self.last_sequence = info.state.last_sequence;
        if let Some((_, info)) = letters {
            info.state = state(&info.config.name).await?;
            let bytes_max = self.letters.as_ref().map_or(0, Letters::bytes_max);
            self.letters = Some(Letters::new(info, bytes_max));
        }
        Ok(())
    }
}

/// What an epoch does next.
enum Action {
    /// The relay is done.
    Closed,
    Order(Order),
    Send,
    Reply(Box<Message>),
    /// It is time to see whether the stream is what it was.
    Look,
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
