//! The mount system calls, all by descriptor: a mount gets all its attributes before it is attached, and it is attached
//! to a directory that is open, so that nobody can exchange the target between two looks at a path.

use super::publish::io_error;
use crate::error::{Error, Result};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::cell::RefCell;
use std::ffi::OsStr;
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

    /// Mounts it on the directory at `target`.
    pub(crate) fn mount(self, read_only: bool, target: &Path) -> Result<()> {
        attach(&self.detached(read_only)?, open_place(target)?.as_fd())
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

/// A mount that shows `source` with what is mounted below it, attached nowhere yet. It is read-only before anybody can
/// see it.
pub(crate) fn bind(source: &Path, read_only: bool) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let what = || format!("mount {}", source.display());
    let mount = open_tree(CWD, source, flags).map_err(|e| failed("bind", &what(), e))?;
    if read_only {
        make_read_only(&mount)?;
    }
    Ok(mount)
}

/// Makes a mount that is not attached yet read-only, with all mounts below it.
pub(crate) fn make_read_only(mount: &OwnedFd) -> Result<()> {
    super::raw::set_read_only(mount.as_fd()).map_err(|e| failed("bind", "make a mount read-only", e))
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

/// Opens a directory to mount on: whatever takes its name later, this is where the mount goes.
pub(crate) fn open_place(target: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(target, flags, Mode::empty()).map_err(|e| io_error("open the directory to mount on", target, e))
}

/// Opens a directory below `root` to mount on. No component may be a symlink, and none leads out of `root`.
pub(crate) fn open_place_below(root: BorrowedFd<'_>, target: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, target, flags, Mode::empty(), resolve)
        .map_err(|e| io_error("open the directory to mount on", Path::new(target), e))
}

/// Attaches a mount to an open directory, over what is mounted there already.
pub(crate) fn attach(mount: &OwnedFd, place: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags).map_err(|e| failed("mount", "attach the mount", e))
}

/// Whether this process may mount at all. Nothing is mounted to find out.
pub(crate) fn may_attach() -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match open_tree(CWD, "/", flags) {
        Err(e @ (Errno::PERM | Errno::ACCESS | Errno::NOSYS)) => Err(failed("mount", "mount anything", e)),
        // Other refusals are about the root directory, not about this process.
        _ => Ok(()),
    }
}

/// What tells a directory that is mounted on, or not, from all others: its mount, file system and inode. The name may be
/// empty for `parent` itself; symlinks are not followed.
pub(crate) fn identity(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(u64, u32, u32, u64)> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let stat = statx(parent, name, flags, StatxFlags::MNT_ID | StatxFlags::INO);
    let stat = stat.map_err(|e| io_error("look at", Path::new(name), e))?;
    Ok((stat.stx_mnt_id, stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
}

/// Takes away a mount that is open, also while it is in use.
pub(crate) fn detach(mount: &OwnedFd) -> Result<()> {
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    rustix::mount::unmount(&*path, UnmountFlags::DETACH).map_err(|e| failed("mount", "take a mount away", e))
}

/// Takes away the mount at `name` in the open directory `parent`.
pub(crate) fn unmount_in(parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    // There is no umount2 relative to a descriptor; what /proc/self/fd leads to is the directory itself.
    unmount(&Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name))
}

/// Takes away the mount with this id at `path`, which must not be in use. False if something else is there by now: the
/// directory above is looked up once, so that nobody can exchange it between the look at the mount and its end.
pub(crate) fn unmount_with_id(path: &Path, id: u64) -> Result<bool> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = match rustix::fs::open(above, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        above => above.map_err(|e| io_error("open the directory of", path, e))?,
    };
    match super::mounts::mount_id_in(above.as_fd(), name) {
        Some(found) if found != id => Ok(false),
        _ => unmount_in(above.as_fd(), name).map(|()| true).map_err(|e| e.subject(path.display())),
    }
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
