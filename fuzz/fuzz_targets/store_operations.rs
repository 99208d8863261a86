//! Operations of a store while writing fails: see `layerstore::fuzzing::store_operations` for what must hold.
//!
//! Each input makes a store below `$TMPDIR`; on tmpfs that is ten times as fast.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::Once;

static IGNORED: Once = Once::new();

fuzz_target!(|input: &[u8]| {
    // A write past the limit on file sizes is to fail, not to kill. libFuzzer takes the signal for itself when it begins,
    // so this comes later than that.
    IGNORED.call_once(|| {
        // SAFETY: no handler runs; the signal is ignored.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    });
    layerstore::fuzzing::store_operations(input, true)
});
