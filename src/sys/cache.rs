//! The page cache: files that are read once leave nothing in it that was not there before.
//!
//! The kernel keeps what is read or written until memory is short, and then drops what others use too. What passes
//! through here once, as packs and blobs do in an import, is not worth keeping. Pages of a file that were cached before
//! it is read are somebody else's and stay: `cachestat` (Linux 6.5) tells which. An older kernel does not tell; there
//! the pages of such files are let go whoever brought them in.

use super::raw;
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Bytes of a file that are looked at, and let go, as one.
const WINDOW: u64 = 1 << 20;
/// More windows than these are looked at in halves.
const ONE_BY_ONE: u64 = 64 << 10;
/// Bytes read before their pages are let go.
const STEP: u64 = 16 << 20;

/// Lets go of a range's clean pages. A hint: where the kernel does not take it, the pages stay.
pub(crate) fn let_go(file: impl AsFd, range: Range<u64>) {
    if let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
        let _ = fadvise(file, range.start, Some(len), Advice::DontNeed);
    }
}

/// Lets go of all clean pages of a file.
pub(crate) fn let_go_of(file: impl AsFd) {
    let_go(file, 0..u64::MAX >> 1);
}

/// Which windows of a file had pages in the cache. A file may be very long, and all but its beginning a hole: memory
/// depends on what is cached, and not on the length.
struct Cached {
    /// Bytes of windows with pages, ascending and apart from each other.
    held: Vec<Range<u64>>,
    len: u64,
}

impl Cached {
    fn of(file: &File) -> Self {
        let len = file.metadata().map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
        let mut cached = Self { held: vec![], len };
        if len > 0 {
            cached.look(file, 0..len.div_ceil(WINDOW));
        }
        cached
    }

    /// Looks at so many windows. Most files are not in the cache at all, and of few that are long much is.
    fn look(&mut self, file: &File, windows: Range<u64>) {
        let bytes = windows.start * WINDOW..windows.end.saturating_mul(WINDOW).min(self.len);
        if !raw::cached_pages(file.as_fd(), bytes.clone()).is_ok_and(|pages| pages > 0) {
            return;
        }
        match windows.end - windows.start {
            1 => match self.held.last_mut().filter(|last| last.end == bytes.start) {
                Some(last) => last.end = bytes.end,
                None => self.held.push(bytes),
            },
            2..=ONE_BY_ONE => windows.for_each(|n| self.look(file, n..n + 1)),
            many => {
                let middle = windows.start + many / 2;
                self.look(file, windows.start..middle);
                self.look(file, middle..windows.end);
            }
        }
    }

    /// Lets go of the windows before `end` that had no pages, in as few calls as can be.
    fn let_go_others(&self, file: &File, end: u64) {
        let end = if end >= self.len { self.len } else { end / WINDOW * WINDOW };
        let mut at = 0;
        for held in self.held.iter().chain([&(end..end)]) {
            let_go(file, at..held.start.min(end));
            at = held.end;
        }
    }
}

/// A file that is read once, more or less from its beginning to its end. When it is dropped, the page cache holds none
/// of its pages but those of the MiBs that it held some of before.
///
/// Reading a directory, a pipe or a device is no different from reading a [`File`].
///
/// ```
/// use std::io::Read;
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("layer.tar");
/// # std::fs::write(&path, b"bytes")?;
/// let mut bytes = vec![];
/// layerstore::ReadOnce::new(std::fs::File::open(path)?).read_to_end(&mut bytes)?;
/// assert_eq!(bytes, b"bytes");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct ReadOnce {
    file: File,
    /// `None` until something is read.
    before: Mutex<Option<Cached>>,
    /// Bytes read since `before` was found out.
    read: AtomicU64,
    /// Where [`Read`] is.
    position: u64,
}

impl ReadOnce {
    /// Looks at what of the file is cached when it is read first.
    pub fn new(file: File) -> Self {
        Self { file, before: Mutex::default(), read: AtomicU64::new(0), position: 0 }
    }

    /// The file, for reads that this does not see; their pages are let go like those of the others.
    pub(crate) fn file(&self) -> &File {
        self.begin();
        &self.file
    }

    fn begin(&self) {
        self.before.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| Cached::of(&self.file));
    }

    /// As [`FileExt::read_at`].
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.begin();
        let n = self.file.read_at(bytes, offset)?;
        self.passed(offset, n as u64);
        Ok(n)
    }

    /// As [`FileExt::read_exact_at`].
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.begin();
        self.file.read_exact_at(bytes, offset)?;
        self.passed(offset, bytes.len() as u64);
        Ok(())
    }

    /// What the kernel reads ahead is not let go before it was read.
    fn passed(&self, offset: u64, len: u64) {
        let read = self.read.fetch_add(len, Relaxed);
        if read / STEP != (read + len) / STEP {
            self.let_go(offset + len);
        }
    }

    fn let_go(&self, end: u64) {
        if let Some(before) = &*self.before.lock().unwrap_or_else(PoisonError::into_inner) {
            before.let_go_others(&self.file, end);
        }
    }

    /// As [`end`](Self::end), unless so little was read that it is better kept for whoever reads on.
    pub(crate) fn pause(&self) {
        if self.read.load(Relaxed) >= STEP / 4 {
            self.end();
        }
    }

    /// Lets go of all pages. What is read after that is looked at anew: others may have read the file meanwhile.
    pub(crate) fn end(&self) {
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.read.store(0, Relaxed);
        before.into_iter().for_each(|before| before.let_go_others(&self.file, u64::MAX));
    }
}

impl std::fmt::Debug for ReadOnce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ReadOnce").field(&self.file).finish()
    }
}

impl Read for ReadOnce {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.begin();
        let n = self.file.read(bytes)?;
        self.position += n as u64;
        self.passed(self.position - n as u64, n as u64);
        Ok(n)
    }
}

impl Drop for ReadOnce {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 40 MiB on disk of which nothing is cached; `None` where the kernel or the file system does not tell.
    fn cold() -> Option<(tempfile::TempDir, File)> {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 40 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        if raw::cached_pages(file.as_fd(), 0..40 << 20) != Ok(0) {
            println!("skipped: page cache: needs Linux 6.5 and a disk file system that lets pages go");
            return None;
        }
        Some((dir, file))
    }

    fn cached_in(file: &File, range: Range<u64>) -> u64 {
        raw::cached_pages(file.as_fd(), range).unwrap() * 4096
    }

    #[test]
    fn what_is_read_once_leaves_no_pages() {
        let Some((_dir, file)) = cold() else { return };
        let mut once = ReadOnce::new(file.try_clone().unwrap());
        let mut piece = vec![0; 1 << 20];
        (0..20).for_each(|_| once.read_exact(&mut piece).unwrap());
        let (passed, ahead) = (cached_in(&file, 0..STEP), cached_in(&file, STEP..40 << 20));
        assert!(passed < 1 << 20 && ahead >= 4 << 20, "{passed} bytes that were passed, {ahead} after them");
        while once.read(&mut piece).unwrap() > 0 {}
        drop(once);
        assert_eq!(cached_in(&file, 0..40 << 20), 0);
    }

    #[test]
    fn what_was_cached_before_stays() {
        let Some((_dir, file)) = cold() else { return };
        let hot = (5 << 20)..(6 << 20);
        file.read_exact_at(&mut vec![0; 1 << 20], hot.start).unwrap();
        let before = cached_in(&file, hot.clone());
        let once = ReadOnce::new(file.try_clone().unwrap());
        for at in (0..40).rev() {
            once.read_exact_at(&mut vec![0; 1 << 20], at << 20).unwrap();
        }
        assert!(cached_in(&file, 0..40 << 20) > 1 << 20);
        once.end();
        assert_eq!(cached_in(&file, hot), before);
        assert!(cached_in(&file, 0..40 << 20) < 4 << 20, "what is around it goes");
    }
    /// Memory for each MiB of its length would be terabytes.
    #[test]
    fn a_file_may_be_as_long_as_the_file_system_lets_it() {
        for dir in [std::env::temp_dir(), "/dev/shm".into()] {
            let Ok(file) = tempfile::tempfile_in(dir) else { continue };
            let len = super::super::sparse::longest(&file, i64::MAX as u64);
            file.write_all_at(b"begin", 0).unwrap();
            file.write_all_at(b"end", len - 3).unwrap();
            let mut once = ReadOnce::new(file.try_clone().unwrap());
            let mut bytes = [0; 5];
            once.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"begin");
            once.read_exact_at(&mut bytes[..3], len - 3).unwrap();
            assert_eq!(&bytes[..3], b"end");
            once.end();
        }
    }

    #[test]
    fn what_lies_between_cached_windows_goes() {
        let Some((_dir, file)) = cold() else { return };
        let hot = [0..1u64, 5 << 20..(5 << 20) + 1, (6 << 20)..(6 << 20) + 1, (39 << 20)..(39 << 20) + 1];
        hot.iter().for_each(|place| file.read_exact_at(&mut [0], place.start).unwrap());
        let cached = Cached::of(&file);
        assert!(cached.held.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", cached.held);
        for place in &hot {
            assert!(cached.held.iter().any(|held| held.contains(&place.start)), "{:?}", cached.held);
        }
        file.read_exact_at(&mut vec![0; 40 << 20], 0).unwrap();
        cached.let_go_others(&file, 20 << 20);
        let gone = |at: u64| cached_in(&file, at << 20..(at + 1) << 20) == 0;
        let held = |at: u64| cached.held.iter().any(|held| held.contains(&(at << 20)));
        assert!((0..20).all(|at| gone(at) != held(at)), "{:?}", cached.held);
        assert!((20..40).all(|at| !gone(at)));
    }
}
