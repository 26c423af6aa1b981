//! The `outjet` program.

fn main() {}
