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
use crate::layer::{Content, DiskFile, Source, SourceTree};
use crate::observe::{Observer, check};
use crate::store::Store;
use crate::sys::dirs::{Dir, Inode, Owner};
use crate::sys::publish::io_error;
use crate::sys::sparse;
use crate::tree::{
    DiffPair, DiffPlan, DiffStep, Differences, Leaf, NodeId, NodeKind, Outline, OutlineDir, Spot, split,
};
use rustix::io::Errno;
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
    /// Links to what is there and stays, by its inode in the tree after.
    links: Vec<(Spot, NodeId)>,
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
    let plan = DiffPlan::new(before, after, observer)?;
    let Patch { mut outline, links, rewritten } = Patch::new(before, after, &plan)?;
    let removed = std::mem::take(&mut outline.whiteouts);
    let target = Target { outline, root, given: NOBODYS, path };
    target.enter(before, observer)?;
    target.clear(&removed, &links, observer)?;
    check(observer)?;
    let (targets, losses) = ([target], Losses::new(options.strict));
    let missing = leaves(store, &targets, options, &losses, observer)?;
    let [target] = &targets;
    // Not a thread of the library: its umask is its own.
    let setter = Setter { target, options, losses: &losses, umask: 0o777 };
    for (number, from) in rewritten {
        let leaf = &target.outline.leaves[number as usize];
        let failed = |e: std::io::Error| setter.failed("write", &leaf.spot, e);
        let file = target.open(leaf.spot.dir, false)?.open_file(&leaf.spot.name);
        let file = file.map_err(|e| failed(e.into()))?;
        let size = from.metadata().map_err(failed)?.len();
        let stop = || if observer.cancelled() { Err(Errno::INTR.into()) } else { Ok(()) };
        let copied = sparse::copy(&from, &file, size, stop);
        check(observer)?;
        copied.map_err(failed)?;
        setter.set(Inode::Open(file.as_fd()), &leaf.spot, &leaf.attributes, Kind::Other)?;
    }
    for (spot, old) in &links {
        check(observer)?;
        let old = plan.kept_path(*old).ok_or_else(|| Error::corrupt("a link to a file without a name"))?;
        let (dir, name) = split(&old);
        let from = target.root.below(dir, false).map_err(|e| setter.failed("find what is linked to", spot, e))?;
        let linked = target.open(spot.dir, false)?.link(&spot.name, &from, name);
        linked.map_err(|e| setter.failed("link", spot, e))?;
    }
    frame::complete(&targets, options, &losses, &missing, observer)?;
    if options.sync {
        target.root.sync_file_system().map_err(|e| io_error("sync the file system of", &target.path, e))?;
    }
    Ok(())
}

impl Target {
    /// Makes sure all directories of the outline are there, the root's too, without attributes of their own.
    fn enter(&self, before: &SourceTree, observer: &dyn Observer) -> Result<()> {
        for (number, dir) in self.outline.dirs.iter().enumerate() {
            check(observer)?;
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
    fn clear(&self, removed: &[Spot], links: &[(Spot, NodeId)], observer: &dyn Observer) -> Result<()> {
        let Outline { leaves, links: more, .. } = &self.outline;
        let written = leaves.iter().map(|leaf| &leaf.spot).chain(more.iter().map(|(spot, _)| spot));
        for spot in removed.iter().chain(written).chain(links.iter().map(|(spot, _)| spot)) {
            check(observer)?;
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
    fn new(before: &SourceTree, after: &SourceTree, plan: &DiffPlan) -> Result<Self> {
        let outline = Outline { dirs: vec![], leaves: vec![], links: vec![], whiteouts: vec![] };
        let patch = Self { outline, links: vec![], rewritten: vec![] };
        let mut maker = Maker { after, patch, dirs: HashMap::new(), leaves: HashMap::new() };
        maker.root();
        let mut differences = Differences::new(Some((before, plan)), after);
        while let Some(step) = differences.step() {
            maker.add(step, differences.above())?;
        }
        Ok(maker.patch)
    }
}

struct Maker<'t> {
    after: &'t SourceTree,
    patch: Patch,
    /// By inode of the tree after, the numbers of directories and leaves.
    dirs: HashMap<NodeId, u32>,
    leaves: HashMap<NodeId, u32>,
}

impl Maker<'_> {
    fn root(&mut self) {
        self.new_dir(SourceTree::ROOT, Spot { dir: 0, name: Box::default() });
    }

    fn new_dir(&mut self, id: NodeId, spot: Spot) -> u32 {
        let attributes = self.after.node(id).attributes.clone();
        let number = self.patch.outline.dirs.len() as u32;
        self.patch.outline.dirs.push(OutlineDir { spot, attributes, opaque: false });
        self.dirs.insert(id, number);
        number
    }

    /// The number of the last of these directories, which lead to it from the root and come before it.
    fn dir(&mut self, above: &[DiffPair<'_>]) -> u32 {
        let mut at = 0;
        for dir in above.iter().skip(1) {
            at = match self.dirs.get(&dir.upper) {
                Some(&number) => number,
                None => self.new_dir(dir.upper, Spot { dir: at, name: dir.name.into() }),
            };
        }
        at
    }

    /// One of the changes; `above` leads from the root to what it is about.
    fn add(&mut self, step: DiffStep<'_>, above: &[DiffPair<'_>]) -> Result<()> {
        let Some((pair, parents)) = above.split_last() else { return Ok(()) };
        match step {
            DiffStep::Gone(name) => {
                let spot = Spot { dir: self.dir(above), name: name.into() };
                self.patch.outline.whiteouts.push(spot);
                Ok(())
            }
            DiffStep::Inode(_) if self.after.children(pair.upper).is_some() => {
                self.dir(above);
                Ok(())
            }
            DiffStep::Inode(_) => {
                let spot = Spot { dir: self.dir(parents), name: pair.name.into() };
                self.leaf(pair.upper, spot)
            }
            DiffStep::Link(_) => {
                let spot = Spot { dir: self.dir(parents), name: pair.name.into() };
                match self.leaves.get(&pair.upper) {
                    Some(&leaf) => self.patch.outline.links.push((spot, leaf)),
                    None => self.patch.links.push((spot, pair.upper)),
                }
                Ok(())
            }
        }
    }

    fn leaf(&mut self, id: NodeId, spot: Spot) -> Result<()> {
        let node = self.after.node(id);
        let number = self.patch.outline.leaves.len() as u32;
        let kind: NodeKind<Content> = match &node.kind {
            NodeKind::File { size, content: Source::Disk(disk), .. } => {
                self.rewrite(number, disk)?;
                NodeKind::File { size: *size, sparse: None, content: Content::default() }
            }
            NodeKind::File { size, sparse, content: Source::Stored(content) } => {
                NodeKind::File { size: *size, sparse: sparse.clone(), content: content.clone() }
            }
            NodeKind::Symlink { target } => NodeKind::Symlink { target: target.clone() },
            &NodeKind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
            &NodeKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
            NodeKind::Fifo => NodeKind::Fifo,
            NodeKind::Directory { .. } => return Err(Error::corrupt("a directory where a file was written")),
        };
        self.patch.outline.leaves.push(Leaf { spot, attributes: node.attributes.clone(), kind });
        self.leaves.insert(id, number);
        Ok(())
    }

    /// A leaf gets the content that a file has now, whose name may be about to go.
    fn rewrite(&mut self, number: u32, disk: &DiskFile) -> Result<()> {
        if self.patch.rewritten.len() == REWRITTEN {
            let e = Error::new(ErrorKind::Unsupported, "a layer that changes very many files by hard links to them");
            return Err(e.expected(format!("at most {REWRITTEN}")));
        }
        self.patch.rewritten.push((number, disk.open()?));
        Ok(())
    }
}
