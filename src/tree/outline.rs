//! What to write into a fresh directory: a whole tree, or what a layer adds to the directories below it in an overlay.
//!
//! Overlayfs (`Documentation/filesystems/overlayfs.rst`): directories of the same name merge, anything else covers what
//! is below; a whiteout removes a name; an opaque directory does not merge. The attributes of a merged directory are the
//! topmost ones. A hard link cannot reach into another directory of the stack, so a group of names that changes is
//! written with all its names. The root always merges, so it cannot be opaque.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::journal::Journal;
use super::{Attributes, NodeId, NodeKind, Tree};

/// What to write. Independent of the tree it was made of.
#[derive(Clone, Debug)]
pub(crate) struct Outline<C> {
    /// The root first, parents before what is in them.
    pub(crate) dirs: Vec<OutlineDir>,
    pub(crate) leaves: Vec<Leaf<C>>,
    /// Further names of leaves, by their number.
    pub(crate) links: Vec<(Spot, u32)>,
    /// Names that are removed from the directories below.
    pub(crate) whiteouts: Vec<Spot>,
}

/// A name in a directory.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    /// Number of the directory in [`Outline::dirs`].
    pub(crate) dir: u32,
    pub(crate) name: Box<[u8]>,
}

/// A directory.
#[derive(Clone, Debug)]
pub(crate) struct OutlineDir {
    /// Where it is; the root is in itself and has no name.
    pub(crate) spot: Spot,
    pub(crate) attributes: Attributes,
    /// It must not merge with what is below.
    pub(crate) opaque: bool,
}

/// An inode that is no directory, under its first name.
#[derive(Clone, Debug)]
pub(crate) struct Leaf<C> {
    pub(crate) spot: Spot,
    pub(crate) attributes: Attributes,
    pub(crate) kind: NodeKind<C>,
}

impl<C> Outline<C> {
    /// The path of a directory, for errors and reports.
    pub(crate) fn dir_path(&self, dir: u32) -> Vec<u8> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = dir;
        while at != 0 {
            let spot = &self.dirs[at as usize].spot;
            names.push(&spot.name);
            at = spot.dir;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The path of a name.
    pub(crate) fn path(&self, spot: &Spot) -> Vec<u8> {
        let mut path = self.dir_path(spot.dir);
        if !path.is_empty() && !spot.name.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&spot.name);
        path
    }
}

impl<C: Clone + PartialEq> Tree<C> {
    /// The whole tree.
    pub(crate) fn outline(&self) -> Outline<C> {
        let mut builder = Builder::new(self);
        builder.open.push((Self::ROOT, 0, None));
        builder.finish()
    }

    /// What the layer just applied adds to the directories of those below.
    pub(super) fn outline_over(&self, journal: &Journal) -> Outline<C> {
        let over = Over::new(self, journal);
        let mut builder = Builder::new(self);
        builder.open.push((Self::ROOT, 0, Some(&over)));
        builder.finish()
    }
}

struct Builder<'t, C> {
    tree: &'t Tree<C>,
    outline: Outline<C>,
    /// Leaves with several names.
    grouped: HashMap<NodeId, u32>,
    /// Directories to look into, with their numbers; with `Over` only what changed in them is written.
    open: Vec<(NodeId, u32, Option<&'t Over<'t, C>>)>,
}

impl<'t, C: Clone + PartialEq> Builder<'t, C> {
    fn new(tree: &'t Tree<C>) -> Self {
        let outline = Outline { dirs: vec![], leaves: vec![], links: vec![], whiteouts: vec![] };
        let mut builder = Self { tree, outline, grouped: HashMap::new(), open: vec![] };
        builder.dir(Tree::<C>::ROOT, Spot { dir: 0, name: Box::default() }, false);
        builder
    }

    fn dir(&mut self, id: NodeId, spot: Spot, opaque: bool) -> u32 {
        let attributes = self.tree.node(id).attributes.clone();
        self.outline.dirs.push(OutlineDir { spot, attributes, opaque });
        (self.outline.dirs.len() - 1) as u32
    }

    fn finish(mut self) -> Outline<C> {
        while let Some((id, at, over)) = self.open.pop() {
            match over {
                None => self.whole(id, at),
                Some(over) => self.merged(id, at, over),
            }
        }
        self.outline
    }

    fn whole(&mut self, id: NodeId, at: u32) {
        for (name, &child) in self.tree.children(id).into_iter().flatten() {
            self.child(child, Spot { dir: at, name: name.clone() }, false);
        }
    }

    /// A name and everything below it.
    fn child(&mut self, id: NodeId, spot: Spot, opaque: bool) {
        if self.tree.is_directory(id) {
            let at = self.dir(id, spot, opaque);
            self.open.push((id, at, None));
            return;
        }
        let node = self.tree.node(id);
        if node.links > 1 {
            if let Some(&leaf) = self.grouped.get(&id) {
                self.outline.links.push((spot, leaf));
                return;
            }
            self.grouped.insert(id, self.outline.leaves.len() as u32);
        }
        let leaf = Leaf { spot, attributes: node.attributes.clone(), kind: node.kind.clone() };
        self.outline.leaves.push(leaf);
    }

    /// What changed in a directory that was there before.
    fn merged(&mut self, id: NodeId, at: u32, over: &'t Over<'t, C>) {
        let none = BTreeMap::new();
        let before = over.journal.names.get(&id).unwrap_or(&none);
        let mut shows_through = id == Tree::<C>::ROOT;
        for (name, &child) in self.tree.children(id).into_iter().flatten() {
            let before = before.get(name).copied().flatten();
            let spot = Spot { dir: at, name: name.clone() };
            if over.shows(child, before) {
                shows_through = true;
            } else if self.tree.is_directory(child) && self.tree.is_lower(child) {
                shows_through = true;
                let at = self.dir(child, spot, false);
                self.open.push((child, at, Some(over)));
            } else {
                let merges = self.tree.is_directory(child) && before.is_some_and(|b| self.tree.is_directory(b));
                self.child(child, spot, merges);
            }
        }
        let gone = before.iter().filter(|(name, before)| before.is_some() && self.tree.child(id, name).is_none());
        let gone: Vec<_> = gone.map(|(name, _)| Spot { dir: at, name: name.clone() }).collect();
        if gone.len() > 1 && !shows_through {
            self.outline.dirs[at as usize].opaque = true;
        } else {
            self.outline.whiteouts.extend(gone);
        }
    }
}

/// A layer over the tree it was applied to.
struct Over<'t, C> {
    tree: &'t Tree<C>,
    journal: &'t Journal,
    /// Lower directories that something is written in, or whose attributes changed.
    changed: HashSet<NodeId>,
    /// Lower inodes that are written again, with all their names.
    rewritten: HashSet<NodeId>,
}

impl<'t, C: Clone + PartialEq> Over<'t, C> {
    fn new(tree: &'t Tree<C>, journal: &'t Journal) -> Self {
        let alive = |id: &NodeId| !tree.is_gone(*id);
        let set = journal.attributes.iter().filter(|(id, before)| tree.node(**id).attributes != **before);
        let set: Vec<NodeId> = set.map(|(id, _)| *id).filter(alive).collect();
        let leaves = set.iter().chain(&journal.linked).filter(|id| !tree.is_directory(**id));
        let rewritten: HashSet<NodeId> = leaves.copied().filter(alive).collect();
        let mut over = Self { tree, journal, changed: HashSet::new(), rewritten };
        set.iter().filter(|id| tree.is_directory(**id)).for_each(|id| over.change(*id));
        for (id, names) in journal.names.iter().filter(|(id, _)| alive(id)) {
            let shows = |(name, before): (&[u8], &Option<NodeId>)| match tree.child(*id, name) {
                Some(now) => !tree.is_directory(now) && over.shows(now, *before),
                None => before.is_none(),
            };
            if !names.iter().map(|(name, before)| (&name[..], before)).all(shows) {
                over.change(*id);
            }
        }
        if !over.rewritten.is_empty() {
            // Inodes do not know their names, and few layers link to lower ones.
            let dirs = (0..tree.nodes.len() as u32).map(NodeId).filter(alive);
            let named = |id: &NodeId| {
                tree.children(*id).is_some_and(|names| names.values().any(|child| over.rewritten.contains(child)))
            };
            dirs.filter(named).collect::<Vec<_>>().into_iter().for_each(|id| over.change(id));
        }
        over
    }

    /// A directory is written, and so are those it is in.
    fn change(&mut self, mut id: NodeId) {
        while self.changed.insert(id) && id != Tree::<C>::ROOT {
            id = self.tree.node(id).parent;
        }
    }

    /// Whether what a name leads to is what the directories below show there.
    fn shows(&self, id: NodeId, before: Option<NodeId>) -> bool {
        let tree = self.tree;
        if tree.is_lower(id) {
            return if tree.is_directory(id) { !self.changed.contains(&id) } else { !self.rewritten.contains(&id) };
        }
        // A layer may bring again what is there: then nothing is written, unless other names have a part in it.
        let alone = |before: NodeId| tree.node(id).links == 1 && self.journal.links.get(&before) == Some(&1);
        !tree.is_directory(id) && before.is_some_and(|b| alone(b) && tree.node(b).same(tree.node(id)))
    }
}
