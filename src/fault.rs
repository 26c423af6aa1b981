//! Instants at which a test can have the process die, for those that a `kill -9` from outside meets
//! by luck only. Knows no more than their names.
//!
//! There are none in release builds: nothing can be armed where it matters, and the chaos run,
//! which kills from outside, has before it what is shipped.

/// Aborts here at the n-th passage if the variable `FAULT_POINT` says `name:n`. Not `OUTJET_…`:
/// those are keys of the configuration.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ARMED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("FAULT_POINT").ok()?;
        let (name, passages) = text.split_once(':').expect("FAULT_POINT is name:n");
        let passages = passages.parse().expect("FAULT_POINT ends with a number");
        Some((name.to_owned(), AtomicU64::new(passages)))
    });
    if let Some((armed, left)) = armed
        && armed == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_: &str) {}
