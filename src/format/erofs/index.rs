//! The full index of a compressed file: eight bytes for each 4 KiB of it (`z_erofs_lcluster_index`).
//!
//! An extent starts anywhere in its first cluster, but no two start in the same one. Its blocks are counted in the second
//! cluster's entry, so one that has no second cluster has one block.

use super::BLOCK_LEN;
use crate::error::{Error, ErrorKind, Result};
use crate::format::pack::Codec;

/// Stored bytes of the header and the eight unused bytes after it.
pub(super) const HEADER_LEN: usize = 16;
/// Compressed and plain extents of several blocks (`Z_EROFS_ADVISE_BIG_PCLUSTER_1`, `_2`).
const ADVISE: u16 = 2 | 4;
const PLAIN: u16 = 0;
/// Begins an extent of the first algorithm, zstd.
const HEAD: u16 = 1;
const NONHEAD: u16 = 2;
/// Begins one of the second, LZ4.
const HEAD2: u16 = 3;
/// Only the first bytes of the extent's decoded content are the file's.
const PARTIAL: u16 = 1 << 15;
/// In the second cluster's entry: a number of blocks, not a distance.
const BLOCKS: u16 = 1 << 11;
/// Largest distance that fits beside the type.
const FAR: usize = 1 << 10;

/// A piece of a file, from the start of what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Bytes of the file.
    pub(crate) len: u64,
    /// First block, as the image numbers them.
    pub(crate) block: u32,
    pub(crate) blocks: u16,
    pub(crate) codec: Codec,
    /// More is stored than the file has of it.
    pub(crate) partial: bool,
}

/// Bytes that the index of a file of `size` bytes takes.
pub(super) fn index_len(size: u64) -> usize {
    HEADER_LEN + 8 * size.div_ceil(BLOCK_LEN as u64) as usize
}

/// Whether the index can hold an extent at `start`, the next one starting at `next` (the file's end for the last).
pub(crate) fn fits(start: u64, next: u64, last: bool, blocks: u64) -> bool {
    let cluster = |at: u64| at / BLOCK_LEN as u64;
    let end = if last { next.div_ceil(BLOCK_LEN as u64) } else { cluster(next) };
    end > cluster(start) && (blocks == 1 || end - cluster(start) > 1)
}

/// Appends header and entries. The extents follow each other and hold `size` bytes.
pub(super) fn encode(out: &mut Vec<u8>, size: u64, extents: &[Extent]) -> Result<()> {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&ADVISE.to_le_bytes());
    out.extend_from_slice(&[super::ALGORITHM_ZSTD | super::ALGORITHM_LZ4 << 4, 0]);
    out.extend_from_slice(&[0; 8]);
    let clusters = size.div_ceil(BLOCK_LEN as u64);
    let mut start = 0u64;
    for (i, extent) in extents.iter().enumerate() {
        let next = start + extent.len;
        let last = i + 1 == extents.len();
        if !fits(start, next, last, extent.blocks.into()) {
            return Err(Error::new(ErrorKind::Unsupported, "extents too short for the index of an EROFS image"));
        }
        let head = start / BLOCK_LEN as u64;
        let end = if last { clusters } else { next / BLOCK_LEN as u64 };
        let kind = match extent.codec {
            Codec::Raw => PLAIN,
            Codec::Zstd => HEAD,
            Codec::Lz4 => HEAD2,
        };
        let advise = kind | if extent.partial && kind != PLAIN { PARTIAL } else { 0 };
        out.extend_from_slice(&advise.to_le_bytes());
        out.extend_from_slice(&((start % BLOCK_LEN as u64) as u16).to_le_bytes());
        out.extend_from_slice(&extent.block.to_le_bytes());
        let count = (end - head) as usize;
        for i in 1..count {
            let back = if i == 1 { BLOCKS | extent.blocks } else { i.min(FAR) as u16 };
            out.extend_from_slice(&NONHEAD.to_le_bytes());
            out.extend_from_slice(&0u16.to_le_bytes());
            out.extend_from_slice(&back.to_le_bytes());
            out.extend_from_slice(&((count - i).min(FAR) as u16).to_le_bytes());
        }
        start = next;
    }
    if start == size { Ok(()) } else { Err(Error::invalid("extents do not hold a file").expected(size).actual(start)) }
}

/// Calls `found` with first block and number of blocks of every extent of an index.
pub(super) fn decode(bytes: &[u8], clusters: usize, mut found: impl FnMut(Head)) -> Result<()> {
    let entries = bytes.get(HEADER_LEN..).and_then(|b| b.get(..clusters.checked_mul(8)?));
    let entries = entries.ok_or_else(|| Error::corrupt("an EROFS index reaches past the image"))?;
    let number = |at: usize| u16::from_le_bytes([entries[at], entries[at + 1]]);
    for i in 0..clusters {
        let (advise, offset) = (number(8 * i), number(8 * i + 2));
        if advise & 3 == NONHEAD {
            continue;
        }
        let block = u32::from(number(8 * i + 4)) | u32::from(number(8 * i + 6)) << 16;
        let mut blocks = 1;
        if i + 1 < clusters && number(8 * i + 8) & 3 == NONHEAD && number(8 * i + 12) & BLOCKS != 0 {
            blocks = number(8 * i + 12) & !BLOCKS;
        }
        let start = (i * BLOCK_LEN) as u64 + u64::from(offset);
        let raw = advise & 3 == PLAIN;
        found(Head { start, block, blocks, raw, partial: advise & PARTIAL != 0 });
    }
    Ok(())
}

/// Where an extent starts, as read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) start: u64,
    pub(crate) block: u32,
    pub(crate) blocks: u16,
    pub(crate) raw: bool,
    pub(crate) partial: bool,
}
