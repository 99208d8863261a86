//! The mount system calls: the new API where it gives more, mount(2) for binds.

use super::publish::io_error;
use crate::error::{Error, Result};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_bind_recursive, mount_remount,
    move_mount, open_tree,
};
use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

/// A file system being configured: each parameter is a call of its own, so that none has to fit in a page.
pub(crate) struct FileSystem {
    fd: OwnedFd,
    kind: &'static str,
    /// What parameters lead to, open until it is mounted.
    held: RefCell<Vec<OwnedFd>>,
}

/// What the kernel accepts as one parameter (fsconfig(2)): 255 bytes and a NUL.
const PARAMETER: usize = 255;

impl FileSystem {
    pub(crate) fn open(kind: &'static str) -> Result<Self> {
        let fd = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| failed(kind, "open the file system", e))?;
        Ok(Self { fd, kind, held: RefCell::default() })
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> Result<()> {
        fsconfig_set_string(&self.fd, key, value).map_err(|e| self.failed(&format!("set {key}={value}"), e))
    }

    /// Sets a path, by way of a descriptor where it is longer than a parameter may be.
    pub(crate) fn set_path(&self, key: &str, path: &Path) -> Result<()> {
        let text = path.to_string_lossy();
        if text.len() <= PARAMETER {
            return self.set(key, &text);
        }
        self.set_open(key, File::open(path).map_err(|e| io_error("open", path, e))?.into())
    }

    /// Sets what is open as `fd`, which may have no path.
    pub(crate) fn set_open(&self, key: &str, fd: OwnedFd) -> Result<()> {
        // The mount table will show the descriptor's number: it says at least whose mount that is.
        if self.kind == "overlay" && self.held.borrow().is_empty() {
            self.set("source", super::mounts::NAMELESS)?;
        }
        self.set(key, &format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        self.held.borrow_mut().push(fd);
        Ok(())
    }

    pub(crate) fn flag(&self, key: &str) -> Result<()> {
        fsconfig_set_flag(&self.fd, key).map_err(|e| self.failed(&format!("set {key}"), e))
    }

    /// Mounts it nowhere: it is there as long as the descriptor of its root is open.
    pub(crate) fn detached(&self, read_only: bool) -> Result<OwnedFd> {
        fsconfig_create(&self.fd).map_err(|e| self.failed("create the file system", e))?;
        let attributes = if read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        let mount = fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
        mount.map_err(|e| self.failed("mount", e))
    }

    /// Mounts it at `target`.
    pub(crate) fn mount(self, read_only: bool, target: &Path) -> Result<()> {
        attach(&self.detached(read_only)?, false, target)
    }

    /// The kernel says more in the context's log than its error number does.
    fn failed(&self, what: &str, error: Errno) -> Error {
        let mut log = Vec::new();
        let mut line = [0; 1024];
        while let Ok(len) = rustix::io::read(&self.fd, &mut line) {
            if len == 0 || log.len() > 4096 {
                break;
            }
            log.push(String::from_utf8_lossy(&line[..len]).trim_end().to_owned());
        }
        let e = failed(self.kind, what, error);
        if log.is_empty() { e } else { e.actual(log.join("; ")) }
    }
}

/// Whether this process may mount a file system of this kind, as far as privileges and the kernel's parts go.
pub(crate) fn may_mount(kind: &'static str) -> Result<()> {
    let context = FileSystem::open(kind)?;
    match fsconfig_create(&context.fd) {
        Err(e @ (Errno::PERM | Errno::ACCESS)) => Err(context.failed("mount", e)),
        // Nothing was said of what to mount; what counts is that the kernel got as far as missing it.
        _ => Ok(()),
    }
}

fn failed(kind: &str, what: &str, error: Errno) -> Error {
    let code = match error {
        // The last is said of image files on a file system that cannot read them for EROFS, or by kernels before 6.12.
        Errno::PERM | Errno::NODEV | Errno::NOSYS | Errno::NOTBLK => crate::ErrorKind::Unsupported,
        _ => crate::ErrorKind::Io,
    };
    Error::new(code, format!("cannot {what}: {error}")).subject(kind).source(std::io::Error::from(error))
}

/// Shows `source` at `target` too, with what is mounted below it.
pub(crate) fn bind(source: &Path, read_only: bool, target: &Path) -> Result<()> {
    mount_bind_recursive(source, target).map_err(|e| failed("bind", &format!("mount {}", source.display()), e))?;
    if read_only { make_read_only(target) } else { Ok(()) }
}

/// Opens the directory that a bind mount would show.
pub(crate) fn open_directory(source: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(source, flags, Mode::empty()).map_err(|e| io_error("open directory", source, e))
}

/// A mount of `source`, attached nowhere yet, with ids as `user_namespace` maps them.
pub(crate) fn id_mapped(source: &Path, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let what = || format!("map the ids of {}", source.display());
    let mount = open_tree(CWD, source, flags).map_err(|e| failed("bind", &what(), e))?;
    super::raw::map_ids(mount.as_fd(), user_namespace).map_err(|e| match e {
        Errno::INVAL => {
            let e = io_error("map the ids of", source, e);
            Error::new(crate::ErrorKind::Unsupported, "this file system's ids cannot be mapped here").source(e)
        }
        e => failed("bind", &what(), e),
    })?;
    Ok(mount)
}

/// Attaches a mount at `target`.
pub(crate) fn attach(mount: &OwnedFd, read_only: bool, target: &Path) -> Result<()> {
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| io_error("mount on", target, e))?;
    if read_only { make_read_only(target) } else { Ok(()) }
}

/// A bind mount becomes read-only, or goes.
fn make_read_only(target: &Path) -> Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY;
    mount_remount(target, flags, "").map_err(|e| {
        let _ = unmount(target);
        io_error("make read-only", target, e)
    })
}

/// Takes away the mount at `target`, which must not be in use.
pub(crate) fn unmount(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW).map_err(|e| match e {
        Errno::INVAL => Error::new(crate::ErrorKind::NotFound, "nothing is mounted here").subject(target.display()),
        Errno::BUSY => Error::new(crate::ErrorKind::Busy, "the mount is in use").subject(target.display()),
        other => io_error("unmount", target, other),
    })
}

/// Whether a file system is mounted exactly here.
pub(crate) fn is_mount_point(path: &Path) -> bool {
    let stat = rustix::fs::statx(CWD, path, rustix::fs::AtFlags::NO_AUTOMOUNT, rustix::fs::StatxFlags::BASIC_STATS);
    stat.is_ok_and(|stat| stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}
