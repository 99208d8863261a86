//! Plans: looking changes nothing, what waits is told, and gc removes what was planned.

use crate::support::{assert_empty, export, import, names, rows, store, walk};
use crate::{gc, image, layer, plan};
use layerstore::{
    Digest, DriverKind, ErrorKind, GarbageKind, GcOptions, GcPlan, Labels, Snapshotter, SnapshotterOptions, Store,
};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// All that a store holds: names, modes and bytes of its files, and the rows of its database.
fn contents(store: &Store) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    walk(store.path(), &mut |path, meta| {
        let name = path.strip_prefix(store.path()).expect("below it").display().to_string();
        if !name.starts_with("index.db") {
            let bytes = if meta.is_file() { fs::read(path).expect("readable") } else { vec![] };
            found.insert(format!("{name} {:o} {} {}", meta.mode(), meta.uid(), Digest::of(&bytes)));
        }
    });
    let db = rusqlite::Connection::open(store.path().join("index.db")).expect("the database");
    let tables = "SELECT name FROM sqlite_master WHERE type = 'table'";
    let mut tables = db.prepare(tables).expect("a statement");
    let tables: Vec<String> = tables.query_map([], |r| r.get(0)).expect("rows").map(|r| r.expect("a row")).collect();
    for table in tables {
        let mut all = db.prepare(&format!("SELECT * FROM {table}")).expect("a statement");
        let columns = all.column_count();
        let row =
            |r: &rusqlite::Row<'_>| (0..columns).map(|c| r.get(c)).collect::<Result<Vec<rusqlite::types::Value>, _>>();
        found.extend(all.query_map([], row).expect("rows").map(|r| format!("{table} {:?}", r.expect("a row"))));
    }
    found
}

/// An image of two layers without a name, whose snapshots somebody stood on so long ago.
fn implied(store: &Arc<Store>, dir: &Path, ago: Duration) -> Snapshotter {
    image(store, dir, "i", &[layer(1, 1), layer(1, 2)]);
    let options = SnapshotterOptions::default().driver(DriverKind::Copy);
    let snapshots = Snapshotter::open(store.clone(), &options).expect("needs nothing");
    snapshots.commit_image(&store.image("i").expect("an image"), &()).expect("commits");
    store.remove_image("i").expect("an image");
    let db = rusqlite::Connection::open(store.path().join("index.db")).expect("the database");
    let (sql, ago) = ("UPDATE snapshots SET created = created - ?1, updated = updated - ?1", ago.as_nanos() as i64);
    assert_eq!(db.execute(sql, [ago]).expect("rows"), 2);
    snapshots
}

#[test]
fn looking_changes_nothing() {
    let (dir, store) = store();
    let store = Arc::new(store);
    let held = import(&store, &layer(2, 3)).diff_id;
    let snapshots = implied(&store, dir.path(), Duration::from_secs(3600));
    snapshots.prepare("empty", None, &Labels::new(), &()).expect("prepares");
    let before = contents(&store);
    assert!(before.len() > 50, "{before:?}");
    let plan = plan(&store);
    assert_eq!(plan.garbage.iter().filter(|g| g.kind == GarbageKind::Layer).count(), 2, "{plan:?}");
    let now = store.gc_plan(&GcOptions::default().now(true), &()).unwrap();
    assert_eq!(now, plan, "nothing waits");
    let usage = store.usage_by_image(&()).unwrap();
    assert_eq!(usage.reclaimable, plan.bytes());
    store.usage().unwrap();
    store.keepers(&held).unwrap();
    store.fsck(&layerstore::FsckOptions::default(), &()).unwrap();
    store.images().unwrap();
    store.layers().unwrap();
    store.mounts().unwrap();
    snapshots.stat("empty").unwrap();
    snapshots.usage("empty").unwrap();
    snapshots.mount_points("empty").unwrap();
    snapshots.walk(|_| Ok(())).unwrap();
    let after = contents(&store);
    assert_eq!(before.symmetric_difference(&after).collect::<Vec<_>>(), [""; 0]);

    assert_eq!(store.gc(&plan, &GcOptions::default(), &()).unwrap().bytes(), plan.bytes());
    assert_eq!(rows(store.path(), "snapshots"), 1, "those of the image's layers are gone");
    assert_eq!(store.layers().unwrap().len(), 1);
    assert!(crate::plan(&store).is_empty());
}

#[test]
fn what_waits_for_the_next_mount_is_told_and_can_go_at_once() {
    let (dir, store) = store();
    let store = Arc::new(store);
    let snapshots = implied(&store, dir.path(), Duration::from_secs(100));
    let plan = plan(&store);
    let layers = |plan: &GcPlan| plan.garbage.iter().filter(|g| g.kind == GarbageKind::Layer).count();
    assert_eq!((layers(&plan), plan.kept.len()), (0, 1), "{plan:?}");
    let kept = &plan.kept[0];
    assert_eq!((&kept.namespace[..], kept.layers), ("default", 2));
    assert_eq!(kept.tar, (layer(1, 1).len() + layer(1, 2).len()) as u64);
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!((1..=200).contains(&(kept.until - seconds)), "{kept:?} at {seconds}");
    let report = store.gc(&plan, &GcOptions::default(), &()).unwrap();
    assert_eq!((report.kept, store.layers().unwrap().len()), (plan.kept, 2));
    // Used once more, the time begins anew.
    let top = snapshots.commit_image(&image_of(&[layer(1, 1), layer(1, 2)]), &()).unwrap().expect("a chain");
    let again = crate::plan(&store).kept;
    assert!(again[0].until >= kept_until(seconds), "{again:?}");
    // Something stands on it.
    snapshots.prepare("work", Some(&top), &Labels::new(), &()).unwrap();
    let now = GcOptions::default().now(true);
    assert_eq!(layers(&store.gc_plan(&now, &()).unwrap()), 0);
    snapshots.remove("work").unwrap();
    let plan = store.gc_plan(&now, &()).unwrap();
    assert_eq!((layers(&plan), plan.kept.len()), (2, 0));
    assert_eq!(rows(store.path(), "snapshots"), 2, "a plan changes nothing");
    store.gc(&plan, &now, &()).unwrap();
    assert_eq!((rows(store.path(), "snapshots"), store.layers().unwrap().len()), (0, 0));
}

fn kept_until(now: i64) -> i64 {
    now + 299
}

fn image_of(tars: &[Vec<u8>]) -> layerstore::ImageInfo {
    let (config, manifest) = (Digest::of(b"c"), Digest::of(b"m"));
    layerstore::ImageInfo {
        name: "i".into(),
        config,
        manifest,
        layers: tars.iter().map(|tar| Digest::of(tar)).collect(),
    }
}

/// What became garbage after the plan waits for the next one.
#[test]
fn gc_removes_what_the_plan_lists_and_nothing_else() {
    let (dir, store) = store();
    let store = Arc::new(store);
    let [first, second] = [layer(1, 5), layer(2, 6)].map(|tar| import(&store, &tar).diff_id);
    store.release_layer(&first).unwrap();
    let plan = plan(&store);
    let snapshots = implied(&store, dir.path(), Duration::from_secs(3600));
    store.release_layer(&second).unwrap();
    let stray = Digest::of(b"stray").hex();
    fs::write(store.path().join("blobs").join(&stray), "x").unwrap();
    snapshots.prepare("gone", None, &Labels::new(), &()).unwrap();
    snapshots.remove("gone").unwrap();
    let later = crate::plan(&store);
    let report = store.gc(&plan, &GcOptions::default(), &()).unwrap();
    assert!(report.removed.iter().all(|g| plan.garbage.contains(g)), "{report:?}");
    assert_eq!(store.layer(&first).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(export(&store, &second) == layer(2, 6));
    assert!(store.path().join("blobs").join(&stray).exists());
    assert_eq!((rows(store.path(), "snapshots"), names(store.path(), "snapshots").len()), (2, 1));
    store.gc(&GcPlan::default(), &GcOptions::default(), &()).unwrap();
    assert!(export(&store, &second) == layer(2, 6), "an empty plan removes nothing");
    // What came to be needed since stays.
    store.gc(&later, &GcOptions::default(), &()).unwrap();
    gc(&store);
    assert_empty(&store, "all of it was planned by then");
}
