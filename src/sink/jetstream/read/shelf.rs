//! The record, as a command that does not lead reads, writes or removes it.

use async_nats::jetstream::stream::Config;

use super::super::bucket;
use super::super::bucket::Bucket;
use super::super::client::Desk;
use super::super::error::Error;
use super::super::names::record_bucket;
use super::super::options::Options;
use super::super::streams;
use super::super::tail;
use crate::event::lineage::{Place, Source};
use crate::sink::{At, Kept, Write, Written};

/// The bucket that is created beside a missing stream, and its name.
pub fn bucket_config(options: &Options) -> (String, Config) {
    let stream = &options.stream;
    let config = bucket::config(&stream.name, &streams::config(stream));
    (record_bucket(&stream.name), config)
}

/// The bucket beside the stream, which must exist.
pub struct BucketFound {
    /// Its name.
    pub name: String,
    /// Whether it was created just now; or why there is none.
    pub created: Result<bool, String>,
    /// There is none because we lack the rights.
    pub denied: bool,
    /// What is worth knowing of it.
    pub warnings: Vec<String>,
    /// The command that creates it.
    pub command: String,
}

/// Inspects the bucket beside the stream; creates it if `stream.create` says so. Without the rights
/// there is none.
pub async fn inspect_bucket(options: &Options) -> Result<BucketFound, Error> {
    let options = options.of_stream();
    let desk = Box::pin(Desk::open(&options)).await?;
    let stream = &desk.streams.info.config;
    let name = record_bucket(&options.stream.name);
    let command = format!(
        "nats kv add {name} --history 1 --replicas {}",
        stream.num_replicas
    );
    let opened = Box::pin(bucket::open(&desk.client, (&options, stream))).await;
    let denied = matches!(opened, Err(Error::BucketDenied(_)));
    let (created, warnings) = match opened {
        Ok(Ok(found)) => (Ok(found.created), bucket::warnings(&found.config, stream)),
        Ok(Err(why)) | Err(Error::BucketDenied(why)) => (Err(why), Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(BucketFound {
        name,
        created,
        denied,
        warnings,
        command,
    })
}

/// What is kept for a slot, outside of a term.
pub struct Shelf {
    desk: Desk,
    options: Options,
    bucket: Result<Bucket, String>,
}

impl Shelf {
    /// Opens the bucket beside the stream, which must exist; creates it if `stream.create` says so.
    pub async fn open(options: &Options, source: &Source) -> Result<Self, Error> {
        let options = options.of_stream();
        let desk = Box::pin(Desk::open(&options)).await?;
        let beside = (&options, &desk.streams.info.config);
        let bucket = Box::pin(bucket::of_slot(&desk.client, beside, source)).await?;
        Ok(Self {
            desk,
            options,
            bucket,
        })
    }

    /// The name of the bucket.
    pub fn name(&self) -> String {
        record_bucket(&self.options.stream.name)
    }

    /// The stream's, for messages.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Why nothing is kept; `None`: it can be.
    pub fn missing(&self) -> Option<&str> {
        self.bucket.as_ref().err().map(String::as_str)
    }

    /// Copies of what is kept; 0: there is no bucket.
    pub fn replicas(&self) -> usize {
        self.bucket.as_ref().map_or(0, |bucket| bucket.replicas)
    }

    /// When the stream was created, RFC 3339, and the id of the server that we are connected to.
    pub fn stream_created(&self) -> (String, String) {
        let created = streams::created(&self.desk.streams.info);
        (created, self.desk.client.server().0)
    }

    /// Tries to write, and to read, and changes nothing.
    pub async fn try_rights(&self) -> Result<(), Error> {
        match &self.bucket {
            Err(_) => Ok(()),
            Ok(bucket) => {
                let within = self.options.nats.connect_timeout;
                Box::pin(bucket.try_rights(&self.desk.client, within)).await
            }
        }
    }

    /// What is found at the place of an event in the stream, and the stream's last sequence number.
    pub async fn found_at(&self, place: &Place, source: &Source) -> Result<(At, u64), Error> {
        let stream = &self.desk.streams.stream;
        let found = Box::pin(stream.at(place.sequence)).await?;
        let last = Box::pin(stream.last_sequence()).await?;
        Ok((tail::compare(found.as_ref(), place, source), last))
    }

    /// What is kept, if there is a bucket and a key.
    pub async fn read(&self) -> Result<Option<Kept>, Error> {
        match &self.bucket {
            Err(_) => Ok(None),
            Ok(bucket) => bucket::unless_denied(Box::pin(bucket.read())).await,
        }
    }

    /// Replaces it, if it is still what was read.
    pub async fn write(&self, write: &Write) -> Result<Written, Error> {
        match &self.bucket {
            Err(why) => Ok(Written::Refused(why.clone())),
            Ok(bucket) => {
                let within = self.options.ack_timeout;
                Box::pin(bucket.write(&self.desk.client, write, within)).await
            }
        }
    }

    /// Removes the key, if there is one.
    pub async fn remove(&self) -> Result<(), Error> {
        match &self.bucket {
            Err(_) => Ok(()),
            Ok(bucket) => Box::pin(bucket.remove()).await,
        }
    }
}
