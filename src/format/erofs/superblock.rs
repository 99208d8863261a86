//! What an image begins with: the superblock, how chunks are compressed, and the packs as devices.

use super::{BLOCK_LEN, Put, u16_at, u32_at, u64_at};
use crate::error::{Error, ErrorKind, Result};
use crate::format::pack::{ADDRESS_LIMIT, BLOCK};

/// Where the superblock stands, and how long it is.
const AT: usize = 1024;
const LEN: usize = 128;
/// The UUID.
const ID: std::ops::Range<usize> = AT + 48..AT + 64;
const MAGIC: u32 = 0xe0f5_e1e2;
const VOLUME: [u8; 16] = *b"layerstore\0\0\0\0\0\0";
/// A slot of the device table.
const DEVICE_LEN: usize = 128;
const TAG_LEN: usize = 64;

const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;

const ZERO_PADDING: u32 = 1;
const COMPRESSION_CONFIGS: u32 = 2;
const CHUNKED_FILES: u32 = 4;
/// Also what allows a second algorithm in a file.
const DEVICE_TABLE: u32 = 8;
/// Also what allows many files to refer to one extent.
const FRAGMENTS: u32 = 0x20;
const FEATURES: u32 = ZERO_PADDING | COMPRESSION_CONFIGS | CHUNKED_FILES | DEVICE_TABLE | FRAGMENTS;

pub(super) const ALGORITHM_LZ4: u8 = 0;
pub(super) const ALGORITHM_ZSTD: u8 = 3;

/// The addresses that a pack's file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pack {
    /// First address; its bytes stand at the same offset in the file.
    pub(crate) base: u64,
    /// First address after it: the file's length.
    pub(crate) end: u64,
}

/// The fields that differ from image to image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Number of the root's inode.
    pub(super) root: u16,
    pub(super) inodes: u64,
    /// Length of the image; a block of the store has this more as its number in the image.
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) xattr_block: u32,
    /// Number of the inode that the bundles are.
    pub(super) packed: u64,
    /// Whether any chunk is a zstd frame: not every kernel that mounts the rest can decode one.
    pub(super) zstd: bool,
    /// Ascending and disjoint.
    pub(super) packs: Vec<Pack>,
}

fn table_at() -> usize {
    (AT + LEN + CONFIGS_LEN).next_multiple_of(DEVICE_LEN)
}

/// Blocks before the inodes of an image that refers to this many packs.
pub(super) fn blocks(packs: usize) -> usize {
    (table_at() + DEVICE_LEN * packs).div_ceil(BLOCK_LEN)
}

/// Most bytes of [`configs`].
const CONFIGS_LEN: usize = 24;

/// What the algorithms may use: LZ4 distances of 64 KiB and extents of 256 blocks; zstd windows of 2^20.
fn configs(zstd: bool) -> ([u8; CONFIGS_LEN], u16) {
    let mut out = [0; CONFIGS_LEN];
    let mut put = Put::new(&mut out, 0);
    put.u16(14).u16(u16::MAX).u16(256).skip(10);
    if zstd {
        put.u16(6).bytes(&[0, 10]);
    }
    (out, 1 << ALGORITHM_LZ4 | u16::from(zstd) << ALGORITHM_ZSTD)
}

/// CRC-32C as the superblock has it: seed all ones, no final inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// The checksum of an image's first block.
fn checksum(block: &[u8]) -> u32 {
    let mut summed = block[AT..BLOCK_LEN].to_vec();
    summed[4..8].fill(0);
    crc32c(&summed)
}

/// Begins the hash of an image with checksum and UUID zero, of which `first` is the first block or more.
fn hash(first: &[u8]) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&first[..AT + 4]).update(&[0; 4]).update(&first[AT + 8..ID.start]);
    hasher.update(&[0; 16]).update(&first[ID.end..]);
    hasher
}

/// What an image's UUID is to be: the first half of its hash.
fn identity(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    id
}

/// Gives a whole image its UUID, which is a hash of all else, and its checksum.
pub(super) fn seal(image: &mut [u8]) {
    let id = identity(&hash(image));
    Put::new(image, ID.start).bytes(&id);
    let sum = checksum(image);
    Put::new(image, AT + 4).u32(sum);
}

/// Makes a superblock say the length and the sums of what it stands in, whatever else it says: for fuzzing.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn reseal(image: &mut Vec<u8>) {
    image.resize(image.len().next_multiple_of(BLOCK_LEN).max(BLOCK_LEN), 0);
    let blocks = (image.len() / BLOCK_LEN) as u32;
    Put::new(image, AT + 36).u32(blocks);
    seal(image);
}

/// Whether every byte of an image with a sound superblock is as it was when it was sealed.
pub(super) fn is_intact(image: &[u8]) -> bool {
    identity(&hash(image)) == image[ID]
}

/// Checks an image that is read piece by piece, first to last, and never held as a whole.
pub(crate) struct Check {
    packs: Vec<Pack>,
    id: [u8; 16],
    hasher: blake3::Hasher,
}

impl Check {
    /// How long the first piece has to be at least, of an image that begins with this block; more than the image is long
    /// only if it is damaged.
    pub(crate) fn first_len(block: &[u8]) -> usize {
        block.get(..BLOCK_LEN).map_or(BLOCK_LEN, |block| devices(block).end.max(BLOCK_LEN))
    }

    /// Begins with the first piece of an image of `len` bytes.
    ///
    /// # Errors
    /// As [`Image::new`](super::read::Image::new).
    pub(crate) fn begin(first: &[u8], len: u64) -> Result<Self> {
        let packs = Superblock::decode(first, len)?.packs;
        let mut id = [0; 16];
        id.copy_from_slice(&first[ID]);
        Ok(Self { packs, id, hasher: hash(first) })
    }

    /// Goes on with the next piece.
    pub(crate) fn more(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
    }

    /// The packs that the image refers to.
    ///
    /// # Errors
    /// `Corrupt` if any byte is other than when the image was made.
    pub(crate) fn end(self) -> Result<Vec<Pack>> {
        if identity(&self.hasher) == self.id { Ok(self.packs) } else { Err(bad("does not match its hash")) }
    }
}

/// Where the device table stands.
fn devices(first: &[u8]) -> std::ops::Range<usize> {
    let at = usize::from(u16_at(first, AT + 88)) * DEVICE_LEN;
    at..at + DEVICE_LEN * usize::from(u16_at(first, AT + 86))
}

impl Superblock {
    /// Writes it and the device table to the first [`blocks`] of `out`, which are zeros. [`seal`] comes last.
    ///
    /// # Errors
    /// `Unsupported` for more packs than the format can number, or addresses beyond its 32-bit block numbers.
    pub(super) fn encode(&self, out: &mut [u8]) -> Result<()> {
        let devices = u16::try_from(self.packs.len());
        let devices = devices.map_err(|_| unsupported("too many packs", u16::MAX, self.packs.len()))?;
        let last = self.packs.last().map_or(0, |pack| pack.end / BLOCK);
        let top = u64::from(self.blocks) + last;
        if top > u64::from(u32::MAX) {
            return Err(unsupported("packs lie too high for its block numbers", u32::MAX, top));
        }
        let (configs, algorithms) = configs(self.zstd);
        let mut put = Put::new(out, AT);
        put.u32(MAGIC).u32(0).u32(COMPAT_CHECKSUM | COMPAT_MTIME).bytes(&[BLOCK_LEN.trailing_zeros() as u8, 0]);
        put.u16(self.root).u64(self.inodes).skip(12).u32(self.blocks).u32(self.meta_block).u32(self.xattr_block);
        put.skip(ID.len()).bytes(&VOLUME).u32(FEATURES).u16(algorithms);
        put.u16(devices).u16((table_at() / DEVICE_LEN) as u16).skip(6).u64(self.packed);
        Put::new(out, AT + LEN).bytes(&configs);
        for (i, pack) in self.packs.iter().enumerate() {
            let mut put = Put::new(out, table_at() + DEVICE_LEN * i);
            put.bytes(format!("{:011x}", pack.base).as_bytes()).skip(TAG_LEN - 11);
            put.u32((pack.end / BLOCK) as u32).u32(self.blocks);
        }
        Ok(())
    }

    /// Reads those of an image of this library, of `len` bytes, which begins with `image`.
    pub(super) fn decode(image: &[u8], len: u64) -> Result<Self> {
        let first = image.get(..BLOCK_LEN).ok_or_else(|| bad("shorter than a block"))?;
        if u32_at(first, AT) != MAGIC {
            return Err(bad("bad magic"));
        }
        if checksum(first) != u32_at(first, AT + 4) {
            return Err(bad("the superblock does not match its checksum"));
        }
        let features = u32_at(first, AT + 80);
        if features != FEATURES || usize::from(first[AT + 12]) != BLOCK_LEN.trailing_zeros() as usize {
            let e = Error::new(ErrorKind::Unsupported, "EROFS image with other features");
            return Err(e.expected(format!("{FEATURES:#x}")).actual(format!("{features:#x}")));
        }
        let blocks = u32_at(first, AT + 36);
        if u64::from(blocks) * BLOCK != len {
            return Err(bad("another length than its superblock says"));
        }
        let table = image.get(devices(first)).ok_or_else(|| bad("the device table reaches past its end"))?;
        let packs = table.chunks_exact(DEVICE_LEN).map(|slot| decode_pack(slot, blocks)).collect::<Result<Vec<_>>>()?;
        if packs.windows(2).any(|pair| pair[1].base < pair[0].end) {
            return Err(bad("packs overlap"));
        }
        let algorithms = u16_at(first, AT + 84);
        Ok(Self {
            root: u16_at(first, AT + 14),
            inodes: u64_at(first, AT + 16),
            blocks,
            meta_block: u32_at(first, AT + 40),
            xattr_block: u32_at(first, AT + 44),
            packed: u64_at(first, AT + 96),
            zstd: algorithms & 1 << ALGORITHM_ZSTD != 0,
            packs,
        })
    }
}

fn decode_pack(slot: &[u8], blocks: u32) -> Result<Pack> {
    let base = std::str::from_utf8(&slot[..11]).ok().and_then(|tag| u64::from_str_radix(tag, 16).ok());
    let base = base.filter(|base| base % BLOCK == 0).ok_or_else(|| bad("a device that is no pack"))?;
    let end = u64::from(u32_at(slot, TAG_LEN)) * BLOCK;
    if base >= end || end > ADDRESS_LIMIT || u32_at(slot, TAG_LEN + 4) != blocks {
        return Err(bad("a pack of impossible addresses"));
    }
    Ok(Pack { base, end })
}

pub(super) fn bad(what: &str) -> Error {
    Error::corrupt(format!("EROFS image: {what}"))
}

pub(super) fn unsupported(what: &str, expected: impl ToString, actual: impl ToString) -> Error {
    let e = Error::new(ErrorKind::Unsupported, format!("EROFS cannot hold this: {what}"));
    e.expected(format!("at most {}", expected.to_string())).actual(actual.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(packs: u64) -> (Superblock, Vec<u8>) {
        let packs: Vec<_> = (1..=packs).map(|i| Pack { base: i << 30, end: (i << 30) + (i << 12) }).collect();
        let sb = Superblock {
            root: 1,
            inodes: 1 << 40,
            blocks: blocks(packs.len()) as u32 + 2,
            meta_block: 3,
            xattr_block: 4,
            packed: 1 << 33,
            zstd: packs.len() != 1,
            packs,
        };
        let mut image = vec![0; sb.blocks as usize * BLOCK_LEN];
        sb.encode(&mut image).expect("fits");
        seal(&mut image);
        (sb, image)
    }

    #[test]
    fn comes_back() {
        for packs in [0, 1, 3, 70] {
            let (sb, image) = sample(packs);
            assert_eq!(Superblock::decode(&image, image.len() as u64).expect("sound"), sb);
        }
    }

    fn in_pieces(image: &[u8]) -> Result<Vec<Pack>> {
        let (first, rest) = image.split_at(Check::first_len(&image[..BLOCK_LEN]).min(image.len()));
        let mut check = Check::begin(first, image.len() as u64)?;
        rest.chunks(5000).for_each(|piece| check.more(piece));
        check.end()
    }

    /// The checksum covers the first block from the superblock on, the UUID everything.
    #[test]
    fn any_flipped_byte_is_seen() {
        let (sb, image) = sample(3);
        for at in (0..image.len()).filter(|at| at % 7 == 0 || (AT..BLOCK_LEN).contains(at)) {
            let mut image = image.clone();
            image[at] ^= 0x10;
            let decoded = Superblock::decode(&image, image.len() as u64);
            assert!(decoded.is_err() || !(AT..BLOCK_LEN).contains(&at) && !is_intact(&image), "{at}");
            assert!(in_pieces(&image).is_err(), "{at}");
        }
        assert!(is_intact(&image));
        assert_eq!(in_pieces(&image).expect("sound"), sb.packs);
        let cut = &image[..image.len() - BLOCK_LEN];
        assert!(Superblock::decode(cut, cut.len() as u64).is_err());
        assert_eq!(crc32c(b"123456789"), !0xe306_9283, "the check value of CRC-32C");
        let high = Pack { base: 1 << 30, end: ADDRESS_LIMIT };
        let sb = Superblock { packs: vec![high], blocks: 1 << 12, ..sb };
        assert_eq!(sb.encode(&mut vec![0; 1 << 16]).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
