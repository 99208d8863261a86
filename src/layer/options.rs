//! What an importer may ask for.

use crate::codec::chunk::Compress;
use crate::digest::{Digest, OciDigest};
use crate::limits::Limits;
use std::num::NonZeroUsize;
use std::time::Duration;

/// How to import. Start from `ImportOptions::default()` and change what matters.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    pub(crate) limits: Limits,
    pub(crate) compress: Compress,
    pub(crate) threads: usize,
    pub(crate) keep_blobs: bool,
    pub(crate) expected_blob: Option<OciDigest>,
    pub(crate) expected_diff_id: Option<Digest>,
    pub(crate) patience: Duration,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            compress: Compress::default(),
            threads: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            keep_blobs: false,
            expected_blob: None,
            expected_diff_id: None,
            patience: Duration::from_secs(600),
        }
    }
}

impl ImportOptions {
    /// What untrusted layers may ask for.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How new chunks are compressed. Chunks the store has keep what they were stored with.
    #[must_use]
    pub fn compress(mut self, compress: Compress) -> Self {
        self.compress = compress;
        self
    }

    /// Threads that hash and compress, and layers taken in at a time. Default: the CPUs this process may use.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads.get();
        self
    }

    /// Whether the blobs are kept as they came, so that an export gives the original manifest. Default false.
    #[must_use]
    pub fn keep_blobs(mut self, keep: bool) -> Self {
        self.keep_blobs = keep;
        self
    }

    /// The digest a single layer's blob must have. Images state their own.
    #[must_use]
    pub fn expected_blob(mut self, digest: impl Into<OciDigest>) -> Self {
        self.expected_blob = Some(digest.into());
        self
    }

    /// The diff_id a single layer must have; if the store has it, nothing is read. Images state their own.
    #[must_use]
    pub fn expected_diff_id(mut self, diff_id: Digest) -> Self {
        self.expected_diff_id = Some(diff_id);
        self
    }

    /// How long to wait for another process that imports the same layer. Default ten minutes.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}
