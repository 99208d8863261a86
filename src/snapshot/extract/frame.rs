//! What is around the leaves: directories before them; further names, whiteouts and directories' attributes after them.

use super::attributes::{Kind, Setter};
use super::options::{ExtractOptions, Losses, Overlay};
use super::plan::LeafAt;
use super::{Target, in_parallel};
use crate::error::Result;
use crate::observe::{Observer, check};
use crate::sys::dirs::{Dir, Inode};
use crate::sys::publish::io_error;
use crate::sys::raw::clear_umask;
use crate::tree::Spot;
use rustix::fs::FileType;
use rustix::io::Errno;
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

impl Target {
    /// Opens one of its directories.
    pub(super) fn open(&self, dir: u32, readable: bool) -> Result<Dir> {
        let path = self.outline.dir_path(dir);
        let opened = self.root.below(&path, readable);
        opened.map_err(|e| io_error("open directory", &self.path.join(&*String::from_utf8_lossy(&path)), e))
    }
}

/// Does `work` for each target, several at a time.
fn each(targets: &[Target], threads: usize, work: impl Fn(u32, &Target) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    in_parallel(threads.min(targets.len()), |_| {
        while let Some((at, target)) = Some(next.fetch_add(1, Relaxed)).and_then(|at| Some((at, targets.get(at)?))) {
            work(at as u32, target)?;
        }
        Ok(())
    })
}

/// Makes all directories, for their owner only.
pub(super) fn make(targets: &[Target], threads: usize, observer: &dyn Observer) -> Result<()> {
    each(targets, threads, |_, target| {
        clear_umask();
        let mut parent: Option<(u32, Dir)> = None;
        for dir in target.outline.dirs.iter().skip(1) {
            check(observer)?;
            let Spot { dir: at, name } = &dir.spot;
            let open = match parent.take().filter(|open| open.0 == *at) {
                Some(open) => open,
                None => (*at, target.open(*at, false)?),
            };
            let made = open.1.make(name);
            let path = || target.path.join(&*String::from_utf8_lossy(&target.outline.path(&dir.spot)));
            made.map_err(|e| io_error("create directory", &path(), e))?;
            parent = Some(open);
        }
        Ok(())
    })
}

/// Makes further names and whiteouts, then gives directories their attributes, the innermost first.
pub(super) fn complete(
    targets: &[Target],
    options: &ExtractOptions,
    losses: &Losses,
    missing: &HashSet<LeafAt>,
    observer: &dyn Observer,
) -> Result<()> {
    each(targets, options.threads, |number, target| {
        let setter = Setter { target, options, losses, umask: clear_umask() };
        let outline = &target.outline;
        for (spot, leaf) in &outline.links {
            check(observer)?;
            if missing.contains(&LeafAt { target: number, leaf: *leaf }) {
                continue;
            }
            let first = &outline.leaves[*leaf as usize].spot;
            let from = target.open(first.dir, false)?;
            let linked = target.open(spot.dir, false)?.link(&spot.name, &from, &first.name);
            linked.map_err(|e| setter.failed("link", spot, e))?;
        }
        let mut marked = HashSet::new();
        for spot in &outline.whiteouts {
            check(observer)?;
            let made = whiteout(&target.open(spot.dir, false)?, &spot.name, &options.overlay);
            if made.map_err(|e| setter.failed("make a whiteout at", spot, e))? {
                marked.insert(spot.dir);
            }
        }
        for (number, dir) in outline.dirs.iter().enumerate().rev() {
            check(observer)?;
            let open = target.open(number as u32, true)?;
            let inode = Inode::Open(open.as_fd());
            // `x` tells overlayfs to look for marked whiteouts.
            let mark = if dir.opaque { Some(b"y") } else { marked.contains(&(number as u32)).then_some(b"x") };
            if let Some(mark) = mark {
                let set = inode.set_xattr(&options.overlay.name("opaque"), mark);
                set.map_err(|e| setter.failed("mark", &dir.spot, e))?;
            }
            setter.set(inode, &dir.spot, &dir.attributes, Kind::Directory)?;
        }
        Ok(())
    })
}

/// Whether it is a marked file.
fn whiteout(dir: &Dir, name: &[u8], overlay: &Overlay) -> rustix::io::Result<bool> {
    if !overlay.marked_whiteouts {
        // Allowed to everyone since Linux 5.8.
        match dir.node(name, FileType::CharacterDevice, 0, 0, 0) {
            Err(Errno::PERM) => {}
            other => return other.map(|()| false),
        }
    }
    let file = dir.create(name, 0o600)?;
    Inode::Open(file.as_fd()).set_xattr(&overlay.name("whiteout"), b"y")?;
    Ok(true)
}

impl Overlay {
    /// Whether marks must be `user.overlay.*` on the file system of `dir`, which gets one.
    pub(crate) fn needs_user(dir: &Path) -> Result<bool> {
        let failed = |e| io_error("mark", dir, e);
        let open = Dir::open(dir).map_err(failed)?;
        let inode = Inode::Open(open.as_fd());
        for user in [false, true] {
            match inode.set_xattr(&Self { user, ..Self::default() }.name("opaque"), b"y") {
                Ok(()) => return Ok(user),
                Err(Errno::PERM) if !user => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(true)
    }

    fn name(&self, mark: &str) -> Vec<u8> {
        let namespace = if self.user { "user" } else { "trusted" };
        format!("{namespace}.overlay.{mark}").into_bytes()
    }
}
