//! What lies beside the stream: dead letters, and what is not due yet.

pub(super) mod dead_letters;
pub(super) mod delayed;
