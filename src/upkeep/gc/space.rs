//! Space in packs that nothing has: dead chunks that were forgotten, and copies that lost the race to be the first.
//!
//! Which blocks chunks have is a bitmap, 32 MiB for each TiB of packs.

use super::chunks::overlaps;
use super::plan::{Garbage, GarbageKind, GcReport};
use crate::error::{Error, ErrorKind, Result};
use crate::format::erofs::read::Image;
use crate::format::pack::{BLOCK, FOOTER_LEN, Footer, Location, TableChunk, owner, table_has};
use crate::id::ContentId;
use crate::observe::{Observer, check};
use crate::store::{Change, Index, Store};
use crate::sys::publish::io_error;
use crate::sys::space::{allocated, punch};
use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Rows read from the database at a time.
const ROWS: u32 = 16 << 10;

/// Which blocks of which packs are needed.
pub(super) struct Space {
    packs: Vec<Pack>,
    bits: Vec<u64>,
}

/// A pack's blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pack {
    base: u64,
    first: u64,
    blocks: u64,
    /// Where its bits begin.
    bits: u64,
}

/// What could be given back of a pack.
#[derive(Default)]
pub(super) struct PackSpace {
    /// All of it.
    pub(super) garbage: Option<Garbage>,
    /// Bytes, if it stays.
    pub(super) punch: u64,
}

impl Pack {
    pub(super) fn base(self) -> u64 {
        self.base
    }
}

impl PackSpace {
    pub(super) fn is_any(&self) -> bool {
        self.garbage.is_some() || self.punch > 0
    }
}

/// What is known of packs, and those that are damaged.
#[derive(Default)]
pub(super) struct Spaces {
    pub(super) packs: Vec<(Pack, PackSpace)>,
    pub(super) damaged: Vec<PathBuf>,
}

impl Space {
    /// Packs as the database has them, ascending.
    pub(super) fn new(packs: &[(u64, u64)]) -> Self {
        let mut bits = 0;
        let pack = |&(base, len): &(u64, u64)| {
            let pack = Pack { base, first: base / BLOCK, blocks: len / BLOCK, bits };
            bits += pack.blocks;
            pack
        };
        let packs = packs.iter().map(pack).collect();
        Self { packs, bits: vec![0; usize::try_from(bits.div_ceil(64)).unwrap_or(usize::MAX)] }
    }

    pub(super) fn packs(&self) -> impl Iterator<Item = Pack> + '_ {
        self.packs.iter().copied()
    }

    /// Notes that blocks are needed. Those that no pack has are left out: fsck tells of them.
    pub(super) fn take(&mut self, block: u32, blocks: u64) {
        self.take_range(&(u64::from(block)..u64::from(block) + blocks));
    }

    /// Notes that blocks must stay although no chunk has them.
    pub(super) fn protect(&mut self, ranges: &[Range<u64>]) {
        ranges.iter().for_each(|range| self.take_range(range));
    }

    fn take_range(&mut self, range: &Range<u64>) {
        let after = self.packs.partition_point(|p| p.first + p.blocks <= range.start);
        for at in after..self.packs.len() {
            let pack = self.packs[at];
            let (start, end) = (range.start.max(pack.first), range.end.min(pack.first + pack.blocks));
            if start >= end {
                return;
            }
            for bit in pack.bits + start - pack.first..pack.bits + end - pack.first {
                self.bits[(bit / 64) as usize] |= 1 << (bit % 64);
            }
        }
    }

    /// Blocks of a pack, below its table, that nothing has; adjacent ones together. `None` if nothing has any.
    fn free(&self, pack: Pack, table: u64) -> Option<Vec<Range<u64>>> {
        let taken = |block: u64| {
            let bit = pack.bits + block - pack.first;
            self.bits[(bit / 64) as usize] & 1 << (bit % 64) != 0
        };
        let mut free: Vec<Range<u64>> = Vec::new();
        let mut any = false;
        // The first block is the header.
        for block in pack.first + 1..table.min(pack.first + pack.blocks) {
            match (taken(block), free.last_mut()) {
                (true, _) => any = true,
                (false, Some(last)) if last.end == block => last.end += 1,
                (false, _) => free.push(block..block + 1),
            }
        }
        any.then_some(free)
    }
}

impl Store {
    /// What of a pack could be given back.
    fn pack_space(&self, space: &Space, pack: Pack) -> Result<PackSpace> {
        let (path, file, table) = self.open_pack(pack)?;
        let Some(free) = space.free(pack, table) else {
            let bytes = file.metadata().map_err(|e| io_error("stat", &path, e))?.blocks() * 512;
            let (name, why) = (format!("{:011x}", pack.base), "no layer needs any of its chunks");
            let garbage = Some(Garbage { kind: GarbageKind::Pack, name, bytes, why });
            return Ok(PackSpace { garbage, punch: 0 });
        };
        let mut punch = 0;
        for range in free {
            punch += bytes(&allocated(&file, &path, range.start * BLOCK..range.end * BLOCK)?);
        }
        Ok(PackSpace { garbage: None, punch })
    }

    /// What of each pack could be given back. What is damaged keeps all it has: nobody knows where its table begins.
    pub(super) fn spaces(&self, space: &Space, observer: &dyn Observer) -> Result<Spaces> {
        let mut spaces = Spaces::default();
        for pack in space.packs() {
            check(observer)?;
            match self.pack_space(space, pack) {
                Ok(free) => spaces.packs.push((pack, free)),
                Err(e) if e.kind() == ErrorKind::Corrupt => spaces.damaged.push(self.pack_path(pack.base)),
                Err(e) => return Err(e),
            }
        }
        Ok(spaces)
    }

    /// The file of a pack and the block its table begins at.
    fn open_pack(&self, pack: Pack) -> Result<(PathBuf, File, u64)> {
        let path = self.pack_path(pack.base);
        let open = File::options().read(true).write(true).open(&path);
        let file = open.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt("pack file is missing").subject(path.display()),
            _ => io_error("open", &path, e),
        })?;
        let end = pack.base + pack.blocks * BLOCK;
        let mut tail = [0; FOOTER_LEN];
        let read = file.read_exact_at(&mut tail, end.saturating_sub(FOOTER_LEN as u64));
        read.map_err(|e| Error::corrupt("pack ends too early").source(e).subject(path.display()))?;
        let footer = Footer::decode(&tail, end).map_err(|e| e.subject(path.display()))?;
        Ok((path, file, footer.table_address / BLOCK))
    }

    /// Removes packs that no chunk is in and punches out what no chunk has of the others, of those that were planned.
    pub(super) fn give_space_back(
        &self,
        planned: &BTreeSet<u64>,
        observer: &dyn Observer,
        report: &mut GcReport,
    ) -> Result<()> {
        let mut space = self.with_index(|index| index.view(|index| taken(index, observer)))?;
        let spaces = self.spaces(&space, observer)?;
        report.damaged = spaces.damaged;
        if !spaces.packs.iter().any(|(pack, free)| free.is_any() && planned.contains(&pack.base)) {
            return Ok(());
        }
        // What images show has a chunk, dead at least, unless the database was rebuilt.
        space.protect(&self.image_ranges(&super::find::images(self)?)?);
        let mut tables = Tables { store: self, packs: vec![], last: None };
        for (pack, found) in spaces.packs {
            check(observer)?;
            if !found.is_any() || !planned.contains(&pack.base) {
                continue;
            }
            let (path, file, table) = self.open_pack(pack)?;
            let free = space.free(pack, table);
            match tables.agree_that_free(pack, free.as_deref()) {
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    report.damaged.push(path);
                    continue;
                }
                agreed => agreed?,
            }
            match free {
                None => report.removed.extend(self.remove_pack(&space, pack)?),
                Some(free) => punch_all(&file, &path, &free, report)?,
            }
        }
        Ok(())
    }

    fn remove_pack(&self, space: &Space, pack: Pack) -> Result<Option<Garbage>> {
        let found = self.pack_space(space, pack)?.garbage;
        self.with_index(|index| index.write(|change| change.drop_pack(pack.base)))?;
        let path = self.pack_path(pack.base);
        let unlink = |change: &Change<'_>| match change.has_pack(pack.base)? {
            true => Ok(None),
            false => std::fs::remove_file(&path).map_err(|e| io_error("remove", &path, e)).map(|()| found),
        };
        let removed = self.with_index(|index| index.write(unlink));
        self.close_pack(pack.base);
        removed
    }

    /// Blocks that metadata images refer to, ascending and disjoint.
    pub(super) fn image_ranges(&self, images: &[PathBuf]) -> Result<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        for image in images {
            ranges.extend(image_blocks(image)?);
        }
        ranges.sort_unstable_by_key(|r: &Range<u64>| r.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Ok(merged)
    }
}

/// The tables of packs, which rows of the database are held against before anything is given back on their word.
struct Tables<'s> {
    store: &'s Store,
    packs: Vec<(u64, u64)>,
    /// The base of the pack that was asked for last, and its table.
    last: Option<(u64, Vec<TableChunk>)>,
}

impl Tables<'_> {
    /// Whether what a pack has in blocks that are free, or in all of them without such, may go: the database has none of
    /// it, or has it elsewhere, where it is.
    ///
    /// # Errors
    /// `Corrupt` if not, or if a table is damaged.
    fn agree_that_free(&mut self, pack: Pack, free: Option<&[Range<u64>]>) -> Result<()> {
        let table = self.store.pack_table(pack.base, pack.base + pack.blocks * BLOCK)?;
        let goes = |chunk: &&TableChunk| free.is_none_or(|free| overlaps(free, &chunk.location.range()));
        for chunk in table.iter().filter(goes) {
            let now = self.store.with_index(|index| index.chunk(&chunk.id))?;
            if let Some(now) = now
                && (now == chunk.location || !self.has(&chunk.id, &now)?)
            {
                return Err(Error::corrupt("a chunk is not where the database has it").subject(chunk.id));
            }
        }
        Ok(())
    }

    /// Whether the chunk is there, as the table of that pack says.
    fn has(&mut self, id: &ContentId, location: &Location) -> Result<bool> {
        if owner(&self.packs, location).is_none() {
            // Packs may have come.
            self.packs = self.store.with_index(|index| index.packs())?;
        }
        let Some((base, len)) = owner(&self.packs, location) else { return Ok(false) };
        match &self.last {
            Some((last, table)) if *last == base => Ok(table_has(table, id, location)),
            _ => {
                let table = self.store.pack_table(base, base + len)?;
                let has = table_has(&table, id, location);
                self.last = Some((base, table));
                Ok(has)
            }
        }
    }
}

/// Blocks a metadata image refers to. A damaged one may refer to any.
fn image_blocks(path: &Path) -> Result<Vec<Range<u64>>> {
    let bytes = match std::fs::read(path) {
        // Removed meanwhile, by a driver that makes it anew.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(|e| io_error("read", path, e))?,
    };
    let ranges = Image::new(&bytes).and_then(|image| image.verify().and_then(|()| image.ranges()));
    let all = Range { start: 0, end: u64::MAX };
    Ok(ranges.map_or(vec![all], |ranges| {
        let blocks = |range: &Range<u32>| u64::from(range.start)..u64::from(range.end);
        ranges.iter().map(blocks).collect()
    }))
}

/// What chunks have, dead ones that may be revived included; seen at one moment.
fn taken(index: &Index, observer: &dyn Observer) -> Result<Space> {
    let mut space = Space::new(&index.packs()?);
    let mut last = 0;
    loop {
        check(observer)?;
        let rows = index.chunks_after(last, ROWS)?;
        let Some(end) = rows.last() else { break };
        last = end.n;
        rows.iter().for_each(|row| space.take(row.location.block, row.location.blocks()));
    }
    last = 0;
    loop {
        check(observer)?;
        let rows = index.dead_after(last, ROWS)?;
        let Some(end) = rows.last() else { return Ok(space) };
        last = end.chunk.n;
        rows.iter().for_each(|row| space.take(row.chunk.location.block, row.chunk.location.blocks()));
    }
}

fn punch_all(file: &File, path: &Path, free: &[Range<u64>], report: &mut GcReport) -> Result<()> {
    for range in free {
        let range = range.start * BLOCK..range.end * BLOCK;
        let there = bytes(&allocated(file, path, range.clone())?);
        if there > 0 {
            match punch(file, path, range)? {
                true => report.punched += there,
                false => report.unpunched += there,
            }
        }
    }
    Ok(())
}

fn bytes(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|r| r.end - r.start).sum()
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "ranges are what is listed")]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_has_is_free() {
        let mut space = Space::new(&[(10 * BLOCK, 70 * BLOCK), (100 * BLOCK, 5 * BLOCK)]);
        let packs: Vec<_> = space.packs().collect();
        assert_eq!(space.free(packs[0], 78), None);
        space.take(12, 3);
        space.take(76, 1);
        space.take(500, 1);
        assert_eq!(space.free(packs[0], 78), Some(vec![11..12, 15..76, 77..78]));
        assert_eq!(space.free(packs[1], 104), None);
        space.protect(&[60..102]);
        assert_eq!(space.free(packs[0], 78), Some(vec![11..12, 15..60]));
        assert_eq!(space.free(packs[1], 104), Some(vec![102..104]));
    }
}
