//! Chunks: new copies at new addresses, and the packs they leave.

use super::Repair;
use super::needs::blocks;
use super::pieces::{BATCH, describe, find};
use crate::codec::chunk::{Compress, Encoder};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::id::ContentId;
use crate::observe::check;
use crate::store::{Change, ChunkRow, Ingest, Moves, Outcome, chunk_refs};
use crate::sys::cache::ReadOnce;
use crate::sys::publish::io_error;
use crate::upkeep::verify::Reader;
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};

impl Repair<'_> {
    /// Stores again what is damaged and can be had, and what is sound in damaged packs; their rows follow in one
    /// transaction.
    pub(super) fn chunks(&mut self) -> Result<()> {
        let ingest = Ingest::begin(self.store, Compress::default(), 1)?;
        let mut encoder = Encoder::new(Compress::default())?;
        self.rescue(&ingest, &mut encoder)?;
        let wanted: Vec<ContentId> = self.needs.chunks.iter().copied().collect();
        let mut parts = Vec::new();
        for batch in wanted.chunks(BATCH) {
            check(self.observer)?;
            let told = (self.observer, &mut parts);
            for chunk in find(self.store, self.donors, batch, &self.needs.layers, told)? {
                ingest.store_again(chunk.id, &chunk.raw, chunk.members, &mut encoder)?;
                self.needs.chunks.remove(&chunk.id);
                self.report.chunks.push(chunk.id);
            }
        }
        self.report.parts = parts;
        if self.report.chunks.is_empty() && self.report.moved == 0 {
            return Ok(());
        }
        ingest.commit(Outcome { moves: Moves::Damaged, ..Outcome::default() }, |_| Ok(()))
    }

    /// Chunks whose content is right, though they or their packs are damaged.
    fn rescue(&mut self, ingest: &Ingest<'_>, encoder: &mut Encoder) -> Result<()> {
        let mut reader = Reader::new()?;
        for (path, rows) in std::mem::take(&mut self.needs.rescue) {
            for batch in rows.chunks(BATCH) {
                check(self.observer)?;
                let file = ReadOnce::new(File::open(&path).map_err(|e| io_error("open", &path, e))?);
                let read = |row: &ChunkRow| Ok((row.id, reader.content(file.file(), row)?.to_vec()));
                let chunks = batch.iter().map(read).collect::<Result<Vec<_>>>()?;
                for chunk in describe(self.store, &self.needs.layers, chunks)? {
                    ingest.store_again(chunk.id, &chunk.raw, chunk.members, encoder)?;
                    self.report.moved += 1;
                }
            }
        }
        Ok(())
    }

    /// Forgets damaged copies that no layer refers to.
    pub(super) fn forget(&mut self) -> Result<()> {
        if self.needs.chunks.is_empty() {
            return Ok(());
        }
        let (mut needed, mut seen) = (BTreeSet::new(), HashSet::new());
        for layer in self.store.layers()? {
            check(self.observer)?;
            // As long as it is unknown what a layer needs, nothing is forgotten.
            if self.add_needed(&layer.diff_id, &mut needed).is_err() {
                return Ok(());
            }
            seen.insert(layer.diff_id);
        }
        let forget = |change: &Change<'_>| {
            // Layers may have come since, and imports that are under way may count on chunks they found.
            change.next_generation()?;
            for layer in change.layer_ids()?.iter().filter(|layer| !seen.contains(layer)) {
                self.add_needed(layer, &mut needed)?;
            }
            self.needs.chunks.difference(&needed).try_for_each(|chunk| change.forget_chunk(chunk))
        };
        self.store.with_index(|index| index.write(forget))?;
        self.needs.chunks = needed;
        Ok(())
    }

    /// Adds to `needed` the damaged chunks that a layer refers to.
    fn add_needed(&self, layer: &Digest, needed: &mut BTreeSet<ContentId>) -> Result<()> {
        let file = File::open(self.store.record_path(layer)).map_err(|e| Error::io("open", e))?;
        chunk_refs(&file, layer, |id| {
            check(self.observer)?;
            needed.extend(self.needs.chunks.get(&id));
            Ok(())
        })
    }

    /// Removes damaged packs that no chunk is in any more.
    pub(super) fn packs(&mut self) -> Result<()> {
        for &(base, len) in &self.needs.packs {
            let empty = |change: &Change<'_>| {
                let empty = !change.is_used(&blocks(base, len))?;
                if empty {
                    change.drop_pack(base)?;
                }
                Ok(empty)
            };
            if !self.store.with_index(|index| index.write(empty))? {
                continue;
            }
            let path = self.store.pack_path(base);
            let unlink = |change: &Change<'_>| match change.has_pack(base)? {
                true => Ok(()),
                false => match fs::remove_file(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", &path, e)),
                    _ => Ok(()),
                },
            };
            self.store.with_index(|index| index.write(unlink))?;
            self.report.packs.push(path);
        }
        Ok(())
    }

    /// What is still damaged, for an import that must not count on it.
    pub(super) fn distrusted(&self) -> HashSet<ContentId> {
        self.needs.chunks.iter().copied().collect()
    }
}
