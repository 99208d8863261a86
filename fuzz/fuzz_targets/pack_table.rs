//! Any bytes as a pack's table and footer: see `layerstore::internals::pack_table` for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| layerstore::internals::pack_table(input));
