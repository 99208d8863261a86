//! Whether a directory still holds what extraction wrote: every name, attribute and byte.
//!
//! What is compared leaves out what the kernel keeps in a form of its own: access control lists that a mode set, and
//! labels of the host that the layer does not speak of.

use crate::chunk::cutter::Cutter;
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{Content, DiskFile, DiskPlace, OF_THE_HOST, Source, disk_has};
use crate::limits::Limits;
use crate::observe::{Event, Observer, check};
use crate::store::Store;
use crate::sys::scan::{Bounds, Found, FoundKind, RawXattr, Scan, join, scan};
use crate::tree::{Attributes, NodeKind, Outline};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Set together with the mode, which has the last word.
const SET_BY_MODE: &[u8] = b"system.posix_acl_access";

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Below the directory.
    pub(crate) path: Vec<u8>,
    pub(crate) what: String,
}

/// What `dir` holds otherwise than a layer's directory, written by [`layer_directories`](super::layer_directories).
///
/// # Errors
/// `Cancelled`. A directory that cannot be read is a difference.
pub(crate) fn differences(
    store: &Store,
    outline: &Outline<Content>,
    dir: &Path,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<Difference>> {
    let scanned = match scan(dir, threads, &Bounds::tree(&Limits::default()), observer) {
        Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
        Err(e) => return Ok(vec![Difference { path: vec![], what: said(&e) }]),
        Ok(scanned) => scanned,
    };
    let mut names = Names::new(outline, scanned);
    names.compare();
    let Names { mut differences, files, .. } = names;
    differences.extend(contents(store, &files, threads, observer)?);
    differences.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(differences)
}

fn said(error: &Error) -> String {
    let cause = error.io_error().map_or_else(String::new, |cause| format!(": {cause}"));
    format!("it cannot be compared: {}{cause}", error.message())
}

/// What is to be at a name.
#[derive(Clone, Copy)]
enum Want {
    Directory(u32),
    /// By its first name or another one.
    Leaf(u32),
    Whiteout,
}

/// A directory to compare: its numbers in the outline and in the scan, and where it is.
type PendingDir = (u32, usize, Arc<DiskPlace>);

/// A file on disk, and the leaf it is to have the content of.
struct FileAt<'a> {
    disk: Source,
    size: u64,
    kind: &'a NodeKind<Content>,
}

struct Names<'a> {
    outline: &'a Outline<Content>,
    scan: Scan,
    /// By directory of the outline, the names in it.
    wanted: Vec<BTreeMap<&'a [u8], Want>>,
    /// Names each leaf is to have.
    links: Vec<u64>,
    /// The inode each leaf turned out to be.
    inodes: Vec<Option<(u64, u64)>>,
    files: Vec<FileAt<'a>>,
    differences: Vec<Difference>,
}

impl<'a> Names<'a> {
    fn new(outline: &'a Outline<Content>, scan: Scan) -> Self {
        let mut wanted: Vec<BTreeMap<&[u8], Want>> = vec![BTreeMap::new(); outline.dirs.len()];
        let mut links = vec![1; outline.leaves.len()];
        for (number, dir) in outline.dirs.iter().enumerate().skip(1) {
            wanted[dir.spot.dir as usize].insert(&dir.spot.name, Want::Directory(number as u32));
        }
        for (number, leaf) in outline.leaves.iter().enumerate() {
            wanted[leaf.spot.dir as usize].insert(&leaf.spot.name, Want::Leaf(number as u32));
        }
        for (spot, leaf) in &outline.links {
            wanted[spot.dir as usize].insert(&spot.name, Want::Leaf(*leaf));
            links[*leaf as usize] += 1;
        }
        for spot in &outline.whiteouts {
            wanted[spot.dir as usize].insert(&spot.name, Want::Whiteout);
        }
        let inodes = vec![None; outline.leaves.len()];
        Self { outline, scan, wanted, links, inodes, files: vec![], differences: vec![] }
    }

    fn tell(&mut self, path: &[u8], what: impl Into<String>) {
        self.differences.push(Difference { path: path.to_vec(), what: what.into() });
    }

    fn compare(&mut self) {
        let root = std::mem::take(&mut self.scan.root.xattrs);
        let root = Found { xattrs: root, name: Box::default(), kind: FoundKind::Directory(0), ..self.scan.root };
        let mut pending = vec![(0, 0, Arc::default())];
        self.directory_itself(&root, 0, &[]);
        while let Some((number, found, place)) = pending.pop() {
            self.directory(number, found, &place, &mut pending);
        }
    }

    /// The names in a directory.
    fn directory(&mut self, number: u32, found: usize, place: &Arc<DiskPlace>, pending: &mut Vec<PendingDir>) {
        let mut wanted = std::mem::take(&mut self.wanted[number as usize]);
        for found in std::mem::take(&mut self.scan.dirs[found]) {
            let path = join(&place.0, &found.name);
            match (wanted.remove(&found.name[..]), &found.kind) {
                (None, _) => self.tell(&path, "nothing was written here"),
                (Some(Want::Directory(number)), &FoundKind::Directory(at)) => {
                    self.directory_itself(&found, number, &path);
                    pending.push((number, at, Arc::new(DiskPlace(path))));
                }
                (Some(Want::Leaf(leaf)), _) => self.leaf(found, leaf, (place, &path)),
                (Some(Want::Whiteout), FoundKind::CharDevice(0, 0)) => {}
                (Some(Want::Whiteout), FoundKind::File(0, _)) if mark(&found.xattrs, b"whiteout").is_some() => {}
                (Some(Want::Whiteout), _) => self.tell(&path, "no whiteout any more"),
                (Some(Want::Directory(_)), _) => self.tell(&path, "no directory any more"),
            }
        }
        for name in wanted.into_keys() {
            self.tell(&join(&place.0, name), "it is missing");
        }
    }

    fn directory_itself(&mut self, found: &Found, number: u32, path: &[u8]) {
        let dir = &self.outline.dirs[number as usize];
        self.attributes(found, &dir.attributes, path);
        let mark = mark(&found.xattrs, b"opaque");
        // `x` stands where whiteouts are marked files.
        let right = if dir.opaque { mark == Some(b"y") } else { matches!(mark, None | Some(b"x")) };
        if !right {
            self.tell(path, "it hides other things of the layers below than it did");
        }
    }

    fn leaf(&mut self, found: Found, number: u32, (place, path): (&Arc<DiskPlace>, &[u8])) {
        let leaf = &self.outline.leaves[number as usize];
        let first = self.inodes[number as usize].is_none();
        let same_inode = *self.inodes[number as usize].get_or_insert(found.id) == found.id;
        if !same_inode || found.links != self.links[number as usize] {
            self.tell(path, "it has other names than it had");
        }
        self.attributes(&found, &leaf.attributes, path);
        let same = match (&leaf.kind, found.kind) {
            (NodeKind::File { size, .. }, FoundKind::File(there, bytes)) if *size == there => {
                // Other names of the inode have the same content.
                if first && there > 0 {
                    let (dir, place) = (self.scan.dir.clone(), place.clone());
                    let file = DiskFile { dir, place, name: found.name, size: there, bytes };
                    let disk = Source::Disk(Arc::new(file));
                    self.files.push(FileAt { disk, size: there, kind: &leaf.kind });
                }
                true
            }
            (NodeKind::Symlink { target }, FoundKind::Symlink(there)) => target[..] == there[..],
            (NodeKind::CharDevice { major, minor }, FoundKind::CharDevice(a, b))
            | (NodeKind::BlockDevice { major, minor }, FoundKind::BlockDevice(a, b)) => (*major, *minor) == (a, b),
            (NodeKind::Fifo, FoundKind::Fifo) => true,
            _ => false,
        };
        if !same {
            self.tell(path, "another type, size, target or device number than was written");
        }
    }

    fn attributes(&mut self, found: &Found, wanted: &Attributes, path: &[u8]) {
        if found.mode != wanted.mode && !matches!(found.kind, FoundKind::Symlink(_)) {
            self.tell(path, format!("mode {:o} instead of {:o}", found.mode, wanted.mode));
        }
        if (found.uid, found.gid) != (wanted.uid, wanted.gid) {
            let (uid, gid) = (found.uid, found.gid);
            self.tell(path, format!("owner {uid}:{gid} instead of {}:{}", wanted.uid, wanted.gid));
        }
        let (secs, nanos) = found.mtime;
        // Some file systems keep whole seconds only.
        if secs != wanted.mtime.secs || nanos != 0 && nanos != wanted.mtime.nanos {
            self.tell(path, "another modification time than was written");
        }
        let counts = |name: &[u8]| name != SET_BY_MODE && !is_mark(name);
        let spoken: BTreeSet<&[u8]> = wanted.xattrs.iter().map(|x| &x.name[..]).collect();
        let there = found.xattrs.iter().map(|(name, value)| (&name[..], &value[..]));
        let there = there.filter(|(name, _)| counts(name) && (spoken.contains(name) || !OF_THE_HOST.contains(name)));
        let wanted = wanted.xattrs.iter().map(|x| (&x.name[..], &x.value[..])).filter(|(name, _)| counts(name));
        if !there.eq(wanted) {
            self.tell(path, "other extended attributes than were written");
        }
    }
}

/// The name of a mark of overlayfs, whichever namespace it is in.
fn unprefixed(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay."))
}

/// Whether extraction itself sets it, and no layer may.
fn is_mark(name: &[u8]) -> bool {
    matches!(unprefixed(name), Some(b"opaque" | b"whiteout"))
}

fn mark<'x>(xattrs: &'x [RawXattr], mark: &[u8]) -> Option<&'x [u8]> {
    xattrs.iter().find(|(name, _)| unprefixed(name) == Some(mark)).map(|(_, value)| &value[..])
}

/// Compares the contents of files, several at a time.
fn contents(store: &Store, files: &[FileAt<'_>], threads: usize, observer: &dyn Observer) -> Result<Vec<Difference>> {
    let (next, told, failure) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(None));
    let work = || {
        let mut cutter = Cutter::new(&store.chunking());
        while let Some(file) = files.get(next.fetch_add(1, Relaxed)) {
            let what = check(observer).and_then(|()| same(store, &mut cutter, file, observer));
            observer.event(Event::Checked { bytes: file.size });
            let what = match what {
                Ok(true) => continue,
                Ok(false) => "its content was changed".to_owned(),
                Err(e) if e.kind() == ErrorKind::Cancelled => {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                    return next.store(files.len(), Relaxed);
                }
                Err(e) => said(&e),
            };
            let path = if let Source::Disk(disk) = &file.disk { disk.path() } else { vec![] };
            let difference = Difference { path, what };
            told.lock().unwrap_or_else(PoisonError::into_inner).push(difference);
        }
    };
    std::thread::scope(|scope| {
        (1..threads.min(files.len())).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(e),
        None => Ok(told.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

fn same(store: &Store, cutter: &mut Cutter, file: &FileAt<'_>, observer: &dyn Observer) -> Result<bool> {
    let NodeKind::File { size, sparse, content } = file.kind else { return Ok(true) };
    let stored = Source::Stored(content.clone());
    disk_has(store, cutter, &file.disk, (*size, sparse.as_deref(), &stored), observer)
}
