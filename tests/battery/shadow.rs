//! A power cut by the letter of POSIX: what no fsync has named may be gone, whatever ext4, xfs or btrfs would have kept.
//!
//! While a worker works, every sync it makes is noted with what it makes durable: of a file its bytes, of a directory
//! its names. From that follows the least that a crash must leave. Real file systems keep more (a journal makes older
//! renames durable with younger fsyncs), so the block-level test cannot see a directory fsync that is missing; this can.

use crate::trap::Call;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// A file's length and the bytes that are no hole.
#[derive(Default)]
struct Content {
    len: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Directory,
    File,
}

/// Names of a directory, each with inode and type.
type Names = BTreeMap<OsString, (u64, Type)>;

/// What is on disk whatever happens; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Durable {
    files: BTreeMap<u64, Arc<Content>>,
    directories: BTreeMap<u64, Arc<Names>>,
    top: u64,
}

impl Durable {
    /// Nothing below `top` yet but itself.
    pub(crate) fn new(top: &Path) -> Self {
        Self { top: inode(top), ..Self::default() }
    }

    /// The worker is about to make `call` on the store at `root`: a sync makes durable what is there now.
    pub(crate) fn sync(&mut self, root: &Path, call: &Call) {
        let path = root.join(&call.path);
        if call.name == "syncfs" {
            self.sync_some(root, &mut || true);
        } else if path.is_dir() {
            self.sync_names(&path);
        } else if let Ok(file) = File::open(&path) {
            // A file that has no name any more needs none of its bytes.
            self.sync_bytes(&file);
        }
    }

    /// Makes the names of a directory durable.
    pub(crate) fn sync_names(&mut self, path: &Path) {
        self.directories.insert(inode(path), Arc::new(names(path)));
    }

    fn sync_bytes(&mut self, file: &File) {
        let inode = file.metadata().expect("an open file").ino();
        self.files.insert(inode, Arc::new(content(file)));
    }

    /// As if some of what was not synced had come to disk too: each file and directory below `path` with a chance of
    /// one in two, by `dice`.
    pub(crate) fn sync_some(&mut self, path: &Path, dice: &mut impl FnMut() -> bool) {
        if dice() {
            self.sync_names(path);
        }
        for (name, (_, of)) in names(path) {
            let path = path.join(name);
            match of {
                Type::Directory => self.sync_some(&path, dice),
                Type::File if dice() => drop(File::open(&path).map(|file| self.sync_bytes(&file))),
                Type::File => {}
            }
        }
    }

    /// Makes a directory with what is durable.
    pub(crate) fn restore(&self, to: &Path) {
        let mut links = BTreeMap::new();
        self.restore_directory(self.top, to, &mut BTreeSet::new(), &mut links);
    }

    fn restore_directory(
        &self,
        inode: u64,
        to: &Path,
        above: &mut BTreeSet<u64>,
        links: &mut BTreeMap<u64, std::path::PathBuf>,
    ) {
        DirBuilder::new().mode(0o700).create(to).expect("a directory");
        let Some(names) = self.directories.get(&inode).filter(|_| above.insert(inode)) else { return };
        for (name, (inode, of)) in names.iter() {
            let path = to.join(name);
            match (of, links.get(inode)) {
                (Type::Directory, _) => self.restore_directory(*inode, &path, above, links),
                (Type::File, Some(first)) => fs::hard_link(first, &path).expect("a link"),
                (Type::File, None) => {
                    self.restore_file(*inode, &path);
                    links.insert(*inode, path);
                }
            }
        }
        above.remove(&inode);
    }

    fn restore_file(&self, inode: u64, path: &Path) {
        let file = File::create_new(path).expect("a file");
        let Some(content) = self.files.get(&inode) else { return };
        file.set_len(content.len).expect("room");
        content.pieces.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).expect("room"));
    }
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("a directory").ino()
}

fn names(path: &Path) -> Names {
    let Ok(list) = fs::read_dir(path) else { return Names::new() };
    let name = |entry: fs::DirEntry| {
        let meta = entry.metadata().ok()?;
        let of = if meta.is_dir() { Type::Directory } else { Type::File };
        Some((entry.file_name(), (meta.ino(), of)))
    };
    // Names that vanish meanwhile are not there.
    list.flatten().filter_map(name).collect()
}

fn content(file: &File) -> Content {
    use rustix::fs::{SeekFrom, seek};
    let len = file.metadata().expect("an open file").len();
    let (mut pieces, mut at) = (vec![], 0);
    while let Ok(start) = seek(file, SeekFrom::Data(at)) {
        let end = seek(file, SeekFrom::Hole(start)).unwrap_or(len).min(len);
        let mut bytes = vec![0; end.saturating_sub(start) as usize];
        // It may shrink while it is read; what is gone by then is not there.
        let read = file.read_at(&mut bytes, start).unwrap_or(0);
        bytes.truncate(read);
        pieces.push((start, bytes));
        at = end.max(start + 1);
    }
    Content { len, pieces }
}
