#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| outjet::fuzzing::nats(input));
