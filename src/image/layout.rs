//! Writing OCI layouts: into a directory, beside what is there, or as a new archive.
//!
//! Blobs come first and the index last, so that an index on disk never names a blob that is not. The archive also gets
//! the `manifest.json` of `docker save`, as Docker 25 writes it, and so can be given to `docker load`.

use crate::digest::{Digest, Hashed, OciDigest};
use crate::error::{Error, ErrorKind, Result};
use crate::image::members::Members;
use crate::image::oci::blob_name;
use crate::image::platform::Platform;
use crate::image::spec::{Descriptor, JSON_LIMIT, Manifest, OCI_INDEX, OCI_MANIFEST, REF_NAME, parse};
use crate::image::tar_writer::TarWriter;
use crate::sys::cache::{ReadOnce, let_go_of};
use crate::sys::names::Held;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Where blobs are that are named by SHA-512; made when the first comes.
const WIDE: &str = "blobs/sha512";
const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An image for the index.
#[derive(Clone, Debug)]
pub struct IndexEntry {
    manifest: OciDigest,
    size: u64,
    media_type: String,
    reference: Option<String>,
    platform: Option<Platform>,
}

impl IndexEntry {
    /// The image whose manifest has this digest and size in bytes.
    pub fn new(manifest: impl Into<OciDigest>, size: u64) -> Self {
        Self { manifest: manifest.into(), size, media_type: OCI_MANIFEST.into(), reference: None, platform: None }
    }

    /// The manifest's media type; an OCI manifest's by default.
    #[must_use]
    pub fn media_type(mut self, media_type: impl Into<String>) -> Self {
        self.media_type = media_type.into();
        self
    }

    /// The name to find it by. It takes the name from whatever image of the layout had it.
    #[must_use]
    pub fn reference(mut self, reference: impl Into<String>) -> Self {
        self.reference = Some(reference.into());
        self
    }

    /// What it is for.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    fn to_json(&self) -> Value {
        let mut json = json!({ "mediaType": self.media_type, "digest": self.manifest, "size": self.size });
        if let Some(reference) = &self.reference {
            json["annotations"] = json!({ REF_NAME: reference });
        }
        if let Some(platform) = &self.platform {
            json["platform"] = platform.to_json();
        }
        json
    }
}

/// Writes an OCI layout. Nothing refers to what was written until [`finish`](Self::finish); dropped before, a directory
/// keeps blobs without use and an archive does not come to be.
pub struct LayoutWriter {
    target: Target,
}

/// Both are looked up once: whoever may write to a directory above cannot lead what is written elsewhere meanwhile.
enum Target {
    Directory(Held),
    Archive { above: Held, name: OsString, blobs: BTreeMap<OciDigest, Blob> },
}

/// A blob that waits for its place in the archive: members are sorted by name, so all must be known.
enum Blob {
    Spooled(File, u64),
    Json(Vec<u8>),
}

impl LayoutWriter {
    /// Writes into the directory `path`, which is made if need be and may hold a layout.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if the directory holds something that is not a layout.
    pub fn directory(path: &Path) -> Result<Self> {
        let failed = |e: io::Error| Error::io("cannot make the layout", e).subject(path.display());
        fs::create_dir_all(path).map_err(failed)?;
        let held = Held::open(path).map_err(|e| failed(e.into()))?;
        let root = held.path();
        let empty = fs::read_dir(root).map_err(failed)?.next().is_none();
        // A layout whose making was cut short has blobs and no marker.
        if !empty && !root.join("oci-layout").exists() && !root.join("blobs/sha256").is_dir() {
            let message = "the directory is neither empty nor an OCI layout";
            return Err(Error::new(ErrorKind::AlreadyExists, message).subject(path.display()));
        }
        blobs_of(&held, "blobs/sha256")?;
        Ok(Self { target: Target::Directory(held) })
    }

    /// Writes the new archive `path`; blobs wait in unnamed files beside it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if there is such a file.
    pub fn archive(path: &Path) -> Result<Self> {
        if path.symlink_metadata().is_ok() {
            return Err(Error::new(ErrorKind::AlreadyExists, "the archive exists").subject(path.display()));
        }
        let failed = |e: rustix::io::Errno| Error::io("cannot open the directory of the archive", e);
        let above = Held::open(parent(path)).map_err(|e| failed(e).subject(path.display()))?;
        let name = path.file_name().unwrap_or_default().to_owned();
        Ok(Self { target: Target::Archive { above, name, blobs: BTreeMap::new() } })
    }

    /// Adds the blob that `produce` writes; its digest and size.
    pub fn blob(&mut self, produce: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<(Digest, u64)> {
        let (digest, size) = self.blob_as(Digest::of(b"").into(), produce)?;
        Ok((digest.sha256().ok_or_else(|| Error::invalid("not a SHA-256").subject(digest))?, size))
    }

    /// Adds a blob under a digest of the same algorithm as `like`.
    pub(crate) fn blob_as(
        &mut self,
        like: OciDigest,
        produce: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<(OciDigest, u64)> {
        match &mut self.target {
            Target::Directory(root) => directory_blob(root, like, produce),
            Target::Archive { above, blobs, .. } => {
                let file =
                    tempfile::tempfile_in(above.path()).map_err(|e| Error::io("cannot create a spool file", e))?;
                let (digest, size) = write_hashed(&file, like, produce)?;
                blobs.entry(digest).or_insert(Blob::Spooled(file, size));
                Ok((digest, size))
            }
        }
    }

    /// Adds a small blob: a manifest or config.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        self.bytes_as(digest.into(), bytes)?;
        Ok(digest)
    }

    /// Adds a small blob under a digest of the same algorithm as `like`.
    pub(crate) fn bytes_as(&mut self, like: OciDigest, bytes: &[u8]) -> Result<OciDigest> {
        match &mut self.target {
            Target::Directory(_) => {
                let produce = |out: &mut dyn Write| out.write_all(bytes).map_err(|e| Error::io("cannot write", e));
                Ok(self.blob_as(like, produce)?.0)
            }
            Target::Archive { blobs, .. } => {
                let digest = like.same_of(bytes);
                blobs.insert(digest, Blob::Json(bytes.to_vec()));
                Ok(digest)
            }
        }
    }

    /// Puts the images into the index and makes all of it durable.
    pub fn finish(self, entries: &[IndexEntry]) -> Result<()> {
        match self.target {
            Target::Directory(root) => finish_directory(&root, entries).map_err(|e| e.subject(root.shown().display())),
            Target::Archive { above, name, blobs } => {
                let shown = above.shown().join(&name);
                finish_archive(&above, &name, blobs, entries).map_err(|e| e.subject(shown.display()))
            }
        }
    }
}

/// A directory of blobs. One that is a symlink is refused: it was not this library that made it.
fn blobs_of(root: &Held, name: &str) -> Result<Held> {
    root.enter(name).map_err(|e| Error::io("cannot make the layout", e).subject(root.shown().join(name).display()))
}

fn directory_blob(
    root: &Held,
    like: OciDigest,
    produce: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<(OciDigest, u64)> {
    let temporary = temporary_in(root.path())?;
    let (digest, size) = write_hashed(temporary.as_file(), like, produce)?;
    let name = blob_name(digest);
    let (dir, file) = name.rsplit_once('/').unwrap_or_default();
    let blobs = blobs_of(root, dir)?;
    let place = blobs.path().join(file);
    // One that is there is left alone, unless it is not the same.
    if !place.metadata().is_ok_and(|m| m.is_file() && m.len() == size && holds(&place, digest)) {
        publish(temporary, &place)?;
    }
    Ok((digest, size))
}

/// Whether the file can be read and has this digest.
fn holds(path: &Path, digest: OciDigest) -> bool {
    let mut hashed = BufWriter::with_capacity(256 << 10, Hashed(io::sink(), digest.hasher()));
    let read = File::open(path).and_then(|file| io::copy(&mut ReadOnce::new(file), &mut hashed));
    read.is_ok() && hashed.into_inner().is_ok_and(|hashed| hashed.1.finish() == digest)
}

/// Lets `produce` write to `file`, hashing it.
fn write_hashed(
    file: &File,
    like: OciDigest,
    produce: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<(OciDigest, u64)> {
    let mut out = BufWriter::with_capacity(256 << 10, Hashed(file, like.hasher()));
    produce(&mut out)?;
    let hashed = out.into_inner().map_err(|e| Error::from_io("cannot write the blob", e.into_error()))?;
    let size = hashed.1.len();
    Ok((hashed.1.finish(), size))
}

/// Order: blobs (each synced and renamed before), their directory, the marker, and last the index that refers to them.
fn finish_directory(held: &Held, entries: &[IndexEntry]) -> Result<()> {
    let root = held.path();
    let directory = File::open(root).map_err(|e| Error::io("cannot open the layout", e))?;
    // Two writers of one layout would lose each other's index entries.
    directory.lock().map_err(|e| Error::io("cannot lock the layout", e))?;
    sync_directory(&root.join("blobs/sha256"))?;
    if root.join(WIDE).is_dir() {
        sync_directory(&root.join(WIDE))?;
    }
    sync_directory(&root.join("blobs"))?;
    if !root.join("oci-layout").exists() {
        write_file(root, "oci-layout", OCI_LAYOUT)?;
    }
    let old = Members::directory(root)?.read("index.json", JSON_LIMIT)?;
    write_file(root, "index.json", &index(old.as_deref(), entries)?)?;
    sync_directory(root)?;
    sync_directory(&root.join(".."))
}

/// The index with `entries` in it; what it says otherwise stays.
fn index(old: Option<&[u8]>, entries: &[IndexEntry]) -> Result<Vec<u8>> {
    let fresh = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] });
    let mut index: Value = old.map_or(Ok(fresh), |json| parse("index.json", json))?;
    let Some(object) = index.as_object_mut() else { return Err(Error::invalid("index.json is not a JSON object")) };
    let manifests = object.entry("manifests").or_insert(json!([]));
    if manifests.is_null() {
        *manifests = json!([]);
    }
    let Some(manifests) = manifests.as_array_mut() else { return Err(Error::invalid("index.json has no list")) };
    for entry in entries {
        let reference = entry.reference.as_ref().map_or(Value::Null, |r| json!(r));
        let replaced = |m: &Value| {
            let same_name = m["annotations"][REF_NAME] == reference;
            same_name && (!reference.is_null() || m["digest"] == json!(entry.manifest))
        };
        manifests.retain(|m| !replaced(m));
        manifests.push(entry.to_json());
    }
    let json = index.to_string().into_bytes();
    if json.len() as u64 > JSON_LIMIT {
        return Err(Error::limit("index.json would become too large to be read", JSON_LIMIT, json.len()));
    }
    Ok(json)
}

fn finish_archive(
    above: &Held,
    name: &OsStr,
    mut blobs: BTreeMap<OciDigest, Blob>,
    entries: &[IndexEntry],
) -> Result<()> {
    let docker = docker_manifest(&blobs, entries)?;
    let mut temporary = temporary_in(above.path())?;
    let mut tar = TarWriter::new(BufWriter::with_capacity(256 << 10, temporary.as_file_mut()));
    tar.directory("blobs/")?;
    tar.directory("blobs/sha256/")?;
    let mut wide = false;
    // Digests sort as their names do. Each spool file is given back as soon as it is copied.
    while let Some((digest, blob)) = blobs.pop_first() {
        if !std::mem::replace(&mut wide, digest.sha256().is_none()) && wide {
            tar.directory(&format!("{WIDE}/"))?;
        }
        match blob {
            Blob::Json(bytes) => tar.file(&blob_name(digest), bytes.len() as u64, &mut &bytes[..])?,
            Blob::Spooled(mut file, size) => {
                file.rewind().map_err(|e| Error::io("cannot read the spool file", e))?;
                tar.file(&blob_name(digest), size, &mut file)?;
            }
        }
    }
    for (name, bytes) in
        [("index.json", index(None, entries)?), ("manifest.json", docker), ("oci-layout", OCI_LAYOUT.into())]
    {
        tar.file(name, bytes.len() as u64, &mut &bytes[..])?;
    }
    tar.finish()?;
    temporary.as_file().sync_all().map_err(|e| Error::io("cannot sync the archive", e))?;
    let_go_of(temporary.as_file());
    temporary.persist_noclobber(above.path().join(name)).map_err(|e| match e.error.kind() {
        io::ErrorKind::AlreadyExists => Error::new(ErrorKind::AlreadyExists, "the archive exists"),
        _ => Error::io("cannot rename the archive", e.error),
    })?;
    sync_directory(above.path())
}

/// The `manifest.json` of `docker save` for those entries that are single images.
fn docker_manifest(blobs: &BTreeMap<OciDigest, Blob>, entries: &[IndexEntry]) -> Result<Vec<u8>> {
    let mut images = Vec::new();
    for entry in entries {
        let Some(Blob::Json(bytes)) = blobs.get(&entry.manifest) else {
            return Err(Error::not_found("the manifest was not written before the index").subject(entry.manifest));
        };
        let Ok(manifest) = parse::<Manifest>("the manifest", bytes) else { continue };
        let path = |d: &Descriptor| d.digest().map(blob_name);
        let layers = manifest.layers.as_deref().unwrap_or_default().iter().map(path).collect::<Result<Vec<_>>>()?;
        // Docker wants a whole name; a bare tag would become the name of an image.
        let tagged = |r: &&String| r.rsplit('/').next().is_some_and(|n| n.contains(':'));
        let tags = entry.reference.as_ref().filter(tagged).map(|tag| vec![tag]);
        images.push(json!({ "Config": path(&manifest.config)?, "RepoTags": tags, "Layers": layers }));
    }
    Ok(Value::Array(images).to_string().into_bytes())
}

fn write_file(root: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_in(root)?;
    temporary.as_file().write_all(bytes).map_err(|e| Error::io("cannot write", e).subject(name))?;
    publish(temporary, &root.join(name))
}

fn temporary_in(directory: &Path) -> Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".layerstore-").permissions(Permissions::from_mode(0o644));
    builder.tempfile_in(directory).map_err(|e| Error::io("cannot create a temporary file", e))
}

/// Syncs and renames; the directory is synced by whoever needs the name to last.
fn publish(temporary: tempfile::NamedTempFile, place: &Path) -> Result<()> {
    temporary.as_file().sync_all().map_err(|e| Error::io("cannot sync", e).subject(place.display()))?;
    let_go_of(temporary.as_file());
    temporary.persist(place).map_err(|e| Error::io("cannot rename", e.error).subject(place.display()))?;
    Ok(())
}

fn sync_directory(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|d| d.sync_all());
    synced.map_err(|e| Error::io("cannot sync the directory", e).subject(path.display()))
}

/// The directory a path is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
