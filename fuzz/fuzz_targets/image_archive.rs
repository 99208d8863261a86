//! Any bytes as image archives and the JSON in them: see `layerstore::fuzzing::image_archive` for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| layerstore::fuzzing::image_archive(input));
