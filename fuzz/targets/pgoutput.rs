//! No body panics, and one that decodes lost nothing: it encodes to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outjet::pg::pgoutput::{decode, encode::encode};

fuzz_target!(|body: &[u8]| {
    if let Ok(message) = decode(body) {
        assert_eq!(encode(&message), body, "{message:?}");
    }
});
