//! Writing trees: every call is relative to an open directory and follows no symlink.
//!
//! Results are the kernel's error numbers: the caller knows the path, and which failures it can live with.

use super::space::free_space;
use super::{remove, walk};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::{Errno, Result};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The longest value of an attribute.
const XATTR_SIZE_MAX: usize = 65_536;
/// Nobody else gets in before a tree is complete.
const PRIVATE: Mode = Mode::RWXU;

/// Access control lists, which stand beside owner and mode.
const ACLS: [&str; 2] = ["system.posix_acl_default", "system.posix_acl_access"];

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir(OwnedFd);

/// What a new inode is owned by when nobody says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Who may enter a directory.
#[derive(Debug)]
pub(crate) struct Access {
    owner: Owner,
    mode: u16,
    acls: Vec<(&'static str, Vec<u8>)>,
}

impl From<OwnedFd> for Dir {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.0
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Dir {
    /// Opens a directory by a path that is trusted but for its last component.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        fs::open(path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// Makes the directory ready to have a tree written into it: it is ours, nobody else may enter, and what is made in
    /// it inherits neither group nor access control lists. Returns the owner of what is made, itself included.
    pub(crate) fn seclude(&self) -> Result<Owner> {
        self.remove_acls()?;
        fs::fchmod(&self.0, PRIVATE)?;
        const PROBE: &[u8] = b".probe";
        let probe = self.create(PROBE, 0o600)?;
        let stat = fs::fstat(&probe)?;
        fs::unlinkat(&self.0, PROBE, AtFlags::empty())?;
        let own = fs::fstat(&self.0)?;
        if (own.st_uid, own.st_gid) != (stat.st_uid, stat.st_gid) {
            fs::fchown(&self.0, Some(fs::Uid::from_raw(stat.st_uid)), Some(fs::Gid::from_raw(stat.st_gid)))?;
        }
        Ok(Owner { uid: stat.st_uid, gid: stat.st_gid })
    }

    /// Makes a directory that has nothing of what is around it: neither mode, group nor access control lists. Only its
    /// owner may enter it.
    pub(crate) fn make_fresh(path: &Path) -> std::io::Result<Self> {
        fs::mkdir(path, PRIVATE)?;
        let dir = Self::open(path)?;
        dir.disinherit()?;
        Ok(dir)
    }

    /// Takes from a directory what it inherited, and what it would pass on.
    pub(crate) fn disinherit(&self) -> Result<()> {
        self.remove_acls()?;
        let (own, stat) = (rustix::process::getegid(), fs::fstat(&self.0)?);
        if stat.st_mode & 0o7777 != PRIVATE.as_raw_mode() {
            fs::fchmod(&self.0, PRIVATE)?;
        }
        if stat.st_gid != own.as_raw() {
            match fs::fchown(&self.0, None, Some(own)) {
                // Of a file system that gives everything to somebody else, it is as good as its own.
                Ok(()) | Err(Errno::PERM) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Looks first: removing what is not there waits for the file system's journal all the same.
    fn remove_acls(&self) -> Result<()> {
        for acl in ACLS {
            let there = fs::fgetxattr(&self.0, acl, &mut [0_u8; 0][..]);
            match there.and_then(|_| fs::fremovexattr(&self.0, acl)) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Who may enter it.
    pub(crate) fn access(&self) -> Result<Access> {
        let stat = fs::fstat(&self.0)?;
        let mut acls = Vec::new();
        for acl in ACLS {
            let mut value = vec![0; XATTR_SIZE_MAX];
            match fs::fgetxattr(&self.0, acl, &mut value[..]) {
                Ok(len) => {
                    value.truncate(len);
                    acls.push((acl, value));
                }
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        let owner = Owner { uid: stat.st_uid, gid: stat.st_gid };
        Ok(Access { owner, mode: (stat.st_mode & 0o7777) as u16, acls })
    }

    /// Undoes [`seclude`](Self::seclude), and what was set since.
    pub(crate) fn restore(&self, access: &Access) -> Result<()> {
        let inode = Inode::Open(self.0.as_fd());
        let stat = fs::fstat(&self.0)?;
        if access.owner != (Owner { uid: stat.st_uid, gid: stat.st_gid }) {
            inode.chown(access.owner)?;
        }
        self.remove_acls()?;
        // First, as a mode without its list could let more in.
        for (acl, value) in &access.acls {
            inode.set_xattr(acl.as_bytes(), value)?;
        }
        inode.chmod(access.mode)
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        for found in fs::Dir::read_from(&self.0)? {
            if !matches!(found?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes all that is in it, wherever its name leads by now.
    pub(crate) fn empty(&self) -> Result<()> {
        remove::all_in(self.0.as_fd()).map_err(|failure| failure.errno)
    }

    /// Removes a name and, if it is a directory's, all that is in it; one that is not there is fine.
    pub(crate) fn remove(&self, name: &[u8]) -> Result<()> {
        remove::name_in(self.0.as_fd(), name).map_err(|failure| failure.errno)
    }

    /// Makes sure that the directory `name` is there and only its owner may enter it, in place of whatever else has the
    /// name. Returns whether it was there already.
    pub(crate) fn enter(&self, name: &[u8]) -> std::io::Result<bool> {
        match self.below(name, true) {
            Ok(dir) => {
                fs::fchmod(&dir.0, PRIVATE)?;
                return Ok(true);
            }
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => self.remove(name)?,
            Err(e) => return Err(e.into()),
        }
        Ok(self.make(name).map(|()| false)?)
    }

    /// Makes a directory that only its owner may enter.
    pub(crate) fn make(&self, name: &[u8]) -> Result<()> {
        fs::mkdirat(&self.0, name, PRIVATE)
    }

    /// Opens the directory at a relative path no component of which may be a symlink; `.` itself for an empty path.
    /// Without `readable` it serves only to reach what is in it, and costs less.
    pub(crate) fn below(&self, path: &[u8], readable: bool) -> Result<Self> {
        let mut flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        flags.set(OFlags::PATH, !readable);
        walk::open_below(&self.0, path, flags).map(Self)
    }

    /// Creates a regular file for writing. The mode is subject to the thread's umask.
    pub(crate) fn create(&self, name: &[u8], mode: u16) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&self.0, name, flags, Mode::from_raw_mode(mode.into())).map(File::from)
    }

    /// Opens a regular file for writing.
    pub(crate) fn open_file(&self, name: &[u8]) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&self.0, name, flags, Mode::empty()).map(File::from)
    }

    pub(crate) fn symlink(&self, name: &[u8], target: &[u8]) -> Result<()> {
        fs::symlinkat(target, &self.0, name)
    }

    /// Makes a device or FIFO.
    pub(crate) fn node(&self, name: &[u8], kind: FileType, mode: u16, major: u32, minor: u32) -> Result<()> {
        fs::mknodat(&self.0, name, kind, Mode::from_raw_mode(mode.into()), fs::makedev(major, minor))
    }

    /// Gives the inode `old` in `from`, itself even if it is a symlink, one more name here.
    pub(crate) fn link(&self, name: &[u8], from: &Self, old: &[u8]) -> Result<()> {
        fs::linkat(&from.0, old, &self.0, name, AtFlags::empty())
    }

    /// Brings all that was written to the file system of this directory to disk.
    pub(crate) fn sync_file_system(&self) -> Result<()> {
        fs::syncfs(&self.0)
    }
}

/// An inode whose attributes are set.
#[derive(Clone, Copy)]
pub(crate) enum Inode<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// A name in a directory; a symlink is not followed.
    Named(&'a Dir, &'a [u8]),
}

impl Inode<'_> {
    pub(crate) fn chown(self, owner: Owner) -> Result<()> {
        let (uid, gid) = (fs::Uid::from_raw(owner.uid), fs::Gid::from_raw(owner.gid));
        match self {
            Self::Open(fd) => fs::fchown(fd, Some(uid), Some(gid)),
            Self::Named(dir, name) => fs::chownat(&dir.0, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    /// Bytes that anybody may still write to its file system.
    pub(crate) fn free_space(self) -> u64 {
        match self {
            Self::Open(fd) => free_space(fd),
            Self::Named(dir, _) => free_space(dir),
        }
    }

    /// Not for symlinks, which have no mode: of one that took the name's place it is an error.
    pub(crate) fn chmod(self, mode: u16) -> Result<()> {
        let mode = Mode::from_raw_mode(mode.into());
        match self {
            Self::Open(fd) => fs::fchmod(fd, mode),
            // `fchmodat` follows symlinks, and what does not is Linux 6.6. What /proc/self/fd leads to is the inode itself.
            Self::Named(dir, name) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inode = fs::openat(&dir.0, name, flags, Mode::empty())?;
                if FileType::from_raw_mode(fs::fstat(&inode)?.st_mode) == FileType::Symlink {
                    return Err(Errno::LOOP);
                }
                fs::chmod(format!("/proc/self/fd/{}", inode.as_raw_fd()), mode)
            }
        }
    }

    /// Sets both the modification and the access time.
    pub(crate) fn set_time(self, secs: i64, nanos: u32) -> Result<()> {
        let time = Timespec { tv_sec: secs, tv_nsec: nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        match self {
            Self::Open(fd) => fs::futimens(fd, &times),
            Self::Named(dir, name) => fs::utimensat(&dir.0, name, &times, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    /// The modification time as the file system keeps it.
    pub(crate) fn time(self) -> Result<(i64, u32)> {
        let stat = match self {
            Self::Open(fd) => fs::fstat(fd)?,
            Self::Named(dir, name) => fs::statat(&dir.0, name, AtFlags::SYMLINK_NOFOLLOW)?,
        };
        Ok((stat.st_mtime, stat.st_mtime_nsec as u32))
    }

    /// Takes an attribute away; one that is not there is fine. Not for names.
    pub(crate) fn remove_xattr(self, name: &[u8]) -> Result<()> {
        let Self::Open(fd) = self else { return Err(Errno::OPNOTSUPP) };
        match fs::fremovexattr(fd, name) {
            Err(Errno::NODATA) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn set_xattr(self, name: &[u8], value: &[u8]) -> Result<()> {
        match self {
            Self::Open(fd) => fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            // There is no `setxattrat` before Linux 6.13; what /proc/self/fd leads to is the directory itself.
            Self::Named(dir, at) => {
                let path = [format!("/proc/self/fd/{}/", dir.0.as_raw_fd()).as_bytes(), at].concat();
                fs::lsetxattr(&path[..], name, value, XattrFlags::empty())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn follows_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let outside = scratch.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::create_dir(scratch.path().join("root")).unwrap();
        let root = Dir::open(&scratch.path().join("root")).unwrap();
        symlink(&outside, scratch.path().join("root/out")).unwrap();
        symlink(outside.join("new"), scratch.path().join("root/file")).unwrap();
        std::fs::create_dir(outside.join("d")).unwrap();
        assert_eq!(root.below(b"out", false).unwrap_err(), Errno::NOTDIR);
        assert_eq!(root.below(b"out/d", false).unwrap_err(), Errno::LOOP);
        assert_eq!(root.below(b"out/d/../../root", false).unwrap_err(), Errno::LOOP);
        assert_eq!(root.below(b"..", false).unwrap_err(), Errno::XDEV);
        assert_eq!(root.create(b"file", 0o600).unwrap_err(), Errno::EXIST);
        assert_eq!(Dir::open(&scratch.path().join("root/out")).unwrap_err(), Errno::NOTDIR);
        Inode::Named(&root, b"out").set_time(5, 6).unwrap();
        assert_ne!(std::fs::metadata(&outside).unwrap().mtime(), 5);
        assert_eq!(Inode::Named(&root, b"out").time(), Ok((5, 6)));
        assert_eq!(Inode::Named(&root, b"out").chmod(0o700).unwrap_err(), Errno::LOOP);
        root.make(b"d").unwrap();
        root.below(b"d", false).unwrap().link(b"l", &root, b"out").unwrap();
        assert!(scratch.path().join("root/d/l").is_symlink());
        if rustix::process::geteuid().is_root() {
            Inode::Named(&root, b"out").set_xattr(b"trusted.x", b"1").unwrap();
            assert_eq!(fs::listxattr(&outside, &mut [0u8; 64][..]), Ok(0));
        }
    }

    #[test]
    fn removes_and_enters_what_is_there_and_follows_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let outside = scratch.path().join("outside");
        std::fs::create_dir_all(outside.join("d")).unwrap();
        std::fs::create_dir_all(scratch.path().join("root/full/of/dirs")).unwrap();
        let at = scratch.path().join("root");
        symlink(&outside, at.join("full/link")).unwrap();
        symlink(&outside, at.join("link")).unwrap();
        let root = Dir::open(&at).unwrap();
        root.remove(b"full").unwrap();
        root.remove(b"nothing").unwrap();
        assert!(!root.enter(b"link").unwrap(), "a directory takes the symlink's place");
        assert!(root.enter(b"link").unwrap());
        assert!(!root.enter(b"new").unwrap());
        assert!(outside.join("d").is_dir());
        let names: Vec<_> = std::fs::read_dir(&at).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(std::fs::symlink_metadata(at.join("link")).unwrap().is_dir());
    }

    /// A directory of this mode, and what it is in.
    fn with_mode(mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("d");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (scratch, path)
    }

    /// As of a directory that somebody else had shared with a user.
    #[test]
    fn access_comes_back_as_it_was() {
        let (_scratch, path) = with_mode(0o2750);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(5), Some(6)).unwrap();
        }
        let dir = Dir::open(&path).unwrap();
        // u::rwx, u:77:rwx, g::---, m::rwx, o::---
        let entries: [(u16, u16, u32); 5] = [(1, 7, !0), (2, 7, 77), (4, 0, !0), (16, 7, !0), (32, 0, !0)];
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, bits, id) in entries {
            acl.extend([&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        if let Err(e) = Inode::Open(dir.as_fd()).set_xattr(ACLS[1].as_bytes(), &acl) {
            assert_eq!(e, Errno::OPNOTSUPP);
        }
        let before = dir.access().unwrap();
        dir.seclude().unwrap();
        if !before.acls.is_empty() {
            Inode::Open(dir.as_fd()).set_xattr(ACLS[0].as_bytes(), &acl).unwrap();
        }
        dir.restore(&before).unwrap();
        let after = dir.access().unwrap();
        assert_eq!((after.owner, after.mode, after.acls), (before.owner, before.mode, before.acls));
    }

    #[test]
    fn a_secluded_directory_passes_nothing_on() {
        let (_scratch, path) = with_mode(0o2777);
        let dir = Dir::open(&path).unwrap();
        let owner = dir.seclude().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(owner.uid, rustix::process::geteuid().as_raw());
        assert!(dir.is_empty().unwrap());
        dir.make(b"x").unwrap();
        assert!(!dir.is_empty().unwrap());
    }
}
