//! What gc will remove, and what it has removed, as values.

use std::path::PathBuf;
use std::time::Duration;

/// How to collect garbage. Start from `GcOptions::default()`.
#[derive(Clone, Debug)]
pub struct GcOptions {
    pub(super) patience: Duration,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { patience: Duration::from_secs(60) }
    }
}

impl GcOptions {
    /// How long to wait for another process that collects garbage in this store. Default one minute.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// What sort of thing is garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum GarbageKind {
    /// A layer: its rows and its record.
    Layer,
    /// A configuration, a manifest, or a layer's blob that was kept.
    Blob,
    /// A layer extracted as a directory.
    Tree,
    /// A chain's metadata image, and where it is mounted.
    Image,
    /// A directory of a snapshot.
    Snapshot,
    /// A pack none of whose chunks is needed.
    Pack,
}

impl GarbageKind {
    /// One lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Blob => "blob",
            Self::Tree => "tree",
            Self::Image => "image",
            Self::Snapshot => "snapshot",
            Self::Pack => "pack",
        }
    }
}

/// Something to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Garbage {
    /// What it is.
    pub kind: GarbageKind,
    /// Its name: digits of a digest or chain_id, a snapshot's number, a pack's first address.
    pub name: String,
    /// Disk it takes.
    pub bytes: u64,
    /// Why nothing needs it.
    pub why: &'static str,
}

/// What gc would remove. Made by [`Store::gc_plan`](crate::Store::gc_plan).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcPlan {
    /// Files and directories.
    pub garbage: Vec<Garbage>,
    /// Chunks that no layer needs, those in packs that go included.
    pub chunks: u64,
    /// Disk given back by punching holes into packs that stay.
    pub punch: u64,
    /// Packs that are damaged, so that nobody knows where their tables begin: they stay as they are until they are
    /// repaired.
    pub damaged: Vec<PathBuf>,
}

impl GcPlan {
    /// Disk given back in all.
    pub fn bytes(&self) -> u64 {
        self.garbage.iter().map(|g| g.bytes).sum::<u64>() + self.punch
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.garbage.is_empty() && self.chunks == 0 && self.punch == 0
    }
}

/// What gc removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcReport {
    /// Files and directories.
    pub removed: Vec<Garbage>,
    /// Chunks taken out of the index.
    pub chunks: u64,
    /// Disk given back by punching holes.
    pub punched: u64,
    /// Chunks whose space waits: an import is running that began before they died, or a metadata image that is still
    /// mounted refers to them. A later gc frees it.
    pub waiting: u64,
    /// Disk that could not be given back, because the file system cannot punch holes.
    pub unpunched: u64,
    /// Packs that are damaged and were left as they are, even if no chunk in them is needed.
    pub damaged: Vec<PathBuf>,
}

impl GcReport {
    /// Disk given back in all.
    pub fn bytes(&self) -> u64 {
        self.removed.iter().map(|g| g.bytes).sum::<u64>() + self.punched
    }
}
