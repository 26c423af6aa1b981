//! Integration tests: the real binary against real servers.

mod auth_tls;
mod delivery;
mod harness;
mod replication;
mod restart;
mod setup;
mod sink;
mod sql;
mod tidy;
