//! Where an event goes that does not simply go out: dead letters, schedules, bodies. Each takes an
//! event and says what became of it, and knows nothing of what is appended meanwhile.

pub(crate) mod bodies;
pub(crate) mod delayed;
pub(crate) mod letters;
