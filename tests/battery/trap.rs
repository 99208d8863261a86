//! Deciding about every mutating system call of a worker: let it happen, fail it, cut it short, skip it, or kill.
//!
//! This is what strace's injection does, with two differences that matter here: calls are counted over all threads of
//! the worker, where strace counts each thread's own, and a decision can look at the file a call is about.

use crate::sys::{self, Asked};
use crate::work::Watched;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A mutating call on a file of the store.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    /// Relative to the store; empty for its directory.
    pub(crate) path: PathBuf,
}

impl Call {
    /// Whether it makes something durable and changes nothing.
    pub(crate) fn is_sync(&self) -> bool {
        matches!(self.name, "fsync" | "fdatasync" | "syncfs")
    }

    /// The call with the parts of the path left out that differ from run to run.
    pub(crate) fn label(&self) -> String {
        let part = |part: std::path::Component<'_>| {
            let name = part.as_os_str().to_string_lossy().into_owned();
            match name.rsplit_once('.') {
                _ if name.starts_with("session-") => "SESSION".to_owned(),
                _ if name.starts_with("draft-") => "DRAFT".to_owned(),
                _ if name.starts_with("rebuild-") => "REBUILD".to_owned(),
                Some((hex, suffix)) if hex.len() >= 11 => format!("N.{suffix}"),
                None if name.len() == 64 => "DIGEST".to_owned(),
                _ => name,
            }
        };
        format!("{} ./{}", self.name, self.path.components().map(part).collect::<Vec<_>>().join("/"))
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It happens.
    Allow,
    /// It fails with this errno and does not happen.
    Fail(i32),
    /// It returns 0 and does not happen.
    Skip,
    /// A write writes half of its bytes and says so; other calls happen.
    Short,
    /// The worker is killed before it happens.
    Kill,
}

/// Asks `decide` about every mutating call of `worker` on files below `root`, which counts them from 0, until the
/// worker has ended. Returns the calls there were.
pub(crate) fn supervise(worker: &Watched, root: &Path, mut decide: impl FnMut(usize, &Call) -> Verdict) -> Vec<Call> {
    let listener = &worker.listener;
    let mut calls = Vec::new();
    while let Some(asked) = next(listener) {
        let path = subject(&asked);
        let Some(path) = path.as_deref().and_then(|path| path.strip_prefix(root).ok()) else {
            sys::allow(listener, &asked);
            continue;
        };
        let call = Call { name: sys::name(asked.number), path: path.to_owned() };
        match decide(calls.len(), &call) {
            Verdict::Allow => sys::allow(listener, &asked),
            Verdict::Fail(errno) => sys::pretend(listener, &asked, -i64::from(errno)),
            Verdict::Skip => sys::pretend(listener, &asked, 0),
            Verdict::Short => match write_half(worker.id, &asked, call.name) {
                Some(written) => sys::pretend(listener, &asked, written),
                None => sys::allow(listener, &asked),
            },
            Verdict::Kill => {
                worker.kill();
                return calls;
            }
        }
        calls.push(call);
    }
    calls
}

/// The next call, or `None` when all who were to be asked about have ended.
fn next(listener: &OwnedFd) -> Option<Asked> {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.expect("a listener that can be polled"),
        };
        if !fds[0].revents().contains(PollFlags::IN) {
            return None;
        }
        if let Some(asked) = sys::receive(listener) {
            return Some(asked);
        }
    }
}

/// The file a call changes: of a rename, the new name.
fn subject(asked: &Asked) -> Option<PathBuf> {
    let name = sys::name(asked.number);
    let at = |fd: usize, path: usize| {
        let path = string(asked.thread, asked.args[path]);
        match path {
            Some(path) if path.is_absolute() => Some(path),
            path => Some(directory(asked, fd)?.join(path.unwrap_or_default())),
        }
    };
    match name {
        "rename" | "link" | "symlink" | "mount" => string(asked.thread, asked.args[1]),
        "unlink" | "rmdir" | "mkdir" | "mknod" | "chmod" | "chown" | "lchown" | "setxattr" | "lsetxattr" | "open"
        | "umount2" => string(asked.thread, asked.args[0]),
        "openat" | "unlinkat" | "mkdirat" | "mknodat" | "fchmodat" | "fchownat" | "utimensat" => at(0, 1),
        "symlinkat" => at(1, 2),
        "renameat" | "renameat2" | "linkat" | "move_mount" => at(2, 3),
        "copy_file_range" => open_file(asked.thread, asked.args[2]),
        _ => open_file(asked.thread, asked.args[0]),
    }
}

fn directory(asked: &Asked, fd: usize) -> Option<PathBuf> {
    match asked.args[fd] as i32 {
        libc::AT_FDCWD => std::fs::read_link(format!("/proc/{}/cwd", asked.thread)).ok(),
        _ => open_file(asked.thread, asked.args[fd]),
    }
}

fn open_file(thread: u32, fd: u64) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{thread}/fd/{}", fd as i32)).ok()
}

/// A string in the caller's memory.
fn string(thread: u32, address: u64) -> Option<PathBuf> {
    let memory = File::open(format!("/proc/{thread}/mem")).ok().filter(|_| address != 0)?;
    let mut bytes = vec![0; 4096];
    // A string near the end of a mapping is read up to there.
    let len = memory.read_at(&mut bytes, address).ok()?;
    let end = bytes[..len].iter().position(|&b| b == 0)?;
    bytes.truncate(end);
    Some(OsString::from_vec(bytes).into())
}

/// Writes the first half for a worker that wants to write; `None` if it does not, or has one byte.
fn write_half(worker: u32, asked: &Asked, name: &str) -> Option<i64> {
    let [fd, address, len, offset, ..] = asked.args;
    if !matches!(name, "write" | "pwrite64") || len < 2 {
        return None;
    }
    let mut bytes = vec![0; len as usize / 2];
    let memory = File::open(format!("/proc/{}/mem", asked.thread)).ok()?;
    memory.read_exact_at(&mut bytes, address).ok()?;
    // The same open file, so its position moves for the worker too.
    let mut file = File::from(sys::borrow_fd(worker, fd as i32).ok()?);
    match name {
        "write" => std::io::Write::write_all(&mut file, &bytes).ok()?,
        _ => file.write_all_at(&bytes, offset).ok()?,
    }
    Some(bytes.len() as i64)
}
