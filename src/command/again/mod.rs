//! What goes out once more: rows that a person names ([`replay`]), and those of dead letters
//! ([`retry`]). Both hand them to whoever leads ([`handover`]).

mod handover;
pub(super) mod replay;
pub(super) mod retry;
