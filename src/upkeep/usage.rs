//! What a store takes on disk, and what it holds for that.

use super::gc::disk_of as disk_of_one;
use crate::error::Result;
use crate::store::Store;
use crate::sys::publish::io_error;
use crate::sys::upper::disk_usage_readable;
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
    /// Disk taken by directories of snapshots, with what was written to them.
    pub snapshots: u64,
    /// Disk taken by extracted layers, which overlay mounts show.
    pub trees: u64,
    /// Disk taken by metadata images, which EROFS mounts show.
    pub images: u64,
    /// Disk taken by all the rest: what is being written, the reserve, locks, and directories themselves.
    pub other: u64,
}

impl Usage {
    /// Disk taken in all.
    pub fn total(&self) -> u64 {
        let content = self.packs + self.records + self.blobs + self.database;
        content + self.snapshots + self.trees + self.images + self.other
    }
}

impl Store {
    /// What the store takes and holds. Looks at every file below the store's directory, but at nothing that is mounted
    /// there. Directories of snapshots that cannot be read are left out.
    ///
    /// # Errors
    /// `Io` if one of the store's own directories cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = self.content_usage()?;
        for (name, disk) in
            [("snapshots", &mut usage.snapshots), ("trees", &mut usage.trees), ("images", &mut usage.images)]
        {
            let dir = self.path().join(name);
            *disk = disk_usage_readable(&dir)?.saturating_sub(disk_of_one(&dir));
        }
        usage.other = self.other()?;
        Ok(usage)
    }

    /// What has no field of its own: the directories of the other fields count here, and what is in them does not.
    fn other(&self) -> Result<u64> {
        let mut total = disk_of_one(self.path());
        for found in fs::read_dir(self.path()).map_err(|e| io_error("read directory", self.path(), e))? {
            let found = found.map_err(|e| io_error("read directory", self.path(), e))?;
            let (path, name) = (found.path(), found.file_name());
            let name = name.to_string_lossy();
            total += match found.file_type() {
                Ok(kind) if kind.is_dir() && !COUNTED.contains(&&*name) => disk_usage_readable(&path)?,
                _ if is_database(&name) => 0,
                _ => disk_of_one(&path),
            };
        }
        Ok(total)
    }

    /// As [`usage`](Self::usage), but takes no time that depends on how many files there are in snapshots and extracted
    /// layers: `snapshots`, `trees`, `images` and `other` are 0.
    ///
    /// # Errors
    /// As [`usage`](Self::usage).
    pub fn content_usage(&self) -> Result<Usage> {
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
            database: disk_of(self.path(), is_database)?,
            ..Usage::default()
        })
    }
}

/// Directories whose files have a field.
const COUNTED: [&str; 6] = ["packs", "layers", "blobs", "snapshots", "trees", "images"];

fn is_database(name: &str) -> bool {
    name.starts_with("index.db")
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
