//! Exporting an image as OCI layout or archive. Layers whose blobs were not kept are compressed anew.

use super::layout::{IndexEntry, LayoutWriter};
use super::manifest::{LayerBlob, manifest_for};
use super::plan::Platform;
use super::spec;
use crate::codec::media::{Compression, LayerType};
use crate::codec::writer::BlobWriter;
use crate::digest::{Digest, Hasher};
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
    /// The reference the image gets at its target. Default: its name in the store.
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
    /// Digest of the manifest that was written.
    pub manifest: Digest,
    /// Digest of the manifest that was imported.
    pub original: Digest,
    /// Digest of the configuration, the same as imported.
    pub config: Digest,
    /// The manifest, and so every blob, is the same as imported.
    pub identical: bool,
}

impl Store {
    /// Writes an image to `target`: the same configuration and diff_ids, and the same manifest if its blobs were kept
    /// or can be made again; [`ImageExport::identical`] says which. The same image and options give the same bytes.
    ///
    /// # Errors
    /// `Corrupt` if anything of the image is damaged; `AlreadyExists` if the target holds something else; `Io`;
    /// `Cancelled`. A layout that existed is then as it was, but for blobs nothing refers to.
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
        let (config, original) = (self.image_config(image)?, self.image_manifest(image)?);
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
            false => manifest_for((image.config, config.len() as u64), &blobs, Some(&original))?,
        };
        out.bytes(&config)?;
        let digest = out.bytes(&manifest)?;
        let reference = options.reference.as_deref().unwrap_or(&image.name);
        let mut entry = IndexEntry::new(digest, manifest.len() as u64).reference(reference);
        if let Some(media_type) = spec::parse::<spec::Manifest>("manifest", &manifest)?.media_type {
            entry = entry.media_type(media_type);
        }
        if let Some(platform) = Platform::from_config(&spec::parse("configuration", &config)?) {
            entry = entry.platform(platform);
        }
        out.finish(&[entry])?;
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
        let (digest, size) = out.blob(write)?;
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
        let kept = self.with_index(|index| index.blob(&was.digest))?.is_some_and(|b| b.kept && b.diff_id == *diff_id);
        if kept && wanted == was.compression {
            return self.copy_kept(&was.digest, out, observer);
        }
        let mut blob = BlobWriter::new(out, wanted)?;
        self.layer(diff_id)?.export(&mut blob, threads, observer)?;
        blob.finish().map(drop)
    }

    fn copy_kept(&self, digest: &Digest, out: &mut dyn Write, observer: &dyn Observer) -> Result<()> {
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
            out.write_all(&buffer[..len]).map_err(|e| Error::from_io("write the blob", e))?;
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
