//! What a container can leave in its directory: very deep and very wide trees. Few descriptors and a small stack are
//! enough for all that a store does with them.

mod support;

use layerstore::{
    CommitOptions, DamageKind, DriverKind, ErrorKind, FsckOptions, GcOptions, Labels, Snapshotter, Store,
};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::path::{Path, PathBuf};
use support::layers::{Layer, commit_chain, snapshotter};
use support::{names, namespaced};

const DEPTH: usize = 20_000;
/// Says to a child which test it runs.
const INSIDE: &str = "LAYERSTORE_TEST_CONFINED";

/// Runs the calling test, called `name`, again in a process that has 64 descriptors, on a thread with 256 KiB of stack.
fn confined(name: &str, work: impl FnOnce() + Send) {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum }).expect("fewer are allowed");
        let small = std::thread::Builder::new().stack_size(256 << 10);
        std::thread::scope(|scope| small.spawn_scoped(scope, work).expect("a thread").join().expect("no panic"));
        return;
    }
    let mut command = std::process::Command::new(std::env::current_exe().expect("a test binary"));
    let output = command.args(["--exact", name, "--nocapture"]).env(INSIDE, name).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// In memory if there is such a place: what is many here would be slow on a disk.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// Makes a chain of directories in `top`.
fn deep(top: &Path, levels: usize) {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(top, flags, Mode::empty()).expect("a directory");
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).expect("a directory");
        at = openat(&at, "d", flags, Mode::empty()).expect("a directory");
    }
}

/// Makes directories beside each other in `top`.
fn wide(top: &Path, count: usize) {
    let top = rustix::fs::open(top, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("a directory");
    (0..count).for_each(|n| mkdirat(&top, n.to_string(), Mode::RWXU).expect("a directory"));
}

fn own_directory(snapshots: &Snapshotter, key: &str) -> PathBuf {
    snapshots.mounts(key, &()).expect("a snapshot")[0].source.clone().into()
}

fn collect(store: &Store) {
    let options = GcOptions::default();
    let plan = store.gc_plan(&options, &()).expect("a plan");
    store.gc(&plan, &options, &()).expect("collects");
}

/// A daemon starts whatever an earlier run left in `tmp/`.
#[test]
fn opening_a_store_removes_what_a_crash_left() {
    confined("opening_a_store_removes_what_a_crash_left", || {
        let dir = place();
        let root = dir.path().join("store");
        drop(Store::open(&root).expect("a store"));
        let left = root.join("tmp/session-0-crashed");
        fs::create_dir_all(left.join("deep")).and_then(|()| fs::create_dir(left.join("wide"))).expect("directories");
        deep(&left.join("deep"), DEPTH);
        wide(&left.join("wide"), 5000);
        let store = Store::open(&root).expect("a store");
        assert_eq!(names(&root, "tmp"), [""; 0]);
        assert!(store.leftovers().is_empty());
    });
}

#[test]
fn snapshots_of_deep_and_wide_trees_are_measured_refused_and_removed() {
    confined("snapshots_of_deep_and_wide_trees_are_measured_refused_and_removed", || {
        let dir = place();
        let root = dir.path().join("store");
        let snapshots = snapshotter(&root, DriverKind::Copy);
        for (key, inodes) in [("deep", DEPTH as u64 + 1), ("wide", 5001)] {
            snapshots.prepare(key, None, &Labels::new(), &()).expect("prepares");
            let own = own_directory(&snapshots, key);
            if key == "deep" {
                deep(&own, DEPTH)
            } else {
                wide(&own, 5000)
            }
            assert_eq!(snapshots.usage(key).expect("usage").inodes, inodes);
        }
        let commit = |name: &str, key: &str, deferred| {
            snapshots.commit(name, key, &CommitOptions::default().deferred(deferred), &())
        };
        let error = commit("made", "deep", false).expect_err("no layer is so deep");
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
        assert!(error.to_string().contains("directories nested too deep"), "{error}");
        commit("made", "wide", false).expect("a layer may be wide");
        // What is taken as it is can never become a layer, and can be removed.
        commit("taken", "deep", true).expect("taken as it is");
        let failed = snapshots.absorb(&()).expect("passes over it").failed;
        assert_eq!(failed.iter().map(|failed| failed.error.kind()).collect::<Vec<_>>(), [ErrorKind::LimitExceeded]);
        ["taken", "made"].iter().for_each(|name| snapshots.remove(name).expect("removes"));
        assert_eq!(snapshots.cleanup().expect("cleans up"), 2);
        assert!(snapshots.store().leftovers().is_empty());
        collect(snapshots.store());
        assert_eq!((names(&root, "tmp"), names(&root, "snapshots")), (vec![], vec![]));
    });
}

#[test]
fn gc_removes_an_extracted_layer_that_somebody_deepened() {
    const NAME: &str = "gc_removes_an_extracted_layer_that_somebody_deepened";
    if std::env::var_os(INSIDE).is_none() && !namespaced(NAME) {
        return;
    }
    confined(NAME, || {
        let dir = support::disk_dir();
        let root = dir.path().join("store");
        let snapshots = snapshotter(&root, DriverKind::Overlay);
        let store = snapshots.store();
        let layer = Layer::own().dir("d", 0o755).file("d/f", b"content").put(store);
        let top = commit_chain(&snapshots, &[layer]);
        snapshots.view("v", Some(&top), &Labels::new(), &()).expect("views");
        let tree = root.join("trees").join(&names(&root, "trees")[0]);
        deep(&tree.join("d"), 3000);
        let report = store.fsck(&FsckOptions::default().full(true), &()).expect("not cancelled");
        let tree = report.findings.iter().find(|finding| finding.kind == DamageKind::Tree).expect("a finding");
        assert!(tree.what.contains("directories nested too deep"), "{tree:?}");
        snapshots.remove("v").and_then(|()| snapshots.remove(&top)).expect("removes");
        store.release_layer(&layer).expect("releases");
        collect(store);
        assert_eq!((names(&root, "tmp"), names(&root, "trees")), (vec![], vec![]));
    });
}

/// What cannot be removed is told, and keeps nobody from anything.
#[test]
fn a_store_opens_over_what_cannot_be_removed() {
    let dir = support::disk_dir();
    let root = dir.path().join("store");
    drop(Store::open(&root).expect("a store"));
    for session in ["session-0-a", "session-0-b", "session-0-c"] {
        fs::create_dir_all(root.join("tmp").join(session).join("d")).expect("directories");
    }
    let stays = root.join("tmp/session-0-b/d/f");
    fs::write(&stays, "x").expect("a file");
    let file = fs::File::open(&stays).expect("a file");
    if rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE).is_err() {
        println!("skipped: a_store_opens_over_what_cannot_be_removed: files cannot be made immutable");
        return;
    }
    let store = Store::open(&root).expect("a store");
    let told = store.leftovers();
    collect(&store);
    let again = store.leftovers().len();
    rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::empty()).expect("a file of its own");
    assert_eq!((told.len(), again), (1, 1));
    assert!(told[0].to_string().contains("session-0-b/d/f: cannot remove"), "{}", told[0]);
    assert_eq!(names(&root, "tmp"), ["session-0-b"]);
    drop(Store::open(&root).expect("a store"));
    assert_eq!(names(&root, "tmp"), [""; 0]);
}

/// Directories of an overlay that all say they are one of the layers below.
#[test]
fn redirects_show_the_layers_below_not_again_and_again() {
    const NAME: &str = "redirects_show_the_layers_below_not_again_and_again";
    if !namespaced(NAME) {
        return;
    }
    let dir = support::disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Overlay);
    let mut layer = Layer::own();
    layer.dir("big", 0o755);
    for n in 0..500 {
        layer.file(&format!("big/{n}"), b"");
    }
    let top = commit_chain(&snapshots, &[layer.put(snapshots.store())]);
    for (key, count) in [("few", 2), ("many", 20)] {
        let mounts = snapshots.prepare(key, Some(&top), &Labels::new(), &()).expect("prepares");
        let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir=")).expect("an overlay");
        for n in 0..count {
            let to = Path::new(upper).join(format!("to-{n}"));
            fs::create_dir(&to).expect("a directory");
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&to, "trusted.overlay.redirect", b"/big", flags).expect("a redirect");
        }
    }
    let commit = |key: &str| snapshots.commit(&format!("{key}-made"), key, &CommitOptions::default(), &());
    commit("few").expect("a layer");
    let error = commit("many").expect_err("it shows 10,000 names of 502");
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
}
