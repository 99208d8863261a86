//! Changes become layers: what an overlay shows is what its layer gives, and a whole copy of it gives the same layer.
//!
//! Needs root; every test runs in a mount namespace of its own.

mod support;

use layerstore::{
    Changes, CommitOptions, CreateOptions, DataRange, Digest, DriverKind, EntryKind, ImportOptions, Labels, Mount,
    Snapshotter, SnapshotterOptions, Store,
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::Arc;
use support::copy::{copy_tree, move_tree};
use support::listing::{differences, list};
use support::{Random, disk_dir, export, namespaced, noise, words};

/// All that a kernel can be told to note instead of copying.
const NOTES: &[&str] = &["redirect_dir=on", "metacopy=on"];

struct Place {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    snapshots: Snapshotter,
    copies: Snapshotter,
}

impl Place {
    fn new() -> Self {
        let dir = disk_dir();
        let store = Arc::new(Store::open(dir.path().join("store")).expect("a store"));
        let open = |driver, namespace| {
            support::layers::open(store.clone(), driver, &SnapshotterOptions::default().namespace(namespace))
        };
        let (snapshots, copies) = (open(DriverKind::Erofs, "mounts"), open(DriverKind::Copy, "copies"));
        Self { dir, store, snapshots, copies }
    }

    /// Mounts, runs `work` inside, unmounts.
    fn inside<T>(&self, mounts: &[Mount], work: impl FnOnce(&Path) -> T) -> T {
        support::inside(self.dir.path(), mounts, work)
    }

    /// Writes a snapshot `name` in an overlay with these options and commits it. Checks that its layer gives what the
    /// overlay showed, and that a copy of that gives the same layer. Returns the layer.
    fn step(&self, name: &str, parent: Option<&str>, options: &[&str], work: impl FnOnce(&Path)) -> Digest {
        let key = format!("{name}-active");
        let mut mounts = self.snapshots.prepare(&key, parent, &Labels::new(), &()).expect("prepares");
        if mounts[0].kind == "overlay" {
            mounts[0].options.extend(options.iter().map(|&option| option.to_owned()));
        }
        let copy = self.dir.path().join(format!("{name}-copy"));
        fs::create_dir(&copy).expect("made");
        let seen = self.inside(&mounts, |root| {
            work(root);
            copy_tree(root, &copy);
            list(root)
        });
        let layer = self.snapshots.commit(name, &key, &CommitOptions::default(), &()).expect("commits");
        let layer = layer.expect("a layer");
        let mounts = self.snapshots.view(&format!("{name}-view"), Some(name), &Labels::new(), &()).expect("views");
        let there = self.inside(&mounts, list);
        assert_eq!(differences(&seen, &there), [""; 0], "{name}: the layer and the overlay");
        assert_eq!(self.copied(name, parent, &layer, &copy), layer, "{name}: from a copy");
        self.elsewhere(name, &there);
        layer
    }

    /// The layer that a copy of the whole root gives.
    fn copied(&self, name: &str, parent: Option<&str>, layer: &Digest, copy: &Path) -> Digest {
        let key = format!("{name}-active");
        let mounts = self.copies.prepare(&key, parent, &Labels::new(), &()).expect("prepares");
        let root = Path::new(&mounts[0].source);
        for found in fs::read_dir(root).expect("read") {
            let path = found.expect("found").path();
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
                .expect("removed");
        }
        copy_tree(copy, root);
        let made = self.copies.commit(&format!("{name}-copied"), &key, &CommitOptions::default(), &());
        self.copies.commit_layer(name, parent, layer, &Labels::new()).expect("commits");
        made.expect("commits").expect("a layer")
    }

    /// The chain, exported and imported into another store, is the same there.
    fn elsewhere(&self, name: &str, there: &support::listing::Listing) {
        let other = Store::open(self.dir.path().join(format!("{name}-store"))).expect("a store");
        let layers = self.snapshots.layers(name, &()).expect("layers");
        for layer in &layers {
            let tar = export(&self.store, layer);
            let (import, _) = other.import_layer(&tar[..], &ImportOptions::default(), &()).expect("imports");
            assert_eq!(import.diff_id, *layer);
        }
        let options = SnapshotterOptions::default().driver(DriverKind::Erofs);
        let snapshots = Snapshotter::open(Arc::new(other), &options).expect("opens");
        let mut parent = None;
        for (n, layer) in layers.iter().enumerate() {
            let name = n.to_string();
            snapshots.commit_layer(&name, parent.as_deref(), layer, &Labels::new()).expect("commits");
            parent = Some(name);
        }
        let mounts = snapshots.view("view", parent.as_deref(), &Labels::new(), &()).expect("views");
        assert_eq!(differences(there, &self.inside(&mounts, list)), [""; 0], "{name}: elsewhere");
        snapshots.remove("view").expect("removes");
        // Nothing below is to stay mounted.
        for found in fs::read_dir(self.dir.path().join(format!("{name}-store/mounts"))).expect("read") {
            let _ = layerstore::unmount(&found.expect("found").path());
        }
    }
}

fn xattr(path: impl AsRef<Path>, name: &str, value: &[u8]) {
    setxattr(path.as_ref(), name, value, XattrFlags::empty()).expect("an attribute");
}

fn mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
}

fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).expect("written");
}

/// Something of everything.
fn base(root: &Path) {
    for dir in ["etc/conf.d", "usr/lib/deep/er", "var/log", "opt/app/data", "srv"] {
        fs::create_dir_all(root.join(dir)).expect("made");
    }
    write(root.join("etc/passwd"), "root:x:0:0\n");
    write(root.join("etc/conf.d/a"), "a");
    write(root.join("etc/conf.d/b"), "b");
    write(root.join("usr/lib/large"), noise(1, 900_000));
    write(root.join("usr/lib/deep/er/text"), words(2, 100_000));
    write(root.join("opt/app/data/one"), words(3, 3_000));
    write(root.join("opt/app/tool"), noise(4, 70_000));
    mode(root.join("opt/app/tool"), 0o4755);
    fs::hard_link(root.join("usr/lib/large"), root.join("srv/large")).expect("linked");
    fs::hard_link(root.join("etc/conf.d/a"), root.join("etc/a")).expect("linked");
    symlink("usr/lib", root.join("lib")).expect("linked");
    symlink("passwd", root.join("etc/link")).expect("linked");
    chown(root.join("var/log"), Some(7), Some(8)).expect("owned");
    xattr(root.join("opt/app/tool"), "user.note", b"n");
    xattr(root.join("opt"), "trusted.note", b"t");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr(root.join("opt/app/tool"), "security.capability", &capability);
    mknodat(CWD, root.join("srv/fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("made");
    let null = rustix::fs::makedev(1, 3);
    mknodat(CWD, root.join("srv/null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), null).expect("made");
}

#[test]
fn an_overlay_becomes_a_layer() {
    if !namespaced("an_overlay_becomes_a_layer") {
        return;
    }
    let place = Place::new();
    place.step("base", None, &[], base);
    // Once with copies and once with notes: the same changes are the same layer.
    let mut layers = Vec::new();
    for (name, options) in [("plain", &[][..]), ("notes", NOTES)] {
        layers.push(place.step(name, Some("base"), options, |root| {
            changes(root);
            settle_times(root);
        }));
    }
    assert_eq!(layers[0], layers[1]);
    place.step("top", Some("notes"), NOTES, |root| {
        fs::rename(root.join("opt/moved"), root.join("opt/again")).expect("renamed");
        mode(root.join("opt/again/tool"), 0o700);
        fs::remove_dir_all(root.join("srv")).expect("removed");
        write(root.join("srv"), "now a file");
    });
}

/// Times of what this test writes are the same every time.
fn settle_times(root: &Path) {
    let mut paths: Vec<_> = list(root).into_iter().collect();
    paths.reverse();
    let old = rustix::fs::Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: old, last_modification: old };
    for (name, _) in paths.iter().filter(|(_, line)| line.mtime.0 > 1_750_000_000) {
        let path = root.join(std::str::from_utf8(name).expect("text"));
        rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("set");
    }
}

fn changes(root: &Path) {
    // Renamed directories, within one and across.
    move_tree(&root.join("opt/app"), &root.join("opt/moved")).expect("moved");
    move_tree(&root.join("usr/lib/deep/er"), &root.join("var/er")).expect("moved");
    write(root.join("var/er/new"), "new");
    // Attributes only, of a large file too.
    mode(root.join("usr/lib/large"), 0o600);
    mode(root.join("opt/moved/data/one"), 0o640);
    // Deleted and made again: opaque.
    fs::remove_dir_all(root.join("etc/conf.d")).expect("removed");
    fs::create_dir(root.join("etc/conf.d")).expect("made");
    write(root.join("etc/conf.d/c"), "c");
    // A directory becomes a file and a file a directory.
    fs::remove_dir_all(root.join("var/log")).expect("removed");
    write(root.join("var/log"), "log");
    fs::remove_file(root.join("etc/passwd")).expect("removed");
    fs::create_dir(root.join("etc/passwd")).expect("made");
    write(root.join("etc/passwd/x"), "x");
    // New hard links, to new files and to old ones.
    write(root.join("etc/n1"), "n");
    fs::hard_link(root.join("etc/n1"), root.join("n2")).expect("linked");
    fs::hard_link(root.join("opt/moved/tool"), root.join("tool")).expect("linked");
    // In place, and through a symlink.
    File::options()
        .write(true)
        .open(root.join("srv/large"))
        .expect("opened")
        .write_all_at(b"x", 400_000)
        .expect("written");
    write(root.join("lib/through"), "t");
    fs::remove_file(root.join("etc/link")).expect("removed");
    xattr(root.join("srv"), "user.dir", b"d");
    let null = rustix::fs::makedev(1, 5);
    mknodat(CWD, root.join("zero"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), null).expect("made");
    let sparse = File::create(root.join("sparse")).expect("made");
    sparse.write_all_at(b"end", 3 << 20).expect("written");
    sparse.write_all_at(b"middle", 1 << 20).expect("written");
    sparse.set_len(5 << 20).expect("grown");
}

/// Random work in random overlays, layer upon layer: `step` compares each with what was seen and with a whole copy.
#[test]
fn random_changes_become_layers() {
    if !namespaced("random_changes_become_layers") {
        return;
    }
    let mut random = Random::new("changes");
    let mut made = 0;
    for _ in 0..6 {
        let place = Place::new();
        let mut parent: Option<String> = None;
        for depth in 0..5 {
            let name = depth.to_string();
            let notes = [&[][..], NOTES, &NOTES[..1], &NOTES[1..]][random.below(4)];
            place.step(&name, parent.as_deref(), notes, |root| {
                (0..40 + random.below(40)).for_each(|_| made += usize::from(random_change(root, &mut random)));
            });
            parent = Some(name);
        }
    }
    assert!(made > 400, "{made} changes were made");
}

/// One change of what is in `root`; whether it could be made.
fn random_change(root: &Path, random: &mut Random) -> bool {
    let path = root.join(random.path());
    let other = root.join(random.path());
    match random.below(13) {
        0 | 1 => fs::create_dir_all(&path).is_ok(),
        2 => fs::write(&path, words(random.below(9) as u64, random.below(3) * 40_000)).is_ok(),
        3 => fs::write(&path, noise(random.below(2) as u64, 70_000)).is_ok(),
        4 => File::options().write(true).open(&path).and_then(|f| f.write_all_at(b"in place", 1000)).is_ok(),
        5 => fs::remove_file(&path).is_ok(),
        6 => fs::remove_dir_all(&path).is_ok(),
        7 => fs::rename(&path, &other).is_ok(),
        // As `mv` does where a directory of a lower layer cannot be renamed.
        8 => move_tree(&path, &other).is_ok(),
        9 => fs::hard_link(&path, &other).is_ok(),
        10 => symlink(random.of(&["a", "../b", "/c/a"]), &path).is_ok(),
        11 => !path.is_symlink() && fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).is_ok(),
        _ => setxattr(&path, "user.note", &[b'0' + random.below(3) as u8], XattrFlags::empty()).is_ok(),
    }
}

/// What was opened for writing, touched back or copied up is no change.
#[test]
fn what_is_the_same_is_no_change() {
    if !namespaced("what_is_the_same_is_no_change") {
        return;
    }
    let place = Place::new();
    place.step("base", None, &[], base);
    let layer = place.step("same", Some("base"), &[], |root| {
        let before = list(root);
        let file = |name: &str| File::options().read(true).write(true).open(root.join(name)).expect("opened");
        for name in ["usr/lib/deep/er/text", "opt/app/data/one", "opt/app/tool"] {
            let time = fs::metadata(root.join(name)).expect("stat").modified().expect("a time");
            let (file, mut byte) = (file(name), [0]);
            file.read_exact_at(&mut byte, 5).expect("read");
            file.write_all_at(&byte, 5).expect("written");
            file.set_modified(time).expect("set");
        }
        mode(root.join("opt/app/tool"), 0o4755);
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        xattr(root.join("opt/app/tool"), "security.capability", &capability);
        let differ = differences(&before, &list(root));
        assert_eq!(differ, [""; 0]);
        // One byte, and the time put back.
        let changed = file("usr/lib/deep/er/text");
        let time = changed.metadata().expect("stat").modified().expect("a time");
        changed.write_all_at(b"#", 70_000).expect("written");
        changed.set_modified(time).expect("set");
    });
    let layer = place.store.layer(&layer).expect("there");
    let paths: Vec<_> = layer.entries().expect("reads").map(|e| e.expect("an entry").entry.path).collect();
    assert_eq!(paths, [b"usr/lib/deep/er/text"]);
}

/// `diff` of stored trees, to a stream and to a layer; what both have costs nothing, what moved comes from chunks.
#[test]
fn trees_of_the_store_differ() {
    if !namespaced("trees_of_the_store_differ") {
        return;
    }
    let place = Place::new();
    let base = place.step("base", None, &[], base);
    let top = place.step("top", Some("base"), NOTES, changes);
    let options = CreateOptions::default();
    let diff = |lower: &[Digest], upper: &[Digest]| place.store.diff(lower, upper, &options, &()).expect("a diff");
    // Down the layer and up again.
    assert!(diff(&[base, top], &[base, top]).is_empty());
    assert_eq!(written(&place.store, &diff(&[base], &[base, top])), top);
    let back = diff(&[base, top], &[base]);
    let (undo, stats) = place.store.create_layer(&back, &options, &()).expect("a layer");
    assert_eq!(written(&place.store, &back), undo.diff_id);
    assert_eq!(stats.new_chunks, 0, "all of it is in the store");
    assert_eq!(
        written(&place.store, &diff(&[], &[base, top, undo.diff_id])),
        written(&place.store, &diff(&[], &[base]))
    );
    let known = place.store.create_layer(&back, &options, &()).expect("a layer").0;
    assert!(known.known && known.diff_id == undo.diff_id);
}

fn written(store: &Store, changes: &Changes) -> Digest {
    let mut tar = Vec::new();
    let (diff_id, size) = store.write_layer(changes, &mut tar, &CreateOptions::default(), &()).expect("written");
    assert_eq!((Digest::of(&tar), tar.len() as u64), (diff_id, size));
    diff_id
}

/// As SOURCE_DATE_EPOCH asks: the same work at another time is the same layer.
#[test]
fn times_are_clamped() {
    if !namespaced("times_are_clamped") {
        return;
    }
    let place = Place::new();
    let make = |name: &str, parent: Option<&str>, work: fn(&Path)| {
        let mounts = place.snapshots.prepare("active", parent, &Labels::new(), &()).expect("prepares");
        place.inside(&mounts, work);
        let options = CommitOptions::default().epoch(Some(1_600_000_000));
        place.snapshots.commit(name, "active", &options, &()).expect("commits").expect("a layer")
    };
    let first = (make("a", None, base), make("b", Some("a"), changes));
    std::thread::sleep(std::time::Duration::from_millis(20));
    let second = (make("c", None, base), make("d", Some("c"), changes));
    assert_eq!(first, second);
    let root = place.store.root(&[first.0, first.1]).expect("a root");
    assert!(root.list().all(|e| e.entry.mtime.secs <= 1_600_000_000 && e.entry.mtime.nanos == 0));
}

/// As /var/log/lastlog of a user with a large id: nearly all hole. What costs anything for each byte never ends here.
#[test]
fn sparse_files_of_terabytes_cost_what_they_hold() {
    let (dir, store) = support::store();
    let store = Arc::new(store);
    let options = SnapshotterOptions::default().driver(DriverKind::Copy);
    let snapshots = Snapshotter::open(store.clone(), &options).expect("copies can always be made");
    let prepare = |key: &str, parent| {
        let mounts = snapshots.prepare(key, parent, &Labels::new(), &()).expect("prepares");
        Path::new(&mounts[0].source).to_owned()
    };
    let commit = |name: &str, key: &str| {
        let layer = snapshots.commit(name, key, &CommitOptions::default(), &()).expect("commits").expect("a layer");
        store.layer(&layer).expect("a layer")
    };
    let place = prepare("work", None);
    let file = File::create(place.join("lastlog")).expect("made");
    // The largest of these that the file system can hold: ext4 ends 4 KiB before 16 TiB.
    let sizes = [(8 << 60) - 4096, (16 << 40) - 4096, 3 << 40];
    let size = sizes.into_iter().find(|size| file.set_len(*size).is_ok()).expect("sparse files");
    file.write_all_at(&[b'x'; 292], size - 292).expect("written");
    let layer = commit("done", "work");
    assert!(layer.tar_size() < 1 << 20, "{}", layer.tar_size());
    // There and back as a tar, and read without being mounted.
    let tar = export(&store, &layer.diff_id());
    let (_other_dir, other) = support::store();
    assert_eq!(support::import(&other, &tar).diff_id, layer.diff_id());
    let root = other.root(&[layer.diff_id()]).expect("composes");
    let reader = root.open(b"lastlog").expect("a file");
    let mut end = [0; 400];
    assert_eq!((reader.size(), reader.read_at(&mut end, size - 292).expect("reads")), (size, 292));
    assert!(end[..292] == [b'x'; 292] && reader.read_at(&mut end, size / 2).expect("reads") == 400 && end == [0; 400]);
    let copied = File::create(dir.path().join("copied")).expect("made");
    assert_eq!(reader.copy_to_file(&copied, &()).expect("copied"), size);
    assert_eq!((copied.metadata().expect("there").len(), blocks(&copied) < 64), (size, true));
    let out = dir.path().join("out");
    other.extract(&[layer.diff_id()], &out, &Default::default(), &()).expect("extracts");
    let extracted = File::open(out.join("lastlog")).expect("there");
    assert_eq!((extracted.metadata().expect("there").len(), blocks(&extracted) < 64), (size, true));
    // Unchanged it is no change; changed it is one, of what it holds.
    prepare("again", Some("done"));
    assert!(commit("same", "again").is_empty());
    let place = prepare("more", Some("done"));
    let file = File::options().write(true).open(place.join("lastlog")).expect("there");
    file.write_all_at(b"y", size / 2).expect("written");
    let changed = commit("changed", "more");
    assert_eq!((changed.len(), changed.tar_size() < 1 << 20), (1, true));
    let layers = [layer.diff_id(), changed.diff_id()];
    let merged = store.diff(&layers[..1], &layers, &CreateOptions::default(), &()).expect("compares");
    assert_eq!((merged.len(), written(&store, &merged)), (1, changed.diff_id()));
}

fn blocks(file: &File) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("there"))
}

/// ext4 holds 16 TiB: the error says what the file system at hand holds.
#[test]
fn a_file_too_long_to_be_extracted_is_told() {
    let (dir, store) = support::store();
    let size = (1 << 62) + 1;
    let kind = EntryKind::File { size, sparse: Some(vec![DataRange { offset: size - 3, len: 3 }]) };
    let diff_id = support::layers::Layer::own().entry("d/long", kind, |_| (), b"end").put(&store);
    let out = dir.path().join("out");
    let fits = File::create(dir.path().join("try")).and_then(|file| file.set_len(size)).is_ok();
    match store.extract(&[diff_id], &out, &Default::default(), &()) {
        Ok(_) => assert!(fits && fs::metadata(out.join("d/long")).expect("there").len() == size),
        Err(e) => {
            assert!(!fits && e.kind() == layerstore::ErrorKind::Unsupported, "{e}");
            let (expected, actual) = e.mismatch();
            assert_eq!(actual, Some(&*size.to_string()));
            let most: u64 = expected.and_then(|e| e.split(' ').nth(2)?.parse().ok()).expect("a number");
            assert!(most < size && e.to_string().contains("d/long"), "{e}");
            assert!(!out.exists());
        }
    }
}
