//! A layer record: every entry of a layer's tar in order, where its content lies, and the tar's other bytes verbatim.
//!
//! `docs/FORMAT.md`, section "Layer record", is the authority; this file is its code. Nothing here does I/O.
//!
//! ```text
//! | header | block header | ids | entries (zstd) | segments (zstd) | block header | ... | trailer |
//! ```
//!
//! A record is written as the tar streams by, so it is a sequence of blocks of bounded size and its totals stand at
//! the end. Blocks are decoded one at a time and independently.

use super::bytes::Cursor;
use super::item::{Item, ItemEncoder, Items};
use crate::digest::Digest;
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::id::ContentId;

pub(crate) const VERSION: u32 = 1;
const HEADER_MAGIC: [u8; 8] = *b"LSlayrHD";
const TRAILER_MAGIC: [u8; 8] = *b"LSlayrTR";
const BLOCK_MAGIC: [u8; 4] = *b"LSbk";
/// magic 8, version 4, reserved 4.
pub(crate) const HEADER_LEN: usize = 16;
/// magic 4, ids 4, entries stored 4, entries raw 4, segments stored 4, segments raw 4, reserved 8, payload blake3 32.
pub(crate) const BLOCK_HEADER_LEN: usize = 64;
/// magic 8, version 4, blocks 4, diff_id 32, tar size 8, entries 8, content 8, headers blake3 32, own blake3 32.
pub(crate) const TRAILER_LEN: usize = 136;
/// A block is closed once its segments or its encoded entries reach this.
const BLOCK_TARGET: usize = 2 << 20;
/// What a reader accepts of either; one entry with the largest attributes stays below.
const BLOCK_RAW_MAX: usize = 16 << 20;
/// Records are small beside the content they describe: one entry costs some 20 bytes.
const LEVEL: i32 = 3;

/// The first bytes of a record.
pub(crate) fn encode_header() -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(&HEADER_MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out
}

pub(crate) fn check_header(bytes: &[u8]) -> Result<()> {
    let mut c = Cursor::new(bytes);
    if c.array()? != HEADER_MAGIC {
        return Err(Error::corrupt("not a layer record: bad magic"));
    }
    check_version(c.u32()?)?;
    if c.u32()? == 0 { Ok(()) } else { Err(Error::corrupt("reserved bytes of a record header are set")) }
}

fn check_version(version: u32) -> Result<()> {
    if version == VERSION {
        return Ok(());
    }
    let e = Error::new(ErrorKind::Unsupported, "layer record is of another version").advise(Advice::OtherVersion);
    Err(e.expected(VERSION).actual(version))
}

/// What stands before each block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    pub(crate) ids: u32,
    entries_stored: u32,
    entries_raw: u32,
    segments_stored: u32,
    segments_raw: u32,
    payload_sum: [u8; 32],
}

impl BlockHeader {
    fn encode(&self) -> [u8; BLOCK_HEADER_LEN] {
        let mut out = [0; BLOCK_HEADER_LEN];
        out[..4].copy_from_slice(&BLOCK_MAGIC);
        let fields = [self.ids, self.entries_stored, self.entries_raw, self.segments_stored, self.segments_raw];
        for (slot, field) in out[4..24].chunks_exact_mut(4).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        out[32..].copy_from_slice(&self.payload_sum);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut c = Cursor::new(bytes);
        if c.array()? != BLOCK_MAGIC {
            return Err(Error::corrupt("block of a layer record has a bad magic"));
        }
        let (ids, entries_stored, entries_raw) = (c.u32()?, c.u32()?, c.u32()?);
        let (segments_stored, segments_raw, reserved) = (c.u32()?, c.u32()?, c.u64()?);
        let header = Self { ids, entries_stored, entries_raw, segments_stored, segments_raw, payload_sum: c.array()? };
        let most = BLOCK_RAW_MAX as u32;
        let bounded = [entries_raw, segments_raw, entries_stored, segments_stored].iter().all(|&n| n <= most);
        if bounded && ids <= entries_raw && reserved == 0 {
            Ok(header)
        } else {
            Err(Error::corrupt("block of a layer record has impossible sizes"))
        }
    }

    /// Bytes after the header that belong to this block.
    pub(crate) fn payload_len(&self) -> usize {
        self.ids as usize * 32 + self.entries_stored as usize + self.segments_stored as usize
    }

    fn check(&self, payload: &[u8]) -> Result<()> {
        if payload.len() == self.payload_len() && *blake3::hash(payload).as_bytes() == self.payload_sum {
            return Ok(());
        }
        Err(Error::corrupt("block of a layer record does not match its checksum"))
    }

    /// The chunks a block's extents lie in, without unpacking it; its payload is checked all the same.
    pub(crate) fn chunks<'a>(&self, payload: &'a [u8]) -> Result<impl Iterator<Item = ContentId> + use<'a>> {
        self.check(payload)?;
        let (ids, _) = payload.as_chunks::<32>();
        Ok(ids.iter().take(self.ids as usize).map(|id| ContentId::from_bytes(*id)))
    }
}

/// A block read back. Its verbatim bytes are unpacked only when they are asked for: entries do not need them.
pub(crate) struct Block<'a> {
    pub(crate) ids: Vec<ContentId>,
    entries: Vec<u8>,
    segments: &'a [u8],
    segments_raw: usize,
}

impl<'a> Block<'a> {
    /// Checks a block's payload against its header and unpacks its entries.
    pub(crate) fn decode(header: &BlockHeader, payload: &'a [u8]) -> Result<Self> {
        header.check(payload)?;
        let mut c = Cursor::new(payload);
        let ids = (0..header.ids).map(|_| c.array().map(ContentId::from_bytes)).collect::<Result<_>>()?;
        let entries = inflate(c.take(header.entries_stored as usize)?, header.entries_raw as usize)?;
        let segments = c.take(header.segments_stored as usize)?;
        Ok(Self { ids, entries, segments, segments_raw: header.segments_raw as usize })
    }

    /// The items of the block, in order. Their lengths come from a checksummed block, but that they account for all
    /// verbatim bytes is checked all the same.
    pub(crate) fn items(&self) -> Result<Vec<Item>> {
        let items = Items::new(&self.entries, &self.ids).collect::<Result<Vec<_>>>()?;
        let total = items.iter().map(Item::segment).fold(0u64, u64::saturating_add);
        if total == self.segments_raw as u64 {
            return Ok(items);
        }
        let e = Error::corrupt("items and segments of a record's block disagree");
        Err(e.expected(total).actual(self.segments_raw))
    }

    /// The verbatim bytes, of all items in order.
    pub(crate) fn segments(&self) -> Result<Vec<u8>> {
        inflate(self.segments, self.segments_raw)
    }
}

fn inflate(stored: &[u8], raw_len: usize) -> Result<Vec<u8>> {
    let raw =
        zstd::bulk::decompress(stored, raw_len).map_err(|e| Error::corrupt("zstd frame of a record").source(e))?;
    if raw.len() == raw_len { Ok(raw) } else { Err(Error::corrupt("zstd frame of a record has another length")) }
}

/// A block being filled. Chunk ids may still be unknown: `R` stands for them until [`seal`](Self::seal).
pub(crate) struct BlockBuilder<R> {
    pub(crate) items: ItemEncoder,
    pub(crate) refs: Vec<R>,
    pub(crate) segments: Vec<u8>,
}

impl<R> Default for BlockBuilder<R> {
    fn default() -> Self {
        Self { items: ItemEncoder::default(), refs: Vec::new(), segments: Vec::new() }
    }
}

impl<R> BlockBuilder<R> {
    pub(crate) fn is_full(&self) -> bool {
        self.segments.len() >= BLOCK_TARGET || self.items.len() >= BLOCK_TARGET
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.len() == 0
    }

    /// Encodes the block, with the ids that `refs` turned out to be.
    pub(crate) fn seal(self, ids: &[ContentId]) -> Result<SealedBlock> {
        debug_assert_eq!(ids.len(), self.refs.len());
        let entries_raw = self.items.finish();
        let pack = |raw: &[u8]| zstd::bulk::compress(raw, LEVEL).map_err(|e| Error::io("compress a layer record", e));
        let (entries, segments) = (pack(&entries_raw)?, pack(&self.segments)?);
        let mut bytes = vec![0; BLOCK_HEADER_LEN];
        bytes.reserve(ids.len() * 32 + entries.len() + segments.len());
        for id in ids {
            bytes.extend_from_slice(id.as_bytes());
        }
        bytes.extend_from_slice(&entries);
        bytes.extend_from_slice(&segments);
        let header = BlockHeader {
            ids: ids.len() as u32,
            entries_stored: entries.len() as u32,
            entries_raw: entries_raw.len() as u32,
            segments_stored: segments.len() as u32,
            segments_raw: self.segments.len() as u32,
            payload_sum: *blake3::hash(&bytes[BLOCK_HEADER_LEN..]).as_bytes(),
        };
        bytes[..BLOCK_HEADER_LEN].copy_from_slice(&header.encode());
        Ok(SealedBlock { bytes })
    }
}

/// A block as it stands in the file, header first.
pub(crate) struct SealedBlock {
    pub(crate) bytes: Vec<u8>,
}

/// The end of a record: totals, and what ties the blocks together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) blocks: u32,
    pub(crate) diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub(crate) tar_size: u64,
    pub(crate) entries: u64,
    /// Bytes of file content in the tar.
    pub(crate) content: u64,
    /// BLAKE3 over all block headers in order, so that no block can be lost, added or moved.
    pub(crate) headers_sum: [u8; 32],
}

impl Trailer {
    pub(crate) fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut out = [0; TRAILER_LEN];
        out[..8].copy_from_slice(&TRAILER_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.blocks.to_le_bytes());
        out[16..48].copy_from_slice(self.diff_id.as_bytes());
        for (slot, field) in out[48..72].chunks_exact_mut(8).zip([self.tar_size, self.entries, self.content]) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        out[72..104].copy_from_slice(&self.headers_sum);
        let sum = blake3::hash(&out[..104]);
        out[104..].copy_from_slice(sum.as_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut c = Cursor::new(bytes);
        if c.array()? != TRAILER_MAGIC {
            return Err(Error::corrupt("layer record has no trailer: its end is lost"));
        }
        check_version(c.u32()?)?;
        let (blocks, diff_id) = (c.u32()?, Digest::from_bytes(c.array()?));
        let (tar_size, entries, content) = (c.u64()?, c.u64()?, c.u64()?);
        let headers_sum = c.array()?;
        if blake3::hash(&bytes[..104]).as_bytes() != c.take(32)? {
            return Err(Error::corrupt("layer record trailer does not match its checksum"));
        }
        Ok(Self { blocks, diff_id, tar_size, entries, content, headers_sum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::entry::{Entry, EntryKind, Time};
    use crate::format::item::RefExtent;

    fn block() -> SealedBlock {
        let mut b = BlockBuilder::default();
        let kind = EntryKind::File { size: 3, sparse: None };
        let mtime = Time { secs: -2, nanos: 5 };
        let e = Entry { path: b"a/b".to_vec(), kind, mode: 0o644, uid: 1, gid: 2, mtime, xattrs: vec![] };
        b.items.entry(&e, 512, &[RefExtent { chunk: 0, offset: 7, len: 3 }], false);
        b.items.bytes(1024);
        b.refs.push(());
        b.segments = vec![7; 1536];
        b.seal(&[ContentId::of(b"x")]).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<usize> {
        let header = BlockHeader::decode(&bytes[..BLOCK_HEADER_LEN])?;
        let block = Block::decode(&header, &bytes[BLOCK_HEADER_LEN..])?;
        assert_eq!(block.segments()?, vec![7; 1536]);
        block.items().map(|v| v.len())
    }

    #[test]
    fn block_round_trips_and_detects_every_flipped_byte() {
        let sealed = block();
        assert_eq!(read(&sealed.bytes).unwrap(), 2);
        for i in 0..sealed.bytes.len() {
            let mut bad = sealed.bytes.clone();
            bad[i] ^= 1;
            assert!(read(&bad).is_err(), "byte {i}");
        }
        assert!(read(&sealed.bytes[..sealed.bytes.len() - 1]).is_err());
    }

    #[test]
    fn trailer_round_trips_and_detects_every_flipped_byte() {
        let diff_id = Digest::of(b"t");
        let t = Trailer { blocks: 1, diff_id, tar_size: 2, entries: 3, content: 4, headers_sum: [9; 32] };
        let bytes = t.encode();
        assert_eq!(Trailer::decode(&bytes).unwrap(), t);
        let head = encode_header();
        check_header(&head).unwrap();
        for i in 0..TRAILER_LEN {
            let mut bad = bytes;
            bad[i] ^= 1;
            assert!(Trailer::decode(&bad).is_err(), "byte {i}");
        }
        for i in 0..HEADER_LEN {
            let mut bad = head;
            bad[i] ^= 1;
            assert!(check_header(&bad).is_err(), "byte {i}");
        }
    }
}
