//! What is damaged, sorted by how it is mended.

use crate::digest::Digest;
use crate::error::Result;
use crate::format::pack::{BLOCK, owner};
use crate::id::ContentId;
use crate::store::{ChunkRow, Index, Store};
use crate::sys::cache::ReadOnce;
use crate::upkeep::verify::Reader;
use crate::upkeep::{DamageKind, FsckReport};
use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What has to be mended.
#[derive(Default)]
pub(super) struct Needs {
    /// Chunks that are damaged or missing.
    pub(super) chunks: BTreeSet<ContentId>,
    /// Chunks whose content is right, though they or their packs are damaged, with those packs' files.
    pub(super) rescue: Vec<(PathBuf, Vec<ChunkRow>)>,
    /// First address and length of packs that are damaged apart from their chunks.
    pub(super) packs: Vec<(u64, u64)>,
    /// Layers whose records are damaged or missing.
    pub(super) records: BTreeSet<Digest>,
    /// Configurations, manifests and kept blobs.
    pub(super) blobs: BTreeSet<Digest>,
    /// Metadata images, by their chains.
    pub(super) images: BTreeSet<Digest>,
    /// Layers that any of it hurts.
    pub(super) layers: BTreeSet<Digest>,
    /// Where chunks are that mounts show damaged, blocks.
    pub(super) blocks: Vec<Range<u64>>,
}

impl Needs {
    pub(super) fn of(store: &Store, report: &FsckReport) -> Result<Self> {
        store.with_index(|index| {
            let packs = index.packs()?;
            let mut needs = Self::default();
            let mut reader = Reader::new()?;
            let mut told = BTreeSet::new();
            for finding in &report.findings {
                needs.layers.extend(&finding.layers);
                match (finding.kind, finding.chunk) {
                    (_, Some(chunk)) => drop(told.insert(chunk)),
                    (DamageKind::Pack, _) => {
                        let pack = packs.iter().find(|(base, _)| store.pack_path(*base) == finding.file);
                        if let Some(pack) = pack.filter(|pack| !needs.packs.contains(pack)) {
                            needs.pack(store, index, *pack, &mut reader)?;
                        }
                    }
                    (DamageKind::Record, _) => needs.records.extend(&finding.layers),
                    (DamageKind::Blob, _) => needs.blobs.extend(digest(&finding.file)),
                    (DamageKind::Image, _) => needs.images.extend(digest(&finding.file)),
                    _ => {}
                }
            }
            for chunk in told {
                let Some(location) = index.chunk(&chunk).ok().flatten() else {
                    needs.chunks.insert(chunk);
                    continue;
                };
                let place = location.range();
                // One that a damaged pack has is dealt with.
                if needs.packs.iter().any(|&(base, len)| blocks(base, len).contains(&place.start)) {
                    continue;
                }
                needs.blocks.push(place);
                let row = ChunkRow { n: 0, id: chunk, location, sum: None };
                match sound_place(store, &packs, &row, &mut reader) {
                    Some(path) => needs.rescue.push((path, vec![row])),
                    None => drop(needs.chunks.insert(chunk)),
                }
            }
            Ok(needs)
        })
    }

    /// A damaged pack: what is sound in it is moved, what is not is wanted from elsewhere.
    fn pack(&mut self, store: &Store, index: &Index, (base, len): (u64, u64), reader: &mut Reader) -> Result<()> {
        self.packs.push((base, len));
        let (path, blocks) = (store.pack_path(base), blocks(base, len));
        let file = File::open(&path).map(ReadOnce::new);
        let sound = |row: &ChunkRow| file.as_ref().is_ok_and(|file| reader.content(file.file(), row).is_ok());
        let (sound, bad): (Vec<ChunkRow>, Vec<ChunkRow>) = index.chunks_in(&blocks)?.into_iter().partition(sound);
        self.chunks.extend(bad.iter().map(|row| row.id));
        self.rescue.push((path, sound));
        self.blocks.push(blocks);
        Ok(())
    }
}

/// The file of the pack that a chunk is read from, if its content is right, whatever was changed of it.
fn sound_place(store: &Store, packs: &[(u64, u64)], row: &ChunkRow, reader: &mut Reader) -> Option<PathBuf> {
    let (base, _) = owner(packs, &row.location)?;
    let path = store.pack_path(base);
    let file = File::open(&path).ok()?;
    reader.content(&file, row).ok().map(|_| path)
}

/// The blocks of a pack.
pub(super) fn blocks(base: u64, len: u64) -> Range<u64> {
    base / BLOCK..base.saturating_add(len) / BLOCK
}

/// The digest that a file is named by.
fn digest(file: &Path) -> Option<Digest> {
    Digest::from_hex(file.file_stem()?.to_str()?).ok()
}
