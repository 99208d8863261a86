//! System calls that no safe wrapper offers; the only unsafe code of the library.
#![expect(unsafe_code, reason = "each call has a note why it is sound")]

use rustix::process::umask;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread a umask of its own, 0, so that files get exactly the modes they are created with. Where a
/// sandbox forbids that, returns the umask that stays in force. For threads this library started: a thread keeps it.
pub(crate) fn clear_umask() -> u16 {
    // SAFETY: only `UnshareFlags::FILES` can break what other threads rely on. With `FS` alone, the thread no longer
    // shares umask, root and working directory.
    if unsafe { unshare_unsafe(UnshareFlags::FS) }.is_ok() {
        umask(rustix::fs::Mode::empty());
        return 0;
    }
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    // What is not known is taken to clear every bit, which costs a call per file and harms nothing.
    mask.and_then(|mask| u16::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o777)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

    #[test]
    fn the_umask_is_the_threads_own() {
        let dir = tempfile::tempdir().unwrap();
        let create = |name: &str| {
            let path = dir.path().join(name);
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path).unwrap();
            std::fs::metadata(path).unwrap().mode() & 0o777
        };
        let before = create("before");
        let inside = std::thread::scope(|s| {
            let work = || (super::clear_umask(), create("inside"));
            s.spawn(work).join().unwrap()
        });
        assert_eq!(inside, (0, 0o666));
        assert_eq!(create("after"), before);
        assert_ne!(before, 0o666, "run with a umask");
    }
}
