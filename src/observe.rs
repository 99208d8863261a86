//! Progress and cancellation, through one trait.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Something that happened during a long operation. Sizes are in bytes.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Work on a layer begins; `total` is the size of its blob where known.
    LayerStarted {
        /// The layer's number in the image, from 0.
        layer: usize,
        /// Size of the blob as stored at the source.
        total: Option<u64>,
    },
    /// More bytes of a layer's blob were read from its source.
    LayerProgress {
        /// The layer's number in the image, from 0.
        layer: usize,
        /// Bytes since the previous event for this layer.
        bytes: u64,
    },
    /// A layer is complete and verified.
    LayerFinished {
        /// The layer's number in the image, from 0.
        layer: usize,
        /// The layer's id.
        diff_id: Digest,
        /// It was in the store before, so nothing was read.
        known: bool,
    },
    /// More bytes of files were written to a directory.
    Extracted {
        /// Bytes since the previous event.
        bytes: u64,
    },
    /// More bytes of packs were read and checked.
    Checked {
        /// Bytes since the previous event.
        bytes: u64,
    },
    /// More raw bytes were written to an export.
    Exported {
        /// Bytes since the previous event.
        bytes: u64,
    },
}

/// Watches a long operation and may stop it. Called from several threads at once; calls must return quickly.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event);

    /// Something a directory has at `path` was left out of a layer made of it, since layers hold no such thing.
    fn skipped(&self, path: &[u8], reason: &str) {
        let _ = (path, reason);
    }

    /// Return true to stop; the operation then fails with [`ErrorKind::Cancelled`] and leaves nothing behind.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing, stops nothing.
impl Observer for () {
    fn event(&self, _: Event) {}
}

/// Fails once the observer asks to stop.
pub(crate) fn check(observer: &dyn Observer) -> Result<()> {
    if observer.cancelled() { Err(Error::new(ErrorKind::Cancelled, "stopped on request")) } else { Ok(()) }
}
