//! Tars of any bytes, or made by a grammar, against two other readers: see `layerstore::fuzzing::tar_differential` for what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| layerstore::fuzzing::tar_differential(input));
