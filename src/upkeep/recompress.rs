//! Compressing again, at leisure, what imports compressed in haste.
//!
//! A chunk's id does not depend on its codec, so nothing that refers to it changes: it is written once more, as an import
//! writes, in a new pack, and one transaction moves its row. No byte of a pack is written twice. Where it was stays as it
//! is for whoever may read there still, a mount or a reader, and is gc's to give back when nobody can.

use super::gc::chain_images;
use super::verify::Reader;
use crate::codec::chunk::{Compress, Encoder};
use crate::error::Result;
use crate::format::pack::{BLOCK, TableChunk, overhead};
use crate::observe::{Event, Observer, check};
use crate::snapshot::stale;
use crate::store::{Change, ChunkRow, Ingest, Moves, Outcome, Store};
use crate::sys::cache::ReadOnce;
use crate::sys::lock::Lock;
use crate::sys::publish::io_error;
use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// New bytes on disk that are committed at a time: what a run that is stopped has to do again.
const COMMIT: u64 = 256 << 20;

/// How to recompress. Start from `RecompressOptions::default()`.
#[derive(Clone, Debug)]
pub struct RecompressOptions {
    compress: Compress,
    threads: NonZeroUsize,
    patience: Duration,
}

impl Default for RecompressOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { compress: Compress::Zstd(9), threads, patience: Duration::from_secs(60) }
    }
}

impl RecompressOptions {
    /// The codec. Default zstd, level 9.
    #[must_use]
    pub fn compress(mut self, compress: Compress) -> Self {
        self.compress = compress;
        self
    }

    /// Threads at work. Default the CPUs there are.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// How long to wait for another process that collects garbage or repairs. Default one minute.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// What [`Store::recompress`] did. Sizes are bytes on disk, whole blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecompressReport {
    /// Chunks looked at.
    pub chunks: u64,
    /// Of them, those that took less than before and were stored again.
    pub moved: u64,
    /// What those took.
    pub before: u64,
    /// What they take now. The difference is free after [`gc`](Store::gc), but for what a mount shows.
    pub after: u64,
}

impl Store {
    /// Stores every chunk again that takes fewer blocks with the codec of `options`. Others may use the store meanwhile,
    /// and what is mounted stays mounted: it goes on reading the old copies, which [`gc`](Self::gc) leaves alone as long
    /// as they are shown. Until then the store is larger by what was written.
    ///
    /// # Errors
    /// `Corrupt` if a chunk or a pack's table is damaged: see [`repair`](Self::repair); `Busy` if garbage is collected
    /// for longer than the options' patience; `InvalidInput` for a level that does not exist; `Cancelled`; `Io`. What was
    /// moved until then stays moved.
    pub fn recompress(&self, options: &RecompressOptions, observer: &dyn Observer) -> Result<RecompressReport> {
        let _gc = Lock::acquire(&self.path().join("locks").join("gc"), options.patience, observer)?;
        let mut report = RecompressReport::default();
        let mut round = Round::begin(self, options)?;
        for (base, len) in self.with_index(|index| index.packs())? {
            let chunks = self.living(base, base.saturating_add(len))?;
            // A part of a pack at a time: a pack is a GiB.
            for part in chunks.chunks(PART) {
                round.part(base, part, observer)?;
                if round.written() >= COMMIT {
                    report.add(&round.commit(self)?);
                    round = Round::begin(self, options)?;
                }
            }
        }
        report.add(&round.commit(self)?);
        Ok(report)
    }

    /// A pack's chunks that are read where its table says, in the order of their addresses.
    fn living(&self, base: u64, end: u64) -> Result<Vec<TableChunk>> {
        let rows = self.with_index(|index| index.chunks_in(&(base / BLOCK..end / BLOCK)))?;
        let rows: HashMap<u32, ChunkRow> = rows.into_iter().map(|row| (row.location.block, row)).collect();
        let mut table = self.pack_table(base, end)?;
        table.retain(|c| rows.get(&c.location.block).is_some_and(|r| (r.id, r.location) == (c.id, c.location)));
        table.sort_unstable_by_key(|c| c.location.block);
        Ok(table)
    }
}

/// Chunks between two looks at how much was written.
const PART: usize = 512;

/// What is committed in one transaction.
struct Round<'a> {
    ingest: Ingest<'a>,
    options: &'a RecompressOptions,
    report: RecompressReport,
    /// Small files in the bundles that were moved.
    members: AtomicU64,
}

impl<'a> Round<'a> {
    fn begin(store: &'a Store, options: &'a RecompressOptions) -> Result<Self> {
        let ingest = Ingest::begin(store, options.compress, options.threads.get())?;
        Ok(Self { ingest, options, report: RecompressReport::default(), members: AtomicU64::new(0) })
    }

    fn written(&self) -> u64 {
        self.report.after
    }

    /// Reads, verifies and compresses chunks of the pack at `base` on all threads.
    fn part(&mut self, base: u64, chunks: &[TableChunk], observer: &dyn Observer) -> Result<()> {
        let path = self.ingest.store().pack_path(base);
        let file = ReadOnce::new(File::open(&path).map_err(|e| io_error("open", &path, e))?);
        let (next, sum) = (AtomicUsize::new(0), Mutex::new(RecompressReport::default()));
        let work = || {
            let (mut reader, mut encoder) = (Reader::new()?, Encoder::new(self.options.compress)?);
            let mut done = RecompressReport::default();
            while let Some(chunk) = chunks.get(next.fetch_add(1, Relaxed)) {
                check(observer)?;
                done.add(&self.chunk(file.file(), chunk, &mut reader, &mut encoder)?);
                observer.event(Event::Checked { bytes: chunk.location.stored_len.into() });
            }
            sum.lock().unwrap_or_else(|e| e.into_inner()).add(&done);
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.options.threads.get()).map(|_| scope.spawn(work)).collect();
            let ends = threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
            // All of them end before the first failure is told.
            ends.collect::<Vec<Result<()>>>().into_iter().collect::<Result<()>>()
        })
        .map_err(|e| e.subject(path.display()))?;
        self.report.add(&sum.into_inner().unwrap_or_else(|e| e.into_inner()));
        Ok(())
    }

    fn chunk(
        &self,
        file: &File,
        chunk: &TableChunk,
        reader: &mut Reader,
        encoder: &mut Encoder,
    ) -> Result<RecompressReport> {
        let before = chunk.location.blocks();
        let row = ChunkRow { n: 0, id: chunk.id, location: chunk.location, sum: None };
        let raw = reader.content(file, &row).map_err(|e| e.subject(format!("chunk {}", chunk.id)))?;
        let seen = RecompressReport { chunks: 1, ..RecompressReport::default() };
        Ok(match self.ingest.store_smaller(chunk, raw, encoder)? {
            Some(after) => {
                self.members.fetch_add(chunk.members.len() as u64, Relaxed);
                RecompressReport { moved: 1, before: before * BLOCK, after: after * BLOCK, ..seen }
            }
            None => seen,
        })
    }

    /// Moves the rows, and lets no new mount use an image that shows where chunks were. Nothing, if the new pack would take
    /// as much beside its chunks as they save.
    fn commit(self, store: &Store) -> Result<RecompressReport> {
        let RecompressReport { chunks, moved, before, after } = self.report;
        if before - after <= overhead(moved, self.members.into_inner()) {
            return Ok(RecompressReport { chunks, ..RecompressReport::default() });
        }
        self.ingest.commit(Outcome { moves: Moves::Sound, ..Outcome::default() }, |_| Ok(()))?;
        let retire =
            |_: &Change<'_>| chain_images(store)?.iter().try_for_each(|(_, chain)| stale::retire(store.path(), chain));
        store.with_index(|index| index.write(retire))?;
        Ok(self.report)
    }
}

impl RecompressReport {
    fn add(&mut self, other: &Self) {
        self.chunks += other.chunks;
        self.moved += other.moved;
        self.before += other.before;
        self.after += other.after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ContentId;
    use crate::store::ChunkReader;
    use crate::{Entry, EntryKind, GcOptions, ImportOptions, Limits, TarWriter, Time};

    /// Whoever looked where a chunk is before it was moved and its place given back still gets it.
    #[test]
    fn a_reader_looks_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("s")).unwrap();
        let content: Vec<u8> = (0..300_000u32).flat_map(|n| (n % 1000).to_le_bytes()).collect();
        let mut tar = TarWriter::new(Vec::new(), &Limits::default());
        let kind = EntryKind::File { size: content.len() as u64, sparse: None };
        let (path, mtime) = (b"f".to_vec(), Time::default());
        tar.entry(&Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: vec![] }).unwrap();
        tar.content(&content).unwrap();
        let options = ImportOptions::default().compress(Compress::Raw);
        store.import_layer(&tar.finish().unwrap()[..], &options, &()).unwrap();
        let rows = store.with_index(|index| index.chunks_after(0, 100)).unwrap();
        let mut reader = ChunkReader::new(&store).unwrap();

        let report = store.recompress(&RecompressOptions::default(), &()).unwrap();
        assert_eq!(report.moved, rows.len() as u64);
        let mut raw = Vec::new();
        let plan = store.gc_plan(&GcOptions::default(), &()).unwrap();
        store.gc(&plan, &GcOptions::default(), &()).unwrap();
        for row in rows {
            let now = reader.locate(&row.id).unwrap();
            assert_ne!(now, row.location);
            reader.read_into(&row.id, &row.location, &mut raw).unwrap();
            assert_eq!(ContentId::of(&raw), row.id);
        }
    }
}
