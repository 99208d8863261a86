//! Writing packs: chunks in, sealed files out.

use super::open::Store;
use crate::error::{Error, Result};
use crate::format::pack::{
    self, BLOCK, CHUNK_LEN, Codec, FOOTER_LEN, Footer, Location, MEMBER_LEN, Member, TableChunk,
};
use crate::id::ContentId;
use crate::sys::publish::Draft;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a table read at a time to check it: less than clearing memory for all of it costs.
const TABLE_PIECE: usize = 256 << 10;
/// Addresses reserved for a pack before its length is known; it has no more.
pub(crate) const RESERVE: u64 = 1 << 30;
/// Bytes gathered before a write: large enough to make it cheap, small enough to stay in a CPU's cache.
const WRITE: usize = 1 << 20;
/// More chunks and members than this make the next pack, so that a table stays a few MiB.
const TABLE_MAX: usize = 128 << 10;

/// A pack being written.
pub(super) struct PackWriter {
    draft: Draft,
    base: u64,
    limit: u64,
    /// Bytes waiting to be written; the first of them belongs at `written`.
    buffer: Vec<u8>,
    written: u64,
    /// What lies before was handed to a sync.
    synced: u64,
    table: Vec<TableChunk>,
    members: usize,
}

impl PackWriter {
    /// Begins a pack in `dir` that owns the addresses from `base` on.
    pub(super) fn create(dir: &Path, base: u64) -> Result<Self> {
        let draft = Draft::create(dir.join(pack_name(base)))?;
        let mut buffer = Vec::with_capacity(WRITE + (1 << 20));
        buffer.extend_from_slice(&pack::encode_header(base));
        buffer.resize(BLOCK as usize, 0);
        Ok(Self { draft, base, limit: base + RESERVE, buffer, written: base, synced: base, table: vec![], members: 0 })
    }

    fn next(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Whether a chunk of `stored` bytes and its table row still fit.
    pub(super) fn has_room(&self, stored: usize, members: usize) -> bool {
        let table = (self.table.len() + 1) * CHUNK_LEN + (self.members + members) * MEMBER_LEN + FOOTER_LEN;
        let end = self.next() + stored as u64 + table as u64 + 3 * BLOCK;
        end <= self.limit && self.table.len() + self.members < TABLE_MAX
    }

    /// Adds a chunk. The caller has asked [`has_room`](Self::has_room).
    pub(super) fn append(&mut self, chunk: NewChunk<'_>) -> Result<()> {
        let stored_len = chunk.stored.len();
        let location = Location {
            block: (self.next() / BLOCK) as u32,
            stored_len: stored_len as u32,
            raw_len: chunk.raw_len,
            codec: chunk.codec,
        };
        let padding = stored_len.next_multiple_of(BLOCK as usize) - stored_len;
        let start = self.buffer.len();
        if chunk.codec == Codec::Raw {
            self.buffer.extend_from_slice(chunk.stored);
            self.buffer.resize(start + stored_len + padding, 0);
        } else {
            self.buffer.resize(start + padding, 0);
            self.buffer.extend_from_slice(chunk.stored);
        }
        self.members += chunk.members.len();
        let sum = Some(chunk.sum);
        self.table.push(TableChunk { id: chunk.id, location, sum, members: chunk.members });
        if self.buffer.len() >= WRITE { self.flush() } else { Ok(()) }
    }

    /// Bytes written since a sync began.
    pub(super) fn unsynced(&self) -> u64 {
        self.written - self.synced
    }

    /// The file, for a sync that begins now, and what of it was written since the one before.
    pub(super) fn synced_soon(&mut self) -> Result<(File, Range<u64>)> {
        let range = self.synced..self.written;
        self.synced = self.written;
        Ok((self.draft.handle()?, range))
    }

    fn flush(&mut self) -> Result<()> {
        self.draft.write_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes table and footer and reads them back. The file is complete but neither synced nor published.
    pub(super) fn seal(mut self) -> Result<SealedPack> {
        let table_address = self.next();
        let (table, footer) = pack::encode_table(self.base, table_address, &self.table);
        self.buffer.extend_from_slice(&table);
        // The footer ends the pack's last block.
        let end = (self.next() + FOOTER_LEN as u64).next_multiple_of(BLOCK);
        self.buffer.resize((end - self.written) as usize - FOOTER_LEN, 0);
        self.buffer.extend_from_slice(&footer.encode());
        self.flush()?;
        let mut tail = [0; FOOTER_LEN];
        self.draft.read_at(&mut tail, end - FOOTER_LEN as u64)?;
        let mut back = vec![0; table.len()];
        self.draft.read_at(&mut back, table_address)?;
        if pack::decode_table(&back, &Footer::decode(&tail, end)?)? != self.table {
            return Err(Error::corrupt("a pack's table reads back otherwise than written"));
        }
        Ok(SealedPack { draft: self.draft, base: self.base, len: end - self.base, footer })
    }
}

/// A chunk to append.
pub(super) struct NewChunk<'a> {
    id: ContentId,
    codec: Codec,
    pub(super) stored: &'a [u8],
    sum: u32,
    raw_len: u32,
    pub(super) members: Vec<Member>,
}

impl<'a> NewChunk<'a> {
    /// The chunk of this content, as an encoder stores it.
    pub(super) fn new(id: ContentId, raw: &[u8], (codec, stored): (Codec, &'a [u8]), members: Vec<Member>) -> Self {
        Self { id, codec, stored, sum: pack::sum(stored), raw_len: raw.len() as u32, members }
    }
}

/// A complete pack under its temporary name.
pub(super) struct SealedPack {
    pub(super) draft: Draft,
    pub(super) base: u64,
    pub(super) len: u64,
    footer: Footer,
}

impl SealedPack {
    /// The pack's chunks, from its file: a large import has many packs, and their tables are not to add up in memory.
    pub(super) fn table(&self) -> Result<Vec<TableChunk>> {
        let mut table = vec![0; self.footer.table_len()];
        self.draft.read_at(&mut table, self.footer.table_address)?;
        pack::decode_table(&table, &self.footer)
    }
}

impl Store {
    /// The table of the pack that owns these addresses, whose header, footer and checksums are right.
    ///
    /// # Errors
    /// `Corrupt`, naming the file, if it is missing, of another length, or damaged.
    pub(crate) fn pack_table(&self, base: u64, end: u64) -> Result<Vec<TableChunk>> {
        let path = self.pack_path(base);
        let read = || {
            let (file, footer) = read_footer(&path, base, end)?;
            let mut table = vec![0; footer.table_len()];
            file.read_exact_at(&mut table, footer.table_address).map_err(|e| Error::io("read", e))?;
            pack::decode_table(&table, &footer)
        };
        read().map_err(|e| e.subject(path.display()))
    }

    /// Checks what [`pack_table`](Self::pack_table) does, but for what a table says that is as it was written.
    ///
    /// # Errors
    /// As [`pack_table`](Self::pack_table).
    pub(crate) fn check_pack(&self, base: u64, end: u64) -> Result<()> {
        let path = self.pack_path(base);
        let check = || {
            let (file, footer) = read_footer(&path, base, end)?;
            let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; footer.table_len().min(TABLE_PIECE)]);
            let (mut at, table_end) = (footer.table_address, footer.table_address + footer.table_len() as u64);
            while at < table_end {
                let piece = &mut piece[..(table_end - at).min(TABLE_PIECE as u64) as usize];
                file.read_exact_at(piece, at).map_err(|e| Error::io("read", e))?;
                hasher.update(piece);
                at += piece.len() as u64;
            }
            footer.check_table(&hasher.finalize())
        };
        check().map_err(|e| e.subject(path.display()))
    }
}

/// A sealed pack whose header and footer are right, and whose table lies within it.
fn read_footer(path: &Path, base: u64, end: u64) -> Result<(File, Footer)> {
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::corrupt("pack file is missing"),
        _ => Error::io("open", e),
    })?;
    let len = file.metadata().map_err(|e| Error::io("stat", e))?.len();
    if len != end {
        return Err(Error::corrupt("pack has another length").expected(end).actual(len));
    }
    let short = || Error::corrupt("pack is too short").actual(end);
    let read = |at: u64, bytes: &mut [u8]| match at.checked_add(bytes.len() as u64).is_some_and(|e| e <= end) {
        true => file.read_exact_at(bytes, at).map_err(|e| Error::io("read", e)),
        false => Err(short()),
    };
    let (mut header, mut footer) = ([0; pack::HEADER_LEN], [0; FOOTER_LEN]);
    read(base, &mut header)?;
    pack::check_header(&header, base)?;
    read(end.checked_sub(FOOTER_LEN as u64).ok_or_else(short)?, &mut footer)?;
    let footer = Footer::decode(&footer, end)?;
    match footer.table_address.checked_add(footer.table_len() as u64).is_some_and(|e| e <= end) {
        true => Ok((file, footer)),
        false => Err(short()),
    }
}

/// A pack's file name: its base address in hex, as many digits as 44 bits need.
pub(super) fn pack_name(base: u64) -> PathBuf {
    format!("{base:011x}.pack").into()
}

/// The base address of the pack whose file has this name; `None` for what was not put there by a store.
pub(crate) fn pack_base(name: &OsStr) -> Option<u64> {
    let base = u64::from_str_radix(name.to_str()?.strip_suffix(".pack")?, 16).ok()?;
    (pack_name(base) == Path::new(name)).then_some(base)
}
