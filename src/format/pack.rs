//! A pack: chunks at 4 KiB blocks of the store's one address space, then a table that names them.
//!
//! `docs/FORMAT.md`, section "Pack", is the authority; this file is its code. Nothing here does I/O.
//!
//! ```text
//! base                                                                         base + len
//! | header block | chunk blocks ...                       | table | zeros | footer |
//! ```
//!
//! Offsets in the file equal addresses in the store, so no two packs hold bytes at the same file offset.

use super::bytes::Cursor;
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::id::ContentId;
use std::ops::Range;

/// Unit of addresses: chunks start and packs begin and end at multiples of it (the EROFS block size).
pub(crate) const BLOCK: u64 = 4096;
/// Addresses are below this, so that EROFS's 32-bit block numbers reach all of them.
/// ext4 cannot hold the last block of 16 TiB in one file, and nothing is lost by leaving the last MiB alone.
pub(crate) const ADDRESS_LIMIT: u64 = (1 << 44) - (1 << 20);
/// The longest raw chunk a reader accepts; writers stay far below.
pub(crate) const CHUNK_RAW_MAX: u32 = 1 << 20;

const HEADER_VERSION: u32 = 1;
/// A table of version 1 has no sums of stored bytes, one of version 2 has.
const WITHOUT_SUMS: u32 = 1;
const WITH_SUMS: u32 = 2;
const HEADER_MAGIC: [u8; 8] = *b"LSpackHD";
const FOOTER_MAGIC: [u8; 8] = *b"LSpackFT";
/// magic 8, version 4, reserved 4, base 8, blake3 32.
pub(crate) const HEADER_LEN: usize = 56;
/// magic 8, version 4, chunks 4, members 4, reserved 4, base 8, table address 8, table blake3 32, own blake3 32.
pub(crate) const FOOTER_LEN: usize = 104;
const ROW_LEN: usize = 48;
const SUM_LEN: usize = 4;
/// What a chunk takes in a table, and what a member does.
pub(crate) const CHUNK_LEN: usize = ROW_LEN + SUM_LEN;
pub(crate) const MEMBER_LEN: usize = 36;

/// How a chunk's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Codec {
    /// As they are, from the start of the first block, zeros after.
    Raw,
    /// One LZ4 block, zeros before it, ending at a block's end.
    Lz4,
    /// One zstd frame (window <= 1 MiB), zeros before it, ending at a block's end.
    Zstd,
}

impl Codec {
    pub(crate) fn to_u8(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    pub(crate) fn from_u8(value: u8) -> Result<Self> {
        match value {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            _ => Err(Error::corrupt("unknown chunk codec").actual(value)),
        }
    }
}

/// Where a chunk's stored bytes are and how to read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// First block, in units of [`BLOCK`].
    pub(crate) block: u32,
    /// Bytes of the frame, block or raw data, without padding.
    pub(crate) stored_len: u32,
    /// Bytes after decoding.
    pub(crate) raw_len: u32,
    pub(crate) codec: Codec,
}

impl Location {
    /// Blocks taken, padding included.
    pub(crate) fn blocks(&self) -> u64 {
        u64::from(self.stored_len).div_ceil(BLOCK)
    }

    /// Address of the first stored byte: compressed bytes end at a block's end as EROFS wants (zero padding in front).
    pub(crate) fn address(&self) -> u64 {
        let start = u64::from(self.block) * BLOCK;
        match self.codec {
            Codec::Raw => start,
            Codec::Lz4 | Codec::Zstd => start + self.blocks() * BLOCK - u64::from(self.stored_len),
        }
    }

    /// The blocks it takes, in units of [`BLOCK`].
    pub(crate) fn range(&self) -> Range<u64> {
        u64::from(self.block)..u64::from(self.block) + self.blocks()
    }

    pub(crate) fn end(&self) -> u64 {
        (u64::from(self.block) + self.blocks()) * BLOCK
    }

    /// Checks what must hold of any location, from a table or the database.
    pub(crate) fn validate(self) -> Result<Self> {
        let raw_fits = self.codec != Codec::Raw || self.stored_len == self.raw_len;
        let sane = self.raw_len > 0 && self.raw_len <= CHUNK_RAW_MAX && self.stored_len > 0;
        if sane && raw_fits && self.stored_len <= self.raw_len && self.end() <= ADDRESS_LIMIT {
            Ok(self)
        } else {
            Err(Error::corrupt("impossible chunk location").actual(format!("{self:?}")))
        }
    }
}

/// A small file inside a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: ContentId,
    pub(crate) len: u32,
}

/// One chunk of a pack's table. A bundle lists its members, which lie one after the other from offset 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableChunk {
    pub(crate) id: ContentId,
    pub(crate) location: Location,
    /// [`sum`] of the stored bytes; the database has none, and neither has a table of version 1.
    pub(crate) sum: Option<u32>,
    pub(crate) members: Vec<Member>,
}

/// CRC-32 (IEEE) of a chunk's stored bytes. The id says whether the content is right; this finds the damage that the
/// codec passes over, before more of it makes the chunk unreadable.
pub(crate) fn sum(stored: &[u8]) -> u32 {
    crc32fast::hash(stored)
}

/// Whether a table has this chunk, in this place.
pub(crate) fn table_has(table: &[TableChunk], id: &ContentId, location: &Location) -> bool {
    let found = table.binary_search_by_key(&location.block, |chunk| chunk.location.block);
    found.is_ok_and(|at| table[at].id == *id && table[at].location == *location)
}

/// Base and length of the pack, of these in ascending order, whose addresses a chunk's place is among.
pub(crate) fn owner(packs: &[(u64, u64)], location: &Location) -> Option<(u64, u64)> {
    let start = u64::from(location.block) * BLOCK;
    let last = packs.partition_point(|&(base, _)| base <= start).checked_sub(1)?;
    Some(packs[last]).filter(|&(base, len)| location.end() <= base.saturating_add(len))
}

/// The first bytes of a pack.
pub(crate) fn encode_header(base: u64) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(&HEADER_MAGIC);
    out[8..12].copy_from_slice(&HEADER_VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&base.to_le_bytes());
    let sum = blake3::hash(&out[..24]);
    out[24..].copy_from_slice(sum.as_bytes());
    out
}

/// Checks a pack's first bytes against the address it is named by.
pub(crate) fn check_header(bytes: &[u8], base: u64) -> Result<()> {
    if Cursor::new(bytes).take(HEADER_LEN)? == encode_header(base) {
        return Ok(());
    }
    let mut c = Cursor::new(bytes);
    if c.array()? != HEADER_MAGIC {
        return Err(Error::corrupt("not a pack: bad magic"));
    }
    check_version(c.u32()?, HEADER_VERSION)?;
    Err(Error::corrupt("pack header is damaged or belongs to another address"))
}

fn check_version(version: u32, newest: u32) -> Result<u32> {
    if (1..=newest).contains(&version) {
        return Ok(version);
    }
    let e = Error::new(ErrorKind::Unsupported, "pack format is of another version").advise(Advice::OtherVersion);
    Err(e.expected(newest).actual(version))
}

/// The end of a pack, which leads to its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    version: u32,
    pub(crate) base: u64,
    pub(crate) chunks: u32,
    pub(crate) members: u32,
    pub(crate) table_address: u64,
    table_sum: [u8; 32],
}

impl Footer {
    pub(crate) fn table_len(&self) -> usize {
        let (chunks, members) = (self.chunks as usize, self.members as usize);
        chunks * (ROW_LEN + if self.version == WITH_SUMS { SUM_LEN } else { 0 }) + members * MEMBER_LEN
    }

    /// Whether a table of the right length with this hash is the one.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check_table(&self, hash: &blake3::Hash) -> Result<()> {
        match *hash.as_bytes() == self.table_sum {
            true => Ok(()),
            false => Err(Error::corrupt("pack table does not match its checksum")),
        }
    }

    pub(crate) fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        out[..8].copy_from_slice(&FOOTER_MAGIC);
        out[8..12].copy_from_slice(&self.version.to_le_bytes());
        out[12..16].copy_from_slice(&self.chunks.to_le_bytes());
        out[16..20].copy_from_slice(&self.members.to_le_bytes());
        out[24..32].copy_from_slice(&self.base.to_le_bytes());
        out[32..40].copy_from_slice(&self.table_address.to_le_bytes());
        out[40..72].copy_from_slice(&self.table_sum);
        let sum = blake3::hash(&out[..72]);
        out[72..].copy_from_slice(sum.as_bytes());
        out
    }

    /// Parses the last [`FOOTER_LEN`] bytes of a pack that ends at address `end`.
    pub(crate) fn decode(bytes: &[u8], end: u64) -> Result<Self> {
        let mut c = Cursor::new(bytes);
        if c.array()? != FOOTER_MAGIC {
            return Err(Error::corrupt("pack has no footer: it was not sealed or lost its end"));
        }
        let version = check_version(c.u32()?, WITH_SUMS)?;
        let (chunks, members, reserved) = (c.u32()?, c.u32()?, c.u32()?);
        let footer = Self { version, base: c.u64()?, chunks, members, table_address: c.u64()?, table_sum: c.array()? };
        if blake3::hash(&bytes[..72]).as_bytes() != c.take(32)? || reserved != 0 {
            return Err(Error::corrupt("pack footer does not match its checksum"));
        }
        let table_end = footer.table_address.checked_add(footer.table_len() as u64);
        let room = end.saturating_sub(FOOTER_LEN as u64);
        let fits = table_end.is_some_and(|t| t <= room) && end <= ADDRESS_LIMIT;
        let aligned = footer.base.is_multiple_of(BLOCK) && footer.table_address.is_multiple_of(BLOCK);
        if fits && aligned && footer.table_address >= footer.base.saturating_add(BLOCK) {
            Ok(footer)
        } else {
            Err(Error::corrupt("pack footer points outside the pack"))
        }
    }
}

/// Encodes a pack's table and the footer for it; with sums if all chunks have one.
pub(crate) fn encode_table(base: u64, table_address: u64, chunks: &[TableChunk]) -> (Vec<u8>, Footer) {
    let members: usize = chunks.iter().map(|c| c.members.len()).sum();
    let mut out = Vec::with_capacity(chunks.len() * CHUNK_LEN + members * MEMBER_LEN);
    for c in chunks {
        out.extend_from_slice(c.id.as_bytes());
        out.extend_from_slice(&c.location.block.to_le_bytes());
        out.extend_from_slice(&(c.location.stored_len | u32::from(c.location.codec.to_u8()) << 24).to_le_bytes());
        out.extend_from_slice(&c.location.raw_len.to_le_bytes());
        out.extend_from_slice(&(c.members.len() as u32).to_le_bytes());
    }
    for m in chunks.iter().flat_map(|c| &c.members) {
        out.extend_from_slice(m.id.as_bytes());
        out.extend_from_slice(&m.len.to_le_bytes());
    }
    let sums: Option<Vec<u32>> = chunks.iter().map(|c| c.sum).collect();
    let version = if sums.is_some() { WITH_SUMS } else { WITHOUT_SUMS };
    sums.iter().flatten().for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
    let table_sum = *blake3::hash(&out).as_bytes();
    let (chunks, members) = (chunks.len() as u32, members as u32);
    let footer = Footer { version, base, chunks, members, table_address, table_sum };
    (out, footer)
}

/// Decodes a table and checks it against its footer: inside the pack, in ascending order, nothing overlapping.
pub(crate) fn decode_table(bytes: &[u8], footer: &Footer) -> Result<Vec<TableChunk>> {
    if bytes.len() != footer.table_len() {
        return Err(Error::corrupt("pack table has another length than its footer says"));
    }
    footer.check_table(&blake3::hash(bytes))?;
    let (rows, rest) = bytes.split_at(footer.chunks as usize * ROW_LEN);
    let (members, sums) = rest.split_at(footer.members as usize * MEMBER_LEN);
    let (mut rows, mut members, mut sums) = (Cursor::new(rows), Cursor::new(members), Cursor::new(sums));
    let mut out = Vec::with_capacity(footer.chunks as usize);
    let mut free = footer.base + BLOCK;
    while !rows.is_empty() {
        let mut chunk = decode_row(&mut rows, &mut members)?;
        if footer.version == WITH_SUMS {
            chunk.sum = Some(sums.u32()?);
        }
        let start = u64::from(chunk.location.block) * BLOCK;
        if start < free || chunk.location.end() > footer.table_address {
            return Err(Error::corrupt("chunks of a pack overlap or leave it").subject(chunk.id));
        }
        free = chunk.location.end();
        out.push(chunk);
    }
    if members.is_empty() { Ok(out) } else { Err(Error::corrupt("pack table has members of no chunk")) }
}

fn decode_row(rows: &mut Cursor<'_>, members: &mut Cursor<'_>) -> Result<TableChunk> {
    let id = ContentId::from_bytes(rows.array()?);
    let (block, stored, raw_len, count) = (rows.u32()?, rows.u32()?, rows.u32()?, rows.u32()?);
    let codec = Codec::from_u8((stored >> 24) as u8)?;
    let location = Location { block, stored_len: stored & 0xff_ffff, raw_len, codec }.validate()?;
    let count = count as usize;
    if members.remaining() / MEMBER_LEN < count {
        return Err(Error::corrupt("pack table ends inside its members").subject(id));
    }
    let list: Vec<Member> = (0..count)
        .map(|_| Ok(Member { id: ContentId::from_bytes(members.array()?), len: members.u32()? }))
        .collect::<Result<_>>()?;
    let total: u64 = list.iter().map(|m| u64::from(m.len)).sum();
    if count > 0 && total != u64::from(raw_len) {
        return Err(Error::corrupt("members do not fill their bundle").subject(id).expected(raw_len).actual(total));
    }
    Ok(TableChunk { id, location, sum: None, members: list })
}

/// Bytes on disk that a pack of so many chunks and members takes beside the chunks.
pub(crate) fn overhead(chunks: u64, members: u64) -> u64 {
    let table = chunks * CHUNK_LEN as u64 + members * MEMBER_LEN as u64 + FOOTER_LEN as u64;
    BLOCK + table.next_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 7 * BLOCK;

    fn chunks() -> Vec<TableChunk> {
        let member = |b: &[u8]| Member { id: ContentId::of(b), len: b.len() as u32 };
        let at = |block, stored_len, raw_len, codec| Location { block, stored_len, raw_len, codec };
        vec![
            TableChunk {
                id: ContentId::of(b"a"),
                location: at(8, 5000, 9000, Codec::Zstd),
                sum: Some(1),
                members: vec![],
            },
            TableChunk {
                id: ContentId::of(b"onetwo"),
                location: at(10, 6, 6, Codec::Raw),
                sum: Some(2),
                members: vec![member(b"one"), member(b"two")],
            },
        ]
    }

    #[test]
    fn stated_lengths_are_the_encoded_lengths() {
        let (table, footer) = encode_table(BASE, 11 * BLOCK, &chunks());
        assert_eq!(table.len(), 2 * CHUNK_LEN + 2 * MEMBER_LEN);
        assert_eq!(footer.encode().len(), FOOTER_LEN);
    }

    #[test]
    fn places_compressed_bytes_at_the_end_of_their_blocks() {
        let c = chunks();
        assert_eq!(c[0].location.address(), 10 * BLOCK - 5000);
        assert_eq!(c[1].location.address(), 10 * BLOCK);
        assert_eq!((c[0].location.end(), c[1].location.end()), (10 * BLOCK, 11 * BLOCK));
    }

    #[test]
    fn round_trips_and_detects_every_flipped_byte() {
        let (table, footer) = encode_table(BASE, 11 * BLOCK, &chunks());
        let end = 12 * BLOCK;
        let tail = footer.encode();
        assert_eq!(Footer::decode(&tail, end).unwrap(), footer);
        assert_eq!(decode_table(&table, &footer).unwrap(), chunks());
        let head = encode_header(BASE);
        check_header(&head, BASE).unwrap();
        assert!(check_header(&head, BASE + BLOCK).is_err());
        let flips = |bytes: &[u8], ok: &dyn Fn(&[u8]) -> bool| {
            for i in 0..bytes.len() {
                let mut bad = bytes.to_vec();
                bad[i] ^= 0x10;
                assert!(!ok(&bad), "byte {i}");
            }
        };
        flips(&table, &|b| decode_table(b, &footer).is_ok());
        flips(&tail, &|b| Footer::decode(b, end).is_ok());
        flips(&head, &|b| check_header(b, BASE).is_ok());
    }

    #[test]
    fn refuses_overlaps_and_what_lies_outside() {
        let bad = |change: &dyn Fn(&mut Vec<TableChunk>)| {
            let mut c = chunks();
            change(&mut c);
            let (table, footer) = encode_table(BASE, 11 * BLOCK, &c);
            decode_table(&table, &footer).unwrap_err()
        };
        bad(&|c| c.swap(0, 1));
        bad(&|c| c[1].location.block = 9);
        bad(&|c| c[1].location.block = 11);
        bad(&|c| c[0].location.block = 7);
        bad(&|c| c[0].location.stored_len = 9001);
        bad(&|c| c[1].members[0].len = 4);
        bad(&|c| c[1].location.raw_len = 0);
    }

    /// Found by fuzzing: an address so high that sums with it overflow.
    #[test]
    fn refuses_a_footer_that_points_beyond_all_addresses() {
        let (_, footer) = encode_table(BASE, 11 * BLOCK, &chunks());
        for table_address in [u64::MAX / BLOCK * BLOCK, u64::MAX - footer.table_len() as u64, ADDRESS_LIMIT] {
            let bad = Footer { table_address, ..footer };
            assert_eq!(Footer::decode(&bad.encode(), 12 * BLOCK).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn refuses_a_newer_version_as_unsupported() {
        let mut head = encode_header(BASE);
        head[8] = 2;
        assert_eq!(check_header(&head, BASE).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
