//! No text panics, one that is a position has only one form, and texts sort as positions do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outjet::event::Position;

fuzz_target!(|texts: &str| {
    let parse = |text: &str| {
        let position = text.parse::<Position>().ok()?;
        let form = text.to_ascii_uppercase();
        assert_eq!(position.to_string(), form);
        Some((position, form))
    };
    let (a, b) = texts.split_once(' ').unwrap_or((texts, ""));
    if let (Some(a), Some(b)) = (parse(a), parse(b)) {
        assert_eq!(a.0.cmp(&b.0), a.1.cmp(&b.1));
    }
});
