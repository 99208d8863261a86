//! Mounts as values: what a runtime mounts itself, or has the library mount.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::mount::{self, FileSystem};
use crate::sys::publish::io_error;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What to mount, as containerd's `mount.Mount`. All paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: String,
    /// The directory to bind; `overlay` for an overlay.
    pub source: String,
    /// Where below the root the caller mounts it; almost always empty, for the root itself.
    pub target: String,
    /// As mount(8) takes them: `ro`, `rw`, `rbind`, `lowerdir=...`.
    pub options: Vec<String>,
}

impl Mount {
    pub(super) fn bind(source: String, writable: bool) -> Self {
        let options = vec![if writable { "rw" } else { "ro" }.to_owned(), "rbind".to_owned()];
        Self { kind: "bind".to_owned(), source, target: String::new(), options }
    }

    pub(super) fn overlay(options: Vec<String>) -> Self {
        Self { kind: "overlay".to_owned(), source: "overlay".to_owned(), target: String::new(), options }
    }

    /// Mounts this at `root`, or below it where it says so. Overlays are not bounded by the length of their options here:
    /// each lower directory is handed over by itself (`lowerdir+`, Linux 6.8), up to the kernel's 500. `root` is looked up
    /// once; [`MountPoint`] keeps a directory open that was looked up earlier.
    ///
    /// # Errors
    /// `Unsupported` without the privilege to mount, or for a kind this library does not return; `Io`.
    pub fn mount_at(&self, root: &Path) -> Result<()> {
        self.mount_on(mount::open_place(root)?.as_fd(), None).map(drop)
    }

    /// As [`mount_at`](Self::mount_at), with the users of all files as `user_namespace` (a `/proc/PID/ns/user` file) maps
    /// them: what belongs to 0 belongs to what the namespace's 0 is outside, so that containers of several users share
    /// one tree. Needs a file system whose ids can be mapped, and for overlays, which must be read-only, Linux 6.15.
    ///
    /// # Errors
    /// As [`mount_at`](Self::mount_at), and `Unsupported` where ids cannot be mapped.
    pub fn mount_id_mapped(&self, root: &Path, user_namespace: BorrowedFd<'_>) -> Result<()> {
        self.mount_on(mount::open_place(root)?.as_fd(), Some(user_namespace)).map(drop)
    }

    /// Mounts this on an open directory, or below it; returns the root of the mount.
    fn mount_on(&self, root: BorrowedFd<'_>, map: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
        let target = self.target.trim_matches('/');
        let below = if target.is_empty() { None } else { Some(mount::open_place_below(root, target)?) };
        let mount = self.detached(map)?;
        mount::attach(&mount, below.as_ref().map_or(root, |below| below.as_fd()))?;
        Ok(mount)
    }

    /// The mount with all its attributes, attached nowhere.
    fn detached(&self, map: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
        match (&self.kind[..], map) {
            ("bind" | "rbind", None) => mount::bind(Path::new(&self.source), self.is_read_only()),
            ("bind" | "rbind", Some(map)) => {
                let mapped = mount::id_mapped(Path::new(&self.source), map)?;
                if self.is_read_only() {
                    mount::make_read_only(&mapped)?;
                }
                Ok(mapped)
            }
            ("overlay", map) => {
                let (overlay, read_only) = self.overlay_of(map)?;
                overlay.detached(read_only)
            }
            (other, _) => Err(Error::new(ErrorKind::Unsupported, "unknown kind of mount").subject(other)),
        }
    }

    fn is_read_only(&self) -> bool {
        self.options.iter().any(|o| o == "ro")
    }

    /// Its root, to be written to, mounted nowhere: it is there as long as this is open.
    ///
    /// # Errors
    /// `Unsupported` for kinds of mounts this library does not know, and for those that cannot be written to.
    pub(super) fn open_root(&self) -> Result<OwnedFd> {
        let unsupported = |why| Error::new(ErrorKind::Unsupported, why).subject(&self.kind);
        if self.is_read_only() {
            return Err(unsupported("a mount that cannot be written to"));
        }
        match &self.kind[..] {
            "bind" | "rbind" => mount::open_directory(Path::new(&self.source)),
            "overlay" => match self.overlay_of(None)? {
                (_, true) => Err(unsupported("an overlay without an upper directory")),
                (overlay, false) => overlay.detached(false),
            },
            _ => Err(unsupported("unknown kind of mount")),
        }
    }

    /// The overlay, and whether it is read-only.
    fn overlay_of(&self, map: Option<BorrowedFd<'_>>) -> Result<(FileSystem, bool)> {
        let overlay = FileSystem::open("overlay")?;
        let mut read_only = true;
        for option in &self.options {
            match option.split_once('=') {
                Some(("lowerdir", lowers)) => {
                    for lower in split_lowers(lowers) {
                        match map {
                            None => overlay.set_path("lowerdir+", Path::new(&lower))?,
                            Some(map) => overlay.set_open("lowerdir+", mount::id_mapped(Path::new(&lower), map)?)?,
                        }
                    }
                }
                Some(("upperdir", _)) if map.is_some() => {
                    // Whoever mounts would have to be somebody the namespace maps, to make files in it.
                    return Err(Error::new(ErrorKind::Unsupported, "ids of a writable overlay cannot be mapped"));
                }
                Some((key @ ("upperdir" | "workdir"), path)) => {
                    read_only = false;
                    overlay.set_path(key, Path::new(&unescape(path)))?;
                }
                Some((key, value)) => overlay.set(key, value)?,
                None if matches!(&option[..], "ro" | "rw") => {}
                None => overlay.flag(option)?,
            }
        }
        Ok((overlay, read_only))
    }
}

/// Mounts all of a snapshot's mounts at `root`, which is looked up once. If one fails, those before it are taken away
/// again.
///
/// # Errors
/// As [`Mount::mount_at`].
pub fn mount_all(mounts: &[Mount], root: &Path) -> Result<()> {
    mount_all_on(mounts, mount::open_place(root)?.as_fd())
}

/// As [`mount_all`], on a directory that is open.
fn mount_all_on(mounts: &[Mount], root: BorrowedFd<'_>) -> Result<()> {
    let mut done: Vec<OwnedFd> = Vec::new();
    // What a mount's target leads to is in the mounts before it.
    let mut top: Option<usize> = None;
    for mount in mounts {
        let on = top.map_or(root, |at| done[at].as_fd());
        match mount.mount_on(on, None) {
            Ok(made) => done.push(made),
            Err(e) => {
                done.iter().rev().try_for_each(mount::detach)?;
                return Err(e);
            }
        }
        if mount.target.trim_matches('/').is_empty() {
            top = Some(done.len() - 1);
        }
    }
    Ok(())
}

/// Whether this process may mount at all, which is worth knowing before the work for a mount is done.
///
/// # Errors
/// `Unsupported` with the reason.
pub fn can_mount() -> Result<()> {
    mount::may_attach()
}

/// Takes away the mount at `root`. A last component that is a symlink is not followed.
///
/// # Errors
/// `NotFound` if nothing is mounted there, `Busy` while it is in use, `Io`.
pub fn unmount(root: &Path) -> Result<()> {
    mount::unmount(root)
}

/// A directory to mount on or to unmount from, looked up once. It stays the same directory, whatever gets its name, and
/// those of the directories above it, between opening and mounting. Without this, whoever may write to a directory above
/// could have a mount go elsewhere while a snapshot is being made ready.
#[derive(Debug)]
pub struct MountPoint {
    /// The directory, open until something is unmounted from it: an open mount is busy.
    dir: OwnedFd,
    path: PathBuf,
    /// The directory above it, and its name there; `None` for a root.
    named: Option<(OwnedFd, OsString)>,
}

impl MountPoint {
    /// Looks up a directory, following symlinks.
    ///
    /// # Errors
    /// `NotFound`, `Io`; `FailedPrecondition` if it gets another name at this moment.
    pub fn open(dir: &Path) -> Result<Self> {
        let opened = mount::open_place(dir)?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))
            .map_err(|e| io_error("find the name of", dir, e))?;
        let named = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Some((mount::open_place(parent)?, name.to_owned())),
            _ => None,
        };
        let point = Self { dir: opened, path, named };
        if let Some((parent, name)) = &point.named
            && mount::identity(parent.as_fd(), name)? != mount::identity(point.dir.as_fd(), OsStr::new(""))?
        {
            return Err(point.exchanged());
        }
        Ok(point)
    }

    /// Its absolute path without symlinks, as it was when it was looked up.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts all of a snapshot's mounts on it, as [`mount_all`].
    ///
    /// # Errors
    /// As [`Mount::mount_at`].
    pub fn mount_all(&self, mounts: &[Mount]) -> Result<()> {
        mount_all_on(mounts, self.dir.as_fd())
    }

    /// Takes away the mount whose root it is. Another mount that has the name by now stays.
    ///
    /// # Errors
    /// `NotFound` if nothing is mounted there, `Busy` while it is in use, `FailedPrecondition` if something else has the
    /// name, `Io`.
    pub fn unmount(self) -> Result<()> {
        let nothing = || Error::not_found("nothing is mounted here").subject(self.path.display());
        let Some((parent, name)) = &self.named else { return Err(nothing()) };
        let found = mount::identity(self.dir.as_fd(), OsStr::new(""))?;
        if mount::identity(parent.as_fd(), name)? != found {
            return Err(self.exchanged());
        }
        drop(self.dir);
        mount::unmount_in(parent.as_fd(), name).map_err(|e| e.subject(self.path.display()))
    }

    fn exchanged(&self) -> Error {
        let e = Error::new(ErrorKind::FailedPrecondition, "somebody exchanges this directory");
        e.subject(self.path.display()).expected("a directory that keeps its name")
    }
}

/// A path as a value among overlayfs's options, which are separated by commas and colons.
pub(super) fn escape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if matches!(c, '\\' | ':' | ',') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn unescape(text: &str) -> String {
    let mut chars = text.chars();
    let mut out = String::with_capacity(text.len());
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

/// The directories of a `lowerdir` option, the topmost first.
fn split_lowers(text: &str) -> Vec<String> {
    let (mut lowers, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        if c == ':' && !escaped {
            lowers.push(unescape(&text[start..i]));
            start = i + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    lowers.push(unescape(&text[start..]));
    lowers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_separators_survive() {
        let paths = ["/a:b", "/c,d", "/e\\f", "/plain"];
        let joined = paths.map(escape).join(":");
        assert_eq!(joined, "/a\\:b:/c\\,d:/e\\\\f:/plain");
        assert_eq!(split_lowers(&joined), paths);
    }

    #[test]
    fn a_mount_that_is_none_of_ours_is_refused() {
        let mount = Mount { kind: "ext4".into(), ..Mount::bind("/x".into(), true) };
        assert_eq!(mount.mount_at(Path::new("/")).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
