//! Streams a Postgres outbox to NATS JetStream from the write-ahead log.

pub mod cli;
pub mod command;
pub mod config;
pub mod error;
pub mod event;
pub mod lsn;
