//! No text panics, one that is a position has only one form, and texts sort as positions do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outjet::event::Position;

fuzz_target!(|texts: (&str, &str)| {
    let parse = |text: &str| {
        let position = text.parse::<Position>().ok()?;
        assert_eq!(position.to_string(), text.to_ascii_uppercase());
        Some(position)
    };
    if let (Some(a), Some(b)) = (parse(texts.0), parse(texts.1)) {
        let upper = |text: &str| text.to_ascii_uppercase();
        assert_eq!(a.cmp(&b), upper(texts.0).cmp(&upper(texts.1)));
    }
});
