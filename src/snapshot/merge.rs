//! The tree that an overlay shows: what is in its upper directory over a tree.
//!
//! The kernel's rules (Documentation/filesystems/overlayfs.rst, fs/overlayfs/namei.c):
//! - a character device 0:0 hides the name below; so does an empty file with the attribute `whiteout` in a directory
//!   whose `opaque` is `x`;
//! - a directory with `opaque` `y` hides what is below it, another one merges with the directory below of the same name,
//!   or of the one its `redirect` names: a name is one beside it, a path is from the root;
//! - a file with `metacopy` has the content of the one below it, by `redirect` likewise;
//! - everything else hides the name below.
//!
//! A tree is built from nothing, directory by directory, so it does not matter in which order names hide and move.

use crate::error::{Error, Result};
use crate::format::entry::{DataRange, Entry, EntryKind, Time, Xattr};
use crate::layer::{DiskFile, DiskPlace, Source, SourceTree};
use crate::observe::{Observer, check};
use crate::sys::scan::{Found, FoundKind, RawXattr, Scan, ScannedDir, Xattrs, join};
use crate::tar::xattr_is_kept;
use crate::tree::{Located, Node, NodeId, NodeKind, Tree};
use std::collections::HashMap;
use std::sync::Arc;

/// Which attributes are overlay's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marks {
    /// `trusted.overlay.*`
    Trusted,
    /// `user.overlay.*`, of mounts with `userxattr`.
    User,
    /// None: the directory is no overlay's and holds all there is.
    None,
}

impl Marks {
    fn prefix(self) -> Option<&'static [u8]> {
        match self {
            Self::Trusted => Some(b"trusted.overlay."),
            Self::User => Some(b"user.overlay."),
            Self::None => None,
        }
    }

    fn get<'x>(self, xattrs: &'x [RawXattr], name: &[u8]) -> Option<&'x [u8]> {
        let prefix = self.prefix()?;
        let mark = xattrs.iter().find(|(n, _)| n.strip_prefix(prefix) == Some(name))?;
        Some(&mark.1)
    }
}

/// Puts what a scan found over `lower`. With no marks `lower` is empty: what is found is all.
pub(super) fn merge(lower: &SourceTree, scan: Scan, marks: Marks, observer: &dyn Observer) -> Result<SourceTree> {
    let Scan { dir, mut root, dirs } = scan;
    let mut merge = Merge {
        lower,
        tree: Tree::new(),
        dir,
        dirs: dirs.into_iter().map(Some).collect(),
        marks,
        moved: HashMap::new(),
        linked: HashMap::new(),
        kept: HashMap::new(),
        shown: 0,
        most: usize::MAX,
        observer,
    };
    let opaque = marks.get(&root.xattrs, b"opaque").map(<[u8]>::to_vec);
    let node = merge.node(&mut root, b"", EntryKind::Directory, None)?;
    *merge.tree.attributes_mut(SourceTree::ROOT) = node.attributes;
    let below = (opaque.as_deref() != Some(b"y")).then_some(SourceTree::ROOT);
    let spot = merge.tree.root_spot();
    let first = Pending { spot, place: Arc::default(), below, above: Some((0, opaque.as_deref() == Some(b"x"))) };
    let mut pending = vec![first];
    while let Some(next) = pending.pop() {
        merge.directory(next, &mut pending)?;
    }
    Ok(merge.tree)
}

struct Merge<'a> {
    lower: &'a SourceTree,
    tree: SourceTree,
    dir: Arc<ScannedDir>,
    /// The names found, taken when their directory's turn comes.
    dirs: Vec<Option<Vec<Found>>>,
    marks: Marks,
    /// By inode of `lower`, no directories, the one it is in the new tree.
    moved: HashMap<NodeId, NodeId>,
    /// Likewise by device and inode number, of files with several names.
    linked: HashMap<(u64, u64), NodeId>,
    /// By [`Xattrs::key`], the attributes of a layer that they are, and why others were left out.
    kept: HashMap<usize, Kept>,
    /// Names of `lower` that were shown, and how many may be.
    shown: usize,
    most: usize,
    observer: &'a dyn Observer,
}

type Kept = (Arc<[Xattr]>, Arc<[String]>);

/// Names that redirects may show beside twice those that there are: each directory is shown in one place, unless
/// somebody sets redirects by hand.
const REDIRECTED: usize = 1024;

/// A directory of the new tree that is still empty.
struct Pending {
    spot: Located,
    place: Arc<DiskPlace>,
    /// The directory of `lower` whose names show through.
    below: Option<NodeId>,
    /// The number of the directory that was found, and whether attributes may make whiteouts in it.
    above: Option<(usize, bool)>,
}

impl Merge<'_> {
    fn directory(&mut self, at: Pending, pending: &mut Vec<Pending>) -> Result<()> {
        check(self.observer)?;
        let lower = self.lower;
        let found = at.above.and_then(|(number, _)| self.dirs.get_mut(number)?.take()).unwrap_or_default();
        let below = at.below.and_then(|id| lower.children(id));
        for (name, &id) in below.into_iter().flatten() {
            if found.binary_search_by(|f| f.name.cmp(name)).is_err() {
                self.show_through(&at, name, id, pending)?;
            }
        }
        for found in found {
            let path = join(&at.place.0, &found.name);
            self.put(&at, found, path.clone(), pending).map_err(|e| e.subject(self.dir.named(&path).display()))?;
        }
        Ok(())
    }

    /// A name of `lower` that nothing hides.
    fn show_through(&mut self, at: &Pending, name: &[u8], id: NodeId, pending: &mut Vec<Pending>) -> Result<()> {
        let node = self.lower.node(id);
        self.shown += 1;
        if self.shown > self.most {
            let message = "redirects of overlay's show the same directories of the layers below again and again";
            return Err(Error::limit(message, self.most, self.shown));
        }
        if self.lower.children(id).is_some() {
            let spot = self.tree.add_node(at.spot, name, node.alone())?;
            let place = Arc::new(DiskPlace(join(&at.place.0, name)));
            pending.push(Pending { spot, place, below: Some(id), above: None });
            return Ok(());
        }
        match self.moved.get(&id) {
            Some(&there) => self.tree.add_link(at.spot, name, there),
            None => {
                let spot = self.tree.add_node(at.spot, name, node.alone())?;
                if node.links > 1 {
                    self.moved.insert(id, spot.id);
                }
                Ok(())
            }
        }
    }

    /// A name that was found.
    fn put(&mut self, at: &Pending, mut found: Found, path: Vec<u8>, pending: &mut Vec<Pending>) -> Result<()> {
        if self.is_whiteout(&found, at.above.is_some_and(|(_, attributes)| attributes)) {
            return Ok(());
        }
        let kind = match std::mem::replace(&mut found.kind, FoundKind::Fifo) {
            FoundKind::Directory(number) => return self.put_directory(at, found, path, number, pending),
            FoundKind::Socket => {
                self.skip(&path, "a socket, which no layer holds: only a running process can make one");
                return Ok(());
            }
            other => other,
        };
        let shared = (found.links > 1).then(|| self.linked.get(&found.id)).flatten();
        if let Some(&there) = shared {
            return self.tree.add_link(at.spot, &found.name, there);
        }
        let (kind, content) = match kind {
            FoundKind::File(size, bytes) => self.file(at, &found, size, bytes)?,
            FoundKind::Symlink(target) => (EntryKind::Symlink { target }, None),
            FoundKind::CharDevice(0, 0) => return Err(Error::invalid("a device 0:0, which hides a file in overlays")),
            FoundKind::CharDevice(major, minor) => (EntryKind::CharDevice { major, minor }, None),
            FoundKind::BlockDevice(major, minor) => (EntryKind::BlockDevice { major, minor }, None),
            _ => (EntryKind::Fifo, None),
        };
        let node = self.node(&mut found, &path, kind, content)?;
        let spot = self.tree.add_node(at.spot, &found.name, node)?;
        if found.links > 1 {
            self.linked.insert(found.id, spot.id);
        }
        Ok(())
    }

    fn is_whiteout(&self, found: &Found, by_attribute: bool) -> bool {
        match found.kind {
            FoundKind::CharDevice(0, 0) => self.marks != Marks::None,
            FoundKind::File(0, _) if by_attribute => self.marks.get(&found.xattrs, b"whiteout").is_some(),
            _ => false,
        }
    }

    fn put_directory(
        &mut self,
        at: &Pending,
        mut found: Found,
        path: Vec<u8>,
        number: usize,
        pending: &mut Vec<Pending>,
    ) -> Result<()> {
        let opaque = self.marks.get(&found.xattrs, b"opaque");
        let below = if opaque == Some(b"y") { None } else { self.below(at, &found)? };
        let below = below.filter(|&id| self.lower.children(id).is_some());
        let by_attribute = opaque == Some(b"x");
        if self.most == usize::MAX && self.marks.get(&found.xattrs, b"redirect").is_some() {
            self.most = 2 * self.lower.walk().count() + REDIRECTED;
        }
        let node = self.node(&mut found, &path, EntryKind::Directory, None)?;
        let spot = self.tree.add_node(at.spot, &found.name, node)?;
        let place = Arc::new(DiskPlace(path));
        pending.push(Pending { spot, place, below, above: Some((number, by_attribute)) });
        Ok(())
    }

    /// What is below a name that was found, by its redirect if it has one.
    fn below(&self, at: &Pending, found: &Found) -> Result<Option<NodeId>> {
        let child = |dir: NodeId, name: &[u8]| self.lower.children(dir)?.get(name).copied();
        match self.marks.get(&found.xattrs, b"redirect") {
            None => Ok(at.below.and_then(|dir| child(dir, &found.name))),
            Some(redirect) => match redirect.strip_prefix(b"/") {
                Some(path) => {
                    let mut names = path.split(|&b| b == b'/').filter(|name| !name.is_empty());
                    Ok(names.try_fold(SourceTree::ROOT, child))
                }
                None if redirect.is_empty() || redirect.contains(&b'/') => {
                    Err(Error::invalid("a redirect of overlay's that is neither a name nor a path from the root"))
                }
                None => Ok(at.below.and_then(|dir| child(dir, redirect))),
            },
        }
    }

    fn file(
        &self,
        at: &Pending,
        found: &Found,
        size: u64,
        bytes: Option<Box<[u8]>>,
    ) -> Result<(EntryKind, Option<Source>)> {
        if self.marks.get(&found.xattrs, b"metacopy").is_some() {
            let below = self.below(at, found)?.map(|id| &self.lower.node(id).kind);
            return match below {
                Some(NodeKind::File { size: there, sparse, content }) if *there == size => {
                    let sparse: Option<Vec<DataRange>> = sparse.as_ref().map(|s| s.to_vec());
                    Ok((EntryKind::File { size, sparse }, Some(content.clone())))
                }
                _ => Err(Error::invalid("attributes without content: the file they belong to is not below")),
            };
        }
        let source = match size {
            0 => Source::Stored(Arc::new([])),
            _ => {
                let (dir, place, name) = (self.dir.clone(), at.place.clone(), found.name.clone());
                Source::Disk(Arc::new(DiskFile { dir, place, name, size, bytes }))
            }
        };
        Ok((EntryKind::File { size, sparse: None }, Some(source)))
    }

    /// The inode that was found, without its place.
    fn node(
        &mut self,
        found: &mut Found,
        path: &[u8],
        kind: EntryKind,
        content: Option<Source>,
    ) -> Result<Node<Source>> {
        let xattrs = self.xattrs(std::mem::take(&mut found.xattrs), path);
        let &mut Found { mode, uid, gid, mtime: (secs, nanos), .. } = found;
        let (path, mtime) = (Vec::new(), Time { secs, nanos });
        let mut node = Node::new(Entry { path, kind, mode, uid, gid, mtime, xattrs: vec![] }, content)?;
        node.attributes.xattrs = xattrs;
        Ok(node)
    }

    /// Attributes without those that are no layer's. Sets that the scan holds once stay in one place.
    fn xattrs(&mut self, found: Xattrs, path: &[u8]) -> Arc<[Xattr]> {
        let Some(key) = found.key() else { return Arc::default() };
        let (xattrs, reasons) = match self.kept.get(&key) {
            Some(known) => known.clone(),
            None => {
                let shared = found.is_shared();
                let kept = self.keep(found.into_vec());
                if shared {
                    self.kept.insert(key, kept.clone());
                }
                kept
            }
        };
        reasons.iter().for_each(|reason| self.skip(path, reason));
        xattrs
    }

    fn keep(&self, found: Vec<RawXattr>) -> Kept {
        let (mut xattrs, mut reasons) = (Vec::new(), Vec::new());
        for (name, value) in found {
            if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
                let foreign = self.marks.prefix().is_none_or(|prefix| !name.starts_with(prefix));
                // Overlay's own say what is elsewhere in the tree; others only look like that.
                if foreign || name.windows(17).any(|part| part == b".overlay.overlay.") {
                    reasons.push(format!("attribute {}, which is overlay's", name.escape_ascii()));
                }
                continue;
            }
            match xattr_is_kept(&name, &value) {
                Ok(true) => xattrs.push(Xattr { name, value }),
                Ok(false) => reasons.push(format!("attribute {}, which Linux does not have", name.escape_ascii())),
                Err(e) => reasons.push(e.to_string()),
            }
        }
        (xattrs.into(), reasons.into())
    }

    fn skip(&self, path: &[u8], reason: impl AsRef<str>) {
        self.observer.skipped(path, reason.as_ref());
    }
}
