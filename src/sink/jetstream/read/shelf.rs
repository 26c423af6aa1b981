//! The record, as a command that does not lead reads, writes or removes it.

use async_nats::jetstream::stream::Config;

use super::super::bucket;
use super::super::bucket::Bucket;
use super::super::client::{self, Connection};
use super::super::error::Error;
use super::super::names::record_bucket;
use super::super::options::Options;
use super::super::tail;
use crate::event::lineage::{Place, Source};
use crate::sink::{At, Kept, Write, Written};

/// The bucket that is created beside a missing stream, and its name.
pub fn bucket_config(options: &Options) -> (String, Config) {
    let stream = &options.stream;
    let config = bucket::config(&stream.name, &client::config(stream));
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
    let connection = Box::pin(Connection::open(&options)).await?;
    let stream = &connection.info.config;
    let name = record_bucket(&options.stream.name);
    let command = format!(
        "nats kv add {name} --history 1 --replicas {}",
        stream.num_replicas
    );
    let opened = Box::pin(bucket::open(&connection, &options)).await;
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
    connection: Connection,
    options: Options,
    bucket: Result<Bucket, String>,
}

impl Shelf {
    /// Opens the bucket beside the stream, which must exist; creates it if `stream.create` says so.
    pub async fn open(options: &Options, source: &Source) -> Result<Self, Error> {
        let options = options.of_stream();
        let connection = Box::pin(Connection::open(&options)).await?;
        let bucket = Box::pin(bucket::of_slot(&connection, &options, source)).await?;
        Ok(Self {
            connection,
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
        let created = client::created(&self.connection.info);
        (created, self.connection.server().0)
    }

    /// Tries to write, and to read, and changes nothing.
    pub async fn try_rights(&self) -> Result<(), Error> {
        match &self.bucket {
            Err(_) => Ok(()),
            Ok(bucket) => {
                let within = self.options.nats.connect_timeout;
                Box::pin(bucket.try_rights(&self.connection, within)).await
            }
        }
    }

    /// What is found at the place of an event in the stream, and the stream's last sequence number.
    pub async fn found_at(&self, place: &Place, source: &Source) -> Result<(At, u64), Error> {
        let read = Box::pin(self.connection.stream.at(place.sequence));
        let found = self.connection.unless_broken(read).await?;
        let last = Box::pin(self.connection.stream.last_sequence());
        let last = self.connection.unless_broken(last).await?;
        Ok((tail::compare(found.as_ref(), place, source), last))
    }

    /// What is kept, if there is a bucket and a key.
    pub async fn read(&self) -> Result<Option<Kept>, Error> {
        match &self.bucket {
            Err(_) => Ok(None),
            Ok(bucket) => {
                let read = Box::pin(bucket.read());
                bucket::unless_denied(&self.connection, read).await
            }
        }
    }

    /// Replaces it, if it is still what was read.
    pub async fn write(&self, write: &Write) -> Result<Written, Error> {
        match &self.bucket {
            Err(why) => Ok(Written::Refused(why.clone())),
            Ok(bucket) => {
                let within = self.options.ack_timeout;
                Box::pin(bucket.write(&self.connection, write, within)).await
            }
        }
    }

    /// Removes the key, if there is one.
    pub async fn remove(&self) -> Result<(), Error> {
        match &self.bucket {
            Err(_) => Ok(()),
            Ok(bucket) => {
                let removed = Box::pin(bucket.remove());
                self.connection.unless_broken(removed).await
            }
        }
    }
}
