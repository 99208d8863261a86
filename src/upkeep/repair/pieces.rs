//! Chunks put together from pieces, where no source has them whole.
//!
//! Another store may have bundled its small files otherwise, or cut large ones elsewhere. But a chunk is known by what is
//! in it: a pack's table or the database names the small files of a bundle, and the records of layers say which bytes of
//! which files lie where in a chunk. What is put together counts if it has the chunk's id.

use super::donor::Donors;
use super::report::PartOfChunk;
use crate::digest::Digest;
use crate::error::Result;
use crate::format::item::Extent;
use crate::format::pack::{BLOCK, Member};
use crate::id::ContentId;
use crate::layer::LayerEntry;
use crate::observe::{Observer, check};
use crate::store::{ChunkReader, RawChunk, Store};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// Chunks put together at a time; they are in memory.
pub(super) const BATCH: usize = 256;
/// Chunks of a source remembered while files are read one after the other.
const KEPT: usize = 16;

/// A chunk being put together.
#[derive(Default)]
struct Puzzle {
    /// As long as anything tells that it is.
    bytes: Vec<u8>,
    /// Parts that are there, ascending, disjoint, not adjacent.
    there: Vec<Range<usize>>,
    /// Its whole length, where the database tells.
    len: Option<usize>,
    /// Where small files begin or end.
    cuts: BTreeSet<usize>,
    /// The members of a bundle, where a table has them.
    members: Vec<Member>,
    /// Whether it is a bundle.
    bundle: bool,
}

/// A chunk that is what its id says.
pub(super) struct Whole {
    pub(super) id: ContentId,
    pub(super) raw: Vec<u8>,
    pub(super) members: Vec<Member>,
}

/// Finds chunks by whatever way there is. `wanted` is one batch. What is found in part only goes to `parts`.
pub(super) fn find(
    store: &Store,
    donors: &Donors<'_>,
    wanted: &[ContentId],
    layers: &BTreeSet<Digest>,
    (observer, parts): (&dyn Observer, &mut Vec<PartOfChunk>),
) -> Result<Vec<Whole>> {
    let mut puzzles = begin(store, wanted)?;
    for (id, puzzle) in &mut puzzles {
        check(observer)?;
        match donors.chunk(id) {
            Some(raw) => puzzle.add(0, &raw),
            None => puzzle.add_members(donors),
        }
    }
    // Places of small files are wanted of all bundles, bytes of those that are not whole.
    let done = puzzles.iter().all(|(id, puzzle)| puzzle.is_described() && puzzle.is(id));
    for layer in layers.iter().filter(|_| !done) {
        check(observer)?;
        // A damaged record tells as far as it goes.
        let _ = from_layer(store, donors, layer, &mut puzzles);
    }
    let mut whole = Vec::new();
    let mut puzzles: BTreeMap<ContentId, Puzzle> = puzzles.into_iter().collect();
    for id in wanted {
        let Some(puzzle) = puzzles.remove(id) else { continue };
        match puzzle.is(id) {
            true => whole.push(puzzle.finish(*id)),
            false => {
                let found = puzzle.there.iter().map(|r| r.len() as u64).sum();
                if found > 0 {
                    parts.push(PartOfChunk { chunk: *id, found, of: puzzle.len.map(|len| len as u64) });
                }
            }
        }
    }
    Ok(whole)
}

/// What a pack's table is to say of chunks that are whole.
pub(super) fn describe(
    store: &Store,
    layers: &BTreeSet<Digest>,
    chunks: Vec<(ContentId, Vec<u8>)>,
) -> Result<Vec<Whole>> {
    let ids: Vec<ContentId> = chunks.iter().map(|(id, _)| *id).collect();
    let mut puzzles = begin(store, &ids)?;
    for layer in layers {
        let _ = from_layer(store, &Donors::default(), layer, &mut puzzles);
    }
    let whole = chunks.into_iter().map(|(id, raw)| {
        let puzzle = puzzles.remove(&id).unwrap_or_default();
        Puzzle { bytes: raw, ..puzzle }.finish(id)
    });
    Ok(whole.collect())
}

/// What this store knows of chunks besides their bytes.
fn begin(store: &Store, ids: &[ContentId]) -> Result<HashMap<ContentId, Puzzle>> {
    store.with_index(|index| {
        let places = index.members_of(ids)?;
        let packs = index.packs()?;
        let mut tables: HashMap<u64, HashMap<ContentId, Vec<Member>>> = HashMap::new();
        let mut puzzles = HashMap::new();
        for id in ids {
            let mut puzzle = Puzzle::default();
            if let Some(places) = places.get(id) {
                puzzle.bundle = true;
                puzzle.cuts.extend(places.iter().map(|(start, _)| *start as usize));
            }
            if let Some(location) = index.chunk(id).ok().flatten() {
                puzzle.len = Some(location.raw_len as usize);
                let start = u64::from(location.block) * BLOCK;
                let before = packs.partition_point(|(base, _)| *base <= start).checked_sub(1).map(|at| packs[at]);
                if let Some((base, len)) = before {
                    let read = || store.pack_table(base, base.saturating_add(len)).unwrap_or_default();
                    let table = tables
                        .entry(base)
                        .or_insert_with(|| read().into_iter().map(|chunk| (chunk.id, chunk.members)).collect());
                    puzzle.members = table.get(id).cloned().unwrap_or_default();
                    puzzle.bundle |= !puzzle.members.is_empty();
                }
            }
            puzzles.insert(*id, puzzle);
        }
        Ok(puzzles)
    })
}

/// Goes through a layer, and takes from a source that has it what lies in the wanted chunks.
fn from_layer(
    store: &Store,
    donors: &Donors<'_>,
    layer: &Digest,
    puzzles: &mut HashMap<ContentId, Puzzle>,
) -> Result<()> {
    let small = u64::from(store.chunking().small_file);
    let (donor, their) = match donors.stores().find_map(|donor| Some((donor, donor.layer(layer).ok()?.entries().ok()?)))
    {
        Some((donor, their)) => (Some(donor), Some(their)),
        None => (None, None),
    };
    let (mut reader, mut their) = (donor.map(Stored::new).transpose()?, their);
    for entry in store.recorded_entries(layer)? {
        let entry = entry?;
        let same =
            their.as_mut().and_then(|their| their.next()).and_then(Result::ok).filter(|t| t.entry == entry.entry);
        if same.is_none() {
            their = None;
        }
        let whole_file = entry.entry.kind.stored_len() < small && entry.extents.len() == 1;
        let mut at = 0u64;
        for extent in &entry.extents {
            if let Some(puzzle) = puzzles.get_mut(&extent.chunk) {
                puzzle.note(extent, whole_file);
                if let (Some(same), Some(reader), false) = (&same, &mut reader, puzzle.has(extent)) {
                    let mut bytes = vec![0; extent.len as usize];
                    if reader.read(same, at, &mut bytes).is_ok() {
                        puzzle.add(extent.offset as usize, &bytes);
                    }
                }
            }
            at += u64::from(extent.len);
        }
    }
    Ok(())
}

impl Puzzle {
    fn add_members(&mut self, donors: &Donors<'_>) {
        let mut at = 0;
        for member in std::mem::take(&mut self.members) {
            if let Some(file) = donors.member(&member.id, member.len) {
                self.add(at, &file);
            }
            at += member.len as usize;
            self.members.push(member);
        }
    }

    fn note(&mut self, extent: &Extent, whole_file: bool) {
        let (start, end) = (extent.offset as usize, extent.offset as usize + extent.len as usize);
        if whole_file {
            self.bundle = true;
            self.cuts.extend([start, end]);
        }
    }

    fn has(&self, extent: &Extent) -> bool {
        let (start, end) = (extent.offset as usize, extent.offset as usize + extent.len as usize);
        self.there.iter().any(|there| there.start <= start && end <= there.end)
    }

    fn add(&mut self, at: usize, bytes: &[u8]) {
        let mut new = at..at + bytes.len();
        if self.bytes.len() < new.end {
            self.bytes.resize(new.end, 0);
        }
        self.bytes[new.clone()].copy_from_slice(bytes);
        self.there.retain(|there| {
            let apart = there.end < new.start || new.end < there.start;
            if !apart {
                new = new.start.min(there.start)..new.end.max(there.end);
            }
            apart
        });
        self.there.push(new);
        self.there.sort_unstable_by_key(|there| there.start);
    }

    fn is(&self, id: &ContentId) -> bool {
        let one = self.there.len() == 1 && self.there[0] == (0..self.bytes.len());
        one && ContentId::of(&self.bytes) == *id
    }

    /// Whether it is known which members it has, if any.
    fn is_described(&self) -> bool {
        !self.members.is_empty() || self.len.is_some() && !self.bundle
    }

    /// The members that a pack's table is to have, if it is a bundle. Where it is not known where files end that nothing
    /// refers to any more, several count as one.
    fn finish(mut self, id: ContentId) -> Whole {
        let raw = self.bytes;
        if self.members.is_empty() && self.bundle {
            self.cuts.extend([0, raw.len()]);
            let cuts: Vec<usize> = self.cuts.into_iter().filter(|cut| *cut <= raw.len()).collect();
            let member = |pair: &[usize]| {
                let file = &raw[pair[0]..pair[1]];
                Member { id: ContentId::of(file), len: file.len() as u32 }
            };
            self.members = cuts.windows(2).map(member).collect();
        }
        Whole { id, raw, members: self.members }
    }
}

/// Reads what files of a source hold, in the tar's order.
struct Stored<'s> {
    chunks: ChunkReader<'s>,
    kept: Vec<(ContentId, RawChunk)>,
}

impl<'s> Stored<'s> {
    fn new(store: &'s Store) -> Result<Self> {
        Ok(Self { chunks: ChunkReader::new(store)?, kept: vec![] })
    }

    /// Fills `bytes` from the stored bytes of a file, from `at` on.
    fn read(&mut self, entry: &LayerEntry, at: u64, bytes: &mut [u8]) -> Result<()> {
        let wanted = at..at + bytes.len() as u64;
        let mut start = 0u64;
        for extent in &entry.extents {
            let end = start + u64::from(extent.len);
            let (from, to) = (start.max(wanted.start), end.min(wanted.end));
            if from < to {
                let chunk = self.chunk(&extent.chunk)?;
                let first = extent.offset as usize + (from - start) as usize;
                let piece = chunk.get(first..first + (to - from) as usize);
                let piece = piece.ok_or_else(|| crate::Error::corrupt("extent reaches past its chunk"))?;
                bytes[(from - at) as usize..(to - at) as usize].copy_from_slice(piece);
            }
            start = end;
        }
        Ok(())
    }

    fn chunk(&mut self, id: &ContentId) -> Result<RawChunk> {
        if let Some((_, chunk)) = self.kept.iter().find(|(kept, _)| kept == id) {
            return Ok(chunk.clone());
        }
        let chunk = self.chunks.read(id)?;
        if self.kept.len() >= KEPT {
            self.kept.remove(0);
        }
        self.kept.push((*id, chunk.clone()));
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_a_whole_in_any_order() {
        let raw: Vec<u8> = (0..200).collect();
        let id = ContentId::of(&raw);
        let mut puzzle = Puzzle::default();
        for (start, end) in [(50, 120), (0, 10), (190, 200), (110, 190), (5, 60)] {
            assert!(!puzzle.is(&id), "before {start}");
            puzzle.add(start, &raw[start..end]);
        }
        assert!(puzzle.is(&id) && !puzzle.is(&ContentId::of(b"x")));
        assert!(puzzle.has(&Extent { chunk: id, offset: 0, len: 200 }));
    }

    #[test]
    fn members_fill_their_bundle_whatever_is_known_of_them() {
        let mut puzzle = Puzzle::default();
        puzzle.add(0, b"onetwothree");
        puzzle.note(&Extent { chunk: ContentId::of(b""), offset: 3, len: 3 }, true);
        let members = puzzle.finish(ContentId::of(b"onetwothree")).members;
        let ids: Vec<_> = members.iter().map(|m| m.id).collect();
        assert_eq!(ids, [ContentId::of(b"one"), ContentId::of(b"two"), ContentId::of(b"three")]);
    }
}
