//! Adding chunks: hash, look up, compress, append. Shared by all layers of one import.

use super::index::{Change, Index, MemberPlace};
use super::open::Store;
use super::packs::{NewChunk, PackWriter, RESERVE, SealedPack};
use super::pending::{Bundled, Claimed, Found};
use super::session::{Outcome, Session, aborted};
use crate::codec::chunk::{Compress, Encoder};
use crate::error::{Error, Result};
use crate::format::pack::{BLOCK, Member, TableChunk};
use crate::id::ContentId;
use crate::sys::cache::let_go;
use crate::sys::publish::Draft;
use crossbeam_channel::{Receiver, Sender};
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// A chunk whose id a worker is still to find out.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) number: u64,
    id: OnceLock<ContentId>,
}

impl Slot {
    pub(super) fn new(number: u64) -> Arc<Self> {
        Arc::new(Self { number, id: OnceLock::new() })
    }

    pub(super) fn set(&self, id: ContentId) {
        // A slot is filled by the one worker that has its job.
        let _ = self.id.set(id);
    }

    pub(crate) fn id(&self) -> Option<ContentId> {
        self.id.get().copied()
    }
}

/// Workers from which on some may be idle while a layer is inflated, hashed and taken apart, which takes three threads.
const AT_LEISURE: usize = 6;
/// Bytes of a pack that are brought to disk at a time.
const SYNC: u64 = 64 << 20;

/// A pack, and what of it was written since the last sync.
type Written = (File, Range<u64>);

struct Job {
    slot: Arc<Slot>,
    raw: Vec<u8>,
    members: Vec<Member>,
}

/// Bytes this import brought and what became of them.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) chunks_new: AtomicU64,
    pub(crate) raw_new: AtomicU64,
    pub(crate) stored_new: AtomicU64,
}

/// An import in progress: takes chunks from any thread and compresses them on workers of its own.
pub(crate) struct Ingest<'s> {
    store: &'s Store,
    compress: Compress,
    /// There are too few CPUs for anything to be done at leisure.
    crowded: bool,
    jobs: (Sender<Job>, Receiver<Job>),
    /// Packs whose written bytes may go to disk already.
    to_sync: (Sender<Written>, Receiver<Written>),
    packs: Mutex<Packs>,
    /// Chunks this import has stored or is about to.
    claimed: Mutex<Claimed>,
    /// Small files this import has bundled.
    bundled: Mutex<Bundled>,
    slots: AtomicU64,
    drafts: AtomicU64,
    /// Chunks that the store has and that are damaged: they are stored again, and nothing new refers to the old copies.
    distrusted: HashSet<ContentId>,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    progress: (Mutex<()>, Condvar),
    pub(crate) counters: Counters,
    /// Last, so that drafts have given their space back before the session ends in the database.
    session: Session<'s>,
}

#[derive(Default)]
struct Packs {
    current: Option<PackWriter>,
    sealed: Vec<SealedPack>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock means a thread panicked; the scope that joins it passes the panic on.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'s> Ingest<'s> {
    pub(crate) fn begin(store: &'s Store, compress: Compress, workers: usize) -> Result<Self> {
        let session = Session::begin(store)?;
        Ok(Self {
            store,
            claimed: Mutex::new(Claimed::new(session.path.clone())),
            bundled: Mutex::new(Bundled::new(session.path.clone())),
            session,
            compress: compress.validate()?,
            crowded: workers < AT_LEISURE,
            jobs: crossbeam_channel::bounded(2 * workers),
            to_sync: crossbeam_channel::bounded(1),
            packs: Mutex::default(),
            slots: AtomicU64::new(0),
            drafts: AtomicU64::new(0),
            distrusted: HashSet::new(),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            progress: Default::default(),
            counters: Counters::default(),
        })
    }

    /// Takes the copies that the store has of these chunks for worthless. The new ones take their places if the outcome
    /// says that it mends.
    #[must_use]
    pub(crate) fn distrusting(mut self, chunks: HashSet<ContentId>) -> Self {
        self.distrusted = chunks;
        self
    }

    /// Stores a chunk, whether or not the store has one of its content.
    pub(crate) fn store_again(
        &self,
        id: ContentId,
        raw: &[u8],
        members: Vec<Member>,
        encoder: &mut Encoder,
    ) -> Result<()> {
        let stored = encoder.encode(raw, self.hurry())?;
        self.append(NewChunk::new(id, raw, stored, members))
    }

    /// Stores a chunk that the store has again if that takes fewer blocks; returns how many it takes then.
    pub(crate) fn store_smaller(&self, chunk: &TableChunk, raw: &[u8], encoder: &mut Encoder) -> Result<Option<u64>> {
        let stored = encoder.encode(raw, false)?;
        let blocks = (stored.1.len() as u64).div_ceil(BLOCK);
        if blocks >= chunk.location.blocks() {
            return Ok(None);
        }
        self.append(NewChunk::new(chunk.id, raw, stored, chunk.members.clone()))?;
        Ok(Some(blocks))
    }

    pub(crate) fn store(&self) -> &'s Store {
        self.store
    }

    /// A new file for this import's results.
    pub(crate) fn draft(&self) -> Result<Draft> {
        let n = self.drafts.fetch_add(1, Relaxed);
        Draft::create(self.draft_dir().join(format!("draft-{n}")))
    }

    /// The directory of this import's drafts, which goes when it ends.
    pub(crate) fn draft_dir(&self) -> PathBuf {
        self.session.path.clone()
    }

    /// Runs `work` with workers beside it. The first failure of any of them is the result.
    pub(crate) fn run<T: Send>(&self, workers: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        let out = std::thread::scope(|scope| {
            let spawn = |work: fn(&Self, &Receiver<()>) -> Result<()>| {
                let stopped = stopped.clone();
                scope.spawn(move || {
                    let _guard = self.guard();
                    work(self, &stopped).unwrap_or_else(|e| self.fail(e));
                });
            };
            (0..workers).for_each(|_| spawn(Self::work));
            spawn(Self::sync_early);
            let out = work();
            drop(stop);
            out
        });
        match (lock(&self.failure).take(), out) {
            (Some(e), _) => Err(e),
            (None, out) => out,
        }
    }

    /// Held by every thread that others may wait for.
    pub(crate) fn guard(&self) -> PanicGuard<'_, 's> {
        PanicGuard(self)
    }

    /// Notes why the import fails; only the first reason is kept.
    pub(crate) fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Relaxed);
        self.notify();
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.failed.load(Relaxed) { Err(aborted()) } else { Ok(()) }
    }

    fn notify(&self) {
        drop(lock(&self.progress.0));
        self.progress.1.notify_all();
    }

    /// A slot for a chunk that will be submitted.
    pub(crate) fn slot(&self) -> Arc<Slot> {
        Slot::new(self.slots.fetch_add(1, Relaxed))
    }

    /// Hands a chunk, or a bundle with its members, to the workers; waits while they are behind.
    pub(crate) fn submit(&self, slot: Arc<Slot>, raw: Vec<u8>, members: Vec<Member>) -> Result<()> {
        let mut job = Job { slot, raw, members };
        loop {
            self.check()?;
            match self.jobs.0.send_timeout(job, std::time::Duration::from_millis(100)) {
                Ok(()) => return Ok(()),
                Err(e) => job = e.into_inner(),
            }
        }
    }

    /// Waits until `done`, which is asked again whenever a chunk was finished.
    pub(crate) fn wait(&self, done: impl Fn() -> bool) -> Result<()> {
        let mut guard = lock(&self.progress.0);
        while !done() {
            self.check()?;
            guard = self.progress.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Where a small file with this content is, in the store or in a bundle of this import.
    pub(crate) fn find_member(&self, id: &ContentId, index: &IndexReader<'_>) -> Result<Option<Found>> {
        if let Some(found) = lock(&self.bundled).find(id)? {
            return Ok(Some(found));
        }
        let place = index.member(id)?.filter(|place| !self.distrusted.contains(&place.chunk));
        Ok(place.map(|p| Found::Stored { chunk: p.chunk, offset: p.offset }))
    }

    /// Tells the other layers of this import that a small file is being bundled.
    pub(crate) fn note_member(&self, id: ContentId, bundle: &Arc<Slot>, offset: u32) -> Result<()> {
        lock(&self.bundled).note(id, bundle, offset)
    }

    /// A connection with one steady view of the database, for a thread's look-ups.
    pub(crate) fn reader(&self) -> Result<IndexReader<'s>> {
        let index = self.store.take_index()?;
        index.begin_reading()?;
        let empty = index.is_empty()?;
        Ok(IndexReader { store: self.store, index: Some(index), empty })
    }

    fn work(&self, stopped: &Receiver<()>) -> Result<()> {
        let reader = self.reader()?;
        let mut encoder = Encoder::new(self.compress)?;
        loop {
            let job = crossbeam_channel::select_biased! {
                recv(self.jobs.1) -> job => job.map_err(|_| aborted())?,
                recv(stopped) -> _ => return Ok(()),
            };
            let id = self.store_chunk(job.raw, job.members, &reader, &mut encoder)?;
            // Set before notifying under the lock, so that no waiter can miss it.
            job.slot.set(id);
            self.notify();
        }
    }

    /// Brings packs to disk while they grow, so that the sync at the end finds little to do. A failure here is as final
    /// as one there: the kernel may have dropped what it could not write.
    fn sync_early(&self, stopped: &Receiver<()>) -> Result<()> {
        loop {
            crossbeam_channel::select_biased! {
                recv(stopped) -> _ => return Ok(()),
                recv(self.to_sync.1) -> file => {
                    let (file, range) = file.map_err(|_| aborted())?;
                    file.sync_data().map_err(|e| Error::io("fsync a pack", e))?;
                    let_go(&file, range);
                }
            }
        }
    }

    fn store_chunk(
        &self,
        raw: Vec<u8>,
        members: Vec<Member>,
        index: &IndexReader<'_>,
        encoder: &mut Encoder,
    ) -> Result<ContentId> {
        let id = ContentId::of(&raw);
        if !lock(&self.claimed).insert(id)? || index.has_chunk(&id)? && !self.distrusted.contains(&id) {
            return Ok(id);
        }
        let stored = encoder.encode(&raw, self.hurry())?;
        self.counters.chunks_new.fetch_add(1, Relaxed);
        self.counters.raw_new.fetch_add(raw.len() as u64, Relaxed);
        self.counters.stored_new.fetch_add(stored.1.len() as u64, Relaxed);
        self.append(NewChunk::new(id, &raw, stored, members))?;
        Ok(id)
    }

    /// Whether compressing is what the import waits for: other chunks are queued, or the CPUs are all busy without it.
    fn hurry(&self) -> bool {
        self.crowded || !self.jobs.1.is_empty()
    }

    fn append(&self, chunk: NewChunk<'_>) -> Result<()> {
        let mut packs = lock(&self.packs);
        let room = packs.current.as_ref().map(|p| p.has_room(chunk.stored.len(), chunk.members.len()));
        if room == Some(false) {
            let full = packs.current.take().map(PackWriter::seal).transpose()?;
            packs.sealed.extend(full);
        }
        let writer = match &mut packs.current {
            Some(writer) => writer,
            empty => {
                let reserve = |c: &Change<'_>| c.reserve_pack(RESERVE, &self.session.name);
                let base = self.store.with_index(|index| index.write_together(reserve))?;
                empty.insert(PackWriter::create(&self.session.path, base)?)
            }
        };
        writer.append(chunk)?;
        if writer.unsynced() >= SYNC {
            // If the last one is still under way, a later one will cover these bytes too.
            let _ = self.to_sync.0.try_send(writer.synced_soon()?);
        }
        Ok(())
    }

    /// Seals the packs and makes everything durable and visible in one step; only then may it be acknowledged.
    pub(crate) fn commit(self, outcome: Outcome, record: impl FnOnce(&Change<'_>) -> Result<()>) -> Result<()> {
        let packs = self.packs.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut sealed = packs.sealed;
        sealed.extend(packs.current.map(PackWriter::seal).transpose()?);
        self.store.publish(&self.session, sealed, outcome, record)
    }
}

/// Fails the import when its thread panics, so that those who wait for it stop waiting and the panic is passed on.
pub(crate) struct PanicGuard<'a, 's>(&'a Ingest<'s>);

impl Drop for PanicGuard<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(aborted());
        }
    }
}

/// A database connection lent to one thread of an import.
pub(crate) struct IndexReader<'s> {
    store: &'s Store,
    index: Option<Index>,
    /// There is nothing to look up: the first import into a store need not ask.
    empty: bool,
}

impl IndexReader<'_> {
    fn member(&self, id: &ContentId) -> Result<Option<MemberPlace>> {
        if self.empty { Ok(None) } else { self.index().proven_member(id) }
    }

    fn has_chunk(&self, id: &ContentId) -> Result<bool> {
        if self.empty { Ok(false) } else { self.index().has_chunk(id) }
    }

    fn index(&self) -> &Index {
        // Only `drop` takes it out.
        self.index.as_ref().expect("an index reader holds its connection until it is dropped")
    }
}

impl Drop for IndexReader<'_> {
    fn drop(&mut self) {
        if let Some(index) = self.index.take()
            && index.end_reading().is_ok()
        {
            self.store.give_index(index);
        }
    }
}
