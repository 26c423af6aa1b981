//! Leading: taking the slot ([`term`]), streaming from it ([`relay`]), what is under way
//! ([`window`]), what is known of it later ([`record`], [`watermark`]), and looking after the
//! partitions meanwhile ([`retention`]).

pub mod record;
pub mod relay;
pub mod retention;
pub mod term;
pub mod watermark;
pub mod window;
