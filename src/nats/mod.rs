//! The NATS client: one connection that breaks once and is then dropped, and JetStream's requests
//! on it. Nothing is buffered or connected again behind its owner's back. Knows nothing of events,
//! sinks, Postgres or the configuration.

mod options;
pub mod wire;

pub use options::Options;
pub(crate) use options::SignIn;
