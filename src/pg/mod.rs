//! The Postgres client: connection parameters as libpq reads them, one way to connect (TLS and
//! authentication included), the replication session with its decoder, and the control connection
//! with what is asked of it. Knows nothing of events, sinks, the relay or the configuration.

mod auth;
pub mod catalog;
mod certificate;
mod connect;
pub mod control;
pub mod ddl;
mod error;
pub mod name;
pub mod params;
pub mod pgoutput;
mod query;
pub mod replication;
pub mod silence;
mod socket;
mod tls;
mod wire;

pub use error::{DIRECT, Error, ServerMessage};
#[cfg(any(test, fuzzing))]
pub(crate) use wire::frames;
