//! Owner, extended attributes, mode and time of what was written, in the order in which none undoes another: chown clears
//! setuid and capabilities; an access control list and a mode set each other, and the mode has the last word.

use super::Target;
use super::options::{ExtractOptions, Losses, Lost, mapped};
use crate::error::{Error, Result};
use crate::format::entry::Xattr;
use crate::sys::dirs::{Inode, Owner};
use crate::sys::publish::io_error;
use crate::tree::{Attributes, Spot};
use rustix::io::Errno;
use std::path::Path;

/// setuid and setgid.
const LENT: u16 = 0o6000;
/// Bits that creating a file does not set reliably: writing and chown clear them.
const SPECIAL: u16 = 0o7000;
/// Times that every file system keeps.
const TIMES: std::ops::Range<i64> = 0..1 << 31;
/// A file system with this much space left is not full, whatever others write meanwhile.
const ROOM: u64 = 1 << 20;

/// Sets attributes in one target, on one thread.
pub(super) struct Setter<'a> {
    pub(super) target: &'a Target,
    pub(super) options: &'a ExtractOptions,
    pub(super) losses: &'a Losses,
    /// The thread's umask.
    pub(super) umask: u16,
}

impl Setter<'_> {
    /// The mode to create a file with.
    pub(super) fn creation_mode(&self, attributes: &Attributes) -> u16 {
        // Extended attributes can be set only on what its owner may write to.
        if attributes.xattrs.is_empty() { attributes.mode & !SPECIAL } else { 0o600 }
    }

    /// Sets everything on what was just created with [`creation_mode`](Self::creation_mode) or, if `directory`, 0700.
    pub(super) fn set(&self, inode: Inode<'_>, spot: &Spot, attributes: &Attributes, kind: Kind) -> Result<()> {
        let failed = |operation, e| self.failed(operation, spot, e);
        let owned = self.owner(inode, spot, attributes)?;
        for xattr in &attributes.xattrs[..] {
            if xattr.name.starts_with(b"trusted.overlay.") || xattr.name.starts_with(b"user.overlay.") {
                return Err(failed("set an attribute that overlayfs would obey on", Errno::INVAL));
            }
            match inode.set_xattr(&xattr.name, &xattr.value) {
                Ok(()) => {}
                Err(e) if refused(e) || too_large(e, inode, xattr) => {
                    self.losses.add(self.path(spot), Lost::Xattr { name: xattr.name.clone() })?;
                }
                Err(e) => return Err(failed("set an extended attribute of", e)),
            }
        }
        let mut mode = attributes.mode;
        if !owned && mode & LENT != 0 && kind != Kind::Symlink {
            self.losses.add(self.path(spot), Lost::Mode { mode })?;
            mode &= !LENT;
        }
        let created = self.creation_mode(attributes) & !self.umask;
        let created = if kind == Kind::Directory { 0o700 } else { created };
        if kind != Kind::Symlink && mode != created {
            inode.chmod(mode).map_err(|e| failed("set the mode of", e))?;
        }
        let time = attributes.mtime;
        inode.set_time(time.secs, time.nanos).map_err(|e| failed("set the time of", e))?;
        if !TIMES.contains(&time.secs) && inode.time() != Ok((time.secs, time.nanos)) {
            self.losses.add(self.path(spot), Lost::Time)?;
        }
        Ok(())
    }

    /// Whether the owner is as it should be.
    fn owner(&self, inode: Inode<'_>, spot: &Spot, attributes: &Attributes) -> Result<bool> {
        let Attributes { uid, gid, .. } = *attributes;
        let mapped = mapped(&self.options.uids, uid).zip(mapped(&self.options.gids, gid));
        let set = match mapped.map(|(uid, gid)| Owner { uid, gid }) {
            None => Err(Errno::INVAL),
            Some(owner) if owner == self.target.given => Ok(()),
            Some(owner) => inode.chown(owner),
        };
        match set {
            Ok(()) => Ok(true),
            Err(e) if refused(e) => {
                self.losses.add(self.path(spot), Lost::Owner { uid, gid })?;
                Ok(false)
            }
            Err(e) => Err(self.failed("set the owner of", spot, e)),
        }
    }

    pub(super) fn path(&self, spot: &Spot) -> Vec<u8> {
        self.target.outline.path(spot)
    }

    pub(super) fn failed(&self, operation: &str, spot: &Spot, error: impl Into<std::io::Error>) -> Error {
        let path = self.path(spot);
        io_error(
            operation,
            &self.target.path.join(Path::new(std::ffi::OsStr::new(&*String::from_utf8_lossy(&path)))),
            error,
        )
    }
}

/// Whether this file system cannot hold the attribute. ext4 and btrfs say that there is no space, as a full one does.
fn too_large(error: Errno, inode: Inode<'_>, xattr: &Xattr) -> bool {
    let room = ROOM + (xattr.name.len() + xattr.value.len()) as u64;
    matches!(error, Errno::TOOBIG | Errno::RANGE) || error == Errno::NOSPC && inode.free_space() >= room
}

/// What decides how attributes are set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    Symlink,
    Other,
}

/// Whether the kernel says that this may not be set here, rather than that something is wrong.
pub(super) fn refused(error: Errno) -> bool {
    matches!(error, Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL)
}
