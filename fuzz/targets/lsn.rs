//! No text panics, and one that is an LSN means what Postgres means by it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outjet::lsn::Lsn;

fuzz_target!(|text: &str| {
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
        let plain = |half: &str| half.trim_start_matches('0').to_ascii_uppercase();
        let halves = |text: &str| text.split('/').map(plain).collect::<Vec<_>>();
        assert_eq!(halves(&lsn.to_string()), halves(text));
    }
});
