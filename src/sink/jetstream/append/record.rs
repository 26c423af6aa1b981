//! The record, as far as a sink has to do with it: bytes that are written on the same connection as
//! the events, one write at a time, and what is found when a term begins.

use async_nats::jetstream::stream::Config;
use tokio::sync::mpsc;

use super::super::bucket::{self, Bucket, Heard};
use super::super::client::Client;
use super::super::error::Error;
use super::super::inspection;
use super::super::names::record_bucket;
use super::super::options::Options;
use super::Appender;
use super::epoch::Epoch;
use crate::event::lineage::Mark;
use crate::fault;
use crate::nats::Message;
use crate::sink::{Report, Write, Written};

impl Appender {
    /// Refuses to append behind these newest events, unless ours have taken the place of those of
    /// another cluster: the record says so.
    pub(crate) async fn check_newest(
        &self,
        (client, beside): (&Client, &Config),
        newest: &[Mark],
    ) -> Result<(), Error> {
        let ours = self.lineage.source();
        let checked = inspection::check_newest(&self.options.stream, newest, ours);
        let Err(error @ Error::OtherSource { .. }) = checked else {
            return checked;
        };
        if self.options.takes_over {
            return Ok(());
        }
        if !self.options.record || self.denied.is_some() {
            return Err(error);
        }
        // None is made beside a stream that may not be ours.
        let mut options = Options::clone(&self.options);
        options.stream.create = false;
        let kept = match bucket::of_slot(client, (&options, beside), ours).await {
            Ok(Ok(bucket)) => bucket.read().await?,
            Ok(Err(_)) | Err(Error::BucketDenied(_)) => None,
            Err(error) => return Err(error),
        };
        let whose = kept.as_ref().and_then(self.options.whose);
        match whose.is_some_and(|whose| whose.same_slot(ours)) {
            true => Ok(()),
            false => Err(error),
        }
    }

    /// Opens the bucket, or creates it if told so; or says why there is none.
    pub(crate) async fn open_bucket(
        &self,
        (client, beside): (&Client, &Config),
    ) -> Result<Result<Bucket, String>, Error> {
        if let Some(why) = &self.denied {
            return Ok(Err(why.clone()));
        }
        if !self.options.record {
            return Ok(Err("nothing is to be recorded".to_owned()));
        }
        bucket::of_slot(client, (&self.options, beside), self.lineage.source()).await
    }

    /// What an error means that was caused by what we can do without, and may not use: the
    /// connection is made anew, and that is left alone.
    pub(crate) fn without_it(&mut self, error: Error) -> Error {
        match error {
            Error::PublishDenied(why)
                if self.options.delayed.is_none()
                    && why.contains(&self.options.stream.delayed().name) =>
            {
                self.schedules_denied = true;
                Error::Broken(why)
            }
            Error::PublishDenied(why)
                if why.contains(&record_bucket(&self.options.stream.name)) =>
            {
                self.denied = Some(why.clone());
                Error::BucketDenied(why)
            }
            Error::BucketDenied(why) => {
                self.denied = Some(why.clone());
                Error::BucketDenied(why)
            }
            error => error,
        }
    }

    /// There may be a bucket by now. Writes come seldom while there is none.
    async fn search_bucket(&self, epoch: &mut Epoch) -> Result<(), Error> {
        if epoch.bucket.is_ok() {
            return Ok(());
        }
        let beside = &epoch.streams.info.config;
        let opened = Box::pin(self.open_bucket((&epoch.client, beside)));
        epoch.bucket = epoch.link.during(opened).await?;
        Ok(())
    }

    /// Sends a write, behind all that was sent before.
    pub(crate) async fn send_write(
        &mut self,
        epoch: &mut Epoch,
        write: Write,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        assert!(self.writing.is_none(), "one write at a time");
        // Whatever becomes of it: if nothing is heard, what is there says it.
        self.writing = Some(write.clone());
        self.search_bucket(epoch).await?;
        let bucket = match &epoch.bucket {
            Ok(bucket) => bucket,
            Err(why) => {
                let refused = Written::Refused(why.clone());
                self.writing = None;
                let _ = reports.send(Report::Written(refused)).await;
                return Ok(());
            }
        };
        epoch.written = Some(bucket.send(&epoch.client, &write)?);
        fault::point("record_sent");
        Ok(())
    }

    /// The answer to the write.
    pub(crate) async fn take_written(
        &mut self,
        epoch: &mut Epoch,
        message: &Message,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        fault::point("record_answered");
        let heard = match &epoch.bucket {
            Ok(bucket) => bucket.answer(&epoch.client, message),
            Err(why) => Heard::Known(Written::Refused(why.clone())),
        };
        match heard {
            Heard::Twin => Ok(()),
            Heard::Known(written) => {
                epoch.written = None;
                self.writing = None;
                let _ = reports.send(Report::Written(written)).await;
                Ok(())
            }
            Heard::Unknown => {
                epoch.written = None;
                self.settle_write(epoch, reports).await
            }
        }
    }

    /// What became of a write whose answer was not heard, or not understood: what is there says it.
    pub(crate) async fn settle_write(
        &mut self,
        epoch: &mut Epoch,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Error> {
        if self.writing.is_none() {
            return Ok(());
        }
        let written = match &epoch.bucket {
            Ok(bucket) => {
                let read = Box::pin(bucket.read());
                Written::Found(epoch.link.during(read).await?)
            }
            Err(why) => Written::Refused(why.clone()),
        };
        self.writing = None;
        let _ = reports.send(Report::Written(written)).await;
        Ok(())
    }
}
