//! Chunks: every one read, decoded, and compared with its id; its padding with zeros.

use super::{Check, DamageKind, words};
use crate::codec::chunk::Decoder;
use crate::error::{Error, Result};
use crate::format::pack::BLOCK;
use crate::id::ContentId;
use crate::observe::{Event, check};
use crate::store::ChunkRow;
use crate::sys::publish::io_error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Chunks that a thread takes at a time; neighbours, so that it reads ahead.
const RUN: usize = 64;

/// What is wrong with a chunk.
type Bad = (ChunkRow, String);

/// What one thread found.
#[derive(Default)]
struct Share {
    bad: Vec<Bad>,
    read: u64,
    bytes: u64,
}

impl Check<'_> {
    /// Reads chunks of one pack, told by its base and length.
    pub(super) fn chunks(&mut self, pack: (u64, u64), rows: &[ChunkRow]) -> Result<()> {
        let path = &self.store.pack_path(pack.0);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) => {
                let number = self.found(DamageKind::Pack, path, &io_error("open", path, e));
                self.of_packs.insert(number, pack);
                rows.iter().for_each(|row| self.hurt.entry(row.id).or_default().push(number));
                return Ok(());
            }
        };
        let runs: Vec<&[ChunkRow]> = rows.chunks(RUN).collect();
        let next = AtomicUsize::new(0);
        let this = &*self;
        let shares: Vec<Result<Share>> = std::thread::scope(|scope| {
            let threads = this.options.threads.get().min(runs.len());
            let work = || this.share(&file, &runs, &next);
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let panicked = || Err(Error::io("check chunks", std::io::Error::other("a thread panicked")));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
        });
        let mut bad: Vec<Bad> = Vec::new();
        for share in shares {
            let share = share?;
            self.report.counts.read += share.read;
            self.report.counts.bytes += share.bytes;
            bad.extend(share.bad);
        }
        bad.sort_unstable_by_key(|(row, _)| row.location.block);
        for (row, what) in bad {
            let number = self.found_of_chunk(DamageKind::Chunk, path, &row.id, what);
            self.report.findings[number].offset = Some(u64::from(row.location.block) * BLOCK);
        }
        Ok(())
    }

    fn share(&self, file: &File, runs: &[&[ChunkRow]], next: &AtomicUsize) -> Result<Share> {
        let mut share = Share::default();
        let mut reader = Reader { decoder: Decoder::new()?, blocks: vec![], stored: vec![], raw: vec![] };
        while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            check(self.observer)?;
            let before = share.bytes;
            for row in *run {
                match reader.check(file, row) {
                    Ok(()) => share.read += 1,
                    Err(e) => share.bad.push((*row, words(&e))),
                }
                share.bytes += row.location.blocks() * BLOCK;
            }
            self.observer.event(Event::Checked { bytes: share.bytes - before });
        }
        Ok(share)
    }
}

/// Reads chunks one after the other, with the same memory.
struct Reader {
    decoder: Decoder,
    blocks: Vec<u8>,
    stored: Vec<u8>,
    raw: Vec<u8>,
}

impl Reader {
    fn check(&mut self, file: &File, row: &ChunkRow) -> Result<()> {
        let location = &row.location;
        let start = u64::from(location.block) * BLOCK;
        self.blocks.resize((location.blocks() * BLOCK) as usize, 0);
        file.read_exact_at(&mut self.blocks, start).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::corrupt("the pack ends inside the chunk"),
            _ => Error::io("read", e),
        })?;
        let from = (location.address() - start) as usize;
        let to = from + location.stored_len as usize;
        self.stored.clear();
        self.stored.extend_from_slice(&self.blocks[from..to]);
        self.decoder.decode_into(location.codec, &mut self.stored, location.raw_len, &mut self.raw)?;
        let actual = ContentId::of(&self.raw);
        if actual != row.id {
            return Err(Error::corrupt("chunk bytes do not match their id").expected(row.id).actual(actual));
        }
        match self.blocks[..from].iter().chain(&self.blocks[to..]).all(|b| *b == 0) {
            true => Ok(()),
            false => Err(Error::corrupt("a chunk's padding is not zero")),
        }
    }
}
