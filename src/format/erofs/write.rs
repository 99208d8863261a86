//! Building an image: where everything goes, then its bytes.
//!
//! ```text
//! | superblock, configurations, packs | inodes, each with what is beside it | packed inode | shared attributes | blocks |
//! ```
//! The blocks at the end are those of directories, long symlinks and content that is in the image.

use super::dirs::{self, Dirent};
use super::index::{self, Extent};
use super::inode::{self, Head};
use super::superblock::{self, Pack, Superblock, unsupported};
use super::xattrs::{self, Shared};
use super::{
    BLOCK_LEN, CHUNK_INDEXES, FRAGMENT, HOLE, LAYOUT_CHUNKS, LAYOUT_COMPRESSED, LAYOUT_INLINE, LAYOUT_PLAIN, Put, SLOT,
    encode_device, packed,
};
use crate::error::{Error, Result};
use crate::format::entry::{Time, Xattr};
use crate::format::pack::{BLOCK, Codec, Location};

/// What an image is made of. The same source gives the same bytes.
pub(crate) struct Source<'a> {
    /// The first is the root; others are named by their place in the list.
    pub(crate) inodes: Vec<Inode<'a>>,
    /// The chunks that fragments are ranges of.
    pub(crate) bundles: Vec<Location>,
    /// All packs that chunks and bundles lie in, ascending; they become the devices, in this order.
    pub(crate) packs: Vec<Pack>,
}

impl Source<'_> {
    fn has_zstd(&self) -> bool {
        let zstd = |chunks: &[Location]| chunks.iter().any(|l| l.codec == Codec::Zstd);
        let in_file =
            |inode: &Inode<'_>| matches!(&inode.body, Body::File { data: Data::Chunks(chunks), .. } if zstd(chunks));
        zstd(&self.bundles) || self.inodes.iter().any(in_file)
    }
}

/// An inode of the image to be.
pub(crate) struct Inode<'a> {
    /// Permission bits, setuid, setgid, sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Names it has; those of directories are counted here.
    pub(crate) links: u32,
    pub(crate) xattrs: &'a [Xattr],
    pub(crate) body: Body<'a>,
}

/// What an inode is.
pub(crate) enum Body<'a> {
    /// Its names in byte order, without `.` and `..`, and the directory that it is in (the root: itself).
    Directory {
        children: Vec<(&'a [u8], u32)>,
        parent: u32,
    },
    /// A regular file of `size` bytes.
    File {
        size: u64,
        data: Data,
    },
    Symlink(&'a [u8]),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// Where a file's content is. Of an empty file it does not matter.
pub(crate) enum Data {
    /// Whole chunks, one after the other, that [fit](chunks_fit).
    Chunks(Vec<Location>),
    /// A range of a bundle, by its place in the list.
    Fragment { bundle: u32, offset: u32 },
    /// In the image itself, in pieces of 4 KiB times this power of two; `None` where there is a hole. The last may be
    /// short. For what is neither of the others: sparse files.
    Inside { bits: u8, pieces: Vec<Option<Vec<u8>>> },
}

/// Whether an image can hold a file of these chunks: no two may begin in the same 4 KiB.
pub(crate) fn chunks_fit(chunks: &[Location]) -> bool {
    index::fits(chunks.iter().map(|l| Extent::from(*l)))
}

/// The image's bytes, a whole number of blocks. Its UUID is a hash of all else: [`Image::verify`](super::read::Image).
///
/// # Errors
/// `Unsupported` for what the format cannot hold; `InvalidInput` for a source that contradicts itself.
pub(crate) fn build(source: &Source<'_>) -> Result<Vec<u8>> {
    let shared = Shared::new(source.inodes.iter().map(|inode| inode.xattrs))?;
    Builder::place(source, shared)?.write()
}

/// Where an inode goes.
#[derive(Clone, Default)]
struct Place {
    at: usize,
    /// First block of what it has in blocks of its own, from the first of all such blocks on.
    block: u32,
    layout: u16,
    /// Bytes of content: names, target, file.
    size: u64,
    beside: Vec<u8>,
}

/// What stands after an inode and its attributes.
struct Shape {
    layout: u16,
    size: u64,
    /// Bytes that stand there; an index begins at eight bytes of the image.
    tail: usize,
    /// Blocks of its own.
    blocks: usize,
}

struct Builder<'b> {
    source: &'b Source<'b>,
    shared: Shared,
    places: Vec<Place>,
    /// The packed inode: where it is, its size, its extents, and where each bundle begins in it.
    packed_at: usize,
    packed_size: u64,
    packed: Vec<Extent>,
    starts: Vec<u64>,
    /// First bytes of the inodes and of the shared attributes, first block of the blocks, number of all blocks.
    inodes_at: usize,
    shared_at: usize,
    blocks_at: u32,
    end: u32,
}

/// What may become 32-bit block numbers.
fn block_number(blocks: usize) -> Result<u32> {
    u32::try_from(blocks).map_err(|_| unsupported("its own blocks", u32::MAX, blocks))
}

impl<'b> Builder<'b> {
    fn place(source: &'b Source<'b>, shared: Shared) -> Result<Self> {
        let inodes_at = superblock::blocks(source.packs.len()) * BLOCK_LEN;
        // Number 0 stays free: in some places the kernel takes it for none.
        let (mut at, mut blocks) = (inodes_at + SLOT, 0usize);
        let mut places = Vec::with_capacity(source.inodes.len());
        for inode in &source.inodes {
            let beside = shared.beside(inode.xattrs)?;
            let head = inode::LEN + beside.len();
            let shape = shape(inode, head)?;
            if shape.layout == LAYOUT_INLINE && (at + head) % BLOCK_LEN + shape.tail > BLOCK_LEN {
                // What stands beside must not cross a block's end.
                at = at.next_multiple_of(BLOCK_LEN);
            }
            let place = Place { at, block: block_number(blocks)?, layout: shape.layout, size: shape.size, beside };
            places.push(place);
            blocks += shape.blocks;
            at = (content_at(at + head, shape.layout) + shape.tail).next_multiple_of(SLOT);
        }
        let filler = source.packs.first().map_or(0, |pack| (pack.base / BLOCK) as u32);
        let (starts, packed) = packed::place(&source.bundles, filler);
        let packed_at = at;
        let packed_size: u64 = packed.iter().map(|e| u64::from(e.len)).sum();
        let index_len = if packed_size > 0 { index::len(packed_size)? } else { 0 };
        let shared_at = (packed_at + inode::LEN + index_len).next_multiple_of(BLOCK_LEN);
        let blocks_at = (shared_at + shared.bytes.len()).div_ceil(BLOCK_LEN);
        let (blocks_at, end) = (block_number(blocks_at)?, block_number(blocks_at + blocks)?);
        Ok(Self {
            source,
            shared,
            places,
            packed_at,
            packed_size,
            packed,
            starts,
            inodes_at,
            shared_at,
            blocks_at,
            end,
        })
    }

    fn write(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.end as usize * BLOCK_LEN];
        let mut names = Vec::new();
        for (i, inode) in self.source.inodes.iter().enumerate() {
            self.write_inode(&mut out, &mut names, i, inode).map_err(|e| e.subject(format!("inode {i}")))?;
        }
        self.write_packed(&mut out)?;
        Put::new(&mut out, self.shared_at).bytes(&self.shared.bytes);
        let root = u16::try_from(self.nid(0)).map_err(|_| Error::invalid("the root is not the first inode"))?;
        let superblock = Superblock {
            root,
            inodes: self.places.len() as u64,
            blocks: self.end,
            meta_block: block_number(self.inodes_at / BLOCK_LEN)?,
            xattr_block: block_number(self.shared_at / BLOCK_LEN)?,
            packed: ((self.packed_at - self.inodes_at) / SLOT) as u64,
            zstd: self.source.has_zstd(),
            packs: self.source.packs.clone(),
        };
        superblock.encode(&mut out)?;
        superblock::seal(&mut out);
        Ok(out)
    }

    fn nid(&self, i: usize) -> u64 {
        self.places.get(i).map_or(0, |place| ((place.at - self.inodes_at) / SLOT) as u64)
    }

    fn write_inode(&self, out: &mut [u8], names: &mut Vec<u8>, i: usize, inode: &Inode<'_>) -> Result<()> {
        let place = &self.places[i];
        let after = place.at + inode::LEN + place.beside.len();
        let block = self.blocks_at + place.block;
        let (mut value, mut links) = (if place.layout == LAYOUT_INLINE { block } else { 0 }, inode.links);
        match &inode.body {
            Body::Directory { children, parent } => {
                links = 2 + self.directories(children);
                names.clear();
                dirs::encode(names, &self.dirents(children, i, *parent as usize));
                value = block;
                self.write_bytes(out, place, after, names);
            }
            Body::Symlink(target) => {
                value = block;
                self.write_bytes(out, place, after, target);
            }
            Body::CharDevice { major, minor } | Body::BlockDevice { major, minor } => {
                value = encode_device(*major, *minor)?;
            }
            Body::Fifo | Body::File { size: 0, .. } => {}
            Body::File { size, data } => value = self.write_content(out, after, block, *size, data)?,
        }
        Put::new(out, place.at + inode::LEN).bytes(&place.beside);
        let count = xattrs::count(place.beside.len()).ok_or_else(|| Error::invalid("attributes beyond measure"))?;
        let mode = inode.mode | mode_bits(&inode.body);
        let Inode { uid, gid, mtime, .. } = *inode;
        let Place { layout, size, .. } = *place;
        let number = i as u32 + 1;
        Head { layout, xattr_count: count, mode, size, value, number, uid, gid, mtime, links }.encode(out, place.at);
        Ok(())
    }

    fn is_directory(&self, inode: u32) -> bool {
        self.source.inodes.get(inode as usize).is_some_and(|inode| matches!(inode.body, Body::Directory { .. }))
    }

    fn directories(&self, children: &[(&[u8], u32)]) -> u32 {
        children.iter().filter(|(_, child)| self.is_directory(*child)).count() as u32
    }

    fn dirents<'a>(&self, children: &[(&'a [u8], u32)], itself: usize, parent: usize) -> Vec<Dirent<'a>> {
        let inodes = &self.source.inodes;
        let kind = |i: usize| inodes.get(i).map_or(0, |inode| inode::file_type(mode_bits(&inode.body)));
        let dirent = |name, i: usize| Dirent { name, nid: self.nid(i), kind: kind(i) };
        let mut list: Vec<_> = children.iter().map(|&(name, child)| dirent(name, child as usize)).collect();
        for (name, i) in [(&b"."[..], itself), (b"..", parent)] {
            list.insert(list.partition_point(|e| e.name < name), dirent(name, i));
        }
        list
    }

    /// Content that stands in blocks, and what is less than a block beside the inode if it has that layout.
    fn write_bytes(&self, out: &mut [u8], place: &Place, after: usize, bytes: &[u8]) {
        let inline = if place.layout == LAYOUT_INLINE { bytes.len() % BLOCK_LEN } else { 0 };
        let (whole, tail) = bytes.split_at(bytes.len() - inline);
        Put::new(out, (self.blocks_at + place.block) as usize * BLOCK_LEN).bytes(whole);
        Put::new(out, after).bytes(tail);
    }

    /// Returns `i_u`.
    fn write_content(&self, out: &mut [u8], after: usize, block: u32, size: u64, data: &Data) -> Result<u32> {
        let mut put = Put::new(out, after.next_multiple_of(8));
        match data {
            Data::Chunks(chunks) => {
                let extents: Vec<Extent> = chunks.iter().map(|l| Extent::from(*l)).collect();
                index::encode(&mut put, size, self.end, &extents)?;
                Ok(extents.iter().map(|e| e.blocks).sum())
            }
            Data::Fragment { bundle, offset } => {
                let (start, bundle) =
                    match (self.starts.get(*bundle as usize), self.source.bundles.get(*bundle as usize)) {
                        (Some(start), Some(bundle)) => (start, bundle),
                        _ => return Err(Error::invalid("a fragment of no bundle")),
                    };
                if u64::from(*offset) + size > u64::from(bundle.raw_len) {
                    return Err(Error::invalid("a fragment reaches past its bundle"));
                }
                put.u64(FRAGMENT | (start + u64::from(*offset)));
                // What the file would take: programs take 0 blocks for one that is all hole.
                Ok(size.div_ceil(BLOCK) as u32)
            }
            Data::Inside { bits, pieces } => {
                let mut at = block;
                for piece in pieces {
                    match piece {
                        Some(bytes) => {
                            put.u16(0).u16(0).u32(at);
                            at += bytes.len().div_ceil(BLOCK_LEN) as u32;
                        }
                        None => {
                            put.bytes(&HOLE);
                        }
                    }
                }
                let mut at = block as usize * BLOCK_LEN;
                for bytes in pieces.iter().flatten() {
                    Put::new(out, at).bytes(bytes);
                    at += bytes.len().next_multiple_of(BLOCK_LEN);
                }
                Ok(CHUNK_INDEXES | u32::from(*bits))
            }
        }
    }

    fn write_packed(&self, out: &mut [u8]) -> Result<()> {
        let layout = if self.packed_size == 0 { LAYOUT_PLAIN } else { LAYOUT_COMPRESSED };
        if self.packed_size > 0 {
            let mut put = Put::new(out, self.packed_at + inode::LEN);
            index::encode(&mut put, self.packed_size, self.end, &self.packed)?;
        }
        let head = Head {
            layout,
            xattr_count: 0,
            mode: inode::FILE,
            size: self.packed_size,
            value: self.packed.iter().map(|e| e.blocks).sum(),
            number: self.places.len() as u32 + 1,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            links: 1,
        };
        head.encode(out, self.packed_at);
        Ok(())
    }
}

/// Where content begins that stands after an inode: an index at eight bytes of the image, everything else at once.
fn content_at(after: usize, layout: u16) -> usize {
    if matches!(layout, LAYOUT_COMPRESSED | LAYOUT_CHUNKS) { after.next_multiple_of(8) } else { after }
}

/// The form of an inode whose fixed part and attributes take `head` bytes.
fn shape(inode: &Inode<'_>, head: usize) -> Result<Shape> {
    let bytes = |size: usize| {
        let tail = size % BLOCK_LEN;
        // Without a tail there is nothing to stand beside the inode, and the kernel would look for a whole block there.
        if tail == 0 || head % BLOCK_LEN + tail > BLOCK_LEN {
            Shape { layout: LAYOUT_PLAIN, size: size as u64, tail: 0, blocks: size.div_ceil(BLOCK_LEN) }
        } else {
            Shape { layout: LAYOUT_INLINE, size: size as u64, tail, blocks: size / BLOCK_LEN }
        }
    };
    let at_index = |layout, size, tail, blocks| Shape { layout, size, tail, blocks };
    Ok(match &inode.body {
        Body::Directory { children, .. } => {
            let dots = [&b"."[..], b".."].into_iter();
            // In which order only matters where a block ends: merge them as they will be written.
            let mut names: Vec<&[u8]> = children.iter().map(|(name, _)| *name).collect();
            dots.for_each(|dot| names.insert(names.partition_point(|name| *name < dot), dot));
            bytes(dirs::len(names.into_iter()))
        }
        Body::Symlink(target) => bytes(target.len()),
        Body::CharDevice { .. } | Body::BlockDevice { .. } | Body::Fifo | Body::File { size: 0, .. } => bytes(0),
        Body::File { size, data: Data::Chunks(_) } => at_index(LAYOUT_COMPRESSED, *size, index::len(*size)?, 0),
        Body::File { size, data: Data::Fragment { .. } } => at_index(LAYOUT_COMPRESSED, *size, 8, 0),
        Body::File { size, data: Data::Inside { bits, pieces } } => {
            let each = BLOCK << bits;
            let sound = pieces.iter().enumerate().all(|(i, piece)| {
                let left = size.saturating_sub(i as u64 * each);
                piece.as_ref().is_none_or(|bytes| bytes.len() as u64 == left.min(each))
            });
            if !sound || *bits > 31 || pieces.len() as u64 != size.div_ceil(each) {
                return Err(Error::invalid("pieces do not make up a file"));
            }
            let blocks = pieces.iter().flatten().map(|bytes| bytes.len().div_ceil(BLOCK_LEN)).sum();
            at_index(LAYOUT_CHUNKS, *size, 8 * pieces.len(), blocks)
        }
    })
}

fn mode_bits(body: &Body<'_>) -> u16 {
    match body {
        Body::File { .. } => inode::FILE,
        Body::Directory { .. } => inode::DIRECTORY,
        Body::Symlink(_) => inode::SYMLINK,
        Body::CharDevice { .. } => inode::CHAR_DEVICE,
        Body::BlockDevice { .. } => inode::BLOCK_DEVICE,
        Body::Fifo => inode::FIFO,
    }
}
