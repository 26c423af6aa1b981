//! Streams a Postgres outbox to NATS JetStream from the write-ahead log.

pub mod error;
pub mod event;
pub mod lsn;
pub mod pg;
