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

use super::{Change, NodeId, Tree};
use crate::format::entry::{Entry, EntryKind, Time};
use std::convert::Infallible;

/// A name of the upper tree, and the lower inode of the same name.
pub(crate) struct Pair {
    pub(crate) path: Vec<u8>,
    pub(crate) upper: NodeId,
    pub(crate) lower: Option<NodeId>,
}

/// The layer that turns `lower` into `upper`.
pub(crate) fn diff<C: Clone + PartialEq>(lower: &Tree<C>, upper: &Tree<C>) -> Vec<Change<C>> {
    let Ok(changes) = diff_while(lower, upper, |_| Ok::<_, Infallible>(()));
    changes
}

/// As [`diff`], and shows each entry to `check`, whose first error ends it.
pub(crate) fn diff_while<C: Clone + PartialEq, E>(
    lower: &Tree<C>,
    upper: &Tree<C>,
    mut check: impl FnMut(&Entry) -> Result<(), E>,
) -> Result<Vec<Change<C>>, E> {
    let pairs = pairs(lower, upper);
    let kept = kept(lower, upper, &pairs);
    // By upper inode, the name its other names link to.
    let mut first: Vec<Option<&[u8]>> = vec![None; upper.nodes.len()];
    for pair in pairs.iter().filter(|pair| keeps(&kept, pair)) {
        first[pair.upper.index()].get_or_insert(&pair.path);
    }
    let mut changes = Vec::new();
    let mut checked = 0;
    for pair in &pairs {
        changes[checked..].iter().try_for_each(|(entry, _)| check(entry))?;
        checked = changes.len();
        let node = upper.node(pair.upper);
        if upper.is_directory(pair.upper) {
            let before = pair.lower.filter(|&id| lower.is_directory(id));
            if !before.is_some_and(|id| lower.node(id).same(node)) {
                changes.push(node.entry(&pair.path));
            }
            if let Some(before) = before {
                whiteouts(&mut changes, &pair.path, lower, before, upper, pair.upper);
            }
        } else if !keeps(&kept, pair) {
            let (mut entry, mut content) = node.entry(&pair.path);
            let target = *first[pair.upper.index()].get_or_insert(&pair.path);
            if target != pair.path {
                entry.kind = EntryKind::Hardlink { target: target.to_vec() };
                content = None;
            }
            changes.push((entry, content));
        }
    }
    changes[checked..].iter().try_for_each(|(entry, _)| check(entry))?;
    Ok(changes)
}

/// The one layer that gives `tree` by itself.
pub(crate) fn squash<C: Clone + PartialEq>(tree: &Tree<C>) -> Vec<Change<C>> {
    diff(&Tree::with_limits(tree.limits.clone()), tree)
}

/// All names of `upper`, each beside what `lower` has there; no symlink is followed.
pub(crate) fn pairs<C: Clone + PartialEq>(lower: &Tree<C>, upper: &Tree<C>) -> Vec<Pair> {
    let mut pairs = Vec::with_capacity(upper.inodes());
    // The lower inodes from the root to the name before.
    let mut above: Vec<Option<NodeId>> = Vec::new();
    for step in upper.walk() {
        above.truncate(step.depth);
        let name = super::apply::split(&step.path).1;
        let at = match above.last() {
            None => Some(Tree::<C>::ROOT),
            Some(parent) => parent.and_then(|parent| lower.child(parent, name)),
        };
        above.push(at);
        pairs.push(Pair { path: step.path, upper: step.id, lower: at });
    }
    pairs
}

/// By upper inode, the lower one it keeps; of several the first by path.
fn kept<C: Clone + PartialEq>(lower: &Tree<C>, upper: &Tree<C>, pairs: &[Pair]) -> Vec<Option<NodeId>> {
    let mut kept = vec![None; upper.nodes.len()];
    let mut taken = vec![false; lower.nodes.len()];
    for pair in pairs.iter().filter(|pair| !upper.is_directory(pair.upper)) {
        let Some(before) = pair.lower else { continue };
        let free = kept[pair.upper.index()].is_none() && !taken[before.index()];
        if free && lower.node(before).same(upper.node(pair.upper)) {
            kept[pair.upper.index()] = Some(before);
            taken[before.index()] = true;
        }
    }
    kept
}

/// Whether this name leads to the kept inode already.
fn keeps(kept: &[Option<NodeId>], pair: &Pair) -> bool {
    pair.lower.is_some() && kept[pair.upper.index()] == pair.lower
}

/// Whiteouts for the names of directory `before` that `now` has not.
fn whiteouts<C: Clone + PartialEq>(
    changes: &mut Vec<Change<C>>,
    path: &[u8],
    lower: &Tree<C>,
    before: NodeId,
    upper: &Tree<C>,
    now: NodeId,
) {
    let gone = lower.children(before).into_iter().flatten().filter(|(name, _)| upper.child(now, name).is_none());
    for (name, _) in gone {
        let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
        let path = [path, slash, super::apply::WHITEOUT, name].concat();
        let kind = EntryKind::File { size: 0, sparse: None };
        let entry = Entry { path, kind, mode: 0, uid: 0, gid: 0, mtime: Time::default(), xattrs: Vec::new() };
        changes.push((entry, None));
    }
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
        assert_eq!(squash(&whole).len(), 4);
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
