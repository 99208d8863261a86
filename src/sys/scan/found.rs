//! What a scan found, and the directory to read its files from.

use super::Xattrs;
use crate::error::{Error, Result};
use crate::sys::publish::io_error;
use crate::sys::walk::open_below;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

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
    pub(crate) xattrs: Xattrs,
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
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

impl ScannedDir {
    /// Opens the regular file at `path`, through directories only.
    pub(crate) fn open_file(&self, path: &[u8]) -> Result<File> {
        let named = |e: Errno| io_error("open", &self.named(path), e);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |flags| open_below(&self.fd, path, flags);
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

pub(super) fn found(name: Box<[u8]>, stat: &Stat, kind: FoundKind, xattrs: Xattrs) -> Found {
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

pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
    [dir, slash, name].concat()
}
