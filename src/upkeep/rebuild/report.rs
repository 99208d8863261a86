//! How to rebuild a database, and what came of it, as values.

use crate::format::params::Chunking;
use crate::upkeep::Finding;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// How to rebuild a database. Start from `RebuildOptions::default()`.
#[derive(Clone, Debug)]
pub struct RebuildOptions {
    pub(super) threads: NonZeroUsize,
    pub(super) patience: Duration,
}

impl Default for RebuildOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { threads, patience: Duration::from_secs(10) }
    }
}

impl RebuildOptions {
    /// Threads that check chunks. Default the CPUs there are.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// How long to wait for others that have the store open. Default ten seconds.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// What a rebuild brought back. Made by [`Store::rebuild`](crate::Store::rebuild).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RebuildReport {
    /// Where the database is that was there before; its log, if it had one, lies beside it.
    pub set_aside: Option<PathBuf>,
    /// What `STORE` says now if it was lost or damaged and had to be made anew: what it said before where a single byte was
    /// damaged, else the default.
    pub parameters: Option<Chunking>,
    /// What the database before could not be asked for, or not to the end: `layers`, `images`, `snapshots`.
    pub unsalvaged: Vec<&'static str>,
    /// Packs.
    pub packs: u64,
    /// Chunks whose bytes were read and are what their ids say.
    pub chunks: u64,
    /// Bytes of those, padding included.
    pub bytes: u64,
    /// Chunks that packs once had and whose space reads as zeros: gc gave it back, or they are lost.
    pub gone: u64,
    /// Chunks whose bytes are not what their ids say. They are left out, so that imports bring them back.
    pub damaged: u64,
    /// Layers, all of them held.
    pub layers: u64,
    /// Images that have the names they had.
    pub images: Vec<String>,
    /// Images whose names are lost, under the digests of their manifests.
    pub unnamed: Vec<String>,
    /// Layers' blobs that were kept.
    pub blobs: u64,
    /// Snapshots as they were.
    pub snapshots: u64,
    /// Directories of snapshots that nothing else is known of. They are snapshots of the namespace `lost+found` now.
    pub lost: Vec<PathBuf>,
    /// What remains damaged, and whom it hurts.
    pub findings: Vec<Finding>,
}

impl RebuildReport {
    /// Whether nothing is known to be damaged or lost but names.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}
