//! What the tests stand on: servers of their own, a proxy that breaks connections, the real
//! binary, known writers and an independent judge. Knows the program from outside only.
//!
//! Every server belongs to the test that started it: it is killed when its value is dropped, its
//! log is printed if the test panicked, and a watchdog kills it if the test process is killed.

#![allow(
    dead_code,
    unused_imports,
    reason = "a toolbox: each test takes out what it needs"
)]

pub(crate) mod binaries;
pub(crate) mod browser;
pub(crate) mod cluster;
pub(crate) mod drain;
pub(crate) mod identity;
pub(crate) mod nats;
pub(crate) mod outbox;
pub(crate) mod outjet;
pub(crate) mod port;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod snapshot;
pub(crate) mod stage;
pub(crate) mod wait;
pub(crate) mod world;

mod tests;

pub(crate) use browser::Browser;
pub(crate) use drain::{Judge, Verdict};
pub(crate) use nats::Nats;
pub(crate) use outjet::Outjet;
pub(crate) use postgres::{Postgres, Stop};
pub(crate) use proxy::{Direction, Mode, Proxy};
pub(crate) use stage::Stage;
pub(crate) use wait::{Wait, until, until_sync, until_the_day_lasts};
pub(crate) use world::World;
