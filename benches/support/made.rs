//! Images of the machine's own files, for benches that are given none.

use layerstore::{
    BlobWriter, Compression, Digest, Entry, EntryKind, Error, IndexEntry, LayerBlob, LayoutWriter, Limits, TarWriter,
    Time, manifest_for,
};
use serde_json::json;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where the two layers come from, and how many bytes each place may give.
const BASE: [(&str, u64); 3] = [("/usr/bin", 40 << 20), ("/usr/lib", 80 << 20), ("/etc", 4 << 20)];
const APP: [(&str, u64); 2] = [("/usr/share", 40 << 20), ("/usr/include", 8 << 20)];
/// Larger files would be all of the image.
const LARGEST: u64 = 16 << 20;
/// Of so many files one is another in the second version.
const CHANGED: usize = 20;

/// A file, directory or symlink of the machine.
struct Item {
    path: PathBuf,
    mode: u16,
    kind: Kind,
}

enum Kind {
    Directory,
    File(u64),
    Symlink(PathBuf),
}

/// Writes layouts of two versions of an image into `dir`.
pub(crate) fn write(dir: &Path) -> Vec<PathBuf> {
    let layers = [take(&BASE), take(&APP)];
    let versions = ["own-1", "own-2"].map(|name| dir.join(name));
    for (version, layout) in versions.iter().enumerate() {
        version_of(&layers, version == 1, layout);
    }
    versions.into()
}

fn take(places: &[(&str, u64)]) -> Vec<Item> {
    let mut items = vec![];
    places.iter().for_each(|(place, budget)| walk(Path::new(place), &mut { *budget }, &mut items));
    items
}

/// Below `dir` in the order of names until the budget is used up; what cannot be read is left out.
fn walk(dir: &Path, budget: &mut u64, items: &mut Vec<Item>) {
    let Ok(list) = fs::read_dir(dir) else { return };
    items.push(Item { path: dir.into(), mode: 0o755, kind: Kind::Directory });
    let mut paths: Vec<PathBuf> = list.flatten().map(|found| found.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(meta) = path.symlink_metadata() else { continue };
        // Its name would make it something else in a layer.
        if *budget == 0 || path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".wh.")) {
            continue;
        }
        let mode = meta.permissions().mode() as u16 & 0o777;
        if meta.is_dir() {
            walk(&path, budget, items);
        } else if let Ok(target) = fs::read_link(&path) {
            items.push(Item { path, mode: 0o777, kind: Kind::Symlink(target) });
        } else if meta.is_file() && meta.len() <= LARGEST && File::open(&path).is_ok() {
            *budget = budget.saturating_sub(meta.len());
            items.push(Item { path, mode, kind: Kind::File(meta.len()) });
        }
    }
}

fn version_of(layers: &[Vec<Item>; 2], changed: bool, layout: &Path) {
    let mut out = LayoutWriter::directory(layout).expect("a layout");
    let (mut blobs, mut diff_ids) = (vec![], vec![]);
    for items in layers {
        let tar = tar_of(items, changed);
        diff_ids.push(Digest::of(&tar));
        let (digest, size) = out
            .blob(|to| {
                let mut blob = BlobWriter::new(to, Compression::Gzip)?;
                blob.write_all(&tar).map_err(|e| Error::io("write", e))?;
                blob.finish().map(drop)
            })
            .expect("a blob");
        blobs.push(LayerBlob { digest: digest.into(), size, compression: Compression::Gzip });
    }
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": rootfs }).to_string();
    let digest = out.bytes(config.as_bytes()).expect("a blob");
    let manifest = manifest_for((digest, config.len() as u64), &blobs, None).expect("a manifest");
    let entry = IndexEntry::new(out.bytes(&manifest).expect("a blob"), manifest.len() as u64);
    out.finish(&[entry.reference("own")]).expect("a layout");
}

fn tar_of(items: &[Item], changed: bool) -> Vec<u8> {
    let mut tar = TarWriter::new(vec![], &Limits::default());
    for (number, item) in items.iter().enumerate() {
        let path = item.path.strip_prefix("/").expect("an absolute path").as_os_str().as_bytes().to_vec();
        let mtime = Time { secs: 1_700_000_000, nanos: 0 };
        let (kind, content) = match &item.kind {
            Kind::Directory => (EntryKind::Directory, vec![]),
            Kind::Symlink(target) => (EntryKind::Symlink { target: target.as_os_str().as_bytes().to_vec() }, vec![]),
            Kind::File(_) => {
                // One that went meanwhile is empty.
                let mut content = fs::read(&item.path).unwrap_or_default();
                if changed && number % CHANGED == 0 {
                    let middle = content.len() / 2;
                    content.splice(middle..middle, *b"changed in the second version");
                }
                (EntryKind::File { size: content.len() as u64, sparse: None }, content)
            }
        };
        tar.entry(&Entry { path, kind, mode: item.mode, uid: 0, gid: 0, mtime, xattrs: vec![] }).expect("an entry");
        tar.content(&content).expect("its content");
    }
    tar.finish().expect("writing to memory")
}
