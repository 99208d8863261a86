//! Configurations, manifests and kept blobs, and the images they make.

use super::Rebuild;
use super::layers::unknown;
use crate::codec::blob::BlobReader;
use crate::digest::{Digest, Hashed, OciDigest, OciHasher};
use crate::error::{ErrorKind, Result};
use crate::image::spec::{Config, JSON_LIMIT, Manifest, parse};
use crate::limits::Limits;
use crate::observe::check;
use crate::store::{BlobInfo, Change, ImageInfo, LayerInfo};
use crate::sys::cache::ReadOnce;
use crate::sys::publish::io_error;
use crate::upkeep::DamageKind;
use crate::upkeep::verify::{for_each_piece, sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What is in `blobs/`.
#[derive(Default)]
struct Blobs {
    /// The layers of a configuration, bottom first.
    configs: BTreeMap<Digest, Vec<Digest>>,
    /// Configurations that name layers by SHA-512.
    wide_configs: BTreeMap<Digest, Vec<OciDigest>>,
    /// The configuration of a manifest, and its layers' blobs.
    manifests: BTreeMap<Digest, (OciDigest, Vec<OciDigest>)>,
    /// The configurations by SHA-512, which a manifest may name them by.
    by_sha512: BTreeMap<OciDigest, Digest>,
    /// Anything else that matches its digest.
    others: Vec<(Digest, PathBuf, u64)>,
    /// What does not match its digest.
    damaged: Vec<(Digest, PathBuf)>,
}

impl Rebuild<'_> {
    pub(super) fn images(&mut self) -> Result<()> {
        let mut blobs = self.read_blobs()?;
        self.name_by_sha256(&mut blobs)?;
        self.kept_blobs(&blobs)?;
        let named = self.named_images(&blobs);
        let taken: BTreeSet<Digest> = named.iter().map(|image| image.manifest).collect();
        let unnamed = blobs.manifests.iter().filter(|(digest, _)| !taken.contains(digest));
        let unnamed = unnamed.filter_map(|(digest, (config, _))| {
            let config = blobs.sha256_of(config)?;
            let layers = blobs.configs.get(&config)?.clone();
            Some(ImageInfo { name: digest.to_string(), config, manifest: *digest, layers })
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
                Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
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
        let described: BTreeSet<&OciDigest> = blobs.manifests.values().flat_map(|(_, layers)| layers).collect();
        for (digest, path, size) in &blobs.others {
            let Some((diff_id, tar_size)) = self.layer_in(path)? else {
                self.found(DamageKind::Blob, path, "it is no configuration, no manifest and no layer's blob");
                continue;
            };
            let known = self.store.with_index(|index| index.layer(&diff_id))?.is_some();
            let told =
                described.contains(&OciDigest::from(*digest)) || !known && described.contains(&self.sha512_of(path)?);
            if !known && !told {
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

    /// Finds the layers of configurations that name them by SHA-512: the old database may tell, or else the tars of all
    /// layers are read.
    fn name_by_sha256(&mut self, blobs: &mut Blobs) -> Result<()> {
        for image in &self.salvage.images.rows {
            let told = |wide: &Vec<OciDigest>| {
                wide.len() == image.layers.len() && wide.iter().zip(&image.layers).all(|(said, is)| said.may_be(is))
            };
            if blobs.wide_configs.get(&image.config).is_some_and(told) {
                blobs.wide_configs.remove(&image.config);
                blobs.configs.insert(image.config, image.layers.clone());
            }
        }
        if blobs.wide_configs.is_empty() {
            return Ok(());
        }
        let mut layers: BTreeMap<OciDigest, Digest> = BTreeMap::new();
        for info in self.store.layers()? {
            check(self.observer)?;
            let mut tar = Hashed(std::io::sink(), OciHasher::sha512());
            let layer = self.store.layer(&info.diff_id);
            match layer.and_then(|layer| layer.export(&mut tar, self.options.threads, self.observer)) {
                Ok(_) => drop(layers.insert(tar.1.finish(), info.diff_id)),
                Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
                // One that cannot be read stays unknown; fsck tells of it.
                Err(_) => {}
            }
        }
        for (config, wide) in std::mem::take(&mut blobs.wide_configs) {
            let of = |digest: &OciDigest| digest.sha256().or_else(|| layers.get(digest).copied());
            match wide.iter().map(of).collect() {
                Some(found) => drop(blobs.configs.insert(config, found)),
                None => {
                    let path = self.store.path().join("blobs").join(config.hex());
                    self.found(DamageKind::Blob, &path, "the configuration names a layer by SHA-512 that is not there");
                }
            }
        }
        Ok(())
    }

    fn sha512_of(&self, path: &Path) -> Result<OciDigest> {
        let file = File::open(path).map_err(|e| io_error("open", path, e))?;
        let mut hasher = OciHasher::sha512();
        let read = for_each_piece(ReadOnce::new(file), self.observer, |piece| hasher.update(piece));
        read.map_err(|e| e.subject(path.display()))?;
        Ok(hasher.finish())
    }

    /// The layer a blob holds, and the length of its tar; `None` if it holds none.
    fn layer_in(&self, path: &Path) -> Result<Option<(Digest, u64)>> {
        let file = File::open(path).map_err(|e| io_error("open", path, e))?;
        let tar =
            BlobReader::new(ReadOnce::new(file), &Limits::default()).and_then(|reader| sha256(reader, self.observer));
        match tar {
            Err(e) if e.kind() == ErrorKind::Cancelled => Err(e),
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
    fn sha256_of(&self, config: &OciDigest) -> Option<Digest> {
        config.sha256().or_else(|| self.by_sha512.get(config).copied())
    }

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
                match layers.iter().map(OciDigest::sha256).collect() {
                    Some(layers) => drop(self.configs.insert(digest, layers)),
                    None => drop(self.wide_configs.insert(digest, layers.to_vec())),
                }
                self.by_sha512.insert(OciDigest::Sha512([0; 64]).same_of(&bytes), digest);
                return Ok(());
            }
        }
        self.others.push((digest, path, size));
        Ok(())
    }
}
