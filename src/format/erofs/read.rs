//! Reading an image back: its tree, and the addresses it refers to. Any bytes give an error or a tree, in time and memory
//! in proportion to their number.

#![cfg_attr(not(test), expect(dead_code, reason = "gc needs the ranges; tests compare all there is"))]

use super::dirs;
use super::index::{self, Head};
use super::inode::{self, BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, FIFO, FILE, SYMLINK, TYPE};
use super::superblock::{self, Pack, Superblock, bad};
use super::{
    BLOCK_LEN, CHUNK_INDEXES, FRAGMENT, HOLE, LAYOUT_CHUNKS, LAYOUT_COMPRESSED, LAYOUT_INLINE, LAYOUT_PLAIN, SLOT,
    decode_device, u32_at, u64_at, xattrs,
};
use crate::error::Result;
use crate::format::entry::{Time, Xattr};
use crate::format::pack::BLOCK;
use std::collections::HashSet;
use std::ops::Range;

/// An image whose superblock and device table are sound.
pub(crate) struct Image<'a> {
    bytes: &'a [u8],
    superblock: Superblock,
}

/// An inode of an image.
#[derive(Clone, Debug)]
pub(crate) struct Inode<'a> {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) links: u32,
    /// Bytes of a file or a target.
    pub(crate) size: u64,
    layout: u16,
    value: u32,
    beside: &'a [u8],
    /// Where that ends.
    after: usize,
}

/// What an inode holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    Directory,
    /// Extents of a file.
    Chunks(Vec<Head>),
    /// A file that is a range of the packed inode, from this offset on.
    Fragment(u64),
    /// A file's pieces of this length, `None` for a hole.
    Inside(u64, Vec<Option<&'a [u8]>>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

impl<'a> Image<'a> {
    /// Checks the superblock and the device table.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` for an image with features this library does not write.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self> {
        Ok(Self { bytes, superblock: Superblock::decode(bytes, bytes.len() as u64)? })
    }

    /// The packs it refers to, ascending: the devices to mount it with, in this order.
    pub(crate) fn packs(&self) -> &[Pack] {
        &self.superblock.packs
    }

    /// Checks every byte against the hash that the image carries.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn verify(&self) -> Result<()> {
        if superblock::is_intact(self.bytes) { Ok(()) } else { Err(bad("does not match its hash")) }
    }

    /// Number of the root's inode.
    pub(crate) fn root(&self) -> u64 {
        self.superblock.root.into()
    }

    fn slice(&self, at: usize, len: usize) -> Result<&'a [u8]> {
        let end = at.checked_add(len);
        end.and_then(|end| self.bytes.get(at..end)).ok_or_else(|| bad("something reaches past its end"))
    }

    /// The inode of this number.
    pub(crate) fn inode(&self, nid: u64) -> Result<Inode<'a>> {
        let from = self.superblock.meta_block as usize * BLOCK_LEN;
        let at = usize::try_from(nid).ok().and_then(|nid| nid.checked_mul(SLOT)?.checked_add(from));
        let at = at.ok_or_else(|| bad("an inode's number is too large"))?;
        let head = inode::Head::decode(self.slice(at, inode::LEN)?)?;
        if head.mtime.nanos >= 1_000_000_000 {
            return Err(bad("a time of more nanoseconds than a second has"));
        }
        let beside = self.slice(at + inode::LEN, xattrs::len(head.xattr_count))?;
        let inode::Head { layout, mode, size, value, uid, gid, mtime, links, .. } = head;
        let after = at + inode::LEN + beside.len();
        Ok(Inode { mode, uid, gid, mtime, links, size, layout, value, beside, after })
    }

    /// Its extended attributes, sorted.
    pub(crate) fn xattrs(&self, inode: &Inode<'_>) -> Result<Vec<Xattr>> {
        let shared = self.superblock.xattr_block as usize * BLOCK_LEN;
        xattrs::decode(inode.beside, self.bytes.get(shared..).unwrap_or_default())
    }

    /// Content that is in blocks, and what is beside the inode.
    fn flat(&self, inode: &Inode<'_>) -> Result<(&'a [u8], &'a [u8])> {
        let size = usize::try_from(inode.size).map_err(|_| bad("content larger than the image"))?;
        let tail = match inode.layout {
            LAYOUT_PLAIN => 0,
            LAYOUT_INLINE if size % BLOCK_LEN > 0 => size % BLOCK_LEN,
            _ => return Err(bad("names or a target in a layout for files")),
        };
        let at = inode.value as usize * BLOCK_LEN;
        let whole = if size == tail { &[] } else { self.slice(at, size - tail)? };
        if tail > 0 && inode.after % BLOCK_LEN + tail > BLOCK_LEN {
            return Err(bad("what is beside an inode crosses a block's end"));
        }
        Ok((whole, self.slice(inode.after, tail)?))
    }

    /// What the inode holds.
    pub(crate) fn content(&self, inode: &Inode<'a>) -> Result<Content<'a>> {
        let device = decode_device(inode.value);
        match inode.mode & TYPE {
            DIRECTORY => Ok(Content::Directory),
            SYMLINK => self.flat(inode).map(|(whole, tail)| Content::Symlink([whole, tail].concat())),
            FILE => self.file(inode),
            CHAR_DEVICE => Ok(Content::CharDevice(device.0, device.1)),
            BLOCK_DEVICE => Ok(Content::BlockDevice(device.0, device.1)),
            FIFO => Ok(Content::Fifo),
            _ => Err(bad("an inode of unknown type")),
        }
    }

    fn file(&self, inode: &Inode<'a>) -> Result<Content<'a>> {
        match inode.layout {
            LAYOUT_COMPRESSED => match self.fragment(inode)? {
                Some(offset) => Ok(Content::Fragment(offset)),
                None => {
                    let mut heads = Vec::new();
                    self.extents(inode, |head| {
                        heads.push(head);
                        Ok(())
                    })?;
                    Ok(Content::Chunks(heads))
                }
            },
            LAYOUT_CHUNKS => self.pieces(inode),
            LAYOUT_PLAIN if inode.size == 0 => Ok(Content::Chunks(vec![])),
            _ => Err(bad("a file of unknown layout")),
        }
    }

    fn fragment(&self, inode: &Inode<'_>) -> Result<Option<u64>> {
        let header = u64_at(self.slice(inode.after.next_multiple_of(8), 8)?, 0);
        Ok((header & FRAGMENT != 0).then_some(header ^ FRAGMENT))
    }

    /// Calls `each` with every extent of a file with an index; those are in packs.
    fn extents(&self, inode: &Inode<'_>, mut each: impl FnMut(Head) -> Result<()>) -> Result<()> {
        let at = inode.after.next_multiple_of(8);
        index::decode(self.bytes.get(at..).unwrap_or_default(), inode.size, |head| {
            let start = self.store_block(head.block).ok_or_else(|| bad("an extent in the image itself"))?;
            let packs = self.packs();
            let pack = packs.get(packs.partition_point(|pack| pack.end <= u64::from(start) * BLOCK));
            let end = (u64::from(start) + u64::from(head.blocks)) * BLOCK;
            match pack {
                Some(pack) if pack.base <= u64::from(start) * BLOCK && end <= pack.end => each(head),
                _ => Err(bad("an extent in no pack")),
            }
        })
    }

    fn pieces(&self, inode: &Inode<'a>) -> Result<Content<'a>> {
        if inode.value & !0x1f != CHUNK_INDEXES {
            return Err(bad("a chunk-based file of unknown form"));
        }
        let len = BLOCK << (inode.value & 0x1f);
        let count = usize::try_from(inode.size.div_ceil(len)).map_err(|_| bad("a file of too many pieces"))?;
        let index = count.checked_mul(8).and_then(|len| self.slice(inode.after.next_multiple_of(8), len).ok());
        let index = index.ok_or_else(|| bad("an index reaches past its end"))?;
        let mut pieces = Vec::with_capacity(count);
        for (i, entry) in index.chunks_exact(8).enumerate() {
            if entry == HOLE {
                pieces.push(None);
                continue;
            }
            if entry[..4] != [0; 4] {
                return Err(bad("a piece in another device"));
            }
            let len = (inode.size - i as u64 * len).min(len);
            let len = usize::try_from(len).map_err(|_| bad("a piece larger than the image"))?;
            pieces.push(Some(self.slice(u32_at(entry, 4) as usize * BLOCK_LEN, len)?));
        }
        Ok(Content::Inside(len, pieces))
    }

    /// The names of a directory and the numbers of their inodes, in byte order, without `.` and `..`.
    pub(crate) fn names(&self, directory: &Inode<'a>) -> Result<Vec<(&'a [u8], u64)>> {
        let (whole, tail) = self.flat(directory)?;
        let (mut names, mut last) = (Vec::new(), None);
        for block in whole.chunks(BLOCK_LEN).chain((!tail.is_empty()).then_some(tail)) {
            dirs::decode(block, |entry| {
                if last.replace(entry.name).is_some_and(|last| last >= entry.name) {
                    return Err(bad("names out of order"));
                }
                if !matches!(entry.name, b"." | b"..") {
                    names.push((entry.name, entry.nid));
                }
                Ok(())
            })?;
        }
        Ok(names)
    }

    /// Calls `each` with every inode once, the root first, in no order that matters.
    pub(crate) fn inodes(&self, mut each: impl FnMut(u64, &Inode<'a>) -> Result<()>) -> Result<()> {
        let (mut pending, mut seen) = (vec![self.root()], HashSet::from([self.root()]));
        // Each byte belongs to one inode, so what more than all of them claim cannot be true.
        let mut left = self.bytes.len() as u64;
        while let Some(nid) = pending.pop() {
            let inode = self.inode(nid)?;
            each(nid, &inode)?;
            let claim = match inode.mode & TYPE {
                DIRECTORY => inode.size,
                FILE if inode.layout == LAYOUT_COMPRESSED && self.fragment(&inode)?.is_none() => inode.size / BLOCK * 8,
                _ => inode.beside.len() as u64,
            };
            left = left.checked_sub(claim).ok_or_else(|| bad("inodes that share their bytes"))?;
            if inode.mode & TYPE == DIRECTORY {
                pending.extend(self.names(&inode)?.into_iter().map(|(_, nid)| nid).filter(|nid| seen.insert(*nid)));
            }
        }
        Ok(())
    }

    /// Reads all there is: every inode with its attributes, names and extents.
    ///
    /// # Errors
    /// `Corrupt` if anything is not as this library writes it.
    pub(crate) fn check(&self) -> Result<()> {
        let packed = self.inode(self.superblock.packed)?.size;
        self.packed()?;
        self.inodes(|_, inode| {
            self.xattrs(inode)?;
            match self.content(inode)? {
                Content::Fragment(start) if start.checked_add(inode.size).is_none_or(|end| end > packed) => {
                    Err(bad("a fragment reaches past the packed inode"))
                }
                _ => Ok(()),
            }
        })
    }

    /// The extents of the file that fragments are ranges of.
    pub(crate) fn packed(&self) -> Result<Vec<Head>> {
        let inode = self.inode(self.superblock.packed)?;
        match self.file(&inode)? {
            Content::Chunks(heads) => Ok(heads),
            _ => Err(bad("the packed inode is no file of chunks")),
        }
    }

    /// A block of the store from its number in the image; `None` for one of the image itself.
    pub(crate) fn store_block(&self, block: u32) -> Option<u32> {
        block.checked_sub(self.superblock.blocks)
    }

    /// All blocks of the store that it refers to, ascending and disjoint.
    pub(crate) fn ranges(&self) -> Result<Vec<Range<u32>>> {
        let mut found = Vec::new();
        let mut add = |head: Head| {
            let start = self.store_block(head.block).ok_or_else(|| bad("an extent in the image itself"))?;
            found.push(start..start + head.blocks);
            Ok(())
        };
        self.packed()?.into_iter().try_for_each(&mut add)?;
        self.inodes(|_, inode| {
            let compressed = inode.mode & TYPE == FILE && inode.layout == LAYOUT_COMPRESSED;
            if compressed && self.fragment(inode)?.is_none() { self.extents(inode, &mut add) } else { Ok(()) }
        })?;
        found.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u32>> = Vec::new();
        for range in found {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Ok(merged)
    }
}
