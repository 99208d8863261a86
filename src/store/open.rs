//! Opening and creating a store.

use super::index::{Group, Index};
use super::packs::pack_name;
use super::read::PackFiles;
use super::reserve;
use super::swap;
use crate::digest::Digest;
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::format::params::{self, Chunking};
use crate::observe::Observer;
use crate::sys::dirs::Dir;
use crate::sys::lock::{DirLock, Lock};
use crate::sys::publish::{io_error, make_dir, publish_bytes};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Creating and opening take milliseconds, so a lock held longer has lost its holder to a debugger or a dead disk.
const PATIENCE: Duration = Duration::from_secs(60);
const STORE_FILE: &str = "STORE";
const DIRS: [&str; 9] = ["packs", "layers", "blobs", "locks", "tmp", "snapshots", "trees", "images", "mounts"];

/// A store of layers, open. It is `Send` and `Sync`: share one by reference between threads.
pub struct Store {
    root: PathBuf,
    chunking: Chunking,
    /// The database's file.
    database: PathBuf,
    indexes: Mutex<Vec<Index>>,
    /// How its connections write; a draft has one connection only.
    group: Option<Arc<Group>>,
    /// One thread at a time asks other processes for the sessions.
    sessions: Mutex<()>,
    pub(super) packs: PackFiles,
    /// What could not be removed from `tmp/`.
    pub(super) leftovers: Mutex<Vec<Error>>,
    /// Keeps everyone from putting another database in the place of this one. Last, so that it outlives connections.
    _held: DirLock,
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    create: bool,
    chunking: Chunking,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { create: true, chunking: Chunking::default() }
    }
}

impl OpenOptions {
    /// Whether a missing store is made. Default true.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// How a store made by this call cuts content. An existing store keeps its own. Default 64/128/256 KiB chunks.
    #[must_use]
    pub fn chunking(mut self, chunking: Chunking) -> Self {
        self.chunking = chunking;
        self
    }
}

impl Store {
    /// Opens the store at `root`, making it if nothing is there. An empty directory of the caller's own is taken, and
    /// closed to others.
    ///
    /// # Errors
    /// `FailedPrecondition` if the directory belongs to another user, lets others in, or holds something else;
    /// `Unsupported` for a format of another version; `Corrupt` for a damaged one, which
    /// [`rebuild`](Self::rebuild) may bring back; `Busy` while that is under way.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(root, &OpenOptions::default())
    }

    /// [`open`](Self::open) with options.
    ///
    /// # Errors
    /// As [`open`](Self::open), and `NotFound` where nothing is there and `create` is off.
    pub fn open_with(root: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let root = root.as_ref();
        let (chunking, index, held) =
            Self::open_parts(root, options).map_err(|e| e.subject(format!("store {}", root.display())))?;
        let root = root.canonicalize().map_err(|e| io_error("resolve", root, e))?;
        let database = root.join(swap::DATABASE);
        let group = Some(Arc::new(Group::new(&root, &database)));
        let store = Self::of_parts(root.clone(), chunking, (database, index), held, group);
        // What cannot be swept now, on a full disk for example, must not keep anyone from reading.
        let _ = store.sweep();
        let _ = store.end_leases();
        reserve::fill(&store.root);
        Ok(store)
    }

    fn of_parts(
        root: PathBuf,
        chunking: Chunking,
        (database, index): (PathBuf, Index),
        held: DirLock,
        group: Option<Arc<Group>>,
    ) -> Self {
        let (indexes, packs) = (Mutex::new(vec![index.in_group(group.clone())]), PackFiles::default());
        Self {
            root,
            chunking,
            database,
            indexes,
            group,
            sessions: Mutex::new(()),
            packs,
            leftovers: Mutex::default(),
            _held: held,
        }
    }

    fn open_parts(root: &Path, options: &OpenOptions) -> Result<(Chunking, Index, DirLock)> {
        let file = root.join(STORE_FILE);
        if !has(root, STORE_FILE)? {
            if !options.create {
                return Err(Error::not_found("there is no store here"));
            }
            create(root, &options.chunking)?;
        }
        check_owner(root)?;
        let chunking = read_parameters(&file)?;
        make_dirs(root)?;
        let held = hold(root)?;
        Ok((chunking, reserve::with_reserve(root, || open_database(root))?, held))
    }

    /// The store at `root` with an empty database of its own in `dir`, which is on the way to be its database. The caller
    /// has the directory alone. A store whose `STORE` is lost or damaged gets a new one, and the second value is what
    /// that says.
    pub(crate) fn draft(root: &Path, dir: &Path, alone: DirLock) -> Result<(Self, Option<Chunking>)> {
        let (chunking, anew) = match read_parameters(&root.join(STORE_FILE)) {
            Ok(chunking) => (chunking, None),
            Err(e) => restore_parameters(root, e).map(|chunking| (chunking, Some(chunking)))?,
        };
        let database = dir.join(swap::DATABASE);
        let index = Index::open(&database, true)?;
        Ok((Self::of_parts(root.to_owned(), chunking, (database, index), alone, None), anew))
    }

    /// Ends a draft: its database, complete and on disk in one file, and the lock.
    pub(crate) fn into_database(self) -> Result<(PathBuf, DirLock)> {
        let Self { database, indexes, _held: alone, .. } = self;
        for index in indexes.into_inner().unwrap_or_else(|e| e.into_inner()) {
            index.close()?;
        }
        Ok((database, alone))
    }

    /// The store's directory, absolute.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// How this store cuts content.
    pub fn chunking(&self) -> Chunking {
        self.chunking
    }

    pub(super) fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn pack_path(&self, base: u64) -> PathBuf {
        self.root.join("packs").join(pack_name(base))
    }

    pub(crate) fn record_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.layer", diff_id.hex()))
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    /// Waits until no other thread or process imports this layer.
    pub(crate) fn lock_layer(&self, diff_id: &Digest, patience: Duration, observer: &dyn Observer) -> Result<Lock> {
        Lock::acquire(&self.root.join("locks").join(diff_id.hex()), patience, observer)
    }

    /// Reads `STORE` again: its path, and whether it still says what it said when the store was opened.
    pub(crate) fn check_parameters(&self) -> (PathBuf, Result<()>) {
        let file = self.root.join(STORE_FILE);
        let same = read_parameters(&file).and_then(|chunking| match chunking == self.chunking {
            true => Ok(()),
            false => Err(Error::corrupt("STORE has other parameters than when it was opened")),
        });
        (file, same)
    }

    /// The database's file.
    pub(crate) fn index_path(&self) -> PathBuf {
        self.database.clone()
    }

    /// A connection that has read nothing yet.
    pub(crate) fn fresh_index(&self) -> Result<Index> {
        self.with_reserve(|| Index::open(&self.database, false)).map(|index| index.in_group(self.group.clone()))
    }

    /// Serialises the making and the sweeping of session directories.
    pub(super) fn lock_sessions(&self) -> Result<(Lock, MutexGuard<'_, ()>)> {
        let first = self.sessions.lock().unwrap_or_else(|e| e.into_inner());
        Ok((Lock::acquire(&self.root.join("locks").join("sessions"), PATIENCE, &())?, first))
    }

    /// Lends a database connection to `work`.
    pub(crate) fn with_index<T>(&self, work: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let mut index = self.take_index()?;
        let out = work(&mut index);
        // What SQLite could not open for writing, on a full disk for example, it opened for reading, and stays with that.
        if !out.as_ref().is_err_and(|e| e.kind() == ErrorKind::Io) {
            self.give_index(index);
        }
        out
    }

    pub(super) fn take_index(&self) -> Result<Index> {
        let pooled = self.indexes.lock().unwrap_or_else(|e| e.into_inner()).pop();
        pooled.map_or_else(|| self.fresh_index(), Ok)
    }

    pub(super) fn give_index(&self, index: Index) {
        self.indexes.lock().unwrap_or_else(|e| e.into_inner()).push(index);
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Whether a directory that should be a store has this. Nobody else's store is taken for none at all.
pub(crate) fn has(root: &Path, name: &str) -> Result<bool> {
    root.join(name).try_exists().or_else(|e| match e.kind() {
        std::io::ErrorKind::NotADirectory => Ok(false),
        _ => check_owner(root).and_then(|()| Err(io_error("look into", root, e))),
    })
}

fn read_parameters(file: &Path) -> Result<Chunking> {
    let text = fs::read(file).map_err(|e| io_error("read", file, e))?;
    let text = String::from_utf8(text).map_err(|_| Error::corrupt("STORE is not text"))?;
    params::decode(&text)
}

/// Makes a store. The STORE file comes last, so that a directory with one is complete.
fn create(root: &Path, chunking: &Chunking) -> Result<()> {
    chunking.validate()?;
    if let Some(parent) = root.parent() {
        fs::create_dir_all(parent).map_err(|e| io_error("create directory", parent, e))?;
    }
    make_dir(root)?;
    close_empty(root)?;
    check_owner(root)?;
    let foreign = fs::read_dir(root).map_err(|e| io_error("read directory", root, e))?.flatten().find(|f| {
        let name = f.file_name();
        let name = name.to_string_lossy();
        let ours = [swap::DATABASE, STORE_FILE, reserve::DIR].iter().any(|ours| name.starts_with(ours));
        !DIRS.contains(&&*name) && !ours && name != "lost+found"
    });
    if let Some(foreign) = foreign {
        let e = Error::new(ErrorKind::FailedPrecondition, "the directory is neither empty nor a store");
        let e = e.advise(Advice::OtherStore);
        return Err(e.expected("an empty directory").actual(foreign.path().display()));
    }
    make_dirs(root)?;
    let _held = hold(root)?;
    let _lock = Lock::acquire(&root.join("locks").join("create"), PATIENCE, &())?;
    if root.join(STORE_FILE).exists() {
        return Ok(());
    }
    // Beside packs or records an empty database would make garbage of them.
    let anything = |dir| fs::read_dir(root.join(dir)).is_ok_and(|mut found| found.next().is_some());
    match anything("packs") || anything("layers") {
        true => open_database(root)?,
        false => Index::open(&root.join(swap::DATABASE), true)?,
    };
    publish_parameters(root, chunking)
}

fn publish_parameters(root: &Path, chunking: &Chunking) -> Result<()> {
    let draft = root.join("tmp").join(STORE_FILE);
    // Whoever began this before us died over it: we hold the lock.
    let _ = fs::remove_file(&draft);
    publish_bytes(params::encode(chunking).as_bytes(), draft, root, STORE_FILE)
}

/// Makes `STORE` anew that could not be read because of `e`: with what it said if that can be told, else with the
/// default, which costs no more than finding less of new content in what is there. What there was is kept beside it.
fn restore_parameters(root: &Path, e: Error) -> Result<Chunking> {
    let file = root.join(STORE_FILE);
    let mended = fs::read(&file).ok().and_then(|bytes| params::mend(&bytes));
    let lost = matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound);
    let chunking = match mended {
        Some(chunking) => chunking,
        None if lost => Chunking::default(),
        None => return Err(e),
    };
    let aside = (1..=u32::MAX).map(|n| root.join(format!("{STORE_FILE}.damaged-{n}"))).find(|path| !path.exists());
    if let (true, Some(aside)) = (file.exists(), aside) {
        fs::hard_link(&file, &aside).map_err(|e| io_error("keep", &aside, e))?;
    }
    publish_parameters(root, &chunking).map(|()| chunking)
}

/// Stores made by 0.1 before there were snapshots have fewer directories.
fn make_dirs(root: &Path) -> Result<()> {
    DIRS.iter().map(|dir| root.join(dir)).filter(|dir| !dir.exists()).try_for_each(|dir| make_dir(&dir))
}

/// The store's directory for a caller who may have found it in any state, and nobody else.
pub(crate) fn take_alone(root: &Path, patience: Duration, observer: &dyn Observer) -> Result<DirLock> {
    check_owner(root)?;
    make_dirs(root)?;
    let alone = DirLock::alone(root, patience, observer)?;
    swap::finish(root)?;
    Ok(alone)
}

fn open_database(root: &Path) -> Result<Index> {
    let path = root.join(swap::DATABASE);
    match path.exists() {
        true => Index::open(&path, false),
        false => Err(Error::corrupt("the database is missing").subject(path.display())),
    }
}

/// Shares the store's directory with everyone who has the store open. A database that was rebuilt, and whose names are
/// still missing after a crash, gets them first.
fn hold(root: &Path) -> Result<DirLock> {
    loop {
        let held = DirLock::shared(root, PATIENCE, &())?;
        if swap::pending(root)?.is_none() {
            return Ok(held);
        }
        drop(held);
        let _alone = DirLock::alone(root, PATIENCE, &())?;
        swap::finish(root)?;
    }
}

/// An empty directory that its owner made for the store, with whatever mode, is closed to others. Any other is left as
/// it is, for [`check_owner`] to judge. What is put into it meanwhile is found afterwards, and refused.
fn close_empty(root: &Path) -> Result<()> {
    let failed = |e: std::io::Error| io_error("close to others", root, e);
    let dir = match File::open(root) {
        // Somebody else's: [`check_owner`] says so.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    let meta = dir.metadata().map_err(failed)?;
    let empty = || fs::read_dir(root).map(|mut found| found.all(|f| f.is_ok_and(|f| f.file_name() == "lost+found")));
    if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 == 0 || !empty().map_err(failed)? {
        return Ok(());
    }
    Dir::from(OwnedFd::from(dir)).disinherit().map_err(|e| failed(e.into()))
}

/// A store holds setuid files and other users' secrets: it must be ours, and ours alone.
fn check_owner(root: &Path) -> Result<()> {
    let meta = fs::metadata(root).map_err(|e| io_error("stat", root, e))?;
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        let e =
            Error::new(ErrorKind::FailedPrecondition, "the store belongs to another user").advise(Advice::OtherStore);
        return Err(e.expected(format!("uid {me}")).actual(format!("uid {}", meta.uid())));
    }
    if meta.mode() & 0o077 != 0 {
        let e = Error::new(ErrorKind::FailedPrecondition, "the store's directory lets other users in; chmod 700 it");
        return Err(e.expected("mode 0700").actual(format!("mode {:04o}", meta.mode() & 0o7777)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn kind(r: Result<Store>) -> ErrorKind {
        r.err().unwrap().kind()
    }

    #[test]
    fn creates_private_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        assert_eq!(kind(Store::open_with(&root, &OpenOptions::default().create(false))), ErrorKind::NotFound);
        assert!(!root.exists());
        let custom = Chunking { avg: 64 << 10, ..Chunking::default() };
        Store::open_with(&root, &OpenOptions::default().chunking(custom)).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(Store::open(&root).unwrap().chunking(), custom);
    }

    #[test]
    fn refuses_foreign_loose_damaged_and_newer_stores() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(root.join("thesis.txt"), "x").unwrap();
        assert_eq!(kind(Store::open(&root)), ErrorKind::FailedPrecondition);
        assert!(!root.join("packs").exists());
        fs::remove_file(root.join("thesis.txt")).unwrap();
        drop(Store::open(&root).unwrap());

        fs::set_permissions(&root, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(kind(Store::open(&root)), ErrorKind::FailedPrecondition);
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();

        let file = root.join(STORE_FILE);
        let good = fs::read_to_string(&file).unwrap();
        fs::write(&file, good.replace("format 1", "format 2")).unwrap();
        assert_eq!(kind(Store::open(&root)), ErrorKind::Unsupported);
        fs::write(&file, good.replace("chunk-avg 131072", "chunk-avg 65536")).unwrap();
        assert_eq!(kind(Store::open(&root)), ErrorKind::Corrupt);
        fs::write(&file, good).unwrap();
        Store::open(&root).unwrap();
    }

    #[test]
    fn an_empty_directory_is_taken_whatever_its_mode_and_closed() {
        for (mode, found) in [(0o755, None), (0o2777, None), (0o755, Some("lost+found"))] {
            let dir = tempfile::tempdir().unwrap();
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            if let Some(name) = found {
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            Store::open(dir.path()).unwrap();
            assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o700);
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        assert_eq!(kind(Store::open(dir.path())), ErrorKind::FailedPrecondition);
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o755, "what is refused stays as it was");
    }

    #[test]
    fn refuses_a_store_of_another_user() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root to give a directory away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        drop(Store::open(&root).unwrap());
        std::os::unix::fs::chown(&root, Some(1234), None).unwrap();
        assert_eq!(kind(Store::open(&root)), ErrorKind::FailedPrecondition);
    }

    #[test]
    fn a_store_whose_making_was_cut_short_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        for part in [&root, &root.join("tmp")] {
            make_dir(part).unwrap();
        }
        fs::write(root.join("tmp").join(STORE_FILE), "layerst").unwrap();
        Store::open(&root).unwrap();
    }

    #[test]
    fn many_openers_make_one_store() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("s");
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| Store::open(&root).unwrap());
            }
        });
    }
}
