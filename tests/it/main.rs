//! Integration tests: the real binary against real servers.

mod auth_tls;
mod harness;
mod replication;
mod sql;
mod tidy;
