//! Garbage collection never touches what a mount can reach, even one that its snapshot did not outlive.
//!
//! Needs root; every test runs in a mount namespace of its own.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use build::tar;
use layerstore::{
    CommitOptions, Detected, Digest, DriverKind, ErrorKind, GarbageKind, GcOptions, GcReport, ImportOptions, Labels,
    Limits, Mount, RemoveOptions, Selector, Snapshotter, Store, detect,
};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use support::layers::snapshotter;
use support::{assert_empty, names, namespaced, noise, words, write_image};

fn files(seed: u64) -> Vec<(String, Vec<u8>)> {
    let small = (0..40).map(|n| (format!("{seed}-{n}"), words(seed * 1000 + n, 3000)));
    small.chain([(format!("{seed}-large"), noise(seed, 900_000))]).collect()
}

fn layer(seed: u64) -> Vec<u8> {
    let parts: Vec<_> = files(seed).into_iter().map(|(name, bytes)| build::file(name, bytes)).collect();
    tar(&parts)
}

/// An image of two layers, prepared for writing.
fn prepare(snapshots: &Snapshotter, dir: &Path) -> Vec<Mount> {
    let layout = dir.join("layout");
    write_image(&layout, &[layer(1), layer(2)]);
    let Ok(Detected::Image(source)) = detect(&layout, dir, &Limits::default()) else { panic!("no image") };
    let store = snapshots.store();
    store.import_image(&source, &Selector::default(), Some("i"), &ImportOptions::default(), &()).expect("an image");
    let top = snapshots.commit_image(&store.image("i").expect("an image"), &()).expect("commits");
    snapshots.prepare("work", top.as_deref(), &Labels::new(), &()).expect("prepares")
}

fn gc(store: &Store) -> GcReport {
    let options = GcOptions::default();
    let plan = store.gc_plan(&options, &()).expect("a sound store");
    store.gc(&plan, &options, &()).expect("a sound store")
}

fn remove_all(snapshots: &Snapshotter) {
    let mut keys = Vec::new();
    snapshots
        .walk(|info| {
            keys.push(info.key.clone());
            Ok(())
        })
        .expect("a walk");
    // Children first.
    while !keys.is_empty() {
        keys.retain(|key| snapshots.remove_with(key, &RemoveOptions::default().mounted(true)).is_err());
    }
    snapshots.store().remove_image("i").expect("an image");
}

fn assert_whole(root: &Path) {
    for (name, bytes) in files(1).into_iter().chain(files(2)) {
        assert!(fs::read(root.join(&name)).expect(&name) == bytes, "{name} was damaged");
    }
}

fn mounted_images_stay(driver: DriverKind) {
    let dir = support::disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), driver);
    let store = snapshots.store();
    let mounts = prepare(&snapshots, dir.path());
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("works");
    layerstore::mount_all(&mounts, &root).expect("works");
    // Nothing was read yet: no page cache can hide what gc does to the packs.
    assert!(gc(store).removed.is_empty(), "the image has all of it");

    // A client that removes what is mounted still.
    remove_all(&snapshots);
    let report = gc(store);
    let kinds: Vec<_> = report.removed.iter().map(|g| g.kind).collect();
    assert!(!kinds.contains(&GarbageKind::Image) && !kinds.contains(&GarbageKind::Tree), "{kinds:?}");
    // Layers that come now may not overwrite anything either.
    let other = support::import(store, &layer(3)).diff_id;
    let again = support::import(store, &layer(1)).diff_id;
    gc(store);
    assert_whole(&root);

    layerstore::unmount(&root).expect("works");
    store.release_layer(&other).expect("works");
    store.release_layer(&again).expect("works");
    let report = gc(store);
    assert_eq!(report.waiting, 0, "{report:?}");
    assert_empty(store, "nothing is mounted any more");
    for left in ["images", "mounts", "trees", "snapshots"] {
        let mut names = names(store.path(), left);
        names.retain(|name| !name.starts_with("probe-"));
        assert_eq!(names, [""; 0], "{left}");
    }
}

#[test]
fn mounted_erofs_images_stay() {
    if namespaced("mounted_erofs_images_stay") {
        mounted_images_stay(DriverKind::Erofs);
    }
}

/// A chain that became wanted again finds its old image, whose blocks have stayed the same.
#[test]
fn an_image_that_survived_its_layers_is_right() {
    if !namespaced("an_image_that_survived_its_layers_is_right") {
        return;
    }
    let dir = support::disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Erofs);
    let store = snapshots.store();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    layerstore::mount_all(&prepare(&snapshots, dir.path()), &root).unwrap();
    remove_all(&snapshots);
    assert!(gc(store).waiting > 0, "chunks the image shows wait");
    assert_eq!(names(store.path(), "images").iter().filter(|name| name.ends_with(".erofs")).count(), 1);
    assert_eq!(store.layers().unwrap().len(), 0);

    let second = dir.path().join("second");
    fs::create_dir(&second).unwrap();
    fs::remove_dir_all(dir.path().join("layout")).unwrap();
    layerstore::mount_all(&prepare(&snapshots, dir.path()), &second).unwrap();
    gc(store);
    assert_whole(&second);
    assert_whole(&root);
    layerstore::unmount(&root).unwrap();
    gc(store);
    assert!(fs::read(second.join("1-large")).unwrap() == files(1)[40].1);
    layerstore::unmount(&second).unwrap();
    let chain = Digest::chain(Some(Digest::of(&layer(1))), Digest::of(&layer(2)));
    layerstore::unmount(&store.path().join("mounts").join(chain.hex())).unwrap();
}

const DRIVERS: [DriverKind; 3] = [DriverKind::Erofs, DriverKind::Overlay, DriverKind::Copy];

fn mkdir(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir(&path).expect("a new directory");
    path
}

fn kind<T>(result: layerstore::Result<T>) -> ErrorKind {
    result.err().expect("must fail").kind()
}

/// Writable, readable by way of any driver: an empty snapshot.
fn empty(snapshots: &Snapshotter, key: &str) -> Vec<Mount> {
    snapshots.prepare(key, None, &Labels::new(), &()).expect("prepares")
}

fn overlay(lower: &Path, upper: &Path, work: &Path) -> Mount {
    let option = |name: &str, path: &Path| format!("{name}={}", path.display());
    let options = vec![option("lowerdir", lower), option("upperdir", upper), option("workdir", work)];
    Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }
}

#[test]
fn what_is_mounted_is_neither_committed_nor_removed() {
    if !namespaced("what_is_mounted_is_neither_committed_nor_removed") {
        return;
    }
    for driver in DRIVERS {
        let dir = support::disk_dir();
        let snapshots = snapshotter(&dir.path().join("store"), driver);
        let mounts = prepare(&snapshots, dir.path());
        let root = mkdir(dir.path(), "root");
        layerstore::mount_all(&mounts, &root).expect("mounts");
        fs::write(root.join("new"), "new").expect("written");
        let options = CommitOptions::default();
        for options in [options.clone(), options.clone().deferred(true)] {
            assert_eq!(kind(snapshots.commit("done", "work", &options, &())), ErrorKind::Busy, "{driver}");
        }
        assert_eq!(kind(snapshots.remove("work")), ErrorKind::Busy, "{driver}");
        assert_eq!(snapshots.mount_points("work").expect("a table"), Some(vec![root.clone()]), "{driver}");
        // A part of it, bound elsewhere, is as good as all of it.
        let part = mkdir(dir.path(), "part");
        let bind = |source: &Path| Mount {
            kind: "bind".into(),
            source: source.display().to_string(),
            target: String::new(),
            options: vec!["rw".into()],
        };
        let fs_dir = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
        let fs_dir = PathBuf::from(fs_dir.unwrap_or(&mounts[0].source));
        layerstore::unmount(&root).expect("unmounts");
        assert_eq!(snapshots.mount_points("work").expect("a table"), None, "{driver}");
        layerstore::mount_all(&[bind(&mkdir(&fs_dir, "sub"))], &part).expect("mounts");
        assert_eq!(kind(snapshots.commit("done", "work", &options, &())), ErrorKind::Busy, "{driver}");
        layerstore::unmount(&part).expect("unmounts");
        snapshots.commit("done", "work", &options, &()).expect("commits");

        // Of views that show the same, as many are taken to be mounted as there are such mounts.
        for key in ["first", "second"] {
            snapshots.view(key, Some("done"), &Labels::new(), &()).expect("views");
        }
        layerstore::mount_all(&snapshots.mounts("second", &()).expect("mounts"), &root).expect("mounts");
        assert_eq!(fs::read_to_string(root.join("new")).expect("read"), "new", "{driver}");
        snapshots.remove("first").expect("it is not mounted");
        assert_eq!(kind(snapshots.remove("second")), ErrorKind::Busy, "{driver}");
        snapshots.remove_with("second", &RemoveOptions::default().mounted(true)).expect("it was said");
        snapshots.cleanup().expect("cleans");
        assert_eq!(fs::read_to_string(root.join("new")).expect("read"), "new", "{driver}");
        layerstore::unmount(&root).expect("unmounts");
        let mounts = snapshots.store().mounts().expect("a table");
        assert_eq!(mounts, [], "{driver}: nobody uses the chain's mount");
    }
}

#[test]
fn a_store_on_an_overlay_knows_its_mounts() {
    if !namespaced("a_store_on_an_overlay_knows_its_mounts") {
        return;
    }
    let dir = support::disk_dir();
    let [lower, upper, work, on] = ["lower", "upper", "work", "on"].map(|name| mkdir(dir.path(), name));
    layerstore::mount_all(&[overlay(&lower, &upper, &work)], &on).expect("an overlay");
    let snapshots = snapshotter(&on.join("store"), DriverKind::Copy);
    let mounts = empty(&snapshots, "work");
    assert_eq!(snapshots.store().mounts().expect("a table"), [], "the overlay itself is none of the store's");
    let root = mkdir(dir.path(), "root");
    layerstore::mount_all(&mounts, &root).expect("mounts");
    fs::write(root.join("new"), "new").expect("written");
    let found = snapshots.store().mounts().expect("a table");
    assert_eq!((found.len(), &found[0].dir, found[0].covered), (1, &root, false));
    assert_eq!(found[0].writes.as_deref(), Some(Path::new("snapshots/1/fs")));
    assert_eq!(kind(snapshots.commit("done", "work", &CommitOptions::default(), &())), ErrorKind::Busy);
    snapshots.remove_with("work", &RemoveOptions::default().mounted(true)).expect("it was said");
    assert_eq!(snapshots.cleanup().expect("cleans"), 0);
    assert_eq!(fs::read_to_string(root.join("new")).expect("read"), "new", "what is mounted keeps its content");
    layerstore::unmount(&root).expect("unmounts");
    assert_eq!(snapshots.cleanup().expect("cleans"), 1);
    drop(snapshots);
    layerstore::unmount(&on).expect("unmounts");
}

/// A store has several names: a daemon in a container mounts by another than who cleans up.
#[test]
fn mounts_by_another_name_of_the_store_count() {
    if !namespaced("mounts_by_another_name_of_the_store_count") {
        return;
    }
    let dir = support::disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Copy);
    empty(&snapshots, "work");
    let (other, root) = (mkdir(dir.path(), "other, with a comma"), mkdir(dir.path(), "root"));
    let store = snapshots.store().path();
    let bind = Mount {
        kind: "bind".into(),
        source: store.display().to_string(),
        target: String::new(),
        options: vec!["rw".into()],
    };
    layerstore::mount_all(&[bind], &other).expect("mounts");
    assert_eq!(snapshots.mount_points("work").expect("a table"), None, "the whole store says nothing of its parts");
    let name = other.join("snapshots/1/fs").display().to_string().replace(',', "\\,");
    let mut mount = overlay(Path::new(&name), &mkdir(dir.path(), "u"), &mkdir(dir.path(), "w"));
    layerstore::mount_all(std::slice::from_ref(&mount), &root).expect("mounts");
    assert_eq!(snapshots.mount_points("work").expect("a table"), Some(vec![root.clone()]));
    // A tmpfs with that text covers the overlay, and is none of the store's.
    mount = Mount { kind: "bind".into(), source: mkdir(dir.path(), "else").display().to_string(), ..mount };
    layerstore::mount_all(&[Mount { options: vec!["rw".into()], ..mount }], &root).expect("mounts");
    let found = snapshots.store().mounts().expect("a table");
    let own = found.iter().find(|mounted| mounted.dir == root).expect("the overlay is there");
    assert!(own.covered && own.shows == [Path::new("snapshots/1/fs")], "{own:?}");
    let report = snapshots.store().unmount_all().expect("a table");
    assert_eq!(report.in_use, std::slice::from_ref(&root), "nothing but the store's own mounts is taken away");
    layerstore::unmount(&root).expect("unmounts what covered it");
    let report = snapshots.store().unmount_all().expect("a table");
    assert_eq!((report.unmounted, report.in_use), (vec![root], vec![]));
    layerstore::unmount(&other).expect("unmounts");
}

#[test]
fn after_unmounting_all_a_store_can_be_removed() {
    if !namespaced("after_unmounting_all_a_store_can_be_removed") {
        return;
    }
    for driver in DRIVERS {
        let dir = support::disk_dir();
        let snapshots = snapshotter(&dir.path().join("store"), driver);
        let store = snapshots.store();
        let mounts = prepare(&snapshots, dir.path());
        let (root, again) = (mkdir(dir.path(), "root"), mkdir(dir.path(), "again"));
        layerstore::mount_all(&mounts, &root).expect("mounts");
        let parent = snapshots.stat("work").expect("there").parent;
        let view = snapshots.view("view", parent.as_deref(), &Labels::new(), &()).expect("views");
        layerstore::mount_all(&view, &again).expect("mounts");
        let used = fs::File::open(root.join("1-large")).expect("a file");
        let report = store.unmount_all().expect("a table");
        assert_eq!(report.in_use, std::slice::from_ref(&root), "{driver}");
        assert!(report.unmounted.contains(&again), "{driver}: {report:?}");
        drop(used);
        let report = store.unmount_all().expect("a table");
        assert_eq!((report.unmounted, report.in_use), (vec![root.clone()], vec![]), "{driver}");
        // Snapshots stay, and what they share is brought back when they are mounted.
        layerstore::mount_all(&snapshots.mounts("work", &()).expect("mounts"), &root).expect("mounts");
        assert_whole(&root);
        store.unmount_all().expect("a table");
        assert_eq!(store.mounts().expect("a table"), [], "{driver}");
        fs::remove_dir_all(store.path()).expect("nothing is mounted below it");
    }
}

/// A process in namespaces of its own that has done something there, and stays until this is dropped.
struct Elsewhere(Child);

impl Elsewhere {
    fn new(test: &str, user: u32, flags: &[&str], script: &str) -> Option<Self> {
        let mut unshare = Command::new("unshare");
        unshare.args(flags).args(["sh", "-c", &format!("set -e; {script}; echo ready; exec cat")]);
        unshare.uid(user).gid(user).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = unshare.spawn().ok()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("readable");
        let elsewhere = Self(child);
        if line.trim() == "ready" {
            return Some(elsewhere);
        }
        println!("skipped: {test}: mounts in user namespaces do not work here");
        None
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const USER: [&str; 5] = ["--user", "--map-root-user", "--mount", "--propagation", "private"];

#[test]
fn mounts_of_other_users_hold_nothing_up() {
    let name = "mounts_of_other_users_hold_nothing_up";
    if !namespaced(name) {
        return;
    }
    let dir = support::disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Copy);
    for key in ["a", "b", "c"] {
        empty(&snapshots, key);
    }
    let store = snapshots.store().path().display().to_string();
    let top = format!("/{}", store.split('/').nth(1).expect("an absolute path"));
    // Any text is the source of a tmpfs; and directories of the same names are made in a root of one's own.
    let script = format!(
        "mount -t tmpfs {store}/snapshots/1,{store}/snapshots/2 /mnt; mkdir /mnt/on; mount -t tmpfs none {top}
         mkdir -p {store}/snapshots/2/fs {store}/snapshots/3/fs
         mount -t overlay o -o lowerdir={store}/snapshots/2/fs:{store}/snapshots/3/fs /mnt/on"
    );
    let Some(_elsewhere) = Elsewhere::new(name, 65534, &USER, &script) else { return };
    for key in ["a", "b", "c"] {
        snapshots.remove(key).expect("nobody who counts has mounted it");
    }
    assert_eq!(snapshots.cleanup().expect("cleans"), 3);
    assert_eq!(names(snapshots.store().path(), "snapshots"), [""; 0]);
}

/// The owner's containers, in whatever namespaces: what they have mounted stays.
#[test]
fn mounts_of_the_owner_count_wherever_they_are() {
    let name = "mounts_of_the_owner_count_wherever_they_are";
    if !namespaced(name) {
        return;
    }
    let dir = support::disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Copy);
    let root = snapshots.store().path();
    for (n, flags) in [(1, &USER[2..]), (2, &USER[..])] {
        let key = n.to_string();
        empty(&snapshots, &key);
        let lower = root.join("snapshots").join(&key).join("fs");
        let (beside, top) = (mkdir(dir.path(), &format!("beside-{n}")), dir.path().display());
        let (lower, beside) = (lower.display(), beside.display());
        for script in [
            format!("mount --bind {lower} /mnt"),
            // The name alone leads nowhere any more, as in a container that has left the host's root.
            format!("mount -t overlay o -o lowerdir={lower}:{beside} /mnt; mount -t tmpfs none {top}"),
        ] {
            let Some(elsewhere) = Elsewhere::new(name, 0, flags, &script) else { continue };
            if snapshots.stat(&key).is_ok() {
                assert_eq!(snapshots.mount_points(&key).expect("tables"), Some(vec![]), "{script}");
                assert_eq!(kind(snapshots.remove(&key)), ErrorKind::Busy, "{script}");
                snapshots.remove_with(&key, &RemoveOptions::default().mounted(true)).expect("it was said");
            }
            assert_eq!(snapshots.cleanup().expect("cleans"), 0, "{script}");
            let report = gc(snapshots.store());
            assert!(!report.removed.iter().any(|g| g.kind == GarbageKind::Snapshot), "{script}");
            assert_eq!(report.mounted, [Path::new("snapshots").join(&key)], "{script}");
            assert_eq!(names(root, "snapshots"), std::slice::from_ref(&key), "{script}");
            drop(elsewhere);
        }
        if snapshots.stat(&key).is_ok() {
            return;
        }
        assert_eq!(snapshots.cleanup().expect("cleans"), 1);
    }
}
