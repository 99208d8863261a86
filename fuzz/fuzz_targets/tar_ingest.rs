//! Any bytes as a tar, pushed in pieces: see `layerstore::fuzzing::tar_ingest` for what must hold.
//!
//! `cargo fuzz run --sanitizer none tar_ingest fuzz/corpus/tar_ingest fuzz/seeds/tar_ingest -- -dict=fuzz/dict/tar.dict`
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| layerstore::fuzzing::tar_ingest(input));
