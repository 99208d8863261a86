//! What fsck finds is mended from whatever has the bytes, and nothing else.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use build::tar;
use layerstore::{
    Chunking, Detected, Digest, DriverKind, ErrorKind, FsckOptions, FsckReport, GcOptions, ImportOptions, Labels,
    Limits, OpenOptions, RebuildOptions, RepairOptions, RepairReport, RepairSource, Selector, Snapshotter,
    SnapshotterOptions, Store, detect,
};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{export, import, noise, words, write_image};
use tempfile::TempDir;

fn small(range: std::ops::Range<u64>) -> Vec<u8> {
    range.flat_map(|n| build::file(format!("etc/{n}"), words(n, 700))).collect()
}

/// An image of two layers, as tars and as a layout.
struct Image {
    dir: TempDir,
    tars: [Vec<u8>; 2],
    layout: PathBuf,
}

fn image() -> Image {
    let dir = support::disk_dir();
    let first = tar(&[small(0..40), build::file("noise", noise(1, 200_000)), build::file("text", words(5, 300_000))]);
    let second = tar(&[small(100..120), build::file("other", noise(2, 150_000)), build::file("empty", "")]);
    let tars = [first, second];
    let layout = dir.path().join("layout");
    write_image(&layout, &tars);
    Image { dir, tars, layout }
}

impl Image {
    fn import(&self, root: &Path, options: &OpenOptions, keep: bool) -> Store {
        let store = Store::open_with(root, options).expect("a store");
        let Ok(Detected::Image(source)) = detect(&self.layout, self.dir.path(), &Limits::default()) else {
            panic!("no image")
        };
        let options = ImportOptions::default().keep_blobs(keep);
        store.import_image(&source, &Selector::default(), None, &options, &()).expect("an image");
        store
    }

    fn store(&self, keep: bool) -> Store {
        self.import(&self.dir.path().join("store"), &OpenOptions::default(), keep)
    }

    /// Another store that has the same in other bundles and other chunks.
    fn other(&self) -> Store {
        let root = self.dir.path().join("other");
        let cut = Chunking { min: 16 << 10, avg: 64 << 10, max: 128 << 10, ..Chunking::default() };
        let options = OpenOptions::default().chunking(cut);
        let store = Store::open_with(&root, &options).expect("a store");
        import(&store, &tar(&[small(20..50), small(110..130)]));
        drop(store);
        self.import(&root, &options, false)
    }

    /// Everything is there and sound, gc has nothing against it, and a rebuild finds the same.
    fn assert_whole(&self, store: &Store, what: &str) {
        let report = full(store);
        assert!(report.is_clean() && report.counts.read > 0, "{what}: {report:?}");
        for tar in &self.tars {
            assert!(export(store, &Digest::of(tar)) == *tar, "{what}: another tar");
        }
        let gc = GcOptions::default();
        store.gc(&store.gc_plan(&gc, &()).expect("a plan"), &gc, &()).expect("gc");
        assert!(full(store).is_clean(), "{what}: after gc");
    }
}

fn full(store: &Store) -> FsckReport {
    store.fsck(&FsckOptions::default().full(true), &()).expect("not cancelled")
}

fn repair(store: &Store, source: Option<&RepairSource>) -> RepairReport {
    store.repair(source, &RepairOptions::default(), &()).expect("a report")
}

fn detected(path: &Path) -> RepairSource {
    RepairSource::detect(path, path.parent().expect("a directory"), &Limits::default()).expect("a source")
}

/// The files of a store's packs, records and blobs.
fn files(store: &Store) -> Vec<PathBuf> {
    let files = support::content_files(store.path()).into_keys().map(|path| store.path().join(path));
    files.filter(|path| path.is_file()).collect()
}

fn flip(path: &Path, place: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a file of the store");
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).expect("a byte of it");
    file.write_all_at(&[byte[0] ^ 0x40], place).expect("a byte of it");
}

/// A way to damage a file, and its name.
type Damage = (String, Box<dyn Fn(&Path)>);

/// Ways to damage a file, some places of it each.
fn damages(path: &Path) -> Vec<Damage> {
    let len = fs::metadata(path).expect("a file").len();
    let first = if path.extension().is_some_and(|e| e == "pack") { 4096 } else { 0 };
    let mut ways: Vec<Damage> = vec![];
    let step = ((len - first) / 6).max(1);
    for place in (first..len).step_by(step as usize).chain([len - 1]) {
        ways.push((format!("byte {place}"), Box::new(move |path| flip(path, place))));
    }
    for left in [first + (len - first) / 2, 0] {
        let cut = move |path: &Path| fs::File::options().write(true).open(path).expect("a file").set_len(left);
        ways.push((format!("cut to {left}"), Box::new(move |path| cut(path).expect("a cut"))));
    }
    ways.push(("loss".into(), Box::new(|path| fs::remove_file(path).expect("a file"))));
    ways
}

/// Damages everything there is, in every way, and repairs each time.
fn damage_and_repair(image: &Image, store: &Store, source: &dyn Fn() -> Option<RepairSource>) {
    let mut count = 0;
    // Repairing changes which files there are.
    let kinds = ["packs", "layers", "blobs"];
    for kind in kinds {
        let mut way = 0;
        let mut number = 0;
        loop {
            let of_kind: Vec<_> =
                files(store).into_iter().filter(|p| p.parent().is_some_and(|d| d.ends_with(kind))).collect();
            let Some(path) = of_kind.get(number) else { break };
            let ways = damages(path);
            let Some((what, damage)) = ways.get(way) else {
                (way, number) = (0, number + 1);
                continue;
            };
            let what = format!("{what} of {}", path.display());
            damage(path);
            let before = full(store);
            let report = repair(store, source().as_ref());
            assert_eq!(report.findings, before.findings.len(), "{what}");
            assert!(report.is_clean(), "{what}: {report:?}");
            if !before.is_clean() {
                count += 1;
                let done = report.chunks.len() + report.records.len() + report.blobs.len() + report.packs.len();
                assert!(done > 0, "{what}: {report:?}");
            }
            image.assert_whole(store, &what);
            way += 1;
        }
    }
    assert!(count > 40, "{count} kinds of damage were found");
}

#[test]
fn any_damage_is_mended_from_a_store_that_cut_it_otherwise() {
    let image = image();
    let store = image.store(false);
    drop(image.other());
    damage_and_repair(&image, &store, &|| Some(detected(&image.dir.path().join("other"))));
}

#[test]
fn any_damage_is_mended_from_the_image() {
    let image = image();
    let store = image.store(false);
    damage_and_repair(&image, &store, &|| Some(detected(&image.layout)));
}

#[test]
fn layers_are_mended_from_their_blobs_one_by_one() {
    let image = image();
    let store = image.store(false);
    for path in files(&store).into_iter().filter(|p| !p.starts_with(store.path().join("blobs"))) {
        fs::remove_file(path).expect("a file");
    }
    for (n, tar) in image.tars.iter().enumerate() {
        let file = image.dir.path().join(format!("layer-{n}"));
        fs::write(&file, support::compress(tar, layerstore::Compression::Zstd)).expect("a blob");
        let report = repair(&store, Some(&detected(&file)));
        assert_eq!(report.records, [Digest::of(tar)], "{report:?}");
        assert!(export(&store, &Digest::of(tar)) == *tar);
        let hurt: Vec<_> = report.remaining.findings.iter().flat_map(|f| f.layers.clone()).collect();
        assert!(!hurt.contains(&Digest::of(tar)), "{report:?}");
        assert_eq!(report.is_clean(), n == 1, "{report:?}");
    }
    image.assert_whole(&store, "all layers");
}

/// Without its records nothing tells what was in a chunk: the layers are imported again, and nothing of them may refer to
/// chunks that are known and lost.
#[test]
fn everything_comes_back_from_a_store_that_cut_it_otherwise() {
    let image = image();
    let store = image.store(false);
    drop(image.other());
    files(&store).into_iter().for_each(|path| fs::remove_file(path).expect("a file"));
    let report = repair(&store, Some(&detected(&image.dir.path().join("other"))));
    assert!(report.is_clean() && report.records.len() == 2 && report.blobs.len() == 2, "{report:?}");
    image.assert_whole(&store, "everything");
}

#[test]
fn kept_blobs_are_a_source() {
    let image = image();
    let store = image.store(true);
    for path in files(&store).into_iter().filter(|p| !p.starts_with(store.path().join("blobs"))) {
        fs::remove_file(path).expect("a file");
    }
    let report = repair(&store, None);
    assert!(report.is_clean() && report.records.len() == 2, "{report:?}");
    image.assert_whole(&store, "kept blobs");
}

#[test]
fn sound_chunks_leave_a_damaged_pack_without_any_source() {
    let image = image();
    let store = image.store(false);
    let pack = files(&store).into_iter().find(|p| p.extension().is_some_and(|e| e == "pack")).expect("a pack");
    let end = fs::metadata(&pack).expect("a pack").len();
    flip(&pack, end - 50);
    let report = repair(&store, None);
    assert!(report.is_clean() && report.moved > 0 && report.chunks.is_empty(), "{report:?}");
    assert_eq!(&report.packs[..], std::slice::from_ref(&pack));
    assert!(!pack.exists());
    image.assert_whole(&store, "footer");
    // The new table says which small files are where.
    drop(store);
    let root = image.dir.path().join("store");
    Store::rebuild(&root, &RebuildOptions::default(), &()).expect("a database");
    let store = Store::open(&root).expect("a store");
    let again = tar(&[small(3..9), build::file("more", noise(1, 200_000))]);
    let stats = store.import_layer(&again[..], &ImportOptions::default(), &()).expect("a layer").1;
    assert_eq!(stats.new_chunks, 0);
}

/// A byte of a compressed chunk that changed, and all content is still as it was.
#[test]
fn a_chunk_whose_content_is_right_needs_no_source() {
    let dir = support::disk_dir();
    let store = Store::open(dir.path().join("store")).expect("a store");
    let lines: String = (0..1500).map(|n| format!("line {} of {}\n", n * n % 97, n % 13)).collect();
    let tar = tar(&[build::file("lines", lines)]);
    import(&store, &tar);
    let diff_id = Digest::of(&tar);
    let pack = files(&store).into_iter().find(|p| p.extension().is_some_and(|e| e == "pack")).expect("a pack");
    let good = fs::read(&pack).expect("a pack");
    let file = fs::File::options().write(true).open(&pack).expect("a pack");
    let put = |at: usize, bits: u8| file.write_all_at(&[good[at] ^ bits], at as u64).expect("a byte");
    let chunk = good.iter().skip(2 * 4096).position(|b| *b != 0).expect("a chunk") + 2 * 4096;
    let harmless = |&(at, bits): &(usize, u8)| {
        put(at, bits);
        let same = support::try_export(&store, &diff_id).is_ok_and(|back| back == tar);
        put(at, 0);
        same
    };
    let places = (chunk..chunk + 4096).flat_map(|at| [0x01, 0x40].map(|bits| (at, bits)));
    let (at, bits) = places.into_iter().find(harmless).expect("some byte of a frame does not matter");
    put(at, bits);
    let findings = full(&store).findings;
    assert!(findings.len() == 1 && findings[0].chunk.is_some() && findings[0].layers == [diff_id], "{findings:?}");
    let report = repair(&store, None);
    assert!(report.is_clean() && report.moved == 1 && report.chunks.is_empty(), "{report:?}");
    assert!(export(&store, &diff_id) == tar);
}

#[test]
fn a_source_without_the_bytes_mends_nothing_and_says_so() {
    let image = image();
    let store = image.store(false);
    let pack = files(&store).into_iter().find(|p| p.extension().is_some_and(|e| e == "pack")).expect("a pack");
    flip(&pack, 3 * 4096 - 1);
    let before = full(&store);
    assert!(!before.is_clean());
    let good = fs::read(&pack).expect("a pack");
    let other = Store::open(image.dir.path().join("wrong")).expect("a store");
    import(&other, &tar(&[small(500..600), build::file("noise", noise(99, 200_000))]));
    drop(other);
    let layer = image.dir.path().join("layer");
    fs::write(&layer, tar(&[small(700..710)])).expect("a layer");
    for source in [Some(detected(&image.dir.path().join("wrong"))), Some(detected(&layer)), None] {
        let report = repair(&store, source.as_ref());
        assert!(report.chunks.is_empty() && report.records.is_empty() && report.blobs.is_empty(), "{report:?}");
        assert_eq!((report.findings, &report.remaining.findings), (before.findings.len(), &before.findings));
        assert!(fs::read(&pack).expect("a pack") == good, "the pack was changed");
    }
    fs::write(&layer, b"no tar at all, but long enough to be looked at".repeat(40)).expect("a file");
    let refused = store.repair(Some(&RepairSource::Layer(layer)), &RepairOptions::default(), &());
    assert_eq!(refused.expect_err("no layer").kind(), ErrorKind::InvalidInput);
    assert_eq!(full(&store).findings, before.findings);
}

/// Damaged or not, by whatever path.
#[test]
fn a_store_is_no_source_for_itself() {
    let image = image();
    let store = image.store(false);
    let link = image.dir.path().join("link");
    std::os::unix::fs::symlink(store.path(), &link).expect("a link");
    let refused = || {
        for path in [store.path(), &link] {
            let refused = store.repair(Some(&detected(path)), &RepairOptions::default(), &());
            assert_eq!(refused.expect_err("the same store").kind(), ErrorKind::InvalidInput);
        }
    };
    refused();
    flip(
        &files(&store).into_iter().find(|p| p.extension().is_some_and(|e| e == "pack")).expect("a pack"),
        3 * 4096 - 1,
    );
    refused();
    let other = image.other();
    assert!(repair(&store, Some(&RepairSource::Store(other))).is_clean());
}

/// A bundle with files that nobody has any more cannot be put together: the layers that need the others get new ones.
#[test]
fn a_bundle_of_which_only_a_part_is_left_gives_way() {
    let image = image();
    let store = image.store(false);
    let both = tar(&[small(200..230)]);
    let some = tar(&[small(205..215)]);
    import(&store, &both);
    import(&store, &some);
    store.release_layer(&Digest::of(&both)).expect("a layer");
    let gc = GcOptions::default();
    store.gc(&store.gc_plan(&gc, &()).expect("a plan"), &gc, &()).expect("gc");
    let pack = files(&store).into_iter().rfind(|p| p.extension().is_some_and(|e| e == "pack")).expect("a pack");
    let base = u64::from_str_radix(&pack.file_stem().expect("a name").to_string_lossy(), 16).expect("an address");
    flip(&pack, base + 2 * 4096 - 1);
    assert_eq!(full(&store).findings[0].layers, [Digest::of(&some)]);
    let layer = image.dir.path().join("layer");
    fs::write(&layer, &some).expect("a layer");
    let report = repair(&store, Some(&detected(&layer)));
    assert!(report.is_clean() && report.chunks.is_empty(), "{report:?}");
    assert_eq!((report.parts.len(), &report.records[..]), (1, &[Digest::of(&some)][..]));
    assert_eq!((report.parts[0].found, report.parts[0].of), (7_000, Some(21_000)));
    assert!(export(&store, &Digest::of(&some)) == some);
    image.assert_whole(&store, "a part");
}

/// The kernel reads chunks where an image says they are: one that shows a damaged place serves no new mount.
#[test]
fn images_of_damaged_chunks_are_made_anew() {
    if !support::namespaced("images_of_damaged_chunks_are_made_anew") {
        return;
    }
    let image = image();
    let store = Arc::new(image.store(false));
    let options = SnapshotterOptions::default().driver(DriverKind::Erofs);
    let snapshots = match Snapshotter::open(store.clone(), &options) {
        Err(e) if e.kind() == ErrorKind::Unsupported => return println!("skipped: no erofs here: {e}"),
        snapshots => snapshots.expect("the driver works here"),
    };
    let top = snapshots.commit_image(&store.image("i").expect("an image"), &()).expect("commits");
    let view = |key: &str| {
        let mounts = snapshots.view(key, top.as_deref(), &Labels::new(), &()).expect("a view");
        support::inside(image.dir.path(), &mounts, |root| fs::read(root.join("noise")).expect("a file"))
    };
    assert!(view("first") == noise(1, 200_000));
    let pack = files(&store).into_iter().find(|p| p.extension().is_some_and(|e| e == "pack")).expect("a pack");
    let bytes = fs::read(&pack).expect("a pack");
    let raw = noise(1, 64);
    let place = bytes.windows(64).position(|w| w == raw).expect("a raw chunk") as u64;
    let caches = || fs::write("/proc/sys/vm/drop_caches", "3").expect("root");
    flip(&pack, place);
    caches();

    // The first view may be mounted at any time from what is mounted now.
    let report = repair(&store, Some(&detected(&image.layout)));
    assert!(report.remaining.is_clean() && report.chunks.len() == 1, "{report:?}");
    assert_eq!((report.images.len(), report.mounted.len()), (0, 1), "{report:?}");
    assert!(!report.is_clean());
    let gc = GcOptions::default();
    store.gc(&store.gc_plan(&gc, &()).expect("a plan"), &gc, &()).expect("gc");
    assert_eq!(repair(&store, None).mounted, report.mounted);

    snapshots.remove("first").expect("a view");
    let settled = repair(&store, None);
    assert!(settled.is_clean() && settled.images == report.mounted, "{settled:?}");
    caches();
    assert!(view("second") == noise(1, 200_000), "what is mounted now is sound");
    assert!(support::names(store.path(), "images").iter().all(|name| !name.ends_with(".stale")));
    snapshots.remove("second").expect("a view");
    drop(store);
    snapshots.close().expect("unmounts");
}
