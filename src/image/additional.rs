//! Extracted layers where containers/storage (podman, buildah, CRI-O) looks before it pulls: an *additional layer store*.
//!
//! `DIR/<base64 of the image's reference>/<digest of the layer's blob>/` holds
//! - `diff`, a link to the layer as a directory that overlayfs stacks;
//! - `info`, what containers/storage is to believe of the layer, as JSON;
//! - `blob`, the layer's blob, which only pushing and saving read; empty where it is not wanted.
//!
//! The directories are those of the overlay driver. A view of the image's chain keeps them from gc as long as the image
//! is listed here; its key is `DIR REFERENCE CHAIN_ID`.
//!
//! DIR may belong to somebody who wishes harm. It is opened once; below it no symlink is followed, a directory that
//! belongs to another user is refused, and only names are removed that a listing has, by descriptor.
//!
//! Source: containers/storage `drivers/overlay/overlay.go` (`getAdditionalLayerPath`), `layers.go` (`Layer`).

use super::export::original_blobs;
use super::listing::{Draft, Place, enter, left, remove_layers};
use super::manifest::LayerBlob;
use crate::codec::media::Compression;
use crate::digest::{Digest, Hashed, OciDigest};
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::format::base64;
use crate::observe::{Observer, check};
use crate::snapshot::{DriverKind, Labels, SnapshotKind, Snapshotter, SnapshotterOptions};
use crate::store::{ImageInfo, Store, chain_ids};
use crate::sys::dirs::Dir;
use crate::sys::names::Found;
use crate::sys::publish::io_error;
use rustix::io::Errno;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whose views these are.
const NAMESPACE: &str = "additional-layers";
/// How often others may get in the way.
const TRIES: usize = 10;

/// A directory of extracted layers for containers/storage. Whoever reads it must be root, as the store's owner is.
pub struct AdditionalLayers {
    snapshots: Snapshotter,
    /// Open: what gets its name later is not written to.
    root: Dir,
    dir: PathBuf,
}

/// How to list an image. Start from `AdditionalOptions::default()`.
#[derive(Clone, Debug, Default)]
pub struct AdditionalOptions {
    blobs: bool,
}

impl AdditionalOptions {
    /// Writes the blobs too, which pushing and saving the image need. Default false.
    #[must_use]
    pub fn blobs(mut self, blobs: bool) -> Self {
        self.blobs = blobs;
        self
    }
}

/// An image as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdditionalImage {
    /// The directory of its layers.
    pub dir: PathBuf,
    /// Its layers, lowest first. One that is in the image twice is not listed, and is pulled as any other.
    pub layers: Vec<AdditionalLayer>,
}

/// A layer as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdditionalLayer {
    /// Digest of its compressed blob, under which it is found.
    pub blob: OciDigest,
    /// Its diff_id.
    pub diff_id: Digest,
    /// The blob is there, and not only its name.
    pub has_blob: bool,
}

impl AdditionalLayers {
    /// Opens `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// `Unsupported` where the overlay driver does not work; `Io`.
    pub fn open(store: Arc<Store>, dir: &Path) -> Result<Self> {
        let options = SnapshotterOptions::default().driver(DriverKind::Overlay).namespace(NAMESPACE);
        let snapshots = Snapshotter::open(store, &options)?;
        fs::create_dir_all(dir).map_err(|e| io_error("create directory", dir, e))?;
        let dir = dir.canonicalize().map_err(|e| io_error("find", dir, e))?;
        let root = Dir::resolve(Path::new("/")).and_then(|root| {
            let below = dir.strip_prefix("/").unwrap_or(&dir);
            root.below(below.as_os_str().as_bytes(), true)
        });
        let root = root.map_err(|e| io_error("open directory", &dir, e))?;
        if dir.to_str().is_none_or(|dir| dir.contains('\n')) {
            return Err(Error::invalid("the directory's name is no text of one line").subject(dir.display()));
        }
        Ok(Self { snapshots, root, dir })
    }

    /// Lists an image's layers under `reference`, in full as `docker.io/library/app:1`; an image that was listed under it
    /// before goes. Layers that are not extracted yet are.
    ///
    /// # Errors
    /// `InvalidInput` for a reference containers/storage would not ask for; those of preparing a snapshot.
    pub fn add(
        &self,
        image: &ImageInfo,
        reference: &str,
        options: &AdditionalOptions,
        observer: &dyn Observer,
    ) -> Result<AdditionalImage> {
        let name = image_name(reference)?;
        let dir = self.dir.join(&name);
        let key = self.keep(image, reference, observer)?;
        let open = enter(&self.root, &name, &dir)?;
        let layers = self.write_layers((&open, &dir), image, options, observer)?;
        self.forget_others(reference, Some(&key))?;
        let wanted: Vec<String> = layers.iter().map(|layer| layer.blob.to_string()).collect();
        remove_layers(&open, &dir, &wanted)?;
        open.sync().map_err(|e| io_error("fsync directory", &dir, e))?;
        self.sync()?;
        Ok(AdditionalImage { dir, layers })
    }

    /// Lists an image no longer. Containers of it should be gone, and containers/storage's own image of it: that has links
    /// to the directories, which gc takes from now on.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if things that no listing has are in its directory, which stay; `Io`.
    pub fn remove(&self, reference: &str) -> Result<()> {
        let name = image_name(reference)?;
        let dir = self.dir.join(&name);
        if !self.list()?.iter().any(|listed| listed == reference) {
            return Err(Error::not_found("no such reference is listed here").subject(reference));
        }
        let removed = match self.root.below(name.as_bytes(), true) {
            Ok(open) => remove_layers(&open, &dir, &[]).and_then(|()| {
                drop(open);
                self.root.remove_empty(name.as_bytes()).map_err(|e| left(&dir, e))
            }),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(left(&dir, e)),
        };
        self.sync()?;
        self.forget_others(reference, None)?;
        removed
    }

    fn sync(&self) -> Result<()> {
        self.root.sync().map_err(|e| io_error("fsync directory", &self.dir, e))
    }

    /// The references that are listed, sorted.
    ///
    /// # Errors
    /// `Corrupt` or `Io` from the database.
    pub fn list(&self) -> Result<Vec<String>> {
        let (all, mut references) = (self.prefix(""), Vec::new());
        let all = all.trim_end();
        self.snapshots.walk(|info| {
            let rest = info.key.strip_prefix(all).and_then(|rest| rest.strip_prefix(' '));
            references.extend(rest.and_then(|rest| rest.split_once(' ')).map(|(reference, _)| reference.to_owned()));
            Ok(())
        })?;
        references.sort();
        references.dedup();
        Ok(references)
    }

    /// What the keys of a reference's views begin with.
    fn prefix(&self, reference: &str) -> String {
        format!("{} {reference} ", self.dir.display())
    }

    /// Extracts an image's layers and keeps them with a view, whose key is returned.
    fn keep(&self, image: &ImageInfo, reference: &str, observer: &dyn Observer) -> Result<String> {
        for again in (0..TRIES).rev() {
            check(observer)?;
            let Some(top) = self.snapshots.commit_image(image, observer)? else {
                return Err(Error::invalid("the image has no layers").subject(&image.name));
            };
            let key = format!("{}{top}", self.prefix(reference));
            match self.snapshots.view(&key, Some(&top), &Labels::new(), observer) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    // What somebody removed from the store is brought back.
                    self.snapshots.mounts(&key, observer)?;
                }
                // Somebody lists an image no longer, at this moment, and took what had no view yet.
                Err(e) if e.kind() == ErrorKind::NotFound && again > 0 => continue,
                made => drop(made?),
            }
            return Ok(key);
        }
        Err(Error::new(ErrorKind::Busy, "others list images no longer all the time").subject(&image.name))
    }

    fn write_layers(
        &self,
        (open, dir): (&Dir, &Path),
        image: &ImageInfo,
        options: &AdditionalOptions,
        observer: &dyn Observer,
    ) -> Result<Vec<AdditionalLayer>> {
        let store = self.snapshots.store();
        let blobs = original_blobs(&store.image_manifest(image)?, image)?;
        let mut times: BTreeMap<OciDigest, usize> = BTreeMap::new();
        blobs.iter().for_each(|blob| *times.entry(blob.digest).or_default() += 1);
        let mut layers = Vec::new();
        for ((diff_id, chain), blob) in image.layers.iter().zip(chain_ids(&image.layers)).zip(&blobs) {
            check(observer)?;
            // What it adds depends on what is below, and only one of the places can have the name.
            if times[&blob.digest] > 1 {
                continue;
            }
            let name = blob.digest.to_string();
            let path = dir.join(&name);
            let at = Place { dir: &enter(open, &name, &path)?, path: &path };
            at.write_file("info", &info(store, diff_id, blob)?)?;
            at.link(&store.path().join("trees").join(chain.hex()), "diff")?;
            // The last one: before it is there, nothing is.
            let has_blob = self.write_blob(&at, diff_id, blob, options.blobs, observer)?;
            at.dir.sync().map_err(|e| at.failed("fsync directory", b"", e))?;
            layers.push(AdditionalLayer { blob: blob.digest, diff_id: *diff_id, has_blob });
        }
        Ok(layers)
    }

    /// Whether the blob is there in full.
    fn write_blob(
        &self,
        at: &Place<'_>,
        diff_id: &Digest,
        blob: &LayerBlob,
        wanted: bool,
        observer: &dyn Observer,
    ) -> Result<bool> {
        const NAME: &[u8] = b"blob";
        let there = at.dir.find(NAME).map_err(|e| at.failed("look at", NAME, e))?.filter(Found::is_own_file);
        if there.is_some_and(|there| there.size == blob.size) {
            return Ok(true);
        }
        if wanted {
            let mut out = Hashed(Draft::create(at)?, blob.digest.hasher());
            let how = (blob.compression, NonZeroUsize::MIN);
            self.snapshots.store().write_blob(&mut out, diff_id, blob, how, observer)?;
            if out.1.finish() == blob.digest {
                out.0.publish(NAME)?;
                return Ok(true);
            }
        }
        if there.is_none() {
            at.write_file("blob", b"")?;
        }
        Ok(false)
    }

    /// Removes the views of this reference but the one to keep.
    fn forget_others(&self, reference: &str, keep: Option<&str>) -> Result<()> {
        let (prefix, mut others) = (self.prefix(reference), Vec::new());
        self.snapshots.walk(|info| {
            if info.key.starts_with(&prefix) && keep != Some(&info.key) {
                others.push(info.key);
            }
            Ok(())
        })?;
        others.iter().try_for_each(|key| self.forget(key))?;
        self.forget_chains()
    }

    /// Removes what no view stands on any more, children before parents.
    fn forget_chains(&self) -> Result<()> {
        let mut chains = Vec::new();
        self.snapshots.walk(|info| {
            if info.kind == SnapshotKind::Committed {
                chains.push(info.key);
            }
            Ok(())
        })?;
        chains.iter().rev().try_for_each(|key| self.forget(key))
    }

    fn forget(&self, key: &str) -> Result<()> {
        match self.snapshots.remove(key) {
            // Gone already, or others stand on it.
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::FailedPrecondition) => Err(e),
            _ => Ok(()),
        }
    }
}

/// What containers/storage is told of a layer.
fn info(store: &Store, diff_id: &Digest, blob: &LayerBlob) -> Result<Vec<u8>> {
    // containers/storage `pkg/archive` (`Compression`).
    let compression = match blob.compression {
        Compression::None => 0,
        Compression::Gzip => 2,
        Compression::Zstd => 4,
    };
    let info = json!({
        "compressed-diff-digest": blob.digest, "compressed-size": blob.size,
        "diff-digest": diff_id, "diff-size": store.layer(diff_id)?.tar_size(), "compression": compression,
    });
    Ok(info.to_string().into_bytes())
}

/// The name of an image's directory.
fn image_name(reference: &str) -> Result<String> {
    // None of these gives a slash in base64, so that every reference is one name.
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-:/@".contains(&b);
    if !reference.bytes().all(fits) || !reference.contains('/') {
        let e = Error::invalid("not a reference that an image is pulled by").subject(reference);
        let e = e.advise(Advice::OtherName);
        return Err(e.expected("one in full, as docker.io/library/app:1"));
    }
    Ok(base64::encode(reference.as_bytes()))
}
