//! Whom damage hurts, and whether it is still there.

use super::files::missing;
use super::{Check, DamageKind, Finding, FsckReport};
use crate::digest::Digest;
use crate::error::Result;
use crate::observe::check;
use crate::store::{ImageInfo, Index, chain_ids, chunk_refs};
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};

/// How often to look at what seems damaged and may be in the middle of being removed or brought back.
const LOOKS: u32 = 3;

impl Check<'_> {
    /// What there is to say when the database cannot be opened: the layers are those that have a record.
    pub(super) fn without_database(mut self) -> FsckReport {
        let files = fs::read_dir(self.store.path().join("layers")).into_iter().flatten().flatten();
        let layer = |name: std::ffi::OsString| Digest::from_hex(name.to_str()?.strip_suffix(".layer")?).ok();
        let mut layers: Vec<_> = files.filter_map(|file| layer(file.file_name())).collect();
        layers.sort();
        self.report.findings.iter_mut().for_each(|finding| finding.layers.clone_from(&layers));
        self.report
    }

    /// Names the layers and images that damage hurts, and leaves out what others removed meanwhile.
    pub(super) fn settle(mut self, index: &Index) -> Result<FsckReport> {
        if self.report.findings.is_empty() {
            return Ok(self.report);
        }
        self.layers_of_chunks()?;
        for at in &self.all {
            self.report.findings[*at].layers.extend(self.layers.iter().map(|layer| layer.diff_id));
        }
        for finding in &mut self.report.findings {
            let layers: HashSet<&Digest> = finding.layers.iter().collect();
            let hurt = self.roots.images.iter().filter(|image| image.layers.iter().any(|l| layers.contains(l)));
            // Metadata images and extracted directories are of whole chains, a blob of an image is of this one alone.
            let settled = [DamageKind::Blob, DamageKind::Image, DamageKind::Tree].contains(&finding.kind);
            if !settled || finding.images.is_empty() {
                finding.images.extend(hurt.map(|image| image.name.clone()));
            }
            finding.layers =
                std::mem::take(&mut finding.layers).into_iter().collect::<BTreeSet<_>>().into_iter().collect();
            finding.images =
                std::mem::take(&mut finding.images).into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        }
        let findings = std::mem::take(&mut self.report.findings);
        let there = |(number, finding): (usize, Finding)| self.is_there(index, number, &finding).then_some(finding);
        let findings = findings.into_iter().enumerate().filter_map(there).collect();
        // Looking again was cut short, which is no finding.
        check(self.observer)?;
        self.report.findings = findings;
        Ok(self.report)
    }

    /// Reads the records for the chunks that are damaged.
    fn layers_of_chunks(&mut self) -> Result<()> {
        if self.hurt.is_empty() {
            return Ok(());
        }
        for layer in &self.layers {
            check(self.observer)?;
            let Ok(file) = File::open(self.store.record_path(&layer.diff_id)) else { continue };
            let mut numbers = HashSet::new();
            // Of a damaged record, which is told already, this gets what comes before the damage.
            let _ = chunk_refs(&file, &layer.diff_id, |id| {
                check(self.observer)?;
                numbers.extend(self.hurt.get(&id).into_iter().flatten());
                Ok(())
            });
            numbers.into_iter().for_each(|at: usize| self.report.findings[at].layers.push(layer.diff_id));
        }
        Ok(())
    }

    /// Layers of a chain, and images that stand on it.
    pub(super) fn of_chain(&self, chain: &Digest) -> (Vec<Digest>, Vec<String>) {
        let stands = |image: &&ImageInfo| chain_ids(&image.layers).any(|id| id == *chain);
        let images = self.roots.images.iter().filter(stands).map(|image| image.name.clone()).collect();
        (self.chains.layers(chain).unwrap_or_default(), images)
    }

    /// Whether what is damaged is still part of the store. Where that cannot be told, it is.
    fn is_there(&self, index: &Index, number: usize, finding: &Finding) -> bool {
        if let Some((base, len)) = self.of_packs.get(&number) {
            return index.has_sealed(*base, *len).unwrap_or(true);
        }
        if let Some((dir, id)) = self.of_trees.get(&number) {
            return super::trees::identity(dir) == Some(*id);
        }
        if let Some(n) = self.of_snapshots.get(&number) {
            return self.snapshot_needs(index, *n, &finding.file);
        }
        match (finding.kind, &finding.chunk) {
            (DamageKind::Chunk | DamageKind::Database, Some(id)) => index.chunk(id).map_or(true, |found| {
                let offset = |location: crate::format::pack::Location| u64::from(location.block) * 4096;
                found.is_some_and(|location| finding.offset.is_none_or(|at| at == offset(location)))
            }),
            // What was removed may have been brought back since, sound.
            (DamageKind::Record, _) => (0..LOOKS).all(|_| self.is_record_damaged(index, finding)),
            (DamageKind::Blob, _) => (0..LOOKS).all(|_| self.is_blob_damaged(index, finding)),
            (DamageKind::Image, _) => finding.file.exists(),
            _ => true,
        }
    }

    /// Whether a layer that is still there has a record that is still damaged.
    fn is_record_damaged(&self, index: &Index, finding: &Finding) -> bool {
        let damaged = |layer: &Digest| {
            let missing = missing(&self.store.record_path(layer), layer, index, self.observer);
            let whole = missing.is_ok_and(|missing| missing.is_empty());
            !(whole && self.record(layer).is_ok())
        };
        let there = |layer: &Digest| index.layer(layer).map_or(true, |found| found.is_some());
        finding.layers.iter().any(|layer| damaged(layer) && there(layer))
    }

    /// Whether a blob is still damaged, and something needs it still.
    fn is_blob_damaged(&self, index: &Index, finding: &Finding) -> bool {
        let (Ok(images), Ok(kept)) = (index.images(), index.kept_blobs()) else { return true };
        let is = |digest: &Digest| self.store.blob_path(digest) == finding.file;
        let of_images = images.iter().flat_map(|image| [&image.config, &image.manifest]).find(|digest| is(digest));
        let kept = kept.iter().find(|blob| is(&blob.digest));
        let Some(digest) = of_images.or(kept.map(|blob| &blob.digest)) else { return false };
        self.blob(&finding.file, digest, kept.map(|blob| blob.size)).is_err()
    }
}
