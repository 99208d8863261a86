//! Layers' records, blobs, and metadata images.

use super::{Check, DamageKind, uncancelled};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::format::erofs::read::Image;
use crate::id::ContentId;
use crate::layer::Layer;
use crate::observe::{Observer, check};
use crate::store::{Index, chunk_refs};
use crate::sys::cache::ReadOnce;
use crate::sys::publish::io_error;
use crate::upkeep::verify::sha256;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// What needs a blob: layers and images; and its size where known.
type Wanted = (Vec<Digest>, Vec<String>, Option<u64>);

impl Check<'_> {
    pub(super) fn records(&mut self, index: &Index) -> Result<()> {
        for layer in self.layers.clone() {
            check(self.observer)?;
            self.report.counts.layers += 1;
            let (path, first) = (self.store.record_path(&layer.diff_id), self.report.findings.len());
            let missing = match missing(&path, &layer.diff_id, index, self.observer) {
                Ok(missing) => missing,
                Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
                Err(e) => {
                    self.found(DamageKind::Record, &path, &e);
                    vec![]
                }
            };
            for (id, what) in missing {
                let number = self.tell(DamageKind::Record, &path, what);
                self.report.findings[number].chunk = Some(id);
            }
            if self.report.findings.len() == first
                && let Err(e) = uncancelled(self.record(&layer.diff_id))?
            {
                self.found(DamageKind::Record, &path, &e);
            }
            self.report.findings[first..].iter_mut().for_each(|f| f.layers.push(layer.diff_id));
        }
        Ok(())
    }

    /// A record whose sums are right: whether the database says the same, in full whether it can be decoded, and whether
    /// its tar comes back if that is asked for.
    pub(super) fn record(&self, layer: &Digest) -> Result<()> {
        let layer = self.store.layer(layer)?;
        if self.options.tars {
            self.tar(&layer)?;
        }
        if self.options.full {
            let mut entries = 0u64;
            for entry in layer.entries()? {
                entry?;
                entries += 1;
                if entries.is_multiple_of(4096) {
                    check(self.observer)?;
                }
            }
            if entries != layer.len() {
                return Err(Error::corrupt("layer has another number of entries")
                    .expected(layer.len())
                    .actual(entries));
            }
        }
        Ok(())
    }

    /// The tar of a layer of which no chunk is known to be damaged.
    fn tar(&self, layer: &Layer<'_>) -> Result<()> {
        let diff_id = layer.diff_id();
        let (path, mut hurt) = (self.store.record_path(&diff_id), false);
        let file = File::open(&path).map_err(|e| io_error("open", &path, e))?;
        chunk_refs(&file, &diff_id, |id| {
            check(self.observer)?;
            hurt |= self.hurt.contains_key(&id);
            Ok(())
        })?;
        match hurt {
            true => Ok(()),
            false => layer.export(&mut io::sink(), self.options.threads, self.observer).map(drop),
        }
    }

    pub(super) fn blobs(&mut self) -> Result<()> {
        // By digest, whom it hurts and what size it has.
        let mut blobs: BTreeMap<Digest, Wanted> = BTreeMap::new();
        for image in &self.roots.images {
            for digest in [image.config, image.manifest] {
                let blob = blobs.entry(digest).or_default();
                blob.0.extend(&image.layers);
                blob.1.push(image.name.clone());
            }
        }
        for kept in &self.kept {
            let blob = blobs.entry(kept.digest).or_default();
            blob.0.push(kept.diff_id);
            blob.2 = Some(kept.size);
        }
        for (digest, (layers, images, size)) in blobs {
            check(self.observer)?;
            self.report.counts.blobs += 1;
            let path = self.store.blob_path(&digest);
            if let Err(e) = uncancelled(self.blob(&path, &digest, size))? {
                let number = self.found(DamageKind::Blob, &path, &e);
                let finding = &mut self.report.findings[number];
                (finding.layers, finding.images) = (layers, images);
            }
        }
        Ok(())
    }

    pub(super) fn blob(&self, path: &Path, digest: &Digest, size: Option<u64>) -> Result<()> {
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt("blob is missing"),
            _ => io_error("open", path, e),
        })?;
        let len = file.metadata().map_err(|e| io_error("stat", path, e))?.len();
        if let Some(size) = size.filter(|size| *size != len) {
            return Err(Error::corrupt("blob has another length").expected(size).actual(len));
        }
        if len == 0 {
            return Err(Error::corrupt("blob is empty"));
        }
        if !self.options.full {
            return Ok(());
        }
        let (actual, _) = sha256(ReadOnce::new(file), self.observer).map_err(|e| e.subject(path.display()))?;
        match actual == *digest {
            true => Ok(()),
            false => Err(Error::corrupt("blob does not match its digest").expected(digest).actual(actual)),
        }
    }

    /// Metadata images, whether or not anything needs them still: mounts may.
    pub(super) fn images(&mut self) -> Result<()> {
        let dir = self.store.path().join("images");
        let found = match fs::read_dir(&dir) {
            Ok(found) => found,
            Err(e) => {
                self.found(DamageKind::Image, &dir, &io_error("read directory", &dir, e));
                return Ok(());
            }
        };
        for path in found.flatten().map(|file| file.path()) {
            check(self.observer)?;
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".erofs"));
            let Some(chain) = name.and_then(|name| Digest::from_hex(name).ok()) else { continue };
            self.report.counts.images += 1;
            if let Err(e) = self.image(&path) {
                let number = self.found(DamageKind::Image, &path, &e);
                let (layers, images) = self.of_chain(&chain);
                let finding = &mut self.report.findings[number];
                (finding.layers, finding.images) = (layers, images);
            }
        }
        Ok(())
    }

    fn image(&self, path: &Path) -> Result<()> {
        let bytes = match fs::read(path) {
            // A driver that makes it anew removed it.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| io_error("read", path, e))?,
        };
        let image = Image::new(&bytes)?;
        if self.options.full { image.verify() } else { Ok(()) }
    }
}

/// Chunks that a layer refers to and the database cannot find, each once. The record's sums are checked on the way.
pub(super) fn missing(
    path: &Path,
    diff_id: &Digest,
    index: &Index,
    observer: &dyn Observer,
) -> Result<Vec<(ContentId, String)>> {
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::corrupt("layer record is missing"),
        _ => io_error("open", path, e),
    })?;
    let (mut missing, mut told) = (Vec::new(), HashSet::new());
    let look = |id: ContentId| {
        check(observer)?;
        let what = match index.chunk(&id) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => "the store does not have a chunk of this layer".to_owned(),
            Err(e) => super::words(&e),
        };
        if told.insert(id) {
            missing.push((id, what));
        }
        Ok(())
    };
    chunk_refs(&file, diff_id, look)?;
    Ok(missing)
}
