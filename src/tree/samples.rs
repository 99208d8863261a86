//! Layers and trees for the tests of this module, and for fuzzing.

use std::collections::HashMap;
use std::fmt;

use super::{Change, Tree};
use crate::error::Result;
use crate::format::entry::{Entry, EntryKind, Time, Xattr};

/// An entry with plain attributes.
pub(crate) fn entry(path: &str, kind: EntryKind) -> Entry {
    let path = path.as_bytes().to_vec();
    Entry { path, kind, mode: 0o644, uid: 1, gid: 2, mtime: Time { secs: 5, nanos: 6 }, xattrs: vec![] }
}

/// A layer being written down. Content is a number; a file's size is ten times that.
#[derive(Clone, Default)]
pub(crate) struct Layer(pub(crate) Vec<Change<u32>>);

/// An entry a line: property tests print the layers that fail.
impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[\n")?;
        for (entry, content) in &self.0 {
            let kind = match &entry.kind {
                EntryKind::Symlink { target } => format!("-> {}", target.escape_ascii()),
                EntryKind::Hardlink { target } => format!("== {}", target.escape_ascii()),
                other => format!("{other:?} {content:?}"),
            };
            writeln!(
                f,
                "  {:?} {kind} {:o} {}",
                entry.path.escape_ascii().to_string(),
                entry.mode,
                entry.xattrs.len()
            )?;
        }
        f.write_str("]")
    }
}

impl Layer {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn with(mut self, path: &str, kind: EntryKind, content: Option<u32>) -> Self {
        self.0.push((entry(path, kind), content));
        self
    }

    pub(crate) fn file(self, path: &str, content: u32) -> Self {
        self.with(path, EntryKind::File { size: u64::from(content) * 10, sparse: None }, Some(content))
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.with(path, EntryKind::Directory, None)
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.with(path, EntryKind::Symlink { target: target.as_bytes().to_vec() }, None)
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.with(path, EntryKind::Hardlink { target: target.as_bytes().to_vec() }, None)
    }

    /// `.wh.` before the last component.
    pub(crate) fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let path = [parent, &format!(".wh.{name}")].join("/");
        self.file(path.trim_start_matches('/'), 0)
    }

    pub(crate) fn opaque(self, path: &str) -> Self {
        self.file([path, ".wh..wh..opq"].join("/").trim_start_matches('/'), 0)
    }

    /// Mode and one attribute for the last entry.
    pub(crate) fn attributes(mut self, mode: u16, xattr: &str) -> Self {
        if let Some((entry, _)) = self.0.last_mut() {
            entry.mode = mode;
            entry.xattrs = vec![Xattr { name: xattr.as_bytes().to_vec(), value: b"v".to_vec() }];
        }
        self
    }
}

/// Another layer on `lower`.
pub(crate) fn over(lower: &Tree<u32>, layer: &Layer) -> Result<Tree<u32>> {
    lower.clone().apply(layer.0.iter().cloned().map(Ok), &())
}

/// The layers composed.
pub(crate) fn tree(layers: &[Layer]) -> Tree<u32> {
    layers.iter().fold(Tree::new(), |tree, layer| over(&tree, layer).expect("applies"))
}

/// Names only: `a/` a directory, `a=1` a file and its content, `a->t` a symlink, `b==a` a hard link of `a`.
pub(crate) fn names(tree: &Tree<u32>) -> String {
    let lines = listing(tree).into_iter().skip(1).map(|(entry, content)| {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        match entry.kind {
            EntryKind::Directory => path + "/",
            EntryKind::File { .. } => format!("{path}={}", content.unwrap_or_default()),
            EntryKind::Symlink { target } => format!("{path}->{}", String::from_utf8_lossy(&target)),
            EntryKind::Hardlink { target } => format!("{path}=={}", String::from_utf8_lossy(&target)),
            other => format!("{path} {other:?}"),
        }
    });
    lines.collect::<Vec<_>>().join(" ")
}

/// All there is to a tree: every name with its attributes; of hard links the first as what it is, the others as links
/// to that. Two trees with equal listings are equal.
pub(crate) fn listing(tree: &Tree<u32>) -> Vec<Change<u32>> {
    let mut first = HashMap::new();
    let mut counted = HashMap::new();
    let mut listed = Vec::new();
    let mut walk = tree.walk();
    while let Some(step) = walk.next() {
        let (mut entry, mut content) = tree.node(step.id).entry(walk.path());
        *counted.entry(step.id).or_insert(0) += u32::from(step.depth > 0);
        let name = first.entry(step.id).or_insert_with(|| walk.path().to_vec());
        if name != walk.path() {
            entry.kind = EntryKind::Hardlink { target: name.clone() };
            content = None;
        }
        listed.push((entry, content));
    }
    assert!(counted.iter().all(|(&id, &links)| tree.node(id).links == links), "link counts are right");
    assert_eq!(counted.len(), tree.inodes(), "no inode is without a name");
    listed
}
