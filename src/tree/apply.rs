//! Adding a layer to a tree; the rules are in the [module](super).

use super::place::{self, End};
use super::{Change, Node, NodeId, NodeKind, Tree, whiteout};
use crate::error::{Error, Result};
use crate::format::entry::{Entry, EntryKind};
use crate::limits::Limits;
use crate::observe::{Observer, check};

/// What marks a whiteout; no name of a tree starts with it.
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// The directory a parent path led to. Kept between entries; forgotten when anything it may depend on is detached.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    path: Vec<u8>,
    parent: Parent,
}

/// A directory that names go into.
#[derive(Clone, Copy, Debug)]
struct Parent {
    id: NodeId,
    /// Length of its path, symlinks resolved.
    len: usize,
    /// Components of that path.
    depth: usize,
}

impl<C: Clone + PartialEq> Tree<C> {
    /// The tree with one more layer on top. If that fails the tree is gone: half a layer must not be used. The error
    /// names the entry; it is `Cancelled` once the observer asks to stop.
    pub(crate) fn apply<I>(mut self, layer: I, observer: &dyn Observer) -> Result<Self>
    where
        I: IntoIterator<Item = Result<Change<C>>>,
    {
        let layer = layer.into_iter().map(|change| check(observer).and(change));
        if self.inodes() == 1 {
            // Nothing that whiteouts could hide, so the lowest layer, mostly the largest, need not be held.
            for change in layer {
                let (entry, content) = change?;
                self.add(entry, content)?;
            }
            return Ok(self);
        }
        let changes = layer.collect::<Result<Vec<_>>>()?;
        self.hide(&changes, observer)?;
        for (entry, content) in changes {
            check(observer)?;
            self.add(entry, content)?;
        }
        Ok(self)
    }

    fn add(&mut self, mut entry: Entry, content: Option<C>) -> Result<()> {
        if let Some(asked) = entry.whiteout() {
            return whiteout::check(asked).map_err(|e| e.subject(named(&entry.path)));
        }
        let most = self.limits.attributes.saturating_mul(Limits::LAYERS);
        self.account.add(&entry, most).map_err(|e| e.subject(named(&entry.path)))?;
        let path = std::mem::take(&mut entry.path);
        self.add_at(&path, entry, content).map_err(|e| e.subject(named(&path)))
    }

    fn add_at(&mut self, path: &[u8], entry: Entry, content: Option<C>) -> Result<()> {
        if path.is_empty() {
            return self.set_root(entry);
        }
        let (parent_path, name) = split(path);
        if path.starts_with(b"/") {
            return Err(Error::invalid("an absolute path"));
        }
        let Some(parent) = self.parent(parent_path)? else { return Ok(()) };
        self.check_name(name)?;
        self.check_path(parent.len + 1 + name.len())?;
        if parent.depth >= self.limits.depth {
            return Err(Error::limit("directories nested too deep", self.limits.depth, parent.depth + 1));
        }
        match entry.kind {
            EntryKind::Directory => self.add_directory(parent.id, name, entry),
            EntryKind::Hardlink { ref target } => {
                // Before the target is looked up: what the new name replaces is no target.
                self.detach(parent.id, name);
                let target = self.link_target(target)?;
                self.attach(parent.id, name, target);
                self.note_attributes(target);
                self.node_mut(target).add_attributes(entry);
                Ok(())
            }
            _ => {
                let node = Node::new(entry, content)?;
                self.detach(parent.id, name);
                self.attach_new(parent.id, name, node).map(drop)
            }
        }
    }

    fn set_root(&mut self, entry: Entry) -> Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(Error::invalid("the root is not a directory"));
        }
        self.note_attributes(Self::ROOT);
        self.node_mut(Self::ROOT).replace_attributes(entry);
        Ok(())
    }

    fn add_directory(&mut self, parent: NodeId, name: &[u8], entry: Entry) -> Result<()> {
        match self.child(parent, name) {
            Some(id) if self.is_directory(id) => {
                self.note_attributes(id);
                self.node_mut(id).replace_attributes(entry);
            }
            _ => {
                let node = Node::new(entry, None)?;
                self.detach(parent, name);
                self.attach_new(parent, name, node)?;
            }
        }
        Ok(())
    }

    /// The directory `path` leads to, made where it is missing. `None` below a whiteout: such entries belong to the
    /// whiteout and, like it, are hidden.
    fn parent(&mut self, path: &[u8]) -> Result<Option<Parent>> {
        if let Some(recent) = self.recent.as_ref().filter(|recent| recent.path == path) {
            return Ok(Some(recent.parent));
        }
        for name in path.split(|&b| b == b'/').filter(|_| !path.is_empty()) {
            if name.starts_with(WHITEOUT) {
                return Ok(None);
            }
            check_component(name)?;
        }
        let End::Directory(place) = place::follow(path, self.limits.depth, |place, name| Ok(self.find(place, name)))?
        else {
            // containerd fails likewise (ENOTDIR); umoci did, and now removes the file.
            return Err(Error::invalid("a parent is not a directory"));
        };
        let depth = place.names().len();
        let len = place.names().iter().map(|name| name.len() + 1).sum::<usize>().saturating_sub(1);
        let missing: Vec<Box<[u8]>> = place.missing().iter().map(|&name| name.into()).collect();
        let (mut id, provisional) = (place.deepest(), place.provisional());
        for name in missing {
            // Not only the entry's own components: a symlink's target may hold any name.
            self.check_name(&name)?;
            id = self.attach_new(id, &name, Node::implied_directory())?;
        }
        let parent = Parent { id, len, depth };
        self.recent = (!provisional).then(|| Recent { path: path.to_vec(), parent });
        Ok(Some(parent))
    }

    /// The inode a hard link names: parents resolved, the last component not followed, as link(2).
    fn link_target(&self, target: &[u8]) -> Result<NodeId> {
        let (parent, name) = split(target);
        let fail = |message: &str| Error::invalid(message).expected(named(target));
        let id = match place::follow(parent, self.limits.depth, |place, name| Ok(self.find(place, name)))? {
            End::Directory(place) => place.directory().and_then(|dir| self.child(dir, name)),
            End::Inode(_) | End::NotDirectory => None,
        };
        match id {
            Some(id) if self.is_directory(id) => Err(fail("a hard link to a directory")),
            Some(id) => Ok(id),
            None => Err(fail("a hard link to what is not there")),
        }
    }

    /// Whether a tree may hold `name`.
    pub(super) fn check_name(&self, name: &[u8]) -> Result<()> {
        check_component(name)?;
        if name.starts_with(WHITEOUT) {
            return Err(Error::invalid("a name reserved for whiteouts"));
        }
        if name.len() > self.limits.name {
            return Err(Error::limit("a name is too long", self.limits.name, name.len()));
        }
        Ok(())
    }

    pub(super) fn check_path(&self, len: usize) -> Result<()> {
        if len > self.limits.path {
            return Err(Error::limit("a path is too long", self.limits.path, len));
        }
        Ok(())
    }

    /// Whether resolving a path may have led through `id`.
    pub(super) fn leads_on(&self, id: NodeId) -> bool {
        matches!(self.node(id).kind, NodeKind::Directory { .. } | NodeKind::Symlink { .. })
    }
}

/// Entries have no such components by their contract; a damaged record may.
fn check_component(name: &[u8]) -> Result<()> {
    if matches!(name, b"" | b"." | b"..") || name.contains(&0) {
        return Err(Error::invalid("not a file name"));
    }
    Ok(())
}

/// Directory part and last component.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(i) => (&path[..i], &path[i + 1..]),
        None => (b"", path),
    }
}

/// An entry as errors name it.
pub(super) fn named(path: &[u8]) -> String {
    format!("entry \"{}\"", String::from_utf8_lossy(path))
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Layer, names, over, tree};
    use super::*;
    use crate::error::ErrorKind;
    use crate::format::entry::Xattr;
    use crate::limits::Limits;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    fn failure(layers: &[Layer]) -> Error {
        let (last, lower) = layers.split_last().expect("a layer");
        over(&tree(lower), last).expect_err("must fail")
    }

    /// layer.md, "Changeset over existing files": both directories, attributes replaced; else removed and recreated.
    #[test]
    fn directories_merge_and_everything_else_replaces() {
        let lower = Layer::new().dir("d").attributes(0o700, "user.a").file("d/x", 1).file("f", 2).symlink("s", "d");
        let merged = tree(&[lower.clone(), Layer::new().dir("d").attributes(0o711, "user.b")]);
        assert_eq!(names(&merged), "d/ d/x=1 f=2 s->d");
        let d = &merged.node(merged.get(b"d").expect("d")).attributes;
        assert_eq!((d.mode, &d.xattrs[..]), (0o711, &[Xattr { name: b"user.b".to_vec(), value: b"v".to_vec() }][..]));
        let upper = Layer::new().file("d", 3).dir("f").file("f/y", 4).dir("s");
        assert_eq!(names(&tree(&[lower, upper])), "d=3 f/ f/y=4 s/");
    }

    /// layer.md forbids duplicates; tar(1), containerd and umoci let the last one win.
    #[test]
    fn the_last_of_equal_paths_wins() {
        let layer =
            Layer::new().file("x", 1).symlink("x", "/t").file("x", 2).dir("d").file("d/k", 1).file("d", 5).dir("d");
        assert_eq!(names(&tree(&[layer])), "d/ x=2");
    }

    /// containerd `mkparent`: 0755 root; an entry that comes later gives the attributes and keeps the children.
    #[test]
    fn missing_parents_are_implied() {
        let implied = tree(&[Layer::new().file("a/b/c", 1)]);
        let b = implied.node(implied.get(b"a/b").expect("b"));
        assert!(b.implied);
        assert_eq!((b.attributes.mode, b.attributes.uid, b.attributes.mtime.secs), (0o755, 0, 0));
        let given = tree(&[Layer::new().file("a/b/c", 1).dir("a/b")]);
        let b = given.node(given.get(b"a/b").expect("b"));
        assert!(!b.implied && b.attributes.mtime.secs == 5);
        assert_eq!(names(&given), "a/ a/b/ a/b/c=1");
    }

    /// usrmerge; containerd `fs.RootPath`, umoci `SecureJoin`: parents follow symlinks of both layers, in the root.
    #[test]
    fn parents_follow_symlinks_inside_the_root() {
        let lower =
            Layer::new().dir("usr/lib").symlink("lib", "usr/lib").symlink("up", "../../usr").symlink("abs", "/usr");
        let upper = Layer::new().file("lib/x", 1).file("up/y", 2).file("abs/z", 3).symlink("n", "lib").file("n/w", 4);
        let expected =
            "abs->/usr lib->usr/lib n->lib up->../../usr usr/ usr/lib/ usr/lib/w=4 usr/lib/x=1 usr/y=2 usr/z=3";
        assert_eq!(names(&tree(&[lower, upper])), expected);
    }

    /// containerd and umoci make the target of a dangling symlink; checked with umoci 0.4.7, which likewise makes no
    /// `no` for `/no/../srv`.
    #[test]
    fn a_dangling_parent_is_made_inside_the_root() {
        let layer = Layer::new().symlink("s", "/no/../srv/t").file("s/x", 1);
        assert_eq!(names(&tree(&[layer])), "s->/no/../srv/t srv/ srv/t/ srv/t/x=1");
    }

    /// containerd: ENOTDIR; umoci 0.4.7: "not a directory".
    #[test]
    fn a_file_is_no_parent() {
        let e = failure(&[Layer::new().file("p", 1), Layer::new().file("p/q", 2)]);
        assert_eq!(e.kind(), ErrorKind::InvalidInput);
        assert_eq!(e.to_string(), "entry \"p/q\": a parent is not a directory");
        failure(&[Layer::new().file("p", 1).symlink("s", "p").file("s/q", 2)]);
    }

    /// path_resolution(7): ELOOP.
    #[test]
    fn a_loop_of_parents_fails() {
        let e = failure(&[Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", 1)]);
        assert_eq!(e.kind(), ErrorKind::InvalidInput);
    }

    /// The name last resolved must not outlive what it went through.
    #[test]
    fn a_replaced_parent_is_resolved_again() {
        let layer =
            Layer::new().dir("d").symlink("s", "d").file("s/x", 1).dir("s").file("s/y", 2).file("s", 3).dir("s");
        assert_eq!(names(&tree(&[layer.clone().file("s/z", 4)])), "d/ d/x=1 s/ s/z=4");
        let dir = Layer::new().file("d/x", 1).symlink("d", "e").file("d/x", 2);
        assert_eq!(names(&tree(&[dir])), "d->e e/ e/x=2");
    }

    /// `b` leads through `c/..`, which stops once `c` is a file.
    #[test]
    fn a_parent_through_nothing_is_resolved_again() {
        let layer = Layer::new().symlink("a", "/").symlink("b", "c/../a").file("b/c", 1).file("b/d", 2);
        assert_eq!(failure(&[layer]).subjects(), ["entry \"b/d\""]);
    }

    /// link(2) and containerd `hardlinkRootPath`: parents resolved, the last component not; lower layers count.
    #[test]
    fn hard_links_name_what_is_there() {
        let lower = Layer::new().file("d/f", 1).symlink("s", "d").symlink("t", "/etc/passwd");
        let upper = Layer::new().hardlink("g", "s/f").hardlink("h", "g").hardlink("u", "t");
        let both = tree(&[lower, upper]);
        assert_eq!(names(&both), "d/ d/f=1 g==d/f h==d/f s->d t->/etc/passwd u==t");
        // Replacing one name leaves the others linked.
        let replaced = over(&both, &Layer::new().file("d/f", 2)).expect("applies");
        assert_eq!(names(&replaced), "d/ d/f=2 g=1 h==g s->d t->/etc/passwd u==t");
    }

    /// containerd and Docker chown, setxattr and chmod after link(); umoci leaves the inode alone.
    #[test]
    fn a_hard_links_attributes_go_to_the_inode() {
        let lower = Layer::new().file("f", 1).attributes(0o600, "user.a").symlink("s", "f");
        let upper = Layer::new().hardlink("g", "f").attributes(0o4755, "user.b").hardlink("t", "s");
        let both = tree(&[lower, upper]);
        let f = &both.node(both.get(b"f").expect("f")).attributes;
        let xattrs: Vec<_> = f.xattrs.iter().map(|x| &x.name[..]).collect();
        assert_eq!((f.mode, xattrs), (0o4755, vec![&b"user.a"[..], b"user.b"]));
        assert_eq!(both.node(both.get(b"s").expect("s")).attributes.mode, 0o777, "a symlink keeps its mode");
    }

    /// link(2): ENOENT, EPERM. What the new name replaces is gone before its target is looked up.
    #[test]
    fn hard_links_to_nothing_fail() {
        let base = Layer::new().dir("d").file("d/f", 1).file("f", 1);
        for (path, target) in
            [("l", "nope"), ("l", "d/nope"), ("l", "f/x"), ("l", "d"), ("l", ""), ("f", "f"), ("d", "d/f")]
        {
            let e = failure(&[base.clone(), Layer::new().hardlink(path, target)]);
            assert_eq!(e.kind(), ErrorKind::InvalidInput, "{path} {target}");
        }
    }

    /// mtimes are those of entries, as containerd and umoci restore them after adding children.
    #[test]
    fn children_do_not_touch_their_directory() {
        let lower = tree(&[Layer::new().dir("d").file("d/x", 1)]);
        let upper = over(&lower, &Layer::new().file("d/y", 1).whiteout("d/x")).expect("applies");
        let d = |tree: &Tree<u32>| tree.node(tree.get(b"d").expect("d")).attributes.clone();
        assert_eq!(d(&lower), d(&upper));
    }

    /// umoci: "refusing to change type of root directory".
    #[test]
    fn the_root_takes_attributes_but_no_other_type() {
        let tree = tree(&[Layer::new().file("a", 1), Layer::new().dir("").attributes(0o700, "user.r")]);
        let root = tree.node(Tree::<u32>::ROOT);
        assert_eq!((root.attributes.mode, root.implied, names(&tree).as_str()), (0o700, false, "a=1"));
        assert_eq!(failure(&[Layer::new().symlink("", "/t")]).kind(), ErrorKind::InvalidInput);
        assert_eq!(failure(&[Layer::new().hardlink("", "a")]).kind(), ErrorKind::InvalidInput);
    }

    /// The invariants drivers rely on, against entries of a damaged record.
    #[test]
    fn names_drivers_could_misuse_are_refused() {
        for path in ["..", "a/..", "../a", "a//b", "/a", "a/", ".", "a\0b"] {
            assert_eq!(failure(&[Layer::new().file(path, 1)]).kind(), ErrorKind::InvalidInput, "{path:?}");
        }
        let reserved = Layer::new().symlink("s", ".wh.x").file("s/y", 1);
        assert!(failure(&[reserved]).to_string().contains("reserved"));
    }

    #[test]
    fn limits_hold_through_symlinks() {
        let long = "n".repeat(256);
        assert_eq!(failure(&[Layer::new().file(&long, 1)]).kind(), ErrorKind::LimitExceeded);
        let dangling = Layer::new().symlink("s", &long).file("s/x", 1);
        assert_eq!(failure(&[dangling]).kind(), ErrorKind::LimitExceeded);
        let deep = vec!["d"; 1000].join("/");
        let layer = Layer::new().dir(&deep).symlink("s", &deep);
        over(&Tree::new(), &layer.clone().file(&format!("s/{}", vec!["e"; 24].join("/")), 1)).expect("1024 deep");
        let e = failure(&[layer.file(&format!("s/{}", vec!["e"; 25].join("/")), 1)]);
        assert_eq!(e.kind(), ErrorKind::LimitExceeded);
        let wide = vec!["w".repeat(250); 16].join("/");
        let layer = Layer::new().dir(&wide).symlink("s", &wide);
        assert_eq!(
            failure(&[layer.clone().file(&format!("s/{}", "x".repeat(90)), 1)]).kind(),
            ErrorKind::LimitExceeded
        );
        assert_eq!(failure(&[layer.file(&format!("s/{}/x", "x".repeat(90)), 1)]).kind(), ErrorKind::LimitExceeded);
        let few = Tree::<u32>::with_limits(Limits::default().entries(3));
        assert_eq!(over(&few, &Layer::new().file("a/b/c", 1)).expect_err("4 inodes").kind(), ErrorKind::LimitExceeded);
    }

    /// Each layer may be as large as one may be, but not any number of them.
    #[test]
    fn attributes_of_all_layers_are_limited_together() {
        let layer = Layer::new().symlink("s", &"t".repeat(1000 + 255));
        let mut tree = Tree::<u32>::with_limits(Limits::default().attributes(1000));
        for _ in 0..Limits::LAYERS {
            tree = over(&tree, &layer).expect("eight");
        }
        let e = over(&tree, &layer).expect_err("nine");
        assert_eq!((e.kind(), e.subjects()), (ErrorKind::LimitExceeded, &["entry \"s\"".to_owned()][..]));
    }

    /// Wherever it is: among the entries that are read, the whiteouts, or the entries that are added.
    #[test]
    fn an_observer_stops_it() {
        struct After(AtomicU32);
        impl Observer for After {
            fn event(&self, _: crate::Event) {}
            fn cancelled(&self) -> bool {
                self.0.fetch_sub(1, Relaxed) == 0
            }
        }
        let lower = tree(&[Layer::new().file("a", 1)]);
        let upper = Layer::new().whiteout("a").file("b", 1);
        let apply = |tree: &Tree<u32>, calls| {
            tree.clone().apply(upper.0.iter().cloned().map(Ok), &After(AtomicU32::new(calls)))
        };
        for (tree, calls) in [(&Tree::new(), 2), (&lower, 5)] {
            for stopped in 0..calls {
                assert_eq!(apply(tree, stopped).expect_err("stopped").kind(), ErrorKind::Cancelled);
            }
            apply(tree, calls).expect("not asked so often");
        }
    }

    #[test]
    fn a_failing_layer_passes_its_error_on() {
        let layer = [Err(Error::corrupt("bad record"))];
        assert_eq!(Tree::<u32>::new().apply(layer, &()).expect_err("fails").kind(), ErrorKind::Corrupt);
    }
}
