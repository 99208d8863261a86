//! Any bytes as a metadata image: see `layerstore::internals::erofs_read` for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| layerstore::internals::erofs_read(input));
