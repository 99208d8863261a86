//! A tree listed in sorted order, parents before what is in them.

use std::collections::btree_map;

use super::{NodeId, NodeKind, Tree};

/// A name of the tree, without the path to it: a tree may have very many names below very long paths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'t> {
    /// Empty for the root.
    pub(crate) name: &'t [u8],
    pub(crate) id: NodeId,
    /// Components of its path.
    pub(crate) depth: usize,
}

/// Every name of a tree once, the root first; within a directory by name, and all that is in a directory right after
/// it. (So `a`, `a/x`, `a-b`: the order of components, not of whole paths as bytes.)
pub(crate) struct Walk<'t, C> {
    tree: &'t Tree<C>,
    started: bool,
    /// Path of the last step.
    path: Vec<u8>,
    open: Vec<Open<'t>>,
}

/// A directory being listed.
struct Open<'t> {
    /// Length of its path.
    len: usize,
    /// Names still to come.
    names: btree_map::Iter<'t, Box<[u8]>, NodeId>,
}

impl<C: Clone + PartialEq> Tree<C> {
    /// Lists the whole tree.
    pub(crate) fn walk(&self) -> Walk<'_, C> {
        Walk { tree: self, started: false, path: Vec::new(), open: Vec::new() }
    }
}

impl<'t, C: Clone + PartialEq> Walk<'t, C> {
    /// The path of the last step, as [`Entry::path`](crate::Entry::path); empty for the root.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    fn step(&mut self, name: &'t [u8], id: NodeId) -> Step<'t> {
        let depth = self.open.len();
        if let NodeKind::Directory { children } = &self.tree.node(id).kind {
            self.open.push(Open { len: self.path.len(), names: children.iter() });
        }
        Step { name, id, depth }
    }
}

impl<'t, C: Clone + PartialEq> Iterator for Walk<'t, C> {
    type Item = Step<'t>;

    fn next(&mut self) -> Option<Step<'t>> {
        if !self.started {
            self.started = true;
            return Some(self.step(b"", Tree::<C>::ROOT));
        }
        loop {
            let Open { len, names } = self.open.last_mut()?;
            self.path.truncate(*len);
            if let Some((name, &id)) = names.next() {
                if !self.path.is_empty() {
                    self.path.push(b'/');
                }
                self.path.extend_from_slice(name);
                return Some(self.step(name, id));
            }
            self.open.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Layer, tree};

    #[test]
    fn lists_parents_first_and_directories_whole() {
        let tree = tree(&[Layer::new().file("a-b", 1).file("a/x/y", 2).file("a/b", 3).hardlink("z", "a/b").dir("e")]);
        let mut walk = tree.walk();
        let mut steps = Vec::new();
        while let Some(step) = walk.next() {
            assert_eq!((tree.get(walk.path()), walk.path().ends_with(step.name)), (Some(step.id), true));
            steps.push((String::from_utf8(walk.path().to_vec()).expect("utf-8"), step.depth));
        }
        let expected = [("", 0), ("a", 1), ("a/b", 2), ("a/x", 2), ("a/x/y", 3), ("a-b", 1), ("e", 1), ("z", 1)];
        assert_eq!(steps, expected.map(|(path, depth)| (path.to_owned(), depth)));
        let ids: Vec<_> = tree.walk().map(|s| s.id).collect();
        assert_eq!(ids[2], ids[7], "hard links share an id");
    }
}
