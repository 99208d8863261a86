//! Mounts as values: what a runtime mounts itself, or has the library mount.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::mount::{self, FileSystem};
use std::os::fd::{BorrowedFd, OwnedFd};
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
    /// each lower directory is handed over by itself (`lowerdir+`, Linux 6.8), up to the kernel's 500.
    ///
    /// # Errors
    /// `Unsupported` without the privilege to mount, or for a kind this library does not return; `Io`.
    pub fn mount_at(&self, root: &Path) -> Result<()> {
        let target = self.target_below(root);
        match &self.kind[..] {
            "bind" => mount::bind(Path::new(&self.source), self.is_read_only(), &target),
            "overlay" => self.mount_overlay(None, &target),
            other => Err(Error::new(ErrorKind::Unsupported, "unknown kind of mount").subject(other)),
        }
    }

    /// As [`mount_at`](Self::mount_at), with the users of all files as `user_namespace` (a `/proc/PID/ns/user` file) maps
    /// them: what belongs to 0 belongs to what the namespace's 0 is outside, so that containers of several users share
    /// one tree. Needs a file system whose ids can be mapped, and for overlays, which must be read-only, Linux 6.15.
    ///
    /// # Errors
    /// As [`mount_at`](Self::mount_at), and `Unsupported` where ids cannot be mapped.
    pub fn mount_id_mapped(&self, root: &Path, user_namespace: BorrowedFd<'_>) -> Result<()> {
        let target = self.target_below(root);
        match &self.kind[..] {
            "bind" => {
                let mapped = mount::id_mapped(Path::new(&self.source), user_namespace)?;
                mount::attach(&mapped, self.is_read_only(), &target)
            }
            "overlay" => self.mount_overlay(Some(user_namespace), &target),
            other => Err(Error::new(ErrorKind::Unsupported, "unknown kind of mount").subject(other)),
        }
    }

    fn target_below(&self, root: &Path) -> PathBuf {
        if self.target.is_empty() { root.to_owned() } else { root.join(self.target.trim_matches('/')) }
    }

    fn is_read_only(&self) -> bool {
        self.options.iter().any(|o| o == "ro")
    }

    fn mount_overlay(&self, map: Option<BorrowedFd<'_>>, target: &Path) -> Result<()> {
        let (overlay, read_only) = self.overlay_of(map)?;
        overlay.mount(read_only, target)
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

/// Mounts all of a snapshot's mounts at `root`. If one fails, those before it are taken away again.
///
/// # Errors
/// As [`Mount::mount_at`].
pub fn mount_all(mounts: &[Mount], root: &Path) -> Result<()> {
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(e) = mount.mount_at(root) {
            for _ in 0..done {
                unmount(root)?;
            }
            return Err(e);
        }
    }
    Ok(())
}

/// Takes away the mount at `root`.
///
/// # Errors
/// `NotFound` if nothing is mounted there, `Busy` while it is in use, `Io`.
pub fn unmount(root: &Path) -> Result<()> {
    mount::unmount(root)
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
        assert_eq!(mount.mount_at(Path::new("/nowhere")).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
