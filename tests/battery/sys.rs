//! The system calls that the battery needs and no safe crate offers: interception by seccomp, a mount namespace of
//! one's own, and shutting a file system down.

#![expect(unsafe_code, reason = "these calls have no safe wrapper; each block says why it is sound")]

use libc::{c_int, c_long, sock_filter};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// System calls that change a file system whatever their arguments are, or make a change durable.
const MUTATING: &[(c_long, &str)] = &[
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_pwritev2, "pwritev2"),
    (libc::SYS_copy_file_range, "copy_file_range"),
    (libc::SYS_sendfile, "sendfile"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_syncfs, "syncfs"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_mknodat, "mknodat"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_fchmodat, "fchmodat"),
    (libc::SYS_fchown, "fchown"),
    (libc::SYS_fchownat, "fchownat"),
    (libc::SYS_setxattr, "setxattr"),
    (libc::SYS_lsetxattr, "lsetxattr"),
    (libc::SYS_fsetxattr, "fsetxattr"),
    (libc::SYS_utimensat, "utimensat"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_move_mount, "move_mount"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_link, "link"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_symlink, "symlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, "mknod"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, "chmod"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, "chown"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, "lchown"),
];

/// Those that change something if one argument has one of these bits: number, name, argument.
const OPENING: &[(c_long, &str, u32)] = &[
    (libc::SYS_openat, "openat", 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, "open", 1),
];

/// Those that change something unless they go to a standard stream.
const STREAMING: &[(c_long, &str)] = &[(libc::SYS_write, "write"), (libc::SYS_writev, "writev")];

/// The name of an intercepted call.
pub(crate) fn name(number: c_long) -> &'static str {
    let plain = MUTATING.iter().chain(STREAMING).copied();
    let all = plain.chain(OPENING.iter().map(|&(n, name, _)| (n, name))).chain([(libc::SYS_ioctl, "ioctl")]);
    all.into_iter().find(|&(n, _)| n == number).map_or("?", |(_, name)| name)
}

fn filter() -> Vec<sock_filter> {
    let step = |code: u32, k: u32, jt: u8, jf: u8| sock_filter { code: code as u16, jt, jf, k };
    let load = |at: u32| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let argument = |n: u32| load(16 + 8 * n);
    let equal = |k: u32, jf: u8| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, 0, jf);
    let at_least = |k: u32, jf: u8| step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, k, 0, jf);
    let any_bit = |k: u32, jf: u8| step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, k, 0, jf);
    let done = |k: u32| step(libc::BPF_RET | libc::BPF_K, k, 0, 0);
    let (ask, allow) = (done(libc::SECCOMP_RET_USER_NOTIF), done(libc::SECCOMP_RET_ALLOW));
    let mut out = vec![load(0)];
    for &(number, _) in MUTATING {
        out.extend([equal(number as u32, 1), ask]);
    }
    for &(number, _, flags) in OPENING {
        let changes = (libc::O_CREAT | libc::O_TRUNC) as u32;
        out.extend([equal(number as u32, 4), argument(flags), any_bit(changes, 1), ask, allow]);
    }
    for &(number, _) in STREAMING {
        out.extend([equal(number as u32, 4), argument(0), at_least(3, 1), ask, allow]);
    }
    // FICLONE and FICLONERANGE (linux/fs.h).
    let clone = [equal(0x4004_9409, 1), ask, equal(0x4020_940d, 1), ask, allow];
    out.extend([equal(libc::SYS_ioctl as u32, 6), argument(1)]);
    out.extend(clone);
    out.push(allow);
    out
}

/// From now on this thread, and those it starts, ask the holder of the descriptor about every mutating call.
pub(crate) fn intercept() -> Result<RawFd> {
    let mut filter = filter();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: plain numbers; it only takes rights from this thread.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    check(result)?;
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: `program` and the filter it points at live until the call returns; the kernel copies them.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &program) };
    check(fd as c_int)?;
    Ok(fd as RawFd)
}

/// An intercepted call that waits for an answer.
pub(crate) struct Asked {
    id: u64,
    pub(crate) thread: u32,
    pub(crate) number: c_long,
    pub(crate) args: [u64; 6],
}

const NOTIF_RECV: libc::Ioctl = 0xc050_2100u32 as libc::Ioctl;
const NOTIF_SEND: libc::Ioctl = 0xc018_2101u32 as libc::Ioctl;

/// The next call; `None` if its caller died meanwhile.
pub(crate) fn receive(listener: &OwnedFd) -> Option<Asked> {
    // SAFETY: the kernel wants it zeroed; all-zero is valid for these integers.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes one `seccomp_notif`, which `asked` is.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &mut asked) };
    let data = asked.data;
    (result == 0).then_some(Asked { id: asked.id, thread: asked.pid, number: data.nr.into(), args: data.args })
}

/// Lets the call happen.
pub(crate) fn allow(listener: &OwnedFd, asked: &Asked) {
    answer(listener, asked, 0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32);
}

/// The call returns `value`, or fails with an errno where that is negative, and does not happen.
pub(crate) fn pretend(listener: &OwnedFd, asked: &Asked, value: i64) {
    answer(listener, asked, value.max(0), value.min(0) as i32, 0);
}

fn answer(listener: &OwnedFd, asked: &Asked, val: i64, error: i32, flags: u32) {
    let mut answer = libc::seccomp_notif_resp { id: asked.id, val, error, flags };
    // SAFETY: the request reads one `seccomp_notif_resp`. It fails if the caller is dead, which is fine.
    let _ = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &mut answer) };
}

/// Gives this thread, and what it starts, mounts of its own that vanish with it.
pub(crate) fn private_mounts() -> Result<()> {
    // SAFETY: changes what this thread sees of the file system, and no memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    use rustix::mount::{MountPropagationFlags, mount_change};
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(Into::into)
}

/// Cuts the file system off from its device; with `flush_log` its journal is written first.
pub(crate) fn shut_down(file_system: &File, flush_log: bool) -> Result<()> {
    /// `FS_IOC_SHUTDOWN` (linux/fs.h, 6.10; the number is older), and its two flags.
    const SHUTDOWN: libc::Ioctl = 0x8004_587du32 as libc::Ioctl;
    let mut flags: u32 = if flush_log { 1 } else { 2 };
    // SAFETY: the request reads one `u32`.
    check(unsafe { libc::ioctl(file_system.as_raw_fd(), SHUTDOWN, &mut flags) })
}

fn check(result: c_int) -> Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// The descriptor `fd` of another process, as one of ours.
pub(crate) fn borrow_fd(pid: u32, fd: RawFd) -> Result<OwnedFd> {
    let pid = pid as c_int;
    // SAFETY: plain numbers; the result is a new descriptor or an error.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as c_int;
    check(process)?;
    // SAFETY: it was just opened and nobody else has it.
    let process = unsafe { OwnedFd::from_raw_fd(process) };
    // SAFETY: as above.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) } as c_int;
    check(fd)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
