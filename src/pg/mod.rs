//! What outjet knows of Postgres. Knows nothing of events, sinks, the relay or the configuration.

pub mod catalog;
pub mod ddl;
pub mod pgoutput;
