//! Where sound bytes come from: stores. Layers and images are imported into one that lasts as long as the repair.

use super::{RepairReport, RepairSource};
use crate::codec::chunk::Compress;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::id::ContentId;
use crate::image::plan::ImagePlan;
use crate::layer::ImportOptions;
use crate::limits::Limits;
use crate::observe::{Observer, check};
use crate::store::{ChunkReader, OpenOptions, Store};
use crate::sys::cache::ReadOnce;
use crate::sys::publish::{Draft, io_error};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// All that may have what is wanted.
#[derive(Default)]
pub(super) struct Donors<'a> {
    /// A store that was given.
    given: Option<&'a Store>,
    /// The store that layers were imported into.
    made: Option<Store>,
    images: Vec<ImagePlan>,
    source: Option<&'a RepairSource>,
}

impl<'a> Donors<'a> {
    /// Opens the source. `layers` are those of `store` that are hurt: what is left of them in `store` counts too.
    pub(super) fn open(
        store: &Store,
        source: Option<&'a RepairSource>,
        layers: &BTreeSet<Digest>,
        dir: &Path,
        (observer, report): (&dyn Observer, &mut RepairReport),
    ) -> Result<Self> {
        let mut donors = Self { source, ..Self::default() };
        let mut filling = Filling { store, dir, made: None, observer };
        for blob in store.with_index(|index| index.kept_blobs())?.iter().filter(|b| layers.contains(&b.diff_id)) {
            // Where this fails, the blob is damaged too, which is told.
            let _ = filling.file(&store.blob_path(&blob.digest), Some(blob.diff_id));
            check(observer)?;
        }
        match source {
            Some(RepairSource::Store(given)) => donors.given = Some(given),
            Some(RepairSource::Layer(path)) => filling.file(path, None)?,
            Some(RepairSource::Image(image)) => {
                for plan in image.plans() {
                    match plan {
                        Ok(plan) => {
                            for layer in &plan.layers {
                                let blob = image.open_layer(layer);
                                let put = blob.and_then(|blob| filling.put(blob, layer.diff_id.sha256()));
                                if let Err(e) = put {
                                    check(observer)?;
                                    report.refuse(format!("layer {}", layer.diff_id), &e);
                                }
                            }
                            donors.images.push(plan);
                        }
                        Err(e) => report.refuse("image", &e),
                    }
                }
            }
            None => {}
        }
        donors.made = filling.made;
        Ok(donors)
    }

    pub(super) fn stores(&self) -> impl Iterator<Item = &Store> {
        self.given.into_iter().chain(&self.made)
    }

    /// The chunk, from a store that has one of its content.
    pub(super) fn chunk(&self, id: &ContentId) -> Option<Vec<u8>> {
        self.stores().find_map(|store| {
            let mut reader = ChunkReader::new(store).ok()?;
            store.with_index(|index| index.has_chunk(id)).ok().filter(|has| *has)?;
            reader.read(id).ok().map(|raw| raw.to_vec())
        })
    }

    /// A small file of `len` bytes by its content, wherever it is bundled.
    pub(super) fn member(&self, id: &ContentId, len: u32) -> Option<Vec<u8>> {
        self.stores().find_map(|store| {
            let place = store.with_index(|index| index.member(id)).ok().flatten()?;
            let raw = ChunkReader::new(store).ok()?.read(&place.chunk).ok()?;
            let file = raw.get(place.offset as usize..place.offset as usize + len as usize)?;
            (ContentId::of(file) == *id).then(|| file.to_vec())
        })
    }

    /// Copies the blob with this digest to `draft`; false if nobody has it.
    pub(super) fn blob(&self, digest: &Digest, draft: impl Fn() -> Result<Draft>) -> Result<Option<Draft>> {
        let mut documents = self.images.iter().flat_map(|plan| {
            let manifest = plan.manifest.iter().map(|m| (m.digest, &m.json));
            manifest.chain([(plan.config_digest, &plan.config)])
        });
        if let Some((_, bytes)) = documents.find(|(d, _)| d == digest) {
            return copy(&bytes[..], digest, draft()?);
        }
        let mut files: Vec<PathBuf> = self.given.iter().map(|store| store.blob_path(digest)).collect();
        match self.source {
            Some(RepairSource::Layer(path)) => files.push(path.clone()),
            Some(RepairSource::Image(source)) => {
                let layers = self.images.iter().flat_map(|plan| &plan.layers);
                // One that is named by SHA-512 may be any: what is copied is compared.
                for layer in layers.filter(|layer| layer.blob.is_some_and(|blob| blob.may_be(digest))) {
                    if let Some(done) = copy(source.open_layer(layer)?, digest, draft()?)? {
                        return Ok(Some(done));
                    }
                }
            }
            _ => {}
        }
        for file in files.iter().filter_map(|path| File::open(path).ok()) {
            if let Some(done) = copy(ReadOnce::new(file), digest, draft()?)? {
                return Ok(Some(done));
            }
        }
        Ok(None)
    }
}

/// `None` if it turns out to be something else.
fn copy(mut from: impl Read, digest: &Digest, draft: Draft) -> Result<Option<Draft>> {
    let (mut hasher, mut piece) = (Hasher::default(), vec![0; 256 << 10]);
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok((hasher.finish() == *digest).then_some(draft)),
            Ok(n) => {
                hasher.update(&piece[..n]);
                draft.append(&piece[..n])?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::from_io("read a blob of the source", e)),
        }
    }
}

/// The store that layers are imported into, made when the first comes.
struct Filling<'a> {
    store: &'a Store,
    dir: &'a Path,
    made: Option<Store>,
    observer: &'a dyn Observer,
}

impl Filling<'_> {
    fn file(&mut self, path: &Path, diff_id: Option<Digest>) -> Result<()> {
        let file = File::open(path).map_err(|e| io_error("open", path, e))?;
        self.put(ReadOnce::new(file), diff_id).map_err(|e| e.subject(path.display()))
    }

    fn put(&mut self, blob: impl Read + Send, diff_id: Option<Digest>) -> Result<()> {
        let made = match &self.made {
            Some(made) => made,
            None => {
                // Cut alike, most of it has the same chunks.
                let options = OpenOptions::default().chunking(self.store.chunking());
                self.made.insert(Store::open_with(self.dir.join("donor"), &options)?)
            }
        };
        let mut options = ImportOptions::default().compress(Compress::Lz4).limits(Limits::default());
        if let Some(diff_id) = diff_id {
            options = options.expected_diff_id(diff_id);
        }
        made.import_layer(blob, &options, self.observer).map(drop)
    }
}
