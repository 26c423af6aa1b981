//! The record, as a command that does not lead reads, writes or removes it.

use super::bucket::Bucket;
use super::client::Connection;
use super::error::Error;
use super::options::Options;
use super::{bucket, record};
use crate::event::lineage::Source;
use crate::sink::{Kept, Write, Written};

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
        let bucket = Box::pin(record::open(&connection, &options, source)).await?;
        Ok(Self {
            connection,
            options,
            bucket,
        })
    }

    /// The name of the bucket.
    pub fn name(&self) -> String {
        bucket::name(&self.options.stream.name)
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
        let created = record::created(&self.connection.info);
        (created, self.connection.server().0)
    }

    /// What is kept, if there is a bucket and a key.
    pub async fn read(&self) -> Result<Option<Kept>, Error> {
        match &self.bucket {
            Err(_) => Ok(None),
            Ok(bucket) => {
                let read = Box::pin(bucket.read());
                self.connection.unless_broken(read).await
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
