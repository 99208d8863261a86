//! What gc will remove, and what it has removed, as values.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// How to collect garbage. Start from `GcOptions::default()`.
#[derive(Clone, Debug)]
pub struct GcOptions {
    pub(super) patience: Duration,
    pub(super) now: bool,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { patience: Duration::from_secs(60), now: false }
    }
}

impl GcOptions {
    /// How long to wait for another process that collects garbage in this store. Default one minute.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Lets go at once of snapshots that were made for a mount of an image and that nothing stands on any more; else they
    /// wait five minutes for the next mount. A mount that is being made at that moment may fail, and works when it is
    /// tried again. Default false.
    #[must_use]
    pub fn now(mut self, now: bool) -> Self {
        self.now = now;
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

/// Layers that nothing keeps but a snapshot that was made for a mount of an image, and waits for the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kept {
    /// Whose snapshot it is.
    pub namespace: String,
    /// Its name, the chain_id of the image's layers.
    pub key: String,
    /// Until when it waits, in seconds since 1970.
    pub until: i64,
    /// How many layers nothing else keeps.
    pub layers: u64,
    /// Bytes of their tars.
    pub tar: u64,
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
    /// What would be garbage, but for snapshots that wait: see [`GcOptions::now`].
    pub kept: Vec<Kept>,
    /// Directories that would be garbage, but for mounts that show them, as names below the store.
    pub mounted: Vec<PathBuf>,
    /// Numbers of snapshots that were made for images' layers and go.
    pub(in crate::upkeep) implied: Vec<u64>,
    /// Bases of packs of which something is given back.
    pub(super) packs: BTreeSet<u64>,
}

impl GcPlan {
    /// Disk given back in all.
    pub fn bytes(&self) -> u64 {
        self.garbage.iter().map(|g| g.bytes).sum::<u64>() + self.punch
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.garbage.is_empty() && self.chunks == 0 && self.punch == 0 && self.implied.is_empty()
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
    /// What is kept only by snapshots that wait, as the plan told.
    pub kept: Vec<Kept>,
    /// Directories that only mounts keep, as the plan told.
    pub mounted: Vec<PathBuf>,
}

impl GcReport {
    /// Disk given back in all.
    pub fn bytes(&self) -> u64 {
        self.removed.iter().map(|g| g.bytes).sum::<u64>() + self.punched
    }
}
