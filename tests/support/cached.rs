//! What of files is in the page cache.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Bytes of a file in the page cache; `None` before Linux 6.5, which does not tell.
#[expect(unsafe_code, reason = "cachestat has no safe wrapper; the block says why it is sound")]
pub(crate) fn cached(path: &Path) -> Option<u64> {
    /// The same on every architecture.
    const CACHESTAT: libc::c_long = 451;
    let file = File::open(path).expect("a file");
    // Offset and length of the range, and the answer, whose first field counts pages (include/uapi/linux/mman.h).
    let (range, mut found) = ([0u64, u64::MAX >> 1], [0u64; 5]);
    // SAFETY: the descriptor is open, both arrays have the sizes that the kernel reads and writes, and both live until
    // the call returns.
    let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0) };
    (done == 0).then_some(found[0] * 4096)
}
