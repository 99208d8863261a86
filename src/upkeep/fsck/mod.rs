//! Checking a store: is what it says it has there, and is it what it was.
//!
//! The quick check reads what says where things are: `STORE`, the database, the packs' headers, footers and tables, the
//! layers' records; the full one every byte besides, of extracted directories too. What is damaged is a [`Finding`] that names the layers and images it
//! hurts, and the check goes on. It mends nothing.
//!
//! Imports and gc may be at work meanwhile. So nothing is held that they wait for, and what looked damaged and turns out
//! to have been removed since is no finding (`hurt.rs`). Space that gc punched out of packs is none either: of a pack's
//! chunks only those count that the database has.

mod chunks;
mod files;
mod hurt;
mod packs;
mod report;
mod trees;

pub use report::{DamageKind, Finding, FsckCounts, FsckOptions, FsckReport};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::id::ContentId;
use crate::observe::Observer;
use crate::store::{BlobInfo, Index, LayerInfo, Roots, Store};
use crate::upkeep::chains::Chains;
use report::words;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

impl Store {
    /// Looks for damage. Changes nothing.
    ///
    /// # Errors
    /// `Cancelled`. All else that goes wrong is a finding.
    pub fn fsck(&self, options: &FsckOptions, observer: &dyn Observer) -> Result<FsckReport> {
        let index = self.fresh_index();
        let mut check = Check::new(self, options, observer);
        let (file, parameters) = self.check_parameters();
        if let Err(e) = parameters {
            check.found(DamageKind::Store, &file, &e);
        }
        let index = match index {
            Ok(index) => index,
            Err(e) => {
                check.found(DamageKind::Database, &self.index_path(), &e);
                return Ok(check.without_database());
            }
        };
        check.database(&index);
        check.view(&index);
        check.packs(&index)?;
        check.records(&index)?;
        check.blobs()?;
        check.images()?;
        check.snapshots();
        check.trees()?;
        check.settle(&index)
    }
}

/// A check under way.
struct Check<'a> {
    store: &'a Store,
    options: &'a FsckOptions,
    observer: &'a dyn Observer,
    report: FsckReport,
    /// Findings that hurt all layers.
    all: Vec<usize>,
    /// Findings that hurt whoever needs a chunk.
    hurt: HashMap<ContentId, Vec<usize>>,
    /// Packs of which a finding tells, by their base.
    of_packs: HashMap<usize, (u64, u64)>,
    roots: Roots,
    layers: Vec<LayerInfo>,
    packs: Vec<(u64, u64)>,
    /// Extracted directories of which a finding tells, with their device and inode number.
    of_trees: HashMap<usize, (PathBuf, (u64, u64))>,
    /// Snapshots of which a finding tells.
    of_snapshots: HashMap<usize, u64>,
    chains: Chains,
    kept: Vec<BlobInfo>,
}

impl<'a> Check<'a> {
    fn new(store: &'a Store, options: &'a FsckOptions, observer: &'a dyn Observer) -> Self {
        Self {
            store,
            options,
            observer,
            report: FsckReport::default(),
            all: vec![],
            hurt: HashMap::new(),
            of_packs: HashMap::new(),
            of_trees: HashMap::new(),
            of_snapshots: HashMap::new(),
            chains: Chains::default(),
            roots: Roots::default(),
            layers: vec![],
            packs: vec![],
            kept: vec![],
        }
    }

    /// Notes damage, and returns its number.
    fn found(&mut self, kind: DamageKind, file: &Path, error: &Error) -> usize {
        self.tell(kind, file, words(error))
    }

    fn tell(&mut self, kind: DamageKind, file: &Path, what: impl Into<String>) -> usize {
        let number = self.report.findings.len();
        self.report.findings.push(Finding::new(kind, file, what));
        if matches!(kind, DamageKind::Store | DamageKind::Database) {
            self.all.push(number);
        }
        number
    }

    /// As [`found`](Self::found), of the database where it concerns one chunk.
    fn found_of_chunk(&mut self, kind: DamageKind, file: &Path, id: &ContentId, what: String) -> usize {
        let number = self.tell(kind, file, what);
        self.all.retain(|n| *n != number);
        self.report.findings[number].chunk = Some(*id);
        self.hurt.entry(*id).or_default().push(number);
        number
    }

    fn database(&mut self, index: &Index) {
        let file = self.store.index_path();
        match index.complaints(self.options.full) {
            Ok(complaints) => complaints.into_iter().for_each(|what| {
                self.tell(DamageKind::Database, &file, what);
            }),
            Err(e) => {
                self.found(DamageKind::Database, &file, &e);
            }
        }
        if self.options.full {
            let contradictions = index.contradictions();
            for what in self.part(contradictions) {
                self.tell(DamageKind::Database, &file, what);
            }
        }
    }

    /// Reads what there should be, at one moment. A damaged table is a finding, and the others are read all the same.
    fn view(&mut self, index: &Index) {
        let begun = index.begin_reading();
        let (roots, layers, packs, kept) = (index.roots(), index.layers(), index.packs(), index.kept_blobs());
        let ended = index.end_reading();
        self.roots = self.part(roots);
        self.chains = Chains::new(&self.roots);
        self.layers = self.part(layers);
        self.packs = self.part(packs);
        self.kept = self.part(kept);
        self.part(begun.and(ended));
        let hurt = self.layers.iter().map(|layer| layer.diff_id).collect::<std::collections::HashSet<_>>();
        let named: Vec<(String, Digest)> = self.roots.images.iter().flat_map(named_layers).collect();
        for (image, layer) in named.into_iter().filter(|(_, layer)| !hurt.contains(layer)) {
            let what = format!("an image has a layer that the store does not: {layer}");
            let number = self.tell(DamageKind::Database, &self.store.index_path(), what);
            self.all.retain(|n| *n != number);
            let finding = &mut self.report.findings[number];
            (finding.layers, finding.images) = (vec![layer], vec![image]);
        }
        for image in self.roots.images.clone() {
            if let Err(e) = self.store.check_image(&image) {
                let number = self.found(DamageKind::Database, &self.store.index_path(), &e);
                self.all.retain(|n| *n != number);
                let finding = &mut self.report.findings[number];
                (finding.layers, finding.images) = (image.layers, vec![image.name]);
            }
        }
    }

    fn part<T: Default>(&mut self, read: Result<T>) -> T {
        read.unwrap_or_else(|e| {
            self.found(DamageKind::Database, &self.store.index_path(), &e);
            T::default()
        })
    }
}

fn named_layers(image: &crate::store::ImageInfo) -> impl Iterator<Item = (String, Digest)> + '_ {
    image.layers.iter().map(|layer| (image.name.clone(), *layer))
}

/// The result of a step that may have been cancelled; all else that went wrong is handed back to be told.
fn uncancelled<T>(result: Result<T>) -> Result<std::result::Result<T, Error>> {
    match result {
        Err(e) if e.kind() == ErrorKind::Cancelled => Err(e),
        other => Ok(other),
    }
}
