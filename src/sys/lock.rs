//! Advisory locks between processes and threads, by `flock` on a file that exists only while somebody wants it.

use crate::error::{Error, ErrorKind, Result};
use crate::observe::{Observer, check};
use crate::sys::publish::io_error;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An exclusive lock; released, and its file removed, on drop. The kernel releases it when the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    /// Held open for the lock it carries.
    _file: File,
}

/// How often a waiter looks again. Locks are held for a layer's import, which takes longer than this.
const POLL: Duration = Duration::from_millis(10);

impl Lock {
    /// Waits for the lock at `path` until `patience` ends ([`ErrorKind::Busy`]) or the observer cancels.
    pub(crate) fn acquire(path: &Path, patience: Duration, observer: &dyn Observer) -> Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(lock) = Self::try_acquire(path)? {
                return Ok(lock);
            }
            check(observer)?;
            if Instant::now() >= deadline {
                let message = format!("locked by another process for more than {} s", patience.as_secs());
                return Err(Error::new(ErrorKind::Busy, message).subject(path.display()));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The lock, or `None` while somebody else has it.
    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Self>> {
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = opened.map_err(|e| io_error("open lock", path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(io_error("lock", path, e)),
        }
        // The holder before us may have removed the file between our open and our lock; then we hold a dead name.
        let ours = file.metadata().map_err(|e| io_error("stat lock", path, e))?;
        match fs::metadata(path) {
            Ok(named) if named.ino() == ours.ino() => Ok(Some(Self { path: path.to_owned(), _file: file })),
            _ => Ok(None),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while still locked, so that nobody can lock a name that is about to vanish without noticing.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_no_file_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let held = Lock::try_acquire(&path).unwrap().unwrap();
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        let e = Lock::acquire(&path, Duration::from_millis(20), &()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Busy);
        drop(held);
        assert!(!path.exists());
        drop(Lock::acquire(&path, Duration::ZERO, &()).unwrap());
    }

    #[test]
    fn many_threads_never_hold_it_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..25 {
                        let _lock = Lock::acquire(&path, Duration::from_secs(60), &()).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
