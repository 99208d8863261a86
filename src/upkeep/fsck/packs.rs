//! Packs: header, footer, table, what stands between them, and whether the database says the same.

use super::{Check, DamageKind};
use crate::error::{Error, Result};
use crate::format::pack::{BLOCK, FOOTER_LEN, Footer, HEADER_LEN, TableChunk, owner, table_has};
use crate::id::ContentId;
use crate::observe::check;
use crate::store::{ChunkRow, Index};
use crate::sys::publish::io_error;
use crate::sys::space::allocated;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Rows read from the database at a time.
const ROWS: u32 = 16 << 10;
/// Bytes compared with zeros at a time.
const PIECE: usize = 64 << 10;

/// How many rows of the database a pack's table bore out.
#[derive(Default)]
struct Agreed {
    chunks: u64,
    members: u64,
}

impl Check<'_> {
    pub(super) fn packs(&mut self, index: &Index) -> Result<()> {
        let packs = self.packs.clone();
        for pair in packs.windows(2).filter(|p| p[0].0.saturating_add(p[0].1) > p[1].0) {
            let what = format!("two packs own the same addresses, from {:#x} and {:#x}", pair[0].0, pair[1].0);
            self.tell(DamageKind::Database, &self.store.index_path(), what);
        }
        let (mut agreed, mut unreadable) = (Agreed::default(), Vec::new());
        for &(base, len) in &packs {
            check(self.observer)?;
            self.report.counts.packs += 1;
            if !self.pack(index, base, len, &mut agreed)? {
                unreadable.push((base, len));
            }
        }
        self.report.counts.chunks = agreed.chunks;
        let totals = index.totals();
        let chunks = self.part(totals.map(|(chunks, _, _)| chunks));
        if chunks != agreed.chunks {
            self.strays(index, &unreadable)?;
        }
        let members = index.live_members();
        let members = self.part(members);
        if self.options.full && members > agreed.members && unreadable.is_empty() {
            // Rows that came since their pack was looked at are no damage: look once more.
            self.members_again(index, &packs, members)?;
        }
        Ok(())
    }

    /// One pack. False if its table cannot be had.
    fn pack(&mut self, index: &Index, base: u64, len: u64, agreed: &mut Agreed) -> Result<bool> {
        let (path, end) = (self.store.pack_path(base), base.saturating_add(len));
        let table = match self.store.pack_table(base, end) {
            Ok(table) => table,
            Err(e) => {
                let number = self.found(DamageKind::Pack, &path, &e);
                self.of_packs.insert(number, (base, len));
                return Ok(false);
            }
        };
        let live = live(index, &table, agreed);
        let live = match live {
            Ok(live) => live,
            Err(e) => {
                self.found(DamageKind::Database, &self.store.index_path(), &e);
                vec![]
            }
        };
        if self.options.full {
            match between(&path, base, end) {
                Ok(None) => {}
                Ok(Some(at)) => {
                    let number = self.tell(DamageKind::Pack, &path, "bytes that belong to nothing are not zero");
                    self.report.findings[number].offset = Some(at);
                    self.of_packs.insert(number, (base, len));
                    live.iter().for_each(|row| self.hurt.entry(row.id).or_default().push(number));
                }
                Err(e) => {
                    let number = self.found(DamageKind::Pack, &path, &e);
                    self.of_packs.insert(number, (base, len));
                    live.iter().for_each(|row| self.hurt.entry(row.id).or_default().push(number));
                }
            }
            self.chunks((base, len), &live)?;
        }
        Ok(true)
    }

    /// Looks at every row of `chunks`, since some have no pack that bears them out.
    fn strays(&mut self, index: &Index, unreadable: &[(u64, u64)]) -> Result<()> {
        let mut table = (0, vec![]);
        let mut lost: Vec<Vec<ChunkRow>> = vec![vec![]; unreadable.len()];
        let mut last = 0;
        loop {
            check(self.observer)?;
            let rows = match index.chunks_after(last, ROWS) {
                Ok(rows) => rows,
                Err(e) => {
                    self.found(DamageKind::Database, &self.store.index_path(), &e);
                    break;
                }
            };
            let Some(end) = rows.last() else { break };
            last = end.n;
            for row in &rows {
                self.stray(index, row, unreadable, &mut table, &mut lost);
            }
        }
        for (&(base, len), rows) in unreadable.iter().zip(&lost) {
            let numbers: Vec<usize> =
                self.of_packs.iter().filter(|(_, pack)| pack.0 == base).map(|(number, _)| *number).collect();
            rows.iter().for_each(|row| self.hurt.entry(row.id).or_default().extend(&numbers));
            if self.options.full && self.store.pack_path(base).exists() {
                self.chunks((base, len), rows)?;
            }
        }
        Ok(())
    }

    fn stray(
        &mut self,
        index: &Index,
        row: &ChunkRow,
        unreadable: &[(u64, u64)],
        table: &mut (u64, Vec<TableChunk>),
        lost: &mut [Vec<ChunkRow>],
    ) {
        let start = u64::from(row.location.block) * BLOCK;
        let Some((base, len)) = owner(&self.packs, &row.location) else {
            if index.packs().is_ok_and(|now| owner(&now, &row.location).is_some()) {
                // An import that ended meanwhile brought both.
                return;
            }
            let what = "the database has a chunk in no pack".into();
            self.found_of_chunk(DamageKind::Database, &self.store.index_path(), &row.id, what);
            return;
        };
        if let Some(at) = unreadable.iter().position(|pack| pack.0 == base) {
            lost[at].push(*row);
            return;
        }
        if table.0 != base {
            *table = (base, self.store.pack_table(base, base.saturating_add(len)).unwrap_or_default());
        }
        if !table_has(&table.1, &row.id, &row.location) {
            let what = "the pack's table says otherwise than the database".into();
            let number = self.found_of_chunk(DamageKind::Database, &self.store.pack_path(base), &row.id, what);
            self.report.findings[number].offset = Some(start);
        }
    }

    /// Counts again which small files are where the packs' tables have them.
    fn members_again(&mut self, index: &Index, packs: &[(u64, u64)], before: u64) -> Result<()> {
        let mut agreed = Agreed::default();
        for &(base, len) in packs {
            check(self.observer)?;
            let table = self.store.pack_table(base, base.saturating_add(len)).unwrap_or_default();
            // What cannot be read was told the first time.
            let _ = live(index, &table, &mut agreed);
        }
        let now = index.live_members();
        let now = self.part(now);
        let same = index.packs().is_ok_and(|now| now == packs);
        if same && now == before && now > agreed.members {
            let what = format!("{} small files are not where the packs' tables have them", now - agreed.members);
            self.tell(DamageKind::Database, &self.store.index_path(), what);
        }
        Ok(())
    }
}

/// The chunks of a table that the database has at the same place.
fn live(index: &Index, table: &[TableChunk], agreed: &mut Agreed) -> Result<Vec<ChunkRow>> {
    index.view(|index| {
        let mut live = Vec::new();
        for chunk in table {
            // A row that makes no sense is told by whoever looks at all rows: it is not counted here.
            if !index.chunk(&chunk.id).is_ok_and(|found| found == Some(chunk.location)) {
                continue;
            }
            agreed.chunks += 1;
            live.push(ChunkRow { n: 0, id: chunk.id, location: chunk.location, sum: chunk.sum });
            agreed.members += members(index, chunk)?;
        }
        Ok(live)
    })
}

/// How many small files the database has in this bundle, each where the table has it.
fn members(index: &Index, bundle: &TableChunk) -> Result<u64> {
    let (mut start, mut count) = (0, 0);
    // A file may be in a bundle several times; its row then has one of the places.
    let mut places: Vec<(ContentId, u32)> = Vec::new();
    for member in &bundle.members {
        places.push((member.id, start));
        start += member.len;
    }
    places.sort_unstable();
    for same in places.chunk_by(|a, b| a.0 == b.0) {
        let place = index.member(&same[0].0)?.filter(|place| place.chunk == bundle.id);
        count += u64::from(place.is_some_and(|place| same.iter().any(|(_, start)| *start == place.offset)));
    }
    Ok(count)
}

/// The first byte of a pack that is not zero, of those that are in neither header, chunk, table nor footer.
fn between(path: &Path, base: u64, end: u64) -> Result<Option<u64>> {
    let file = File::open(path).map_err(|e| io_error("open", path, e))?;
    let footer_at = end.saturating_sub(FOOTER_LEN as u64);
    let mut tail = [0; FOOTER_LEN];
    file.read_exact_at(&mut tail, footer_at).map_err(|e| io_error("read", path, e))?;
    let footer = Footer::decode(&tail, end)?;
    let table_end = footer.table_address.saturating_add(footer.table_len() as u64);
    let mut ranges = allocated(&file, path, 0..base)?;
    ranges.extend([base + HEADER_LEN as u64..base + BLOCK, table_end..footer_at]);
    for range in ranges {
        if let Some(at) = not_zero(&file, range).map_err(|e| Error::from_io("read", e))? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn not_zero(file: &File, range: Range<u64>) -> std::io::Result<Option<u64>> {
    let mut bytes = vec![0; PIECE];
    let mut at = range.start;
    while at < range.end {
        let piece = &mut bytes[..(range.end - at).min(PIECE as u64) as usize];
        file.read_exact_at(piece, at)?;
        if let Some(i) = piece.iter().position(|b| *b != 0) {
            return Ok(Some(at + i as u64));
        }
        at += piece.len() as u64;
    }
    Ok(None)
}
