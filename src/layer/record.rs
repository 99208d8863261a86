//! Layer record files: blocks appended as they are complete, and read back one at a time.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::item::Item;
use crate::format::record::{
    self, BLOCK_HEADER_LEN, Block, BlockHeader, HEADER_LEN, SealedBlock, TRAILER_LEN, Trailer,
};
use crate::sys::publish::{Draft, io_error};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Writes a record.
pub(super) struct RecordWriter {
    draft: Draft,
    headers: blake3::Hasher,
    blocks: u32,
}

impl RecordWriter {
    pub(super) fn create(draft: Draft) -> Result<Self> {
        draft.append(&record::encode_header())?;
        Ok(Self { draft, headers: blake3::Hasher::new(), blocks: 0 })
    }

    pub(super) fn append(&mut self, block: &SealedBlock) -> Result<()> {
        self.headers.update(&block.bytes[..BLOCK_HEADER_LEN]);
        self.blocks += 1;
        self.draft.append(&block.bytes)
    }

    /// Ends the record; the draft is complete but neither synced nor published.
    pub(super) fn finish(self, diff_id: Digest, tar_size: u64, entries: u64, content: u64) -> Result<Draft> {
        let headers_sum = *self.headers.finalize().as_bytes();
        let trailer = Trailer { blocks: self.blocks, diff_id, tar_size, entries, content, headers_sum };
        self.draft.append(&trailer.encode())?;
        Ok(self.draft)
    }
}

/// Reads a record. Every byte is checked when [`next_block`](Self::next_block) has returned `None` and all blocks were decoded.
pub(super) struct RecordReader {
    file: File,
    path: Arc<Path>,
    at: u64,
    end: u64,
    headers: blake3::Hasher,
    blocks: u32,
    pub(super) trailer: Trailer,
}

impl RecordReader {
    pub(super) fn open(path: &Path, diff_id: &Digest) -> Result<Self> {
        let named = |e: Error| e.subject(path.display());
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => named(Error::corrupt("layer record is missing")),
            _ => io_error("open", path, e),
        })?;
        let len = file.metadata().map_err(|e| io_error("stat", path, e))?.len();
        let end = len.checked_sub(TRAILER_LEN as u64).filter(|&end| end >= HEADER_LEN as u64);
        let end = end.ok_or_else(|| named(Error::corrupt("layer record is too short").actual(len)))?;
        let trailer = read_at(&file, end, TRAILER_LEN).and_then(|b| Trailer::decode(&b)).map_err(named)?;
        let headers = blake3::Hasher::new();
        let mut reader = Self { file, path: path.into(), at: 0, end, headers, blocks: 0, trailer };
        record::check_header(&reader.take(HEADER_LEN)?).map_err(named)?;
        if reader.trailer.diff_id != *diff_id {
            let e = Error::corrupt("layer record is of another layer");
            return Err(named(e.expected(diff_id).actual(reader.trailer.diff_id)));
        }
        Ok(reader)
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>> {
        if self.end - self.at < len as u64 {
            return Err(Error::corrupt("layer record ends inside a block"));
        }
        let bytes = read_at(&self.file, self.at, len)?;
        self.at += len as u64;
        Ok(bytes)
    }

    /// The next block as it stands in the file, or `None` after the last.
    pub(super) fn next_block(&mut self) -> Result<Option<StoredBlock>> {
        self.read_block().map_err(|e| e.subject(self.path.display()))
    }

    fn read_block(&mut self) -> Result<Option<StoredBlock>> {
        if self.at == self.end {
            let sum = *self.headers.finalize().as_bytes();
            if sum != self.trailer.headers_sum || self.blocks != self.trailer.blocks {
                return Err(Error::corrupt("blocks of a layer record were lost, added or moved"));
            }
            return Ok(None);
        }
        let head = self.take(BLOCK_HEADER_LEN)?;
        self.headers.update(&head);
        self.blocks += 1;
        let header = BlockHeader::decode(&head)?;
        let payload = self.take(header.payload_len())?;
        Ok(Some(StoredBlock { header, payload, path: self.path.clone() }))
    }
}

/// A block that was read and not yet checked; that can be done on any thread.
pub(super) struct StoredBlock {
    header: BlockHeader,
    payload: Vec<u8>,
    path: Arc<Path>,
}

impl StoredBlock {
    /// Its items, in order.
    pub(super) fn items(&self) -> Result<Vec<Item>> {
        self.decode(|block| block.items())
    }

    /// Its items, and the verbatim bytes that go with them.
    pub(super) fn items_and_segments(&self) -> Result<(Vec<Item>, Vec<u8>)> {
        self.decode(|block| Ok((block.items()?, block.segments()?)))
    }

    fn decode<T>(&self, take: impl Fn(&Block<'_>) -> Result<T>) -> Result<T> {
        let block = Block::decode(&self.header, &self.payload);
        block.and_then(|block| take(&block)).map_err(|e| e.subject(self.path.display()))
    }
}

fn read_at(file: &File, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).map_err(|e| Error::io("read a layer record", e))?;
    Ok(bytes)
}
