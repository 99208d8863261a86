//! Stores made by earlier builds, kept as files: every later build must read them, or refuse what it cannot.
//!
//! `tests/golden/v4/store` was made by `a_new_golden_store` below, those before it by what stood there then; its
//! `expected.txt` says what is in it. A store of a released version is never made anew: a new format gets a new directory.

#[path = "hostile/build.rs"]
#[allow(dead_code, reason = "a part of the builders is wanted")]
mod build;
mod support;

use build::{Head, head, padded, pax, tar};
use layerstore::{
    Chunking, Compress, Detected, Digest, DriverKind, ErrorKind, ExportOptions, ExportTarget, ImportOptions, Labels,
    Limits, OpenOptions, Selector, Snapshotter, SnapshotterOptions, Store, detect,
};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{noise, words};
use tempfile::TempDir;

/// Versions of the database, the last of which this build writes.
const VERSIONS: [u32; 4] = [1, 2, 3, 4];
const NEWEST: u32 = VERSIONS[VERSIONS.len() - 1];

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}"))
}

/// The smallest chunks there can be, to show all forms in few bytes.
fn chunking() -> Chunking {
    Chunking { small_file: 4096, bundle: 8192, min: 4096, avg: 8192, max: 16384 }
}

/// Small files that make two bundles, some of them alike, and one entry of every type.
fn base() -> Vec<u8> {
    let small = (0..30).map(|n| build::file(format!("etc/f{n}"), words(n % 20, 150 * n as usize)));
    let device = Head { kind: b'3', device: (1, 3), mode: 0o666, ..head("dev/null") };
    let xattrs = pax(&[("SCHILY.xattr.user.note", "golden"), ("mtime", "1700000000.25")]);
    let parts = [
        build::dir("etc/"),
        small.collect::<Vec<_>>().concat(),
        build::symlink("etc/link", "f2"),
        build::hardlink("etc/hard", "etc/f3"),
        build::dir("dev/"),
        device.block(),
        build::typed("run/fifo", b'6'),
        [xattrs, build::file("noted", "with an attribute")].concat(),
        build::file(b"caf\xe9", "not UTF-8"),
    ];
    tar(&parts)
}

/// A sparse file, a whiteout and a large file that compresses.
fn top() -> Vec<u8> {
    let content = padded(&words(3, 5000));
    let body = [padded(b"2\n8192\n3000\n70000\n2120\n"), content].concat();
    let records = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "var/sparse"),
        ("GNU.sparse.realsize", "100000"),
    ];
    let sparse = Head { size: body.len() as i64, ..head("GNUSparseFile.0/sparse") };
    let parts =
        [pax(&records), sparse.block(), body, build::file("etc/.wh.f1", ""), build::file("big", words(1, 30_000))];
    tar(&parts)
}

/// Content that no codec makes smaller.
fn dense() -> Vec<u8> {
    tar(&[build::file("noise", noise(1, 12_000)), build::file("tiny", noise(2, 100))])
}

/// Makes a store with a raw, an LZ4 and a zstd part, and an image with its blobs.
fn fill(root: &Path, layout: &Path) {
    support::write_image(layout, &[base(), top()]);
    let store = Store::open_with(root, &OpenOptions::default().chunking(chunking())).expect("a new store");
    let options = ImportOptions::default().threads(std::num::NonZeroUsize::MIN);
    store.import_layer(&dense()[..], &options.clone().compress(Compress::Raw), &()).expect("a good layer");
    store.import_layer(&base()[..], &options.clone().compress(Compress::Lz4), &()).expect("a good layer");
    let spool = layout.parent().expect("a parent");
    let Ok(Detected::Image(source)) = detect(layout, spool, &Limits::default()) else { panic!("no image") };
    let options = options.keep_blobs(true);
    store.import_image(&source, &Selector::default(), Some("golden:1"), &options, &()).expect("a good image");
}

/// Everything a reader can get out of a store, as text.
fn describe(store: &Arc<Store>) -> String {
    let mut text = format!("{:?}\n", store.chunking());
    for info in store.layers().expect("a sound store") {
        let _ = writeln!(text, "layer {} held {}", info.diff_id, info.held);
        let layer = store.layer(&info.diff_id).expect("a sound store");
        let _ = writeln!(text, "  tar {} entries {} content {}", layer.tar_size(), layer.len(), layer.content_size());
        assert_eq!(Digest::of(&support::export(store, &info.diff_id)), info.diff_id);
        for entry in layer.entries().expect("a sound store") {
            let entry = entry.expect("a sound store");
            let _ = writeln!(text, "  {:?}", entry.entry);
            if entry.entry.kind.stored_len() > 0 {
                let mut content = Vec::new();
                layer.open(&entry).and_then(|f| f.copy_to(&mut content)).expect("a sound store");
                let _ = writeln!(text, "    {} extents {}", Digest::of(&content), entry.extents.len());
            }
        }
    }
    for image in store.images().expect("a sound store") {
        let _ = writeln!(text, "image {} manifest {} config {}", image.name, image.manifest, image.config);
        let config = store.image_config(&image).expect("a sound store");
        let _ = writeln!(text, "  {}", String::from_utf8_lossy(&config));
        let root = store.root(&image.layers).expect("a sound store");
        let _ = writeln!(text, "  {} names", root.list().count());
    }
    let walked = snapshots(store).walk(|info| {
        let _ = writeln!(text, "snapshot {info:?}");
        Ok(())
    });
    walked.expect("a sound store");
    text
}

fn snapshots(store: &Arc<Store>) -> Snapshotter {
    let options = SnapshotterOptions::default().driver(DriverKind::Copy).namespace("golden");
    Snapshotter::open(store.clone(), &options).expect("copying works everywhere")
}

/// A copy to work with: modes and empty directories are not kept in a repository.
fn copy(version: u32) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("store");
    copy_dir(&golden(version).join("store"), &root);
    for name in ["locks", "tmp"] {
        fs::create_dir_all(root.join(name)).expect("a directory");
    }
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).expect("a mode");
    (dir, root)
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    for found in fs::read_dir(from).expect("the golden store") {
        let found = found.expect("the golden store");
        match found.file_type().expect("the golden store").is_dir() {
            true => copy_dir(&found.path(), &to.join(found.file_name())),
            false => drop(fs::copy(found.path(), to.join(found.file_name())).expect("a copy")),
        }
    }
}

#[test]
fn the_golden_store_reads_as_it_did() {
    for version in VERSIONS {
        let (dir, root) = copy(version);
        let store = Arc::new(Store::open_with(&root, &OpenOptions::default().create(false)).unwrap());
        let expected = fs::read_to_string(golden(version).join("expected.txt")).unwrap();
        let actual = describe(&store);
        let differs = actual.lines().zip(expected.lines()).find(|(a, e)| a != e);
        assert!(actual == expected, "first difference: {differs:#?}");
        let image = store.image("golden:1").unwrap();
        let target = ExportTarget::Layout(dir.path().join("out"));
        assert!(store.export_image(&image, &target, &ExportOptions::default(), &()).unwrap().identical);
    }
}

/// Content is cut and named as it was then, so nothing is stored twice, and what is made now is found then.
#[test]
fn the_golden_store_dedups_with_what_is_imported_now() {
    for version in VERSIONS {
        let (_dir, root) = copy(version);
        let store = Store::open(&root).unwrap();
        for tar in [dense(), base(), top()] {
            let (done, stats) = store.import_layer(&tar[..], &ImportOptions::default(), &()).unwrap();
            assert!(done.known && stats.new_chunks == 0, "{done:?} {stats:?}");
        }
    }
}

/// Every form of the format is in it.
#[test]
fn the_golden_store_has_every_form() {
    for version in VERSIONS {
        let (_dir, root) = copy(version);
        let db = rusqlite::Connection::open(root.join("index.db")).unwrap();
        let count = |sql: &str| db.query_row(sql, [], |r| r.get::<_, u32>(0)).unwrap();
        for codec in 0..3 {
            assert!(count(&format!("SELECT count(*) FROM chunks WHERE stored >> 24 = {codec}")) > 0, "codec {codec}");
        }
        assert!(count("SELECT count(*) FROM members") > 10);
        assert!(count("SELECT count(*) FROM packs") > 2);
        assert!(count("SELECT count(*) FROM blobs WHERE kept") > 1);
        let text = fs::read_to_string(golden(version).join("expected.txt")).unwrap();
        for form in ["sparse: Some", "Xattr", "Hardlink", "Symlink", "CharDevice", "Fifo", "extents 2"] {
            assert!(text.contains(form), "{form}");
        }
    }
}

fn put(path: &Path, at: usize, bytes: &[u8]) {
    let mut content = fs::read(path).expect("a file of the store");
    content[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, content).expect("a file of the store");
}

fn assert_unsupported<T>(what: &str, result: layerstore::Result<T>) {
    assert_newer_than(1, what, result);
}

fn assert_newer_than<T>(known: u32, what: &str, result: layerstore::Result<T>) {
    let e = result.err().unwrap_or_else(|| panic!("{what} of version {} was read", known + 1));
    assert_eq!(e.kind(), ErrorKind::Unsupported, "{what}: {e}");
    let (known, newer) = (known.to_string(), (known + 1).to_string());
    assert_eq!(e.mismatch(), (Some(&known[..]), Some(&newer[..])), "{what}: {e}");
}

#[test]
fn a_newer_version_is_refused_as_unsupported() {
    let (_dir, root) = copy(NEWEST);
    let text = fs::read_to_string(root.join("STORE")).unwrap();
    fs::write(root.join("STORE"), text.replace("format 1", "format 2")).unwrap();
    assert_unsupported("STORE", Store::open(&root));

    let (_dir, root) = copy(NEWEST);
    rusqlite::Connection::open(root.join("index.db")).unwrap().pragma_update(None, "user_version", NEWEST + 1).unwrap();
    assert_newer_than(NEWEST, "database", Store::open(&root));

    let (_dir, root) = copy(NEWEST);
    let store = Store::open(&root).unwrap();
    let (diff_id, version) = (Digest::of(&dense()), 2u32.to_le_bytes());
    for pack in support::names(&root, "packs") {
        let base = usize::from_str_radix(pack.trim_end_matches(".pack"), 16).unwrap();
        put(&root.join("packs").join(pack), base + 8, &version);
    }
    assert_unsupported("pack", support::try_export(&store, &diff_id));

    let record = root.join("layers").join(format!("{}.layer", diff_id.hex()));
    put(&record, 8, &version);
    assert_unsupported("record", store.layer(&diff_id).and_then(|l| l.entries()));
    put(&record, 8, &1u32.to_le_bytes());
    let trailer = fs::metadata(&record).unwrap().len() as usize - 136;
    put(&record, trailer + 8, &version);
    assert_unsupported("record's trailer", store.layer(&diff_id));
}

/// Makes the newest golden store anew: `cargo test --test golden -- --ignored`. Only for a format that was never released.
#[test]
#[ignore = "writes into the source tree; see its comment"]
fn a_new_golden_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    fill(&root, &dir.path().join("layout"));
    let store = Arc::new(Store::open(&root).unwrap());
    let snapshots = snapshots(&store);
    let top = snapshots.commit_image(&store.image("golden:1").unwrap(), &()).unwrap();
    let labels = Labels::from([("a.b/c".to_owned(), "text".to_owned())]);
    let layer = store.layers().unwrap()[0].diff_id;
    snapshots.commit_layer("on top", top.as_deref(), &layer, &labels).unwrap();
    let expected = describe(&store);
    drop((snapshots, store));
    // One file without a journal, as small as it goes.
    let db = rusqlite::Connection::open(root.join("index.db")).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(db);
    let target = golden(NEWEST);
    let _ = fs::remove_dir_all(&target);
    fs::create_dir_all(&target).unwrap();
    copy_dir(&root, &target.join("store"));
    for gone in ["index.db-wal", "index.db-shm"] {
        let _ = fs::remove_file(target.join("store").join(gone));
    }
    let _ = fs::remove_dir_all(target.join("store/reserve"));
    fs::write(target.join("expected.txt"), expected).unwrap();
}
