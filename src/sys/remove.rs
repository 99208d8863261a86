//! Removes trees that others wrote, and may still be writing.
//!
//! The walk is that of [`walk`](super::walk): few descriptors, no symlink followed, no mount entered. A directory whose
//! owner may not change it is opened up first, which needs no privilege for one's own.

use super::publish::io_error;
use super::walk::{self, Failure, Id, Visitor, subdirectory};
use crate::error::Result;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What is needed to remove what is in a directory.
const OWNER: u32 = 0o700;

/// Removes what is at `path`: a file, a symlink itself, or a directory with all that is in it, however deep and wide it
/// is. A path at which nothing is is fine. What cannot be removed stays, and the rest is removed all the same.
///
/// Nothing outside of the directory is removed, whatever somebody renames or links meanwhile. Mounts are not entered.
/// The directory that `path` is in must be trusted.
///
/// # Errors
/// The first failure, with its path.
pub fn remove_tree(path: &Path) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Err(io_error("remove", path, Errno::INVAL));
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let dir = match fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        dir => dir.map_err(|e| io_error("open", parent, e))?,
    };
    name_in(dir.as_fd(), name.as_bytes()).map_err(|e| failed(parent, &e))
}

fn failed(root: &Path, failure: &Failure) -> crate::Error {
    io_error("remove", &root.join(OsStr::from_bytes(&failure.path)), failure.errno)
}

/// Removes a name and, if it is a directory's, all that is in it. A name that is not there is fine.
pub(super) fn name_in(dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<(), Failure> {
    let at = |errno| Failure { path: name.to_vec(), errno };
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // EISDIR on Linux; EPERM is what POSIX says.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(at(e)),
    }
    let own = fs::openat(dir, c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(at)?;
    let name = CString::new(name).map_err(|_| at(Errno::INVAL))?;
    walk::one(own, &name, &mut Remove)
}

/// Removes all that is in a directory.
pub(super) fn all_in(dir: BorrowedFd<'_>) -> std::result::Result<(), Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = fs::openat(dir, c".", flags, Mode::empty()).map_err(|errno| Failure { path: vec![], errno })?;
    walk::below(own, &mut Remove)
}

/// Removes what a walk comes to.
pub(super) struct Remove;

impl Visitor for Remove {
    /// An empty directory goes by one call instead of six. A mount, a symlink and a full directory are refused, and are
    /// visited.
    fn is_done(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> bool {
        fs::unlinkat(dir, name, AtFlags::REMOVEDIR).is_ok()
    }

    fn open(&mut self, dir: BorrowedFd<'_>, name: &CStr, parent: Id) -> rustix::io::Result<(OwnedFd, Stat)> {
        let (fd, stat) = match subdirectory(dir, name, parent) {
            Err(Errno::ACCESS) => {
                open_up(dir, name)?;
                subdirectory(dir, name, parent)?
            }
            other => other?,
        };
        if stat.st_mode & OWNER != OWNER {
            // Of a directory that is another's, removing says what cannot be done.
            let _ = fs::fchmod(&fd, Mode::RWXU);
        }
        Ok((fd, stat))
    }

    fn name(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> rustix::io::Result<bool> {
        if kind == FileType::Directory {
            return Ok(true);
        }
        match fs::unlinkat(dir, name, AtFlags::empty()) {
            // It has become a directory, or the file system does not tell types.
            Err(Errno::ISDIR) => Ok(true),
            other => other.map(|()| false),
        }
    }

    fn no_directory(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        match fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    fn left(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
    }
}

/// Lets the owner of a directory into it.
fn open_up(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = fs::openat(dir, name, flags, Mode::empty())?;
    // `fchmod` takes no descriptor like this one; what /proc/self/fd leads to is the directory itself.
    fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), Mode::RWXU)
}
