//! Layers extracted once, each to a directory of its own, for overlayfs to stack.
//!
//! What a layer's directory holds depends on the layers below it (hard links to lower files, symlinked parents, implied
//! directories), so it belongs to a chain: `trees/<chain_id>`. Chains with the same lowest layers share those.

use super::{Driver, DriverKind};
use crate::digest::Digest;
use crate::error::Result;
use crate::observe::Observer;
use crate::snapshot::extract::{self, ExtractOptions};
use crate::store::Store;
use crate::sys::lock::Lock;
use crate::sys::publish::{io_error, sync_dir};
use crate::sys::upper::sync_file_system;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for another process that extracts the same chain.
const PATIENCE: Duration = Duration::from_secs(1800);

pub(super) struct Overlay {
    store: Arc<Store>,
}

impl Overlay {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }
}

impl Driver for Overlay {
    fn kind(&self) -> DriverKind {
        DriverKind::Overlay
    }

    fn lowers(&self, layers: &[Digest], observer: &dyn Observer) -> Result<Vec<PathBuf>> {
        let trees = self.store.path().join("trees");
        let paths: Vec<PathBuf> = (1..=layers.len())
            .filter_map(|count| Digest::chain_of(&layers[..count]))
            .map(|chain_id| trees.join(chain_id.hex()))
            .collect();
        let missing = |paths: &[PathBuf]| -> Vec<usize> { (0..paths.len()).filter(|&i| !paths[i].exists()).collect() };
        if missing(&paths).is_empty() {
            return Ok(paths);
        }
        // One lock for the lowest layer is one for all chains that share anything.
        let name = format!("tree-{}", layers[0].hex());
        let _lock = Lock::acquire(&self.store.path().join("locks").join(name), PATIENCE, observer)?;
        let missing = missing(&paths);
        let scratch = self.store.scratch()?;
        let wanted: Vec<(usize, PathBuf)> = missing.iter().map(|&i| (i, scratch.path().join(i.to_string()))).collect();
        extract::layer_directories(&self.store, layers, &wanted, &ExtractOptions::default(), observer)?;
        sync_file_system(scratch.path())?;
        for (i, from) in &wanted {
            fs::rename(from, &paths[*i]).map_err(|e| io_error("rename into place", &paths[*i], e))?;
        }
        sync_dir(&trees)?;
        Ok(paths)
    }
}
