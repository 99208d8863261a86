//! Directories that others write to: what they take, their root's attributes, and making them durable.

use super::publish::io_error;
use super::walk::{self, Failure, Id, Visitor};
use crate::error::Result;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Gives the directory `to` the attributes of the directory `from`, but for those that belong to an overlay.
pub(crate) fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    let named = |path| move |e: rustix::io::Errno| io_error("copy attributes of", path, e);
    let (source, target) = (open(from)?, open(to)?);
    let meta = source.metadata().map_err(|e| io_error("stat", from, e))?;
    std::os::unix::fs::fchown(&target, Some(meta.uid()), Some(meta.gid())).map_err(|e| io_error("chown", to, e))?;
    rustix::fs::fchmod(&target, Mode::from_raw_mode(meta.mode() & 0o7777)).map_err(named(to))?;
    let mut names = vec![0; 64 << 10];
    let len = match rustix::fs::flistxattr(&source, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        other => other.map_err(named(from))?,
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..len].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let overlay = [&b"trusted.overlay."[..], b"user.overlay."].iter().any(|prefix| name.starts_with(prefix));
        if overlay || name.starts_with(b"security.selinux") {
            continue;
        }
        let len = rustix::fs::fgetxattr(&source, name, &mut value[..]).map_err(named(from))?;
        rustix::fs::fsetxattr(&target, name, &value[..len], XattrFlags::empty()).map_err(named(to))?;
    }
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(meta.mtime(), meta.mtime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    rustix::fs::futimens(&target, &times).map_err(named(to))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| io_error("open", path, e))
}

/// Brings all that was written to the file system of `path` to disk.
pub(crate) fn sync_file_system(path: &Path) -> Result<()> {
    rustix::fs::syncfs(open(path)?).map_err(|e| io_error("sync the file system of", path, e))
}

/// Bytes of disk and inodes below a directory, itself included; hard links once. What vanishes meanwhile counts nothing,
/// and neither does what is mounted there. The sum depends on no limit of descriptors.
///
/// # Errors
/// `Io` if a directory cannot be read.
pub(crate) fn disk_usage(dir: &Path) -> Result<(u64, u64)> {
    let (usage, failure) = measure(dir)?;
    match failure {
        None => Ok((usage.bytes, usage.inodes)),
        Some(e) => Err(io_error("measure", &dir.join(OsStr::from_bytes(&e.path)), e.errno)),
    }
}

/// As [`disk_usage`], in bytes; without directories that cannot be read.
pub(crate) fn disk_usage_readable(dir: &Path) -> Result<u64> {
    measure(dir).map(|(usage, _)| usage.bytes)
}

fn measure(dir: &Path) -> Result<(Usage, Option<Failure>)> {
    let mut usage = Usage::default();
    match rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => Ok((usage, None)),
        root => {
            let root = root.map_err(|e| io_error("open", dir, e))?;
            let failure = walk::below(root, &mut usage).err();
            Ok((usage, failure))
        }
    }
}

#[derive(Default)]
struct Usage {
    bytes: u64,
    inodes: u64,
    /// Files with several names that were counted.
    linked: HashSet<Id>,
}

impl Usage {
    fn count(&mut self, stat: &Stat) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if directory || stat.st_nlink <= 1 || self.linked.insert(walk::id(stat)) {
            self.bytes += stat.st_blocks as u64 * 512;
            self.inodes += 1;
        }
    }
}

impl Visitor for Usage {
    fn begin(&mut self) {
        *self = Self::default();
    }

    fn open(&mut self, dir: BorrowedFd<'_>, name: &CStr, parent: Id) -> rustix::io::Result<(OwnedFd, Stat)> {
        match walk::subdirectory(dir, name, parent) {
            // What is mounted is no part of the tree.
            Err(Errno::XDEV) => Err(Errno::NOENT),
            Err(e @ Errno::ACCESS) => {
                self.count(&rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?);
                Err(e)
            }
            other => other,
        }
    }

    fn entered(&mut self, stat: &Stat) {
        self.count(stat);
    }

    fn name(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> rustix::io::Result<bool> {
        if kind == FileType::Directory {
            return Ok(true);
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(true);
        }
        self.count(&stat);
        Ok(false)
    }

    fn no_directory(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        // It has become something else.
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.count(&stat);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn counts_hard_links_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), vec![1; 10_000]).unwrap();
        let (bytes, inodes) = disk_usage(dir.path()).unwrap();
        assert_eq!(inodes, 3);
        assert!(bytes >= 10_000);
        fs::hard_link(dir.path().join("d/f"), dir.path().join("g")).unwrap();
        std::os::unix::fs::symlink("d", dir.path().join("s")).unwrap();
        assert_eq!(disk_usage(dir.path()).unwrap().1, 4);
        assert_eq!(disk_usage(&dir.path().join("none")).unwrap(), (0, 0));
    }

    #[test]
    fn a_directory_takes_attributes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o1710)).unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 5);
        open(&from).unwrap().set_modified(old).unwrap();
        rustix::fs::setxattr(&from, "user.note", b"n", XattrFlags::empty()).unwrap();
        copy_attributes(&from, &to).unwrap();
        let meta = fs::metadata(&to).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.modified().unwrap()), (0o1710, old));
        let mut value = [0; 4];
        assert_eq!(rustix::fs::getxattr(&to, "user.note", &mut value[..]), Ok(1));
    }
}
