//! Which chunks a layer record refers to, without decoding its entries.
//!
//! What the store needs of a record: gc marks by it, and an import finds what it counts on. Every byte is checked on the
//! way, since a chunk that is overlooked is a chunk lost.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::record::{self, BLOCK_HEADER_LEN, BlockHeader, HEADER_LEN, TRAILER_LEN, Trailer};
use crate::id::ContentId;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Calls `visit` with every chunk the record of `diff_id` refers to; with some several times.
///
/// # Errors
/// `Corrupt` if any byte of the record is damaged; and what `visit` returns.
pub(crate) fn chunk_refs(file: &File, diff_id: &Digest, mut visit: impl FnMut(ContentId) -> Result<()>) -> Result<()> {
    let len = file.metadata().map_err(|e| Error::io("stat a layer record", e))?.len();
    let end = len.checked_sub(TRAILER_LEN as u64).filter(|&end| end >= HEADER_LEN as u64);
    let end = end.ok_or_else(|| Error::corrupt("layer record is too short").actual(len))?;
    let mut buffer = Vec::new();
    let trailer = Trailer::decode(read(file, end, TRAILER_LEN, &mut buffer)?)?;
    if trailer.diff_id != *diff_id {
        let e = Error::corrupt("layer record is of another layer");
        return Err(e.expected(diff_id).actual(trailer.diff_id));
    }
    record::check_header(read(file, 0, HEADER_LEN, &mut buffer)?)?;
    let (mut at, mut headers, mut blocks) = (HEADER_LEN as u64, blake3::Hasher::new(), 0);
    while at < end {
        if end - at < BLOCK_HEADER_LEN as u64 {
            return Err(Error::corrupt("layer record ends inside a block"));
        }
        let head = read(file, at, BLOCK_HEADER_LEN, &mut buffer)?;
        headers.update(head);
        blocks += 1;
        let header = BlockHeader::decode(head)?;
        at += BLOCK_HEADER_LEN as u64;
        if end - at < header.payload_len() as u64 {
            return Err(Error::corrupt("layer record ends inside a block"));
        }
        header.chunks(read(file, at, header.payload_len(), &mut buffer)?)?.try_for_each(&mut visit)?;
        at += header.payload_len() as u64;
    }
    if *headers.finalize().as_bytes() == trailer.headers_sum && blocks == trailer.blocks {
        return Ok(());
    }
    Err(Error::corrupt("blocks of a layer record were lost, added or moved"))
}

fn read<'b>(file: &File, at: u64, len: usize, buffer: &'b mut Vec<u8>) -> Result<&'b [u8]> {
    buffer.resize(len.max(buffer.len()), 0);
    let bytes = &mut buffer[..len];
    file.read_exact_at(bytes, at).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::corrupt("layer record ends too early"),
        _ => Error::io("read a layer record", e),
    })?;
    Ok(bytes)
}
