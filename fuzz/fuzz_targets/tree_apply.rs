//! Layers made of any bytes, against a model: see `layerstore::fuzzing::tree_apply` for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| layerstore::fuzzing::tree_apply(input));
