//! Chunks of a pack, and what of them is damaged.

use super::{Check, DamageKind, words};
use crate::error::Result;
use crate::format::pack::BLOCK;
use crate::store::ChunkRow;
use crate::sys::cache::ReadOnce;
use crate::sys::publish::io_error;
use crate::upkeep::verify::verify;
use std::fs::File;

impl Check<'_> {
    /// Reads chunks of one pack, told by its base and length.
    pub(super) fn chunks(&mut self, pack: (u64, u64), rows: &[ChunkRow]) -> Result<()> {
        let path = &self.store.pack_path(pack.0);
        let file = match File::open(path) {
            Ok(file) => ReadOnce::new(file),
            Err(e) => {
                let number = self.found(DamageKind::Pack, path, &io_error("open", path, e));
                self.of_packs.insert(number, pack);
                rows.iter().for_each(|row| self.hurt.entry(row.id).or_default().push(number));
                return Ok(());
            }
        };
        let verified = verify(file.file(), rows, self.options.threads, self.observer)?;
        self.report.counts.read += verified.read;
        self.report.counts.bytes += verified.bytes;
        for (row, e) in verified.bad {
            let number = self.found_of_chunk(DamageKind::Chunk, path, &row.id, words(&e));
            self.report.findings[number].offset = Some(u64::from(row.location.block) * BLOCK);
        }
        Ok(())
    }
}
