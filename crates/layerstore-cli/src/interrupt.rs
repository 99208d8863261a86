//! Ctrl-C and SIGTERM: the first asks to stop cleanly, the second ends the process at once.
//!
//! Ending at once is safe, too: a store removes what a dead process left when it is opened next.

use layerstore::{Error, ErrorKind, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

static REQUESTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Listens from now on. Where signals cannot be had, Ctrl-C ends the process as it always did.
pub(crate) fn install() {
    use signal_hook::consts::{SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM] {
        // In this order: a signal that finds the flag up is the second.
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, REQUESTED.clone());
        let _ = signal_hook::flag::register(signal, REQUESTED.clone());
    }
}

pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Fails once a signal came, for work that no library function watches.
pub(crate) fn check() -> Result<()> {
    if requested() { Err(Error::new(ErrorKind::Cancelled, "stopped on request")) } else { Ok(()) }
}
