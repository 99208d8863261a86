//! What to repair from, how, and what came of it, as values.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::id::ContentId;
use crate::image::source::{Detected, ImageSource, detect};
use crate::limits::Limits;
use crate::store::{OpenOptions, Store};
use crate::upkeep::FsckReport;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where sound bytes come from.
#[non_exhaustive]
pub enum RepairSource {
    /// Another store: anything it has.
    Store(Store),
    /// The images of a layout or an archive, all of them.
    Image(ImageSource),
    /// A layer's blob: a tar, plain or compressed.
    Layer(PathBuf),
}

impl RepairSource {
    /// Tells what `path` holds, as [`detect`] does, and whether it is a store.
    ///
    /// # Errors
    /// As [`detect`], and as [`Store::open`] where it is a store.
    pub fn detect(path: &Path, spool_dir: &Path, limits: &Limits) -> Result<Self> {
        if path.join("STORE").is_file() {
            return Store::open_with(path, &OpenOptions::default().create(false)).map(Self::Store);
        }
        Ok(match detect(path, spool_dir, limits)? {
            Detected::Image(image) => Self::Image(image),
            Detected::Layer => Self::Layer(path.to_owned()),
        })
    }
}

/// How to repair. Start from `RepairOptions::default()`.
#[derive(Clone, Debug)]
pub struct RepairOptions {
    pub(super) threads: NonZeroUsize,
    pub(super) patience: Duration,
}

impl Default for RepairOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { threads, patience: Duration::from_secs(60) }
    }
}

impl RepairOptions {
    /// Threads at work. Default the CPUs there are.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// How long to wait for another process that collects garbage, repairs, or imports a layer that is to be mended.
    /// Default one minute.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// A chunk of which a source had only some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartOfChunk {
    /// The chunk, as a rule a bundle of small files.
    pub chunk: ContentId,
    /// Bytes that the source had.
    pub found: u64,
    /// Bytes in all, where known.
    pub of: Option<u64>,
}

/// What a repair did. Made by [`Store::repair`](crate::Store::repair).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// How much was found to be damaged.
    pub findings: usize,
    /// Chunks that were damaged or missing and are sound now, each compared with its id.
    pub chunks: Vec<ContentId>,
    /// Chunks whose content is right that were moved out of damaged packs, or from damaged places in sound ones.
    pub moved: u64,
    /// Layers whose records were made anew, each proven by the layer's diff_id.
    pub records: Vec<Digest>,
    /// Configurations, manifests and kept blobs that were damaged or missing.
    pub blobs: Vec<Digest>,
    /// Damaged packs that nothing needs any more and that were removed.
    pub packs: Vec<PathBuf>,
    /// Metadata images that were damaged, or showed what was, and were removed; mounts make them anew.
    pub images: Vec<PathBuf>,
    /// Metadata images that show damage still, because somebody has them mounted.
    pub mounted: Vec<PathBuf>,
    /// Chunks that could not be put together from what the source had of them.
    pub parts: Vec<PartOfChunk>,
    /// What of the source could not be used, and why.
    pub refused: Vec<String>,
    /// What is damaged still, and whom it hurts.
    pub remaining: FsckReport,
}

impl RepairReport {
    /// Whether nothing is damaged any more.
    pub fn is_clean(&self) -> bool {
        self.remaining.is_clean() && self.mounted.is_empty()
    }

    pub(super) fn refuse(&mut self, what: impl std::fmt::Display, error: &Error) {
        self.refused.push(format!("{what}: {error}"));
    }
}
