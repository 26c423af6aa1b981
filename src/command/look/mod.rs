//! What people look at and outjet judges. Nothing here changes what is published.

pub mod check;
pub(super) mod compare;
pub(super) mod inspect;
pub mod record;
pub mod status;
pub(super) mod tail;
pub(super) mod verify;
