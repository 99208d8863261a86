//! What a store takes on disk, and what it holds for that.

use crate::error::Result;
use crate::store::Store;
use crate::sys::publish::io_error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Sizes in bytes. Disk sizes are blocks allocated, as `du` counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Layers in the store.
    pub layers: u64,
    /// The layers' tars, added up.
    pub tar: u64,
    /// Distinct chunks.
    pub chunks: u64,
    /// Their content before compression.
    pub raw: u64,
    /// Their content after compression, without padding.
    pub stored: u64,
    /// Disk taken by packs.
    pub packs: u64,
    /// Disk taken by layer records.
    pub records: u64,
    /// Disk taken by configurations, manifests and kept blobs.
    pub blobs: u64,
    /// Disk taken by the database.
    pub database: u64,
}

impl Usage {
    /// Disk taken in all.
    pub fn total(&self) -> u64 {
        self.packs + self.records + self.blobs + self.database
    }
}

impl Store {
    /// What the store takes and holds.
    ///
    /// # Errors
    /// `Io` if a directory cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        let (chunks, stored, raw) = self.with_index(|index| index.totals())?;
        let layers = self.layers()?;
        let disk = |name: &str| disk_of(&self.path().join(name), |_| true);
        Ok(Usage {
            layers: layers.len() as u64,
            tar: layers.iter().map(|l| l.tar_size).sum(),
            chunks,
            raw,
            stored,
            packs: disk("packs")?,
            records: disk("layers")?,
            blobs: disk("blobs")?,
            database: disk_of(self.path(), |name| name.starts_with("index.db"))?,
        })
    }
}

/// Blocks allocated to the files of one directory.
fn disk_of(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<u64> {
    let mut total = 0;
    for file in fs::read_dir(dir).map_err(|e| io_error("read directory", dir, e))? {
        let file = file.map_err(|e| io_error("read directory", dir, e))?;
        if wanted(&file.file_name().to_string_lossy()) {
            // A file that vanished since was a draft or a journal.
            total += file.metadata().map_or(0, |m| m.blocks() * 512);
        }
    }
    Ok(total)
}
