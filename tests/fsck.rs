//! fsck finds damage wherever it is, and says whom it hurts; what is damaged is never served.
//!
//! Damage is done to one file at a time: a byte flipped, 4 KiB zeroed, cut short, removed, exchanged with another of its
//! kind. `LAYERSTORE_LONG=1` does it to every byte of a small store.

mod support;

use layerstore::{
    DamageKind, Digest, DriverKind, ErrorKind, FsckOptions, FsckReport, GcOptions, ImportOptions, Labels,
    RepairOptions, RepairSource, Store,
};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::copy::copy_tree;
use support::layers::{Layer, commit_chain, everything, snapshotter};
use support::sound::{Sound, read_all, sound, sound_of};
use support::{import, namespaced, noise, words};

const BLOCK: usize = 4096;

fn long() -> bool {
    std::env::var_os("LAYERSTORE_LONG").is_some()
}

fn check(store: &Store, full: bool) -> FsckReport {
    store.fsck(&FsckOptions::default().full(full), &()).expect("not cancelled")
}

fn assert_clean(store: &Store, after: &str) {
    let report = check(store, true);
    assert!(report.is_clean(), "{after}: {:#?}", report.findings);
}

/// Something done to a file.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Flip(usize),
    Zero(usize),
    Cut(usize),
    Loss,
}

/// A file of a store, as it should be.
struct Victim {
    path: PathBuf,
    good: Vec<u8>,
    /// Where its bytes begin: a pack is empty up to its base.
    begin: usize,
}

impl Victim {
    fn new(path: PathBuf) -> Self {
        let base = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".pack"));
        let begin = base.map_or(0, |base| usize::from_str_radix(base, 16).expect("a base"));
        Self { good: fs::read(&path).expect("a file"), path, begin }
    }

    /// What to do to it: at every byte, or at one byte in `step` and the last.
    fn harms(&self, step: usize) -> Vec<Harm> {
        let len = self.good.len();
        let places = || (self.begin..len).step_by(step).chain([len - 1]);
        let mut harms: Vec<Harm> = places().map(Harm::Flip).collect();
        let zeros = |at: &usize| self.good[*at..len.min(at + BLOCK)].iter().any(|b| *b != 0);
        harms.extend((self.begin..len).step_by(BLOCK).filter(zeros).map(Harm::Zero));
        harms.extend([Harm::Cut(len - 1), Harm::Cut(self.begin + (len - self.begin) / 2), Harm::Cut(0), Harm::Loss]);
        harms
    }

    fn harm(&self, harm: Harm) {
        let file = || fs::File::options().write(true).open(&self.path).expect("a file");
        match harm {
            Harm::Flip(at) => file().write_all_at(&[self.good[at] ^ 0x40], at as u64).expect("a byte"),
            Harm::Zero(at) => {
                let zeros = vec![0; BLOCK.min(self.good.len() - at)];
                file().write_all_at(&zeros, at as u64).expect("a block");
            }
            Harm::Cut(len) => file().set_len(len as u64).expect("a cut"),
            Harm::Loss => fs::remove_file(&self.path).expect("a file"),
        }
    }

    fn mend(&self) {
        let file = fs::File::options().write(true).create(true).truncate(false).open(&self.path).expect("a file");
        file.set_len(self.good.len() as u64).expect("its length");
        file.write_all_at(&self.good[self.begin..], self.begin as u64).expect("its bytes");
    }
}

/// Every file with content, of which each byte counts.
fn victims(sound: &Sound) -> Vec<Victim> {
    let mut files = support::sound::files(sound);
    let images = fs::read_dir(sound.root.join("images")).expect("a directory of the store");
    files.extend(images.map(|found| found.expect("an image").path()).filter(|path| !path.ends_with("probe.erofs")));
    files.into_iter().map(Victim::new).collect()
}

/// The finding that there must be for damage of this file.
fn assert_found(report: &FsckReport, sound: &Sound, victim: &Victim, what: &str) {
    let parent = victim.path.parent().and_then(|dir| dir.file_name()).unwrap_or_default().to_string_lossy();
    let kinds: &[DamageKind] = match &*parent {
        "packs" => &[DamageKind::Pack, DamageKind::Chunk],
        "layers" => &[DamageKind::Record],
        "blobs" => &[DamageKind::Blob],
        "images" => &[DamageKind::Image],
        _ => &[DamageKind::Store],
    };
    let found = report.findings.iter().find(|f| kinds.contains(&f.kind) && f.file == victim.path);
    let found = found.unwrap_or_else(|| panic!("{what} of {}: {report:#?}", victim.path.display()));
    assert!(!found.layers.is_empty(), "{what}: {found:?}");
    assert_eq!(found.images, ["i"], "{what}: {found:?}");
    assert!(found.layers.iter().all(|layer| sound.tars.contains_key(layer)), "{what}: {found:?}");
    if &*parent == "layers" {
        let name = victim.path.file_stem().expect("a name").to_string_lossy();
        assert!(found.layers.len() == 1 && found.layers[0].hex() == name, "{what}: {found:?}");
    }
}

/// Each harm is found, and what is read meanwhile is right or an error.
fn each_harm_is_found(sound: &Sound, store: &Store, step: usize, read: usize) -> usize {
    assert_clean(store, "nothing was done");
    let mut done = 0;
    for victim in victims(sound) {
        for harm in victim.harms(step) {
            victim.harm(harm);
            let what = format!("{harm:?}");
            assert_found(&check(store, true), sound, &victim, &what);
            if done % read == 0 && !matches!(harm, Harm::Loss) {
                read_all(sound);
            }
            victim.mend();
            done += 1;
        }
        assert_clean(store, "what was damaged is whole again");
    }
    assert!(read_all(sound).is_empty(), "a sound store has no errors");
    done
}

#[test]
fn damage_of_any_file_is_found_and_names_layer_and_image() {
    let sound = sound();
    let store = Store::open(&sound.root).expect("a store");
    let done = each_harm_is_found(&sound, &store, 9973, 1);
    println!("{done} harms");
}

#[test]
fn every_byte_of_a_small_store_counts() {
    if !long() {
        println!("skipped: every_byte_of_a_small_store_counts: LAYERSTORE_LONG is not set");
        return;
    }
    let sound = sound_of(3, 66_000, 4000);
    let store = Store::open(&sound.root).expect("a store");
    println!("{} harms", each_harm_is_found(&sound, &store, 1, 101));
}

/// A row: its table, and its columns with their values.
type Row = (String, Vec<(String, rusqlite::types::Value)>);

/// All rows of all tables; an error if SQLite cannot read them.
fn rows(root: &Path) -> rusqlite::Result<Vec<Row>> {
    let db = rusqlite::Connection::open(root.join("index.db"))?;
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let tables: Vec<String> = db.prepare(tables)?.query_map([], |r| r.get(0))?.collect::<Result<_, _>>()?;
    let mut rows = Vec::new();
    for table in tables {
        let mut query = db.prepare(&format!("SELECT * FROM {table}"))?;
        let columns: Vec<String> = query.column_names().map(str::to_owned).collect();
        let mut found = query.query([])?;
        while let Some(row) = found.next()? {
            let value = |(i, name): (usize, &String)| Ok((name.clone(), row.get(i)?));
            rows.push((table.clone(), columns.iter().enumerate().map(value).collect::<rusqlite::Result<_>>()?));
        }
    }
    Ok(rows)
}

/// Bytes of the database that SQLite reads something from: changed, the rows are others or cannot be read.
#[test]
fn damage_of_rows_is_found() {
    let sound = sound_of(3, 66_000, 4000);
    {
        let snapshots = snapshotter(&sound.root, DriverKind::Copy);
        let image = snapshots.store().image("i").expect("the image");
        let top = snapshots.commit_image(&image, &()).expect("commits");
        let labels: Labels = [("label".to_owned(), "value".to_owned())].into();
        snapshots.prepare("work", top.as_deref(), &labels, &()).expect("prepares");
    }
    let good = rows(&sound.root).expect("the database");
    let victim = Victim::new(sound.root.join("index.db"));
    let step = if long() { 1 } else { 13 };
    let (mut found, mut without) = (0, 0);
    for at in (0..victim.good.len()).step_by(step) {
        victim.harm(Harm::Flip(at));
        let now = rows(&sound.root);
        if now.as_ref().is_ok_and(|now| *now == good) {
            without += 1;
        } else if Store::open(&sound.root).map_or(true, |store| !check(&store, true).is_clean()) {
            found += 1;
        } else {
            let now = now.unwrap_or_else(|e| panic!("byte {at}: {e}"));
            let differing: Vec<_> = good.iter().zip(&now).filter(|(a, b)| a != b).collect();
            panic!("byte {at} went unnoticed: {differing:#?}");
        }
        if at % (101 * step) == 0 {
            read_all(&sound);
        }
        for log in ["index.db-wal", "index.db-shm"] {
            let _ = fs::remove_file(sound.root.join(log));
        }
        victim.mend();
    }
    println!("of {} bytes {found} found, {without} unused", victim.good.len() / step);
    assert!(found > 100, "nothing was shown");
    assert_clean(&Store::open(&sound.root).expect("a store"), "the database is whole again");
}

/// An image that would lack a layer is neither handed out nor collected.
#[test]
fn an_image_with_other_layers_than_its_configuration_is_refused() {
    let sound = sound();
    let store = Store::open(&sound.root).expect("a store");
    let db = rusqlite::Connection::open(sound.root.join("index.db")).expect("the database");
    db.execute("DELETE FROM image_layers WHERE position = 1", []).expect("a row");
    let report = check(&store, false);
    let found = report.findings.iter().find(|f| f.kind == DamageKind::Database && f.images == ["i"]);
    assert!(found.is_some_and(|f| f.what.contains("configuration")), "{report:#?}");
    assert_eq!(store.image("i").expect_err("refused").kind(), ErrorKind::Corrupt);
    assert_eq!(store.gc_plan(&GcOptions::default(), &()).expect_err("refused").kind(), ErrorKind::Corrupt);
    assert_eq!(store.layers().expect("the database").len(), 2);
}

/// Two files of a kind, each in the other's place.
fn exchanged(dir: &Path, suffix: &str) -> (PathBuf, PathBuf) {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).expect("a directory").map(|f| f.expect("a file").path()).collect();
    files.retain(|path| path.to_string_lossy().ends_with(suffix));
    files.sort();
    exchange(&files[0], &files[1]);
    (files[0].clone(), files[1].clone())
}

fn exchange(a: &Path, b: &Path) {
    let between = a.with_extension("between");
    fs::rename(a, &between).and_then(|()| fs::rename(b, a)).and_then(|()| fs::rename(&between, b)).expect("renames");
}

#[test]
fn files_in_each_others_place_are_found() {
    let sound = sound();
    let store = Store::open(&sound.root).expect("a store");
    let mut other = Layer::own();
    other.file("other", &noise(9, 150_000));
    import(&store, &other.tar());
    for (dir, suffix, kind) in [
        ("packs", ".pack", DamageKind::Pack),
        ("layers", ".layer", DamageKind::Record),
        ("blobs", "", DamageKind::Blob),
    ] {
        for full in [false, true] {
            let (a, b) = exchanged(&sound.root.join(dir), suffix);
            let report = check(&store, full);
            // Blobs of equal length are told apart by what is in them.
            let found = |file: &Path| report.findings.iter().any(|f| f.kind == kind && f.file == file);
            assert!(found(&a) && found(&b) || (kind, full) == (DamageKind::Blob, false), "{dir}: {report:#?}");
            read_all(&sound);
            exchange(&a, &b);
        }
        assert_clean(&store, dir);
    }
}

/// A chain that has everything a directory can hold: a layer of all there is, and one that hides and replaces.
fn chain(store: &Store) -> [Digest; 2] {
    let low = everything(store);
    let mut top = Layer::new();
    top.dir("d", 0o1777)
        .file("d/.wh..wh..opq", b"")
        .file("d/new", b"new")
        .file("same", b"other")
        .file(".wh.empty", b"");
    top.dir("g", 0o2755).file("g/more", &words(7, 70_000)).hardlink("linked", "suid");
    [low, top.put(store)]
}

/// A change to an extracted directory, and the path below it that fsck must name.
type Change = (&'static str, &'static str, fn(&Path));

fn write(path: impl AsRef<Path>, at: u64, bytes: &[u8]) {
    let meta = fs::metadata(&path).expect("a file");
    let file = fs::File::options().write(true).open(path).expect("a file");
    file.write_all_at(bytes, at).expect("bytes");
    // A time proves nothing: it can be set.
    file.set_modified(meta.modified().expect("a time")).expect("a time");
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).expect("an attribute");
}

/// Changes to the lower layer's directory of [`chain`], then to the upper one's.
const LOW: &[Change] = &[
    ("a byte of a small file", "g/small", |d| write(d.join("g/small"), 0, b"t")),
    ("a byte of a chunked file", "big", |d| write(d.join("big"), 300_000, b"\xff")),
    ("the last byte", "big", |d| write(d.join("big"), 699_999, b"\xff")),
    ("a byte in a hole", "hole", |d| write(d.join("hole"), 1000, b"x")),
    ("a byte of a sparse file", "sparse", |d| write(d.join("sparse"), 8192, b"\0\0\0\0")),
    ("a size", "empty", |d| fs::write(d.join("empty"), "x").expect("a file")),
    ("a mode", "closed", |d| fs::set_permissions(d.join("closed"), PermissionsExt::from_mode(0o644)).expect("a mode")),
    ("an owner", "suid", |d| chown(d.join("suid"), Some(0), None).expect("an owner")),
    ("an attribute", "capable", |d| set(&d.join("capable"), "trusted.t", b"other")),
    ("one attribute more", "xd", |d| set(&d.join("xd"), "user.more", b"")),
    ("one attribute less", "xs", |d| rustix::fs::lremovexattr(d.join("xs"), "trusted.s").expect("an attribute")),
    ("a target", "s", |d| {
        fs::remove_file(d.join("s")).and_then(|()| symlink("/etc/shadow", d.join("s"))).expect("a symlink");
    }),
    ("a missing file", "twice", |d| fs::remove_file(d.join("twice")).expect("a file")),
    ("a missing directory", "n", |d| fs::remove_dir_all(d.join("n")).expect("a directory")),
    ("a file more", "d/more", |d| fs::write(d.join("d/more"), "").expect("a file")),
    ("a directory more", "more", |d| fs::create_dir(d.join("more")).expect("a directory")),
    ("a link less", "z-link", |d| {
        fs::remove_file(d.join("z-link")).and_then(|()| fs::copy(d.join("big"), d.join("z-link"))).expect("a copy");
    }),
    ("another type", "pipe", |d| {
        fs::remove_file(d.join("pipe")).and_then(|()| fs::write(d.join("pipe"), "")).expect("a file")
    }),
    ("another device", "null", |d| device(&d.join("null"), 1, 5)),
    ("the root's mode", "", |d| fs::set_permissions(d, PermissionsExt::from_mode(0o755)).expect("a mode")),
];
const TOP: &[Change] = &[
    ("a byte", "d/new", |d| write(d.join("d/new"), 0, b"N")),
    ("a whiteout less", "empty", |d| fs::remove_file(d.join("empty")).expect("a whiteout")),
    ("a whiteout more", "big", |d| device(&d.join("big"), 0, 0)),
    ("a file for a whiteout", "empty", |d| {
        fs::remove_file(d.join("empty")).and_then(|()| fs::write(d.join("empty"), "")).expect("a file")
    }),
    ("an opaque directory that merges", "d", |d| {
        rustix::fs::lremovexattr(d.join("d"), "trusted.overlay.opaque").expect("a mark")
    }),
    ("a directory made opaque", "g", |d| set(&d.join("g"), "trusted.overlay.opaque", b"y")),
    ("a redirect", "g", |d| set(&d.join("g"), "trusted.overlay.redirect", b"/d")),
];

fn device(path: &Path, major: u32, minor: u32) {
    let _ = fs::remove_file(path);
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, rustix::fs::makedev(major, minor)).expect("a device");
}

#[test]
fn changes_of_extracted_directories_are_found() {
    if !namespaced("changes_of_extracted_directories_are_found") {
        return;
    }
    let dir = support::disk_dir();
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Overlay);
    let store = snapshots.store();
    let layers = chain(store);
    let top = commit_chain(&snapshots, &layers);
    snapshots.view("v", Some(&top), &Labels::new(), &()).expect("views");
    let report = check(store, true);
    assert!(report.is_clean() && report.counts.trees == 2, "{report:#?}");
    assert_eq!(check(store, false).counts.trees, 0, "the quick check reads no extracted directory");

    for (count, changes) in [(1, LOW), (2, TOP)] {
        let chain_id = Digest::chain_of(&layers[..count]).expect("layers");
        let tree = store.path().join("trees").join(chain_id.hex());
        for (what, path, change) in changes {
            let backup = dir.path().join("backup");
            copy_tree(&tree, &backup);
            change(&tree);
            let report = check(store, true);
            let found = report.findings.iter().find(|f| f.file == tree.join(path));
            let found = found.unwrap_or_else(|| panic!("{what}: {report:#?}"));
            let mut hurt = layers[..count].to_vec();
            hurt.sort();
            assert_eq!((found.kind, &found.layers), (DamageKind::Tree, &hurt), "{what}");
            fs::remove_dir_all(&tree).and_then(|()| fs::rename(&backup, &tree)).expect("put back");
            assert_clean(store, what);
        }
        // Removed as a whole it is no damage: the next mount makes it anew.
        fs::remove_dir_all(&tree).expect("a directory");
        assert_clean(store, "a directory that is gone");
        snapshots.mounts("v", &()).expect("mounts");
        assert!(tree.exists());
        assert_clean(store, "it was made anew");
    }
}

#[test]
fn a_missing_directory_of_a_snapshot_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let snapshots = snapshotter(&dir.path().join("store"), DriverKind::Copy);
    let mut layer = Layer::own();
    let layer = layer.file("f", b"x").put(snapshots.store());
    let top = commit_chain(&snapshots, &[layer]);
    let mounts = snapshots.prepare("work", Some(&top), &Labels::new(), &()).expect("prepares");
    assert_clean(snapshots.store(), "prepared");
    fs::remove_dir_all(&mounts[0].source).expect("a directory");
    for full in [false, true] {
        let report = check(snapshots.store(), full);
        assert_eq!(report.findings.len(), 1, "{report:#?}");
        let found = &report.findings[0];
        assert_eq!((found.kind, &*found.file), (DamageKind::Snapshot, Path::new(&mounts[0].source)));
        assert!(found.what.contains("work"), "{found:?}");
    }
    snapshots.remove("work").expect("removes");
    assert_clean(snapshots.store(), "the snapshot is gone");
}

/// Imports an image, stands a snapshot on it, takes all of it away and collects the garbage, over and over.
fn come_and_go(root: &Path, driver: DriverKind, until: Instant) -> u32 {
    let snapshots = snapshotter(root, driver);
    let (store, options) = (snapshots.store(), GcOptions::default());
    let mut rounds = 0;
    while Instant::now() < until {
        let seed = u64::from(rounds % 3);
        let mut layers = Vec::new();
        for n in 0..2 {
            let mut layer = Layer::own();
            layer.file(&format!("small-{n}"), &words(seed, 3000)).file("large", &noise(seed + n, 300_000));
            layers.push(layer.put(store));
        }
        let top = commit_chain(&snapshots, &layers);
        snapshots.prepare("work", Some(&top), &Labels::new(), &()).expect("prepares");
        snapshots.remove("work").expect("removes");
        snapshots.remove(&top).and_then(|()| snapshots.remove(&layers[0].to_string())).expect("removes");
        layers.iter().for_each(|layer| store.release_layer(layer).expect("a layer"));
        let plan = store.gc_plan(&options, &()).expect("a sound store");
        store.gc(&plan, &options, &()).expect("a sound store");
        rounds += 1;
    }
    rounds
}

fn nothing_is_found_beside(driver: DriverKind) {
    let dir = support::disk_dir();
    let root = dir.path().join("store");
    drop(Store::open(&root).expect("a store"));
    let until = Instant::now() + Duration::from_secs(if long() { 300 } else { 4 });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| come_and_go(&root, driver, until));
        let checks = scope.spawn(|| {
            let store = Store::open(&root).expect("a store");
            let (mut checks, mut trees) = (0u32, 0);
            while !over.load(Relaxed) {
                let report = check(&store, checks % 3 != 0);
                assert!(report.is_clean(), "check {checks}: {:#?}", report.findings);
                (checks, trees) = (checks + 1, trees + report.counts.trees);
            }
            (checks, trees)
        });
        let rounds = other.join();
        over.store(true, Relaxed);
        let (rounds, (checks, trees)) = (rounds.expect("no error"), checks.join().expect("no finding"));
        println!("{driver}: {rounds} rounds beside {checks} checks, {trees} extracted trees compared");
        assert!(rounds > 2 && checks > 2, "{rounds} rounds, {checks} checks: nothing was shown");
    });
}

#[test]
fn nothing_is_found_beside_imports_snapshots_and_gc() {
    nothing_is_found_beside(DriverKind::Copy);
    if namespaced("nothing_is_found_beside_imports_snapshots_and_gc") {
        nothing_is_found_beside(DriverKind::Overlay);
        nothing_is_found_beside(DriverKind::Erofs);
    }
}

/// Small files alike in length, and a layer with the second of them.
fn alike() -> (Vec<Vec<u8>>, Vec<u8>, Vec<u8>) {
    let files: Vec<Vec<u8>> = (0..40).map(|n| noise(n, 300)).collect();
    let (mut all, mut one) = (Layer::own(), Layer::own());
    files.iter().enumerate().for_each(|(n, file)| {
        all.file(&format!("f{n}"), file);
    });
    one.file("again", &files[1]);
    (files, all.tar(), one.tar())
}

/// No layer is taken for stored on the word of a damaged row.
#[test]
fn an_import_does_not_count_on_a_damaged_place() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("store");
    let (files, all, one) = alike();
    import(&Store::open(&root).expect("a store"), &all);
    let file = root.join("index.db");
    let good = fs::read(&file).expect("the database");
    let id = *blake3::hash(&files[1]).as_bytes();
    let places: Vec<usize> = (0..good.len() - 36).filter(|at| good[*at..*at + 32] == id).collect();
    assert!(places.len() > 1, "the row and its second copy");
    let mut accepted = 0;
    for at in places.iter().flat_map(|at| at - 4..at + 36) {
        for bits in [1, 64] {
            let mut bad = good.clone();
            bad[at] ^= bits;
            fs::write(&file, &bad).expect("the database");
            if let Ok(store) = Store::open(&root)
                && store.import_layer(&one[..], &ImportOptions::default(), &()).is_ok()
            {
                assert!(support::export(&store, &Digest::of(&one)) == one, "byte {at}, {bits}");
                accepted += 1;
                let _ = store.release_layer(&Digest::of(&one));
                let plan = store.gc_plan(&GcOptions::default(), &());
                let _ = plan.and_then(|plan| store.gc(&plan, &GcOptions::default(), &()));
            }
            for log in ["index.db-wal", "index.db-shm"] {
                let _ = fs::remove_file(root.join(log));
            }
        }
    }
    assert!(accepted > 10, "nothing was shown");
}

/// A record that has another file's place for a file: every sum is right, and only the tar tells.
#[test]
fn a_record_with_other_content_is_found_by_its_tar() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("store");
    let (files, all, one) = alike();
    let store = Store::open(&root).expect("a store");
    import(&store, &all);
    let db = rusqlite::Connection::open(root.join("index.db")).expect("the database");
    let shift = |by: i32| {
        let (sql, id) = ("UPDATE members SET start = start + ?1 WHERE id = ?2", *blake3::hash(&files[1]).as_bytes());
        assert_eq!(db.execute(sql, rusqlite::params![by, id]).expect("the database"), 1);
    };
    shift(300);
    import(&store, &one);
    shift(-300);
    assert_clean(&store, "what the record says of the content is not looked at");
    let tars = FsckOptions::default().tars(true);
    let report = store.fsck(&tars, &()).expect("not cancelled");
    let found = &report.findings;
    assert!(found.len() == 1 && found[0].kind == DamageKind::Record, "{report:#?}");
    assert_eq!(found[0].layers, [Digest::of(&one)]);
    let layer = dir.path().join("layer");
    fs::write(&layer, &one).expect("a layer");
    let report = store.repair(Some(&RepairSource::Layer(layer)), &RepairOptions::default(), &()).expect("repairs");
    assert!(report.is_clean() && report.records == [Digest::of(&one)], "{report:#?}");
    assert!(support::export(&store, &Digest::of(&one)) == one);
}
