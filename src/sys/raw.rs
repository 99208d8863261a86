//! System calls that no safe wrapper offers; the only unsafe code of the library.
#![expect(unsafe_code, reason = "each call has a note why it is sound")]

use rustix::io::Errno;
use rustix::process::umask;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// `include/uapi/asm-generic/fcntl.h`; the libc crate lacks it.
const F_SETSIG: libc::c_int = 10;

/// Takes a write lease on a file, which is given only if nobody else has it open; false if somebody has. It ends when the
/// file is closed. Whoever opens the file meanwhile waits, and this process gets a signal it ignores.
pub(crate) fn lease_alone(file: &std::fs::File) -> bool {
    let control = |command: libc::c_int, value: libc::c_int| {
        // SAFETY: the descriptor is open as long as `file` is borrowed, and both commands take a plain integer.
        unsafe { libc::fcntl(file.as_raw_fd(), command, value) == 0 }
    };
    // SIGIO, the default, kills; SIGURG does nothing unless asked for.
    control(F_SETSIG, libc::SIGURG) && control(libc::F_SETLEASE, libc::F_WRLCK)
}

/// Makes a mount that is not attached yet show the users of its file system as `user_namespace` maps them: an id of the
/// file system that the namespace calls 0 is 0 in the mount, and so on.
pub(crate) fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    set_attributes(mount, libc::AT_EMPTY_PATH, &attr)
}

/// Makes a mount that is not attached yet read-only, with all that is mounted below it.
pub(crate) fn set_read_only(mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_attributes(mount, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &attr)
}

fn set_attributes(mount: BorrowedFd<'_>, flags: libc::c_int, attr: &libc::mount_attr) -> rustix::io::Result<()> {
    // SAFETY: the path is a NUL-terminated string, `attr` is an initialised mount_attr of the size given, and both live
    // until the call returns. The kernel writes to neither. The descriptors in it are open as long as their owners are
    // borrowed by the callers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(last_error()) }
}

/// Opens the user namespace that owns a namespace (ioctl_nsfs(2)). `PERM` for one that is not this process's or below it.
pub(crate) fn owning_user_namespace(namespace: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    // SAFETY: the descriptor is open as long as it is borrowed, and the request takes no argument.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_USERNS) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the kernel has just made this descriptor for this call, so that nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Who made a user namespace, as a user of this process's own (ioctl_nsfs(2)).
pub(crate) fn user_namespace_owner(namespace: BorrowedFd<'_>) -> rustix::io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel writes one uid_t, to where one is.
    match unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut uid) } {
        0 => Ok(uid),
        _ => Err(last_error()),
    }
}

/// `cachestat` (Linux 6.5) has this number on every architecture that this library is built for.
const SYS_CACHESTAT: libc::c_long = 451;

/// Pages of a range of a file that are in the page cache.
///
/// # Errors
/// `NOSYS` before Linux 6.5; `OPNOTSUPP` and others where it cannot be told.
pub(crate) fn cached_pages(file: BorrowedFd<'_>, range: std::ops::Range<u64>) -> rustix::io::Result<u64> {
    // `struct cachestat_range`, offset and length, and `struct cachestat`, whose first field is the pages in the cache
    // (include/uapi/linux/mman.h).
    let range = [range.start, range.end.saturating_sub(range.start)];
    let mut found = [0u64; 5];
    // SAFETY: the descriptor is open, `range` and `found` have the sizes that the kernel reads and writes, and both live
    // until the call returns.
    let done = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0) };
    if done == 0 { Ok(found[0]) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
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
        if inside.0 != 0 {
            return println!("skipped: the_umask_is_the_threads_own: needs unshare(CLONE_FS), which is refused here");
        }
        assert_eq!(inside, (0, 0o666));
        assert_eq!(create("after"), before);
        assert_ne!(before, 0o666, "run with a umask");
    }
}
