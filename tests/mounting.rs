//! What is mounted where, and what is refused before any work is done for it.

mod support;

use layerstore::{Digest, DriverKind, ErrorKind, Labels, Mount, MountPoint, Snapshotter, SnapshotterOptions, Store};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::layers::{Layer, commit_chain, snapshotter};
use support::{disk_dir, names, namespaced};

fn bind(source: &Path, target: &str, option: &str) -> Mount {
    let (source, target) = (source.to_str().expect("text").to_owned(), target.to_owned());
    Mount { kind: "bind".into(), source, target, options: vec![option.into(), "rbind".into()] }
}

/// A directory with one file, whose name is all it says.
fn marked(dir: &Path, name: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(&path).expect("made");
    fs::write(path.join(name), "").expect("written");
    path
}

fn list(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).expect("there").flatten().map(|f| f.file_name()).collect();
    names.sort();
    names.into_iter().map(|name| name.into_string().expect("text")).collect()
}

#[test]
fn a_mount_goes_to_the_directory_that_was_looked_up() {
    if !namespaced("a_mount_goes_to_the_directory_that_was_looked_up") {
        return;
    }
    let disk = disk_dir();
    let (image, victim) = (marked(disk.path(), "image"), marked(disk.path(), "victim"));
    let (home, moved) = (disk.path().join("home/mnt"), disk.path().join("home/moved"));
    fs::create_dir_all(&home).expect("made");
    let point = MountPoint::open(&home).expect("there");
    assert_eq!(point.path(), home.canonicalize().expect("there"));
    fs::rename(&home, &moved).expect("renamed");
    symlink(&victim, &home).expect("linked");
    point.mount_all(&[bind(&image, "", "ro")]).expect("mounts");
    assert_eq!((list(&victim), list(&moved)), (vec!["victim".into()], vec!["image".into()]));

    // What is unmounted is what was looked up, too: another mount at that name stays, wherever the name leads.
    fs::remove_file(&home).expect("there");
    let point = MountPoint::open(&moved).expect("there");
    fs::create_dir(&home).expect("made");
    layerstore::mount_all(&[bind(&victim, "", "ro")], &home).expect("mounts");
    let parent = disk.path().join("home");
    let aside = disk.path().join("aside");
    fs::rename(&parent, &aside).expect("renamed");
    fs::create_dir(&parent).expect("made");
    symlink(aside.join("mnt"), parent.join("moved")).expect("linked");
    point.unmount().expect("unmounts");
    assert_eq!((list(&aside.join("moved")), list(&aside.join("mnt"))), (vec![], vec!["victim".into()]));
    let point = MountPoint::open(&aside.join("moved")).expect("there");
    assert_eq!(point.unmount().expect_err("nothing is mounted").kind(), ErrorKind::NotFound);

    // A mount over the one that was looked up is another one.
    let point = MountPoint::open(&aside.join("mnt")).expect("there");
    layerstore::mount_all(&[bind(&image, "", "ro")], &aside.join("mnt")).expect("mounts");
    assert_eq!(point.unmount().expect_err("exchanged").kind(), ErrorKind::FailedPrecondition);
    for left in [["image"], ["victim"]] {
        assert_eq!(list(&aside.join("mnt")), left);
        layerstore::unmount(&aside.join("mnt")).expect("unmounts");
    }
}

#[test]
fn a_target_below_the_root_is_found_inside_of_it() {
    if !namespaced("a_target_below_the_root_is_found_inside_of_it") {
        return;
    }
    let disk = disk_dir();
    let (root, victim, more) =
        (marked(disk.path(), "root"), marked(disk.path(), "victim"), marked(disk.path(), "more"));
    fs::create_dir(root.join("sub")).expect("made");
    symlink(&victim, root.join("absolute")).expect("linked");
    symlink("../victim", root.join("relative")).expect("linked");
    let at = disk.path().join("at");
    fs::create_dir(&at).expect("made");
    let mount = |target: &str| layerstore::mount_all(&[bind(&root, "", "rw"), bind(&more, target, "ro")], &at);
    for hostile in ["absolute", "relative", "../victim", "sub/../../victim", "none"] {
        mount(hostile).expect_err(hostile);
        assert_eq!((list(&victim), list(&at)), (vec!["victim".into()], vec![]), "{hostile}");
    }
    for inside in ["sub", "/sub/"] {
        mount(inside).expect(inside);
        assert_eq!(list(&at.join("sub")), ["more"]);
        assert!(fs::write(at.join("sub/x"), "").is_err(), "read-only");
        fs::write(at.join("x"), "").expect("writable");
        layerstore::unmount(&at.join("sub")).expect("unmounts");
        layerstore::unmount(&at).expect("unmounts");
    }
}

/// Everything that a read-only bind shows is read-only.
#[test]
fn a_read_only_bind_is_so_with_what_is_mounted_below() {
    if !namespaced("a_read_only_bind_is_so_with_what_is_mounted_below") {
        return;
    }
    let disk = disk_dir();
    let (source, below) = (marked(disk.path(), "source"), marked(disk.path(), "below"));
    fs::create_dir(source.join("sub")).expect("made");
    layerstore::mount_all(&[bind(&below, "", "rw")], &source.join("sub")).expect("mounts");
    let at = disk.path().join("at");
    fs::create_dir(&at).expect("made");
    layerstore::mount_all(&[bind(&source, "", "ro")], &at).expect("mounts");
    assert!(fs::write(at.join("x"), "").is_err() && fs::write(at.join("sub/x"), "").is_err());
    fs::write(source.join("sub/x"), "").expect("the source is as it was");
    layerstore::unmount(&at.join("sub")).expect("unmounts");
    layerstore::unmount(&at).expect("unmounts");
    layerstore::unmount(&source.join("sub")).expect("unmounts");
}

#[test]
fn more_layers_than_overlayfs_stacks_are_refused_before_they_are_extracted() {
    if !namespaced("more_layers_than_overlayfs_stacks_are_refused_before_they_are_extracted") {
        return;
    }
    let disk = disk_dir();
    let root = disk.path().join("store");
    let snapshots = snapshotter(&root, DriverKind::Overlay);
    let layer = Layer::new().file("a", b"a").put(snapshots.store());
    let mut tops = Vec::new();
    for n in 0..=500 {
        let (name, below): (String, Option<&String>) = (n.to_string(), tops.last());
        snapshots.commit_layer(&name, below.map(String::as_str), &layer, &Labels::new()).expect("commits");
        tops.push(name);
    }
    let refused = |made: layerstore::Result<Vec<Mount>>| {
        let e = made.expect_err("501 layers");
        assert_eq!((e.kind(), e.mismatch()), (ErrorKind::Unsupported, (Some("at most 500"), Some("501"))));
        assert!(names(&root, "trees").is_empty(), "nothing was extracted");
    };
    refused(snapshots.prepare("work", Some("500"), &Labels::new(), &()));
    refused(snapshots.view("look", Some("500"), &Labels::new(), &()));
    // A layer can be put on all the same, as long as nobody mounts it.
    snapshots.prepare_unmade("unmade", Some("500"), &Labels::new(), &()).expect("prepares");
    refused(snapshots.mounts("unmade", &()));
    let mounts = snapshots.prepare("fits", Some("499"), &Labels::new(), &()).expect("prepares");
    support::inside(disk.path(), &mounts, |dir| assert_eq!(list(dir), ["a"]));
}

/// In a namespace of one user nobody can make the files of others, and nobody asked for the driver.
#[test]
fn auto_passes_over_overlays_where_owners_cannot_be_set() {
    let name = "auto_passes_over_overlays_where_owners_cannot_be_set";
    const INSIDE: &str = "LAYERSTORE_TEST_ONE_USER";
    if std::env::var_os(INSIDE).is_none() {
        let unshare = |program: &Path| {
            let mut unshare = std::process::Command::new("unshare");
            unshare.args(["--user", "--map-root-user", "--mount", "--propagation", "private"]).arg(program);
            unshare
        };
        if !unshare(Path::new("true")).output().is_ok_and(|out| out.status.success()) {
            return println!("skipped: {name}: no user namespaces here");
        }
        let mut unshare = unshare(&std::env::current_exe().expect("a test binary"));
        let output = unshare.args(["--exact", name, "--nocapture"]).env(INSIDE, "yes").output().expect("unshare runs");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        return assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
    let disk = disk_dir();
    let store = Arc::new(Store::open(disk.path().join("store")).expect("a store"));
    let kind = layerstore::EntryKind::File { size: 1, sparse: None };
    let layer: Digest = Layer::new().entry("a", kind, |e| e.uid = 7, b"a").put(&store);
    let snapshots = Snapshotter::open(store, &SnapshotterOptions::default()).expect("opens");
    assert_eq!(snapshots.driver(), DriverKind::Copy);
    let why: Vec<_> = snapshots.refused().iter().map(|(kind, _)| *kind).collect();
    assert_eq!(why, [DriverKind::Erofs, DriverKind::Overlay]);
    let top = commit_chain(&snapshots, &[layer]);
    let mounts = snapshots.prepare("work", Some(&top), &Labels::new(), &()).expect("prepares");
    support::inside(disk.path(), &mounts, |dir| assert_eq!(list(dir), ["a"]));
}

/// What a thread may see that gave up root, group and groups; others of the process keep theirs.
fn as_nobody<T: Send>(look: impl FnOnce() -> T + Send) -> T {
    use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (Uid::from_raw(65_534), Gid::from_raw(65_534));
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            set_thread_groups(&[]).expect("root");
            set_thread_res_gid(gid, gid, gid).expect("root");
            set_thread_res_uid(uid, uid, uid).expect("root");
            look()
        });
        thread.join().expect("no panic")
    })
}

/// Everything below `dir` that somebody else can look at, `dir` itself aside.
fn open_to_others(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    support::walk(dir, &mut |path, _| all.push(path.to_owned()));
    assert!(!all.is_empty(), "{}", dir.display());
    as_nobody(move || all.into_iter().filter(|path| fs::symlink_metadata(path).is_ok()).collect())
}

/// A place that others can come as far as the store in.
fn public() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let disk = disk_dir();
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o755)).expect("set");
    disk
}

/// Whether others can come that far at all: the test's directory may lie in one that they cannot enter.
fn reachable(dir: &Path) -> bool {
    as_nobody(|| fs::symlink_metadata(dir.join("open")).is_ok())
}

/// Images hold set-user-ID files of root, and whoever gets at them is root.
#[test]
fn others_enter_nothing_that_is_mounted_or_extracted() {
    let name = "others_enter_nothing_that_is_mounted_or_extracted";
    if !namespaced(name) {
        return;
    }
    let disk = public();
    fs::write(disk.path().join("open"), "").expect("written");
    if !reachable(disk.path()) {
        return println!("skipped: {name}: others cannot enter {}", disk.path().display());
    }
    let kind = layerstore::EntryKind::File { size: 1, sparse: None };
    for driver in [DriverKind::Erofs, DriverKind::Overlay, DriverKind::Copy] {
        let root = disk.path().join(format!("store-{driver}"));
        let store = Arc::new(Store::open(&root).expect("a store"));
        let layer = Layer::new().dir("", 0o755).entry("su", kind.clone(), |e| e.mode = 0o4755, b"x").put(&store);
        let options = SnapshotterOptions::default().driver(driver);
        let snapshots = match Snapshotter::open(store, &options) {
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                println!("skipped: {name}: {e}");
                continue;
            }
            opened => opened.expect("opens"),
        };
        let top = commit_chain(&snapshots, &[layer, layer]);
        snapshots.prepare("work", Some(&top), &Labels::new(), &()).expect("prepares");
        snapshots.view("look", Some(&top), &Labels::new(), &()).expect("views");
        assert_eq!(open_to_others(&root), Vec::<std::path::PathBuf>::new(), "{driver}");
        for mounted in names(&root, "mounts") {
            layerstore::unmount(&root.join("mounts").join(mounted)).expect("unmounts");
        }
    }
}

/// Looks, as somebody else, at a tree that is being extracted, whenever it is asked whether to stop.
struct Looking<'a>(&'a Path, std::sync::Mutex<Vec<String>>, std::sync::atomic::AtomicU64);

impl layerstore::Observer for Looking<'_> {
    fn event(&self, _: layerstore::Event) {}

    fn cancelled(&self) -> bool {
        let Ok(there) = fs::read_dir(self.0) else { return false };
        let names: Vec<_> = there.flatten().map(|found| found.path()).collect();
        // What was there before, empty, is as its owner has it until the first name is made.
        if names.is_empty() {
            return false;
        }
        self.2.fetch_add(names.len() as u64, std::sync::atomic::Ordering::Relaxed);
        let seen = as_nobody(|| {
            let listed = fs::read_dir(self.0).is_ok().then(|| self.0.display().to_string());
            let open = names.iter().filter(|path| fs::symlink_metadata(path).is_ok());
            listed.into_iter().chain(open.map(|path| path.display().to_string())).collect::<Vec<_>>()
        });
        self.1.lock().expect("no panic").extend(seen);
        false
    }
}

#[test]
fn others_see_nothing_of_a_tree_before_it_is_complete() {
    let name = "others_see_nothing_of_a_tree_before_it_is_complete";
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: {name}: needs root");
    }
    let disk = public();
    fs::write(disk.path().join("open"), "").expect("written");
    if !reachable(disk.path()) {
        return println!("skipped: {name}: others cannot enter {}", disk.path().display());
    }
    let store = Store::open(disk.path().join("store")).expect("a store");
    let mut layer = Layer::new();
    for n in 0..40 {
        layer.file(&n.to_string(), &support::noise(n, 200_000));
    }
    let layer = layer.dir("", 0o755).put(&store);
    let there = disk.path().join("empty");
    fs::create_dir(&there).expect("made");
    for dest in [disk.path().join("new"), there] {
        let looking = Looking(&dest, Default::default(), Default::default());
        store.extract(&[layer], &dest, &Default::default(), &looking).expect("extracts");
        assert!(looking.2.into_inner() > 0, "it was looked at");
        assert_eq!(looking.1.into_inner().expect("no panic"), Vec::<String>::new());
        assert!(as_nobody(|| fs::symlink_metadata(dest.join("0")).is_ok()), "a complete tree is as the image says");
    }
}

/// An extraction that fails removes what it made, and nothing that took its name.
#[test]
fn a_failed_extraction_removes_only_what_it_made() {
    struct Exchange<'a>(&'a Path, &'a Path);
    impl layerstore::Observer for Exchange<'_> {
        fn event(&self, _: layerstore::Event) {}

        fn cancelled(&self) -> bool {
            if self.0.exists() && !self.1.exists() {
                fs::rename(self.0, self.1).expect("renamed");
                fs::create_dir(self.0).expect("made");
                fs::write(self.0.join("precious"), "").expect("written");
            }
            self.1.exists()
        }
    }
    let disk = disk_dir();
    let store = Store::open(disk.path().join("store")).expect("a store");
    let layer = Layer::own().file("a", &support::noise(1, 300_000)).put(&store);
    let (dest, moved) = (disk.path().join("dest"), disk.path().join("moved"));
    let e = store.extract(&[layer], &dest, &Default::default(), &Exchange(&dest, &moved)).expect_err("stopped");
    assert_eq!(e.kind(), ErrorKind::Cancelled);
    assert!(dest.join("precious").exists());
}

/// Blobs of an export go into the layout that was named, whatever is put into its place or into it.
#[test]
fn an_export_follows_nothing_into_another_directory() {
    use std::io::Write;
    let disk = disk_dir();
    let (dir, moved, victim) = (disk.path().join("layout"), disk.path().join("moved"), disk.path().join("victim"));
    fs::create_dir_all(victim.join("blobs/sha256")).expect("made");
    let write = |w: &mut dyn Write| w.write_all(b"blob").map_err(|e| layerstore::Error::io("write", e));
    let untouched = || assert_eq!(fs::read_dir(victim.join("blobs/sha256")).expect("there").count(), 0);

    let mut layout = layerstore::LayoutWriter::directory(&dir).expect("made");
    fs::rename(&dir, &moved).expect("renamed");
    symlink(&victim, &dir).expect("linked");
    layout.blob(write).expect("written");
    layout.finish(&[]).expect("written");
    assert!(moved.join("index.json").exists() && !victim.join("index.json").exists());
    untouched();

    fs::remove_dir_all(moved.join("blobs")).expect("there");
    symlink(victim.join("blobs"), moved.join("blobs")).expect("linked");
    assert!(layerstore::LayoutWriter::directory(&moved).is_err());
    untouched();

    let (above, aside) = (disk.path().join("above"), disk.path().join("aside"));
    fs::create_dir(&above).expect("made");
    let mut archive = layerstore::LayoutWriter::archive(&above.join("a.tar")).expect("made");
    fs::rename(&above, &aside).expect("renamed");
    symlink(&victim, &above).expect("linked");
    archive.blob(write).expect("written");
    archive.finish(&[]).expect("written");
    assert!(aside.join("a.tar").exists() && !victim.join("a.tar").exists());
}

/// Somebody exchanges the directory above the store's mount and one with another mount, all the time.
#[test]
fn unmounting_all_takes_away_mounts_of_the_store_only() {
    if !namespaced("unmounting_all_takes_away_mounts_of_the_store_only") {
        return;
    }
    let disk = disk_dir();
    let snapshots = snapshotter(disk.path(), DriverKind::Copy);
    let mounts = snapshots.prepare("own", None, &Labels::new(), &()).expect("prepares");
    let (home, victim) = (disk.path().join("home"), marked(disk.path(), "victim"));
    let dirs = ["own", "other"].map(|name| home.join(name));
    dirs.iter().for_each(|dir| fs::create_dir_all(dir.join("m")).expect("made"));
    let open = dirs.each_ref().map(|dir| fs::File::open(dir).expect("there"));
    // Whatever it is called by now.
    let [own, other] = open.each_ref().map(|dir| format!("/proc/self/fd/{}/m", dir.as_raw_fd()));
    layerstore::mount_all(&[bind(&victim, "", "ro")], Path::new(&other)).expect("mounts");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &dirs[0], CWD, &dirs[1], RenameFlags::EXCHANGE).expect("exchanged");
            }
        });
        let store = snapshots.store();
        let left = (0..20).all(|_| {
            layerstore::mount_all(&mounts, Path::new(&own)).expect("mounts");
            while !store.mounts().expect("a table").is_empty() {
                store.unmount_all().expect("a table");
            }
            list(Path::new(&other)) == ["victim"]
        });
        stop.store(true, Ordering::Relaxed);
        assert!(left, "the other mount is gone");
    });
    layerstore::unmount(Path::new(&other)).expect("unmounts");
}
