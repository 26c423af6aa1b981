//! The NATS client: one connection that breaks once and is then dropped, and JetStream's requests
//! on it. Nothing is buffered or connected again behind its owner's back. Knows nothing of events,
//! sinks, Postgres or the configuration.

mod address;
mod api;
mod auth;
mod connect;
mod connection;
mod error;
mod options;
mod requests;
mod tls;
pub mod wire;

pub use api::{Answer, Api, ApiError, Which};
pub use connection::{Connection, Driven, QUEUED_BYTES_FULL, Reply};
pub use error::{Broken, ConnectError, ConnectErrorKind, CredentialsError, RequestError};
pub use options::Options;
pub(crate) use options::SignIn;
pub use requests::{Answers, Message, Request, Requests};
