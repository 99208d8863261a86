//! Importing an image: its layers, several at a time, then configuration, manifest and name, all in one transaction.

use super::manifest::{LayerBlob, manifest_for};
use super::names::{self, DigestPrefix};
use super::plan::{ImagePlan, PlannedLayer, Selector};
use super::source::ImageSource;
use crate::codec::media::Compression;
use crate::digest::{Digest, OciDigest};
use crate::error::{Error, Result};
use crate::layer::{ImportOptions, ImportStats, LayerDone, LayerImport, LayerJob, import_layers, import_stats};
use crate::observe::{Event, Observer};
use crate::store::{BlobInfo, ImageInfo, Ingest, LayerInfo, Lease, Outcome, Store};
use crate::sys::lock::Lock;
use std::collections::{BTreeMap, BTreeSet};

/// A layer and the blob it comes in, where its digest is known.
type LayerKey = (OciDigest, Option<OciDigest>);

/// What an imported image became.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImageImport {
    /// The name it has in the store.
    pub name: String,
    /// SHA-256 of the manifest; made here for sources that have none.
    pub manifest: Digest,
    /// SHA-256 of the configuration, the image's id.
    pub config: Digest,
    /// The layers, bottom first.
    pub layers: Vec<LayerImport>,
    /// What the import added to the store.
    pub stats: ImportStats,
    /// Other manifests of the same configuration that were not taken, as [`ImagePlan::passed_over`] has them.
    pub passed_over: Vec<OciDigest>,
}

impl Store {
    /// Imports the image that `selector` picks from `source`, under `name` or, without one, under its reference in the
    /// source, or else its configuration's digest. A name that another image had is taken from it.
    ///
    /// Layers that the store has are not read. Layers are imported in parallel; if another process is importing one
    /// of them, this waits for it and uses the result. When this returns `Ok`, all of the image is durable.
    ///
    /// Digests of either algorithm are verified. The store names everything by SHA-256: of a layer whose diff_id is a
    /// SHA-512 it is known only after reading it whether the store has it.
    ///
    /// # Errors
    /// As [`ImageSource::select`] and [`Store::import_layer`]; `InvalidInput` for a name, given or in the source, that
    /// has the form of a digest or names a digest that the image has not; `Busy` if another process imports the same
    /// layer for longer than the options' patience. In all of these nothing of the image stays.
    pub fn import_image(
        &self,
        source: &ImageSource,
        selector: &Selector,
        name: Option<&str>,
        options: &ImportOptions,
        observer: &dyn Observer,
    ) -> Result<ImageImport> {
        let plan = source.select(selector)?;
        let name = image_name(&plan, name)?;
        self.import_plan(source, &plan, &name, options, observer).map_err(|e| e.subject(format!("image {name}")))
    }

    fn import_plan(
        &self,
        source: &ImageSource,
        plan: &ImagePlan,
        name: &str,
        options: &ImportOptions,
        observer: &dyn Observer,
    ) -> Result<ImageImport> {
        // What is there stays there until the image keeps it.
        let known: Vec<Digest> = plan.layers.iter().filter_map(|l| l.diff_id.sha256()).collect();
        let lease = self.lease_layers(&known)?;
        let missing = self.missing(plan, options)?;
        // In ascending order, as everyone does, so that two images that share layers cannot wait for each other.
        let diff_ids: BTreeSet<Digest> = missing.iter().filter_map(|(diff_id, _)| diff_id.sha256()).collect();
        let lock = |diff_id| self.lock_layer(diff_id, options.patience, observer);
        let _locks: Vec<Lock> = diff_ids.iter().map(lock).collect::<Result<_>>()?;
        let missing = if missing.is_empty() { missing } else { self.missing(plan, options)? };
        let ingest = Ingest::begin(self, options.compress, options.threads)?;
        let jobs = self.jobs(source, plan, missing, observer)?;
        let done = if jobs.is_empty() { vec![] } else { import_layers(&ingest, jobs, options, observer)? };
        let stats = import_stats(&ingest, &done);
        let layers = diff_ids_of(plan, &done)?;
        let had = |diff_id: &Digest| Ok(self.known_layer(diff_id)?.map(|_| *diff_id));
        let had: Vec<Digest> = layers.iter().map(had).filter_map(Result::transpose).collect::<Result<_>>()?;
        let new: BTreeMap<Digest, Digest> = done.iter().map(|d| (d.info.diff_id, d.blob.digest)).collect();
        let image = self.commit(ingest, plan, (name, layers), done, &lease)?;
        let layers = image.layers.iter().map(|diff_id| {
            let known = self.known_layer(diff_id)?.ok_or_else(|| Error::not_found("no such layer").subject(diff_id))?;
            Ok(LayerImport { known: had.contains(diff_id), blob: new.get(diff_id).copied(), ..known })
        });
        let layers = layers.collect::<Result<_>>()?;
        let (manifest, config, passed_over) = (image.manifest, image.config, plan.passed_over.clone());
        Ok(ImageImport { name: image.name, manifest, config, layers, stats, passed_over })
    }

    /// The layers that have to be read: not in the store, or from a blob that was never seen to hold this layer (a
    /// manifest may claim anything), or wanted as blobs and not kept yet.
    fn missing(&self, plan: &ImagePlan, options: &ImportOptions) -> Result<BTreeSet<LayerKey>> {
        self.with_index(|index| {
            let mut missing = BTreeSet::new();
            for layer in &plan.layers {
                let proven = match layer.blob {
                    Some(OciDigest::Sha256(blob)) => index
                        .blob(&blob)?
                        .is_some_and(|b| b.diff_id == layer.diff_id && (b.kept || !options.keep_blobs)),
                    // No table has it.
                    Some(OciDigest::Sha512(_)) => false,
                    None => true,
                };
                let there = match layer.diff_id {
                    OciDigest::Sha256(diff_id) => index.layer(&diff_id)?.is_some(),
                    OciDigest::Sha512(_) => false,
                };
                if !proven || !there {
                    missing.insert((layer.diff_id, layer.blob));
                }
            }
            Ok(missing)
        })
    }

    fn jobs<'a>(
        &self,
        source: &'a ImageSource,
        plan: &'a ImagePlan,
        mut missing: BTreeSet<LayerKey>,
        observer: &dyn Observer,
    ) -> Result<Vec<LayerJob<'a>>> {
        let mut jobs = Vec::new();
        for (number, layer) in plan.layers.iter().enumerate() {
            if !missing.remove(&(layer.diff_id, layer.blob)) {
                if let OciDigest::Sha256(diff_id) = layer.diff_id {
                    observer.event(Event::LayerFinished { layer: number, diff_id, known: true });
                }
                continue;
            }
            jobs.push(LayerJob {
                number,
                source: Box::new(move || source.open_layer(layer)),
                size: layer.size,
                expected_blob: layer.blob,
                expected_diff_id: Some(layer.diff_id),
            });
        }
        Ok(jobs)
    }

    fn commit(
        &self,
        ingest: Ingest<'_>,
        plan: &ImagePlan,
        (name, layers): (&str, Vec<Digest>),
        done: Vec<LayerDone>,
        lease: &Lease<'_>,
    ) -> Result<ImageInfo> {
        let mut outcome = Outcome::default();
        let mut new: Vec<(LayerInfo, BlobInfo)> = Vec::with_capacity(done.len());
        for layer in done {
            new.push(layer.publish(self, &mut outcome));
        }
        let manifest = match &plan.manifest {
            Some(manifest) => manifest.json.clone(),
            None => self.make_manifest(plan, &layers, &new)?,
        };
        let digest = Digest::of(&manifest);
        for (digest, bytes) in [(plan.config_digest, &plan.config), (digest, &manifest)] {
            let draft = ingest.draft()?;
            draft.append(bytes)?;
            outcome.files.push((draft, self.blob_path(&digest)));
        }
        let image = ImageInfo { name: name.to_owned(), config: plan.config_digest, manifest: digest, layers };
        ingest.commit(outcome, |change| {
            for (info, blob) in &new {
                change.add_layer(info)?;
                change.add_blob(blob)?;
            }
            change.put_image(&image)?;
            lease.end_with(change)
        })?;
        Ok(image)
    }

    /// `docker save` in its old form has no manifest; this one describes the layers as plain tars, whose digests are
    /// the diff_ids.
    fn make_manifest(&self, plan: &ImagePlan, layers: &[Digest], new: &[(LayerInfo, BlobInfo)]) -> Result<Vec<u8>> {
        let blob = |diff_id: &Digest| {
            let size = match new.iter().find(|(info, _)| info.diff_id == *diff_id) {
                Some((info, _)) => info.tar_size,
                None => self.layer(diff_id)?.tar_size(),
            };
            Ok(LayerBlob { digest: (*diff_id).into(), size, compression: Compression::None })
        };
        let blobs: Vec<_> = layers.iter().map(blob).collect::<Result<_>>()?;
        manifest_for((plan.config_digest, plan.config.len() as u64), &blobs, None)
    }
}

/// The name that an image gets: the one that is given, or that of the source, or its configuration's digest.
fn image_name(plan: &ImagePlan, given: Option<&str>) -> Result<String> {
    let own = |text: &str| DigestPrefix::parse(text).and_then(|p| p.full()).is_some_and(|d| plan.own.contains(&d));
    match given.or(plan.reference.as_deref()) {
        // Tools write the digest of an image that has no name where its name should be.
        Some(name) if given.is_none() && own(name) => Ok(plan.config_digest.to_string()),
        Some(name) => names::check_for(name, &plan.own).map(|()| name.to_owned()),
        None => Ok(plan.config_digest.to_string()),
    }
}

/// The layers by SHA-256, bottom first. Those that the configuration names otherwise were read, which told it.
fn diff_ids_of(plan: &ImagePlan, done: &[LayerDone]) -> Result<Vec<Digest>> {
    let read: BTreeMap<OciDigest, Digest> =
        done.iter().filter_map(|d| Some((plan.layers.get(d.number)?.diff_id, d.info.diff_id))).collect();
    let diff_id = |layer: &PlannedLayer| {
        let known = layer.diff_id.sha256().or_else(|| read.get(&layer.diff_id).copied());
        known.ok_or_else(|| Error::not_found("no such layer").subject(layer.diff_id))
    };
    plan.layers.iter().map(diff_id).collect()
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
