//! Directories into layers: what cannot become one is passed over, and keeps nothing else.

mod support;

use layerstore::{Absorbed, CommitOptions, DriverKind, ErrorKind, Labels, Snapshotter, SnapshotterOptions, Store};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::namespaced;

/// What is wrong with a directory, the kind of the error, and how to make it.
type Bad = (&'static str, ErrorKind, fn(&Path));

const BAD: [Bad; 2] = [
    ("a name that a layer cannot hold", ErrorKind::InvalidInput, |root| {
        fs::write(root.join(".wh.x"), "x").expect("written");
    }),
    ("directories deeper than a layer can hold", ErrorKind::LimitExceeded, |root| {
        fs::create_dir_all(root.join("d/".repeat(1_100))).expect("made");
    }),
];

fn open(dir: &Path, driver: DriverKind) -> Snapshotter {
    let store = Arc::new(Store::open(dir.join("store")).expect("a store"));
    Snapshotter::open(store, &SnapshotterOptions::default().driver(driver)).expect("the driver works here")
}

/// A committed snapshot whose directory is a directory yet, with what `write` makes in it.
fn adopt(snapshots: &Snapshotter, name: &str, parent: Option<&str>, write: impl FnOnce(&Path)) {
    let key = format!("{name}-active");
    let mounts = snapshots.prepare(&key, parent, &Labels::new(), &()).expect("prepares");
    let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
    write(&PathBuf::from(upper.unwrap_or(&mounts[0].source)));
    snapshots.commit(name, &key, &CommitOptions::default().deferred(true), &()).expect("commits");
}

fn directories(dir: &Path) -> usize {
    fs::read_dir(dir.join("store/snapshots")).expect("a directory").count()
}

fn outcome(done: &Absorbed) -> (u64, Vec<ErrorKind>, u64) {
    (done.layers, done.failed.iter().map(|failure| failure.error.kind()).collect(), done.waiting)
}

#[test]
fn what_cannot_become_a_layer_keeps_only_what_stands_on_it() {
    if !namespaced("what_cannot_become_a_layer_keeps_only_what_stands_on_it") {
        return;
    }
    for (what, kind, write) in BAD {
        let dir = support::disk_dir();
        let snapshots = open(dir.path(), DriverKind::Overlay);
        adopt(&snapshots, "bad", None, write);
        adopt(&snapshots, "on-bad", Some("bad"), |root| fs::write(root.join("f"), "f").expect("written"));
        adopt(&snapshots, "fine", None, |root| fs::write(root.join("g"), "g").expect("written"));
        adopt(&snapshots, "on-fine", Some("fine"), |root| fs::write(root.join("h"), "h").expect("written"));
        adopt(&snapshots, "on-on-bad", Some("on-bad"), |_| {});

        let done = snapshots.absorb(&()).expect("passes over it");
        assert_eq!(outcome(&done), (2, vec![kind], 2), "{what}: {done:?}");
        assert_eq!(done.failed[0].error.subjects().first().map(String::as_str), Some("snapshot bad"), "{what}");
        assert_eq!(snapshots.layers("on-fine", &()).expect("layers").len(), 2, "{what}");
        snapshots.cleanup().expect("cleans");
        assert_eq!(directories(dir.path()), 3, "{what}: those that are no layers are left");

        // Another process finds the same; whoever knows of it does not try again.
        let failed = done.failed[0].number;
        drop(snapshots);
        let snapshots = open(dir.path(), DriverKind::Overlay);
        assert_eq!(outcome(&snapshots.absorb(&()).expect("passes over it")), (0, vec![kind], 2), "{what}");
        let done = snapshots.absorb_except(|n| n == failed, &()).expect("leaves it");
        assert_eq!(outcome(&done), (0, vec![], 2), "{what}");

        for key in ["on-on-bad", "on-bad", "bad"] {
            snapshots.remove(key).expect("removes");
        }
        snapshots.cleanup().expect("cleans");
        assert_eq!(directories(dir.path()), 0, "{what}");
        assert_eq!(outcome(&snapshots.absorb(&()).expect("has nothing to do")), (0, vec![], 0), "{what}");
    }
}

/// A snapshot that was put on a parent with a higher number is absorbed after it.
#[test]
fn a_parent_that_is_younger_than_its_child_goes_first() {
    if !namespaced("a_parent_that_is_younger_than_its_child_goes_first") {
        return;
    }
    let dir = support::disk_dir();
    let snapshots = open(dir.path(), DriverKind::Overlay);
    let mounts = snapshots.prepare("child-active", None, &Labels::new(), &()).expect("prepares");
    fs::write(Path::new(&mounts[0].source).join("f"), "f").expect("written");
    adopt(&snapshots, "young", None, |root| fs::write(root.join(".wh.x"), "x").expect("written"));
    let options = CommitOptions::default().deferred(true).parent("young");
    snapshots.commit("child", "child-active", &options, &()).expect("commits");
    let done = snapshots.absorb(&()).expect("passes over it");
    assert_eq!(outcome(&done), (0, vec![ErrorKind::InvalidInput], 1), "{done:?}");
    assert_eq!(done.failed[0].error.subjects().first().map(String::as_str), Some("snapshot young"));
}

/// One directory that cannot be moved away keeps none of the others.
#[test]
fn cleaning_up_goes_on_after_a_failure() {
    if !namespaced("cleaning_up_goes_on_after_a_failure") {
        return;
    }
    let dir = support::disk_dir();
    let snapshots = open(dir.path(), DriverKind::Overlay);
    for key in ["a", "b", "c"] {
        snapshots.prepare(key, None, &Labels::new(), &()).expect("prepares");
        snapshots.remove(key).expect("removes");
    }
    // A directory that is in use as a mount point cannot be renamed. The mount is of nothing in the store.
    let stuck = dir.path().join("store/snapshots/2");
    rustix::mount::mount("none", &stuck, "tmpfs", rustix::mount::MountFlags::empty(), None).expect("mounts");
    let done = snapshots.cleanup();
    rustix::mount::unmount(&stuck, rustix::mount::UnmountFlags::empty()).expect("unmounts");
    assert_eq!(directories(dir.path()), 1, "{done:?}");
    snapshots.cleanup().expect("cleans");
    assert_eq!(directories(dir.path()), 0);
}
