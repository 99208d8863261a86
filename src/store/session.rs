//! Sessions: unfinished work that vanishes with its process.
//!
//! A session owns a directory below `tmp/` that it keeps locked. Whoever opens the store removes the directories
//! that nobody has locked any more, and their address reservations: crashed imports leave nothing for long.

use super::chunk_refs::chunk_refs;
use super::index::Change;
use super::open::Store;
use super::packs::SealedPack;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys::dirs::Dir;
use crate::sys::lock::Lock;
use crate::sys::publish::{Draft, io_error, sync_dir};
use crate::sys::remove::remove_tree;
use rustix::io::Errno;
use std::fs::{self, File, TryLockError};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A locked directory for drafts. Dropped, it takes what was not published with it.
pub(super) struct Session<'s> {
    store: &'s Store,
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// gc's when it began: what died later, this session may count on.
    generation: u64,
    /// Whether its transaction failed while committing: then only the next open can tell what became of it.
    undecided: AtomicBool,
    /// Held open for the lock it carries.
    _lock: File,
}

impl<'s> Session<'s> {
    pub(super) fn begin(store: &'s Store) -> Result<Self> {
        // Between making and locking, the directory must not look abandoned to a sweeper.
        let _sessions = store.lock_sessions()?;
        let tmp = store.dir("tmp");
        // gc reads the generation off the name: it sees it as soon as it sees the session.
        let generation = store.with_index(|index| index.generation())?;
        let made = tempfile::Builder::new().prefix(&format!("session-{generation}-")).tempdir_in(&tmp);
        let path = made.map_err(|e| io_error("create session below", &tmp, e))?.keep();
        let lock = File::open(&path).map_err(|e| io_error("open", &path, e))?;
        lock.try_lock().map_err(|e| io_error("lock", &path, e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { store, name, path, generation, undecided: AtomicBool::new(false), _lock: lock })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // What is left here is swept at the next open. A commit that failed may still be found in the journal then, so
        // nothing it might refer to goes before.
        if !self.undecided.load(Relaxed) {
            self.store.clear_or_note(&self.name, &self.path);
        }
    }
}

/// A directory for work that other files are made of by renaming; what is left in it goes when this is dropped, or at
/// the next open after a crash.
pub(crate) struct Scratch<'s>(Session<'s>);

impl Scratch<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Store {
    /// A new scratch directory on the store's file system.
    pub(crate) fn scratch(&self) -> Result<Scratch<'_>> {
        Session::begin(self).map(Scratch)
    }
}

/// What becomes of copies that the store has of a session's chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Moves {
    /// They stay, and the new ones are space for gc.
    #[default]
    None,
    /// They are damaged: the new ones take their places at once.
    Damaged,
    /// They are as good as the new ones, which take their places; whoever found them where they were may read on.
    Sound,
}

/// What a session leaves behind when it succeeds.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Layer records to publish. A layer that has a row when the session commits keeps the record it has.
    pub(crate) records: Vec<(Digest, Draft)>,
    /// Whether records refer to chunks that were found before the session began.
    pub(crate) borrowed: bool,
    /// Whether its chunks take the places of copies that the store has.
    pub(crate) moves: Moves,
    /// Other drafts to publish, with the file each becomes: configurations, manifests, kept blobs.
    pub(crate) files: Vec<(Draft, PathBuf)>,
}

impl Store {
    /// Removes what crashed sessions left: their drafts and the addresses they had reserved. What cannot be removed stays
    /// for the next sweep, is noted for [`leftovers`](Self::leftovers), and keeps nothing else from being removed.
    pub(crate) fn sweep(&self) -> Result<()> {
        let tmp = self.dir("tmp");
        let reserved = self.with_index(|index| index.sessions())?;
        for found in fs::read_dir(&tmp).map_err(|e| io_error("read directory", &tmp, e))?.flatten() {
            let Some(_lock) = self.take_abandoned(&found.path())? else { continue };
            self.clear_or_note(&found.file_name().to_string_lossy(), &found.path());
        }
        if reserved.is_empty() {
            return Ok(());
        }
        // A power cut can lose a directory and keep its reservation.
        let _sessions = self.lock_sessions()?;
        let lost = reserved.iter().filter(|session| tmp.join(session).try_exists().is_ok_and(|there| !there));
        lost.into_iter().for_each(|session| self.clear_or_note(session, &tmp.join(session)));
        Ok(())
    }

    /// Locks a session's directory that nobody has locked. Others wait only for that, and not while it is removed.
    fn take_abandoned(&self, path: &Path) -> Result<Option<File>> {
        let _sessions = self.lock_sessions()?;
        let Ok(dir) = Dir::open(path) else { return Ok(None) };
        let dir = File::from(OwnedFd::from(dir));
        Ok(dir.try_lock().is_ok().then_some(dir))
    }

    fn clear_or_note(&self, session: &str, dir: &Path) {
        if let Err(e) = self.clear(session, dir) {
            self.leftovers.lock().unwrap_or_else(PoisonError::into_inner).push(e);
        }
    }

    /// Why work that ended or crashed, and had a directory below `tmp/`, could not be cleared away, since the last call of
    /// this function. Opening the store, cleanup of snapshots and garbage collection try again.
    pub fn leftovers(&self) -> Vec<Error> {
        std::mem::take(&mut *self.leftovers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Removes the lock files that dead processes left: nobody has them.
    pub(crate) fn sweep_locks(&self) -> Result<()> {
        let dir = self.dir("locks");
        for found in fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?.flatten() {
            // A lock takes its file with it.
            let _ = Lock::try_acquire(&found.path());
        }
        Ok(())
    }

    /// Removes what a session has not committed: packs under their final names too, then the addresses they had,
    /// and last the directory, which until then tells that there is something to remove.
    fn clear(&self, session: &str, dir: &Path) -> Result<()> {
        let mut reserved = self.with_index(|index| index.reservations(session))?;
        if !reserved.is_empty() {
            // If its commit failed half-way, the journal may have it still, and a power cut would bring it back: writing
            // over that comes first. What it is found to have committed by then stays.
            self.with_index(|index| index.write(|change| change.next_generation()))?;
            reserved = self.with_index(|index| index.reservations(session))?;
        }
        for base in &reserved {
            let path = self.pack_path(*base);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error("remove abandoned", &path, e));
                }
                _ => {}
            }
        }
        if !reserved.is_empty() {
            sync_dir(&self.dir("packs"))?;
            self.with_index(|index| index.write(|change| change.drop_reservations(session)))?;
        }
        remove_tree(dir)
    }

    /// The generation in which the oldest session that is alive began; `None` if there is none.
    pub(crate) fn oldest_session(&self) -> Result<Option<u64>> {
        let _sessions = self.lock_sessions()?;
        let tmp = self.dir("tmp");
        let mut oldest = None;
        for found in fs::read_dir(&tmp).map_err(|e| io_error("read directory", &tmp, e))?.flatten() {
            let dir = match Dir::open(&found.path()) {
                // It has ended, or is none: a session's own directory lets its owner in.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => continue,
                dir => dir.map_err(|e| io_error("open", &found.path(), e))?,
            };
            match File::from(OwnedFd::from(dir)).try_lock() {
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => return Err(io_error("lock", &found.path(), e)),
            }
            let name = found.file_name();
            let generation =
                name.to_str().and_then(|name| name.strip_prefix("session-")?.split('-').next()?.parse().ok());
            // One that does not say may be of any age.
            oldest = Some(generation.unwrap_or(0).min(oldest.unwrap_or(u64::MAX)));
        }
        Ok(oldest)
    }

    /// Makes everything a session produced durable and visible, in the order of `docs/ORDERING.md`.
    /// Nothing refers to a file before it is on disk under its final name, and no file gets that outside a transaction:
    /// whoever holds one and finds a file that no row names knows that nobody is about to add the row.
    pub(super) fn publish(
        &self,
        session: &Session<'_>,
        mut packs: Vec<SealedPack>,
        mut outcome: Outcome,
        record: impl FnOnce(&Change<'_>) -> Result<()>,
    ) -> Result<()> {
        packs.iter().try_for_each(|pack| pack.draft.sync())?; // 1. the bytes of packs,
        outcome.records.iter().try_for_each(|(_, draft)| draft.sync())?; // of records
        outcome.files.iter().try_for_each(|(draft, _)| draft.sync())?; // and of blobs
        packs.iter().for_each(|pack| pack.draft.let_go());
        outcome.files.iter().for_each(|(draft, _)| draft.let_go());
        let commit = |change: &Change<'_>| {
            let mut new = Vec::new();
            let done = self.give_names(change, &mut packs, &mut outcome, &mut new); // 2. and 3. their names
            let done = done.and_then(|()| enter(change, session, &packs, &outcome)).and_then(|()| record(change));
            if done.is_err() {
                // Nothing refers to them; packs go with the session.
                new.iter().for_each(|path| drop(fs::remove_file(path)));
            }
            done
        };
        let committed = self.with_index(|index| index.write(commit)); // 4. the end of the transaction makes all count
        session.undecided.store(committed.is_err(), Relaxed);
        committed
    }

    /// Steps 2 and 3; `new` gets the records and blobs that were not there before.
    fn give_names(
        &self,
        change: &Change<'_>,
        packs: &mut [SealedPack],
        outcome: &mut Outcome,
        new: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let mut dirs: Vec<PathBuf> = Vec::new();
        for pack in packs {
            pack.draft.rename(&self.pack_path(pack.base))?;
            dirs.push(self.dir("packs"));
        }
        let mut known = Vec::new();
        for (diff_id, _) in &outcome.records {
            known.push(change.has_layer(diff_id)?);
        }
        let mut known = known.into_iter();
        outcome.records.retain(|_| known.next() == Some(false));
        let records = outcome.records.iter_mut().map(|(diff_id, draft)| (draft, self.record_path(diff_id)));
        let blobs = outcome.files.iter_mut().map(|(draft, target)| (draft, target.clone()));
        for (draft, target) in records.chain(blobs) {
            let fresh = !target.exists();
            draft.rename(&target)?;
            dirs.extend(target.parent().map(Path::to_owned));
            new.extend(fresh.then_some(target));
        }
        dirs.sort();
        dirs.dedup();
        dirs.iter().try_for_each(|dir| sync_dir(dir))
    }
}

/// Enters what was published into the database, but for what it means.
fn enter(change: &Change<'_>, session: &Session<'_>, packs: &[SealedPack], outcome: &Outcome) -> Result<()> {
    for pack in packs {
        change.seal_pack(pack.base, pack.len)?;
        let table = pack.table()?;
        match outcome.moves {
            Moves::None => {}
            Moves::Damaged => {
                // Who looked before where chunks are looks again.
                change.next_generation()?;
                change.move_chunks(&table)?;
            }
            Moves::Sound => {
                change.leave_behind(&table)?;
                change.move_chunks(&table)?;
            }
        }
        change.add_chunks(table)?;
    }
    if outcome.borrowed || change.generation()? != session.generation {
        // Chunks the records refer to may have died since they were found.
        for (diff_id, draft) in &outcome.records {
            let lost = |id| {
                let e = Error::new(crate::ErrorKind::FailedPrecondition, "gc took a chunk that a new layer counted on");
                e.subject(format!("chunk {id}"))
            };
            let keep = |id| if change.revive_chunk(&id)? { Ok(()) } else { Err(lost(id)) };
            chunk_refs(&draft.handle()?, diff_id, keep)?;
        }
    }
    change.drop_reservations(&session.name)
}

/// A session whose worker failed reports why once; everyone else sees this.
pub(super) fn aborted() -> Error {
    Error::new(crate::ErrorKind::Cancelled, "stopped because another part of the import failed")
}
