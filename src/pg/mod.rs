//! The Postgres client: connection parameters as libpq reads them, one way to connect (TLS and
//! authentication included), the replication session, and the control connection that shares both.
//! Knows nothing of events, of NATS or of the configuration file.

mod auth;
mod certificate;
mod conn;
pub mod control;
mod error;
pub mod params;
mod query;
pub mod replication;
mod socket;
mod tls;

pub use error::{Error, ServerMessage};
