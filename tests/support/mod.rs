//! What several tests need: a store in a fresh directory, what lies in it, bytes without pattern, and small tars.

#![allow(dead_code, reason = "every test uses a part")]

pub(crate) mod cached;
pub(crate) mod cgroup;
pub(crate) mod copy;
pub(crate) mod layers;
pub(crate) mod listing;
pub(crate) mod needs;
pub(crate) mod sound;

use layerstore::{
    BlobWriter, Compression, Digest, Error, ErrorKind, ImportOptions, IndexEntry, LayerBlob, LayerImport, LayoutWriter,
    Store, manifest_for,
};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(crate) const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// A new store; the directory goes when the first of the two is dropped.
pub(crate) fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(dir.path().join("store")).expect("a new store");
    (dir, store)
}

/// `len` bytes that no codec makes smaller, the same for the same `seed`.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// `len` bytes of words, which compress well.
pub(crate) fn words(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 32);
    for n in seed.. {
        if out.len() >= len {
            break;
        }
        writeln!(out, "line {n} of a text {}", n * 7 % 1000).expect("writing to memory");
    }
    out.truncate(len);
    out
}

pub(crate) fn import(store: &Store, blob: &[u8]) -> LayerImport {
    store.import_layer(blob, &ImportOptions::default(), &()).expect("a good layer").0
}

pub(crate) fn try_export(store: &Store, diff_id: &Digest) -> layerstore::Result<Vec<u8>> {
    let mut tar = Vec::new();
    store.layer(diff_id)?.export(&mut tar, THREADS, &())?;
    Ok(tar)
}

pub(crate) fn export(store: &Store, diff_id: &Digest) -> Vec<u8> {
    try_export(store, diff_id).expect("a sound layer")
}

pub(crate) fn compress(tar: &[u8], compression: Compression) -> Vec<u8> {
    let mut writer = BlobWriter::new(Vec::new(), compression).expect("default level");
    writer.write_all(tar).expect("writing to memory");
    writer.finish().expect("writing to memory").2
}

/// Every regular file below the store's directories for content, with its size on disk; locks and database left out.
pub(crate) fn content_files(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for top in ["packs", "layers", "blobs", "tmp"] {
        walk(&root.join(top), &mut |path, meta| {
            found.insert(path.strip_prefix(root).expect("below root").to_owned(), meta.blocks() * 512);
        });
    }
    found
}

/// Everything below `dir`.
pub(crate) fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) {
    for found in fs::read_dir(dir).expect("a directory of the store") {
        let found = found.expect("a directory of the store");
        let meta = found.metadata().expect("a file of the store");
        visit(&found.path(), &meta);
        if meta.is_dir() {
            walk(&found.path(), visit);
        }
    }
}

/// Names in one of the store's directories, sorted.
pub(crate) fn names(root: &Path, dir: &str) -> Vec<String> {
    let list = fs::read_dir(root.join(dir)).expect("a directory of the store");
    let mut names: Vec<_> = list.map(|f| f.expect("a file").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Rows of a table of the store's database, read past the library.
pub(crate) fn rows(root: &Path, table: &str) -> u64 {
    let db = rusqlite::Connection::open(root.join("index.db")).expect("the database");
    let count = db.query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get::<_, i64>(0));
    count.expect("a count") as u64
}

/// Nothing of any layer or image is in the store: no file, no row, no address reserved.
pub(crate) fn assert_empty(store: &Store, after: &str) {
    assert!(store.layers().expect("a database").is_empty(), "{after}: a layer is listed");
    assert!(store.images().expect("a database").is_empty(), "{after}: an image is listed");
    let files = content_files(store.path());
    assert!(files.is_empty(), "{after}: left {files:?}");
    for table in ["packs", "chunks", "members", "layers", "blobs", "images", "image_layers"] {
        assert_eq!(rows(store.path(), table), 0, "{after}: rows in {table}");
    }
}

/// A refusal of the input, which says what of it is wrong.
pub(crate) fn assert_refusal(error: &Error, of: &str) {
    let kinds = [ErrorKind::InvalidInput, ErrorKind::LimitExceeded, ErrorKind::Unsupported];
    assert!(kinds.contains(&error.kind()), "{of}: {error:?}");
    assert!(error.message().len() > 5 && !error.message().contains("another part"), "{of}: {error}");
}

/// An OCI layout with one image, `i`, of these layers, compressed with gzip.
pub(crate) fn write_image(layout: &Path, tars: &[Vec<u8>]) {
    let mut out = LayoutWriter::directory(layout).expect("a layout");
    let mut blobs = vec![];
    for tar in tars {
        let blob = compress(tar, Compression::Gzip);
        let write = |w: &mut dyn Write| w.write_all(&blob).map_err(|e| Error::io("write", e));
        let (digest, size) = out.blob(write).expect("a blob");
        blobs.push(LayerBlob { digest: digest.into(), size, compression: Compression::Gzip });
    }
    let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let rootfs = serde_json::json!({ "type": "layers", "diff_ids": diff_ids });
    let config = serde_json::json!({ "os": "linux", "architecture": "amd64", "rootfs": rootfs }).to_string();
    let digest = out.bytes(config.as_bytes()).expect("a blob");
    let manifest = manifest_for((digest, config.len() as u64), &blobs, None).expect("a manifest");
    let entry = IndexEntry::new(out.bytes(&manifest).expect("a blob"), manifest.len() as u64);
    out.finish(&[entry.reference("i")]).expect("a layout");
}

/// Runs the calling test, called `name`, again in a mount namespace of its own, and is true there. Outside it is false
/// once that went well: the test is to return. Where there is no root or no namespace it says that the test was skipped.
pub(crate) fn namespaced(name: &str) -> bool {
    const INSIDE: &str = "LAYERSTORE_TEST_NAMESPACE";
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        return true;
    }
    if needs::root(name) {
        needs::run_again(name, "mounts of its own", |command| {
            needs::own_mounts(command).env(INSIDE, name);
        });
    }
    false
}

/// A new directory on a disk file system: neither EROFS images nor overlay upper directories can be on all others.
pub(crate) fn disk_dir() -> TempDir {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(target).expect("a directory below target/")
}

/// The OCI layouts below `$LAYERSTORE_TEST_IMAGES`, or none with a word about why.
pub(crate) fn test_images(test: &str) -> Vec<PathBuf> {
    let Some(dir) = std::env::var_os("LAYERSTORE_TEST_IMAGES").map(PathBuf::from) else {
        println!("skipped: {test}: LAYERSTORE_TEST_IMAGES names no directory of OCI layouts");
        return vec![];
    };
    let found = fs::read_dir(&dir).expect("a directory of OCI layouts").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<PathBuf> = found.filter(|path| path.join("index.json").exists()).collect();
    found.sort();
    assert!(!found.is_empty(), "no OCI layout in {}", dir.display());
    found
}

/// Mounts on a directory below `dir`, runs `work` inside, unmounts.
pub(crate) fn inside<T>(dir: &Path, mounts: &[layerstore::Mount], work: impl FnOnce(&Path) -> T) -> T {
    let target = tempfile::tempdir_in(dir).expect("a directory");
    layerstore::mount_all(mounts, target.path()).expect("mounts");
    let out = work(target.path());
    layerstore::unmount(target.path()).expect("unmounts");
    out
}

/// A stream of small numbers, the same for the same name.
pub(crate) struct Random(blake3::OutputReader);

impl Random {
    pub(crate) fn new(name: &str) -> Self {
        Self(blake3::Hasher::new().update(name.as_bytes()).finalize_xof())
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize % n
    }

    pub(crate) fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// A path over a few names, so that it often is one that was given before.
    pub(crate) fn path(&mut self) -> String {
        (0..=self.below(3)).map(|_| self.of(&["a", "b", "c"])).collect::<Vec<_>>().join("/")
    }
}
