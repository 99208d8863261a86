//! Any bytes as a layer record: see `layerstore::internals::layer_record` for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| layerstore::internals::layer_record(input));
