//! Garbage collection never touches what a mount can reach, even one that its snapshot did not outlive.
//!
//! Needs root; every test runs in a mount namespace of its own.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use layerstore::{
    Detected, Digest, DriverKind, GarbageKind, GcOptions, GcReport, ImportOptions, Labels, Limits, Mount, Selector,
    Snapshotter, Store, detect,
};
use std::fs;
use std::path::Path;

use support::layers::snapshotter;
use support::{assert_empty, names, namespaced, noise, words, write_image};

fn tar(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

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
        keys.retain(|key| snapshots.remove(key).is_err());
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
