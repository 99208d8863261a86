//! The snapshotter's contract, after containerd's `core/snapshots/testsuite`: the same for every driver.
//!
//! Needs root; every test runs in a mount namespace of its own.

mod support;
#[path = "snapshots/surroundings.rs"]
mod surroundings;

use layerstore::{
    CommitOptions, Digest, DriverKind, ErrorKind, Labels, Mount, SnapshotInfo, SnapshotKind, Snapshotter,
    SnapshotterOptions, Store,
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::copy::set_times;
use support::layers::{Layer, assert_same, commit_chain, expected};
use support::listing::list;
use support::{inside, names, namespaced};

const DRIVERS: [DriverKind; 3] = [DriverKind::Erofs, DriverKind::Overlay, DriverKind::Copy];

/// A store on a disk file system (EROFS images cannot be mounted from tmpfs) and a place to mount.
struct Place {
    dir: tempfile::TempDir,
    snapshots: Snapshotter,
}

impl Place {
    fn new(driver: DriverKind) -> Self {
        let dir = support::disk_dir();
        let snapshots = open(dir.path(), driver, "test");
        Self { dir, snapshots }
    }

    /// Mounts, runs `work` inside, unmounts.
    fn inside<T>(&self, mounts: &[Mount], work: impl FnOnce(&Path) -> T) -> T {
        support::inside(self.dir.path(), mounts, work)
    }

    fn prepare(&self, key: &str, parent: Option<&str>) -> Vec<Mount> {
        self.snapshots.prepare(key, parent, &Labels::new(), &()).expect("prepares")
    }

    fn commit(&self, name: &str, key: &str, deferred: bool) -> Option<Digest> {
        self.snapshots.commit(name, key, &CommitOptions::default().deferred(deferred), &()).expect("commits")
    }

    /// A committed snapshot with what `work` wrote.
    fn write(&self, name: &str, parent: Option<&str>, deferred: bool, work: impl FnOnce(&Path)) {
        let key = format!("{name}-active");
        let mounts = self.prepare(&key, parent);
        self.inside(&mounts, work);
        self.commit(name, &key, deferred);
    }

    fn view<T>(&self, parent: &str, work: impl FnOnce(&Path) -> T) -> T {
        let key = format!("{parent}-view");
        let mounts = self.snapshots.view(&key, Some(parent), &Labels::new(), &()).expect("views");
        let out = self.inside(&mounts, work);
        self.snapshots.remove(&key).expect("removes");
        out
    }
}

fn open(dir: &Path, driver: DriverKind, namespace: &str) -> Snapshotter {
    let store = Arc::new(Store::open(dir.join("store")).expect("a store"));
    let options = SnapshotterOptions::default().namespace(namespace);
    support::layers::open(store, driver, &options)
}

fn kind<T>(result: layerstore::Result<T>) -> ErrorKind {
    result.err().expect("must fail").kind()
}

/// The drivers that this machine can serve; it says which are left out.
fn there() -> impl Iterator<Item = DriverKind> {
    let dir = support::disk_dir();
    DRIVERS.into_iter().filter(move |driver| match support::layers::lacks(*driver, dir.path()) {
        Some(lack) => support::needs::skip(&format!("driver {driver}"), lack),
        None => true,
    })
}

/// Runs a test for every driver.
fn each(work: impl Fn(&Place)) {
    for driver in there() {
        let place = Place::new(driver);
        assert_eq!(place.snapshots.driver(), driver);
        work(&place);
    }
}

fn base(root: &Path) {
    fs::create_dir_all(root.join("a/b")).expect("made");
    fs::write(root.join("a/f"), "one").expect("written");
    fs::write(root.join("a/b/g"), vec![7; 200_000]).expect("written");
    fs::write(root.join("gone"), "gone").expect("written");
    symlink("a/f", root.join("link")).expect("linked");
    fs::hard_link(root.join("a/f"), root.join("a/hard")).expect("linked");
    fs::set_permissions(root.join("a/f"), fs::Permissions::from_mode(0o4711)).expect("set");
}

fn change(root: &Path) {
    // Written anew: writing in place would go to the other name too, but not where an overlay copies up.
    fs::remove_file(root.join("a/f")).expect("removed");
    fs::write(root.join("a/f"), "two").expect("written");
    fs::set_permissions(root.join("a/hard"), fs::Permissions::from_mode(0o2711)).expect("set");
    fs::remove_file(root.join("gone")).expect("removed");
    fs::remove_dir_all(root.join("a/b")).expect("removed");
    fs::create_dir(root.join("a/b")).expect("made");
    fs::write(root.join("a/b/new"), "new").expect("written");
    fs::rename(root.join("link"), root.join("moved")).expect("renamed");
}

fn check_changed(root: &Path) {
    assert_eq!(fs::read_to_string(root.join("a/f")).expect("read"), "two");
    assert!(!root.join("gone").exists() && !root.join("a/b/g").exists() && !root.join("link").exists());
    assert_eq!(fs::read_to_string(root.join("a/b/new")).expect("read"), "new");
    assert_eq!(fs::read_link(root.join("moved")).expect("read"), Path::new("a/f"));
    assert_eq!(fs::read_to_string(root.join("a/hard")).expect("read"), "one");
    assert_eq!(fs::metadata(root.join("a/hard")).expect("hard").mode() & 0o7777, 0o2711);
}

#[test]
fn changes_become_layers() {
    if !namespaced("changes_become_layers") {
        return;
    }
    for deferred in [false, true] {
        each(|place| {
            place.write("base", None, deferred, base);
            place.write("top", Some("base"), deferred, change);
            place.view("top", check_changed);
            place.view("base", |root| {
                assert_eq!(fs::read(root.join("a/b/g")).expect("read"), vec![7; 200_000]);
                assert_eq!(fs::metadata(root.join("a/f")).expect("f").mode() & 0o7777, 0o4711);
                assert!(fs::write(root.join("a/x"), "x").is_err(), "a view is read-only");
            });
            // Absorbing changes nothing that can be seen, and cleanup frees the directories.
            let done = place.snapshots.absorb(&()).expect("absorbs");
            assert!(done.failed.is_empty(), "{done:?}");
            place.snapshots.cleanup().expect("cleans");
            let left = fs::read_dir(place.dir.path().join("store/snapshots")).expect("read").count();
            assert_eq!(left, 0, "{:?}", place.snapshots.driver());
            place.view("top", check_changed);
            assert_eq!(place.snapshots.layers("top", &()).expect("layers").len(), 2);
        });
    }
}

/// The same change gives the same layer whatever the driver.
#[test]
fn drivers_agree_on_layers() {
    if !namespaced("drivers_agree_on_layers") {
        return;
    }
    let layers = DRIVERS.map(|driver| {
        let place = Place::new(driver);
        place.write("base", None, false, |root| {
            base(root);
            still(root);
        });
        place.write("top", Some("base"), false, |root| {
            change(root);
            still(root);
        });
        place.snapshots.layers("top", &()).expect("layers")
    });
    assert_eq!(layers[0], layers[1]);
    assert_eq!(layers[0], layers[2]);
}

/// Gives all below `root` one time.
fn still(root: &Path) {
    set_times(root, 1_700_000_000, 500_000_000);
}

#[test]
fn errors_are_containerds() {
    if !namespaced("errors_are_containerds") {
        return;
    }
    each(|place| {
        let s = &place.snapshots;
        let none = Labels::new();
        place.write("base", None, false, base);
        place.prepare("active", Some("base"));
        s.view("view", Some("base"), &none, &()).expect("views");
        let default = CommitOptions::default();

        assert_eq!(kind(s.prepare("active", None, &none, &())), ErrorKind::AlreadyExists);
        assert_eq!(kind(s.prepare("base", None, &none, &())), ErrorKind::AlreadyExists);
        assert_eq!(kind(s.view("active", None, &none, &())), ErrorKind::AlreadyExists);
        assert_eq!(kind(s.prepare("new", Some("unknown"), &none, &())), ErrorKind::NotFound);
        assert_eq!(kind(s.prepare("new", Some("active"), &none, &())), ErrorKind::InvalidInput);
        assert_eq!(kind(s.commit("x", "unknown", &default, &())), ErrorKind::NotFound);
        assert_eq!(kind(s.commit("x", "view", &default, &())), ErrorKind::FailedPrecondition);
        assert_eq!(kind(s.commit("x", "base", &default, &())), ErrorKind::FailedPrecondition);
        assert_eq!(kind(s.commit("base", "active", &default, &())), ErrorKind::AlreadyExists);
        assert_eq!(kind(s.remove("unknown")), ErrorKind::NotFound);
        assert_eq!(kind(s.remove("base")), ErrorKind::FailedPrecondition);
        assert_eq!(kind(s.stat("unknown")), ErrorKind::NotFound);
        assert_eq!(kind(s.mounts("unknown", &())), ErrorKind::NotFound);
        assert_eq!(kind(s.mounts("base", &())), ErrorKind::FailedPrecondition);
        assert_eq!(kind(s.usage("unknown")), ErrorKind::NotFound);
        assert_eq!(kind(s.update("base", &none, &["created"])), ErrorKind::InvalidInput);
        // Keys are anybody's, whatever they hold; those of another namespace are not seen.
        place.prepare("with / slashes and \u{fc} and spaces", None);
        let other = open(place.dir.path(), s.driver(), "other");
        assert_eq!(kind(other.stat("base")), ErrorKind::NotFound);
        other.prepare("base", None, &none, &()).expect("prepares");
        // Removed, a key is free at once.
        s.remove("active").expect("removes");
        place.prepare("active", Some("base"));
    });
}

#[test]
fn infos_labels_and_times() {
    if !namespaced("infos_labels_and_times") {
        return;
    }
    each(|place| {
        let s = &place.snapshots;
        let labels = Labels::from([("a".to_owned(), "1".to_owned()), ("b.c/d".to_owned(), "2".to_owned())]);
        s.prepare("active", None, &labels, &()).expect("prepares");
        let info = s.stat("active").expect("is there");
        assert_eq!((info.kind, &info.parent, &info.labels), (SnapshotKind::Active, &None, &labels));
        assert_eq!(info.created, info.updated);
        let only_a = Labels::from([("a".to_owned(), "3".to_owned())]);
        let updated = s.update("active", &only_a, &["labels.a"]).expect("updates");
        assert_eq!((&updated.labels["a"][..], &updated.labels["b.c/d"][..]), ("3", "2"));
        assert!(updated.updated > updated.created && updated.created == info.created);
        let updated = s.update("active", &Labels::new(), &["labels.b.c/d"]).expect("updates");
        assert_eq!(updated.labels, only_a);
        let updated = s.update("active", &labels, &[]).expect("updates");
        assert_eq!(updated.labels, labels);

        s.commit("done", "active", &CommitOptions::default().labels(only_a.clone()), &()).expect("commits");
        assert_eq!(kind(s.stat("active")), ErrorKind::NotFound);
        let done = s.stat("done").expect("is there");
        assert_eq!((done.kind, &done.labels), (SnapshotKind::Committed, &only_a), "labels do not carry over");
        place.prepare("child", Some("done"));
        let mut seen: Vec<SnapshotInfo> = Vec::new();
        s.walk(|info| {
            seen.push(info);
            Ok(())
        })
        .expect("walks");
        assert_eq!(seen.iter().map(|i| &i.key[..]).collect::<Vec<_>>(), ["done", "child"]);
        assert_eq!(seen[1].parent.as_deref(), Some("done"));
        let child = s.mounts("child", &()).expect("mounts");
        assert_eq!(s.key_of(&child).expect("found"), "child");
    });
}

/// Labels that others set meanwhile stay.
#[test]
fn updates_at_one_time_all_count() {
    let dir = tempfile::tempdir().expect("a directory");
    open(dir.path(), DriverKind::Copy, "n").prepare("k", None, &Labels::new(), &()).expect("prepares");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let snapshots = open(dir.path(), DriverKind::Copy, "n");
            scope.spawn(move || {
                for n in 0..25 {
                    let name = format!("{thread}.{n}");
                    let field = format!("labels.{name}");
                    snapshots.update("k", &Labels::from([(name, "x".to_owned())]), &[&field]).expect("updates");
                }
            });
        }
    });
    assert_eq!(open(dir.path(), DriverKind::Copy, "n").stat("k").expect("is there").labels.len(), 100);
}

/// Prepared without a parent, committed on one: containerd's parallel unpacking.
#[test]
fn rebase_on_commit() {
    if !namespaced("rebase_on_commit") {
        return;
    }
    for deferred in [false, true] {
        each(|place| {
            let s = &place.snapshots;
            place.write("base", None, deferred, base);
            let mounts = place.prepare("loose", None);
            place.inside(&mounts, |root| {
                fs::create_dir(root.join("a")).expect("made");
                fs::write(root.join("a/f"), "rebased").expect("written");
            });
            let options = CommitOptions::default().parent("base").deferred(deferred);
            s.commit("top", "loose", &options, &()).expect("commits");
            assert_eq!(s.stat("top").expect("top").parent.as_deref(), Some("base"));
            place.view("top", |root| {
                assert_eq!(fs::read_to_string(root.join("a/f")).expect("read"), "rebased");
                assert_eq!(fs::read(root.join("a/b/g")).expect("read").len(), 200_000);
            });
            place.prepare("other", Some("base"));
            assert_eq!(
                kind(s.commit("x", "other", &CommitOptions::default().parent("top"), &())),
                ErrorKind::FailedPrecondition
            );
        });
    }
}

#[test]
fn devices_pipes_and_attributes_survive() {
    if !namespaced("devices_pipes_and_attributes_survive") {
        return;
    }
    each(|place| {
        place.write("base", None, false, |root| {
            let null = rustix::fs::makedev(1, 3);
            let node = |name: &str, kind, device| {
                rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o644), device).expect("a node");
            };
            node("null", FileType::CharacterDevice, null);
            node("pipe", FileType::Fifo, 0);
            let file = root.join("file");
            fs::write(&file, "x\n").expect("written");
            let sparse = fs::File::create(root.join("sparse")).expect("made");
            sparse.set_len(1 << 20).expect("grown");
            sparse.write_all_at(b"tail\n", 1 << 20).expect("written");
            for name in ["user.note", "trusted.t"] {
                rustix::fs::setxattr(&file, name, b"text", XattrFlags::empty()).expect("an attribute");
            }
            chown(&file, Some(1234), Some(5678)).expect("owned");
            set_times(&file, 1_234_567_890, 123_456_789);
            fs::set_permissions(root, fs::Permissions::from_mode(0o1777)).expect("set");
        });
        place.view("base", |root| {
            let null = fs::metadata(root.join("null")).expect("null");
            assert!(null.file_type().is_char_device());
            assert_eq!(null.rdev(), 0x103);
            assert!(fs::metadata(root.join("pipe")).expect("pipe").file_type().is_fifo());
            let file = fs::metadata(root.join("file")).expect("file");
            assert_eq!(
                (file.uid(), file.gid(), file.mtime(), file.mtime_nsec()),
                (1234, 5678, 1_234_567_890, 123_456_789)
            );
            for name in ["user.note", "trusted.t"] {
                let mut value = [0; 16];
                let len = rustix::fs::getxattr(root.join("file"), name, &mut value[..]).expect("an attribute");
                assert_eq!(&value[..len], b"text", "{name}");
            }
            assert_eq!(fs::read(root.join("sparse")).expect("read").len(), (1 << 20) + 5);
            assert_eq!(fs::metadata(root).expect("root").mode() & 0o7777, 0o1777);
        });
    });
}

/// As many as containerd allows a chain to be.
#[test]
fn a_chain_of_128_adopted_directories() {
    if !namespaced("a_chain_of_128_adopted_directories") {
        return;
    }
    for driver in [DriverKind::Erofs, DriverKind::Overlay] {
        let place = Place::new(driver);
        let mut parent: Option<String> = None;
        for n in 0..128 {
            let name = format!("c{n}");
            place.write(&name, parent.as_deref(), true, |root| {
                fs::write(root.join(format!("f{n}")), format!("{n}")).expect("written");
                fs::write(root.join("last"), format!("{n}")).expect("written");
            });
            parent = Some(name);
        }
        let check = |root: &Path| {
            assert_eq!(fs::read_to_string(root.join("last")).expect("read"), "127");
            assert!((0..128).all(|n| root.join(format!("f{n}")).exists()));
        };
        place.view("c127", check);
        let done = place.snapshots.absorb(&()).expect("absorbs");
        assert!(done.failed.is_empty(), "{done:?}");
        place.snapshots.cleanup().expect("cleans");
        place.view("c127", check);
    }
}

/// A process that died in the middle leaves nothing that disturbs, and cleanup finds it.
#[test]
fn abandoned_directories_are_cleaned_and_their_numbers_used() {
    if !namespaced("abandoned_directories_are_cleaned_and_their_numbers_used") {
        return;
    }
    each(|place| {
        let dir: PathBuf = place.dir.path().join("store/snapshots");
        for n in 1..4 {
            fs::create_dir_all(dir.join(n.to_string()).join("fs/left")).expect("made");
        }
        let mounts = place.prepare("active", None);
        place.inside(&mounts, |root| assert_eq!(fs::read_dir(root).expect("read").count(), 0));
        place.snapshots.cleanup().expect("cleans");
        assert_eq!(fs::read_dir(&dir).expect("read").count(), 1);
    });
}

/// `close` gives back the mounts that nobody needs, and only those.
#[test]
fn closing_unmounts_what_no_snapshot_stands_on() {
    if !namespaced("closing_unmounts_what_no_snapshot_stands_on") {
        return;
    }
    let place = Place::new(DriverKind::Erofs);
    place.write("base", None, false, base);
    place.view("base", |_| ());
    let mounts = place.dir.path().join("store/mounts/");
    let mounted = || {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("read");
        table.lines().filter(|line| line.contains(mounts.to_str().expect("text"))).count()
    };
    assert_eq!(mounted(), 1);
    place.prepare("active", Some("base"));
    open(place.dir.path(), DriverKind::Erofs, "test").close().expect("closes");
    assert_eq!(mounted(), 1, "a snapshot stands on it");
    place.snapshots.remove("active").expect("removes");
    let Place { dir, snapshots } = place;
    snapshots.close().expect("closes");
    assert_eq!(mounted(), 0);
    // And a later use brings it back.
    let snapshots = open(dir.path(), DriverKind::Erofs, "test");
    snapshots.view("again", Some("base"), &Labels::new(), &()).expect("views");
    assert_eq!(mounted(), 1);
}

/// More lower directories than fit in a page of options; the kernel's own limit is 500.
#[test]
fn a_chain_of_490_directories_mounts() {
    if !namespaced("a_chain_of_490_directories_mounts") {
        return;
    }
    let place = Place::new(DriverKind::Overlay);
    let mut parent: Option<String> = None;
    for n in 0..490 {
        let (key, name) = (format!("k{n}"), format!("c{n}"));
        let mounts = place.prepare(&key, parent.as_deref());
        // Written where an overlay would write it.
        let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
        let upper = Path::new(upper.unwrap_or(&mounts[0].source));
        fs::write(upper.join(format!("f{n}")), "x").expect("written");
        place.commit(&name, &key, true);
        parent = Some(name);
    }
    let mounts = place.prepare("top", Some("c489"));
    let options: usize = mounts[0].options.iter().map(String::len).sum();
    assert!(options > 4096, "{options} bytes of options fit in a page");
    place.inside(&mounts, |root| {
        assert_eq!(fs::read_dir(root).expect("read").count(), 490);
        fs::write(root.join("f0"), "y").expect("written");
    });
}

/// What is bound to a layer needs nothing of what it stands on; what is mounted after all has it by then.
#[test]
fn unmade_snapshots_are_made_when_they_are_wanted() {
    if !namespaced("unmade_snapshots_are_made_when_they_are_wanted") {
        return;
    }
    for driver in DRIVERS {
        let disk = support::disk_dir();
        let root = disk.path().join("store");
        let snapshots = support::layers::snapshotter(&root, driver);
        let store = snapshots.store();
        let low = Layer::new().dir("", 0o711).file("a", b"a").put(store);
        let layers = [low, Layer::new().file("b", b"b").put(store)];
        let below = commit_chain(&snapshots, &layers[..1]);
        let made =
            || ["images", "mounts", "trees"].map(|dir| names(&root, dir).iter().filter(|n| n.len() >= 64).count());
        snapshots.prepare_unmade("applied", Some(&below), &Labels::new(), &()).expect("prepares");
        snapshots.bind("applied", &layers[1]).expect("binds");
        snapshots.commit("both", "applied", &CommitOptions::default(), &()).expect("commits");
        assert_eq!(made(), [0; 3], "{driver}: nothing was wanted");

        let mounts = snapshots.prepare_unmade("mounted", Some("both"), &Labels::new(), &()).expect("prepares");
        layerstore::mount_all(&mounts, disk.path()).expect_err("there is nothing to mount");
        assert_eq!(snapshots.mounts("mounted", &()).expect("makes it"), mounts);
        inside(disk.path(), &mounts, |dir| assert_same(&expected(store, &layers), &list(dir)));
    }
}
