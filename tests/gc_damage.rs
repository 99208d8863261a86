//! Garbage collection of a store that is damaged, and of what dead processes left.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use layerstore::{ErrorKind, GarbageKind, GcOptions, GcPlan, GcReport, Store};
use std::collections::BTreeSet;
use std::fs;
use support::{export, import, names, noise, store, words};

/// A layer of a large file and some small ones of its own, and of others that all layers of a `family` have.
fn layer(family: u64, seed: u64) -> Vec<u8> {
    let files = |dir: &str, seed: u64| {
        let small = (0..20).map(|n| build::file(format!("{dir}/{n}"), words(seed * 1000 + n, 2500)));
        small.chain([build::file(format!("{dir}/large"), noise(seed, 600_000))]).collect::<Vec<_>>().concat()
    };
    [files("own", seed), files("family", family + 1_000_000), vec![0; 1024]].concat()
}

fn plan(store: &Store) -> GcPlan {
    store.gc_plan(&GcOptions::default(), &()).expect("a sound store")
}

fn gc(store: &Store) -> GcReport {
    store.gc(&plan(store), &GcOptions::default(), &()).expect("a sound store")
}

/// A damaged pack stays as it is, and the rest is collected.
#[test]
fn a_damaged_pack_is_left_alone() {
    let (_dir, store) = store();
    let tars = [layer(1, 1), layer(2, 2), layer(2, 3), layer(3, 4)];
    let ids: Vec<_> = tars.iter().map(|tar| import(&store, tar).diff_id).collect();
    let packs: Vec<_> = names(store.path(), "packs").iter().map(|name| store.path().join("packs").join(name)).collect();
    assert_eq!(packs.len(), 4);
    // Of the first pack nothing is needed any more, of the second a part, and all of the fourth.
    [ids[0], ids[1]].iter().for_each(|id| store.release_layer(id).unwrap());
    let good: Vec<_> = packs[..2].iter().map(|path| fs::read(path).unwrap()).collect();
    for (path, good) in packs[..2].iter().zip(&good) {
        support::sound::flip(path, good.len() as u64 - 100);
    }
    fs::remove_file(&packs[3]).unwrap();
    store.release_layer(&ids[3]).unwrap();
    let damaged = [&packs[0], &packs[1], &packs[3]].map(|path| path.to_owned());
    let plan = plan(&store);
    assert_eq!(plan.damaged, damaged);
    let kinds: Vec<_> = plan.garbage.iter().map(|g| g.kind).collect();
    assert_eq!((kinds, plan.punch), (vec![GarbageKind::Layer; 3], 0));
    let report = gc(&store);
    assert_eq!((&report.damaged[..], report.removed.len(), report.punched), (&damaged[..], 3, 0));
    assert!(
        report.chunks > 0
            && packs[..2].iter().zip(&good).all(|(path, good)| {
                let now = fs::read(path).unwrap();
                now.len() == good.len() && now.iter().zip(good).filter(|(a, b)| a != b).count() == 1
            })
    );
    // What lives in a damaged pack can be read, and other packs are collected beside it.
    assert!(export(&store, &ids[2]) == tars[2]);
    let other = import(&store, &layer(5, 5)).diff_id;
    store.release_layer(&other).unwrap();
    let kinds: BTreeSet<_> = gc(&store).removed.iter().map(|g| g.kind).collect();
    assert_eq!(kinds, [GarbageKind::Layer, GarbageKind::Pack].into());
    // Put right again, they are collected like any other.
    packs.iter().zip(&good).for_each(|(path, good)| fs::write(path, good).unwrap());
    let report = gc(&store);
    assert!(report.damaged == [packs[3].clone()] && report.punched > 500_000 && !packs[0].exists(), "{report:?}");
    assert!(export(&store, &ids[2]) == tars[2]);
}

/// Lock files of processes that were killed go, those in use do not.
#[test]
fn locks_of_the_dead_go() {
    let (_dir, store) = store();
    let lock = |name: &str| fs::File::create(store.path().join("locks").join(name)).unwrap();
    let (dead, living) = (lock("absorb-1"), lock("absorb-2"));
    living.lock().unwrap();
    drop(dead);
    gc(&store);
    assert_eq!(names(store.path(), "locks"), ["absorb-2"]);
}

/// A pack that was read through a store and then removed takes no space for as long as that store is open.
#[test]
fn a_removed_pack_is_not_held_open() {
    let (_dir, store) = store();
    let tar = layer(1, 1);
    let id = import(&store, &tar).diff_id;
    assert!(export(&store, &id) == tar);
    store.release_layer(&id).unwrap();
    gc(&store);
    let open: Vec<_> =
        fs::read_dir("/proc/self/fd").unwrap().flatten().flat_map(|fd| fs::read_link(fd.path())).collect();
    let root = store.path().join("packs");
    assert!(!open.iter().any(|path| path.starts_with(&root)), "{open:?}");
}

/// A damaged row that says what an image is makes no garbage of what the image needs.
#[test]
fn damaged_rows_of_images_stop_gc() {
    let sound = support::sound::sound_of(3, 66_000, 4000);
    let config = {
        let store = Store::open(&sound.root).unwrap();
        gc(&store);
        *store.image("i").unwrap().config.as_bytes()
    };
    let file = sound.root.join("index.db");
    let good = fs::read(&file).unwrap();
    let places: Vec<usize> = (0..good.len() - 32).filter(|at| good[*at..*at + 32] == config).map(|at| at + 7).collect();
    assert!(places.len() > 3, "the image, its second copy, and its layers");
    for at in places {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        fs::write(&file, &bad).unwrap();
        let store = Store::open(&sound.root).unwrap();
        let plan = store.gc_plan(&GcOptions::default(), &());
        assert_eq!(plan.expect_err("a damaged row").kind(), ErrorKind::Corrupt, "byte {at}");
        let done = store.gc(&GcPlan::default(), &GcOptions::default(), &());
        assert_eq!(done.expect_err("a damaged row").kind(), ErrorKind::Corrupt, "byte {at}");
        drop(store);
        for log in ["index.db-wal", "index.db-shm"] {
            let _ = fs::remove_file(sound.root.join(log));
        }
    }
    fs::write(&file, &good).unwrap();
    assert!(support::sound::read_all(&sound).is_empty());
}

/// A row that has a chunk where it is not gives nothing of it back: a rebuild finds it where it is.
#[test]
fn chunks_that_rows_have_elsewhere_are_not_punched() {
    let (_dir, store) = store();
    // Half of each byte's bits: it compresses to a half.
    let half: Vec<u8> = noise(9, 100_000).iter().map(|b| b & 15).collect();
    let tars = [[build::file("half", half), vec![0; 1024]].concat(), layer(2, 2)];
    let (kept, other) = (import(&store, &tars[0]).diff_id, import(&store, &tars[1]).diff_id);
    let db = rusqlite::Connection::open(store.path().join("index.db")).unwrap();
    let edit = |sql: &str| assert_eq!(db.execute(sql, []).unwrap(), 1, "{sql}");
    store.release_layer(&other).unwrap();
    let n = "(SELECT min(n) FROM chunks WHERE stored >> 24 > 0 AND stored & 0xffffff > 20000)";
    for (harm, mend) in
        [("block = block + 1000000", "block = block - 1000000"), ("stored = stored - 8192", "stored = stored + 8192")]
    {
        edit(&format!("UPDATE chunks SET {harm} WHERE n = {n}"));
        let report = gc(&store);
        assert_eq!(report.damaged.len(), 1, "{harm}: {report:?}");
        edit(&format!("UPDATE chunks SET {mend} WHERE n = {n}"));
        assert!(export(&store, &kept) == tars[0], "{harm}");
    }
    assert!(gc(&store).damaged.is_empty());
}

/// A pack's row that no pack can have is an error, and no memory is asked for on its word.
#[test]
fn an_impossible_pack_stops_gc() {
    let (_dir, store) = store();
    let tar = layer(1, 1);
    let id = import(&store, &tar).diff_id;
    let db = rusqlite::Connection::open(store.path().join("index.db")).unwrap();
    for len in ["len | 1 << 63", "len | 1 << 62", "len + 1", "1 << 45"] {
        let good: i64 = db.query_row("SELECT len FROM packs", [], |r| r.get(0)).unwrap();
        db.execute(&format!("UPDATE packs SET len = {len}"), []).unwrap();
        let plan = store.gc_plan(&GcOptions::default(), &());
        assert_eq!(plan.expect_err("a damaged row").kind(), ErrorKind::Corrupt, "{len}");
        db.execute("UPDATE packs SET len = ?1", [good]).unwrap();
    }
    gc(&store);
    assert!(export(&store, &id) == tar);
}
