//! Integration tests: the real binary against real servers.

mod harness;
