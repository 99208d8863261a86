//! Packs and their chunks.
//!
//! A table says what was in a pack when it was written. gc has punched some of that out since, which then reads as zeros,
//! and a copy of the store may have filled the holes with real zeros or made holes of real ones. So nothing but the
//! content decides: a chunk counts if its bytes are what its id says.

use super::Rebuild;
use crate::error::{ErrorKind, Result};
use crate::format::erofs::read::Image;
use crate::format::pack::{ADDRESS_LIMIT, BLOCK, TableChunk};
use crate::observe::check;
use crate::store::{ChunkRow, PACK_MAX, pack_base};
use crate::sys::cache::ReadOnce;
use crate::sys::publish::io_error;
use crate::upkeep::DamageKind;
use crate::upkeep::verify::verify;
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

impl Rebuild<'_> {
    pub(super) fn packs(&mut self) -> Result<()> {
        let files = self.pack_files()?;
        let mut top = self.salvage.top;
        // Where the addresses end that belong to a pack. A file that is too long does not count: its end is damaged.
        let mut entered = 0;
        for (at, &(base, end)) in files.iter().enumerate() {
            check(self.observer)?;
            let path = self.store.pack_path(base);
            let (table, end) = match self.store.pack_table(base, end) {
                Ok(table) => (table, end),
                Err(_) => {
                    // fsck tells what is wrong with it. How long it was is not known: it owned this much at most.
                    top = top.max(base.saturating_add(PACK_MAX));
                    let next = files.get(at + 1).map_or(ADDRESS_LIMIT, |(base, _)| *base);
                    let end = (end / BLOCK * BLOCK).clamp(base + BLOCK, next);
                    (self.salvage.chunks(base / BLOCK, end / BLOCK)?, end)
                }
            };
            if entered > base {
                self.found(DamageKind::Pack, &path, "its addresses belong to another pack too; it is left out");
                continue;
            }
            entered = end;
            let sound = self.sound(&path, table)?;
            self.report.packs += 1;
            self.report.chunks += sound.len() as u64;
            self.store.with_index(|index| {
                index.write(|change| change.add_pack(base, end - base).and_then(|()| change.add_chunks(sound)))
            })?;
        }
        let top = top.max(self.image_addresses()?).min(ADDRESS_LIMIT);
        self.store.with_index(|index| index.write(|change| change.raise_top(top)))
    }

    /// First address and end of every pack there is, ascending.
    fn pack_files(&self) -> Result<Vec<(u64, u64)>> {
        let dir = self.store.path().join("packs");
        let mut files = Vec::new();
        for found in fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?.flatten() {
            let Some(base) = pack_base(&found.file_name()) else { continue };
            let len = found.metadata().map_err(|e| io_error("stat", &found.path(), e))?.len();
            if base.is_multiple_of(BLOCK) && (BLOCK..ADDRESS_LIMIT).contains(&base) {
                files.push((base, len));
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    /// The chunks that are what their ids say, and those of which that cannot be told.
    fn sound(&mut self, path: &Path, table: Vec<TableChunk>) -> Result<Vec<TableChunk>> {
        let file = ReadOnce::new(File::open(path).map_err(|e| io_error("open", path, e))?);
        let known = |chunk: &TableChunk| self.store.with_index(|index| index.has_chunk(&chunk.id));
        let known = table.iter().map(known).collect::<Result<Vec<bool>>>()?;
        // A second copy is space for gc.
        let mut table: Vec<_> = table.into_iter().zip(known).filter(|(_, known)| !known).map(|(c, _)| c).collect();
        let rows: Vec<_> = table.iter().map(|c| ChunkRow { n: 0, id: c.id, location: c.location, sum: None }).collect();
        let verified = verify(file.file(), &rows, self.options.threads, self.observer)?;
        self.report.bytes += verified.bytes;
        let mut bad = HashMap::new();
        for (row, e) in verified.bad {
            // What cannot be read today may be there tomorrow: it keeps its row, and fsck tells of it.
            if e.kind() == ErrorKind::Corrupt {
                let gone = is_zero(file.file(), &row);
                *(if gone { &mut self.report.gone } else { &mut self.report.damaged }) += 1;
                bad.insert(row.location.block, row.id);
            }
        }
        table.retain(|chunk| !bad.contains_key(&chunk.location.block));
        Ok(table)
    }

    /// Metadata images show addresses of packs that may be gone, and mounts may have those open still.
    fn image_addresses(&self) -> Result<u64> {
        let dir = self.store.path().join("images");
        let mut top = 0;
        for found in fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?.flatten() {
            let Ok(bytes) = fs::read(found.path()) else { continue };
            // A damaged one is made anew before anything is mounted from it.
            let image = Image::new(&bytes).and_then(|image| image.verify().map(|()| image));
            let ends = image.map(|image| image.packs().iter().map(|pack| pack.end).max());
            top = top.max(ends.ok().flatten().unwrap_or_default());
        }
        Ok(top)
    }
}

/// Whether a chunk's blocks read as zeros.
fn is_zero(file: &File, row: &ChunkRow) -> bool {
    let mut blocks = vec![0; (row.location.blocks() * BLOCK) as usize];
    let read = file.read_exact_at(&mut blocks, u64::from(row.location.block) * BLOCK);
    read.is_ok() && blocks.iter().all(|b| *b == 0)
}
