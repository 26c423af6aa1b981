//! As much of the harness of the tests with real servers as starts them: the models are compared
//! with them.

#![allow(
    dead_code,
    unused_imports,
    reason = "a toolbox: the other tests take more of it"
)]

#[path = "../it/harness/binaries.rs"]
pub(crate) mod binaries;
#[path = "../it/harness/nats.rs"]
pub(crate) mod nats;
#[path = "../it/harness/port.rs"]
pub(crate) mod port;
#[path = "../it/harness/postgres.rs"]
pub(crate) mod postgres;
#[path = "../it/harness/process.rs"]
pub(crate) mod process;
#[path = "../it/harness/wait.rs"]
pub(crate) mod wait;
