//! Reading a directory tree that others wrote, by descriptor: no symlink is followed and the directory is never left.
//!
//! Several threads list and stat; small files are read at once, as long as a budget lasts, since they are open already.
//! What is found says nothing of what it means: overlay's marks are for floors above.

use super::publish::io_error;
use crate::error::{Error, Result};
use crate::observe::{Observer, check};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Files of at most this many bytes are read while they are open.
const KEEP: usize = 64 << 10;
/// Bytes of such files held at most; the rest is opened again when it is wanted.
const KEPT: usize = 64 << 20;
/// Names one thread takes at a time.
const BATCH: usize = 128;
/// The kernel's bound on the names, and on one value, of a file's attributes.
const XATTR: usize = 64 << 10;

/// A name and value.
pub(crate) type RawXattr = (Vec<u8>, Vec<u8>);

/// An inode under one of its names.
pub(crate) struct Found {
    pub(crate) name: Box<[u8]>,
    pub(crate) kind: FoundKind,
    /// Permission bits, setuid, setgid and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Device and inode number.
    pub(crate) id: (u64, u64),
    pub(crate) links: u64,
    /// Sorted by name.
    pub(crate) xattrs: Vec<RawXattr>,
}

/// What is at a name.
pub(crate) enum FoundKind {
    /// Its names are in [`Scan::dirs`] under this number.
    Directory(usize),
    /// Size in bytes, and the content if it is small and was read.
    File(u64, Option<Box<[u8]>>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
}

/// A whole directory tree.
pub(crate) struct Scan {
    pub(crate) dir: Arc<ScannedDir>,
    pub(crate) root: Found,
    /// The names of each directory, sorted; those of the root first.
    pub(crate) dirs: Vec<Vec<Found>>,
}

/// The directory a scan was made of, to read its files from.
#[derive(Debug)]
pub(crate) struct ScannedDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl ScannedDir {
    /// Opens the regular file at `path`, through directories only.
    pub(crate) fn open_file(&self, path: &[u8]) -> Result<File> {
        let named = |e: Errno| io_error("open", &self.named(path), e);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open = |flags| rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve);
        let fd = match open(flags | OFlags::NOATIME) {
            Err(Errno::PERM) => open(flags),
            other => other,
        };
        let fd = fd.map_err(named)?;
        let stat = rustix::fs::fstat(&fd).map_err(named)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(fd.into()),
            _ => Err(self.changed(path)),
        }
    }

    /// Somebody writes to the directory while it is read.
    pub(crate) fn changed(&self, path: &[u8]) -> Error {
        let e = Error::new(crate::ErrorKind::FailedPrecondition, "a file changed while it was read");
        e.subject(self.named(path).display())
    }

    /// Where a path below the directory is, for errors.
    pub(crate) fn named(&self, path: &[u8]) -> PathBuf {
        self.path.join(std::ffi::OsStr::from_bytes(path))
    }
}

/// Reads all of `dir` but the contents of large files, on `threads` threads.
///
/// # Errors
/// `NotFound`, `Io`; `FailedPrecondition` if something changes meanwhile; `Cancelled`.
pub(crate) fn scan(dir: &Path, threads: usize, observer: &dyn Observer) -> Result<Scan> {
    scan_within(dir, threads, KEPT, observer)
}

/// As [`scan`]; holds at most `kept` bytes of small files.
///
/// # Errors
/// As [`scan`].
pub(crate) fn scan_within(dir: &Path, threads: usize, kept: usize, observer: &dyn Observer) -> Result<Scan> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| io_error("open", dir, e))?;
    let scanned = ScannedDir { fd, path: dir.to_owned() };
    let again = scanned.fd.try_clone().map_err(|e| io_error("duplicate the handle of", dir, e))?;
    let at = Arc::new(OpenDir { fd: again, number: 0, path: Vec::new() });
    let scanner = Scanner {
        dir: &scanned,
        budget: AtomicUsize::new(kept),
        work: Mutex::new(Work { tasks: Vec::new(), busy: 1, failure: None, dirs: vec![Vec::new()] }),
        more: Condvar::new(),
        observer,
    };
    let mut buffers = Buffers::default();
    let root = scanner.root(&at, &mut buffers)?;
    std::thread::scope(|scope| {
        let help = || scanner.run(&mut Buffers::default());
        (1..threads).for_each(|_| drop(scope.spawn(help)));
        let listed = scanner.list(at, &mut buffers);
        scanner.done(listed);
        scanner.run(&mut buffers);
    });
    let Work { failure, mut dirs, .. } = scanner.work.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(e) = failure {
        return Err(e);
    }
    dirs.iter_mut().for_each(|dir| dir.sort_unstable_by(|a, b| a.name.cmp(&b.name)));
    Ok(Scan { dir: Arc::new(scanned), root, dirs })
}

/// A directory being read.
struct OpenDir {
    fd: OwnedFd,
    number: usize,
    /// Below the root.
    path: Vec<u8>,
}

/// What a thread takes on. Directories are opened only when their turn comes, the latest first, so that few are open.
enum Task {
    Directory { parent: Arc<OpenDir>, name: Box<[u8]> },
    Names { dir: Arc<OpenDir>, names: Vec<(Box<[u8]>, FileType)> },
}

struct Work {
    tasks: Vec<Task>,
    /// Threads that may still add tasks.
    busy: usize,
    failure: Option<Error>,
    dirs: Vec<Vec<Found>>,
}

struct Scanner<'a> {
    dir: &'a ScannedDir,
    budget: AtomicUsize,
    work: Mutex<Work>,
    more: Condvar,
    observer: &'a dyn Observer,
}

/// A thread's own.
struct Buffers {
    xattrs: Vec<u8>,
    value: Vec<u8>,
    content: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { xattrs: vec![0; XATTR], value: vec![0; XATTR], content: vec![0; KEEP + 1] }
    }
}

impl Scanner<'_> {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes on tasks until there are none and nobody can add any.
    fn run(&self, buffers: &mut Buffers) {
        let mut work = self.lock();
        loop {
            if work.failure.is_some() {
                return;
            }
            if let Some(task) = work.tasks.pop() {
                work.busy += 1;
                drop(work);
                let panicked = Panicked(self);
                let result = check(self.observer).and_then(|()| match task {
                    Task::Directory { parent, name } => self.directory(&parent, name, buffers),
                    Task::Names { dir, names } => self.names(&dir, names, buffers),
                });
                std::mem::forget(panicked);
                self.done(result);
                work = self.lock();
            } else if work.busy == 0 {
                return;
            } else {
                work = self.more.wait(work).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn done(&self, result: Result<()>) {
        let mut work = self.lock();
        work.busy -= 1;
        if let Err(e) = result {
            work.failure.get_or_insert(e);
        }
        if work.busy == 0 || work.failure.is_some() {
            self.more.notify_all();
        }
    }

    fn root(&self, at: &OpenDir, buffers: &mut Buffers) -> Result<Found> {
        let failed = |e: Errno| io_error("read", &self.dir.path, e);
        let stat = rustix::fs::fstat(&at.fd).map_err(failed)?;
        let xattrs = xattrs_of(&at.fd, buffers).map_err(failed)?;
        Ok(found(Box::default(), &stat, FoundKind::Directory(0), xattrs))
    }

    /// Opens a directory, notes it among its parent's names, and goes on with what is in it.
    fn directory(&self, parent: &Arc<OpenDir>, name: Box<[u8]>, buffers: &mut Buffers) -> Result<()> {
        let path = join(&parent.path, &name);
        let failed = |e: Errno| io_error("read", &self.dir.named(&path), e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent.fd, &name[..], flags, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let xattrs = xattrs_of(&fd, buffers).map_err(failed)?;
        let number = {
            let mut work = self.lock();
            work.dirs.push(Vec::new());
            let number = work.dirs.len() - 1;
            work.dirs[parent.number].push(found(name, &stat, FoundKind::Directory(number), xattrs));
            number
        };
        self.list(Arc::new(OpenDir { fd, number, path }), buffers)
    }

    /// Lists an open directory: subdirectories and surplus names become tasks.
    fn list(&self, dir: Arc<OpenDir>, buffers: &mut Buffers) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); 32 << 10];
        let mut listing = RawDir::new(&dir.fd, &mut space);
        let (mut names, mut tasks) = (Vec::new(), Vec::new());
        while let Some(entry) = listing.next() {
            let entry = entry.map_err(|e| io_error("read directory", &self.dir.named(&dir.path), e))?;
            let name = entry.file_name().to_bytes();
            match entry.file_type() {
                _ if matches!(name, b"." | b"..") => {}
                FileType::Directory => tasks.push(Task::Directory { parent: dir.clone(), name: name.into() }),
                kind => names.push((Box::from(name), kind)),
            }
        }
        while names.len() > BATCH {
            let rest = names.split_off(names.len() - BATCH);
            tasks.push(Task::Names { dir: dir.clone(), names: rest });
        }
        if !tasks.is_empty() {
            self.lock().tasks.extend(tasks);
            self.more.notify_all();
        }
        self.names(&dir, names, buffers)
    }

    fn names(&self, dir: &Arc<OpenDir>, names: Vec<(Box<[u8]>, FileType)>, buffers: &mut Buffers) -> Result<()> {
        let mut all = Vec::with_capacity(names.len());
        for (name, kind) in names {
            let path = || self.dir.named(&join(&dir.path, &name));
            let entry = match kind {
                FileType::RegularFile => self.file(dir, name.clone(), buffers).map(Some),
                kind => self.other(dir, name.clone(), kind, buffers),
            };
            let entry = entry.map_err(|e| match e {
                Errno::LOOP | Errno::NOENT | Errno::NXIO => self.dir.changed(&join(&dir.path, &name)),
                e => io_error("read", &path(), e),
            })?;
            all.extend(entry);
        }
        self.lock().dirs[dir.number].append(&mut all);
        Ok(())
    }

    fn file(&self, dir: &OpenDir, name: Box<[u8]>, buffers: &mut Buffers) -> rustix::io::Result<Found> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |flags| rustix::fs::openat(&dir.fd, &name[..], flags, Mode::empty());
        let fd = match open(flags | OFlags::NOATIME) {
            Err(Errno::PERM) => open(flags),
            other => other,
        }?;
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::LOOP);
        }
        let xattrs = xattrs_of(&fd, buffers)?;
        let size = stat.st_size as u64;
        let keep = size <= KEEP as u64 && self.take(size as usize);
        let kind = if keep {
            read_small(fd.into(), size as usize, &mut buffers.content)?
        } else {
            FoundKind::File(size, None)
        };
        Ok(found(name, &stat, kind, xattrs))
    }

    /// Whether so many bytes are left in the budget; then they are taken.
    fn take(&self, len: usize) -> bool {
        self.budget.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(len)).is_ok()
    }

    /// What is no regular file; `None` for a directory that the listing did not know as one, which becomes a task.
    fn other(
        &self,
        dir: &Arc<OpenDir>,
        name: Box<[u8]>,
        kind: FileType,
        buffers: &mut Buffers,
    ) -> rustix::io::Result<Option<Found>> {
        let stat = rustix::fs::statat(&dir.fd, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
        let is = FileType::from_raw_mode(stat.st_mode);
        if is != kind && kind != FileType::Unknown {
            return Err(Errno::LOOP);
        }
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match is {
            FileType::Directory => {
                self.lock().tasks.push(Task::Directory { parent: dir.clone(), name });
                self.more.notify_all();
                return Ok(None);
            }
            FileType::RegularFile => return self.file(dir, name, buffers).map(Some),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&dir.fd, &name[..], Vec::new())?;
                FoundKind::Symlink(target.into_bytes())
            }
            FileType::CharacterDevice => FoundKind::CharDevice(device.0, device.1),
            FileType::BlockDevice => FoundKind::BlockDevice(device.0, device.1),
            FileType::Fifo => FoundKind::Fifo,
            _ => FoundKind::Socket,
        };
        let xattrs = xattrs_at(dir, &name, buffers)?;
        Ok(Some(found(name, &stat, kind, xattrs)))
    }
}

/// Lets the other threads stop when one panics; the panic itself is passed on by the scope that joins them.
struct Panicked<'a, 'b>(&'a Scanner<'b>);

impl Drop for Panicked<'_, '_> {
    fn drop(&mut self) {
        self.0.done(Err(Error::corrupt("a thread that read a directory failed")));
    }
}

fn found(name: Box<[u8]>, stat: &Stat, kind: FoundKind, xattrs: Vec<RawXattr>) -> Found {
    Found {
        name,
        kind,
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        id: (stat.st_dev, stat.st_ino),
        links: stat.st_nlink,
        xattrs,
    }
}

/// Reads a file that had `size` bytes when it was looked at; of one that has grown large since, only that it is there.
fn read_small(mut file: File, size: usize, buffer: &mut [u8]) -> rustix::io::Result<FoundKind> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            // There was room for more, so it ends here: no need to ask once more.
            Ok(n) if n == 0 || len + n == size => {
                len += n;
                return Ok(FoundKind::File(len as u64, Some(buffer[..len].into())));
            }
            Ok(n) => len += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
        }
    }
    let size = file.metadata().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?.len();
    Ok(FoundKind::File(size, None))
}

pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
    [dir, slash, name].concat()
}

fn xattrs_of(fd: impl AsFd, buffers: &mut Buffers) -> rustix::io::Result<Vec<RawXattr>> {
    let list = rustix::fs::flistxattr(&fd, &mut buffers.xattrs[..]);
    collect(list, &buffers.xattrs, &mut buffers.value, |name, value| rustix::fs::fgetxattr(&fd, name, value))
}

/// Attributes of what must not be opened. There is no `listxattrat` before Linux 6.13, hence the way through `/proc`.
fn xattrs_at(dir: &OpenDir, name: &[u8], buffers: &mut Buffers) -> rustix::io::Result<Vec<RawXattr>> {
    let path = [format!("/proc/self/fd/{}/", dir.fd.as_raw_fd()).as_bytes(), name].concat();
    let list = rustix::fs::llistxattr(&path[..], &mut buffers.xattrs[..]);
    collect(list, &buffers.xattrs, &mut buffers.value, |name, value| rustix::fs::lgetxattr(&path[..], name, value))
}

fn collect(
    list: rustix::io::Result<usize>,
    names: &[u8],
    value: &mut [u8],
    get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<RawXattr>> {
    let names = match list {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => &names[..other?],
    };
    let mut all = Vec::new();
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        match get(name, value) {
            Ok(len) => all.push((name.to_vec(), value[..len].to_vec())),
            // Removed meanwhile, or listed to all and readable to few.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    all.sort_unstable();
    Ok(all)
}
