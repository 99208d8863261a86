//! What imports and exports leave in the page cache.

use crate::image::fixture::{compress, member, tar};
use crate::sys::raw::cached_pages;
use crate::{
    Compression, Detected, Digest, ExportOptions, ExportTarget, ImportOptions, IndexEntry, LayerBlob, LayoutWriter,
    Limits, Selector, Store, detect, manifest_for,
};
use rustix::fs::{Advice, fadvise};
use serde_json::json;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// What may stay, in MiB: records, and what is read in passing.
const MOST: u64 = 6;

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).unwrap().map(|found| found.unwrap().path());
    all.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// MiB of the files below `dir` that are cached; `None` where that cannot be told.
fn cached(dir: &Path) -> Option<u64> {
    let pages = files(dir).into_iter().map(|path| {
        let file = File::open(path).unwrap();
        cached_pages(file.as_fd(), 0..file.metadata().unwrap().len()).ok()
    });
    pages.sum::<Option<u64>>().map(|pages| (pages * 4096) >> 20)
}

fn make_cold(dir: &Path) {
    for path in files(dir) {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        // Not by what is tested here.
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

/// A layout with a layer of 48 MiB of noise.
fn layout(path: &Path) {
    let mut out = LayoutWriter::directory(path).unwrap();
    let mut noise = vec![0; 48 << 20];
    blake3::Hasher::new().update(b"page cache").finalize_xof().fill(&mut noise);
    let layer = tar(&[member(b'0', "noise", "", &noise)]);
    let blob = compress(&layer, Compression::Zstd);
    let (digest, size) = out.blob(|w| w.write_all(&blob).map_err(|e| crate::Error::io("write", e))).unwrap();
    let blobs = [LayerBlob { digest: digest.into(), size, compression: Compression::Zstd }];
    let rootfs = json!({ "type": "layers", "diff_ids": [Digest::of(&layer)] });
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": rootfs }).to_string();
    let digest = out.bytes(config.as_bytes()).unwrap();
    let manifest = manifest_for((digest, config.len() as u64), &blobs, None).unwrap();
    let entry = IndexEntry::new(out.bytes(&manifest).unwrap(), manifest.len() as u64);
    out.finish(&[entry.reference("i")]).unwrap();
}

#[test]
fn imports_and_exports_leave_no_pages() {
    // tmpfs is page cache.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let at = |name: &str| dir.path().join(name);
    layout(&at("layout"));
    make_cold(&at("layout"));
    if cached(&at("layout")) != Some(0) {
        return println!("skipped: imports_and_exports_leave_no_pages: needs Linux 6.5 and a disk file system");
    }
    let store = Store::open(at("store")).unwrap();
    let import = |keep: bool| {
        let Detected::Image(source) = detect(&at("layout"), dir.path(), &Limits::default()).unwrap() else { panic!() };
        let options = ImportOptions::default().keep_blobs(keep);
        store.import_image(&source, &Selector::default(), Some("i"), &options, &()).unwrap();
    };
    let left = |what: &str| {
        let all = cached(dir.path()).unwrap();
        assert!(all <= MOST, "{what} left {all} MiB");
    };
    import(false);
    left("an import");
    import(true);
    left("an import that keeps blobs");
    let image = store.image("i").unwrap();
    for (name, keep) in [("kept", true), ("anew", false)] {
        let options = ExportOptions::default();
        let options = if keep { options } else { options.compression(Compression::Gzip) };
        store.export_image(&image, &ExportTarget::Layout(at(name)), &options, &()).unwrap();
        left(&format!("an export, {name},"));
    }
    store.export_image(&image, &ExportTarget::Archive(at("tar")), &ExportOptions::default(), &()).unwrap();
    left("an export into an archive");
    assert!(store.fsck(&crate::FsckOptions::default().full(true), &()).unwrap().is_clean());
    left("fsck");
}

/// What somebody else reads stays.
#[test]
fn an_import_takes_nothing_from_others() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let source = dir.path().join("layout");
    layout(&source);
    make_cold(&source);
    if cached(&source) != Some(0) {
        return println!("skipped: an_import_takes_nothing_from_others: needs Linux 6.5 and a disk file system");
    }
    for path in files(&source) {
        File::open(path).unwrap().read_to_end(&mut vec![]).unwrap();
    }
    let before = cached(&source).unwrap();
    assert!(before >= 48, "{before}");
    let store = Store::open(dir.path().join("store")).unwrap();
    let Detected::Image(image) = detect(&source, dir.path(), &Limits::default()).unwrap() else { panic!() };
    store.import_image(&image, &Selector::default(), Some("i"), &ImportOptions::default(), &()).unwrap();
    assert_eq!(cached(&source).unwrap(), before);
}
