//! Integration tests: the real binary against real servers.

mod harness;
mod sql;
mod tidy;
