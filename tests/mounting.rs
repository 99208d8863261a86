//! What is mounted where, and what is refused before any work is done for it.

mod support;

use layerstore::{Digest, DriverKind, ErrorKind, Labels, Mount, MountPoint, Snapshotter, SnapshotterOptions, Store};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
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
