//! Leading: taking the slot ([`term`]), streaming from it ([`relay`]), what is under way
//! ([`window`]), and looking after the partitions meanwhile ([`retention`]).

pub mod relay;
pub mod retention;
pub mod term;
pub mod window;
