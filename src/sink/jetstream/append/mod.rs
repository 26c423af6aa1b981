//! Appends events in order, each once: the chain and what it may expect of the stream, what a new
//! term or connection must know of the past, the record, and what takes an event aside.

pub(crate) mod batch;
pub(crate) mod chain;
pub(crate) mod detour;
pub(crate) mod epoch;
pub(crate) mod hold;
pub(crate) mod memory;
pub(crate) mod past;
pub(crate) mod places;
pub(crate) mod record;
pub(crate) mod send;
pub(crate) mod shared;
