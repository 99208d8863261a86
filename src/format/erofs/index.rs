//! The full index of a compressed file: eight bytes for each 4 KiB of it, its *clusters* (`z_erofs_lcluster_index`).
//!
//! An extent may begin anywhere in a cluster, but no two in the same. How many blocks it takes is told in the second
//! cluster's entry, so an extent that has no second cluster takes one block. Extents are whole chunks: the kernel
//! cannot begin in the middle of one.
//!
//! Linux takes the last extent to go on to the end of the file's last cluster, and refuses stored bytes that are fewer
//! than that. So where a raw chunk that ends a file does not fill its blocks enough, one block more is named: whatever
//! comes after it in its pack, the table at least. It is never shown, since the file ends before.

use super::superblock::{ALGORITHM_LZ4, ALGORITHM_ZSTD, bad};
use super::{BLOCK_LEN, Put, u16_at, u32_at};
use crate::error::{Error, Result};
use crate::format::pack::{BLOCK, Codec, Location};

/// Bytes before the entries: a header of eight, and eight that nobody reads.
const HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 8;
/// Extents of more than one block, of either algorithm; stored ones count with the second
/// (`Z_EROFS_ADVISE_BIG_PCLUSTER_1`, `_2`).
const ADVISE: u16 = 2 | 4;
const PLAIN: u16 = 0;
const HEAD1: u16 = 1;
const NONHEAD: u16 = 2;
const HEAD2: u16 = 3;
/// In the second cluster's entry: a number of blocks instead of a distance.
const BLOCKS: u16 = 1 << 11;

/// A piece of a file: all of a chunk, or stored bytes as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Bytes of the file.
    pub(crate) len: u32,
    /// First block, in the store's numbers.
    pub(crate) block: u32,
    pub(crate) blocks: u32,
    pub(crate) codec: Codec,
}

impl From<Location> for Extent {
    fn from(l: Location) -> Self {
        Self { len: l.raw_len, block: l.block, blocks: l.blocks() as u32, codec: l.codec }
    }
}

/// Number of clusters, and so of entries, of a file of `size` bytes.
fn clusters(size: u64) -> u64 {
    size.div_ceil(BLOCK)
}

/// Bytes that header and entries take.
pub(super) fn len(size: u64) -> Result<usize> {
    let len = usize::try_from(clusters(size)).ok().and_then(|n| n.checked_mul(ENTRY_LEN)?.checked_add(HEADER_LEN));
    len.ok_or_else(|| Error::limit("bytes of a file in an EROFS image", usize::MAX, size))
}

/// Clusters of an extent of a file, from the one it begins in to that of the next, which begins at `next`; the last
/// extent has all that are left.
fn span(start: u64, next: u64, last: bool) -> u64 {
    let end = if last { clusters(next) } else { next / BLOCK };
    end - start / BLOCK
}

/// Whether an index can hold a file of these extents.
pub(crate) fn fits(extents: impl Iterator<Item = Extent>) -> bool {
    let (mut start, mut extents) = (0, extents.peekable());
    while let Some(extent) = extents.next() {
        let next = start + u64::from(extent.len);
        let span = span(start, next, extents.peek().is_none());
        if span == 0 || span == 1 && extent.blocks > 1 {
            return false;
        }
        start = next;
    }
    true
}

/// Blocks to name for an extent that begins at `start`; see the module for the last one.
fn blocks(extent: &Extent, start: u64, size: u64, last: bool) -> u16 {
    let claimed = clusters(size) * BLOCK - start;
    let short = last && extent.codec == Codec::Raw && claimed > u64::from(extent.blocks) * BLOCK;
    extent.blocks as u16 + u16::from(short)
}

/// The types of entries for LZ4 and zstd, and the header's byte of algorithms. A file's chunks may be of both, where
/// the store's codec has changed.
fn algorithms(extents: impl Iterator<Item = Extent>) -> ([u16; 2], u8) {
    let (mut lz4, mut zstd) = (false, false);
    for extent in extents {
        lz4 |= extent.codec == Codec::Lz4;
        zstd |= extent.codec == Codec::Zstd;
    }
    match (lz4, zstd) {
        (true, true) => ([HEAD1, HEAD2], ALGORITHM_LZ4 | ALGORITHM_ZSTD << 4),
        (true, false) => ([HEAD1; 2], ALGORITHM_LZ4),
        _ => ([HEAD1; 2], ALGORITHM_ZSTD),
    }
}

/// Writes header and entries of a file of `size` bytes. `devices` is added to the blocks' numbers.
///
/// # Errors
/// `InvalidInput` for extents that do not [fit](fits) or do not hold `size` bytes.
pub(super) fn encode(put: &mut Put<'_>, size: u64, devices: u32, extents: &[Extent]) -> Result<()> {
    let (heads, algorithms) = algorithms(extents.iter().copied());
    put.u32(0).u16(ADVISE).bytes(&[algorithms, 0]).skip(8);
    let held: u64 = extents.iter().map(|e| u64::from(e.len)).sum();
    if held != size {
        return Err(Error::invalid("chunks do not hold a file").expected(size).actual(held));
    }
    if !fits(extents.iter().copied()) {
        return Err(Error::invalid("chunks too short for the index of an EROFS image"));
    }
    let mut start = 0u64;
    for (i, extent) in extents.iter().enumerate() {
        let next = start + u64::from(extent.len);
        let kind = match extent.codec {
            Codec::Raw => PLAIN,
            Codec::Lz4 => heads[0],
            Codec::Zstd => heads[1],
        };
        put.u16(kind).u16((start % BLOCK) as u16).u32(devices + extent.block);
        let last = i + 1 == extents.len();
        let (span, blocks) = (span(start, next, last) as u16, blocks(extent, start, size, last));
        for i in 1..span {
            put.u16(NONHEAD).u16(0).u16(if i == 1 { BLOCKS | blocks } else { i }).u16(span - i);
        }
        start = next;
    }
    Ok(())
}

/// Where an extent begins, as read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Offset in the file.
    pub(crate) start: u64,
    /// First block, in the image's numbers.
    pub(crate) block: u32,
    pub(crate) blocks: u32,
    pub(crate) codec: Codec,
}

/// Calls `each` with every extent of an index, in order.
pub(super) fn decode(bytes: &[u8], size: u64, mut each: impl FnMut(Head) -> Result<()>) -> Result<()> {
    let bytes = bytes.get(..len(size)?).ok_or_else(|| bad("an index reaches past the end"))?;
    let (header, entries) = bytes.split_at(HEADER_LEN);
    if u16_at(header, 4) != ADVISE || header[7] != 0 {
        return Err(bad("an index of unknown form"));
    }
    let algorithm = |nibble: u8| match nibble {
        ALGORITHM_LZ4 => Ok(Codec::Lz4),
        ALGORITHM_ZSTD => Ok(Codec::Zstd),
        _ => Err(bad("an unknown algorithm")),
    };
    let mut entries = entries.chunks_exact(ENTRY_LEN).enumerate().peekable();
    if entries.peek().is_some_and(|(_, entry)| u16_at(entry, 0) == NONHEAD || u16_at(entry, 2) != 0) {
        return Err(bad("an index that begins within an extent"));
    }
    while let Some((i, entry)) = entries.next() {
        let codec = match u16_at(entry, 0) {
            PLAIN => Codec::Raw,
            HEAD1 => algorithm(header[6] & 0xf)?,
            HEAD2 => algorithm(header[6] >> 4)?,
            NONHEAD => continue,
            _ => return Err(bad("an entry of unknown form")),
        };
        let offset = usize::from(u16_at(entry, 2));
        let mut blocks = 1;
        if let Some((_, next)) = entries.peek()
            && u16_at(next, 0) == NONHEAD
        {
            blocks = u16_at(next, 4) ^ BLOCKS;
        }
        if offset >= BLOCK_LEN || !(1..BLOCKS).contains(&blocks) {
            return Err(bad("an extent of impossible size"));
        }
        let start = (i * BLOCK_LEN + offset) as u64;
        each(Head { start, block: u32_at(entry, 4), blocks: blocks.into(), codec })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(len: u32, codec: Codec) -> Extent {
        Extent { len, block: len, blocks: len.div_ceil(4096 * if codec == Codec::Raw { 1 } else { 3 }), codec }
    }

    fn round_trip(extents: &[Extent]) -> Vec<Head> {
        let size = extents.iter().map(|e| u64::from(e.len)).sum();
        let mut bytes = vec![0; len(size).expect("short")];
        encode(&mut Put::new(&mut bytes, 0), size, 1000, extents).expect("fits");
        let mut heads = Vec::new();
        let end = decode(&bytes, size, |head| {
            heads.push(head);
            Ok(())
        });
        end.expect("sound");
        heads
    }

    proptest! {
        #[test]
        fn comes_back(lens in proptest::collection::vec((8192u32..300_000, 0u8..3), 1..20), last in 1u32..9000) {
            let codec = |n| Codec::from_u8(n).expect("a codec");
            let mut extents: Vec<_> = lens.into_iter().map(|(len, c)| extent(len, codec(c))).collect();
            extents.push(extent(last, Codec::Raw));
            let mut start = 0;
            let mut expected: Vec<_> = extents.iter().map(|e| {
                let head = Head { start, block: e.block + 1000, blocks: e.blocks, codec: e.codec };
                start += u64::from(e.len);
                head
            }).collect();
            let (size, end) = (start, expected.last_mut().expect("one"));
            end.blocks += u32::from(size.next_multiple_of(4096) - end.start > u64::from(end.blocks) * 4096);
            prop_assert_eq!(round_trip(&extents), expected);
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(0u8..8, 0..120), size in 0u64..40_000) {
            let _ = decode(&bytes, size, |head| { assert!(head.start < size.next_multiple_of(4096)); Ok(()) });
        }
    }

    #[test]
    fn what_begins_in_one_cluster_does_not_fit() {
        let fits = |lens: &[u32]| fits(lens.iter().map(|&len| extent(len, Codec::Raw)));
        assert!(fits(&[100]) && fits(&[8192, 5]) && fits(&[70_000, 70_000, 1]) && fits(&[4096, 4096, 1]));
        assert!(!fits(&[100, 5]) && !fits(&[4000, 90, 9000]));
        assert!(!fits(&[5000, 9000]), "two blocks, and no second cluster to count them in");
        let two = [extent(100, Codec::Raw), extent(5, Codec::Raw)];
        assert!(encode(&mut Put::new(&mut [0; 64], 0), 105, 0, &two).is_err());
        assert!(encode(&mut Put::new(&mut [0; 64], 0), 101, 0, &two[..1]).is_err());
    }
}
