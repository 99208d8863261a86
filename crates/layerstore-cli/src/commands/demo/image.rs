//! Makes the demonstration's images: tars, gzip blobs and an OCI layout, without help from the library.

use super::sample::{Item, ItemKind, Sample};
use crate::errors::Failure;
use flate2::write::GzEncoder;
use layerstore::{Digest, Error, Hasher, Result};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What the layout calls its images.
pub(super) const NAMES: [&str; 2] = ["demo:1", "demo:2"];
/// Times of the two builds.
const BUILT: [u64; 2] = [1_700_000_000, 1_710_000_000];
/// Of so many base files one is changed in version 2.
const CHANGED_BASE: usize = 50;
/// Of so many app files one is changed, and one more is only in version 2.
const CHANGED_APP: usize = 10;

/// A layer that was written.
pub(super) struct Written {
    pub(super) diff_id: Digest,
    pub(super) blob: Digest,
    pub(super) tar_size: u64,
    pub(super) blob_size: u64,
    pub(super) files: u64,
    pub(super) changed: u64,
    pub(super) added: u64,
    /// A changed file and its sha256, to look for later.
    pub(super) witness: Option<(PathBuf, Digest)>,
}

/// Both versions, bottom layer first.
pub(super) type Versions = [[Written; 2]; 2];

/// Writes an OCI layout with both versions into `dir`.
pub(super) fn write(sample: &Sample, dir: &Path) -> Result<Versions, Failure> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(failed)?;
    let hidden = sample.base.iter().rev().find(|item| item.is_file()).map(|item| item.name.as_path());
    let versions = std::thread::scope(|scope| {
        let start = |version: usize| {
            let (base, app, blobs) = (&sample.base, &sample.app, &blobs);
            (
                scope.spawn(move || layer(base, version, CHANGED_BASE, None, blobs)),
                scope.spawn(move || layer(app, version, CHANGED_APP, hidden, blobs)),
            )
        };
        let running = [start(0), start(1)];
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Written>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let [one, two] = running.map(|(base, app)| Ok::<_, Error>([join(base)?, join(app)?]));
        Ok::<_, Error>([one?, two?])
    })?;
    let mut manifests = Vec::new();
    for ((layers, name), built) in versions.iter().zip(NAMES).zip(BUILT) {
        let config = config(layers, built);
        let config = json!({
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(&blobs, &config)?, "size": config.len(),
        });
        let layer = |layer: &Written| {
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            json!({ "mediaType": media_type, "digest": layer.blob, "size": layer.blob_size })
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": put(&blobs, &manifest)?,
            "size": manifest.len(), "annotations": { "org.opencontainers.image.ref.name": name },
        }));
    }
    let index = json!({ "schemaVersion": 2, "manifests": manifests }).to_string();
    fs::write(dir.join("index.json"), index).map_err(failed)?;
    fs::write(dir.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string()).map_err(failed)?;
    Ok(versions)
}

fn config(layers: &[Written; 2], built: u64) -> Vec<u8> {
    let created = format!("{}:00Z", crate::output::time(built as i64).replace(' ', "T"));
    let (os, architecture) = ("linux", layerstore::Platform::host().to_string());
    let architecture = architecture.rsplit('/').next().unwrap_or_default();
    json!({
        "created": created, "os": os, "architecture": architecture,
        "config": { "Cmd": ["/usr/bin/env"], "Env": ["PATH=/usr/bin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| l.diff_id).collect::<Vec<_>>() },
    })
    .to_string()
    .into_bytes()
}

fn put(blobs: &Path, bytes: &[u8]) -> Result<Digest> {
    let digest = Digest::of(bytes);
    fs::write(blobs.join(digest.hex()), bytes).map_err(failed)?;
    Ok(digest)
}

fn failed(error: io::Error) -> Error {
    Error::from_io("make the image", error)
}

/// Writes one layer as a blob. Version 1 (counted from 0) is a later build: every time differs, one file of `every` is
/// changed, and one of `every` is new if `hidden` says that this is the upper layer.
fn layer(items: &[Item], version: usize, every: usize, hidden: Option<&Path>, blobs: &Path) -> Result<Written> {
    let name = blobs.join(format!("unfinished-{version}-{}", hidden.is_some()));
    let file = BufWriter::with_capacity(1 << 20, File::create(&name).map_err(failed)?);
    let gzip = GzEncoder::new(Hashed::new(file), flate2::Compression::default());
    let mut tar = tar::Builder::new(Hashed::new(gzip));
    let (mut files, mut changed, mut added, mut witness) = (0, 0, 0, None);
    let mut number = 0;
    for item in items {
        crate::interrupt::check()?;
        let mut header = header(item.mode, BUILT[version]);
        match &item.kind {
            ItemKind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, &item.name, io::empty()).map_err(failed)?;
            }
            ItemKind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, &item.name, target).map_err(failed)?;
            }
            ItemKind::File(source) => {
                number += 1;
                let new = hidden.is_some() && number % every == every / 2;
                if new && version == 0 {
                    continue;
                }
                let mut bytes = fs::read(source).map_err(|e| failed(e).subject(source.display()))?;
                if version == 1 && number % every == 1 {
                    let middle = bytes.len() / 2;
                    bytes.splice(middle..middle, *b"changed in version 2");
                    changed += 1;
                    // Not the file that the upper layer removes.
                    witness.get_or_insert_with(|| (item.name.clone(), Digest::of(&bytes)));
                }
                (files, added) = (files + 1, added + u64::from(new));
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, &item.name, &bytes[..]).map_err(failed)?;
            }
        }
    }
    if let Some(hidden) = hidden {
        tar.append_data(&mut header(0o644, BUILT[version]), whiteout(hidden), io::empty()).map_err(failed)?;
    }
    let (diff_id, tar_size, gzip) = tar.into_inner().map_err(failed)?.finish();
    let (blob, blob_size, file) = gzip.finish().map_err(failed)?.finish();
    file.into_inner().map_err(|e| failed(e.into_error()))?;
    fs::rename(&name, blobs.join(blob.hex())).map_err(failed)?;
    Ok(Written { diff_id, blob, tar_size, blob_size, files, changed, added, witness })
}

fn header(mode: u32, mtime: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_mtime(mtime);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// The name that removes `path` of a lower layer.
fn whiteout(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".wh.");
    name.push(std::ffi::OsStr::from_bytes(path.file_name().unwrap_or_default().as_bytes()));
    path.with_file_name(name)
}

/// Passes bytes on and hashes them.
pub(super) struct Hashed<W> {
    inner: W,
    hasher: Hasher,
}

impl<W> Hashed<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::default() }
    }

    /// Digest and number of the bytes written.
    pub(super) fn finish(self) -> (Digest, u64, W) {
        let len = self.hasher.len();
        (self.hasher.finish(), len, self.inner)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
