//! Operations of a store while writing fails: see `layerstore::fuzzing::store_operations` for what must hold.
//!
//! Each input makes a store below `$TMPDIR`; on tmpfs that is ten times as fast.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        // A write past the limit on file sizes is to fail, not to kill.
        // SAFETY: no handler runs; the signal is ignored.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    },
    |input: &[u8]| layerstore::fuzzing::store_operations(input, true)
);
