//! Records, blobs and metadata images.

use super::Repair;
use crate::codec::chunk::Compress;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::format::erofs::read::Image;
use crate::layer::{ImportOptions, LayerJob, import_layers};
use crate::observe::check;
use crate::snapshot::stale;
use crate::store::{Change, Ingest, Moves, Outcome, chunk_refs};
use crate::sys::publish::{Draft, io_error, sync_dir};
use std::fs::{self, File};
use std::io::Seek;
use std::path::Path;

impl Repair<'_> {
    /// Layers whose records are damaged, and those that need chunks which could not be had: they are imported again from
    /// a source that has them.
    pub(super) fn records(&mut self) -> Result<()> {
        let mut layers = self.needs.records.clone();
        for layer in self.needs.layers.iter().filter(|_| !self.needs.chunks.is_empty()) {
            let mut hurt = false;
            let note = |id| {
                check(self.observer)?;
                hurt |= self.needs.chunks.contains(&id);
                Ok(())
            };
            if let Ok(file) = File::open(self.store.record_path(layer)) {
                let _ = chunk_refs(&file, layer, note);
            }
            if hurt {
                layers.insert(*layer);
            }
        }
        for layer in layers {
            check(self.observer)?;
            match self.import_again(&layer) {
                Ok(true) => self.report.records.push(layer),
                Ok(false) => {}
                Err(e) if matches!(e.kind(), ErrorKind::Cancelled | ErrorKind::Busy | ErrorKind::Io) => return Err(e),
                Err(e) => self.report.refuse(format!("layer {layer}"), &e),
            }
        }
        Ok(())
    }

    /// False if no source has the layer.
    fn import_again(&mut self, layer: &Digest) -> Result<bool> {
        let Some(donor) = self.donors.stores().find_map(|donor| donor.layer(layer).ok()) else { return Ok(false) };
        let dir = self.scratch.path();
        let mut tar = tempfile::tempfile_in(dir).map_err(|e| io_error("create a file below", dir, e))?;
        donor.export(&mut tar, self.options.threads, self.observer)?;
        tar.rewind().map_err(|e| io_error("read", dir, e))?;
        let _lock = self.store.lock_layer(layer, self.options.patience, self.observer)?;
        let options = ImportOptions::default().threads(self.options.threads);
        let ingest = Ingest::begin(self.store, Compress::default(), self.options.threads.get())?;
        let ingest = ingest.distrusting(self.distrusted());
        let job = LayerJob {
            number: 0,
            source: Box::new(move || Ok(Box::new(tar))),
            size: None,
            expected_blob: None,
            expected_diff_id: Some((*layer).into()),
        };
        let Some(done) = import_layers(&ingest, vec![job], &options, self.observer)?.pop() else { return Ok(false) };
        let (info, mut record) = done.into_record();
        record.sync()?;
        record.move_to(dir.join("record"))?;
        // The chunks first: a record must not refer to what a crash would take back.
        ingest.commit(Outcome { moves: Moves::Damaged, ..Outcome::default() }, |_| Ok(()))?;
        let path = self.store.record_path(layer);
        let publish = |change: &Change<'_>| {
            change.describe_layer(&info)?;
            record.rename(&path)?;
            sync_dir(&self.store.path().join("layers"))
        };
        self.store.with_index(|index| index.write(publish))?;
        Ok(true)
    }

    /// Configurations, manifests and kept blobs.
    pub(super) fn blobs(&mut self) -> Result<()> {
        for digest in std::mem::take(&mut self.needs.blobs) {
            check(self.observer)?;
            let draft = || {
                let path = self.scratch.path().join("blob");
                let _ = fs::remove_file(&path);
                Draft::create(path)
            };
            match self.donors.blob(&digest, draft) {
                Ok(Some(mut draft)) => {
                    draft.sync()?;
                    let path = self.store.blob_path(&digest);
                    let publish = |_: &Change<'_>| {
                        draft.rename(&path)?;
                        sync_dir(&self.store.path().join("blobs"))
                    };
                    self.store.with_index(|index| index.write(publish))?;
                    self.report.blobs.push(digest);
                }
                Ok(None) => {}
                Err(e) if matches!(e.kind(), ErrorKind::Cancelled | ErrorKind::Io) => return Err(e),
                Err(e) => self.report.refuse(format!("blob {digest}"), &e),
            }
        }
        Ok(())
    }

    /// Metadata images that are damaged, or show chunks at places that were. They are made anew when they are wanted.
    pub(super) fn images(&mut self) -> Result<()> {
        let dir = self.store.path().join("images");
        for found in fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?.flatten() {
            check(self.observer)?;
            let path = found.path();
            let chain = path.file_stem().and_then(|name| Digest::from_hex(name.to_str()?).ok());
            let Some(chain) = chain.filter(|_| path.extension().is_some_and(|e| e == "erofs")) else { continue };
            if self.needs.images.contains(&chain) || self.shows_damage(&path) {
                self.store.with_index(|index| index.write(|_| stale::retire(self.store.path(), &chain)))?;
            }
        }
        self.stale_images()
    }

    /// Removes the images that lost their names, as far as nobody has them mounted.
    pub(super) fn stale_images(&mut self) -> Result<()> {
        let root = self.store.path();
        if stale::images(root)?.is_empty() {
            return Ok(());
        }
        let take = |image: &Path| {
            let target = self.scratch.path().join(image.file_name().unwrap_or_default());
            fs::rename(image, target).map_err(|e| io_error("move away", image, e)).map(|()| true)
        };
        let drop_unused = |change: &Change<'_>| stale::drop_unused(root, change, take);
        (self.report.images, self.report.mounted) = self.store.with_index(|index| index.write(drop_unused))?;
        Ok(())
    }

    fn shows_damage(&self, path: &Path) -> bool {
        let Ok(bytes) = fs::read(path) else { return true };
        let ranges = Image::new(&bytes).and_then(|image| image.verify().and_then(|()| image.ranges()));
        let Ok(ranges) = ranges else { return true };
        let damaged = |start: u64, end: u64| self.needs.blocks.iter().any(|b| b.start < end && start < b.end);
        ranges.iter().any(|range| damaged(range.start.into(), range.end.into()))
    }
}
