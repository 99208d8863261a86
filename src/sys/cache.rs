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
/// Bytes read before their pages are let go.
const STEP: u64 = 16 << 20;

/// Lets go of a range's clean pages. A hint: where the kernel does not take it, the pages stay.
pub(crate) fn let_go(file: impl AsFd, range: Range<u64>) {
    if let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
        let _ = fadvise(file, range.start, Some(len), Advice::DontNeed);
    }
}

/// Which windows of a file had pages in the cache.
struct Cached {
    windows: Vec<bool>,
    len: u64,
}

impl Cached {
    fn of(file: &File) -> Self {
        let len = file.metadata().map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
        let windows = vec![false; len.div_ceil(WINDOW) as usize];
        let mut cached = Self { windows, len };
        // Most files are not in the cache at all.
        if len > 0 && raw::cached_pages(file.as_fd(), 0..len).is_ok_and(|pages| pages > 0) {
            for n in 0..cached.windows.len() {
                cached.windows[n] = raw::cached_pages(file.as_fd(), cached.window(n)).is_ok_and(|pages| pages > 0);
            }
        }
        cached
    }

    fn window(&self, n: usize) -> Range<u64> {
        let start = n as u64 * WINDOW;
        start..(start + WINDOW).min(self.len)
    }

    /// Lets go of the windows before `end` that had no pages, in as few calls as can be.
    fn let_go_others(&self, file: &File, end: u64) {
        let mut run: Option<Range<u64>> = None;
        for n in 0..self.windows.len() {
            let window = self.window(n);
            if self.windows[n] || window.end > end {
                run.take().into_iter().for_each(|run| let_go(file, run));
            } else {
                run = Some(run.map_or(window.start, |run| run.start)..window.end);
            }
        }
        run.into_iter().for_each(|run| let_go(file, run));
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

    fn cached(file: &File, range: Range<u64>) -> u64 {
        raw::cached_pages(file.as_fd(), range).unwrap() * 4096
    }

    #[test]
    fn what_is_read_once_leaves_no_pages() {
        let Some((_dir, file)) = cold() else { return };
        let mut once = ReadOnce::new(file.try_clone().unwrap());
        let mut piece = vec![0; 1 << 20];
        (0..20).for_each(|_| once.read_exact(&mut piece).unwrap());
        let (passed, ahead) = (cached(&file, 0..STEP), cached(&file, STEP..40 << 20));
        assert!(passed < 1 << 20 && ahead >= 4 << 20, "{passed} bytes that were passed, {ahead} after them");
        while once.read(&mut piece).unwrap() > 0 {}
        drop(once);
        assert_eq!(cached(&file, 0..40 << 20), 0);
    }

    #[test]
    fn what_was_cached_before_stays() {
        let Some((_dir, file)) = cold() else { return };
        let hot = (5 << 20)..(6 << 20);
        file.read_exact_at(&mut vec![0; 1 << 20], hot.start).unwrap();
        let before = cached(&file, hot.clone());
        let once = ReadOnce::new(file.try_clone().unwrap());
        for at in (0..40).rev() {
            once.read_exact_at(&mut vec![0; 1 << 20], at << 20).unwrap();
        }
        assert!(cached(&file, 0..40 << 20) > 1 << 20);
        once.end();
        assert_eq!(cached(&file, hot), before);
        assert!(cached(&file, 0..40 << 20) < 4 << 20, "what is around it goes");
    }
}
