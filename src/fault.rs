//! Instants at which a test can have the process die, for those that a `kill -9` from outside meets
//! by luck only. Knows no more than their names.
//!
//! There are none in release builds: nothing can be armed where it matters, and the chaos run,
//! which kills from outside, has before it what is shipped.

/// Aborts here at the n-th passage if the variable `FAULT_POINT` says `name:n`; panics if it says
/// `name:n:panic`. Not `OUTJET_…`: those are keys of the configuration.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Armed {
        name: String,
        left: AtomicU64,
        panics: bool,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("FAULT_POINT").ok()?;
        let dying = text.strip_suffix(":panic");
        let (name, passages) = dying
            .unwrap_or(&text)
            .split_once(':')
            .expect("FAULT_POINT is name:n");
        Some(Armed {
            name: name.to_owned(),
            left: AtomicU64::new(passages.parse().expect("FAULT_POINT has a number")),
            panics: dying.is_some(),
        })
    });
    if let Some(armed) = armed
        && armed.name == name
        && armed.left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        assert!(!armed.panics, "FAULT_POINT asks for it");
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_: &str) {}
