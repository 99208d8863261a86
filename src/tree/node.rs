//! An inode of a tree: what it is and its attributes, without its names.

use super::{Children, NodeId};
use crate::error::{Error, Result};
use crate::format::entry::{DataRange, Entry, EntryKind, Time, Xattr};
use std::sync::Arc;

/// Every symlink has this mode: the kernel has no other, so drivers could not give the one a tar may carry.
const SYMLINK_MODE: u16 = 0o777;

/// What every inode has, whatever its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits, setuid, setgid and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Sorted by name, names unique. Inodes with equal attributes may share them.
    pub(crate) xattrs: Arc<[Xattr]>,
}

/// What an inode is, with what only that type has.
#[derive(Clone, Debug)]
pub(crate) enum NodeKind<C> {
    Directory { children: Children },
    File { size: u64, sparse: Option<Box<[DataRange]>>, content: C },
    Symlink { target: Box<[u8]> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// An inode.
#[derive(Clone, Debug)]
pub(crate) struct Node<C> {
    pub(crate) attributes: Attributes,
    pub(crate) kind: NodeKind<C>,
    /// Names it has; more than one only for what is not a directory. 0 for the root.
    pub(crate) links: u32,
    /// A directory no layer had an entry for: its attributes are the library's.
    pub(crate) implied: bool,
    /// The generation of the tree that made it.
    pub(super) born: u32,
    /// Of a directory, the one it is in; means nothing for what may have several names.
    pub(super) parent: NodeId,
}

impl<C: Clone + PartialEq> Node<C> {
    /// A directory that entries need but no layer describes. containerd and umoci give it the time of extraction;
    /// mtime 0 makes the tree depend on its layers alone.
    pub(super) fn implied_directory() -> Self {
        let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs: Arc::default() };
        Self::nameless(attributes, NodeKind::Directory { children: Children::new() }, true)
    }

    fn nameless(attributes: Attributes, kind: NodeKind<C>, implied: bool) -> Self {
        Self { attributes, kind, links: 0, implied, born: 0, parent: NodeId(0) }
    }

    /// The inode `entry` describes, without names yet. `entry` is no hard link.
    pub(crate) fn new(entry: Entry, content: Option<C>) -> Result<Self> {
        let Entry { path: _, kind, mode, uid, gid, mtime, xattrs } = entry;
        let mut attributes = Attributes { mode, uid, gid, mtime, xattrs: xattrs.into() };
        let kind = match kind {
            EntryKind::Directory => NodeKind::Directory { children: Children::new() },
            EntryKind::File { size, sparse } => {
                let content = content.ok_or_else(|| Error::invalid("a regular file without content"))?;
                NodeKind::File { size, sparse: sparse.map(Vec::into_boxed_slice), content }
            }
            EntryKind::Symlink { target } => {
                attributes.mode = SYMLINK_MODE;
                NodeKind::Symlink { target: target.into_boxed_slice() }
            }
            EntryKind::Hardlink { .. } => return Err(Error::invalid("a hard link is a name, not an inode")),
            EntryKind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
            EntryKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
            EntryKind::Fifo => NodeKind::Fifo,
        };
        Ok(Self::nameless(attributes, kind, false))
    }

    /// Takes the attributes of a directory's entry; all of them are replaced (`layer.md`, "Changeset over existing
    /// files").
    pub(super) fn replace_attributes(&mut self, entry: Entry) {
        let Entry { mode, uid, gid, mtime, xattrs, .. } = entry;
        self.attributes = Attributes { mode, uid, gid, mtime, xattrs: xattrs.into() };
        self.implied = false;
    }

    /// Takes the attributes of a hard link's entry: as extracting it sets them on the inode. Extended attributes are
    /// added, since many writers leave them out of such headers.
    pub(super) fn add_attributes(&mut self, entry: Entry) {
        let Entry { mode, uid, gid, mtime, xattrs, .. } = entry;
        let mode = if matches!(self.kind, NodeKind::Symlink { .. }) { SYMLINK_MODE } else { mode };
        let mut merged = self.attributes.xattrs.to_vec();
        for xattr in xattrs {
            match merged.binary_search_by(|x| x.name.cmp(&xattr.name)) {
                Ok(i) => merged[i] = xattr,
                Err(i) => merged.insert(i, xattr),
            }
        }
        self.attributes = Attributes { mode, uid, gid, mtime, xattrs: merged.into() };
    }

    /// Whether both have the same type, attributes and content; children and names aside.
    pub(super) fn same(&self, other: &Self) -> bool {
        use NodeKind as K;
        self.attributes == other.attributes
            && match (&self.kind, &other.kind) {
                (K::Directory { .. }, K::Directory { .. }) | (K::Fifo, K::Fifo) => true,
                (K::File { size, sparse, content }, K::File { size: size2, sparse: sparse2, content: content2 }) => {
                    size == size2 && sparse == sparse2 && content == content2
                }
                (K::Symlink { target }, K::Symlink { target: target2 }) => target == target2,
                (K::CharDevice { major, minor }, K::CharDevice { major: major2, minor: minor2 })
                | (K::BlockDevice { major, minor }, K::BlockDevice { major: major2, minor: minor2 }) => {
                    (major, minor) == (major2, minor2)
                }
                _ => false,
            }
    }

    /// The entry, and for a file the content, that makes this inode at `path`.
    pub(super) fn entry(&self, path: &[u8]) -> (Entry, Option<C>) {
        let (kind, content) = match &self.kind {
            NodeKind::Directory { .. } => (EntryKind::Directory, None),
            NodeKind::File { size, sparse, content } => {
                let sparse = sparse.as_ref().map(|ranges| ranges.to_vec());
                (EntryKind::File { size: *size, sparse }, Some(content.clone()))
            }
            NodeKind::Symlink { target } => (EntryKind::Symlink { target: target.to_vec() }, None),
            NodeKind::CharDevice { major, minor } => (EntryKind::CharDevice { major: *major, minor: *minor }, None),
            NodeKind::BlockDevice { major, minor } => (EntryKind::BlockDevice { major: *major, minor: *minor }, None),
            NodeKind::Fifo => (EntryKind::Fifo, None),
        };
        let Attributes { mode, uid, gid, mtime, xattrs } = self.attributes.clone();
        (Entry { path: path.to_vec(), kind, mode, uid, gid, mtime, xattrs: xattrs.to_vec() }, content)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::entry;
    use super::*;

    fn kinds() -> Vec<EntryKind> {
        vec![
            EntryKind::Directory,
            EntryKind::File { size: 9, sparse: None },
            EntryKind::File { size: 9, sparse: Some(vec![DataRange { offset: 1, len: 2 }]) },
            EntryKind::File { size: 8, sparse: None },
            EntryKind::Symlink { target: b"t".to_vec() },
            EntryKind::CharDevice { major: 1, minor: 3 },
            EntryKind::CharDevice { major: 1, minor: 5 },
            EntryKind::BlockDevice { major: 1, minor: 3 },
            EntryKind::Fifo,
        ]
    }

    #[test]
    fn an_entry_survives_and_differs_from_others() {
        for (i, kind) in kinds().into_iter().enumerate() {
            let mut e = entry("p", kind);
            if matches!(e.kind, EntryKind::Symlink { .. }) {
                e.mode = SYMLINK_MODE;
            }
            let node = Node::new(e.clone(), Some(7)).expect("a node");
            let content = matches!(e.kind, EntryKind::File { .. }).then_some(7);
            assert_eq!(node.entry(b"p"), (e, content));
            for (j, other) in kinds().into_iter().enumerate() {
                let other = Node::new(entry("p", other), Some(7)).expect("a node");
                assert_eq!(node.same(&other), i == j, "{i} {j}");
            }
        }
        let file = entry("p", EntryKind::File { size: 9, sparse: None });
        assert!(!Node::new(file.clone(), Some(7)).expect("a node").same(&Node::new(file.clone(), Some(8)).expect("8")));
        assert!(Node::<u32>::new(file, None).is_err());
    }

    /// symlink(7): the mode of a symlink is always 0777.
    #[test]
    fn a_symlink_has_one_mode() {
        let mut e = entry("s", EntryKind::Symlink { target: b"t".to_vec() });
        e.mode = 0o600;
        assert_eq!(Node::<u32>::new(e, None).expect("a node").attributes.mode, 0o777);
    }
}
