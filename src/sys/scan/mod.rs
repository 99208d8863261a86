//! Reading a directory tree that others wrote, by descriptor: no symlink is followed and the directory is never left.
//!
//! Several threads list and stat; small files are read at once, as long as a budget lasts, since they are open already.
//! What is found says nothing of what it means: overlay's marks are for floors above.
//!
//! All that is found is held in memory, so limits are asked while it is read (`Bounds`), and equal sets of attributes
//! are held once. A bounded number of directories is open: later ones are opened again, by their path, when their turn
//! comes.

mod attributes;
mod bounds;
mod found;

pub(crate) use attributes::{RawXattr, Xattrs};
pub(crate) use bounds::Bounds;
pub(crate) use found::{Found, FoundKind, Scan, ScannedDir, join};

use super::publish::io_error;
use super::walk::{self, open_below};
use crate::error::{Error, Result};
use crate::observe::{Observer, check};
use attributes::{Reader, Sets, Space};
use bounds::{Attempt, Count, Fault};
use found::found;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Files of at most this many bytes are read while they are open.
const KEEP: usize = 64 << 10;
/// Names one thread takes at a time.
const BATCH: usize = 128;
/// Directories that are open because tasks wait for them; beside each thread's own.
const HELD: usize = 16;

/// Reads all of `dir` but the contents of large files, on `threads` threads.
///
/// # Errors
/// `NotFound`, `Io`; `LimitExceeded` beyond `bounds`; `FailedPrecondition` if something changes meanwhile; `Cancelled`.
pub(crate) fn scan(dir: &Path, threads: usize, bounds: &Bounds, observer: &dyn Observer) -> Result<Scan> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| io_error("open", dir, e))?;
    let scanned = ScannedDir { fd, path: dir.to_owned() };
    let again = scanned.fd.try_clone().map_err(|e| io_error("duplicate the handle of", dir, e))?;
    let at =
        Arc::new(OpenDir { fd: Some(again), number: 0, path: Vec::new(), depth: 0, id: (0, 0), held: OnceLock::new() });
    let scanner = Scanner {
        dir: &scanned,
        bounds,
        budget: AtomicUsize::new(bounds.kept),
        count: Count::default(),
        held: Arc::default(),
        xattrs: Sets::default(),
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
    drop(scanner.xattrs);
    let Work { failure, mut dirs, .. } = scanner.work.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(e) = failure {
        return Err(e);
    }
    dirs.iter_mut().for_each(|dir| dir.sort_unstable_by(|a, b| a.name.cmp(&b.name)));
    Ok(Scan { dir: Arc::new(scanned), root, dirs })
}

/// A directory being read, or to be read.
struct OpenDir {
    /// `None` if too many are open already: then it is opened again by its path.
    fd: Option<OwnedFd>,
    number: usize,
    /// Below the root.
    path: Vec<u8>,
    /// Components of `path`.
    depth: usize,
    id: walk::Id,
    /// Counts it among those that are open for tasks.
    held: OnceLock<Arc<()>>,
}

/// What a thread takes on. The latest is done first, so that few directories wait.
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
    bounds: &'a Bounds,
    budget: AtomicUsize,
    count: Count,
    /// Has a clone in each directory that is open for tasks.
    held: Arc<()>,
    xattrs: Sets,
    work: Mutex<Work>,
    more: Condvar,
    observer: &'a dyn Observer,
}

/// A thread's own.
struct Buffers {
    xattrs: Space,
    content: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { xattrs: Space::default(), content: vec![0; KEEP + 1] }
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
        let fd = self.open(at)?;
        let mut read = || -> Attempt<Found> {
            let stat = rustix::fs::fstat(&fd)?;
            let xattrs = self.xattrs().of(&fd, &mut buffers.xattrs)?;
            Ok(found(Box::default(), &stat, FoundKind::Directory(0), xattrs))
        };
        read().map_err(|fault| self.failed(b"", fault))
    }

    /// The handle of a directory, opened again if it is not open.
    fn open<'d>(&self, dir: &'d OpenDir) -> Result<Handle<'d>> {
        if let Some(fd) = &dir.fd {
            return Ok(Handle::Held(fd.as_fd()));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || -> Attempt<(OwnedFd, Stat)> {
            let fd = open_below(&self.dir.fd, &dir.path, flags)?;
            let stat = rustix::fs::fstat(&fd)?;
            Ok((fd, stat))
        };
        let (fd, stat) = open().map_err(|fault| self.failed(&dir.path, fault))?;
        if walk::id(&stat) == dir.id { Ok(Handle::Again(fd)) } else { Err(self.dir.changed(&dir.path)) }
    }

    fn failed(&self, path: &[u8], fault: Fault) -> Error {
        match fault {
            Fault::Errno(Errno::LOOP | Errno::NOENT | Errno::NXIO | Errno::NOTDIR) => self.dir.changed(path),
            Fault::Errno(e) => io_error("read", &self.dir.named(path), e),
            Fault::Limit(e) => e.subject(self.dir.named(path).display()),
        }
    }

    fn count(&self, dir: &OpenDir, name: &[u8]) -> Attempt<()> {
        let len = dir.path.len() + usize::from(dir.depth > 0) + name.len();
        self.count.name(self.bounds, dir.depth + 1, len)
    }

    fn xattrs(&self) -> Reader<'_> {
        Reader { bounds: self.bounds, count: &self.count, sets: &self.xattrs }
    }

    /// Opens a directory, notes it among its parent's names, and goes on with what is in it.
    fn directory(&self, parent: &Arc<OpenDir>, name: Box<[u8]>, buffers: &mut Buffers) -> Result<()> {
        let path = join(&parent.path, &name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut read = || -> Attempt<(OwnedFd, Stat, Xattrs)> {
            self.count(parent, &name)?;
            let fd = match &parent.fd {
                Some(parent) => rustix::fs::openat(parent, &name[..], flags, Mode::empty())?,
                None => open_below(&self.dir.fd, &path, flags)?,
            };
            let stat = rustix::fs::fstat(&fd)?;
            let xattrs = self.xattrs().of(&fd, &mut buffers.xattrs)?;
            Ok((fd, stat, xattrs))
        };
        let (fd, stat, xattrs) = read().map_err(|fault| self.failed(&path, fault))?;
        let number = {
            let mut work = self.lock();
            work.dirs.push(Vec::new());
            let number = work.dirs.len() - 1;
            work.dirs[parent.number].push(found(name, &stat, FoundKind::Directory(number), xattrs));
            number
        };
        let (depth, id) = (parent.depth + 1, walk::id(&stat));
        self.list(Arc::new(OpenDir { fd: Some(fd), number, path, depth, id, held: OnceLock::new() }), buffers)
    }

    /// Lists an open directory: subdirectories and surplus names become tasks.
    fn list(&self, dir: Arc<OpenDir>, buffers: &mut Buffers) -> Result<()> {
        let mut space = vec![MaybeUninit::uninit(); 32 << 10];
        let handle = self.open(&dir)?;
        let mut listing = RawDir::new(handle.as_fd(), &mut space);
        let (mut names, mut dirs) = (Vec::new(), Vec::new());
        while let Some(entry) = listing.next() {
            let entry = entry.map_err(|e| io_error("read directory", &self.dir.named(&dir.path), e))?;
            let name = entry.file_name().to_bytes();
            match entry.file_type() {
                _ if matches!(name, b"." | b"..") => {}
                FileType::Directory => dirs.push(Box::from(name)),
                kind => names.push((Box::from(name), kind)),
            }
            let listed = self.count.check(self.bounds, (names.len() + dirs.len()) as u64);
            listed.map_err(|fault| self.failed(&dir.path, fault))?;
        }
        if dirs.is_empty() && names.len() <= BATCH {
            return self.names(&dir, names, buffers);
        }
        // This thread has it open for the names it takes on itself.
        let later = self.for_tasks(&dir);
        let mut tasks: Vec<Task> =
            dirs.into_iter().map(|name| Task::Directory { parent: later.clone(), name }).collect();
        while names.len() > BATCH {
            let rest = names.split_off(names.len() - BATCH);
            tasks.push(Task::Names { dir: later.clone(), names: rest });
        }
        drop(later);
        self.lock().tasks.extend(tasks);
        self.more.notify_all();
        self.names(&dir, names, buffers)
    }

    /// The directory as tasks get it: open while few are, and closed otherwise.
    fn for_tasks(&self, dir: &Arc<OpenDir>) -> Arc<OpenDir> {
        let room = Arc::strong_count(&self.held) <= HELD;
        if dir.held.get().is_some() || dir.fd.is_some() && room && dir.held.set(self.held.clone()).is_ok() {
            return dir.clone();
        }
        let OpenDir { number, path, depth, id, .. } = &**dir;
        let (number, path, depth, id) = (*number, path.clone(), *depth, *id);
        Arc::new(OpenDir { fd: None, number, path, depth, id, held: OnceLock::new() })
    }

    fn names(&self, dir: &Arc<OpenDir>, names: Vec<(Box<[u8]>, FileType)>, buffers: &mut Buffers) -> Result<()> {
        let handle = self.open(dir)?;
        let at = At { dir, fd: handle.as_fd() };
        let mut all = Vec::with_capacity(names.len());
        for (name, kind) in names {
            let entry = match kind {
                FileType::RegularFile => self.file(at, name.clone(), buffers).map(Some),
                kind => self.other(at, name.clone(), kind, buffers),
            };
            all.extend(entry.map_err(|fault| self.failed(&join(&dir.path, &name), fault))?);
        }
        self.lock().dirs[dir.number].append(&mut all);
        Ok(())
    }

    fn file(&self, at: At<'_>, name: Box<[u8]>, buffers: &mut Buffers) -> Attempt<Found> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |flags| rustix::fs::openat(at.fd, &name[..], flags, Mode::empty());
        self.count(at.dir, &name)?;
        let fd = match open(flags | OFlags::NOATIME) {
            Err(Errno::PERM) => open(flags),
            other => other,
        }?;
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::LOOP.into());
        }
        let xattrs = self.xattrs().of(&fd, &mut buffers.xattrs)?;
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
    fn other(&self, at: At<'_>, name: Box<[u8]>, kind: FileType, buffers: &mut Buffers) -> Attempt<Option<Found>> {
        let stat = rustix::fs::statat(at.fd, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
        let is = FileType::from_raw_mode(stat.st_mode);
        if is != kind && kind != FileType::Unknown {
            return Err(Errno::LOOP.into());
        }
        match is {
            FileType::Directory => {
                let parent = self.for_tasks(at.dir);
                self.lock().tasks.push(Task::Directory { parent, name });
                self.more.notify_all();
                return Ok(None);
            }
            FileType::RegularFile => return self.file(at, name, buffers).map(Some),
            _ => self.count(at.dir, &name)?,
        }
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match is {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(at.fd, &name[..], Vec::new())?.into_bytes();
                self.count.bytes(self.bounds, target.len() as u64)?;
                FoundKind::Symlink(target)
            }
            FileType::CharacterDevice => FoundKind::CharDevice(device.0, device.1),
            FileType::BlockDevice => FoundKind::BlockDevice(device.0, device.1),
            FileType::Fifo => FoundKind::Fifo,
            _ => FoundKind::Socket,
        };
        let xattrs = self.xattrs().at(at.fd, &name, &mut buffers.xattrs)?;
        Ok(Some(found(name, &stat, kind, xattrs)))
    }
}

/// A directory of which names are read.
#[derive(Clone, Copy)]
struct At<'a> {
    dir: &'a Arc<OpenDir>,
    fd: BorrowedFd<'a>,
}

/// The handle of a directory.
enum Handle<'a> {
    Held(BorrowedFd<'a>),
    Again(OwnedFd),
}

impl AsFd for Handle<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(fd) => *fd,
            Self::Again(fd) => fd.as_fd(),
        }
    }
}

/// Lets the other threads stop when one panics; the panic itself is passed on by the scope that joins them.
struct Panicked<'a, 'b>(&'a Scanner<'b>);

impl Drop for Panicked<'_, '_> {
    fn drop(&mut self) {
        self.0.done(Err(Error::corrupt("a thread that read a directory failed")));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::limits::Limits;
    use std::fs;

    fn bounds(attributes: u64) -> Bounds {
        Bounds::layer(&Limits::default().attributes(attributes))
    }

    fn refused(dir: &Path, bounds: &Bounds) -> String {
        let Err(e) = scan(dir, 2, bounds, &()) else { panic!("{} is within the bounds", dir.display()) };
        assert_eq!(e.kind(), ErrorKind::LimitExceeded, "{e}");
        e.to_string()
    }

    /// A directory of `count` files with an attribute of `len` bytes, which `different` sets apart.
    fn with_attributes(count: usize, len: usize, different: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/target").unwrap();
        for n in 0..count {
            let path = dir.path().join(n.to_string());
            fs::write(&path, "").unwrap();
            let mut value = vec![b'x'; len];
            value[0] = if different { n as u8 } else { 0 };
            rustix::fs::setxattr(&path, "user.a", &value, rustix::fs::XattrFlags::empty()).unwrap();
        }
        dir
    }

    #[test]
    fn equal_attributes_are_held_once() {
        for (different, sets) in [(false, 1), (true, 10)] {
            let dir = with_attributes(10, 1000, different);
            let scan = scan(dir.path(), 2, &bounds(64 << 20), &()).unwrap();
            let keys: std::collections::HashSet<_> = scan.dirs[0].iter().map(|f| f.xattrs.key()).collect();
            assert_eq!((scan.dirs[0].len(), keys.len()), (10, sets));
            assert!(scan.dirs[0].iter().all(|f| f.xattrs.is_shared() != different));
        }
    }

    /// Each file counts a path of one byte and an attribute of 64, 6 and 1,000, of which 256 are free.
    #[test]
    fn attributes_are_limited_while_they_are_read() {
        let dir = with_attributes(10, 1000, false);
        scan(dir.path(), 1, &bounds(10 * (1 + 64 + 6 + 1000 - 256)), &()).unwrap();
        let error = refused(dir.path(), &bounds(10 * (1 + 64 + 6 + 1000 - 256) - 1));
        assert!(error.contains("too many bytes of paths, link targets and extended attributes"), "{error}");
        scan(dir.path(), 1, &Bounds::tree(&Limits::default().attributes(1020)), &()).unwrap();
    }

    #[test]
    fn names_targets_and_depth_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        fs::create_dir_all(&deep).unwrap();
        std::os::unix::fs::symlink("t".repeat(4000), deep.join("link")).unwrap();
        let limits = Limits::default();
        let within = |limits: Limits| scan(dir.path(), 2, &Bounds::layer(&limits), &()).map(|scan| scan.dirs.len());
        assert_eq!(within(limits.clone()).unwrap(), 4);
        assert_eq!(within(limits.clone().entries(4)).unwrap(), 4);
        let depth = |depth| Bounds::layer(&Limits { depth, ..limits.clone() });
        let path = |path| Bounds::layer(&Limits { path, ..limits.clone() });
        assert!(scan(dir.path(), 2, &depth(4), &()).is_ok() && scan(dir.path(), 2, &path(10), &()).is_ok());
        assert!(refused(dir.path(), &depth(3)).contains("a/b/c/link: directories nested too deep"));
        assert!(refused(dir.path(), &path(9)).contains("the path is too long"));
        assert!(refused(dir.path(), &Bounds::layer(&limits.clone().entries(3))).contains("too many files"));
        assert!(refused(dir.path(), &bounds(2000)).contains("link targets"));
    }
}
