//! Integration tests: the real binary against real servers.

mod atomic;
mod auth_tls;
mod backpressure;
mod chaos;
mod dead_letters;
mod delivery;
mod docs;
mod faults;
mod fencing;
mod harness;
mod hold;
mod inspect;
mod messages;
mod million;
mod nats_auth;
mod presets;
mod problems;
mod replay;
mod replication;
mod restart;
mod setup;
mod sink;
mod sql;
mod tidy;
mod watch;
