//! Integration tests: the real binary against real servers.

mod atomic;
mod auth_tls;
mod backpressure;
mod chaos;
mod consuming;
mod dead_letters;
mod delivery;
mod docs;
mod faults;
mod fencing;
mod harness;
mod hold;
mod messages;
mod million;
mod nats_auth;
mod problems;
mod producer;
mod replay;
mod replication;
mod restart;
mod retention;
mod setup;
mod sink;
mod sql;
mod tidy;
mod watch;
