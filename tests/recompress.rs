//! What was compressed in haste is compressed again while it is in use, and nothing changes but the space it takes.
//!
//! The one that mounts needs root, and runs in a mount namespace of its own.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use layerstore::{
    Compress, Digest, DriverKind, FsckOptions, GcOptions, GcReport, ImportOptions, Labels, RebuildOptions,
    RecompressOptions, RecompressReport, Snapshotter, Store,
};
use std::fs;
use std::path::Path;
use support::layers::{commit_chain, snapshotter};
use support::{export, namespaced, noise, words};

/// Small files that share bundles, files of one and of several chunks, and one that nothing makes smaller.
fn files() -> Vec<(String, Vec<u8>)> {
    let small = (0..200).map(|n| (format!("small-{n}"), words(n, 5000)));
    let large = (0..4).map(|n| (format!("large-{n}"), words(900 + n, 700_000)));
    small.chain(large).chain([("noise".into(), noise(1, 300_000))]).collect()
}

fn layer() -> Vec<u8> {
    let parts: Vec<_> = files().into_iter().map(|(name, bytes)| build::file(name, bytes)).collect();
    build::tar(&parts)
}

/// Stores the layer in a way that leaves much to gain.
fn import(store: &Store, tar: &[u8]) -> Digest {
    let options = ImportOptions::default().compress(Compress::Lz4);
    store.import_layer(tar, &options, &()).expect("a good layer").0.diff_id
}

fn recompress(store: &Store) -> RecompressReport {
    store.recompress(&RecompressOptions::default(), &()).expect("a sound store")
}

fn gc(store: &Store) -> GcReport {
    let options = GcOptions::default();
    let plan = store.gc_plan(&options, &()).expect("a sound store");
    store.gc(&plan, &options, &()).expect("a sound store")
}

fn assert_sound(store: &Store) {
    let report = store.fsck(&FsckOptions::default().full(true), &()).expect("fsck runs");
    assert!(report.is_clean(), "{:?}", report.findings);
}

fn packs(store: &Store) -> u64 {
    store.usage().expect("usage").packs
}

#[test]
fn it_gets_smaller_and_gives_the_same_back() {
    let dir = support::disk_dir();
    let store = Store::open(dir.path().join("store")).unwrap();
    let tar = layer();
    let id = import(&store, &tar);
    let before = packs(&store);

    let report = recompress(&store);
    assert!(report.moved > 10 && report.moved < report.chunks, "noise stays where it is: {report:?}");
    assert!(report.after * 10 < report.before * 9, "{report:?}");
    assert!(export(&store, &id) == tar);
    assert_sound(&store);
    let freed = gc(&store);
    assert_eq!(freed.waiting, 0, "nobody reads the old copies");
    // What was saved, less the table and header of the new pack.
    let saved = before - packs(&store);
    assert!(saved > (report.before - report.after) * 9 / 10 - 16_384, "{saved} {report:?}");
    assert!(export(&store, &id) == tar);
    assert_sound(&store);

    // A second time there is nothing to gain, and nothing is written.
    let again = recompress(&store);
    assert_eq!((again.moved, again.chunks), (0, report.chunks));
    // What comes later finds small files and chunks where they are now.
    let later = build::tar(&[build::file("copy", words(7, 5000)), build::file("copy-2", words(901, 700_000))]);
    let (_, stats) = store.import_layer(&later[..], &ImportOptions::default(), &()).unwrap();
    assert_eq!(stats.new_raw, 0, "all of it is known");
}

#[test]
fn the_index_of_packs_is_complete() {
    let dir = support::disk_dir();
    let root = dir.path().join("store");
    let store = Store::open(&root).unwrap();
    let tar = layer();
    let id = import(&store, &tar);
    recompress(&store);
    gc(&store);
    drop(store);
    fs::remove_file(root.join("index.db")).unwrap();
    Store::rebuild(&root, &RebuildOptions::default(), &()).unwrap();
    let store = Store::open(&root).unwrap();
    assert!(export(&store, &id) == tar);
    assert_sound(&store);
}

fn assert_whole(root: &Path) {
    for (name, bytes) in files() {
        assert!(fs::read(root.join(&name)).expect(&name) == bytes, "{name} was damaged");
    }
}

fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root");
}

fn view(snapshots: &Snapshotter, key: &str, base: &str, root: &Path) {
    fs::create_dir(root).expect("works");
    let mounts = snapshots.view(key, Some(base), &Labels::new(), &()).expect("works");
    layerstore::mount_all(&mounts, root).expect("works");
}

#[test]
fn what_is_mounted_stays_mounted() {
    if !namespaced("what_is_mounted_stays_mounted") {
        return;
    }
    let dir = support::disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Erofs);
    let store = snapshots.store();
    let id = import(store, &layer());
    let base = commit_chain(&snapshots, &[id]);
    let root = dir.path().join("root");
    view(&snapshots, "a", &base, &root);

    let report = recompress(store);
    assert!(report.moved > 10, "{report:?}");
    assert!(gc(store).waiting >= report.moved, "the mount shows the old copies");
    drop_caches();
    assert_whole(&root);

    layerstore::unmount(&root).unwrap();
    snapshots.remove("a").unwrap();
    let mount = fs::read_dir(store.path().join("mounts")).unwrap().flatten().next().expect("a mount").path();
    layerstore::unmount(&mount).unwrap();
    gc(store);
    assert_eq!(gc(store).waiting, 0, "nobody shows them any more");
    view(&snapshots, "b", &base, &dir.path().join("again"));
    drop_caches();
    assert_whole(&dir.path().join("again"));
    assert_sound(store);
    layerstore::unmount(&dir.path().join("again")).unwrap();
    layerstore::unmount(&mount).unwrap();
}
