//! Making the database anew from what it was made of.
//!
//! Packs' tables say where chunks are, layers' records which chunks they need, and `blobs/` holds configurations and
//! manifests. Names of images, snapshots and their labels are only in the database: of a damaged one they are read as
//! far as possible (`store/index/salvage.rs`).
//!
//! The new database is filled aside, checked like any other, and put in the place of the old one, which is kept. Whoever
//! is stopped on the way has the old one or the new one. Nothing else in the store is changed.
//!
//! | file | what |
//! | --- | --- |
//! | `packs.rs` | packs and their chunks, each read before it counts |
//! | `layers.rs` | layers |
//! | `images.rs` | what is in `blobs/` |
//! | `snapshots.rs` | snapshots, and directories that are no one's |

mod images;
mod layers;
mod packs;
mod report;
mod snapshots;

pub use report::{RebuildOptions, RebuildReport};

use crate::error::{Error, Result};
use crate::observe::{Observer, check};
use crate::store::{Salvage, Store, has, put_database, take_alone};
use crate::sys::publish::{io_error, make_dir};
use crate::upkeep::{DamageKind, Finding, FsckOptions};
use std::path::Path;

impl Store {
    /// Makes the database of the store at `root` anew, whatever became of the one it has: missing, damaged, or of another
    /// store. Reads all packs and blobs. The store must not be open, here or in any process.
    ///
    /// Chunks that are not what their ids say are left out, so that they are stored again by imports that have them.
    /// Every layer that has a record becomes known and is held. Images have their names as far as the old database can
    /// be read, and otherwise the digests of their manifests. Directories of snapshots that the old database does not
    /// explain become active snapshots without a parent in the namespace `lost+found`, so that nothing removes them.
    ///
    /// # Errors
    /// `Busy` if others have the store open for longer than the options' patience; `NotFound` if there is no store;
    /// `FailedPrecondition` as [`open`](Self::open); `Unsupported` for a store of another version; `Cancelled`; `Io`.
    /// Then the store is as it was, but that a lost or damaged `STORE` may have been made anew.
    pub fn rebuild(root: impl AsRef<Path>, options: &RebuildOptions, observer: &dyn Observer) -> Result<RebuildReport> {
        let root = root.as_ref();
        rebuild(root, options, observer).map_err(|e| e.subject(format!("store {}", root.display())))
    }
}

fn rebuild(root: &Path, options: &RebuildOptions, observer: &dyn Observer) -> Result<RebuildReport> {
    if !has(root, "packs")? || !root.join("packs").is_dir() {
        return Err(Error::not_found("there is no store here"));
    }
    let root = root.canonicalize().map_err(|e| io_error("resolve", root, e))?;
    let alone = take_alone(&root, options.patience, observer)?;
    let tmp = root.join("tmp");
    let made = tempfile::Builder::new().prefix("rebuild-").tempdir_in(&tmp);
    let scratch = made.map_err(|e| io_error("create a directory below", &tmp, e))?;
    let (old, new) = (scratch.path().join("old"), scratch.path().join("new"));
    make_dir(&old)?;
    make_dir(&new)?;
    let salvage = Salvage::read(&root.join("index.db"), &old)?;
    let (store, parameters) = Store::draft(&root, &new, alone)?;
    let report = RebuildReport { parameters, ..RebuildReport::default() };
    let mut rebuild = Rebuild { store: &store, salvage: &salvage, options, observer, report };
    rebuild.told();
    rebuild.packs()?;
    rebuild.layers()?;
    rebuild.images()?;
    rebuild.snapshots()?;
    let mut report = rebuild.report;
    let fsck = FsckOptions::default().threads(options.threads);
    let checked = store.fsck(&fsck, observer)?.findings;
    report.layers = store.layers()?.len() as u64;
    report.findings.extend(checked);
    let (database, alone) = store.into_database()?;
    check(observer)?;
    report.set_aside = put_database(&root, &database)?;
    drop(alone);
    Ok(report)
}

/// A rebuild under way.
struct Rebuild<'a> {
    /// The store with its new database.
    store: &'a Store,
    /// What is left of the old one.
    salvage: &'a Salvage,
    options: &'a RebuildOptions,
    observer: &'a dyn Observer,
    report: RebuildReport,
}

impl Rebuild<'_> {
    /// What the old database does not tell.
    fn told(&mut self) {
        let Salvage { layers, images, snapshots, .. } = self.salvage;
        let parts = [("layers", layers.whole), ("images", images.whole), ("snapshots", snapshots.whole)];
        self.report.unsalvaged.extend(parts.iter().filter(|(_, whole)| !whole).map(|(name, _)| *name));
    }

    fn found(&mut self, kind: DamageKind, file: &Path, what: impl Into<String>) {
        self.report.findings.push(Finding::new(kind, file, what));
    }
}
