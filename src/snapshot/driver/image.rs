//! A tree as an EROFS image whose files lie in the store's packs.

use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::{DataRange, EntryKind};
use crate::format::erofs::Pack;
use crate::format::erofs::write::{self, Body, Data, Inode, Source};
use crate::format::pack::{BLOCK, Location, owner, table_has};
use crate::id::ContentId;
use crate::layer::{Content, FileReader};
use crate::observe::{Observer, check};
use crate::store::{Index, Store};
use crate::tree::{Node, NodeId, NodeKind, Tree};
use std::collections::{BTreeMap, HashMap};

/// Most bytes of content, with indexes of holes, that an image holds itself.
const INSIDE_MAX: u64 = 64 << 20;

/// Builds the image of a tree. The same tree and packs give the same bytes.
///
/// # Errors
/// `Unsupported` for what EROFS cannot hold; `Corrupt` if a chunk is in no pack, or the pack's own table says otherwise
/// than the database; `Cancelled`.
pub(crate) fn build(store: &Store, tree: &Tree<Content>, observer: &dyn Observer) -> Result<Vec<u8>> {
    store.with_index(|index| {
        index.begin_reading()?;
        let packs = index.packs();
        let mut files = Files {
            store,
            index,
            observer,
            chunks: HashMap::new(),
            bundles: vec![],
            numbers: HashMap::new(),
            inside: 0,
        };
        let inodes = inodes(tree, &mut files);
        let Files { chunks, bundles, .. } = files;
        index.end_reading()?;
        let inodes = inodes?;
        let packs = packs_of(store, &packs?, &chunks)?;
        write::build(&Source { inodes, bundles, packs })
    })
}

/// A pack, and the chunks of it that are wanted.
type Used<'a> = (Pack, Vec<(&'a ContentId, &'a Location)>);

/// The packs that hold these chunks, whose tables say the same of them.
fn packs_of(store: &Store, packs: &[(u64, u64)], chunks: &HashMap<ContentId, Location>) -> Result<Vec<Pack>> {
    let mut by_pack: BTreeMap<u64, Used<'_>> = BTreeMap::new();
    for (id, location) in chunks {
        let pack = owner(packs, location).map(|(base, len)| Pack { base, end: base.saturating_add(len) });
        let pack = pack.ok_or_else(|| Error::corrupt("a chunk lies in no pack").subject(format!("chunk {id}")))?;
        by_pack.entry(pack.base).or_insert((pack, vec![])).1.push((id, location));
    }
    for (pack, chunks) in by_pack.values() {
        let table = store.pack_table(pack.base, pack.end)?;
        for (id, location) in chunks {
            if !table_has(&table, id, location) {
                let e =
                    Error::corrupt("the pack's table says otherwise than the database").subject(format!("chunk {id}"));
                return Err(e.expected(format!("{location:?}")));
            }
        }
    }
    Ok(by_pack.into_values().map(|(pack, _)| pack).collect())
}

/// The inodes in the order of names, each once.
fn inodes<'t>(tree: &'t Tree<Content>, files: &mut Files<'_>) -> Result<Vec<Inode<'t>>> {
    let mut numbers: HashMap<NodeId, u32> = HashMap::new();
    let mut order: Vec<(NodeId, u32)> = Vec::new();
    // Directories from the root to the name before.
    let mut above: Vec<u32> = Vec::new();
    for step in tree.walk() {
        above.truncate(step.depth);
        let parent = above.last().copied().unwrap_or(0);
        let number = *numbers.entry(step.id).or_insert_with(|| {
            order.push((step.id, parent));
            order.len() as u32 - 1
        });
        above.push(number);
    }
    let inode = |(id, parent): (NodeId, u32)| {
        check(files.observer)?;
        let node = tree.node(id);
        let body = body(node, parent, &numbers, files)?;
        let a = &node.attributes;
        let (mode, uid, gid, mtime, xattrs) = (a.mode, a.uid, a.gid, a.mtime, &a.xattrs[..]);
        Ok(Inode { mode, uid, gid, mtime, links: node.links, xattrs, body })
    };
    order.into_iter().map(inode).collect()
}

fn body<'t>(
    node: &'t Node<Content>,
    parent: u32,
    numbers: &HashMap<NodeId, u32>,
    files: &mut Files<'_>,
) -> Result<Body<'t>> {
    Ok(match &node.kind {
        NodeKind::Directory { children } => {
            let children = children.iter().map(|(name, id)| (&name[..], numbers[id])).collect();
            Body::Directory { children, parent }
        }
        NodeKind::File { size, sparse, content } => {
            Body::File { size: *size, data: files.data(*size, sparse.as_deref(), content)? }
        }
        NodeKind::Symlink { target } => Body::Symlink(target),
        NodeKind::CharDevice { major, minor } => Body::CharDevice { major: *major, minor: *minor },
        NodeKind::BlockDevice { major, minor } => Body::BlockDevice { major: *major, minor: *minor },
        NodeKind::Fifo => Body::Fifo,
    })
}

/// Finds where contents lie.
struct Files<'a> {
    store: &'a Store,
    index: &'a Index,
    observer: &'a dyn Observer,
    chunks: HashMap<ContentId, Location>,
    /// Chunks that fragments lie in, and their places in the list.
    bundles: Vec<Location>,
    numbers: HashMap<ContentId, u32>,
    /// Bytes that are in the image already.
    inside: u64,
}

impl Files<'_> {
    fn location(&mut self, id: &ContentId) -> Result<Location> {
        if let Some(location) = self.chunks.get(id) {
            return Ok(*location);
        }
        let found = self.index.chunk(id)?;
        let found =
            found.ok_or_else(|| Error::corrupt("the store does not have this chunk").subject(format!("chunk {id}")))?;
        check(self.observer)?;
        self.chunks.insert(*id, found);
        Ok(found)
    }

    fn data(&mut self, size: u64, sparse: Option<&[DataRange]>, content: &Content) -> Result<Data> {
        if size == 0 {
            return Ok(Data::Chunks(vec![]));
        }
        if let Some(ranges) = sparse {
            return self.inside(size, ranges, content);
        }
        let locations = content.iter().map(|e| self.location(&e.chunk)).collect::<Result<Vec<_>>>()?;
        let whole = |(e, l): (&crate::Extent, &Location)| e.offset == 0 && e.len == l.raw_len;
        if content.iter().zip(&locations).all(whole) && write::chunks_fit(&locations) {
            return Ok(Data::Chunks(locations));
        }
        match (&content[..], &locations[..]) {
            ([only], [location]) => {
                let (next, bundles) = (self.bundles.len() as u32, &mut self.bundles);
                let bundle = *self.numbers.entry(only.chunk).or_insert_with(|| {
                    bundles.push(*location);
                    next
                });
                Ok(Data::Fragment { bundle, offset: only.offset })
            }
            _ => self.inside(size, &[DataRange { offset: 0, len: size }], content),
        }
    }

    /// A file whose content the image holds itself: the kernel can begin no extent in the middle of a chunk, which is
    /// where the data after a hole would be.
    fn inside(&mut self, size: u64, ranges: &[DataRange], content: &Content) -> Result<Data> {
        let costs = (0..=31).map(|bits| (cost(size, ranges, BLOCK << bits), bits));
        let (cost, bits) = costs.min().unwrap_or_default();
        self.inside = self.inside.saturating_add(cost);
        if self.inside > INSIDE_MAX {
            let e = Error::new(ErrorKind::Unsupported, "sparse files with too much data for an EROFS image");
            return Err(e.expected(format!("at most {INSIDE_MAX} bytes")).actual(self.inside));
        }
        let each = BLOCK << bits;
        let mut pieces = vec![None; size.div_ceil(each) as usize];
        let kind = EntryKind::File { size, sparse: Some(ranges.to_vec()) };
        let reader = FileReader::new(self.store, &kind, content.to_vec())?;
        for i in touched(ranges, each) {
            check(self.observer)?;
            let start = i * each;
            let mut bytes = vec![0; (size - start).min(each) as usize];
            reader.read_at(&mut bytes, start)?;
            pieces[i as usize] = Some(bytes);
        }
        Ok(Data::Inside { bits, pieces })
    }
}

/// Numbers of the pieces of `each` bytes that have data in them, ascending.
fn touched(ranges: &[DataRange], each: u64) -> impl Iterator<Item = u64> + '_ {
    let mut next = 0;
    ranges.iter().filter(|r| r.len > 0).flat_map(move |r| {
        let (first, end) = ((r.offset / each).max(next), (r.offset + r.len).div_ceil(each));
        next = next.max(end);
        first..end
    })
}

/// Bytes that a file takes in an image when it is cut into pieces of `each` bytes.
fn cost(size: u64, ranges: &[DataRange], each: u64) -> u64 {
    let mut next = 0;
    let mut pieces = 0u64;
    for r in ranges.iter().filter(|r| r.len > 0) {
        let (first, end) = ((r.offset / each).max(next), (r.offset + r.len).div_ceil(each));
        pieces += end.saturating_sub(first);
        next = next.max(end);
    }
    pieces.saturating_mul(each.min(size)).saturating_add(size.div_ceil(each).saturating_mul(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_with_data_are_found_once() {
        let range = |offset, len| DataRange { offset, len };
        let ranges =
            [range(0, 1), range(10, 0), range(4000, 200), range(4300, 10), range(20_000, 1), range(20_480, 9000)];
        assert_eq!(touched(&ranges, 4096).collect::<Vec<_>>(), [0, 1, 4, 5, 6, 7]);
        assert_eq!(touched(&ranges, 8192).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(cost(29_480, &ranges, 4096), 6 * 4096 + 8 * 8);
        assert_eq!(cost(29_480, &ranges, 8192), 3 * 8192 + 4 * 8);
        // A file of a few bytes and a vast hole is cheap, however the hole is cut.
        let best = |size, ranges: &[DataRange]| (0..=31).map(|bits| cost(size, ranges, BLOCK << bits)).min().unwrap();
        assert!(best(1 << 40, &[range(1 << 39, 100)]) < 8 << 20);
        assert!(best(i64::MAX as u64, &[]) <= 8 << 20);
    }
}
