//! Any bytes as short texts from outside: see `layerstore::fuzzing::texts` for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| layerstore::fuzzing::texts(input));
