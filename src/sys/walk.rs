//! Walks a directory tree that others wrote, with a bounded number of descriptors and no stack frame for each level.
//!
//! A tree of a container may be tens of thousands of directories deep and millions wide, and somebody may rename
//! directories while it is walked. So:
//!
//! - A directory is opened by its name relative to the directory it was found in. No symlink is followed and no mount
//!   is entered.
//! - The descriptors of the root and of the [`HELD`] innermost directories are kept. The way back to any other is `..`,
//!   which counts only if it has the device and inode number of the directory that the walk came through. Otherwise
//!   somebody moved a directory, and the walk begins anew, a bounded number of times.
//! - The names of subdirectories that are still to come are held in one buffer. Once it is large, a directory is read a
//!   piece at a time and continued at the place where the piece ended.
//!
//! A failure does not end a walk: the rest is visited, and the first failure is returned with its path.
//!
//! Not here: reading a tree on several threads (`scan.rs`), which holds all of it in memory.

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Stat};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Innermost directories whose descriptors are kept.
const HELD: usize = 16;
/// Bytes of names above which no directory is read further than one buffer.
const NAMES: usize = 4 << 20;
/// Bytes of directory entries read at a time.
const BUFFER: usize = 32 << 10;
/// How often a walk begins anew because a directory was moved.
const RESTARTS: u32 = 16;
/// How often a directory is visited again because it is not empty although all in it was removed.
const AGAIN: u32 = 64;
/// The longest path the kernel takes, its ending NUL included.
const PATH_MAX: usize = 4096;

/// Device and inode number.
pub(crate) type Id = (u64, u64);

pub(crate) fn id(stat: &Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}

/// The first thing that failed, and where: a path below the root, of at most `PATH_MAX` bytes.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) path: Vec<u8>,
    pub(super) errno: Errno,
}

/// What a walk does.
pub(super) trait Visitor {
    /// The walk begins, perhaps not for the first time.
    fn begin(&mut self) {}

    /// Whether the subdirectory `name` needs no visit.
    fn is_done(&mut self, _dir: BorrowedFd<'_>, _name: &CStr) -> bool {
        false
    }

    /// Opens the subdirectory `name`.
    fn open(&mut self, dir: BorrowedFd<'_>, name: &CStr, parent: Id) -> Result<(OwnedFd, Stat)>;

    /// A subdirectory was opened, or the root.
    fn entered(&mut self, _stat: &Stat) {}

    /// A name was read. Returns whether it may be a subdirectory, which is opened later.
    fn name(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<bool>;

    /// A name that may be a subdirectory cannot be opened as one.
    fn no_directory(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<()>;

    /// All in the subdirectory `name` was visited without failure. `NOTEMPTY` has it visited again.
    fn left(&mut self, _dir: BorrowedFd<'_>, _name: &CStr) -> Result<()> {
        Ok(())
    }
}

/// A directory that was entered and is not left yet.
struct Level {
    /// Always there for the innermost one.
    fd: Option<OwnedFd>,
    id: Id,
    /// Where the names of its subdirectories begin in the walk's buffer. The last one is visited next, or now.
    names: usize,
    /// Where to read on; `None` at its end.
    cookie: Option<u64>,
    /// How often the last subdirectory was visited again.
    again: u32,
    /// Something in it failed.
    failed: bool,
}

/// A directory was moved while the walk was below it.
struct Moved;

struct Walk<'v, V> {
    visitor: &'v mut V,
    levels: Vec<Level>,
    /// Names of subdirectories to come, each with its NUL.
    names: Vec<u8>,
    buffer: Vec<MaybeUninit<u8>>,
    failure: Option<Failure>,
}

/// Visits all that is in the directory `root`, an open one of its own that is read from its beginning.
pub(super) fn below(root: OwnedFd, visitor: &mut impl Visitor) -> std::result::Result<(), Failure> {
    walk(root, None, visitor)
}

/// Visits the subdirectory `name` of `dir` and all that is in it.
pub(super) fn one(dir: OwnedFd, name: &CStr, visitor: &mut impl Visitor) -> std::result::Result<(), Failure> {
    walk(dir, Some(name), visitor)
}

fn walk(root: OwnedFd, only: Option<&CStr>, visitor: &mut impl Visitor) -> std::result::Result<(), Failure> {
    let at_root = |errno| Failure { path: vec![], errno };
    let stat = rustix::fs::fstat(&root).map_err(at_root)?;
    let buffer = vec![MaybeUninit::uninit(); BUFFER];
    let mut walk = Walk { visitor, levels: vec![], names: vec![], buffer, failure: None };
    let mut root = Some(root);
    for _ in 0..RESTARTS {
        walk.begin(root.take(), &stat, only);
        match walk.run() {
            Ok(()) => return walk.failure.map_or(Ok(()), Err),
            Err(Moved) => {
                root = walk.levels.swap_remove(0).fd;
                if let Some(root) = &root {
                    rustix::fs::seek(root, SeekFrom::Start(0)).map_err(at_root)?;
                }
            }
        }
    }
    Err(at_root(Errno::BUSY))
}

impl<V: Visitor> Walk<'_, V> {
    fn begin(&mut self, fd: Option<OwnedFd>, stat: &Stat, only: Option<&CStr>) {
        self.levels.clear();
        self.names.clear();
        self.failure = None;
        self.visitor.begin();
        let cookie = match only {
            Some(name) => {
                self.names.extend_from_slice(name.to_bytes_with_nul());
                None
            }
            None => {
                self.visitor.entered(stat);
                Some(0)
            }
        };
        self.levels.push(Level { fd, id: id(stat), names: 0, cookie, again: 0, failed: false });
    }

    fn run(&mut self) -> std::result::Result<(), Moved> {
        while let Some(level) = self.levels.last() {
            if self.names.len() > level.names {
                self.descend();
            } else if let Some(cookie) = level.cookie {
                self.read(cookie);
            } else if self.levels.len() == 1 {
                break;
            } else {
                self.ascend()?;
            }
        }
        Ok(())
    }

    /// The subdirectory that is visited next, or now.
    fn last_name(&self) -> CString {
        let end = self.names.len().saturating_sub(1);
        let start = self.names[..end].iter().rposition(|&b| b == 0).map_or(0, |nul| nul + 1);
        CString::new(&self.names[start..end]).unwrap_or_default()
    }

    fn drop_name(&mut self, name: &CStr) {
        self.names.truncate(self.names.len() - name.to_bytes_with_nul().len());
        self.innermost().again = 0;
    }

    fn innermost(&mut self) -> &mut Level {
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    /// Runs `work` with the innermost directory.
    fn with_fd<T>(&mut self, work: impl FnOnce(&mut V, BorrowedFd<'_>) -> Result<T>) -> Result<T> {
        let fd = self.levels.last().and_then(|level| level.fd.as_ref()).ok_or(Errno::BADF)?;
        work(self.visitor, fd.as_fd())
    }

    fn descend(&mut self) {
        let (name, parent) = (self.last_name(), self.innermost().id);
        if self.with_fd(|visitor, fd| Ok(visitor.is_done(fd, &name))) == Ok(true) {
            self.drop_name(&name);
            return;
        }
        let opened = self.with_fd(|visitor, fd| visitor.open(fd, &name, parent));
        let done = match opened {
            Ok((fd, stat)) => {
                self.visitor.entered(&stat);
                let names = self.names.len();
                self.levels.push(Level {
                    fd: Some(fd),
                    id: id(&stat),
                    names,
                    cookie: Some(0),
                    again: 0,
                    failed: false,
                });
                // The root's stays, to begin anew with.
                if let Some(above) = self.levels.len().checked_sub(HELD + 1).filter(|&above| above > 0) {
                    self.levels[above].fd = None;
                }
                return;
            }
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => self.with_fd(|visitor, fd| visitor.no_directory(fd, &name)),
            Err(e) => Err(e),
        };
        done.unwrap_or_else(|errno| self.fail(Some(&name), errno));
        self.drop_name(&name);
    }

    /// Reads names from `cookie` on: to the end of the directory, or of one buffer when many names are held.
    fn read(&mut self, cookie: u64) {
        let Some(fd) = self.innermost().fd.take() else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut next = None;
        // A directory that was just opened is at its beginning, and so is the root.
        let sought = if cookie == 0 { Ok(0) } else { rustix::fs::seek(&fd, SeekFrom::Start(cookie)) };
        match sought {
            Err(errno) => self.fail(None, errno),
            Ok(_) => {
                let mut listing = RawDir::new(&fd, &mut buffer);
                loop {
                    let cookie = match listing.next() {
                        None => break,
                        Some(Err(errno)) => {
                            self.fail(None, errno);
                            break;
                        }
                        Some(Ok(entry)) => {
                            self.name(fd.as_fd(), entry.file_name(), entry.file_type());
                            entry.next_entry_cookie()
                        }
                    };
                    if self.names.len() > NAMES && listing.is_buffer_empty() {
                        next = Some(cookie);
                        break;
                    }
                }
            }
        }
        self.buffer = buffer;
        let level = self.innermost();
        (level.fd, level.cookie) = (Some(fd), next);
    }

    fn name(&mut self, fd: BorrowedFd<'_>, name: &CStr, kind: FileType) {
        if matches!(name.to_bytes(), b"." | b"..") {
            return;
        }
        match self.visitor.name(fd, name, kind) {
            Ok(true) => self.names.extend_from_slice(name.to_bytes_with_nul()),
            Ok(false) | Err(Errno::NOENT) => {}
            Err(errno) => self.fail(Some(name), errno),
        }
    }

    /// Leaves the innermost directory for the one it was found in.
    fn ascend(&mut self) -> std::result::Result<(), Moved> {
        let Some(child) = self.levels.pop() else { return Ok(()) };
        let parent = self.innermost();
        if parent.fd.is_none() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let up = child.fd.ok_or(Errno::BADF).and_then(|fd| rustix::fs::openat(&fd, c"..", flags, Mode::empty()));
            let up = up.and_then(|up| Ok((rustix::fs::fstat(&up)?, up)));
            parent.fd = up.ok().filter(|(stat, _)| id(stat) == parent.id).map(|(_, up)| up);
            if parent.fd.is_none() {
                return Err(Moved);
            }
        }
        let (name, again) = (self.last_name(), self.innermost().again);
        if child.failed {
            self.innermost().failed = true;
            self.drop_name(&name);
            return Ok(());
        }
        let done = match self.with_fd(|visitor, fd| visitor.left(fd, &name)) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if again < AGAIN => {
                self.innermost().again += 1;
                return Ok(());
            }
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR) => self.with_fd(|visitor, fd| visitor.no_directory(fd, &name)),
            other => other,
        };
        done.unwrap_or_else(|errno| self.fail(Some(&name), errno));
        self.drop_name(&name);
        Ok(())
    }

    /// Notes a failure of the innermost directory, or of `name` in it.
    fn fail(&mut self, name: Option<&CStr>, errno: Errno) {
        self.innermost().failed = true;
        if self.failure.is_some() {
            return;
        }
        // Where the names of a level begin, the name of its directory ends.
        let ends = self.levels.iter().skip(1).map(|level| level.names.saturating_sub(1));
        let above = ends.map(|end| self.names[..end].rsplit(|&b| b == 0).next().unwrap_or_default());
        let mut path: Vec<u8> = Vec::new();
        for part in above.chain(name.map(CStr::to_bytes)) {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
            if path.len() >= PATH_MAX {
                break;
            }
        }
        path.truncate(PATH_MAX);
        self.failure = Some(Failure { path, errno });
    }
}

/// Opens the subdirectory `name` for reading; no symlink is followed and no mount is entered. `parent` is what it is in.
pub(super) fn subdirectory(dir: BorrowedFd<'_>, name: &CStr, parent: Id) -> Result<(OwnedFd, Stat)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
        // A sandbox, or Linux before 5.6.
        Err(Errno::NOSYS | Errno::PERM) => {
            let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            let stat = rustix::fs::fstat(&fd)?;
            if stat.st_dev == parent.0 { Ok((fd, stat)) } else { Err(Errno::XDEV) }
        }
        fd => {
            let fd = fd?;
            let stat = rustix::fs::fstat(&fd)?;
            Ok((fd, stat))
        }
    }
}

/// Opens what is at a relative path of any length, no component of which may be a symlink or lead out of `dir`.
pub(crate) fn open_below(dir: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut path = if path.is_empty() { b"." } else { path };
    let mut at: Option<OwnedFd> = None;
    loop {
        let end = piece(path);
        let flags = if end == path.len() { flags } else { through };
        let from = at.as_ref().map_or(dir.as_fd(), |at| at.as_fd());
        let next = match rustix::fs::openat2(from, &path[..end], flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS | Errno::PERM) => by_names(from, &path[..end], flags),
            other => other,
        }?;
        if end == path.len() {
            return Ok(next);
        }
        (at, path) = (Some(next), &path[end + 1..]);
    }
}

/// How much of a path the kernel takes at once; the rest begins behind a slash.
fn piece(path: &[u8]) -> usize {
    if path.len() < PATH_MAX {
        return path.len();
    }
    path[..PATH_MAX].iter().rposition(|&b| b == b'/').unwrap_or(path.len())
}

fn by_names(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    let mut names = path.split(|&b| b == b'/').peekable();
    while let Some(name) = names.next() {
        if name == b".." {
            return Err(Errno::XDEV);
        }
        let from = at.as_ref().map_or(dir, |at| at.as_fd());
        let last = names.peek().is_none();
        let next =
            rustix::fs::openat(from, name, if last { flags | OFlags::NOFOLLOW } else { through }, Mode::empty())?;
        if last {
            return Ok(next);
        }
        at = Some(next);
    }
    Err(Errno::NOENT)
}
