//! How to check a store, and what was found, as values.

use crate::digest::Digest;
use crate::error::Error;
use crate::id::ContentId;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// How to check a store. Start from `FsckOptions::default()`.
#[derive(Clone, Debug)]
pub struct FsckOptions {
    pub(super) full: bool,
    pub(super) tars: bool,
    pub(super) threads: NonZeroUsize,
}

impl Default for FsckOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { full: false, tars: false, threads }
    }
}

impl FsckOptions {
    /// Whether to read every byte of every chunk, blob and metadata image, and to compare extracted directories with
    /// their layers, instead of reading only what says where things are. Default false.
    #[must_use]
    pub fn full(mut self, full: bool) -> Self {
        self.full = full;
        self
    }

    /// Whether to put every layer's tar together and hold it against its diff_id: then whatever its record says of
    /// its content is proven, too. Takes as long as exporting all layers. Default false.
    #[must_use]
    pub fn tars(mut self, tars: bool) -> Self {
        self.tars = tars;
        self
    }

    /// Threads that check chunks. Default the CPUs there are.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }
}

/// What sort of thing is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DamageKind {
    /// `STORE`, the parameters.
    Store,
    /// The database.
    Database,
    /// A pack, apart from its chunks.
    Pack,
    /// A chunk in a pack.
    Chunk,
    /// A layer's record.
    Record,
    /// A configuration, a manifest, or a layer's blob that was kept.
    Blob,
    /// A chain's metadata image. It is derived, and made anew by the mount that needs it.
    Image,
    /// A layer's extracted directory. It is derived: once it is taken away, and nothing that is mounted uses it, the next
    /// mount that needs it makes it anew.
    Tree,
    /// A snapshot's own directory.
    Snapshot,
}

impl DamageKind {
    /// One lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Database => "database",
            Self::Pack => "pack",
            Self::Chunk => "chunk",
            Self::Record => "record",
            Self::Blob => "blob",
            Self::Image => "image",
            Self::Tree => "tree",
            Self::Snapshot => "snapshot",
        }
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What sort of thing it is.
    pub kind: DamageKind,
    /// The file.
    pub file: PathBuf,
    /// Byte of the file at which what is damaged begins, where known.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// The chunk that is damaged or missing.
    pub chunk: Option<ContentId>,
    /// Layers that need what is damaged, sorted.
    pub layers: Vec<Digest>,
    /// Names of images that need it, sorted.
    pub images: Vec<String>,
}

impl Finding {
    pub(in crate::upkeep) fn new(kind: DamageKind, file: &std::path::Path, what: impl Into<String>) -> Self {
        let (file, what) = (file.to_owned(), what.into());
        Self { kind, file, offset: None, what, chunk: None, layers: vec![], images: vec![] }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FsckCounts {
    /// Packs.
    pub packs: u64,
    /// Chunks whose rows and tables agree.
    pub chunks: u64,
    /// Chunks that were read, decoded and compared with their ids.
    pub read: u64,
    /// Bytes of those in packs, padding included.
    pub bytes: u64,
    /// Layers.
    pub layers: u64,
    /// Configurations, manifests and kept blobs.
    pub blobs: u64,
    /// Metadata images.
    pub images: u64,
    /// Extracted directories that were compared with their layers, in full checks.
    pub trees: u64,
    /// Snapshots whose directories were looked for.
    pub snapshots: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FsckReport {
    /// All damage; empty for a sound store.
    pub findings: Vec<Finding>,
    /// What was looked at.
    pub counts: FsckCounts,
}

impl FsckReport {
    /// Whether no damage was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// What an error says, less its subjects, which a finding has in fields of their own.
pub(super) fn words(error: &Error) -> String {
    let mut text = error.message().to_owned();
    match error.mismatch() {
        (Some(e), Some(a)) => text += &format!(" (expected {e}, found {a})"),
        (Some(e), None) => text += &format!(" (expected {e})"),
        (None, Some(a)) => text += &format!(" (found {a})"),
        (None, None) => {}
    }
    match error.io_error() {
        Some(cause) => format!("{text}: {cause}"),
        None => text,
    }
}
