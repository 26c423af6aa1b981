//! The Postgres client: connection parameters as libpq reads them, one way to connect (TLS and
//! authentication included), the replication session and its messages, and the control connection
//! that shares both. Knows nothing of events, of NATS or of the configuration file.

mod auth;
pub mod catalog;
mod certificate;
mod conn;
pub mod control;
pub mod ddl;
mod error;
pub mod params;
pub mod pgoutput;
mod query;
pub mod replication;
mod socket;
mod tls;

pub use error::{Error, ServerMessage};
