//! Room kept back for the day the disk is full: reading needs some blocks and inodes for SQLite's log, and so does
//! whatever makes room again.
//!
//! Files of no content below `reserve/`. Who removes something and finds the disk full takes them away and tries again;
//! they are made anew, as many as fit, when the store is opened and after gc. Imports leave them alone.

use super::open::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::space::allocate;
use rustix::fs::statvfs;
use rustix::io::Errno;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The directory of the files.
pub(super) const DIR: &str = "reserve";
/// How many there are, each of which has an inode too.
const FILES: u64 = 8;
/// Bytes of each.
const BYTES: u64 = 128 << 10;

/// XFS gives removed inodes back a little later.
const WAITS: u32 = 10;
const WAIT: Duration = Duration::from_millis(20);

fn paths(root: &Path) -> impl Iterator<Item = PathBuf> {
    let dir = root.join(DIR);
    (0..FILES).map(move |n| dir.join(n.to_string()))
}

/// Makes what there is not of the reserve, as far as there is room. Nothing depends on it, so it is never an error.
pub(super) fn fill(root: &Path) {
    let missing: Vec<PathBuf> = paths(root).filter(|path| !path.exists()).collect();
    if missing.is_empty() {
        return;
    }
    let _ = DirBuilder::new().mode(0o700).create(root.join(DIR));
    for path in missing {
        let made = File::create_new(&path).map_err(|e| Error::io("create", e));
        if made.and_then(|file| allocate(&file, &path, BYTES)).is_err() {
            let _ = fs::remove_file(&path);
            return;
        }
    }
}

/// Gives the reserve back to the file system; false if there was none.
fn release(root: &Path) -> bool {
    paths(root).filter(|path| fs::remove_file(path).is_ok()).count() > 0
}

/// Whether `e` says that the disk is full.
fn is_full(root: &Path, e: &Error) -> bool {
    let told = e.io_error().and_then(std::io::Error::raw_os_error);
    let told = told.map(Errno::from_raw_os_error);
    let full = [Errno::NOSPC, Errno::DQUOT];
    // SQLite does not tell which error it was.
    let low = || {
        let room = statvfs(root).map(|s| (s.f_bavail.saturating_mul(s.f_frsize), s.f_files, s.f_favail));
        room.is_ok_and(|(bytes, inodes, free)| bytes < FILES * BYTES || inodes > 0 && free < FILES)
    };
    e.kind() == ErrorKind::Io && told.map_or_else(low, |errno| full.contains(&errno))
}

/// Does `work`, and where the disk is full does it again without the reserve.
pub(super) fn with_reserve<T>(root: &Path, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    let mut done = work();
    if done.as_ref().is_err_and(|e| is_full(root, e)) && release(root) {
        done = work();
        for _ in 0..WAITS {
            if !done.as_ref().is_err_and(|e| is_full(root, e)) {
                break;
            }
            std::thread::sleep(WAIT);
            done = work();
        }
    }
    done
}

impl Store {
    /// Does what makes room, or has to be possible on a full disk, and where the disk is full does it again without what
    /// is kept in reserve.
    pub(crate) fn with_reserve<T>(&self, work: impl FnMut() -> Result<T>) -> Result<T> {
        with_reserve(self.path(), work)
    }

    /// Keeps back again what was taken, as far as there is room.
    pub(crate) fn refill_reserve(&self) {
        fill(self.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_the_reserve_and_other_errors_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("s")).unwrap();
        let there = || paths(store.path()).filter(|path| path.exists()).count() as u64;
        assert_eq!(there(), FILES);
        let (full, other) = (Errno::NOSPC.raw_os_error(), Errno::IO.raw_os_error());
        let failing = |errno| {
            let mut calls = 0;
            let result = store.with_reserve(|| {
                calls += 1;
                Err::<(), _>(Error::io("write", std::io::Error::from_raw_os_error(errno)))
            });
            (result.unwrap_err().kind(), calls)
        };
        assert_eq!(failing(other), (ErrorKind::Io, 1));
        assert_eq!(there(), FILES);
        assert_eq!(failing(full), (ErrorKind::Io, 2 + WAITS));
        assert_eq!(there(), 0);
        assert_eq!(failing(full), (ErrorKind::Io, 1));
        store.refill_reserve();
        assert_eq!(there(), FILES);
        let blocks = |path: PathBuf| std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap());
        assert!(paths(store.path()).all(|path| blocks(path) * 512 >= BYTES));
    }
}
