//! The database is made anew from packs, records and blobs, whatever became of the old one.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use build::tar;
use layerstore::{
    Chunking, CommitOptions, DamageKind, Detected, Digest, DriverKind, ErrorKind, FsckOptions, GcOptions,
    ImportOptions, Labels, Limits, OpenOptions, RebuildOptions, RebuildReport, RepairOptions, RepairSource, Selector,
    Snapshotter, SnapshotterOptions, Store, detect,
};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use support::{export, import, noise, rows, words, write_image};
use tempfile::TempDir;

/// A store with an image `i` of two layers whose blobs are kept, and a layer by itself.
struct Sound {
    _dir: TempDir,
    root: PathBuf,
    tars: Vec<Vec<u8>>,
}

fn sound() -> Sound {
    let dir = support::disk_dir();
    let small =
        |from: u64| (from..from + 40).map(|n| build::file(format!("etc/{n}"), words(n, 300))).collect::<Vec<_>>();
    let first = tar(&[small(0).concat(), build::file("noise", noise(1, 200_000))]);
    let second = tar(&[build::file("text", words(5, 400_000)), build::file("e", "")]);
    let third = tar(&[small(30).concat(), build::file("other", noise(2, 300_000))]);
    let layout = dir.path().join("layout");
    write_image(&layout, &[first.clone(), second.clone()]);
    let root = dir.path().join("store");
    let store = Store::open(&root).expect("a store");
    let Ok(Detected::Image(source)) = detect(&layout, dir.path(), &Limits::default()) else { panic!("no image") };
    let options = ImportOptions::default().keep_blobs(true);
    store.import_image(&source, &Selector::default(), None, &options, &()).expect("an image");
    import(&store, &third);
    drop(store);
    Sound { _dir: dir, root, tars: vec![first, second, third] }
}

fn rebuild(root: &Path) -> RebuildReport {
    Store::rebuild(root, &RebuildOptions::default(), &()).expect("a database")
}

/// Everything is there, the database says what the files say, and the store goes on as before.
fn assert_whole(sound: &Sound) {
    let store = Store::open(&sound.root).expect("a store");
    let report = store.fsck(&FsckOptions::default().full(true), &()).expect("a check");
    assert!(report.is_clean() && report.counts.read > 0, "{report:?}");
    for tar in &sound.tars {
        assert!(export(&store, &Digest::of(tar)) == *tar, "another tar");
        let layer = store.import_layer(&tar[..], &ImportOptions::default(), &()).expect("a layer");
        assert!(layer.0.known && layer.1.new_chunks == 0, "{layer:?}");
    }
    // What they share is found chunk by chunk and file by file.
    let again = tar(&[build::file("x", noise(2, 300_000)), build::file("y", words(7, 300))]);
    let stats = store.import_layer(&again[..], &ImportOptions::default(), &()).expect("a layer").1;
    assert_eq!((stats.new_chunks, stats.content), (0, 300_300));
    store.release_layer(&Digest::of(&again)).expect("a layer");
    let gc = GcOptions::default();
    store.gc(&store.gc_plan(&gc, &()).expect("a plan"), &gc, &()).expect("gc");
    let report = store.fsck(&FsckOptions::default().full(true), &()).expect("a check");
    assert!(report.is_clean(), "{report:?}");
    sound.tars.iter().for_each(|tar| assert!(export(&store, &Digest::of(tar)) == *tar, "another tar after gc"));
}

fn database(root: &Path) -> PathBuf {
    let path = root.join("index.db");
    let db = rusqlite::Connection::open(&path).expect("the database");
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("a checkpoint");
    path
}

#[test]
fn a_missing_database_is_made_anew() {
    let sound = sound();
    for part in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(sound.root.join(format!("index.db{part}")));
    }
    assert_eq!(Store::open(&sound.root).expect_err("no database").kind(), ErrorKind::Corrupt);
    let report = rebuild(&sound.root);
    assert!(report.is_clean() && report.set_aside.is_none(), "{report:?}");
    assert_eq!((report.layers, report.blobs, report.packs), (3, 2, 2));
    assert_eq!(report.unsalvaged, ["layers", "images", "snapshots"]);
    assert_eq!((report.images.len(), report.unnamed.len()), (0, 1));
    let store = Store::open(&sound.root).expect("a store");
    let images = store.images().expect("images");
    assert_eq!(images[0].name, images[0].manifest.to_string());
    assert_eq!(images[0].layers, [Digest::of(&sound.tars[0]), Digest::of(&sound.tars[1])]);
    drop(store);
    assert_whole(&sound);
}

#[test]
fn names_are_read_from_a_database_that_can_be_read() {
    let sound = sound();
    let report = rebuild(&sound.root);
    assert_eq!(report.images, ["i"]);
    assert!(report.unsalvaged.is_empty() && report.unnamed.is_empty() && report.is_clean(), "{report:?}");
    assert_eq!(report.set_aside, Some(sound.root.join("index.db.damaged-1")));
    assert_whole(&sound);
}

#[test]
fn an_empty_or_damaged_database_is_kept_and_replaced() {
    let sound = sound();
    let path = database(&sound.root);
    let good = fs::read(&path).expect("the database");
    let first_byte = [&[0x40], &good[1..]].concat();
    let noise = noise(9, good.len());
    let cases = [vec![], good[..100].to_vec(), good[..good.len() / 2].to_vec(), first_byte, noise];
    for (n, bad) in (1..).zip(cases) {
        fs::write(&path, &bad).expect("the database");
        let report = rebuild(&sound.root);
        let aside = sound.root.join(format!("index.db.damaged-{n}"));
        assert_eq!(report.set_aside.as_ref(), Some(&aside));
        assert!(fs::read(&aside).expect("the old database") == bad, "it was changed");
        assert!(report.is_clean() && report.layers >= 3, "{report:?}");
        assert_whole(&sound);
    }
}

#[test]
fn nobody_has_the_store_open_meanwhile() {
    let sound = sound();
    let store = Store::open(&sound.root).expect("a store");
    let options = RebuildOptions::default().patience(Duration::ZERO);
    let refused = Store::rebuild(&sound.root, &options, &()).expect_err("somebody has it");
    assert_eq!(refused.kind(), ErrorKind::Busy);
    drop(store);
    Store::rebuild(&sound.root, &options, &()).expect("a database");
}

#[test]
fn what_gc_gave_back_stays_gone() {
    let sound = sound();
    let store = Store::open(&sound.root).expect("a store");
    // Some chunks of the pack die, and some live on.
    store.remove_image("i").expect("an image");
    let gc = GcOptions::default();
    let report = store.gc(&store.gc_plan(&gc, &()).expect("a plan"), &gc, &()).expect("gc");
    assert!(report.chunks > 0 && report.bytes() > 0, "{report:?}");
    drop(store);
    let dead: Vec<_> = sound.tars[..2].to_vec();
    for fill in [false, true] {
        if fill {
            // As a copy that knows no holes.
            for pack in fs::read_dir(sound.root.join("packs")).expect("packs") {
                let path = pack.expect("a pack").path();
                let bytes = fs::read(&path).expect("a pack");
                fs::remove_file(&path).expect("a pack");
                fs::write(&path, bytes).expect("a pack");
            }
        }
        fs::remove_file(sound.root.join("index.db")).expect("the database");
        let report = rebuild(&sound.root);
        assert!(report.is_clean() && report.gone > 0 && report.damaged == 0, "{report:?}");
        let store = Store::open(&sound.root).expect("a store");
        assert!(store.fsck(&FsckOptions::default().full(true), &()).expect("a check").is_clean());
        assert_eq!(store.layers().expect("layers").len(), 1);
    }
    let store = Store::open(&sound.root).expect("a store");
    for tar in &dead {
        let (layer, stats) = store.import_layer(&tar[..], &ImportOptions::default(), &()).expect("a layer");
        assert!(!layer.known && stats.new_chunks > 0, "{stats:?}");
        assert!(export(&store, &layer.diff_id) == *tar);
    }
    drop(store);
    assert_whole(&sound);
}

#[test]
fn addresses_are_not_given_out_again() {
    let sound = sound();
    fs::remove_file(sound.root.join("index.db")).expect("the database");
    let before = support::names(&sound.root, "packs");
    // A last pack that was cut short owned more than its file shows.
    let last = sound.root.join("packs").join(before.last().expect("a pack"));
    let base = u64::from_str_radix(&before.last().expect("a pack")[..11], 16).expect("an address");
    fs::File::options().write(true).open(&last).expect("a pack").set_len(base + 4096 + 5).expect("a cut");
    let report = rebuild(&sound.root);
    assert!(!report.is_clean() && report.findings.iter().any(|f| f.file == last), "{report:?}");
    let store = Store::open(&sound.root).expect("a store");
    import(&store, &tar(&[build::file("new", noise(77, 100_000))]));
    let after = support::names(&sound.root, "packs");
    let new = after.iter().find(|name| !before.contains(name)).expect("a new pack");
    assert!(u64::from_str_radix(&new[..11], 16).expect("an address") >= base + (1 << 30), "{new}");
    assert_eq!(rows(&sound.root, "packs"), after.len() as u64);
}

fn flip(path: &Path, place: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a pack");
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).expect("a byte of it");
    file.write_all_at(&[byte[0] ^ 0x40], place).expect("a byte of it");
}

/// Where a pack's table is damaged, the old database says where its chunks are, and their ids whether that is true.
#[test]
fn chunks_of_a_pack_without_a_table_are_found_by_the_old_database() {
    let sound = sound();
    let name = support::names(&sound.root, "packs").remove(0);
    let pack = sound.root.join("packs").join(&name);
    let base = u64::from_str_radix(&name[..11], 16).expect("an address");
    flip(&pack, fs::metadata(&pack).expect("a pack").len() - 50);
    let report = rebuild(&sound.root);
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert_eq!((report.findings[0].kind, &report.findings[0].file), (DamageKind::Pack, &pack));
    let store = Store::open(&sound.root).expect("a store");
    sound.tars.iter().for_each(|tar| assert!(export(&store, &Digest::of(tar)) == *tar));
    drop(store);

    // A chunk that is damaged as well is left out, and its layer says so.
    flip(&pack, base + 2 * 4096 - 1);
    let report = rebuild(&sound.root);
    let missing: Vec<_> = report.findings.iter().filter(|f| f.kind == DamageKind::Record).collect();
    assert!(report.damaged == 1 && !missing.is_empty(), "{report:?}");
    assert!(missing.iter().all(|f| f.chunk.is_some() && !f.layers.is_empty()), "{report:?}");
    let store = Store::open(&sound.root).expect("a store");
    let mended = store.repair(None, &RepairOptions::default(), &()).expect("a report");
    assert!(mended.moved > 0 && mended.packs == [pack], "{mended:?}");
    let source = RepairSource::detect(&sound.root.with_file_name("layout"), &sound.root, &Limits::default());
    store.repair(Some(&source.expect("a layout")), &RepairOptions::default(), &()).expect("a report");
    drop(store);
    assert_whole(&sound);
}

/// `STORE` is made anew: as it was where one byte of it is damaged, else with the default.
#[test]
fn a_damaged_store_file_is_made_anew() {
    let dir = support::disk_dir();
    let root = dir.path().join("store");
    let own = Chunking { avg: 64 << 10, ..Chunking::default() };
    let tar = tar(&[build::file("f", noise(1, 400_000))]);
    {
        let store = Store::open_with(&root, &OpenOptions::default().chunking(own)).expect("a store");
        import(&store, &tar);
    }
    let file = root.join("STORE");
    let good = fs::read(&file).expect("STORE");
    let flipped = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bad
    };
    let one = [3, 24, 60, good.len() - 30].map(|at| (flipped(at), own));
    let more = [good[..50].to_vec(), vec![], noise(1, 300)].map(|bad| (bad, Chunking::default()));
    for (n, (bad, expected)) in one.into_iter().chain(more).enumerate() {
        fs::write(&file, &bad).expect("STORE");
        Store::open(&root).expect_err("a damaged STORE");
        let report = rebuild(&root);
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.parameters, Some(expected));
        assert_eq!(fs::read(root.join(format!("STORE.damaged-{}", n + 1))).expect("the old one"), bad);
        let store = Store::open(&root).expect("a store");
        assert_eq!(store.chunking(), expected);
        assert!(export(&store, &Digest::of(&tar)) == tar);
    }
    fs::write(&file, &good).expect("STORE");
    assert_eq!(rebuild(&root).parameters, None);
    // Without one of its own it is lost.
    fs::remove_file(&file).expect("STORE");
    assert_eq!(rebuild(&root).parameters, Some(Chunking::default()));
    // Another version is none of our business.
    let text = String::from_utf8(good).expect("text").replace("format 1", "format 2");
    let body = &text[..text.len() - 72];
    fs::write(&file, format!("{body}blake3 {}\n", blake3::hash(body.as_bytes()).to_hex())).expect("STORE");
    let refused = Store::rebuild(&root, &RebuildOptions::default(), &()).expect_err("another version");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_lost_pack_and_lost_records_are_told_and_can_be_repaired() {
    let sound = sound();
    let pack = sound.root.join("packs").join(support::names(&sound.root, "packs").remove(0));
    fs::remove_file(pack).expect("a pack");
    fs::remove_file(sound.root.join("layers").join(format!("{}.layer", Digest::of(&sound.tars[1]).hex())))
        .expect("a record");
    fs::remove_file(sound.root.join("index.db")).expect("the database");
    let report = rebuild(&sound.root);
    let hurt: std::collections::BTreeSet<_> = report.findings.iter().flat_map(|f| f.layers.clone()).collect();
    assert!(hurt.contains(&Digest::of(&sound.tars[0])) && hurt.contains(&Digest::of(&sound.tars[1])), "{report:?}");
    assert_eq!((report.layers, report.unnamed.len()), (3, 1));
    let store = Store::open(&sound.root).expect("a store");
    // The blobs of the image were kept.
    let mended = store.repair(None, &RepairOptions::default(), &()).expect("a report");
    assert!(mended.is_clean(), "{mended:?}");
    drop(store);
    assert_whole(&sound);
}

fn snapshots(root: &Path, namespace: &str) -> Snapshotter {
    let options = SnapshotterOptions::default().driver(DriverKind::Copy).namespace(namespace);
    Snapshotter::open(Arc::new(Store::open(root).expect("a store")), &options).expect("the copy driver")
}

#[test]
fn what_was_written_to_snapshots_outlives_the_database() {
    let sound = sound();
    let first = snapshots(&sound.root, "ns");
    let labels: Labels = [("a".to_owned(), "b".to_owned())].into();
    let below = first.commit_image(&first.store().image("i").expect("an image"), &()).expect("commits");
    first.prepare("work", below.as_deref(), &labels, &()).expect("prepares");
    let info = first.stat("work").expect("a snapshot");
    drop(first);
    let dirs = support::names(&sound.root, "snapshots");
    let number: u64 = dirs[0].parse().expect("a number");
    let file = sound.root.join("snapshots").join(&dirs[0]).join("fs/precious");
    fs::write(&file, "mine").expect("a file");

    // A database that can be read explains its directories.
    let report = rebuild(&sound.root);
    assert_eq!((report.snapshots, report.lost.len()), (3, 0));
    let again = snapshots(&sound.root, "ns");
    assert_eq!(again.stat("work").expect("a snapshot"), info);
    again.cleanup().expect("a cleanup");
    assert!(file.exists());
    drop(again);

    fs::remove_file(sound.root.join("index.db")).expect("the database");
    let report = rebuild(&sound.root);
    assert_eq!((report.snapshots, &report.lost[..]), (0, &[sound.root.join("snapshots").join(&dirs[0])][..]));
    let lost = snapshots(&sound.root, "lost+found");
    lost.cleanup().expect("a cleanup");
    let gc = GcOptions::default();
    lost.store().gc(&lost.store().gc_plan(&gc, &()).expect("a plan"), &gc, &()).expect("gc");
    assert_eq!(fs::read(&file).expect("still there"), b"mine");
    lost.prepare("new", None, &Labels::new(), &()).expect("prepares");
    let new = support::names(&sound.root, "snapshots").into_iter().find(|n| !dirs.contains(n)).expect("a directory");
    assert!(new.parse::<u64>().expect("a number") > number, "{new}");
    let layer = lost.commit("found", &dirs[0], &CommitOptions::default(), &()).expect("commits").expect("a layer");
    let mut content = Vec::new();
    let root = lost.store().root(&[layer]).expect("a root");
    root.open(b"/precious").expect("a file").copy_to(&mut content).expect("its content");
    assert_eq!(content, b"mine");
}

/// Whichever page of the database is damaged: everything but names is there, and the names of the other pages.
#[test]
fn a_damaged_page_costs_what_is_on_it() {
    let sound = sound();
    let layout = sound.root.parent().expect("a directory").join("layout");
    let store = Store::open(&sound.root).expect("a store");
    let Ok(Detected::Image(source)) = detect(&layout, &sound.root, &Limits::default()) else { panic!("no image") };
    for n in 0..120 {
        let name = format!("registry.example.org/some/long/enough/name/of/an/image:{n:03}");
        store
            .import_image(&source, &Selector::default(), Some(&name), &ImportOptions::default(), &())
            .expect("an image");
    }
    drop(store);
    let path = database(&sound.root);
    let good = fs::read(&path).expect("the database");
    let mut partial = 0;
    for page in 1..good.len() / 4096 {
        let bad = [&good[..page * 4096], &noise(page as u64, 4096), &good[(page + 1) * 4096..]].concat();
        fs::write(&path, &bad).expect("the database");
        let report = rebuild(&sound.root);
        assert!(report.is_clean() && report.layers == 3, "page {page}: {report:?}");
        assert_eq!(report.images.len() == 121, !report.unsalvaged.contains(&"images"), "page {page}: {report:?}");
        partial += usize::from((1..121).contains(&report.images.len()));
        fs::remove_file(report.set_aside.expect("the old one")).expect("the old one");
        for part in ["-wal", "-shm"] {
            let _ = fs::remove_file(sound.root.join(format!("index.db{part}")));
        }
    }
    assert!(partial > 1, "some names are on other pages than some others");
    fs::write(&path, &good).expect("the database");
    rebuild(&sound.root);
    assert_whole(&sound);
}

/// A pack's file that is longer than it was hides none of the packs behind it.
#[test]
fn a_pack_that_is_too_long_hides_no_other() {
    let sound = sound();
    let packs = support::names(&sound.root, "packs");
    let first = sound.root.join("packs").join(&packs[0]);
    let base = u64::from_str_radix(packs[1].trim_end_matches(".pack"), 16).expect("an address");
    assert!(packs.len() > 1);
    let file = fs::File::options().write(true).open(&first).expect("a pack");
    let len = file.metadata().expect("a pack").len();
    file.set_len(base + 4096).expect("a longer pack");
    let report = rebuild(&sound.root);
    assert_eq!(report.packs, packs.len() as u64, "{report:?}");
    file.set_len(len).expect("a pack");
    // Its own table was not found by the end of the file, and the old database said what was in it.
    let store = Store::open(&sound.root).expect("a store");
    let gc = GcOptions::default();
    store.gc(&store.gc_plan(&gc, &()).expect("a plan"), &gc, &()).expect("gc");
    assert_eq!(support::names(&sound.root, "packs"), packs);
    sound.tars.iter().for_each(|tar| assert!(export(&store, &Digest::of(tar)) == *tar, "another tar after gc"));
}
