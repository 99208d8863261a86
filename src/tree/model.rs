//! The rules once more, as plainly as possible and without regard to speed: a map from paths to inodes.
//!
//! Stacks of layers must give the same tree here and in [`Tree`](super::Tree), and fail in the same places: random ones in
//! `model_tests.rs`, those of a fuzzer in `fuzzing/trees.rs`.

use std::collections::{BTreeMap, VecDeque};

use super::samples::{Layer, entry, over};
use super::{Change, Tree};
use crate::format::entry::{Entry, EntryKind, Time, Whiteout, Xattr};

type Path = Vec<String>;

/// Path to inode number, and the inodes. The root is not in `names`.
#[derive(Clone)]
pub(crate) struct Model {
    names: BTreeMap<Path, usize>,
    inodes: Vec<Change<u32>>,
}

fn components(path: &[u8]) -> Path {
    let path = String::from_utf8(path.to_vec()).expect("tests use text");
    path.split('/').filter(|c| !c.is_empty()).map(str::to_owned).collect()
}

fn implied() -> Entry {
    Entry { mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), ..entry("", EntryKind::Directory) }
}

impl Model {
    fn new() -> Self {
        Self { names: BTreeMap::new(), inodes: vec![(implied(), None)] }
    }

    fn kind(&self, path: &[String]) -> Option<&EntryKind> {
        if path.is_empty() {
            return Some(&EntryKind::Directory);
        }
        self.names.get(path).map(|&inode| &self.inodes[inode].0.kind)
    }

    /// Follows every symlink of `path`; `own` entries stand before those of the model. `None`: a loop, or on through
    /// what is no directory. With `Some`, the path of a directory that may not exist.
    fn real(&self, path: &[u8], own: &BTreeMap<Path, EntryKind>) -> Option<Path> {
        let mut todo: VecDeque<String> = components(path).into();
        let (mut done, mut links) = (Path::new(), 0);
        while let Some(next) = todo.pop_front() {
            if next == "." {
                continue;
            }
            if next == ".." {
                done.pop();
                continue;
            }
            done.push(next);
            match own.get(&done).or(self.kind(&done)) {
                None | Some(EntryKind::Directory) => {}
                Some(EntryKind::Symlink { target }) => {
                    links += 1;
                    if links > 40 {
                        return None;
                    }
                    done.pop();
                    if target.starts_with(b"/") {
                        done.clear();
                    }
                    for component in components(target).into_iter().rev() {
                        todo.push_front(component);
                    }
                }
                Some(_) => return None,
            }
        }
        Some(done)
    }

    fn remove(&mut self, path: &[String]) {
        self.names.retain(|name, _| !name.starts_with(path));
    }

    fn remove_below(&mut self, path: &[String]) {
        self.names.retain(|name, _| !name.starts_with(path) || name == path);
    }

    /// What lower layers have at the whiteouts' places goes; the layer's directories stand where they are none.
    fn hide(&mut self, layer: &[Change<u32>]) {
        let mut own = BTreeMap::new();
        for (entry, _) in layer.iter().filter(|(entry, _)| entry.whiteout().is_none()) {
            own.insert(components(&entry.path), entry.kind.clone());
        }
        let lower = self.clone();
        for (entry, _) in layer {
            let Some(whiteout) = entry.whiteout() else { continue };
            let Some(dir) = lower.real(entry.split_path().0, &own) else { continue };
            // Every step of the way must be a directory below, or what is there now does not show through.
            if !(0..=dir.len()).all(|n| lower.kind(&dir[..n]) == Some(&EntryKind::Directory)) {
                continue;
            }
            match whiteout {
                Whiteout::Opaque => self.remove_below(&dir),
                Whiteout::Remove(name) => {
                    let name = String::from_utf8(name.to_vec()).expect("text");
                    self.remove(&[dir, vec![name]].concat());
                }
            }
        }
    }

    fn apply(mut self, layer: &[Change<u32>]) -> Option<Self> {
        self.hide(layer);
        for (entry, content) in layer.iter().filter(|(entry, _)| entry.whiteout().is_none()) {
            self.add(entry.clone(), *content)?;
        }
        Some(self)
    }

    fn add(&mut self, mut entry: Entry, content: Option<u32>) -> Option<()> {
        let (parent, name) = entry.split_path();
        if name.is_empty() {
            let directory = entry.kind == EntryKind::Directory;
            self.inodes[0].0 = entry;
            return directory.then_some(());
        }
        let (parent, name) = (self.real(parent, &BTreeMap::new())?, components(name));
        for n in 1..=parent.len() {
            if self.kind(&parent[..n]).is_none() {
                self.put(parent[..n].to_vec(), implied(), None);
            }
        }
        let path = [parent, name].concat();
        if entry.kind == EntryKind::Directory && self.kind(&path) == Some(&EntryKind::Directory) {
            self.inodes[self.names[&path]].0 = entry;
            return Some(());
        }
        self.remove(&path);
        if let EntryKind::Hardlink { target } = &entry.kind {
            let split = target.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
            let dir = self.real(&target[..split], &BTreeMap::new())?;
            let target = [dir, components(&target[split..])].concat();
            let inode = *self.names.get(&target)?;
            let old = &self.inodes[inode].0;
            let mut xattrs: BTreeMap<_, _> = old.xattrs.iter().cloned().map(|x| (x.name, x.value)).collect();
            xattrs.extend(entry.xattrs.into_iter().map(|x| (x.name, x.value)));
            entry.xattrs = xattrs.into_iter().map(|(name, value)| Xattr { name, value }).collect();
            entry.kind = old.kind.clone();
            if entry.kind == EntryKind::Directory {
                return None;
            }
            if matches!(entry.kind, EntryKind::Symlink { .. }) {
                entry.mode = 0o777;
            }
            self.inodes[inode].0 = entry;
            self.names.insert(path, inode);
        } else {
            if matches!(entry.kind, EntryKind::Symlink { .. }) {
                entry.mode = 0o777;
            }
            self.put(path, entry, content);
        }
        Some(())
    }

    fn put(&mut self, path: Path, entry: Entry, content: Option<u32>) {
        self.names.insert(path, self.inodes.len());
        self.inodes.push((entry, content));
    }

    /// As [`listing`](super::samples::listing).
    pub(crate) fn listing(&self) -> Vec<Change<u32>> {
        let mut first: BTreeMap<usize, Path> = BTreeMap::new();
        let root = std::iter::once((Path::new(), 0));
        let names = root.chain(self.names.iter().map(|(path, &inode)| (path.clone(), inode)));
        let list = names.map(|(path, inode)| {
            let (mut entry, mut content) = self.inodes[inode].clone();
            let name = first.entry(inode).or_insert(path.clone());
            if *name != path {
                entry.kind = EntryKind::Hardlink { target: name.join("/").into_bytes() };
                content = None;
            }
            entry.path = path.join("/").into_bytes();
            (entry, content)
        });
        list.collect()
    }
}

/// The layers of `stack` that apply, in both; where one fails, so must the other.
pub(crate) fn compose(stack: &[Layer]) -> (Tree<u32>, Model) {
    let (mut tree, mut model) = (Tree::new(), Model::new());
    for layer in stack {
        match (over(&tree, layer), model.clone().apply(&layer.0)) {
            (Ok(t), Some(m)) => (tree, model) = (t, m),
            (Err(_), None) => {}
            (Ok(_), None) => panic!("only the model refuses {layer:#?}"),
            (Err(e), Some(_)) => panic!("only the tree refuses: {e}"),
        }
    }
    (tree, model)
}
