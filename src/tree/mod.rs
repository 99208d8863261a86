//! Layers applied in order give a tree: the image-spec's rules, in memory.
//!
//! A [`Tree`] is what a root filesystem would hold: directories of sorted names, and inodes that one or several names
//! (hard links) share. Content is an opaque reference `C`; nothing here does I/O or knows the store.
//!
//! | file | what |
//! | --- | --- |
//! | `node.rs` | an inode and its attributes |
//! | `place.rs` | paths to directories: symlinks resolved inside the root |
//! | `apply.rs` | adding a layer's entries |
//! | `whiteout.rs` | what a layer hides of the layers below it, done before its entries are added |
//! | `walk.rs` | listing in sorted order |
//! | `diff.rs` | the changes that make one tree another |
//! | `edit.rs` | building a tree name by name |
//! | `journal.rs` | what applying a layer did, noted while it happens |
//! | `outline.rs` | what to write for a tree, or for a layer to be stacked over those below it |
//! | `model.rs` | for tests and fuzzing: the same rules without regard to speed |
//!
//! # Applying a layer
//! Sources: image-spec `layer.md`, and where it is silent what containerd (`pkg/archive/tar.go`) and umoci
//! (`oci/layer/tar_extract.go`) do.
//! 1. Whiteouts first, wherever they stand: they hide what *lower* layers have, never what this layer brings.
//! 2. Then entries in order. A directory over a directory keeps the children and takes all attributes; everything else
//!    replaces the name, a directory's subtree included. So the last of two equal paths wins.
//! 3. Parents are resolved inside the root, through symlinks of lower layers and of this one: `..` stops at the root,
//!    absolute targets start there, 40 links are followed. Missing parents are made 0755, 0:0, mtime 0. The last
//!    component is never followed: a directory entry over a symlink replaces the symlink.
//! 4. A hard link names an inode that is there at that moment, of this layer or a lower one; its header's attributes go
//!    to the inode. Replacing a name takes only that name out of the group.
//! 5. Adding or removing children never changes a directory's mtime.
//!
//! # Invariants
//! The root is a directory. No name is empty, `.`, `..`, longer than the limit, holds `/` or NUL, or starts with
//! `.wh.`; no path exceeds the depth and length limits. So a driver may write a tree top-down without checking again.

mod apply;
mod diff;
mod edit;
mod journal;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod model;
#[cfg(test)]
mod model_tests;
mod node;
mod outline;
#[cfg(test)]
mod outline_tests;
mod place;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "fuzzing has layers of its own"))]
pub(crate) mod samples;
mod walk;
mod whiteout;

use std::collections::BTreeMap;

pub(crate) use apply::split;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use diff::diff;
pub(crate) use diff::{Differences, Pair as DiffPair, Plan as DiffPlan, Step as DiffStep, pairs, squash};
pub(crate) use edit::Located;
pub(crate) use node::{Attributes, Node, NodeKind};
pub(crate) use outline::{Leaf, Outline, OutlineDir, Spot};

use crate::error::{Error, Result};
use crate::format::entry::Entry;
use crate::limits::Limits;
use crate::tar::Account;

/// One entry of a layer and, for a regular file, its content.
pub(crate) type Change<C> = (Entry, Option<C>);

/// The sorted names of a directory.
pub(crate) type Children = BTreeMap<Box<[u8]>, NodeId>;

/// An inode of one [`Tree`]: two names with the same id are hard links of each other. Meaningless in another tree, and
/// after the tree has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

impl NodeId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// Layers composed; see the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Tree<C> {
    /// Inodes by id. Those in `free` are not part of the tree.
    nodes: Vec<Node<C>>,
    free: Vec<NodeId>,
    limits: Limits,
    /// All entries of all layers, also those that later ones replaced.
    account: Account,
    /// Where the last entry went: tars list a directory's members together.
    recent: Option<apply::Recent>,
    /// Counts the layers that were applied with a journal; inodes remember when they were born.
    generation: u32,
    /// While a layer is applied with it.
    journal: Option<Box<journal::Journal>>,
}

impl<C: Clone + PartialEq> Tree<C> {
    /// The root directory is always the first inode.
    pub(crate) const ROOT: NodeId = NodeId(0);

    /// A root directory without names, 0755, 0:0, mtime 0, implied; default limits.
    pub(crate) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// As [`new`](Self::new); at most `limits.entries` inodes, and paths within `limits`.
    pub(crate) fn with_limits(limits: Limits) -> Self {
        let nodes = vec![Node::implied_directory()];
        Self {
            nodes,
            free: Vec::new(),
            limits,
            account: Account::default(),
            recent: None,
            generation: 0,
            journal: None,
        }
    }

    /// The inode `id` of this tree.
    pub(crate) fn node(&self, id: NodeId) -> &Node<C> {
        &self.nodes[id.index()]
    }

    /// Number of inodes, the root included; an upper bound for sizing.
    pub(crate) fn inodes(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// The sorted names of directory `id`; `None` if it is something else.
    pub(crate) fn children(&self, id: NodeId) -> Option<&Children> {
        match &self.node(id).kind {
            NodeKind::Directory { children } => Some(children),
            _ => None,
        }
    }

    /// What has exactly this path, in the normal form of [`Entry::path`]; no symlink is followed.
    pub(crate) fn get(&self, path: &[u8]) -> Option<NodeId> {
        let names = path.split(|&b| b == b'/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(Self::ROOT, |dir, name| self.child(dir, name))
    }

    /// What a process inside the root would open by this path: all symlinks followed, the last one too. `None` if there
    /// is nothing, an error for a loop.
    pub(crate) fn resolve(&self, path: &[u8]) -> Result<Option<NodeId>> {
        // Unlike for parents of entries, `..` does not undo a step into nothing.
        let mut missing = false;
        let end = place::follow(path, self.limits.depth, |place, name| {
            let found = self.find(place, name);
            missing |= matches!(found, place::Found::Missing);
            Ok(found)
        })?;
        Ok(match end {
            _ if missing => None,
            place::End::Directory(place) => place.directory(),
            place::End::Inode(id) => Some(id),
            place::End::NotDirectory => None,
        })
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node<C> {
        &mut self.nodes[id.index()]
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.children(dir)?.get(name).copied()
    }

    /// Whether `id` has left the tree; what was in it may still be seen there while a journal is kept.
    fn is_gone(&self, id: NodeId) -> bool {
        id != Self::ROOT && self.node(id).links == 0
    }

    fn is_directory(&self, id: NodeId) -> bool {
        self.children(id).is_some()
    }

    /// What [`place::follow`] meets when the tree is taken as it is.
    fn find(&self, place: &place::Place<'_>, name: &[u8]) -> place::Found<'_> {
        let Some(id) = place.directory().and_then(|dir| self.child(dir, name)) else { return place::Found::Missing };
        match &self.node(id).kind {
            NodeKind::Directory { .. } => place::Found::Directory(id),
            NodeKind::Symlink { target } => place::Found::Symlink(target),
            _ => place::Found::Other(Some(id)),
        }
    }

    /// Gives `node` the free name `name` in `dir`.
    fn attach_new(&mut self, dir: NodeId, name: &[u8], mut node: Node<C>) -> Result<NodeId> {
        node.born = self.generation;
        let id = match self.free.pop() {
            Some(id) => {
                *self.node_mut(id) = node;
                id
            }
            None => {
                let count = self.nodes.len();
                let id = u32::try_from(count).ok().filter(|_| (count as u64) < self.limits.entries);
                let id = id.ok_or_else(|| Error::limit("too many files in a tree", self.limits.entries, count + 1))?;
                self.nodes.push(node);
                NodeId(id)
            }
        };
        self.attach(dir, name, id);
        Ok(id)
    }

    /// Gives inode `id` one more name. `dir` is a directory and `name` is free in it.
    fn attach(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        self.note_attach(dir, name, id);
        self.node_mut(id).links += 1;
        self.node_mut(id).parent = dir;
        if let NodeKind::Directory { children } = &mut self.node_mut(dir).kind {
            let before = children.insert(name.into(), id);
            debug_assert!(before.is_none(), "a name is detached before it is used again");
        }
    }

    /// Takes `name` out of `dir`; inodes whose last name goes with it leave the tree. Returns whether it was there.
    fn detach(&mut self, dir: NodeId, name: &[u8]) -> bool {
        if self.is_gone(dir) {
            return false;
        }
        let NodeKind::Directory { children } = &mut self.node_mut(dir).kind else { return false };
        let Some(id) = children.remove(name) else { return false };
        self.note_detach(dir, name, id);
        self.release(id);
        true
    }

    /// Takes all names out of `dir`.
    fn detach_all(&mut self, dir: NodeId) {
        if self.is_gone(dir) {
            return;
        }
        let NodeKind::Directory { children } = &mut self.node_mut(dir).kind else { return };
        for (name, id) in std::mem::take(children) {
            self.note_detach(dir, &name, id);
            self.release(id);
        }
    }

    /// One name of `id` is gone; with the last, the inode and whatever is under it. No recursion: depth comes from
    /// layers.
    fn release(&mut self, id: NodeId) {
        if self.leads_on(id) {
            self.recent = None;
        }
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let noted = self.note_release(id);
            let node = self.node_mut(id);
            node.links -= 1;
            if node.links > 0 {
                continue;
            }
            if noted {
                // Stays as it was until the journal has been read.
                pending.extend(self.children(id).into_iter().flat_map(|children| children.values()));
                continue;
            }
            if let NodeKind::Directory { children } = std::mem::replace(node, Node::implied_directory()).kind {
                pending.extend(children.into_values());
            }
            self.free.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{Layer, tree};

    #[test]
    fn starts_as_an_implied_root() {
        let tree = super::Tree::<u32>::new();
        let root = tree.node(super::Tree::<u32>::ROOT);
        assert!(root.implied && tree.children(super::Tree::<u32>::ROOT).is_some_and(|c| c.is_empty()));
        assert_eq!((root.attributes.mode, root.attributes.uid, root.attributes.mtime.secs), (0o755, 0, 0));
        assert_eq!((tree.get(b""), tree.inodes()), (Some(super::Tree::<u32>::ROOT), 1));
    }

    /// `get` is lstat, `resolve` is stat in a chroot.
    #[test]
    fn get_stays_and_resolve_follows() {
        let tree = tree(&[Layer::new().dir("d").file("d/f", 1).symlink("s", "/d").symlink("d/up", "../../s/f")]);
        assert_eq!(tree.get(b"s/f"), None);
        assert_eq!(tree.resolve(b"s/f").expect("resolves"), tree.get(b"d/f"));
        assert_eq!(tree.resolve(b"s/up").expect("resolves"), tree.get(b"d/f"));
        assert_eq!(tree.resolve(b"s").expect("resolves"), tree.get(b"d"));
        assert_eq!(tree.resolve(b"d/f/x").expect("no error"), None);
        assert_eq!(tree.resolve(b"nope/../d").expect("no error"), None);
        assert_eq!(tree.resolve(b"nope/x").expect("no error"), None);
        assert_eq!(tree.resolve(b"").expect("resolves"), tree.get(b""));
    }

    #[test]
    fn a_removed_subtree_gives_its_inodes_back() {
        let lower = Layer::new().file("a/b/c", 1).file("a/b/d", 2).hardlink("kept", "a/b/c");
        let tree = tree(&[lower, Layer::new().whiteout("a")]);
        assert_eq!(tree.inodes(), 2, "the root, and what `kept` still names");
        assert_eq!(tree.node(tree.get(b"kept").expect("kept")).links, 1);
    }
}
