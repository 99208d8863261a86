//! Advisory locks between processes and threads, by `flock`: on a file that exists only while somebody wants it, or on a
//! directory itself.

use crate::error::{Advice, Error, ErrorKind, Result};
use crate::observe::{Observer, check};
use crate::sys::publish::io_error;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
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
    ///
    /// Who finds it taken waits with a second lock, `<path>.next`, and nobody passes one who does: else whoever lets go and
    /// comes back at once would have it almost always.
    pub(crate) fn acquire(path: &Path, patience: Duration, observer: &dyn Observer) -> Result<Self> {
        let mut next = path.as_os_str().to_owned();
        next.push(".next");
        let next = PathBuf::from(next);
        if !next.exists()
            && let Some(lock) = Self::try_acquire(path)?
        {
            return Ok(lock);
        }
        let begin = Instant::now();
        let _next = wait_for(path, || Self::try_acquire(&next), begin, patience, observer)?;
        wait_for(path, || Self::try_acquire(path), begin, patience, observer)
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

/// A lock on a directory, which many share or one has alone. The kernel releases it when the process dies.
#[derive(Debug)]
pub(crate) struct DirLock {
    /// Held open for the lock it carries.
    _dir: File,
}

impl DirLock {
    /// Waits until nobody has the directory alone.
    pub(crate) fn shared(dir: &Path, patience: Duration, observer: &dyn Observer) -> Result<Self> {
        Self::acquire(dir, File::try_lock_shared, patience, observer)
    }

    /// Waits until nobody has the directory at all.
    pub(crate) fn alone(dir: &Path, patience: Duration, observer: &dyn Observer) -> Result<Self> {
        Self::acquire(dir, File::try_lock, patience, observer)
    }

    fn acquire(
        dir: &Path,
        lock: fn(&File) -> std::result::Result<(), TryLockError>,
        patience: Duration,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let file = File::open(dir).map_err(|e| io_error("open directory", dir, e))?;
        let taken = || match lock(&file) {
            Ok(()) => Ok(Some(())),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(io_error("lock", dir, e)),
        };
        wait_for(dir, taken, Instant::now(), patience, observer)?;
        Ok(Self { _dir: file })
    }
}

/// Turns of processes at something that each needs for milliseconds only. A process that waits gets it before the one
/// that had it last: a process that comes back at once does not keep the others out.
///
/// The locks are on two directories of the store, so that taking a turn makes and removes no file. A process that waits
/// holds the second one; so nobody else can ask for the first.
#[derive(Debug)]
pub(crate) struct Turns {
    root: PathBuf,
    /// The turn, and the place of the process that gets it next.
    files: OnceLock<(File, File)>,
}

/// How long to wait for another process, and how often to look.
const TURN: Duration = Duration::from_secs(60);
const TURN_POLL: Duration = Duration::from_micros(500);

impl Turns {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), files: OnceLock::new() }
    }

    fn files(&self) -> Result<&(File, File)> {
        if let Some(files) = self.files.get() {
            return Ok(files);
        }
        let open = |name: &str| {
            let dir = self.root.join(name);
            File::open(&dir).map_err(|e| io_error("open directory", &dir, e))
        };
        let files = (open("locks")?, open("tmp")?);
        Ok(self.files.get_or_init(|| files))
    }

    /// Waits for the turn; one thread of a process at a time. [`ErrorKind::Busy`] after a minute.
    pub(crate) fn take(&self) -> Result<()> {
        let (turn, next) = self.files()?;
        let begin = Instant::now();
        self.lock(next, begin)?;
        let taken = self.lock(turn, begin);
        let unlocked = next.unlock().map_err(|e| io_error("unlock", &self.root, e));
        if unlocked.is_err() && taken.is_ok() {
            self.give();
        }
        taken.and(unlocked)
    }

    pub(crate) fn give(&self) {
        if let Some((turn, _)) = self.files.get() {
            // It goes with this process at the latest.
            let _ = turn.unlock();
        }
    }

    fn lock(&self, file: &File, begin: Instant) -> Result<()> {
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(e)) => return Err(io_error("lock", &self.root, e)),
                Err(TryLockError::WouldBlock) if begin.elapsed() >= TURN => {
                    let message = format!("another process writes for more than {} s", TURN.as_secs());
                    let e = Error::new(ErrorKind::Busy, message).advise(Advice::TryAgain);
                    return Err(e.subject(self.root.display()));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(TURN_POLL),
            }
        }
    }
}

/// Tries until it succeeds, `patience` ends that began at `begin` ([`ErrorKind::Busy`]), or the observer cancels.
fn wait_for<T>(
    path: &Path,
    mut attempt: impl FnMut() -> Result<Option<T>>,
    begin: Instant,
    patience: Duration,
    observer: &dyn Observer,
) -> Result<T> {
    loop {
        if let Some(done) = attempt()? {
            return Ok(done);
        }
        check(observer)?;
        if begin.elapsed() >= patience {
            let message = format!("locked by another process for more than {} s", patience.as_secs());
            let e = Error::new(ErrorKind::Busy, message).advise(Advice::TryAgain);
            return Err(e.subject(path.display()));
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_shared_or_had_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, none) = (dir.path(), Duration::ZERO);
        let first = DirLock::shared(path, none, &()).unwrap();
        let second = DirLock::shared(path, none, &()).unwrap();
        drop(first);
        assert_eq!(DirLock::alone(path, none, &()).unwrap_err().kind(), ErrorKind::Busy);
        drop(second);
        let alone = DirLock::alone(path, none, &()).unwrap();
        assert_eq!(DirLock::shared(path, none, &()).unwrap_err().kind(), ErrorKind::Busy);
        drop(alone);
        DirLock::shared(path, none, &()).unwrap();
    }

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

    /// Whoever waits has it next, however soon its holder comes back.
    #[test]
    fn who_lets_go_does_not_pass_who_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let (waits, turns) = (std::sync::atomic::AtomicBool::new(false), std::sync::atomic::AtomicU32::new(0));
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|s| {
            let held = Lock::acquire(&path, Duration::ZERO, &()).unwrap();
            let waiter = s.spawn(|| {
                waits.store(true, order);
                drop(Lock::acquire(&path, Duration::from_secs(60), &()).unwrap());
                turns.load(order)
            });
            while !waits.load(order) || !dir.path().join("l.next").exists() {
                std::thread::yield_now();
            }
            drop(held);
            while !waiter.is_finished() {
                drop(Lock::acquire(&path, Duration::from_secs(60), &()).unwrap());
                turns.fetch_add(1, order);
            }
            assert_eq!(waiter.join().unwrap(), 0, "passed by the one who let go");
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no file is left");
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
