//! Integration tests: the real binary against real servers.

mod auth_tls;
mod backpressure;
mod chaos;
mod dead_letters;
mod delivery;
mod docs;
mod failover;
mod fencing;
mod harness;
mod million;
mod nats_auth;
mod primary;
mod problems;
mod replication;
mod restart;
mod setup;
mod sink;
mod sql;
mod systemd;
mod takeover;
mod tidy;
mod watch;
