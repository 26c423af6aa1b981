//! What commands read of the streams and of the record. Nothing here is on an event's path.

pub(crate) mod follower;
mod foreign;
pub(crate) mod ledger;
pub(crate) mod letterbox;
pub(crate) mod schedules;
pub(crate) mod shelf;
pub(crate) mod transcript;
