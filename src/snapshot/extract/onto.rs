//! A layer onto a directory that holds the tree below it, which others made: what containerd's differs do.
//!
//! The tree in the directory is read, the layer applied to it in memory by the rules of `tree/`, and what makes the one
//! the other is then done in the directory: so nothing here has to resolve what a layer says. In an overlay the kernel
//! makes whiteouts of what is removed.
//!
//! 1. Directories on the way are entered, and closed to everybody else; names that change go.
//! 2. New leaves are written as in any other directory, then links to old ones.
//! 3. Directories get their attributes, the innermost first, since all of this changed their times.

use super::attributes::{Kind, Setter};
use super::options::{ExtractOptions, Losses};
use super::{Target, frame, leaves};
use crate::error::{Error, ErrorKind, Result};
use crate::format::entry::{Entry, EntryKind, Whiteout};
use crate::layer::{Content, DiskFile, Source, SourceTree};
use crate::observe::{Observer, check};
use crate::store::Store;
use crate::sys::dirs::{Dir, Inode, Owner};
use crate::sys::publish::io_error;
use crate::tree::{Leaf, NodeKind, Outline, OutlineDir, Spot, diff, split};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Files below the layer that are written anew, because a hard link gives them other attributes: open all the time.
const REWRITTEN: usize = 256;
/// Nobody's: every owner is set, since directories that are there may have any.
const NOBODYS: Owner = Owner { uid: u32::MAX, gid: u32::MAX };

/// What makes a directory's tree another one.
struct Patch {
    /// Its whiteouts are names to remove.
    outline: Outline<Content>,
    /// Links to what is there and stays.
    links: Vec<(Spot, Vec<u8>)>,
    /// Leaves, by number, whose content is in the directory.
    rewritten: Vec<(u32, File)>,
}

/// Makes the directory `root`, which holds the tree `before`, hold `after`. `path` is for errors.
///
/// # Errors
/// `Unsupported` for a layer that gives very many files of the directory other attributes by hard links; `Corrupt`, `Io`,
/// `Cancelled`; `FailedPrecondition` for what cannot be set. What was done until then stays.
pub(crate) fn layer_onto(
    store: &Store,
    (before, after): (&SourceTree, &SourceTree),
    (root, path): (Dir, PathBuf),
    options: &ExtractOptions,
    observer: &dyn Observer,
) -> Result<()> {
    let Patch { mut outline, links, rewritten } = Patch::new(before, after)?;
    let removed = std::mem::take(&mut outline.whiteouts);
    let target = Target { outline, root, given: NOBODYS, path };
    target.enter(before)?;
    target.clear(&removed, &links)?;
    check(observer)?;
    let (targets, losses) = ([target], Losses::new(options.strict));
    let missing = leaves(store, &targets, options, &losses, observer)?;
    let [target] = &targets;
    // Not a thread of the library: its umask is its own.
    let setter = Setter { target, options, losses: &losses, umask: 0o777 };
    for (number, mut from) in rewritten {
        let leaf = &target.outline.leaves[number as usize];
        let failed = |e: std::io::Error| setter.failed("write", &leaf.spot, e);
        let file = target.open(leaf.spot.dir, false)?.open_file(&leaf.spot.name);
        let mut file = file.map_err(|e| failed(e.into()))?;
        std::io::copy(&mut from, &mut file).map_err(failed)?;
        setter.set(Inode::Open(file.as_fd()), &leaf.spot, &leaf.attributes, Kind::Other)?;
    }
    for (spot, old) in &links {
        let (dir, name) = split(old);
        let from = target.root.below(dir, false).map_err(|e| setter.failed("find what is linked to", spot, e))?;
        let linked = target.open(spot.dir, false)?.link(&spot.name, &from, name);
        linked.map_err(|e| setter.failed("link", spot, e))?;
    }
    frame::complete(&targets, options, &losses, &missing)?;
    if options.sync {
        target.root.sync_file_system().map_err(|e| io_error("sync the file system of", &target.path, e))?;
    }
    Ok(())
}

impl Target {
    /// Makes sure all directories of the outline are there, the root's too, without attributes of their own.
    fn enter(&self, before: &SourceTree) -> Result<()> {
        for (number, dir) in self.outline.dirs.iter().enumerate() {
            let path = self.outline.dir_path(number as u32);
            let failed = |e: std::io::Error| io_error("enter directory", &self.named(&path), e);
            if number > 0 {
                let above = self.open(dir.spot.dir, false)?;
                if !above.enter(&dir.spot.name).map_err(failed)? {
                    continue;
                }
            }
            let open = self.open(number as u32, true)?;
            if number == 0 {
                Inode::Open(open.as_fd()).chmod(0o700).map_err(|e| failed(e.into()))?;
            }
            // What the layer does not say is not there afterwards; and until then nothing may be passed on from it.
            for xattr in before.get(&path).into_iter().flat_map(|id| &before.node(id).attributes.xattrs[..]) {
                Inode::Open(open.as_fd()).remove_xattr(&xattr.name).map_err(|e| failed(e.into()))?;
            }
        }
        Ok(())
    }

    /// Frees the names that go and those that are written.
    fn clear(&self, removed: &[Spot], links: &[(Spot, Vec<u8>)]) -> Result<()> {
        let Outline { leaves, links: more, .. } = &self.outline;
        let written = leaves.iter().map(|leaf| &leaf.spot).chain(more.iter().map(|(spot, _)| spot));
        for spot in removed.iter().chain(written).chain(links.iter().map(|(spot, _)| spot)) {
            let removed = self.open(spot.dir, false)?.remove(&spot.name);
            removed.map_err(|e| io_error("remove", &self.named(&self.outline.path(spot)), e))?;
        }
        Ok(())
    }

    fn named(&self, path: &[u8]) -> PathBuf {
        self.path.join(&*String::from_utf8_lossy(path))
    }
}

impl Patch {
    fn new(before: &SourceTree, after: &SourceTree) -> Result<Self> {
        let outline = Outline { dirs: vec![], leaves: vec![], links: vec![], whiteouts: vec![] };
        let patch = Self { outline, links: vec![], rewritten: vec![] };
        let (dirs, leaves) = (HashMap::new(), HashMap::new());
        let mut maker = Maker { after, patch, dirs, leaves };
        maker.dir(b"")?;
        for (entry, content) in diff(before, after) {
            maker.add(entry, content)?;
        }
        Ok(maker.patch)
    }
}

struct Maker<'t> {
    after: &'t SourceTree,
    patch: Patch,
    /// By path, the numbers of directories and leaves.
    dirs: HashMap<Vec<u8>, u32>,
    leaves: HashMap<Vec<u8>, u32>,
}

impl Maker<'_> {
    /// The number of a directory; those it is in come before it.
    fn dir(&mut self, path: &[u8]) -> Result<u32> {
        if let Some(&number) = self.dirs.get(path) {
            return Ok(number);
        }
        let spot = if path.is_empty() { Spot { dir: 0, name: Box::default() } } else { self.spot(path)? };
        let id = self.after.get(path).ok_or_else(|| Error::corrupt("a directory is not in its tree"))?;
        let attributes = self.after.node(id).attributes.clone();
        let number = self.patch.outline.dirs.len() as u32;
        self.patch.outline.dirs.push(OutlineDir { spot, attributes, opaque: false });
        self.dirs.insert(path.to_vec(), number);
        Ok(number)
    }

    fn spot(&mut self, path: &[u8]) -> Result<Spot> {
        let (dir, name) = split(path);
        Ok(Spot { dir: self.dir(dir)?, name: name.into() })
    }

    /// One of the changes.
    fn add(&mut self, entry: Entry, content: Option<Source>) -> Result<()> {
        if let Some(Whiteout::Remove(name)) = entry.whiteout() {
            let spot = Spot { dir: self.dir(split(&entry.path).0)?, name: name.into() };
            self.patch.outline.whiteouts.push(spot);
            return Ok(());
        }
        if entry.kind == EntryKind::Directory {
            return self.dir(&entry.path).map(drop);
        }
        let spot = self.spot(&entry.path)?;
        if let EntryKind::Hardlink { target } = entry.kind {
            match self.leaves.get(&target) {
                Some(&leaf) => self.patch.outline.links.push((spot, leaf)),
                None => self.patch.links.push((spot, target)),
            }
            return Ok(());
        }
        let id = self.after.get(&entry.path).ok_or_else(|| Error::corrupt("a file is not in its tree"))?;
        let node = self.after.node(id);
        let number = self.patch.outline.leaves.len() as u32;
        let kind: NodeKind<Content> = match (&node.kind, content) {
            (NodeKind::File { size, .. }, Some(Source::Disk(disk))) => {
                self.rewrite(number, &disk)?;
                NodeKind::File { size: *size, sparse: None, content: Content::default() }
            }
            (NodeKind::File { size, sparse, .. }, Some(Source::Stored(content))) => {
                NodeKind::File { size: *size, sparse: sparse.clone(), content }
            }
            (NodeKind::Symlink { target }, _) => NodeKind::Symlink { target: target.clone() },
            (&NodeKind::CharDevice { major, minor }, _) => NodeKind::CharDevice { major, minor },
            (&NodeKind::BlockDevice { major, minor }, _) => NodeKind::BlockDevice { major, minor },
            (NodeKind::Fifo, _) => NodeKind::Fifo,
            _ => return Err(Error::corrupt("a file without content")),
        };
        self.patch.outline.leaves.push(Leaf { spot, attributes: node.attributes.clone(), kind });
        self.leaves.insert(entry.path, number);
        Ok(())
    }

    /// A leaf gets the content that a file has now, whose name may be about to go.
    fn rewrite(&mut self, number: u32, disk: &DiskFile) -> Result<()> {
        if self.patch.rewritten.len() == REWRITTEN {
            let e = Error::new(ErrorKind::Unsupported, "a layer that changes very many files by hard links to them");
            return Err(e.expected(format!("at most {REWRITTEN}")));
        }
        self.patch.rewritten.push((number, disk.dir.open_file(&disk.path)?));
        Ok(())
    }
}
