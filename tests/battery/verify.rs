//! What must hold of a store after any fault, once it was opened again.

use crate::ops::{self, Expected, committed, diff_id, import_options, layer, snapshotter, written};
use crate::support::{names, try_export};
use layerstore::{Digest, ErrorKind, FsckOptions, GcOptions, OpenOptions, Store};
use std::path::Path;
use std::sync::Arc;

/// A layer that no worker imports, to see that the store still takes one.
const FRESH: u64 = 9_000_001;

/// Opens the store and checks all of it: what was acknowledged is there and identical, whatever else is listed can be
/// read, leftovers are gone or go with the next gc, fsck and SQLite find it sound, and one more import works. What was
/// damaged gives no wrong bytes and can be mended. What is wrong is said.
pub(crate) fn check(root: &Path, expected: &Expected) -> Result<(), String> {
    let options = OpenOptions::default().create(!expected.made);
    let store = Store::open_with(root, &options).map_err(|e| format!("cannot be opened: {e}"))?;
    let store = Arc::new(store);
    if expected.damaged {
        check_damaged(&store)?;
    }
    check_swept(root)?;
    check_blobs(root)?;
    check_contents(&store, expected)?;
    check_sound(&store)?;
    let import = store.import_layer(&layer(FRESH)[..], &import_options(), &());
    import.map_err(|e| format!("takes no layer any more: {e}"))?;
    let mut after = expected.clone();
    after.layers.insert(FRESH);
    ops::gc(&store).map_err(|e| format!("collects no garbage any more: {e}"))?;
    let plan = store.gc_plan(&GcOptions::default(), &()).map_err(|e| format!("plans no gc any more: {e}"))?;
    if !plan.is_empty() {
        return Err(format!("gc leaves garbage: {plan:?}"));
    }
    check_contents(&store, &after)?;
    drop(store);
    check_swept(root)?;
    check_files(root)
}

/// What can be read is right, and everything can be mended.
fn check_damaged(store: &Store) -> Result<(), String> {
    for info in store.layers().map_err(|e| format!("layers cannot be listed: {e}"))? {
        match try_export(store, &info.diff_id) {
            Ok(tar) if Digest::of(&tar) != info.diff_id => return Err("a damaged layer gave other bytes".into()),
            Err(e) if e.kind() != ErrorKind::Corrupt => return Err(format!("a damaged layer gave {e}")),
            _ => {}
        }
    }
    ops::repair(store).map_err(|e| format!("cannot be mended: {e}: {:?}", e.io_error()))
}

/// Every layer listed is whole, those expected are listed, and so are the snapshots, with what was written to them.
pub(crate) fn check_contents(store: &Arc<Store>, expected: &Expected) -> Result<(), String> {
    let listed = store.layers().map_err(|e| format!("layers cannot be listed: {e}"))?;
    for seed in &expected.layers {
        if !listed.iter().any(|l| l.diff_id == diff_id(*seed)) {
            return Err(format!("layer {seed} was acknowledged and is lost"));
        }
    }
    for info in &listed {
        let tar = try_export(store, &info.diff_id).map_err(|e| format!("a listed layer cannot be read: {e}"))?;
        if Digest::of(&tar) != info.diff_id {
            return Err(format!("layer {} was exported with other bytes", info.diff_id));
        }
    }
    expected.commits.iter().try_for_each(|seed| check_commit(store, *seed))
}

fn check_commit(store: &Arc<Store>, seed: u64) -> Result<(), String> {
    let read = || {
        let layers = snapshotter(store, 1)?.layers(&committed(seed), &())?;
        let root = store.root(&layers)?;
        let mut wrong = vec![];
        for (name, content) in written(seed) {
            let mut back = vec![];
            root.open(name.as_bytes())?.copy_to(&mut back)?;
            wrong.extend((back != content).then_some(name));
        }
        Ok::<_, layerstore::Error>(wrong)
    };
    match read() {
        Ok(wrong) if wrong.is_empty() => Ok(()),
        Ok(wrong) => Err(format!("commit {seed} has other bytes in {wrong:?}")),
        Err(e) => Err(format!("commit {seed} was acknowledged and cannot be read: {e}")),
    }
}

/// fsck reads every byte and finds nothing.
pub(crate) fn check_sound(store: &Store) -> Result<(), String> {
    let options = FsckOptions::default().full(true).threads(crate::support::THREADS);
    match store.fsck(&options, &()) {
        Ok(report) if report.is_clean() => Ok(()),
        Ok(report) => Err(format!("fsck: {:?}", report.findings)),
        Err(e) => Err(format!("fsck: {e}")),
    }
}

fn database(root: &Path) -> Result<rusqlite::Connection, String> {
    rusqlite::Connection::open(root.join("index.db")).map_err(|e| e.to_string())
}

fn column<T: rusqlite::types::FromSql>(db: &rusqlite::Connection, sql: &str) -> Result<Vec<T>, String> {
    let read = || db.prepare(sql)?.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>();
    read().map_err(|e: rusqlite::Error| format!("{sql}: {e}"))
}

/// Every blob that the database says was kept is there, byte for byte.
fn check_blobs(root: &Path) -> Result<(), String> {
    for hex in column::<String>(&database(root)?, "SELECT lower(hex(digest)) FROM blobs WHERE kept = 1")? {
        let digest = Digest::from_hex(&hex).map_err(|e| e.to_string())?;
        let blob = std::fs::read(root.join("blobs").join(digest.hex())).map_err(|e| format!("blob {digest}: {e}"))?;
        if Digest::of(&blob) != digest {
            return Err(format!("blob {digest} has other bytes"));
        }
    }
    Ok(())
}

/// Nothing of unfinished imports is left, and what packs the database has are there.
fn check_swept(root: &Path) -> Result<(), String> {
    let left = names(root, "tmp");
    if !left.is_empty() {
        return Err(format!("left in tmp: {left:?}"));
    }
    let db = database(root)?;
    let sound: Vec<String> = column(&db, "PRAGMA integrity_check")?;
    if sound != ["ok"] {
        return Err(format!("the database is damaged: {sound:?}"));
    }
    let reserved: Vec<i64> = column(&db, "SELECT base FROM packs WHERE session IS NOT NULL")?;
    if !reserved.is_empty() {
        return Err(format!("packs are still reserved: {reserved:x?}"));
    }
    let bases: Vec<i64> = column(&db, "SELECT base FROM packs ORDER BY base")?;
    let ends: Vec<i64> = column(&db, "SELECT base + len FROM packs ORDER BY base")?;
    if let Some(two) = bases.iter().skip(1).zip(&ends).find(|(next, end)| end > next) {
        return Err(format!("packs share addresses: {two:x?}"));
    }
    for (base, end) in bases.iter().zip(&ends) {
        let path = root.join("packs").join(format!("{base:011x}.pack"));
        let size = std::fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?.len();
        if size != *end as u64 {
            return Err(format!("pack {} ends at {size:#x}, not at {end:#x}", path.display()));
        }
    }
    Ok(())
}

/// After gc there are no files but those the database knows.
fn check_files(root: &Path) -> Result<(), String> {
    let db = database(root)?;
    let packs = column::<i64>(&db, "SELECT base FROM packs ORDER BY base")?;
    let packs: Vec<_> = packs.iter().map(|base| format!("{base:011x}.pack")).collect();
    let layers = column::<String>(&db, "SELECT lower(hex(diff_id)) || '.layer' FROM layers ORDER BY diff_id")?;
    let blobs = column::<String>(&db, "SELECT lower(hex(digest)) FROM blobs WHERE kept = 1 ORDER BY digest")?;
    for (dir, known) in [("packs", packs), ("layers", layers), ("blobs", blobs), ("trees", vec![]), ("locks", vec![])] {
        let there = names(root, dir);
        if known != there {
            return Err(format!("{dir} known {known:?}, there {there:?}"));
        }
    }
    Ok(())
}
