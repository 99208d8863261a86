//! Layers written down in tests, and what they are to look like when mounted or extracted.

use super::listing::{Line, Listing, differences};
use super::{Random, import, needs, noise, words};
use layerstore::{
    DataRange, Digest, DriverKind, Entry, EntryKind, ErrorKind, Labels, Limits, Snapshotter, SnapshotterOptions, Store,
    TarWriter, Time, Xattr,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A layer being written down.
pub(crate) struct Layer {
    tar: TarWriter<Vec<u8>>,
    owner: (u32, u32),
}

impl Layer {
    pub(crate) fn new() -> Self {
        Self { tar: TarWriter::new(vec![], &Limits::default()), owner: (0, 0) }
    }

    /// A layer whose entries belong to whoever runs the test.
    pub(crate) fn own() -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { owner, ..Self::new() }
    }

    pub(crate) fn entry(
        &mut self,
        path: &str,
        kind: EntryKind,
        change: impl FnOnce(&mut Entry),
        content: &[u8],
    ) -> &mut Self {
        let (mode, mtime) = (0o644, Time { secs: 1_600_000_000 + path.len() as i64, nanos: 123_456_789 });
        let (uid, gid) = self.owner;
        let mut entry = Entry { path: path.into(), kind, mode, uid, gid, mtime, xattrs: vec![] };
        change(&mut entry);
        self.tar.entry(&entry).expect("a good entry");
        self.tar.content(content).expect("the entry's content");
        self
    }

    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        let kind = EntryKind::File { size: content.len() as u64, sparse: None };
        self.entry(path, kind, |_| (), content)
    }

    pub(crate) fn dir(&mut self, path: &str, mode: u16) -> &mut Self {
        self.entry(path, EntryKind::Directory, |e| e.mode = mode, &[])
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, EntryKind::Symlink { target: target.into() }, |e| e.mode = 0o777, &[])
    }

    pub(crate) fn hardlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, EntryKind::Hardlink { target: target.into() }, |_| (), &[])
    }

    /// A layer over a few names, so that they collide with those of other layers.
    pub(crate) fn random(random: &mut Random) -> Self {
        let mut layer = Self::new();
        for _ in 0..random.below(9) {
            let path = random.path();
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let in_dir = |name: String| if dir.is_empty() { name } else { format!("{dir}/{name}") };
            match random.below(12) {
                0..3 => drop(layer.file(&path, &words(random.below(3) as u64, 10 + random.below(2) * 100_000))),
                3..6 => drop(layer.dir(&path, [0o755, 0o700][random.below(2)])),
                6 => drop(layer.symlink(&path, random.of(&["a", "../b", "/c", "b/a"]))),
                7 => {
                    let target = random.path();
                    if target != path {
                        layer.hardlink(&path, &target);
                    }
                }
                8 => drop(layer.entry(&path, EntryKind::CharDevice { major: 1, minor: 3 }, |_| (), &[])),
                9 | 10 => drop(layer.file(&in_dir(format!(".wh.{name}")), b"")),
                _ => drop(layer.file(&in_dir(".wh..wh..opq".into()), b"")),
            }
        }
        layer
    }

    /// Its tar; what is written after that is another layer.
    pub(crate) fn tar(&mut self) -> Vec<u8> {
        let empty = TarWriter::new(vec![], &Limits::default());
        std::mem::replace(&mut self.tar, empty).finish().expect("writing to memory")
    }

    /// Imports it.
    pub(crate) fn put(&mut self, store: &Store) -> Digest {
        import(store, &self.tar()).diff_id
    }
}

pub(crate) fn xattr(name: &str, value: &[u8]) -> Xattr {
    Xattr { name: name.into(), value: value.into() }
}

/// One of everything; needs root to be what it says.
pub(crate) fn everything(store: &Store) -> Digest {
    let mut layer = Layer::new();
    layer.dir("", 0o750).dir("d", 0o1777).dir("d/closed", 0o000).file("d/closed/f", b"inside").dir("g", 0o2755);
    layer.file("g/small", b"s").file("empty", b"").file("same", b"s").file("big", &words(1, 700_000));
    layer.file("twice", &noise(2, 500_000)).file("d/twice", &noise(2, 500_000)).file("chunk", &noise(3, 70_000));
    layer.hardlink("z-link", "big").symlink("s", "/etc/passwd").symlink("dangling", "../../nowhere");
    layer.hardlink("s-link", "s").hardlink("e-link", "empty");
    let kind = |content: &[u8]| EntryKind::File { size: content.len() as u64, sparse: None };
    layer.entry("suid", kind(b"x"), |e| (e.mode, e.uid, e.gid) = (0o6755, 5, 6), b"x");
    layer.entry("read-only", kind(b"x"), |e| (e.mode, e.xattrs) = (0o444, vec![xattr("user.a", b"1")]), b"x");
    layer.entry("closed", kind(b"x"), |e| (e.mode, e.uid) = (0, 4_000_000_000), b"x");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattrs = vec![xattr("security.capability", &capability), xattr("trusted.t", &[0, 1, 255])];
    layer.entry("capable", kind(b"x"), |e| (e.uid, e.xattrs) = (7, xattrs), b"x");
    layer.entry("early", kind(b"x"), |e| e.mtime = Time { secs: -1_000_000_000, nanos: 5 }, b"x");
    layer.entry("xd", EntryKind::Directory, |e| (e.mode, e.xattrs) = (0o700, vec![xattr("user.d", b"v")]), &[]);
    let link = EntryKind::Symlink { target: b"t".to_vec() };
    layer.entry("xs", link, |e| (e.uid, e.mode, e.xattrs) = (9, 0o777, vec![xattr("trusted.s", b"v")]), &[]);
    layer.entry("null", EntryKind::CharDevice { major: 1, minor: 3 }, |e| e.mode = 0o666, &[]);
    layer.entry("disk", EntryKind::BlockDevice { major: 259, minor: 70_000 }, |e| e.gid = 6, &[]);
    layer.entry("pipe", EntryKind::Fifo, |e| e.mode = 0o622, &[]).hardlink("null-link", "null");
    let ranges = vec![DataRange { offset: 8192, len: 100_000 }, DataRange { offset: 1 << 30, len: 4096 }];
    let sparse = EntryKind::File { size: (1 << 30) + 10_000, sparse: Some(ranges) };
    layer.entry("sparse", sparse, |_| (), &noise(4, 104_096));
    layer.entry("hole", EntryKind::File { size: 1 << 20, sparse: Some(vec![]) }, |_| (), &[]);
    layer.file("\u{1}name\\ \u{fc}", b"odd name").file("n/o/parents", b"implied");
    layer.put(store)
}

/// What extracting the layers should give.
pub(crate) fn expected(store: &Store, layers: &[Digest]) -> Listing {
    let root = store.root(layers).expect("the layers fit");
    let mut listing = Listing::new();
    // Where no layer describes the root.
    let (xattrs, mtime) = (BTreeMap::new(), (0, 0));
    let implied =
        Line { mode: 0o040_755, uid: 0, gid: 0, size: 0, rdev: 0, mtime, xattrs, first: vec![], content: vec![] };
    listing.insert(vec![], implied);
    for entry in root.list() {
        let Entry { path, kind, mode, uid, gid, mtime, xattrs } = entry.entry;
        let device = |major, minor| rustix::fs::makedev(major, minor);
        let (format, size, rdev, content) = match &kind {
            EntryKind::Directory => (0o040_000, 0, 0, vec![]),
            EntryKind::File { size, .. } => {
                let mut hasher = blake3::Hasher::new();
                root.open(&path).expect("a file").copy_to(&mut hasher).expect("its content");
                (0o100_000, *size, 0, hasher.finalize().as_bytes().to_vec())
            }
            EntryKind::Symlink { target } => (0o120_000, target.len() as u64, 0, target.clone()),
            EntryKind::CharDevice { major, minor } => (0o020_000, 0, device(*major, *minor), vec![]),
            EntryKind::BlockDevice { major, minor } => (0o060_000, 0, device(*major, *minor), vec![]),
            EntryKind::Fifo => (0o010_000, 0, 0, vec![]),
            EntryKind::Hardlink { target } => {
                let line = listing.get(target).expect("links follow what they link to").clone();
                listing.insert(path, line);
                continue;
            }
        };
        let xattrs: BTreeMap<_, _> =
            xattrs.into_iter().map(|x| (String::from_utf8_lossy(&x.name).into_owned(), x.value)).collect();
        let mtime = (mtime.secs, i64::from(mtime.nanos));
        let first = path.clone();
        listing
            .insert(path, Line { mode: format | u32::from(mode), uid, gid, size, rdev, mtime, xattrs, first, content });
    }
    listing
}

pub(crate) fn assert_same(expected: &Listing, actual: &Listing) {
    let found = differences(expected, actual);
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n"));
}

/// A snapshotter of the store at `root`.
pub(crate) fn snapshotter(root: &Path, driver: DriverKind) -> Snapshotter {
    let store = Arc::new(Store::open(root).expect("a store"));
    open(store, driver, &SnapshotterOptions::default())
}

/// A snapshotter with this driver. Where the kernel or the file system cannot serve the driver, the test leaves off.
pub(crate) fn open(store: Arc<Store>, driver: DriverKind, options: &SnapshotterOptions) -> Snapshotter {
    let lack = lacks(driver, store.path());
    Snapshotter::open(store, &options.clone().driver(driver)).unwrap_or_else(|e| match lack {
        Some(lack) => needs::leave_off(lack),
        None => panic!("the driver works here: {e:?}"),
    })
}

/// What the kernel or the file system at `dir` lacks for a driver, found out without the library.
pub(crate) fn lacks(driver: DriverKind, dir: &Path) -> Option<String> {
    use rustix::mount::{FsOpenFlags, fsopen};
    const OVERLAY: i64 = 0x794c_7630;
    const TMPFS: i64 = 0x0102_1994;
    let kinds: &[&str] = match driver {
        DriverKind::Copy => &[],
        DriverKind::Overlay => &["overlay"],
        _ => &["erofs", "overlay"],
    };
    for kind in kinds {
        if let Err(e) = fsopen(*kind, FsOpenFlags::FSOPEN_CLOEXEC) {
            return Some(format!("a kernel that mounts {kind}: {e}"));
        }
    }
    let disk = rustix::fs::statfs(dir).expect("a directory").f_type as i64;
    if !kinds.is_empty() && disk == OVERLAY {
        return Some("target/ on a disk file system, not on an overlay".into());
    }
    if kinds.contains(&"erofs") {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (6, 12) {
            return Some(format!("Linux 6.12, which mounts EROFS images from files; this is {release}"));
        }
        if disk == TMPFS {
            return Some("target/ on a disk file system, not on tmpfs".into());
        }
    }
    None
}

/// Committed snapshots of the layers; the topmost one's name.
pub(crate) fn commit_chain(snapshots: &Snapshotter, layers: &[Digest]) -> String {
    let mut top = None;
    for count in 1..=layers.len() {
        let name = Digest::chain_of(&layers[..count]).expect("not empty").to_string();
        match snapshots.commit_layer(&name, top.as_deref(), &layers[count - 1], &Labels::new()) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => panic!("{e}"),
            _ => top = Some(name),
        }
    }
    top.expect("not empty")
}
