//! Building an image: where each inode goes, then its bytes.

use super::dirs::{self, Dirent};
use super::index::{self, Extent};
use super::xattrs::Shared;
use super::{
    BLOCK_LEN, COMPAT_CHECKSUM, COMPAT_MTIME, DEVICE_LEN, FEATURES, FRAGMENT, INODE_LEN, LAYOUT_COMPRESSED,
    LAYOUT_INLINE, LAYOUT_PLAIN, MAGIC, SLOT, SUPER, SUPER_LEN, crc32c, encode_device,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::{Time, Xattr};
use crate::format::pack::{BLOCK, Codec, Location};

/// Zeros that one stored block gives when decoded; runs of them are cut into pieces of this.
const ZEROS: u64 = 1 << 20;
/// Name in the superblock.
const VOLUME: [u8; 16] = *b"layerstore\0\0\0\0\0\0";

/// An inode of the image to be; the first is the root. Inodes are named by their place in the list.
pub(crate) struct Inode<'a> {
    /// Permission bits, setuid, setgid, sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Names it has; of directories they are counted here.
    pub(crate) links: u32,
    /// Sorted by name.
    pub(crate) xattrs: &'a [Xattr],
    pub(crate) body: Body<'a>,
}

/// What an inode is.
pub(crate) enum Body<'a> {
    /// Names in byte order, and the directory it is in.
    Directory {
        children: Vec<(&'a [u8], usize)>,
        parent: usize,
    },
    File {
        size: u64,
        data: Data,
    },
    Symlink(&'a [u8]),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// A file's content.
pub(crate) enum Data {
    /// In the image itself.
    Inside(Vec<u8>),
    /// In the packs, piece after piece.
    Pieces(Vec<Piece>),
    /// A range of a bundle: its place in the list of bundles, and the offset in it.
    Fragment { bundle: usize, offset: u32 },
}

/// A piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// The first `len` bytes of a chunk.
    Chunk { location: Location, len: u32 },
    /// Zeros that are stored nowhere.
    Zeros(u64),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Chunk { len, .. } => u64::from(*len),
            Self::Zeros(len) => *len,
        }
    }
}

/// Whether [`build`] can place these pieces: the index has room for one beginning in each 4 KiB of a file.
pub(crate) fn fits(pieces: &[Piece]) -> bool {
    let cut: Vec<Piece> = pieces.iter().flat_map(cut).collect();
    let mut start = 0;
    cut.iter().enumerate().all(|(i, piece)| {
        let blocks = match piece {
            Piece::Chunk { location, .. } => location.blocks(),
            Piece::Zeros(_) => 1,
        };
        let next = start + piece.len();
        let fits = index::fits(start, next, i + 1 == cut.len(), blocks);
        start = next;
        fits
    })
}

/// Runs of zeros in pieces that one block can give.
fn cut(piece: &Piece) -> Vec<Piece> {
    match piece {
        Piece::Chunk { .. } => vec![*piece],
        Piece::Zeros(len) => (0..len.div_ceil(ZEROS)).map(|i| Piece::Zeros((len - i * ZEROS).min(ZEROS))).collect(),
    }
}

/// An image's bytes, a whole number of blocks.
///
/// `bundles` are the chunks that fragments lie in; `packs` the ends of the packs that are used, ascending, which become
/// the devices in this order: blocks up to a pack's end that are in none before it are its own. The UUID is a hash of all
/// else, which [`super::read::Image::verify`] checks.
///
/// # Errors
/// `Unsupported` for what the format cannot hold: an attribute without a known prefix, pieces that do not
/// [fit](fits), addresses beyond 32-bit block numbers.
pub(crate) fn build(inodes: &[Inode<'_>], bundles: &[Location], packs: &[u64]) -> Result<Vec<u8>> {
    Builder::new(inodes, bundles, packs)?.build(packs)
}

/// Where an inode goes.
#[derive(Clone, Copy, Default)]
struct Place {
    at: usize,
    /// First block of what lies in blocks of its own.
    block: u32,
    layout: u16,
    /// Bytes of names, target or content.
    size: u64,
}

struct Builder<'b> {
    inodes: &'b [Inode<'b>],
    shared: Shared,
    beside: Vec<(Vec<u8>, u16)>,
    /// Offsets of the bundles in the packed inode, and its pieces.
    bundle_at: Vec<u64>,
    packed: Vec<Piece>,
    places: Vec<Place>,
    packed_at: usize,
    table_at: usize,
    meta: usize,
    /// Where the shared attributes, the block of zeros, and the end are, in blocks.
    shared_block: usize,
    zeros_block: usize,
    end: usize,
    /// Added to a block of the store to give the image's number for it.
    devices: u32,
}

impl<'b> Builder<'b> {
    fn new(inodes: &'b [Inode<'b>], bundles: &[Location], packs: &[u64]) -> Result<Self> {
        let shared = Shared::new(inodes.iter().map(|inode| inode.xattrs))?;
        let beside = inodes.iter().map(|inode| shared.beside(inode.xattrs)).collect::<Result<_>>()?;
        let (bundle_at, packed) = pack_bundles(bundles);
        let table_at = (SUPER + SUPER_LEN + configs().len()).next_multiple_of(DEVICE_LEN);
        let meta = (table_at + DEVICE_LEN * packs.len()).next_multiple_of(BLOCK_LEN);
        let places = vec![Place::default(); inodes.len()];
        let (packed_at, shared_block, zeros_block, end, devices) = (0, 0, 0, 0, 0);
        let mut builder = Self {
            inodes,
            shared,
            beside,
            bundle_at,
            packed,
            places,
            packed_at,
            table_at,
            meta,
            shared_block,
            zeros_block,
            end,
            devices,
        };
        builder.place(packs)?;
        Ok(builder)
    }

    /// Gives everything its place: inodes with what is beside them, then whole blocks.
    fn place(&mut self, packs: &[u64]) -> Result<()> {
        // Slot 0 stays free: the kernel takes number 0 for "none" in some places.
        let mut at = self.meta + SLOT;
        let mut data = 0usize;
        for (i, inode) in self.inodes.iter().enumerate() {
            let head = INODE_LEN + self.beside[i].0.len();
            let (layout, size, tail) = self.shape(inode);
            let tail_len = match tail {
                Tail::Index(len) => len + 7,
                Tail::Bytes(len) => len,
            };
            let mut layout = layout;
            let mut blocks = 0;
            if layout == LAYOUT_INLINE {
                blocks = (size as usize - tail_len) / BLOCK_LEN;
                if head % BLOCK_LEN + tail_len > BLOCK_LEN {
                    (layout, blocks) = (LAYOUT_PLAIN, blocks + 1);
                } else if (at + head) % BLOCK_LEN + tail_len > BLOCK_LEN {
                    // The tail must not cross a block's end.
                    at = at.next_multiple_of(BLOCK_LEN);
                }
            } else if layout == LAYOUT_PLAIN {
                blocks = size.div_ceil(BLOCK) as usize;
            }
            self.places[i] = Place { at, block: data as u32, layout, size };
            data += blocks;
            at += head + if layout == LAYOUT_PLAIN { 0 } else { tail_len };
            at = at.next_multiple_of(SLOT);
        }
        self.packed_at = at;
        at += INODE_LEN + index::index_len(self.packed_size());
        let first = at.div_ceil(BLOCK_LEN);
        self.places.iter_mut().for_each(|place| place.block += first as u32);
        self.shared_block = first + data;
        self.zeros_block = self.shared_block + self.shared.bytes.len().div_ceil(BLOCK_LEN);
        self.end = self.zeros_block + 1;
        let last = packs.last().map_or(0, |end| end / BLOCK);
        self.devices = self.end as u32;
        if self.end as u64 + last > u64::from(u32::MAX) {
            let e = Error::new(ErrorKind::Unsupported, "packs beyond what an EROFS image can number");
            return Err(e.expected(format!("less than {} blocks", u32::MAX)).actual(self.end as u64 + last));
        }
        Ok(())
    }

    fn packed_size(&self) -> u64 {
        self.packed.iter().map(Piece::len).sum()
    }

    /// Layout, size, and what stands right after an inode's attributes.
    fn shape(&self, inode: &Inode<'_>) -> (u16, u64, Tail) {
        let bytes = |len: usize| (LAYOUT_INLINE, len as u64, Tail::Bytes(len % BLOCK_LEN));
        match &inode.body {
            Body::Directory { .. } => bytes(dirs::blocks(&dirents(inode, 0)).1),
            Body::Symlink(target) => bytes(target.len()),
            Body::File { size: 0, .. } => (LAYOUT_PLAIN, 0, Tail::Bytes(0)),
            Body::File { data: Data::Inside(content), .. } => (LAYOUT_PLAIN, content.len() as u64, Tail::Bytes(0)),
            Body::File { size, data: Data::Pieces(_) } => {
                (LAYOUT_COMPRESSED, *size, Tail::Index(index::index_len(*size)))
            }
            Body::File { size, data: Data::Fragment { .. } } => (LAYOUT_COMPRESSED, *size, Tail::Index(8)),
            Body::CharDevice(..) | Body::BlockDevice(..) | Body::Fifo => (LAYOUT_PLAIN, 0, Tail::Bytes(0)),
        }
    }

    fn build(&self, packs: &[u64]) -> Result<Vec<u8>> {
        let mut out = vec![0; self.end * BLOCK_LEN];
        for (i, inode) in self.inodes.iter().enumerate() {
            self.put_inode(&mut out, i, inode).map_err(|e| e.subject(format!("inode {i}")))?;
        }
        self.put_packed(&mut out)?;
        let at = self.shared_block * BLOCK_LEN;
        out[at..at + self.shared.bytes.len()].copy_from_slice(&self.shared.bytes);
        let zeros = zeros()?;
        let end = (self.zeros_block + 1) * BLOCK_LEN;
        out[end - zeros.len()..end].copy_from_slice(&zeros);
        for (i, end) in packs.iter().enumerate() {
            let at = self.table_at + DEVICE_LEN * i + 64;
            put(&mut out, at, &((end / BLOCK) as u32).to_le_bytes());
            put(&mut out, at + 4, &self.devices.to_le_bytes());
        }
        self.put_super(&mut out, packs.len())?;
        Ok(out)
    }

    fn nid(&self, i: usize) -> u64 {
        ((self.places[i].at - self.meta) / SLOT) as u64
    }

    fn put_inode(&self, out: &mut [u8], i: usize, inode: &Inode<'_>) -> Result<()> {
        let place = self.places[i];
        let (beside, icount) = &self.beside[i];
        let mut bytes = Vec::with_capacity(256);
        let (mut value, mut links) = (place.block, inode.links);
        let mut extents = vec![];
        match &inode.body {
            Body::Directory { children, .. } => {
                let below = |&&(_, child): &&(&[u8], usize)| matches!(self.inodes[child].body, Body::Directory { .. });
                links = 2 + children.iter().filter(below).count() as u32;
            }
            Body::CharDevice(major, minor) | Body::BlockDevice(major, minor) => value = encode_device(*major, *minor),
            Body::File { data: Data::Pieces(pieces), .. } => {
                extents = self.extents(pieces);
                value = extents.iter().map(|e| u32::from(e.blocks)).sum();
            }
            Body::File { data: Data::Fragment { .. }, .. } => value = 0,
            _ => {}
        }
        inode_head(&mut bytes, place, inode, *icount, value, i as u32 + 1, links);
        bytes.extend_from_slice(beside);
        let mut content = Vec::new();
        match &inode.body {
            Body::Directory { parent, .. } => {
                let mut list = dirents(inode, i);
                list.iter_mut().filter(|e| e.name == b"..").for_each(|e| e.inode = *parent);
                dirs::encode(&mut content, &list, |inode| (self.nid(inode), file_type(&self.inodes[inode].body)));
            }
            Body::Symlink(target) => content.extend_from_slice(target),
            Body::File { data: Data::Inside(inside), .. } => content.extend_from_slice(inside),
            Body::File { size: 0, .. } => {}
            Body::File { size, data: Data::Pieces(_) } => {
                align8(&mut bytes, place.at);
                index::encode(&mut bytes, *size, &extents)?;
            }
            Body::File { data: Data::Fragment { bundle, offset }, .. } => {
                align8(&mut bytes, place.at);
                let start = self.bundle_at.get(*bundle).ok_or_else(|| Error::invalid("a fragment of no bundle"))?;
                bytes.extend_from_slice(&(FRAGMENT | (start + u64::from(*offset))).to_le_bytes());
            }
            _ => {}
        }
        let whole = if place.layout == LAYOUT_INLINE { content.len() / BLOCK_LEN * BLOCK_LEN } else { content.len() };
        put(out, place.block as usize * BLOCK_LEN, &content[..whole]);
        bytes.extend_from_slice(&content[whole..]);
        put(out, place.at, &bytes);
        Ok(())
    }

    /// The bundles, one after the other, as one file without a name.
    fn put_packed(&self, out: &mut [u8]) -> Result<()> {
        let size = self.packed_size();
        let data = Data::Pieces(vec![]);
        let time = Time::default();
        let inode =
            Inode { mode: 0, uid: 0, gid: 0, mtime: time, links: 1, xattrs: &[], body: Body::File { size, data } };
        let place = Place { at: self.packed_at, block: 0, layout: LAYOUT_COMPRESSED, size };
        let mut bytes = Vec::new();
        if size == 0 {
            let place = Place { layout: LAYOUT_PLAIN, ..place };
            inode_head(&mut bytes, place, &inode, 0, 0, self.inodes.len() as u32 + 1, 1);
        } else {
            let extents = self.extents(&self.packed);
            let blocks = extents.iter().map(|e| u32::from(e.blocks)).sum();
            inode_head(&mut bytes, place, &inode, 0, blocks, self.inodes.len() as u32 + 1, 1);
            index::encode(&mut bytes, size, &extents)?;
        }
        put(out, self.packed_at, &bytes);
        Ok(())
    }

    fn extents(&self, pieces: &[Piece]) -> Vec<Extent> {
        let extent = |piece: Piece| match piece {
            Piece::Chunk { location, len } => Extent {
                len: len.into(),
                block: self.devices + location.block,
                blocks: location.blocks() as u16,
                codec: location.codec,
                partial: len < location.raw_len,
            },
            Piece::Zeros(len) => {
                let block = self.zeros_block as u32;
                Extent { len, block, blocks: 1, codec: Codec::Zstd, partial: len < ZEROS }
            }
        };
        pieces.iter().flat_map(cut).map(extent).collect()
    }

    fn put_super(&self, out: &mut [u8], devices: usize) -> Result<()> {
        let root = u16::try_from(self.nid(0)).map_err(|_| Error::invalid("the root is not the first inode"))?;
        let devices = u16::try_from(devices);
        let devices = devices.map_err(|_| Error::new(ErrorKind::Unsupported, "an image of more than 65,535 packs"))?;
        put(out, SUPER + SUPER_LEN, &configs());
        let number = |out: &mut [u8], at: usize, value: u32| put(out, SUPER + at, &value.to_le_bytes());
        number(out, 0, MAGIC);
        number(out, 8, COMPAT_CHECKSUM | COMPAT_MTIME);
        out[SUPER + 12] = BLOCK_LEN.trailing_zeros() as u8;
        put(out, SUPER + 14, &root.to_le_bytes());
        number(out, 16, self.inodes.len() as u32 + 1);
        number(out, 36, self.end as u32);
        number(out, 40, (self.meta / BLOCK_LEN) as u32);
        number(out, 44, self.shared_block as u32);
        put(out, SUPER + 64, &VOLUME);
        number(out, 80, FEATURES);
        let algorithms = 1u16 << super::ALGORITHM_LZ4 | 1 << super::ALGORITHM_ZSTD;
        put(out, SUPER + 84, &algorithms.to_le_bytes());
        put(out, SUPER + 86, &devices.to_le_bytes());
        put(out, SUPER + 88, &((self.table_at / DEVICE_LEN) as u16).to_le_bytes());
        let packed = ((self.packed_at - self.meta) / SLOT) as u64;
        put(out, SUPER + 96, &packed.to_le_bytes());
        let id = super::identity(out);
        put(out, SUPER + 48, &id);
        let sum = crc32c(&out[SUPER..BLOCK_LEN]);
        number(out, 4, sum);
        Ok(())
    }
}

/// What follows an inode and its attributes.
enum Tail {
    Index(usize),
    Bytes(usize),
}

/// Names of a directory in byte order, with `.` and `..`, whose inodes the caller sets.
fn dirents<'a>(inode: &'a Inode<'_>, itself: usize) -> Vec<Dirent<'a>> {
    let Body::Directory { children, .. } = &inode.body else { return vec![] };
    let dots = [b".".as_slice(), b".."].map(|name| Dirent { name, inode: itself });
    let mut list: Vec<Dirent<'a>> = children.iter().map(|&(name, inode)| Dirent { name, inode }).collect();
    for dot in dots {
        let at = list.partition_point(|entry| entry.name < dot.name);
        list.insert(at, dot);
    }
    list
}

/// The kernel's `DT_*` in EROFS's numbering, and the bits of a mode.
fn file_type(body: &Body<'_>) -> u8 {
    match body {
        Body::File { .. } => 1,
        Body::Directory { .. } => 2,
        Body::CharDevice(..) => 3,
        Body::BlockDevice(..) => 4,
        Body::Fifo => 5,
        Body::Symlink(_) => 7,
    }
}

fn mode_bits(body: &Body<'_>) -> u16 {
    match body {
        Body::File { .. } => 0o100_000,
        Body::Directory { .. } => 0o040_000,
        Body::CharDevice(..) => 0o020_000,
        Body::BlockDevice(..) => 0o060_000,
        Body::Fifo => 0o010_000,
        Body::Symlink(_) => 0o120_000,
    }
}

fn inode_head(out: &mut Vec<u8>, place: Place, inode: &Inode<'_>, icount: u16, value: u32, number: u32, links: u32) {
    out.extend_from_slice(&(1 | place.layout << 1).to_le_bytes());
    out.extend_from_slice(&icount.to_le_bytes());
    out.extend_from_slice(&(inode.mode | mode_bits(&inode.body)).to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&place.size.to_le_bytes());
    for field in [value, number, inode.uid, inode.gid] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&inode.mtime.secs.to_le_bytes());
    out.extend_from_slice(&inode.mtime.nanos.to_le_bytes());
    out.extend_from_slice(&links.to_le_bytes());
    out.extend_from_slice(&[0; 16]);
}

/// Compression headers are aligned to eight bytes of the image.
fn align8(bytes: &mut Vec<u8>, at: usize) {
    bytes.resize((at + bytes.len()).next_multiple_of(8) - at, 0);
}

/// Lays the bundles one after the other. A small one gets zeros before it, so that no two begin in the same 4 KiB.
fn pack_bundles(bundles: &[Location]) -> (Vec<u64>, Vec<Piece>) {
    let (mut starts, mut pieces, mut end) = (Vec::with_capacity(bundles.len()), Vec::new(), 0u64);
    for location in bundles {
        let small = u64::from(location.raw_len) < 2 * BLOCK;
        if small {
            // It begins with the last byte of a block, so what follows it begins in another.
            let start = (end / BLOCK + 2) * BLOCK - 1;
            pieces.push(Piece::Zeros(start - end));
            end = start;
        }
        starts.push(end);
        pieces.push(Piece::Chunk { location: *location, len: location.raw_len });
        end += u64::from(location.raw_len);
        if small {
            let start = (end / BLOCK + 1) * BLOCK;
            pieces.push(Piece::Zeros(start - end));
            end = start;
        }
    }
    (starts, pieces)
}

/// The frame that decodes to [`ZEROS`] zeros.
fn zeros() -> Result<Vec<u8>> {
    let bytes = zstd::bulk::compress(&vec![0; ZEROS as usize], 1).map_err(|e| Error::io("compress zeros", e))?;
    if bytes.len() <= BLOCK_LEN { Ok(bytes) } else { Err(Error::invalid("zeros do not compress into a block")) }
}

/// What the algorithms may use: LZ4 distances up to 64 KiB and extents of 256 blocks; zstd windows of 2^20.
fn configs() -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&14u16.to_le_bytes());
    out.extend_from_slice(&u16::MAX.to_le_bytes());
    out.extend_from_slice(&256u16.to_le_bytes());
    out.extend_from_slice(&[0; 10]);
    out.extend_from_slice(&6u16.to_le_bytes());
    out.extend_from_slice(&[0, 10, 0, 0, 0, 0]);
    out
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}
