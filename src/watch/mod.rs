//! What those who watch see of an instance: log lines ([`log`]), metrics ([`metrics`]), what it
//! last said of itself ([`vitals`]) over HTTP ([`http`]) and to systemd ([`systemd`]), and the slot
//! as it looks from outside ([`sampler`]). Nothing is decided here.

pub mod http;
pub mod log;
pub mod metrics;
pub mod sampler;
pub mod systemd;
pub mod vitals;
