//! A tree as an EROFS image whose files lie in the store's packs.

use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::DataRange;
use crate::format::erofs::write::{self, Body, Data, Inode, Piece};
use crate::format::item::Extent;
use crate::format::pack::{BLOCK, Location};
use crate::id::ContentId;
use crate::layer::{Content, FileReader, place};
use crate::store::{Index, Store};
use crate::tree::{Node, NodeId, NodeKind, Tree};
use std::collections::{BTreeSet, HashMap};

/// Files the index of an image cannot hold lie in it whole, up to this many bytes.
const INSIDE_MAX: u64 = 64 << 20;
/// Files below this are ranges of bundles even where they fill theirs: eight bytes instead of an index.
const FRAGMENT_MAX: u64 = 64 << 10;

/// An image and what it needs.
pub(super) struct Built {
    pub(super) bytes: Vec<u8>,
    /// Bases of the packs, in the order of its devices.
    pub(super) packs: Vec<u64>,
}

/// Builds the image of a tree. The same tree and packs give the same bytes.
pub(super) fn build(store: &Store, tree: &Tree<Content>) -> Result<Built> {
    store.with_index(|index| {
        let packs = index.packs()?;
        index.begin_reading()?;
        let mut files = Files { store, index, locations: HashMap::new(), bundles: vec![], numbers: HashMap::new() };
        let inodes = inodes(tree, &mut files);
        let Files { locations, bundles, .. } = files;
        index.end_reading()?;
        let inodes = inodes?;
        let used: BTreeSet<u64> = locations.values().map(|l| pack_of(&packs, l)).collect::<Result<_>>()?;
        let used: Vec<(u64, u64)> = packs.into_iter().filter(|(base, _)| used.contains(base)).collect();
        let ends: Vec<u64> = used.iter().map(|(base, len)| base.saturating_add(*len)).collect();
        let bytes = write::build(&inodes, &bundles, &ends)?;
        Ok(Built { bytes, packs: used.iter().map(|(base, _)| *base).collect() })
    })
}

/// Base of the pack that has these blocks.
fn pack_of(packs: &[(u64, u64)], location: &Location) -> Result<u64> {
    let start = u64::from(location.block) * BLOCK;
    let at = packs.partition_point(|&(base, _)| base <= start);
    let found = at.checked_sub(1).map(|i| packs[i]).filter(|&(base, len)| location.end() <= base.saturating_add(len));
    found.map(|(base, _)| base).ok_or_else(|| Error::corrupt("a chunk lies in no pack").actual(format!("{location:?}")))
}

/// The inodes in the order of names, each once.
fn inodes<'t>(tree: &'t Tree<Content>, files: &mut Files<'_>) -> Result<Vec<Inode<'t>>> {
    let mut numbers: HashMap<NodeId, usize> = HashMap::new();
    let mut order = Vec::new();
    let mut parents: Vec<usize> = Vec::new();
    // Directories from the root to the name before.
    let mut above: Vec<usize> = Vec::new();
    for step in tree.walk() {
        above.truncate(step.depth);
        let parent = above.last().copied().unwrap_or(0);
        let number = *numbers.entry(step.id).or_insert_with(|| {
            order.push(step.id);
            parents.push(parent);
            order.len() - 1
        });
        above.push(number);
    }
    let inode = |(id, parent): (&NodeId, usize)| {
        let node = tree.node(*id);
        let body = body(node, parent, &numbers, files)?;
        let a = &node.attributes;
        let (mode, uid, gid, mtime, xattrs) = (a.mode, a.uid, a.gid, a.mtime, &a.xattrs[..]);
        Ok(Inode { mode, uid, gid, mtime, links: node.links, xattrs, body })
    };
    order.iter().zip(parents).map(inode).collect()
}

fn body<'t>(
    node: &'t Node<Content>,
    parent: usize,
    numbers: &HashMap<NodeId, usize>,
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
        NodeKind::CharDevice { major, minor } => Body::CharDevice(*major, *minor),
        NodeKind::BlockDevice { major, minor } => Body::BlockDevice(*major, *minor),
        NodeKind::Fifo => Body::Fifo,
    })
}

/// Finds where contents lie.
struct Files<'a> {
    store: &'a Store,
    index: &'a Index,
    locations: HashMap<ContentId, Location>,
    /// Chunks that fragments lie in, and their places in the list.
    bundles: Vec<Location>,
    numbers: HashMap<ContentId, usize>,
}

impl Files<'_> {
    fn location(&mut self, id: &ContentId) -> Result<Location> {
        if let Some(location) = self.locations.get(id) {
            return Ok(*location);
        }
        let found = self.index.chunk(id)?;
        let found =
            found.ok_or_else(|| Error::corrupt("the store does not have this chunk").subject(format!("chunk {id}")))?;
        self.locations.insert(*id, found);
        Ok(found)
    }

    fn data(&mut self, size: u64, sparse: Option<&[DataRange]>, content: &Content) -> Result<Data> {
        if let (None, [only]) = (sparse, &content[..]) {
            let location = self.location(&only.chunk)?;
            if size < FRAGMENT_MAX || (only.offset, only.len) != (0, location.raw_len) {
                let (next, bundles) = (self.bundles.len(), &mut self.bundles);
                let bundle = *self.numbers.entry(only.chunk).or_insert_with(|| {
                    bundles.push(location);
                    next
                });
                return Ok(Data::Fragment { bundle, offset: only.offset });
            }
        }
        match self.pieces(size, sparse, content)? {
            Some(pieces) if write::fits(&pieces) => Ok(Data::Pieces(pieces)),
            _ => self.inside(size, sparse, content),
        }
    }

    /// The file as chunks from their starts and runs of zeros, `None` if it is not made of those.
    fn pieces(&mut self, size: u64, sparse: Option<&[DataRange]>, content: &Content) -> Result<Option<Vec<Piece>>> {
        let whole = [DataRange { offset: 0, len: size }];
        let (mut pieces, mut end) = (Vec::with_capacity(content.len()), 0);
        for piece in place(sparse.unwrap_or(&whole), content.to_vec())? {
            let Extent { chunk, offset, len } = piece.extent;
            if offset > 0 {
                return Ok(None);
            }
            if piece.offset > end {
                pieces.push(Piece::Zeros(piece.offset - end));
            }
            pieces.push(Piece::Chunk { location: self.location(&chunk)?, len });
            end = piece.offset + u64::from(len);
        }
        if size > end {
            pieces.push(Piece::Zeros(size - end));
        }
        Ok(Some(pieces))
    }

    fn inside(&self, size: u64, sparse: Option<&[DataRange]>, content: &Content) -> Result<Data> {
        if size > INSIDE_MAX {
            let e = Error::new(ErrorKind::Unsupported, "a sparse file whose pieces an EROFS image cannot hold");
            return Err(e.expected(format!("at most {INSIDE_MAX} bytes")).actual(size));
        }
        let kind = crate::format::entry::EntryKind::File { size, sparse: sparse.map(<[_]>::to_vec) };
        let mut bytes = Vec::with_capacity(size as usize);
        FileReader::new(self.store, &kind, content.to_vec())?.copy_to(&mut bytes)?;
        Ok(Data::Inside(bytes))
    }
}
