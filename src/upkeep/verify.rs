//! Chunks: every one read, decoded, and compared with its id; its stored bytes with their sum, its padding with zeros. On
//! several threads. And the digest of a file.

use crate::codec::chunk::Decoder;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::format::pack::{self, BLOCK, Location};
use crate::id::ContentId;
use crate::observe::{Event, Observer, check};
use crate::store::ChunkRow;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Chunks that a thread takes at a time; neighbours, so that it reads ahead.
const RUN: usize = 64;
/// Bytes of a file read at a time.
const PIECE: usize = 256 << 10;

/// What became of the chunks of a pack.
#[derive(Default)]
pub(super) struct Verified {
    /// Those that are not what they should be, by address.
    pub(super) bad: Vec<(ChunkRow, Error)>,
    /// How many are.
    pub(super) read: u64,
    /// Bytes that were read, padding included.
    pub(super) bytes: u64,
}

/// Reads chunks of one pack.
///
/// # Errors
/// `Cancelled`; that a chunk cannot be read is part of the result.
pub(super) fn verify(
    file: &File,
    rows: &[ChunkRow],
    threads: NonZeroUsize,
    observer: &dyn Observer,
) -> Result<Verified> {
    let runs: Vec<&[ChunkRow]> = rows.chunks(RUN).collect();
    let next = AtomicUsize::new(0);
    let shares: Vec<Result<Verified>> = std::thread::scope(|scope| {
        let threads = threads.get().min(runs.len());
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| share(file, &runs, &next, observer))).collect();
        let panicked = || Err(Error::io("check chunks", std::io::Error::other("a thread panicked")));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
    });
    let mut all = Verified::default();
    for share in shares {
        let share = share?;
        all.read += share.read;
        all.bytes += share.bytes;
        all.bad.extend(share.bad);
    }
    all.bad.sort_unstable_by_key(|(row, _)| row.location.block);
    Ok(all)
}

fn share(file: &File, runs: &[&[ChunkRow]], next: &AtomicUsize, observer: &dyn Observer) -> Result<Verified> {
    let mut share = Verified::default();
    let mut reader = Reader::new()?;
    while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
        check(observer)?;
        let before = share.bytes;
        for row in *run {
            match reader.check(file, row) {
                Ok(_) => share.read += 1,
                Err(e) => share.bad.push((*row, e)),
            }
            share.bytes += row.location.blocks() * BLOCK;
        }
        observer.event(Event::Checked { bytes: share.bytes - before });
    }
    Ok(share)
}

/// SHA-256 and length of all that `source` gives.
///
/// # Errors
/// As [`for_each_piece`].
pub(super) fn sha256(source: impl Read, observer: &dyn Observer) -> Result<(Digest, u64)> {
    let mut hasher = Hasher::default();
    for_each_piece(source, observer, |piece| hasher.update(piece))?;
    let len = hasher.len();
    Ok((hasher.finish(), len))
}

/// Reads all that `source` gives.
///
/// # Errors
/// `Cancelled`; what `source` returns.
pub(super) fn for_each_piece(
    mut source: impl Read,
    observer: &dyn Observer,
    mut take: impl FnMut(&[u8]),
) -> Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        check(observer)?;
        match source.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => take(&piece[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::from_io("read", e)),
        }
    }
}

/// Reads chunks one after the other, with the same memory.
pub(super) struct Reader {
    decoder: Decoder,
    blocks: Vec<u8>,
    stored: Vec<u8>,
    raw: Vec<u8>,
}

impl Reader {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { decoder: Decoder::new()?, blocks: vec![], stored: vec![], raw: vec![] })
    }

    /// The chunk's content, from the pack's file whatever else of that is damaged.
    ///
    /// # Errors
    /// `Corrupt` if it is not what its id says; `Io` if that cannot be told.
    pub(super) fn content(&mut self, file: &File, row: &ChunkRow) -> Result<&[u8]> {
        let location = &row.location;
        let start = u64::from(location.block) * BLOCK;
        self.blocks.resize((location.blocks() * BLOCK) as usize, 0);
        file.read_exact_at(&mut self.blocks, start).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::corrupt("the pack ends inside the chunk"),
            _ => Error::io("read", e),
        })?;
        self.stored.clear();
        self.stored.extend_from_slice(&self.blocks[stored_range(location)]);
        self.decoder.decode_into(location.codec, &mut self.stored, location.raw_len, &mut self.raw)?;
        let actual = ContentId::of(&self.raw);
        if actual != row.id {
            return Err(Error::corrupt("chunk bytes do not match their id").expected(row.id).actual(actual));
        }
        Ok(&self.raw)
    }

    /// As [`content`](Self::content), and every byte in the chunk's blocks is as it was written.
    ///
    /// # Errors
    /// As [`content`](Self::content).
    pub(super) fn check(&mut self, file: &File, row: &ChunkRow) -> Result<&[u8]> {
        self.content(file, row)?;
        let range = stored_range(&row.location);
        if row.sum.is_some_and(|sum| sum != pack::sum(&self.blocks[range.clone()])) {
            return Err(Error::corrupt("a chunk's stored bytes were changed, though they still give its content"));
        }
        match self.blocks[..range.start].iter().chain(&self.blocks[range.end..]).all(|b| *b == 0) {
            true => Ok(&self.raw),
            false => Err(Error::corrupt("a chunk's padding is not zero")),
        }
    }
}

/// Where a chunk's stored bytes are in its blocks.
fn stored_range(location: &Location) -> Range<usize> {
    let from = (location.address() - u64::from(location.block) * BLOCK) as usize;
    from..from + location.stored_len as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::chunk::{Compress, Encoder};

    /// Some bytes can change and the codec gives the same content: their sum finds them, and the content is served.
    #[test]
    fn every_stored_byte_counts() {
        let text: String = (0..1500).map(|n| format!("line {} of {}\n", n * n % 97, n % 13)).collect();
        let file = tempfile::tempfile().unwrap();
        let mut harmless = 0;
        for compress in [Compress::Zstd(1), Compress::Zstd(9), Compress::Lz4, Compress::Raw] {
            let mut encoder = Encoder::new(compress).unwrap();
            let (codec, stored) = encoder.encode(text.as_bytes(), true).unwrap();
            let location = Location { block: 0, stored_len: stored.len() as u32, raw_len: text.len() as u32, codec };
            let row = ChunkRow { n: 0, id: ContentId::of(text.as_bytes()), location, sum: Some(pack::sum(stored)) };
            let mut blocks = vec![0; (location.blocks() * BLOCK) as usize];
            blocks[stored_range(&location)].copy_from_slice(stored);
            file.write_all_at(&blocks, 0).unwrap();
            let mut reader = Reader::new().unwrap();
            reader.check(&file, &row).unwrap();
            for at in 0..blocks.len() {
                file.write_all_at(&[blocks[at] ^ 0x40], at as u64).unwrap();
                assert!(reader.check(&file, &row).is_err(), "{codec:?}, byte {at}");
                if stored_range(&location).contains(&at)
                    && let Ok(content) = reader.content(&file, &row)
                {
                    assert_eq!(content, text.as_bytes());
                    harmless += 1;
                }
                file.write_all_at(&blocks[at..=at], at as u64).unwrap();
            }
            file.set_len(0).unwrap();
        }
        assert!(harmless > 0, "the sums were not tried");
    }
}
