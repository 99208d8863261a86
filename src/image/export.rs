//! Exporting an image as OCI layout or archive. Layers whose blobs were not kept are compressed anew.

use super::layout::{IndexEntry, LayoutWriter};
use super::manifest::{LayerBlob, manifest_for};
use super::names;
use super::platform::Platform;
use super::spec;
use crate::codec::media::{Compression, LayerType};
use crate::codec::writer::BlobWriter;
use crate::digest::{Digest, Hasher, OciDigest};
use crate::error::{Error, Result};
use crate::observe::{Observer, check};
use crate::store::{ImageInfo, Store};
use crate::sys::cache::ReadOnce;
use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Where an image is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExportTarget {
    /// An OCI layout directory, new or existing.
    Layout(PathBuf),
    /// A new OCI archive; it also holds what `docker load` wants.
    Archive(PathBuf),
}

/// How to export. Start from `ExportOptions::default()`.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    reference: Option<String>,
    compression: Option<Compression>,
    threads: NonZeroUsize,
}

impl Default for ExportOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { reference: None, compression: None, threads }
    }
}

impl ExportOptions {
    /// The reference the image gets at its target. Default: its name in the store, or none if it has no name.
    #[must_use]
    pub fn reference(mut self, reference: impl Into<String>) -> Self {
        self.reference = Some(reference.into());
        self
    }

    /// Compresses every layer like this. Default: kept blobs as they are, others as the manifest says they were.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Threads that read chunks. Default: the CPUs this process may use.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageExport {
    /// SHA-256 of the manifest that was written.
    pub manifest: Digest,
    /// SHA-256 of the manifest that was imported.
    pub original: Digest,
    /// SHA-256 of the configuration, the same as imported.
    pub config: Digest,
    /// The manifest, and so every blob, is the same as imported.
    pub identical: bool,
}

impl Store {
    /// Writes an image to `target`: the same configuration and diff_ids, and the same manifest if its blobs were kept
    /// or can be made again; [`ImageExport::identical`] says which. The same image and options give the same bytes.
    ///
    /// # Errors
    /// `Corrupt` if anything of the image is damaged; `AlreadyExists` if the target holds something else;
    /// `InvalidInput` for a reference in the form of a digest; `Io`; `Cancelled`. A layout that existed is then as it
    /// was, but for blobs nothing refers to.
    pub fn export_image(
        &self,
        image: &ImageInfo,
        target: &ExportTarget,
        options: &ExportOptions,
        observer: &dyn Observer,
    ) -> Result<ImageExport> {
        self.export_to(image, target, options, observer).map_err(|e| e.subject(format!("image {}", image.name)))
    }

    fn export_to(
        &self,
        image: &ImageInfo,
        target: &ExportTarget,
        options: &ExportOptions,
        observer: &dyn Observer,
    ) -> Result<ImageExport> {
        options.reference.as_deref().map_or(Ok(()), names::check)?;
        let (config, original) = (self.image_config(image)?, self.image_manifest(image)?);
        // By what it is called in the manifest; what names the manifest is not known, and taken to be of the same kind.
        let called = spec::parse::<spec::Manifest>("manifest", &original)?.config.digest()?;
        let mut out = match target {
            ExportTarget::Layout(path) => LayoutWriter::directory(path)?,
            ExportTarget::Archive(path) => LayoutWriter::archive(path)?,
        };
        let mut blobs = Vec::with_capacity(image.layers.len());
        for (diff_id, was) in image.layers.iter().zip(original_blobs(&original, image)?) {
            let blob = self.export_blob(&mut out, diff_id, was, options, observer);
            blobs.push(blob.map_err(|e| e.subject(format!("layer {diff_id}")))?);
        }
        let same = original_blobs(&original, image)?
            .iter()
            .zip(&blobs)
            .all(|(was, is)| (was.digest, was.size) == (is.digest, is.size));
        let manifest = match same {
            true => original,
            false => manifest_for((called, config.len() as u64), &blobs, Some(&original))?,
        };
        out.bytes_as(called, &config)?;
        let mut entry = IndexEntry::new(out.bytes_as(called, &manifest)?, manifest.len() as u64);
        // The digest that stands for a name in the store is none.
        let name = Some(image.name.as_str()).filter(|name| !names::looks_like_digest(name));
        if let Some(reference) = options.reference.as_deref().or(name) {
            entry = entry.reference(reference);
        }
        if let Some(media_type) = spec::parse::<spec::Manifest>("manifest", &manifest)?.media_type {
            entry = entry.media_type(media_type);
        }
        if let Some(platform) = Platform::from_config(&spec::parse("configuration", &config)?) {
            entry = entry.platform(platform);
        }
        out.finish(&[entry])?;
        let digest = Digest::of(&manifest);
        let identical = digest == image.manifest;
        Ok(ImageExport { manifest: digest, original: image.manifest, config: image.config, identical })
    }

    fn export_blob(
        &self,
        out: &mut LayoutWriter,
        diff_id: &Digest,
        was: LayerBlob,
        options: &ExportOptions,
        observer: &dyn Observer,
    ) -> Result<LayerBlob> {
        let wanted = options.compression.unwrap_or(was.compression);
        let write = |out: &mut dyn Write| self.write_blob(out, diff_id, &was, (wanted, options.threads), observer);
        let (digest, size) = out.blob_as(was.digest, write)?;
        Ok(LayerBlob { digest, size, compression: wanted })
    }

    /// Writes a layer's blob: the one that was kept, if it is compressed as wanted, or the tar compressed anew.
    pub(super) fn write_blob(
        &self,
        out: &mut dyn Write,
        diff_id: &Digest,
        was: &LayerBlob,
        (wanted, threads): (Compression, NonZeroUsize),
        observer: &dyn Observer,
    ) -> Result<()> {
        if wanted == was.compression
            && let Some(kept) = self.kept_blob(diff_id, was, observer)?
        {
            return self.copy_kept(&kept, out, observer);
        }
        let mut blob = BlobWriter::new(out, wanted)?;
        self.layer(diff_id)?.export(&mut blob, threads, observer)?;
        blob.finish().map(drop)
    }

    /// The file of a layer's blob, if it was kept. Files are named by SHA-256, so one that the manifest names by SHA-512
    /// is found by its bytes.
    pub(super) fn kept_blob(
        &self,
        diff_id: &Digest,
        blob: &LayerBlob,
        observer: &dyn Observer,
    ) -> Result<Option<Digest>> {
        if let OciDigest::Sha256(digest) = &blob.digest {
            let found = self.with_index(|index| index.blob(digest))?;
            return Ok(found.filter(|b| b.kept && b.diff_id == *diff_id).map(|b| b.digest));
        }
        for kept in self.with_index(|index| index.kept_blobs())? {
            if kept.diff_id != *diff_id || kept.size != blob.size {
                continue;
            }
            let mut hasher = blob.digest.hasher();
            self.read_kept(&kept.digest, observer, &mut |bytes| {
                hasher.update(bytes);
                Ok(())
            })?;
            if hasher.finish() == blob.digest {
                return Ok(Some(kept.digest));
            }
        }
        Ok(None)
    }

    fn copy_kept(&self, digest: &Digest, out: &mut dyn Write, observer: &dyn Observer) -> Result<()> {
        self.read_kept(digest, observer, &mut |bytes| {
            out.write_all(bytes).map_err(|e| Error::from_io("write the blob", e))
        })
    }

    fn read_kept(
        &self,
        digest: &Digest,
        observer: &dyn Observer,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let path = self.blob_path(digest);
        let file = File::open(&path).map_err(|e| Error::corrupt("kept blob is missing").source(e))?;
        let mut file = ReadOnce::new(file);
        let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 1 << 20]);
        loop {
            check(observer)?;
            let len = file.read(&mut buffer).map_err(|e| Error::io("read a kept blob", e))?;
            if len == 0 {
                break;
            }
            hasher.update(&buffer[..len]);
            take(&buffer[..len])?;
        }
        let actual = hasher.finish();
        if actual == *digest {
            return Ok(());
        }
        let e = Error::corrupt("kept blob does not match its digest").subject(path.display());
        Err(e.expected(digest).actual(actual))
    }
}

/// The layers as the manifest describes them.
pub(super) fn original_blobs(manifest: &[u8], image: &ImageInfo) -> Result<Vec<LayerBlob>> {
    let parsed: spec::Manifest = spec::parse("manifest", manifest)?;
    let layers = parsed.layers.unwrap_or_default();
    if layers.len() != image.layers.len() {
        return Err(Error::corrupt("manifest and image have different numbers of layers"));
    }
    let blob = |layer: &spec::Descriptor| {
        // Unknown media types were accepted at import by their bytes; gzip is what everyone reads.
        let compression = LayerType::parse(&layer.media_type).map_or(Compression::Gzip, |t| t.compression);
        Ok(LayerBlob { digest: layer.digest()?, size: layer.size, compression })
    };
    layers.iter().map(blob).collect()
}
