//! Names in an open directory: looked at, read, removed and exchanged without following a symlink.

use super::dirs::Dir;
use rustix::fd::AsFd;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: FileType,
    pub(crate) owner: u32,
    pub(crate) size: u64,
    pub(crate) links: u64,
}

impl Found {
    /// A regular file with this name alone that belongs to whoever runs this process.
    pub(crate) fn is_own_file(&self) -> bool {
        self.kind == FileType::RegularFile && self.links == 1 && self.is_own()
    }

    pub(crate) fn is_own(&self) -> bool {
        self.owner == rustix::process::geteuid().as_raw()
    }
}

impl From<fs::Stat> for Found {
    fn from(stat: fs::Stat) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode);
        Self { kind, owner: stat.st_uid, size: stat.st_size.max(0) as u64, links: stat.st_nlink as u64 }
    }
}

impl Dir {
    /// Opens the directory that a path leads to now, through symlinks. It stays the same directory from then on.
    pub(crate) fn resolve(path: &Path) -> Result<Self> {
        fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Self::from)
    }

    /// What the directory itself is.
    pub(crate) fn itself(&self) -> Result<Found> {
        fs::fstat(self.as_fd()).map(Found::from)
    }

    /// Its file system and inode number.
    pub(crate) fn inode(&self) -> Result<(u64, u64)> {
        fs::fstat(self.as_fd()).map(|stat| (stat.st_dev, stat.st_ino))
    }

    /// What has this name; `None` for nothing.
    pub(crate) fn find(&self, name: &[u8]) -> Result<Option<Found>> {
        match fs::statat(self.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All names, in no order.
    pub(crate) fn names(&self) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for found in fs::Dir::read_from(self.as_fd())? {
            let found = found?;
            if !matches!(found.file_name().to_bytes(), b"." | b"..") {
                names.push(found.file_name().to_bytes().to_vec());
            }
        }
        Ok(names)
    }

    pub(crate) fn read_link(&self, name: &[u8]) -> Result<Vec<u8>> {
        fs::readlinkat(self.as_fd(), name, Vec::new()).map(std::ffi::CString::into_bytes)
    }

    /// Whether a file that [`Found::is_own_file`] holds exactly these bytes.
    pub(crate) fn holds(&self, name: &[u8], bytes: &[u8]) -> bool {
        // What has the name now may be a FIFO that nobody writes to: opening it must not wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let Ok(file) = fs::openat(self.as_fd(), name, flags, Mode::empty()) else { return false };
        let found = fs::fstat(&file).map(Found::from);
        if !found.is_ok_and(|found| found.is_own_file() && found.size == bytes.len() as u64) {
            return false;
        }
        let mut there = Vec::with_capacity(bytes.len());
        let read = File::from(file).take(bytes.len() as u64 + 1).read_to_end(&mut there);
        read.is_ok() && there == bytes
    }

    /// Removes a name that is no directory's.
    pub(crate) fn unlink(&self, name: &[u8]) -> Result<()> {
        fs::unlinkat(self.as_fd(), name, AtFlags::empty())
    }

    /// Removes an empty directory.
    pub(crate) fn remove_empty(&self, name: &[u8]) -> Result<()> {
        fs::unlinkat(self.as_fd(), name, AtFlags::REMOVEDIR)
    }

    /// Gives what is called `old` the name `new`, in place of what has that.
    pub(crate) fn rename(&self, old: &[u8], new: &[u8]) -> Result<()> {
        fs::renameat(self.as_fd(), old, self.as_fd(), new)
    }

    /// Lets nobody but its owner in.
    pub(crate) fn close_to_others(&self) -> Result<()> {
        fs::fchmod(self.as_fd(), Mode::RWXU)
    }

    /// Makes the names in it durable.
    pub(crate) fn sync(&self) -> Result<()> {
        fs::fsync(self.as_fd())
    }
}

/// A directory that was looked up once, with a path that leads to it whatever has its name by now. For what takes paths.
#[derive(Debug)]
pub(crate) struct Held {
    dir: Dir,
    path: PathBuf,
    shown: PathBuf,
}

impl Held {
    /// Holds the directory that a path leads to now, through symlinks.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self::of(Dir::resolve(path)?, path.to_owned()))
    }

    fn of(dir: Dir, shown: PathBuf) -> Self {
        // The dot: what is opened is no symlink then.
        let path = PathBuf::from(format!("/proc/self/fd/{}/.", dir.as_fd().as_raw_fd()));
        Self { dir, path, shown }
    }

    /// Holds a directory below, which is made as far as it is missing. No part of its path may be a symlink.
    pub(crate) fn enter(&self, below: &str) -> Result<Self> {
        let mut dir = self.dir.below(b"", true)?;
        for name in below.split('/') {
            match fs::mkdirat(dir.as_fd(), name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => dir = dir.below(name.as_bytes(), true)?,
                Err(e) => return Err(e),
            }
        }
        Ok(Self::of(dir, self.shown.join(below)))
    }

    /// What to give to calls that take a path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What to tell people.
    pub(crate) fn shown(&self) -> &Path {
        &self.shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_name_is_looked_at_and_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("file"), "bytes").unwrap();
        symlink("file", scratch.path().join("link")).unwrap();
        fs::mknodat(fs::CWD, scratch.path().join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let dir = Dir::resolve(scratch.path()).unwrap();
        assert!(dir.holds(b"file", b"bytes") && !dir.holds(b"file", b"byte") && !dir.holds(b"file", b"other"));
        assert!(!dir.holds(b"link", b"bytes") && !dir.holds(b"fifo", b"") && !dir.holds(b"none", b""));
        assert_eq!(dir.find(b"link").unwrap().unwrap().kind, FileType::Symlink);
        assert_eq!(dir.find(b"none").unwrap(), None);
        std::fs::hard_link(scratch.path().join("file"), scratch.path().join("second")).unwrap();
        assert!(!dir.holds(b"file", b"bytes"), "another name may be anybody's");
        assert_eq!(dir.read_link(b"link").unwrap(), b"file");
        assert_eq!(dir.names().unwrap().len(), 4);
    }

    #[test]
    fn a_held_directory_stays_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        std::fs::create_dir(at("dir")).unwrap();
        std::fs::create_dir(at("other")).unwrap();
        let held = Held::open(&at("dir")).unwrap();
        std::fs::rename(at("dir"), at("moved")).unwrap();
        symlink(at("other"), at("dir")).unwrap();
        std::fs::write(held.path().join("file"), "").unwrap();
        std::fs::write(held.enter("a/b").unwrap().path().join("deep"), "").unwrap();
        assert!(at("moved/file").exists() && at("moved/a/b/deep").exists());
        symlink(at("other"), at("moved/link")).unwrap();
        assert!(held.enter("link").is_err() && held.enter("link/c").is_err() && held.enter("..").is_err());
        assert_eq!((held.shown(), std::fs::read_dir(at("other")).unwrap().count()), (&*at("dir"), 0));
    }
}
