//! Configurations, manifests and kept blobs, and the images they make.

use super::Rebuild;
use super::layers::unknown;
use crate::codec::blob::BlobReader;
use crate::digest::Digest;
use crate::error::Result;
use crate::image::spec::{Config, JSON_LIMIT, Manifest, parse};
use crate::limits::Limits;
use crate::observe::check;
use crate::store::{BlobInfo, Change, ImageInfo, LayerInfo};
use crate::sys::cache::ReadOnce;
use crate::sys::publish::io_error;
use crate::upkeep::DamageKind;
use crate::upkeep::verify::sha256;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What is in `blobs/`.
#[derive(Default)]
struct Blobs {
    /// The layers of a configuration, bottom first.
    configs: BTreeMap<Digest, Vec<Digest>>,
    /// The configuration of a manifest, and its layers' blobs.
    manifests: BTreeMap<Digest, (Digest, Vec<Digest>)>,
    /// Anything else that matches its digest.
    others: Vec<(Digest, PathBuf, u64)>,
    /// What does not match its digest.
    damaged: Vec<(Digest, PathBuf)>,
}

impl Rebuild<'_> {
    pub(super) fn images(&mut self) -> Result<()> {
        let blobs = self.read_blobs()?;
        self.kept_blobs(&blobs)?;
        let named = self.named_images(&blobs);
        let taken: BTreeSet<Digest> = named.iter().map(|image| image.manifest).collect();
        let unnamed = blobs.manifests.iter().filter(|(digest, _)| !taken.contains(digest));
        let unnamed = unnamed.filter_map(|(digest, (config, _))| {
            let layers = blobs.configs.get(config)?.clone();
            Some(ImageInfo { name: digest.to_string(), config: *config, manifest: *digest, layers })
        });
        let unnamed: Vec<ImageInfo> = unnamed.collect();
        for image in named.iter().chain(&unnamed) {
            check(self.observer)?;
            let put = |change: &Change<'_>| {
                for layer in &image.layers {
                    if !change.has_layer(layer)? {
                        change.add_layer(&unknown(*layer))?;
                    }
                }
                change.put_image(image)
            };
            self.store.with_index(|index| index.write(put))?;
        }
        let wanted: BTreeSet<Digest> = named.iter().flat_map(|image| [image.config, image.manifest]).collect();
        for (digest, path) in &blobs.damaged {
            if !wanted.contains(digest) {
                self.found(DamageKind::Blob, path, "blob does not match its digest, and nothing tells what it was");
            }
        }
        self.report.images = named.into_iter().map(|image| image.name).collect();
        self.report.unnamed = unnamed.into_iter().map(|image| image.name).collect();
        Ok(())
    }

    fn read_blobs(&self) -> Result<Blobs> {
        let dir = self.store.path().join("blobs");
        let mut blobs = Blobs::default();
        for found in fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?.flatten() {
            check(self.observer)?;
            let Some(digest) = found.file_name().to_str().and_then(|name| Digest::from_hex(name).ok()) else {
                continue;
            };
            let path = found.path();
            match self.hash(&path) {
                Ok((actual, size)) if actual == digest => blobs.add(digest, path, size)?,
                Err(e) if e.kind() == crate::ErrorKind::Cancelled => return Err(e),
                _ => blobs.damaged.push((digest, path)),
            }
        }
        Ok(blobs)
    }

    /// SHA-256 and length of a file.
    fn hash(&self, path: &Path) -> Result<(Digest, u64)> {
        let file = File::open(path).map_err(|e| io_error("open", path, e))?;
        sha256(ReadOnce::new(file), self.observer).map_err(|e| e.subject(path.display()))
    }

    /// Enters the layers' blobs that were kept. Which layer one holds, its bytes tell.
    fn kept_blobs(&mut self, blobs: &Blobs) -> Result<()> {
        let described: BTreeSet<&Digest> = blobs.manifests.values().flat_map(|(_, layers)| layers).collect();
        for (digest, path, size) in &blobs.others {
            let Some((diff_id, tar_size)) = self.layer_in(path)? else {
                self.found(DamageKind::Blob, path, "it is no configuration, no manifest and no layer's blob");
                continue;
            };
            let known = self.store.with_index(|index| index.layer(&diff_id))?.is_some();
            if !known && !described.contains(digest) {
                self.found(DamageKind::Blob, path, "it is a layer's blob, and the store has no such layer");
                continue;
            }
            if !known {
                // The record is lost; repair makes it anew from this very blob.
                self.hold([LayerInfo { tar_size, ..unknown(diff_id) }])?;
            }
            let blob = BlobInfo { digest: *digest, diff_id, size: *size, kept: true };
            self.store.with_index(|index| index.write(|change| change.add_blob(&blob)))?;
            self.report.blobs += 1;
        }
        Ok(())
    }

    /// The layer a blob holds, and the length of its tar; `None` if it holds none.
    fn layer_in(&self, path: &Path) -> Result<Option<(Digest, u64)>> {
        let file = File::open(path).map_err(|e| io_error("open", path, e))?;
        let tar =
            BlobReader::new(ReadOnce::new(file), &Limits::default()).and_then(|reader| sha256(reader, self.observer));
        match tar {
            Err(e) if e.kind() == crate::ErrorKind::Cancelled => Err(e),
            tar => Ok(tar.ok().filter(|(_, len)| *len > 0)),
        }
    }

    /// Images that the old database names, if there is anything of them.
    fn named_images(&mut self, blobs: &Blobs) -> Vec<ImageInfo> {
        let mut images: BTreeMap<String, ImageInfo> = BTreeMap::new();
        let mut lost = Vec::new();
        for image in &self.salvage.images.rows {
            let layers = blobs.configs.get(&image.config).unwrap_or(&image.layers).clone();
            let any = blobs.configs.contains_key(&image.config) || blobs.manifests.contains_key(&image.manifest);
            match any || !layers.is_empty() {
                true => drop(images.insert(image.name.clone(), ImageInfo { layers, ..image.clone() })),
                false => lost.push(image.name.clone()),
            }
        }
        for name in lost {
            let file = self.store.path().join("blobs");
            self.found(DamageKind::Blob, &file, format!("neither configuration nor manifest is left of image {name}"));
        }
        images.into_values().collect()
    }
}

impl Blobs {
    fn add(&mut self, digest: Digest, path: PathBuf, size: u64) -> Result<()> {
        if size <= JSON_LIMIT {
            let bytes = fs::read(&path).map_err(|e| io_error("read", &path, e))?;
            if let Ok(manifest) = parse::<Manifest>("manifest", &bytes)
                && let (2, Ok(config)) = (manifest.schema_version, manifest.config.digest())
            {
                let layers = manifest.layers.unwrap_or_default().iter().filter_map(|l| l.digest().ok()).collect();
                self.manifests.insert(digest, (config, layers));
                return Ok(());
            }
            if let Ok(config) = parse::<Config>("configuration", &bytes)
                && let Ok(layers) = config.diff_ids(config.rootfs.diff_ids.as_ref().map_or(0, Vec::len))
            {
                self.configs.insert(digest, layers.to_vec());
                return Ok(());
            }
        }
        self.others.push((digest, path, size));
        Ok(())
    }
}
