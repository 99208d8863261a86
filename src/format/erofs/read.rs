//! Reading an image back: its tree, and what it refers to in the packs. Any bytes give an error or a tree.

use super::index::{self, Head};
use super::{
    BLOCK_LEN, DEVICE_LEN, FEATURES, FRAGMENT, INODE_LEN, LAYOUT_COMPRESSED, LAYOUT_INLINE, LAYOUT_PLAIN, MAGIC, SLOT,
    SUPER, SUPER_LEN, crc32c, decode_device, dirs, xattrs,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::{Time, Xattr};
use crate::format::pack::BLOCK;
use std::collections::HashSet;

/// Deeper trees than limits allow are no image of ours.
const DEPTH_MAX: usize = 4096;

/// An image that was checked as far as its superblock goes.
pub(crate) struct Image<'a> {
    bytes: &'a [u8],
    meta: usize,
    shared: usize,
    root: u64,
    packed: u64,
    /// Ends of the packs, in blocks, and what is added to a store's block.
    packs: Vec<u32>,
    devices: u32,
    id: [u8; 16],
}

/// A name of the tree with its inode.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) path: Vec<u8>,
    /// The same for all names of an inode.
    pub(crate) nid: u64,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) links: u32,
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<Xattr>,
    pub(crate) content: Content<'a>,
}

/// What an inode holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    Directory,
    /// Target of a symlink, or a file's bytes in the image, in up to two pieces.
    Inside(&'a [u8], &'a [u8]),
    Extents(Vec<Head>),
    /// Offset in the packed inode.
    Fragment(u64),
    Device(u32, u32),
    Nothing,
}

struct Inode<'a> {
    layout: u16,
    mode: u16,
    size: u64,
    value: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    links: u32,
    beside: &'a [u8],
    /// Where what follows the attributes begins.
    tail: usize,
}

fn bad(what: &str) -> Error {
    Error::corrupt(format!("EROFS image: {what}"))
}

impl<'a> Image<'a> {
    /// Checks the superblock and the device table.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self> {
        let block = bytes.get(..BLOCK_LEN).ok_or_else(|| bad("shorter than a block"))?;
        let head = &block[SUPER..SUPER + SUPER_LEN];
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        if number(0) != MAGIC {
            return Err(bad("bad magic"));
        }
        let mut summed = block[SUPER..].to_vec();
        summed[4..8].fill(0);
        if crc32c(&summed) != number(4) {
            return Err(bad("superblock does not match its checksum"));
        }
        if number(80) != FEATURES || usize::from(head[12]) != BLOCK_LEN.trailing_zeros() as usize {
            let e = Error::new(ErrorKind::Unsupported, "EROFS image with other features");
            return Err(e.expected(format!("{FEATURES:#x}")).actual(format!("{:#x}", number(80))));
        }
        let blocks = number(36) as usize;
        if blocks.checked_mul(BLOCK_LEN) != Some(bytes.len()) {
            return Err(bad("another length than its superblock says"));
        }
        let table = usize::from(short(88)) * DEVICE_LEN;
        let (mut packs, mut devices) = (Vec::new(), 0);
        for i in 0..usize::from(short(86)) {
            let at = table + DEVICE_LEN * i + 64;
            let slot = bytes.get(at..at + 8).ok_or_else(|| bad("device table reaches past the end"))?;
            packs.push(u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]));
            devices = u32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]]);
        }
        let packed = u64::from(number(96)) | u64::from(number(100)) << 32;
        let mut id = [0; 16];
        id.copy_from_slice(&head[48..64]);
        let (meta, shared) = (number(40) as usize * BLOCK_LEN, number(44) as usize * BLOCK_LEN);
        Ok(Self { bytes, meta, shared, root: short(14).into(), packed, packs, devices, id })
    }

    /// Checks every byte against the hash that the image carries.
    pub(crate) fn verify(&self) -> Result<()> {
        if super::identity(self.bytes) == self.id { Ok(()) } else { Err(bad("does not match its hash")) }
    }

    /// Ends of the packs it refers to, as addresses.
    pub(crate) fn packs(&self) -> impl Iterator<Item = u64> + '_ {
        self.packs.iter().map(|end| u64::from(*end) * BLOCK)
    }

    fn slice(&self, at: usize, len: usize) -> Result<&'a [u8]> {
        let end = at.checked_add(len).filter(|end| *end <= self.bytes.len());
        end.map(|end| &self.bytes[at..end]).ok_or_else(|| bad("something reaches past the end"))
    }

    fn inode(&self, nid: u64) -> Result<Inode<'a>> {
        let at =
            usize::try_from(nid).ok().and_then(|nid| nid.checked_mul(SLOT)).and_then(|at| at.checked_add(self.meta));
        let at = at.ok_or_else(|| bad("an inode's number is too large"))?;
        let head = self.slice(at, INODE_LEN)?;
        let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let long = |at: usize| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
        if short(0) & 1 != 1 || short(0) >> 1 > LAYOUT_INLINE {
            return Err(bad("an inode of unknown form"));
        }
        let len = xattrs::len(short(2));
        let beside = self.slice(at + INODE_LEN, len)?;
        let mtime = Time { secs: long(32) as i64, nanos: number(40) };
        Ok(Inode {
            layout: short(0) >> 1,
            mode: short(4),
            size: long(8),
            value: number(16),
            uid: number(24),
            gid: number(28),
            mtime,
            links: number(44),
            beside,
            tail: at + INODE_LEN + len,
        })
    }

    /// The bytes of an inode whose content is in the image.
    fn inside(&self, inode: &Inode<'a>) -> Result<(&'a [u8], &'a [u8])> {
        let size = usize::try_from(inode.size).map_err(|_| bad("content larger than the image"))?;
        let start =
            (inode.value as usize).checked_mul(BLOCK_LEN).ok_or_else(|| bad("a block's number is too large"))?;
        match inode.layout {
            _ if size == 0 => Ok((&[], &[])),
            LAYOUT_PLAIN => Ok((self.slice(start, size)?, &[])),
            LAYOUT_INLINE => {
                let tail = size % BLOCK_LEN;
                let whole = if size > tail { self.slice(start, size - tail)? } else { &[] };
                Ok((whole, self.slice(inode.tail, tail)?))
            }
            _ => Err(bad("a directory or symlink that is compressed")),
        }
    }

    fn header_at(&self, inode: &Inode<'_>) -> usize {
        inode.tail.next_multiple_of(8)
    }

    fn heads(&self, inode: &Inode<'_>) -> Result<Vec<Head>> {
        let clusters = usize::try_from(inode.size.div_ceil(BLOCK)).map_err(|_| bad("a file is too large"))?;
        let bytes = &self.bytes[self.header_at(inode).min(self.bytes.len())..];
        let mut heads = Vec::new();
        index::decode(bytes, clusters, |head| heads.push(head))?;
        Ok(heads)
    }

    fn content(&self, inode: &Inode<'a>) -> Result<Content<'a>> {
        match inode.mode & 0o170_000 {
            0o040_000 => Ok(Content::Directory),
            0o120_000 => self.inside(inode).map(|(a, b)| Content::Inside(a, b)),
            0o100_000 if inode.layout == LAYOUT_COMPRESSED => {
                let header = self.slice(self.header_at(inode), 8)?;
                let header = header.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
                if header & FRAGMENT != 0 {
                    return Ok(Content::Fragment(header ^ FRAGMENT));
                }
                self.heads(inode).map(Content::Extents)
            }
            0o100_000 => self.inside(inode).map(|(a, b)| Content::Inside(a, b)),
            0o020_000 | 0o060_000 => {
                let (major, minor) = decode_device(inode.value);
                Ok(Content::Device(major, minor))
            }
            0o010_000 => Ok(Content::Nothing),
            _ => Err(bad("an inode of unknown type")),
        }
    }

    /// Every name once, in the order of directories; the root first with an empty path.
    pub(crate) fn walk(&self, mut each: impl FnMut(Entry<'a>) -> Result<()>) -> Result<()> {
        let mut pending = vec![(Vec::new(), self.root, 0)];
        let mut seen = HashSet::new();
        while let Some((path, nid, depth)) = pending.pop() {
            let inode = self.inode(nid)?;
            let content = self.content(&inode)?;
            if content == Content::Directory {
                if depth > DEPTH_MAX || !seen.insert(nid) {
                    return Err(bad("a directory is inside itself"));
                }
                let (whole, tail) = self.inside(&inode)?;
                for block in whole.chunks(BLOCK_LEN).chain((!tail.is_empty()).then_some(tail)) {
                    for (name, child, _) in dirs::decode(block)? {
                        if name != b"." && name != b".." {
                            let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                            pending.push(([&path[..], slash, name].concat(), child, depth + 1));
                        }
                    }
                }
            }
            let shared = |id: u32| {
                let at = self.shared.saturating_add(id as usize * 4);
                self.bytes.get(at..).unwrap_or_default()
            };
            let xattrs = xattrs::decode(inode.beside, shared)?;
            let Inode { mode, uid, gid, mtime, links, size, .. } = inode;
            each(Entry { path, nid, mode, uid, gid, mtime, links, size, xattrs, content })?;
        }
        Ok(())
    }

    /// Extents of the file that fragments are ranges of.
    pub(crate) fn packed(&self) -> Result<Vec<Head>> {
        let inode = self.inode(self.packed)?;
        if inode.size == 0 { Ok(vec![]) } else { self.heads(&inode) }
    }

    /// A block of the store from its number in the image; `None` for one of the image itself.
    pub(crate) fn store_block(&self, block: u32) -> Option<u32> {
        block.checked_sub(self.devices).filter(|_| self.devices > 0)
    }

    /// Every range of addresses the image refers to, as first block and number of blocks, sorted and without doubles.
    pub(crate) fn ranges(&self) -> Result<Vec<(u32, u16)>> {
        let mut ranges = Vec::new();
        let mut add = |heads: &[Head]| {
            ranges.extend(heads.iter().filter_map(|head| Some((self.store_block(head.block)?, head.blocks))));
        };
        add(&self.packed()?);
        self.walk(|entry| {
            if let Content::Extents(heads) = &entry.content {
                add(heads);
            }
            Ok(())
        })?;
        ranges.sort_unstable();
        ranges.dedup();
        Ok(ranges)
    }
}
