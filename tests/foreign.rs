//! Layers applied to mounts that others made, against what the layers say.

mod support;

use layerstore::{Digest, EntryKind, ErrorKind, ImportOptions, Mount, Store};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use support::layers::{Layer, assert_same, everything, expected, xattr};
use support::listing::list;
use support::{Random, export, inside, namespaced, store};

/// A directory as no layer describes it.
fn implied(path: PathBuf) -> PathBuf {
    fs::create_dir(&path).expect("a new directory");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
    fs::File::open(&path).expect("it opens").set_modified(SystemTime::UNIX_EPOCH).expect("ours");
    path
}

fn mount(kind: &str, source: &Path, options: &[String]) -> Mount {
    let source = source.to_string_lossy().into_owned();
    Mount { kind: kind.into(), source, target: String::new(), options: options.to_vec() }
}

fn bind(dir: &Path) -> Vec<Mount> {
    vec![mount("bind", dir, &["rbind".into(), "rw".into()])]
}

/// As containerd's overlayfs snapshotter has them: an upper directory over others, the topmost first.
fn overlay(at: &Path, lowers: &[PathBuf]) -> Vec<Mount> {
    let (upper, work) = (implied(at.join("fs")), at.join("work"));
    fs::create_dir(&work).expect("a new directory");
    // The root that a mount shows is the upper one.
    let below = fs::metadata(&lowers[0]).expect("there");
    fs::set_permissions(&upper, below.permissions()).expect("ours");
    fs::File::open(&upper).expect("it opens").set_modified(below.modified().expect("a time")).expect("ours");
    let lowers: Vec<_> = lowers.iter().map(|lower| lower.display().to_string()).collect();
    let lower = format!("lowerdir={}", lowers.join(":"));
    let dirs = [format!("workdir={}", work.display()), format!("upperdir={}", upper.display()), lower];
    vec![mount("overlay", Path::new("overlay"), &[vec!["index=off".into()], dirs.to_vec()].concat())]
}

/// A layer of the store again, as a blob.
fn apply(from: &Store, to: &Store, mounts: &[Mount], layer: &Digest) {
    let tar = export(from, layer);
    let options = ImportOptions::default().expected_diff_id(*layer);
    let applied = to.apply_to(mounts, &tar[..], &options, false, &()).expect("applies");
    assert_eq!(applied.diff_id, *layer);
}

/// Changes of every kind to [`everything`].
fn changes(store: &Store) -> Digest {
    let mut layer = Layer::new();
    let kind = EntryKind::File { size: 1, sparse: None };
    layer.dir("d", 0o700).file("d/closed/g", b"more").file("g", b"a file for a directory").dir("same", 0o755);
    layer.file("same/in", b"it").file(".wh.big", b"").file("n/.wh.o", b"").file("xd/.wh..wh..opq", b"");
    layer.file("xd/new", b"n").symlink("empty", "d").file("twice", b"another").file("e-link", b"apart");
    // To lower files: one that keeps its attributes would need its header to repeat them.
    layer.entry("linked", EntryKind::Hardlink { target: b"suid".to_vec() }, |e| e.mode = 0o600, &[]);
    layer.hardlink("z-other", "z-link").entry("a-link", kind, |e| e.xattrs = vec![xattr("user.n", b"1")], b"x");
    layer.put(store)
}

fn chains(store: &Store) -> Vec<Vec<Digest>> {
    let mut chains = vec![vec![everything(store), changes(store)]];
    let mut random = Random::new("foreign");
    while chains.len() < 20 {
        let import =
            |tar: Vec<u8>| store.import_layer(&tar[..], &ImportOptions::default(), &()).map(|(l, _)| l.diff_id);
        let layers: Result<Vec<_>, _> = (0..3).map(|_| import(Layer::random(&mut random).tar())).collect();
        // Some link to nothing or to directories, or need a directory where a file is.
        chains.extend(layers.ok().filter(|layers| store.root(layers).is_ok()));
    }
    chains
}

#[test]
fn layers_onto_one_directory() {
    if !namespaced("layers_onto_one_directory") {
        return;
    }
    let (_from, from) = store();
    let disk = support::disk_dir();
    let (_to, to) = store();
    for (number, chain) in chains(&from).iter().enumerate() {
        let dir = implied(disk.path().join(number.to_string()));
        for count in 1..=chain.len() {
            apply(&from, &to, &bind(&dir), &chain[count - 1]);
            assert_same(&expected(&from, &chain[..count]), &list(&dir));
        }
    }
}

#[test]
fn layers_onto_overlays() {
    if !namespaced("layers_onto_overlays") {
        return;
    }
    let (_from, from) = store();
    let disk = support::disk_dir();
    let (_to, to) = store();
    for (number, chain) in chains(&from).iter().enumerate() {
        let at = |layer: usize| disk.path().join(format!("{number}-{layer}"));
        fs::create_dir(at(0)).expect("a new directory");
        let mut lowers = vec![implied(at(0).join("fs"))];
        apply(&from, &to, &bind(&lowers[0]), &chain[0]);
        for count in 2..=chain.len() {
            fs::create_dir(at(count)).expect("a new directory");
            let mounts = overlay(&at(count), &lowers);
            apply(&from, &to, &mounts, &chain[count - 1]);
            inside(disk.path(), &mounts, |dir| assert_same(&expected(&from, &chain[..count]), &list(dir)));
            lowers.insert(0, at(count).join("fs"));
        }
    }
}

/// What was there with owners, modes and attributes of its own has those of the layer afterwards, and no others.
#[test]
fn directories_that_are_there_take_the_layers_attributes() {
    if !namespaced("directories_that_are_there_take_the_layers_attributes") {
        return;
    }
    let (_dir, store) = store();
    let disk = support::disk_dir();
    let dir = implied(disk.path().join("tree"));
    let kept = implied(dir.join("kept"));
    let there = implied(dir.join("there"));
    std::os::unix::fs::chown(&there, Some(5), Some(6)).expect("root");
    fs::set_permissions(&there, fs::Permissions::from_mode(0o2777)).expect("ours");
    rustix::fs::setxattr(&there, "user.old", b"1", rustix::fs::XattrFlags::empty()).expect("set");
    rustix::fs::setxattr(&kept, "user.old", b"1", rustix::fs::XattrFlags::empty()).expect("set");
    std::os::unix::fs::chown(&kept, Some(7), Some(8)).expect("root");
    let layer = Layer::new().dir("there", 0o700).file("there/f", b"f").file("kept/f", b"f").tar();
    store.apply_to(&bind(&dir), &layer[..], &ImportOptions::default(), true, &()).expect("applies");
    let (there, kept) = (&list(&dir)[&b"there"[..]], &list(&dir)[&b"kept"[..]]);
    assert_eq!((there.mode & 0o7777, there.uid, there.gid, there.xattrs.len()), (0o700, 0, 0, 0));
    assert_eq!((kept.mode & 0o7777, kept.uid, kept.gid, kept.xattrs.len()), (0o755, 7, 8, 1));
    assert_eq!(kept.mtime, (0, 0), "what is added to a directory does not change it");
}

#[test]
fn nothing_is_changed_by_a_layer_that_is_not_what_it_should_be() {
    let (_dir, store) = store();
    let disk = support::disk_dir();
    let dir = implied(disk.path().join("tree"));
    let tar = Layer::own().file("f", b"f").tar();
    let options = ImportOptions::default().expected_blob(Digest::of(b"another"));
    let e = store.apply_to(&bind(&dir), &tar[..], &options, false, &()).expect_err("not that blob");
    assert_eq!((e.kind(), fs::read_dir(&dir).expect("there").count()), (ErrorKind::InvalidInput, 0));
    for mounts in [
        vec![],
        vec![mount("ext4", &dir, &[])],
        vec![mount("bind", &dir, &["ro".into()])],
        [bind(&dir), bind(&dir)].concat(),
    ] {
        let e = store.apply_to(&mounts, &tar[..], &ImportOptions::default(), false, &()).expect_err("not such mounts");
        assert_eq!(e.kind(), ErrorKind::Unsupported);
    }
    assert_eq!(fs::metadata(&dir).expect("there").mtime(), 0);
    assert!(store.layers().expect("lists").is_empty(), "what is not applied is not imported");
}

/// The layer of a known blob is not read again, and gc takes it when nothing else has it.
#[test]
fn a_known_blob_is_not_read() {
    if !namespaced("a_known_blob_is_not_read") {
        return;
    }
    let (_dir, store) = store();
    let disk = support::disk_dir();
    let (first, second) = (implied(disk.path().join("1")), implied(disk.path().join("2")));
    let tar = Layer::new().file("f", b"f").tar();
    let blob = Digest::of(&tar);
    assert!(store.apply_known_to(&bind(&first), &blob, false, &()).expect("answers").is_none());
    store.apply_to(&bind(&first), &tar[..], &ImportOptions::default(), false, &()).expect("applies");
    let known = store.apply_known_to(&bind(&second), &blob, false, &()).expect("applies");
    assert_eq!(known.expect("it is known").diff_id, blob);
    assert_same(&list(&first), &list(&second));
    let plan = store.gc_plan(&Default::default(), &()).expect("plans");
    store.gc(&plan, &Default::default(), &()).expect("collects");
    assert!(store.layers().expect("lists").is_empty());
}
