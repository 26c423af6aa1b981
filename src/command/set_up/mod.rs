//! Setting up what outjet needs in Postgres and in NATS, and taking it away again.

pub(super) mod birth;
pub mod drop;
pub mod setup;
