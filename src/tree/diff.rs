//! The changes that make one tree another, as a layer.
//!
//! `layer.md`, "Representing Changes": added and modified entries in their entirety, explicit whiteouts for what is
//! gone, whiteouts before their siblings. Directories appear only when new or changed. Applied to `lower`, the result
//! is `upper`; the same two trees always give the same changes.
//!
//! Hard links: an inode of `upper` whose type, attributes and content equal those of a lower inode it shares a name
//! with *keeps* that inode, and needs no entry where both have the same name. Its other names become hard links to the
//! first kept name. An inode that keeps none is written in full under its first name, its other names as hard links to
//! that. A lower inode is kept at most once, so what `upper` no longer links comes apart.
//!
//! Paths are made while the changes are gone through, one at a time: very many names may lie below very long paths.

use std::collections::{HashMap, btree_map};

use super::walk::Walk;
use super::{Change, Node, NodeId, Tree};
use crate::error::Result;
use crate::format::entry::{Entry, EntryKind, Time};
use crate::observe::{Observer, check};

/// Names looked at between two questions whether to stop.
const NAMES: usize = 4096;

/// A name of the upper tree, and the lower inode of the same name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair<'t> {
    /// Empty for the root.
    pub(crate) name: &'t [u8],
    pub(crate) upper: NodeId,
    pub(crate) lower: Option<NodeId>,
}

/// All names of `upper`, each beside what `lower` has there; no symlink is followed.
pub(crate) struct Pairs<'t, C> {
    lower: Option<&'t Tree<C>>,
    walk: Walk<'t, C>,
    /// From the root to the last name.
    above: Vec<Pair<'t>>,
}

/// Starts a list of all names of `upper`. Without `lower` there is nothing below.
pub(crate) fn pairs<'t, C: Clone + PartialEq>(lower: Option<&'t Tree<C>>, upper: &'t Tree<C>) -> Pairs<'t, C> {
    Pairs { lower, walk: upper.walk(), above: Vec::new() }
}

impl<'t, C: Clone + PartialEq> Iterator for Pairs<'t, C> {
    type Item = Pair<'t>;

    fn next(&mut self) -> Option<Pair<'t>> {
        let step = self.walk.next()?;
        self.above.truncate(step.depth);
        let lower = match (self.lower, self.above.last()) {
            (None, _) => None,
            (Some(_), None) => Some(Tree::<C>::ROOT),
            (Some(tree), Some(parent)) => parent.lower.and_then(|parent| tree.child(parent, step.name)),
        };
        let pair = Pair { name: step.name, upper: step.id, lower };
        self.above.push(pair);
        Some(pair)
    }
}

/// A name in a directory, and the names of directories that lead to it: enough to make its path.
#[derive(Clone, Debug, Default)]
struct Names {
    first: HashMap<NodeId, (NodeId, Box<[u8]>)>,
    /// Of the directories in `first` and those they are in, the one they are in and their name.
    dirs: HashMap<NodeId, (NodeId, Box<[u8]>)>,
}

impl Names {
    /// Notes a name of an inode, the last of `above`, unless the inode has one.
    fn note(&mut self, above: &[Pair<'_>]) {
        let [.., parent, pair] = above else { return };
        if self.first.contains_key(&pair.upper) {
            return;
        }
        self.first.insert(pair.upper, (parent.upper, pair.name.into()));
        for (parent, dir) in above.iter().zip(&above[1..above.len() - 1]).rev() {
            if self.dirs.insert(dir.upper, (parent.upper, dir.name.into())).is_some() {
                break;
            }
        }
    }

    fn path(&self, id: NodeId) -> Option<Vec<u8>> {
        let (mut dir, name) = self.first.get(&id).map(|(dir, name)| (*dir, name))?;
        let mut names = vec![&name[..]];
        while let Some((parent, name)) = self.dirs.get(&dir) {
            names.push(name);
            dir = *parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }
}

/// Which inodes of one tree another keeps, and how many changes there are between the two.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// By upper inode, the lower one it keeps; of several the first by path.
    kept: Vec<Option<NodeId>>,
    /// Of those kept that have several names, the first name that is kept.
    names: Names,
    len: usize,
}

impl Plan {
    /// # Errors
    /// `Cancelled`.
    pub(crate) fn new<C: Clone + PartialEq>(lower: &Tree<C>, upper: &Tree<C>, observer: &dyn Observer) -> Result<Self> {
        let mut plan = Self { kept: vec![None; upper.nodes.len()], ..Self::default() };
        let mut taken = vec![false; lower.nodes.len()];
        let mut pairs = pairs(Some(lower), upper);
        let mut looked = 0usize;
        while let Some(pair) = pairs.next() {
            looked += 1;
            if looked.is_multiple_of(NAMES) {
                check(observer)?;
            }
            let Some(before) = pair.lower.filter(|_| !upper.is_directory(pair.upper)) else { continue };
            let (kept, node) = (&mut plan.kept[pair.upper.index()], upper.node(pair.upper));
            if kept.is_none() && !taken[before.index()] && lower.node(before).same(node) {
                *kept = Some(before);
                taken[before.index()] = true;
                if node.links > 1 {
                    plan.names.note(&pairs.above);
                }
            }
        }
        let mut steps = Differences::new(Some((lower, &plan)), upper);
        let mut len = 0usize;
        while steps.step().is_some() {
            len += 1;
            if len.is_multiple_of(NAMES) {
                check(observer)?;
            }
        }
        plan.len = len;
        Ok(plan)
    }

    /// Number of changes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether this name leads to the kept inode already.
    fn keeps(&self, pair: &Pair<'_>) -> bool {
        pair.lower.is_some() && self.kept[pair.upper.index()] == pair.lower
    }

    /// The first name of an inode that keeps a lower one and has several names.
    pub(crate) fn kept_path(&self, id: NodeId) -> Option<Vec<u8>> {
        self.names.path(id)
    }
}

/// One change, without its path.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'t> {
    /// An inode in full.
    Inode(Pair<'t>),
    /// One more name of an inode that has one, in the lower tree or by an earlier step.
    Link(Pair<'t>),
    /// A name that the directory of the last pair has lost.
    Gone(&'t [u8]),
}

/// The changes from one tree to another, one after the other.
pub(crate) struct Differences<'t, C> {
    lower: Option<(&'t Tree<C>, &'t Plan)>,
    upper: &'t Tree<C>,
    pairs: Pairs<'t, C>,
    /// Names that the directory had, still to be looked at.
    before: Option<btree_map::Iter<'t, Box<[u8]>, NodeId>>,
    /// First names of inodes that keep none.
    written: Names,
}

impl<'t, C: Clone + PartialEq> Differences<'t, C> {
    /// What makes the tree in `lower` `upper`; without one, what gives `upper` by itself.
    pub(crate) fn new(lower: Option<(&'t Tree<C>, &'t Plan)>, upper: &'t Tree<C>) -> Self {
        let pairs = pairs(lower.map(|(tree, _)| tree), upper);
        Self { lower, upper, pairs, before: None, written: Names::default() }
    }

    /// From the root to what the last step was about; the last but one is the directory it is in. For a name that is
    /// gone, the last is the directory.
    pub(crate) fn above(&self) -> &[Pair<'t>] {
        &self.pairs.above
    }

    /// The next change.
    pub(crate) fn step(&mut self) -> Option<Step<'t>> {
        loop {
            if let (Some(names), Some(dir)) = (&mut self.before, self.pairs.above.last()) {
                let upper = self.upper;
                if let Some((name, _)) = names.find(|(name, _)| upper.child(dir.upper, name).is_none()) {
                    return Some(Step::Gone(name));
                }
                self.before = None;
            }
            let pair = self.pairs.next()?;
            let node = self.upper.node(pair.upper);
            if self.upper.is_directory(pair.upper) {
                let lower = self.lower.map(|(tree, _)| tree);
                let before = lower.zip(pair.lower).filter(|(tree, id)| tree.is_directory(*id));
                self.before = before.and_then(|(tree, id)| tree.children(id)).map(|names| names.iter());
                let unchanged = match (before, pair.upper) {
                    (Some((tree, id)), _) => tree.node(id).same(node),
                    // Over nothing there is a root all the same.
                    (None, id) => lower.is_none() && id == Tree::<C>::ROOT && node.same(&Node::implied_directory()),
                };
                if !unchanged {
                    return Some(Step::Inode(pair));
                }
            } else if !self.lower.is_some_and(|(_, plan)| plan.keeps(&pair)) {
                let kept = self.lower.is_some_and(|(_, plan)| plan.names.first.contains_key(&pair.upper));
                if node.links > 1 && (kept || self.written.first.contains_key(&pair.upper)) {
                    return Some(Step::Link(pair));
                }
                if node.links > 1 {
                    self.written.note(&self.pairs.above);
                }
                return Some(Step::Inode(pair));
            }
        }
    }

    /// The path of what a step is about.
    fn path(&self, step: &Step<'_>) -> Vec<u8> {
        let path = self.pairs.walk.path();
        let Step::Gone(name) = step else { return path.to_vec() };
        let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
        [path, slash, super::apply::WHITEOUT, name].concat()
    }

    /// What the last step, a link, leads to.
    fn target(&self, id: NodeId) -> Vec<u8> {
        let kept = self.lower.and_then(|(_, plan)| plan.kept_path(id));
        kept.or_else(|| self.written.path(id)).unwrap_or_default()
    }
}

impl<C: Clone + PartialEq> Iterator for Differences<'_, C> {
    type Item = Change<C>;

    fn next(&mut self) -> Option<Change<C>> {
        let step = self.step()?;
        let path = self.path(&step);
        Some(match step {
            Step::Inode(pair) => self.upper.node(pair.upper).entry(&path),
            Step::Link(pair) => {
                let (mut entry, _) = self.upper.node(pair.upper).entry(&path);
                entry.kind = EntryKind::Hardlink { target: self.target(pair.upper) };
                (entry, None)
            }
            Step::Gone(_) => {
                let kind = EntryKind::File { size: 0, sparse: None };
                (Entry { path, kind, mode: 0, uid: 0, gid: 0, mtime: Time::default(), xattrs: Vec::new() }, None)
            }
        })
    }
}

/// The one layer that gives `tree` by itself.
pub(crate) fn squash<C: Clone + PartialEq>(tree: &Tree<C>) -> Differences<'_, C> {
    Differences::new(None, tree)
}

/// The layer that turns `lower` into `upper`, as a whole.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn diff<C: Clone + PartialEq>(lower: &Tree<C>, upper: &Tree<C>) -> Vec<Change<C>> {
    let plan = Plan::new(lower, upper, &()).expect("nobody stops it");
    let changes: Vec<_> = Differences::new(Some((lower, &plan)), upper).collect();
    assert_eq!(changes.len(), plan.len());
    changes
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Layer, listing, names, over, tree};
    use super::*;

    /// The paths of the changes from `lower` to `upper` (`=` a hard link's target), after checking that they work.
    fn changed(lower: &Tree<u32>, upper: &Tree<u32>) -> String {
        let changes = diff(lower, upper);
        let applied = lower.clone().apply(changes.iter().cloned().map(Ok), &()).expect("applies");
        assert_eq!(listing(&applied), listing(upper));
        let shown = changes.iter().map(|(entry, content)| {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            match (&entry.kind, content) {
                (EntryKind::Hardlink { target }, None) => format!("{path}=={}", String::from_utf8_lossy(target)),
                (EntryKind::File { .. }, Some(content)) => format!("{path}={content}"),
                (EntryKind::Directory, None) => path + "/",
                _ => path,
            }
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    fn step(lower: Layer, upper: Layer) -> String {
        let lower = tree(&[lower]);
        let upper = over(&lower, &upper).expect("applies");
        changed(&lower, &upper)
    }

    /// layer.md, "Representing Changes".
    #[test]
    fn gives_the_example_of_the_specification() {
        let lower = Layer::new().dir("etc").file("etc/my-app-config", 1).dir("bin").file("bin/my-app-tools", 2);
        let lower = lower.file("bin/my-app-binary", 3);
        let upper = Layer::new().dir("etc/my-app.d").file("etc/my-app.d/default.cfg", 4).file("bin/my-app-tools", 5);
        let expected = "bin/my-app-tools=5 etc/.wh.my-app-config etc/my-app.d/ etc/my-app.d/default.cfg=4";
        assert_eq!(step(lower, upper.whiteout("etc/my-app-config")), expected);
    }

    #[test]
    fn names_only_what_differs() {
        let lower = Layer::new().dir("d").file("d/x", 1).symlink("s", "t").dir("e").file("e/k", 1);
        assert_eq!(step(lower.clone(), lower.clone()), "");
        assert_eq!(step(lower.clone(), Layer::new().dir("d").attributes(0o700, "user.a")), "d/");
        assert_eq!(step(lower.clone(), Layer::new().dir("").attributes(0o700, "user.a")), "/");
        assert_eq!(step(lower.clone(), Layer::new().file("d", 1).dir("s").file("s/y", 2)), "d=1 s/ s/y=2");
        assert_eq!(step(lower, Layer::new().opaque("").file("n", 2)), ".wh.d .wh.e .wh.s n=2");
    }

    /// An implied directory may be all there is; without its own entry it would be lost.
    #[test]
    fn squash_gives_the_tree_in_one_layer() {
        let whole =
            tree(&[Layer::new().file("a/b/x", 1).file("c", 2), Layer::new().whiteout("a/b/x").hardlink("d", "c")]);
        assert_eq!(names(&whole), "a/ a/b/ c=2 d==c");
        assert_eq!(changed(&Tree::new(), &whole), "a/ a/b/ c=2 d==c");
        assert_eq!(squash(&whole).count(), 4);
    }

    #[test]
    fn hard_links_keep_come_together_and_come_apart() {
        let pair = || Layer::new().file("b", 1).hardlink("c", "b");
        // A new name links to an unchanged lower one, even to one that sorts after it.
        assert_eq!(step(pair(), Layer::new().hardlink("a", "c").hardlink("d", "b")), "a==b d==b");
        // New content: all names anew.
        let changed_all = Layer::new().file("b", 2).hardlink("c", "b");
        assert_eq!(step(pair(), changed_all), "b=2 c==b");
        // One name replaced by its equal: the group comes apart, one name keeps the inode.
        assert_eq!(step(pair(), Layer::new().file("c", 1)), "c=1");
        // Attributes belong to the inode, so they reach all names.
        assert_eq!(step(pair(), Layer::new().hardlink("d", "b").attributes(0o600, "user.a")), "b=1 c==b d==b");
        // Two equal files become one.
        assert_eq!(step(Layer::new().file("a", 1).file("b", 1), Layer::new().hardlink("b", "a")), "b==a");
        assert_eq!(step(pair(), Layer::new().whiteout("b")), ".wh.b");
    }
}
