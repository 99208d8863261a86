//! Mending what fsck finds, with bytes from elsewhere.
//!
//! Nothing is believed: a chunk is compared with its id before it is written, a record is made by importing the layer
//! again, which proves its diff_id, a blob is compared with its digest. What is mended is written as an import writes,
//! in its order (`docs/ORDERING.md`): chunks go to new addresses in new packs, and one transaction moves their rows. So
//! no byte of a pack is written twice, and whoever is stopped on the way has lost nothing.
//!
//! | file | what |
//! | --- | --- |
//! | `needs.rs` | what is damaged, sorted by how it is mended |
//! | `donor.rs` | where sound bytes come from |
//! | `pieces.rs` | chunks put together from pieces |
//! | `chunks.rs` | chunks, and packs that have none left |
//! | `files.rs` | records, blobs, metadata images |

mod chunks;
mod donor;
mod files;
mod needs;
mod pieces;
mod report;

pub use report::{PartOfChunk, RepairOptions, RepairReport, RepairSource};

use crate::error::{Error, Result};
use crate::observe::Observer;
use crate::store::{Scratch, Store};
use crate::sys::lock::Lock;
use crate::sys::publish::io_error;
use crate::upkeep::FsckOptions;
use donor::Donors;
use needs::Needs;
use std::fs;
use std::os::unix::fs::MetadataExt;

impl Store {
    /// Mends what `source` has of what is damaged, and checks the store before and after, every byte of it. Without a
    /// source it does what can be done without one: layers whose blobs were kept are their own source, sound chunks leave
    /// damaged packs, and damaged metadata images go.
    ///
    /// Damage of the database itself is for [`rebuild`](Self::rebuild). Others may use the store meanwhile.
    ///
    /// # Errors
    /// `InvalidInput` if the source is this store; those of [`import_layer`](Self::import_layer) if it is a layer that is
    /// none; `Busy` if garbage is collected, or a layer to be mended is imported, for longer than the options' patience;
    /// `Cancelled`; `Io`. What was mended until then stays mended. That the source lacks something is no error.
    pub fn repair(
        &self,
        source: Option<&RepairSource>,
        options: &RepairOptions,
        observer: &dyn Observer,
    ) -> Result<RepairReport> {
        if let Some(RepairSource::Store(given)) = source
            && self.is_same(given)?
        {
            return Err(Error::invalid("a store cannot be repaired from itself").subject(self.path().display()));
        }
        // What is found dead or punched meanwhile would be found damaged.
        let _gc = Lock::acquire(&self.path().join("locks").join("gc"), options.patience, observer)?;
        let fsck = FsckOptions::default().full(true).tars(true).threads(options.threads);
        let before = self.fsck(&fsck, observer)?;
        let mut report = RepairReport { findings: before.findings.len(), ..RepairReport::default() };
        let needs = Needs::of(self, &before)?;
        let scratch = self.scratch()?;
        let source = source.filter(|_| !before.is_clean());
        let donors = Donors::open(self, source, &needs.layers, scratch.path(), (observer, &mut report))?;
        let mut repair = Repair { store: self, options, observer, needs, donors: &donors, scratch: &scratch, report };
        if before.is_clean() {
            repair.stale_images()?;
            return Ok(RepairReport { remaining: before, ..repair.report });
        }
        repair.chunks()?;
        repair.records()?;
        repair.blobs()?;
        repair.forget()?;
        repair.packs()?;
        repair.images()?;
        let mut report = repair.report;
        report.remaining = self.fsck(&fsck, observer)?;
        Ok(report)
    }
}

impl Store {
    /// Whether another handle is of this store, by whatever path: its directory, or what it is made of, is the same.
    fn is_same(&self, other: &Store) -> Result<bool> {
        for part in ["", "packs", "index.db"] {
            let id = |store: &Store| {
                let path = store.path().join(part);
                let meta = fs::metadata(&path).map_err(|e| io_error("stat", &path, e))?;
                Ok::<_, Error>((meta.dev(), meta.ino()))
            };
            if id(self)? == id(other)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A repair under way.
struct Repair<'a> {
    store: &'a Store,
    options: &'a RepairOptions,
    observer: &'a dyn Observer,
    /// What is still to be mended.
    needs: Needs,
    donors: &'a Donors<'a>,
    scratch: &'a Scratch<'a>,
    report: RepairReport,
}
