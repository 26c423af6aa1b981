//! What outjet knows of Postgres. Knows nothing of events, sinks, the relay or the configuration.

pub mod pgoutput;
