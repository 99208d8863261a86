//! Mounts as values: what a runtime mounts itself, or has the library mount.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::mount::{self, FileSystem, PARAMETER};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
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
            "overlay" => self.mount_overlay(&mut Layers::default(), &target),
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
            "overlay" => self.mount_overlay(&mut Layers { map: Some(user_namespace), open: vec![] }, &target),
            other => Err(Error::new(ErrorKind::Unsupported, "unknown kind of mount").subject(other)),
        }
    }

    fn target_below(&self, root: &Path) -> PathBuf {
        if self.target.is_empty() { root.to_owned() } else { root.join(self.target.trim_matches('/')) }
    }

    fn is_read_only(&self) -> bool {
        self.options.iter().any(|o| o == "ro")
    }

    fn mount_overlay(&self, layers: &mut Layers<'_>, target: &Path) -> Result<()> {
        let overlay = FileSystem::open("overlay")?;
        let (mut upper, mut work) = (None, None);
        if layers.map.is_some() && self.options.iter().any(|option| option.starts_with("upperdir=")) {
            // Whoever mounts would have to be somebody the namespace maps, to make files in the upper directory.
            return Err(Error::new(ErrorKind::Unsupported, "ids of a writable overlay cannot be mapped"));
        }
        for option in &self.options {
            match option.split_once('=') {
                Some(("lowerdir", lowers)) => {
                    let lowers = split_lowers(lowers);
                    lowers.iter().try_for_each(|lower| overlay.set("lowerdir+", &layers.path(lower)?))?;
                }
                Some(("upperdir", path)) => upper = Some(unescape(path)),
                Some(("workdir", path)) => work = Some(unescape(path)),
                Some((key, value)) => overlay.set(key, value)?,
                None if matches!(&option[..], "ro" | "rw") => {}
                None => overlay.flag(option)?,
            }
        }
        if let (Some(upper), Some(work)) = (&upper, &work) {
            let (upper, work) = layers.upper(upper, work)?;
            overlay.set("upperdir", &upper)?;
            overlay.set("workdir", &work)?;
        }
        overlay.mount(upper.is_none(), target)
    }
}

/// The directories of an overlay as it is told them: by their paths or, where those are too long or their ids are
/// mapped, by way of descriptors that stay open until it is mounted.
#[derive(Default)]
struct Layers<'n> {
    map: Option<BorrowedFd<'n>>,
    open: Vec<OwnedFd>,
}

impl Layers<'_> {
    fn path(&mut self, path: &str) -> Result<String> {
        if self.map.is_none() && path.len() <= PARAMETER {
            return Ok(path.to_owned());
        }
        let fd = match self.map {
            Some(namespace) => mount::id_mapped(Path::new(path), namespace)?,
            None => std::fs::File::open(path).map_err(|e| Error::io(format!("open {path}"), e))?.into(),
        };
        let short = format!("/proc/self/fd/{}", fd.as_raw_fd());
        self.open.push(fd);
        Ok(short)
    }

    /// Both, which must be reached through one mount.
    fn upper(&mut self, upper: &str, work: &str) -> Result<(String, String)> {
        let both = |upper: &str, work: &str| (upper.to_owned(), work.to_owned());
        let (up, wp) = (Path::new(upper), Path::new(work));
        if self.map.is_none() && upper.len().max(work.len()) <= PARAMETER {
            return Ok(both(upper, work));
        }
        let (Some(parent), Some(up), Some(wp)) = (up.parent(), up.file_name(), wp.file_name()) else {
            return Err(Error::invalid("an upper directory without a parent").subject(upper));
        };
        if Path::new(work).parent() != Some(parent) {
            return Err(Error::new(ErrorKind::Unsupported, "upper and work directory are not beside each other"));
        }
        let dir = self.path(&parent.to_string_lossy())?;
        Ok(both(&format!("{dir}/{}", up.to_string_lossy()), &format!("{dir}/{}", wp.to_string_lossy())))
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
