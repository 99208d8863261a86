//! All there is to a tree on disk, to compare trees by.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A name of a tree with its inode's attributes and a hash of its content.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// File type and permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// 0 for directories, whose size is the file system's affair.
    pub(crate) size: u64,
    pub(crate) rdev: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// The first name, by bytes, of the same inode.
    pub(crate) first: Vec<u8>,
    /// Hash of a file's content, or a symlink's target.
    pub(crate) content: Vec<u8>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, nanos) = self.mtime;
        write!(f, "{:o} {}:{} {} rdev {} {secs}.{nanos:09}", self.mode, self.uid, self.gid, self.size, self.rdev)?;
        for (name, value) in &self.xattrs {
            write!(f, " {name}={}", value.escape_ascii())?;
        }
        let head = &self.content[..self.content.len().min(8)];
        write!(f, " first {} content {}", self.first.escape_ascii(), head.escape_ascii())
    }
}

pub(crate) type Listing = BTreeMap<Vec<u8>, Line>;

/// Lists the tree below `root`, the root itself as the empty path.
pub(crate) fn list(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut firsts: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).expect("stat");
        let name = path.strip_prefix(root).expect("below the root").as_os_str().as_bytes().to_vec();
        let mut content = Vec::new();
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).expect("read directory").map(|found| found.expect("found").path()));
        } else if meta.is_symlink() {
            content = fs::read_link(&path).expect("read link").as_os_str().as_bytes().to_vec();
        } else if meta.is_file() {
            content = hash(&path);
        }
        let first = firsts.entry((meta.dev(), meta.ino())).or_insert_with(|| name.clone());
        if name < *first {
            *first = name.clone();
        }
        let line = Line {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            size: if meta.is_dir() { 0 } else { meta.size() },
            rdev: meta.rdev(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            xattrs: xattrs(&path),
            // The inode for now: the first name is known at the end.
            first: format!("{}:{}", meta.dev(), meta.ino()).into_bytes(),
            content,
        };
        listing.insert(name, line);
    }
    let by_text: BTreeMap<Vec<u8>, Vec<u8>> =
        firsts.into_iter().map(|((dev, ino), first)| (format!("{dev}:{ino}").into_bytes(), first)).collect();
    for line in listing.values_mut() {
        line.first = by_text[&line.first].clone();
    }
    listing
}

fn hash(path: &Path) -> Vec<u8> {
    let mut file = fs::File::open(path).expect("open");
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer).expect("read") {
            0 => return hasher.finalize().as_bytes().to_vec(),
            len => drop(hasher.update(&buffer[..len])),
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..len].split(|&b| b == 0).filter(|name| !name.is_empty());
    names
        .filter(|name| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."))
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("an attribute");
            value.truncate(len);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

/// What differs, a line each; `expected` first.
pub(crate) fn differences(expected: &Listing, actual: &Listing) -> Vec<String> {
    let mut out = Vec::new();
    for (name, line) in expected {
        match actual.get(name) {
            None => out.push(format!("{}: missing", name.escape_ascii())),
            Some(other) if other != line => out.push(format!("{}: {line:?} is {other:?}", name.escape_ascii())),
            Some(_) => {}
        }
    }
    let new = actual.keys().filter(|name| !expected.contains_key(*name));
    out.extend(new.map(|name| format!("{}: not expected", name.escape_ascii())));
    out
}
