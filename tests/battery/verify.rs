//! What must hold of a store after any fault, once it was opened again.

use crate::support::{self, names, try_export};
use crate::work::{Expected, diff_id, layer};
use layerstore::{Digest, ImportOptions, OpenOptions, Store};
use std::path::Path;

/// A layer that no worker imports, to see that the store still takes one.
const FRESH: u64 = 9_000_001;

/// Opens the store and checks all of it: what was acknowledged is there and identical, whatever else is listed can be
/// read, leftovers are gone, structure and database are sound, and one more import works. What is wrong is said.
pub(crate) fn check(root: &Path, expected: &Expected) -> Result<(), String> {
    let options = OpenOptions::default().create(!expected.made);
    let store = Store::open_with(root, &options).map_err(|e| format!("cannot be opened: {e}"))?;
    check_leftovers(root)?;
    check_blobs(root)?;
    check_layers(&store, expected)?;
    let import = |seed| store.import_layer(&layer(seed)[..], &ImportOptions::default().threads(support::THREADS), &());
    import(FRESH).map_err(|e| format!("takes no layer any more: {e}"))?;
    let mut after = expected.clone();
    after.layers.insert(FRESH);
    check_layers(&store, &after)?;
    drop(store);
    check_leftovers(root)
}

/// Every layer listed is whole, and those expected are listed.
fn check_layers(store: &Store, expected: &Expected) -> Result<(), String> {
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
    Ok(())
}

/// Every blob that the database says was kept is there, byte for byte.
fn check_blobs(root: &Path) -> Result<(), String> {
    let db = rusqlite::Connection::open(root.join("index.db")).map_err(|e| e.to_string())?;
    let mut sql = db.prepare("SELECT lower(hex(digest)) FROM blobs WHERE kept = 1").map_err(|e| e.to_string())?;
    let kept = sql.query_map([], |r| r.get::<_, String>(0));
    let kept = kept.and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>).map_err(|e| e.to_string())?;
    for hex in kept {
        let digest = Digest::from_hex(&hex).map_err(|e| e.to_string())?;
        let blob = std::fs::read(root.join("blobs").join(digest.hex())).map_err(|e| format!("blob {digest}: {e}"))?;
        if Digest::of(&blob) != digest {
            return Err(format!("blob {digest} has other bytes"));
        }
    }
    Ok(())
}

/// Nothing of unfinished work is left, and packs and database agree.
fn check_leftovers(root: &Path) -> Result<(), String> {
    let left = names(root, "tmp");
    if !left.is_empty() {
        return Err(format!("left in tmp: {left:?}"));
    }
    let db = rusqlite::Connection::open(root.join("index.db")).map_err(|e| e.to_string())?;
    let text = |sql: &str| db.query_row(sql, [], |r| r.get::<_, String>(0)).map_err(|e| format!("{sql}: {e}"));
    let sound = text("PRAGMA integrity_check")?;
    if sound != "ok" {
        return Err(format!("the database is damaged: {sound}"));
    }
    let reserved = text("SELECT count(*) || '' FROM packs WHERE session IS NOT NULL")?;
    if reserved != "0" {
        return Err(format!("{reserved} packs are still reserved"));
    }
    let mut sql = db.prepare("SELECT base, len FROM packs ORDER BY base").map_err(|e| e.to_string())?;
    let rows = sql.query_map([], |r| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64)));
    let rows = rows.and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>).map_err(|e| e.to_string())?;
    if let Some(two) = rows.windows(2).find(|two| two[0].0 + two[0].1 > two[1].0) {
        return Err(format!("packs share addresses: {two:x?}"));
    }
    let known: Vec<_> = rows.iter().map(|(base, _)| format!("{base:011x}.pack")).collect();
    let there = names(root, "packs");
    if known != there {
        return Err(format!("packs known {known:?}, there {there:?}"));
    }
    for ((base, len), name) in rows.iter().zip(&known) {
        let size = std::fs::metadata(root.join("packs").join(name)).map_err(|e| e.to_string())?.len();
        if size != base + len {
            return Err(format!("pack {name} ends at {size:#x}, not at {:#x}", base + len));
        }
    }
    Ok(())
}
