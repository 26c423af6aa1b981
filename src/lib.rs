//! Streams a Postgres outbox to NATS JetStream from the write-ahead log.

pub mod assemble;
pub mod backoff;
pub mod cli;
pub mod command;
pub mod config;
pub mod error;
pub mod event;
pub mod format;
pub mod guard;
pub mod log;
pub mod lsn;
pub mod mapping;
pub mod pg;
pub mod preflight;
pub mod relay;
pub mod route;
pub mod shutdown;
pub mod sink;
pub mod term;
pub mod window;
