//! `usage` of the whole store says what the file system has allocated to it, whatever is in the store.

mod support;

use layerstore::{DriverKind, Labels, Snapshotter, SnapshotterOptions, Store, Usage};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use support::{noise, store};

/// Bytes of the blocks of all that is below a directory, itself included; hard links once.
fn blocks(path: &Path, linked: &mut HashSet<u64>) -> u64 {
    let meta = fs::symlink_metadata(path).expect("a store's file");
    let mut sum = if meta.is_dir() || linked.insert(meta.ino()) { meta.blocks() * 512 } else { 0 };
    if meta.is_dir() {
        sum += fs::read_dir(path)
            .expect("a store's file")
            .map(|found| blocks(&found.expect("a store's file").path(), linked))
            .sum::<u64>();
    }
    sum
}

fn checked(store: &Store, when: &str) -> Usage {
    let usage = store.usage().expect("a store's file");
    let (told, there) = (usage.total(), blocks(store.path(), &mut HashSet::new()));
    assert!(told.abs_diff(there) * 20 <= there, "{when}: told {told}, there are {there}: {usage:?}");
    usage
}

#[test]
fn it_is_what_the_file_system_has_allocated_at_any_moment() {
    let (_dir, store) = store();
    let store = Arc::new(store);
    let empty = checked(&store, "an empty store");
    assert_eq!((empty.packs, empty.snapshots, empty.trees, empty.images), (0, 0, 0, 0));

    support::layers::Layer::new().file("f", &noise(1, 300_000)).put(&store);
    let imported = checked(&store, "a layer");
    assert!(imported.packs >= 300_000 && imported.snapshots == 0, "{imported:?}");

    let options = SnapshotterOptions::default().driver(DriverKind::Copy);
    let snapshots = Snapshotter::open(store.clone(), &options).expect("a store's file");
    let mounts = snapshots.prepare("s", None, &Labels::new(), &()).expect("a store's file");
    fs::write(Path::new(&mounts[0].source).join("written"), noise(2, 3_000_000)).expect("a store's file");
    let written = checked(&store, "a snapshot that was written to");
    assert!(written.snapshots >= 3_000_000, "{written:?}");

    // As overlay and EROFS mounts of a chain have them.
    let (tree, name) = (store.path().join("trees"), "a".repeat(64));
    fs::create_dir(tree.join(&name)).expect("a store's file");
    fs::write(tree.join(&name).join("f"), noise(3, 2_000_000)).expect("a store's file");
    fs::hard_link(tree.join(&name).join("f"), tree.join(&name).join("again")).expect("a store's file");
    fs::write(store.path().join("images").join(name + ".erofs"), noise(4, 1_000_000)).expect("a store's file");
    let mounted = checked(&store, "a chain that was mounted");
    assert!((2_000_000..3_000_000).contains(&mounted.trees) && mounted.images >= 1_000_000, "{mounted:?}");

    // As an import in its course has it.
    fs::create_dir(store.path().join("tmp/session-0-x")).expect("a store's file");
    fs::write(store.path().join("tmp/session-0-x/pack"), noise(5, 5_000_000)).expect("a store's file");
    let unfinished = checked(&store, "unfinished work");
    assert!(unfinished.other >= 5_000_000, "{unfinished:?}");

    let content = store.content_usage().expect("a store's file");
    assert_eq!((content.packs, content.records, content.blobs), (mounted.packs, mounted.records, mounted.blobs));
    assert_eq!((content.snapshots, content.trees, content.images, content.other), (0, 0, 0, 0));
}
