//! Sessions: unfinished work that vanishes with its process.
//!
//! A session owns a directory below `tmp/` that it keeps locked. Whoever opens the store removes the directories
//! that nobody has locked any more, and their address reservations: crashed imports leave nothing for long.

use super::index::Change;
use super::open::Store;
use super::packs::SealedPack;
use crate::error::{Error, Result};
use crate::sys::publish::{Draft, io_error, sync_dir};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A locked directory for drafts. Dropped, it takes what was not published with it.
pub(super) struct Session<'s> {
    store: &'s Store,
    pub(super) name: String,
    pub(super) path: PathBuf,
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
        let made = tempfile::Builder::new().prefix("session-").tempdir_in(&tmp);
        let path = made.map_err(|e| io_error("create session below", &tmp, e))?.keep();
        let lock = File::open(&path).map_err(|e| io_error("open", &path, e))?;
        lock.try_lock().map_err(|e| io_error("lock", &path, e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { store, name, path, undecided: AtomicBool::new(false), _lock: lock })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // What is left here is swept at the next open. A commit that failed may still be found in the journal then, so
        // nothing it might refer to goes before.
        if !self.undecided.load(Relaxed) {
            let _ = self.store.clear(&self.name, &self.path);
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

/// What a session leaves behind when it succeeds.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Drafts to publish, with the file each becomes: layer records, configurations, manifests, kept blobs.
    pub(crate) files: Vec<(Draft, PathBuf)>,
}

impl Store {
    /// Removes what crashed sessions left: their drafts and the addresses they had reserved.
    pub(super) fn sweep(&self) -> Result<()> {
        let tmp = self.dir("tmp");
        let any = |dir: &Path| fs::read_dir(dir).map_err(|e| io_error("read directory", dir, e));
        let reserved = self.with_index(|index| index.sessions())?;
        if any(&tmp)?.next().is_none() && reserved.is_empty() {
            return Ok(());
        }
        let _sessions = self.lock_sessions()?;
        for found in any(&tmp)?.flatten() {
            let Ok(dir) = File::open(found.path()) else { continue };
            if dir.try_lock().is_err() || !found.path().is_dir() {
                continue;
            }
            let name = found.file_name().to_string_lossy().into_owned();
            self.clear(&name, &found.path())?;
        }
        // A power cut can lose a directory and keep its reservation.
        let lost = reserved.iter().filter(|session| !tmp.join(session).exists());
        lost.into_iter().try_for_each(|session| self.clear(session, &tmp.join(session)))
    }

    /// Removes what a session has not committed: packs under their final names too, then the addresses they had,
    /// and last the directory, which until then tells that there is something to remove.
    fn clear(&self, session: &str, dir: &Path) -> Result<()> {
        let reserved = self.with_index(|index| index.reservations(session))?;
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
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove abandoned", dir, e)),
            _ => Ok(()),
        }
    }

    /// Makes everything a session produced durable and visible, in the order of `docs/ORDERING.md`.
    /// Nothing refers to a file before it is on disk under its final name.
    pub(super) fn publish(
        &self,
        session: &Session<'_>,
        mut packs: Vec<SealedPack>,
        outcome: Outcome,
        record: impl FnOnce(&Change<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut new = Vec::new();
        if let Err(e) = self.publish_files(&mut packs, outcome, &mut new) {
            // Nothing refers to them; packs go with the session.
            new.iter().for_each(|path| drop(fs::remove_file(path)));
            return Err(e);
        }
        let commit = |change: &Change<'_>| {
            for pack in &packs {
                change.seal_pack(pack.base, pack.len)?;
                change.add_chunks(pack.table()?)?;
            }
            record(change)?;
            change.drop_reservations(&session.name)
        };
        let committed = self.with_index(|index| index.write(commit)); // 4. the transaction that makes all of it count
        session.undecided.store(committed.is_err(), Relaxed);
        committed
    }

    /// Steps 1 to 3; `new` gets the records and blobs that were not there before.
    fn publish_files(&self, packs: &mut [SealedPack], outcome: Outcome, new: &mut Vec<PathBuf>) -> Result<()> {
        for pack in packs.iter_mut() {
            pack.draft.publish(&self.pack_path(pack.base))?; // 1. pack bytes, then their name
        }
        let mut dirs: Vec<PathBuf> = Vec::new();
        for (mut draft, target) in outcome.files {
            let fresh = !target.exists();
            draft.publish(&target)?; // 2. records and blobs, then their names
            dirs.extend(target.parent().map(Path::to_owned));
            new.extend(fresh.then_some(target));
        }
        dirs.extend((!packs.is_empty()).then(|| self.dir("packs")));
        dirs.sort();
        dirs.dedup();
        dirs.iter().try_for_each(|dir| sync_dir(dir)) // 3. the names themselves
    }
}

/// A session whose worker failed reports why once; everyone else sees this.
pub(super) fn aborted() -> Error {
    Error::new(crate::ErrorKind::Cancelled, "stopped because another part of the import failed")
}
