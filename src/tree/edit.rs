//! Building a tree name by name, for those who read it from somewhere else than layers, and correcting its inodes.

use super::node::Attributes;
use super::{Children, Node, NodeId, NodeKind, Tree};
use crate::error::{Error, Result};
use crate::format::entry::DataRange;

/// A directory in which names can be put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located {
    pub(crate) id: NodeId,
    /// Length of its path.
    len: usize,
    /// Components of its path.
    depth: usize,
}

impl<C: Clone + PartialEq> Tree<C> {
    /// The root, as a place for names.
    pub(crate) fn root_spot(&self) -> Located {
        Located { id: Self::ROOT, len: 0, depth: 0 }
    }

    /// Puts a new inode under a name that is free; returns its place, for one that is a directory.
    ///
    /// # Errors
    /// `InvalidInput` for a name that no tree may have, `LimitExceeded`.
    pub(crate) fn add_node(&mut self, at: Located, name: &[u8], node: Node<C>) -> Result<Located> {
        let spot = self.check_spot(at, name)?;
        let id = self.attach_new(at.id, name, node)?;
        Ok(Located { id, ..spot })
    }

    /// Gives an inode that is no directory one more name, which is free.
    ///
    /// # Errors
    /// As [`add_node`](Self::add_node).
    pub(crate) fn add_link(&mut self, at: Located, name: &[u8], id: NodeId) -> Result<()> {
        self.check_spot(at, name)?;
        self.attach(at.id, name, id);
        Ok(())
    }

    fn check_spot(&self, at: Located, name: &[u8]) -> Result<Located> {
        self.check_name(name)?;
        let len = if at.depth == 0 { name.len() } else { at.len + 1 + name.len() };
        self.check_path(len)?;
        if at.depth >= self.limits.depth {
            return Err(Error::limit("directories nested too deep", self.limits.depth, at.depth + 1));
        }
        Ok(Located { id: at.id, len, depth: at.depth + 1 })
    }

    /// An inode's attributes. A directory whose attributes are set is not implied any more.
    pub(crate) fn attributes_mut(&mut self, id: NodeId) -> &mut Attributes {
        let node = self.node_mut(id);
        node.implied = false;
        &mut node.attributes
    }

    /// Gives a regular file other content of the same size.
    pub(crate) fn set_content(&mut self, id: NodeId, ranges: Option<Box<[DataRange]>>, new: C) {
        if let NodeKind::File { sparse, content, .. } = &mut self.node_mut(id).kind {
            (*sparse, *content) = (ranges, new);
        }
    }

    /// The same tree with contents of another type.
    pub(crate) fn map<D>(self, mut change: impl FnMut(C) -> D) -> Tree<D> {
        let map = |node: Node<C>| {
            let kind = match node.kind {
                NodeKind::Directory { children } => NodeKind::Directory { children },
                NodeKind::File { size, sparse, content } => NodeKind::File { size, sparse, content: change(content) },
                NodeKind::Symlink { target } => NodeKind::Symlink { target },
                NodeKind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
                NodeKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
                NodeKind::Fifo => NodeKind::Fifo,
            };
            Node {
                attributes: node.attributes,
                kind,
                links: node.links,
                implied: node.implied,
                born: node.born,
                parent: node.parent,
            }
        };
        Tree {
            nodes: self.nodes.into_iter().map(map).collect(),
            free: self.free,
            limits: self.limits,
            account: self.account,
            recent: self.recent,
            generation: self.generation,
            journal: None,
        }
    }
}

impl<C: Clone + PartialEq> Node<C> {
    /// The same inode without names, and if it is a directory without anything in it.
    pub(crate) fn alone(&self) -> Self {
        let kind = match &self.kind {
            NodeKind::Directory { .. } => NodeKind::Directory { children: Children::new() },
            other => other.clone(),
        };
        Self { attributes: self.attributes.clone(), kind, links: 0, implied: self.implied, ..Self::implied_directory() }
    }
}
