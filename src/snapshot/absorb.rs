//! Directories into layers.

use super::Snapshotter;
use super::commit::{UpperDir, directory_changes, upper_changes};
use super::lifecycle::CommitOptions;
use super::merge::Marks;
use super::model::{Form, SnapshotKind};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::{Changes, CreateOptions, Keep};
use crate::observe::Observer;
use crate::store::{Change, SnapshotRow};
use crate::sys::lock::Lock;
use std::time::Duration;

/// How long to wait for another process that absorbs the same snapshot.
const PATIENCE: Duration = Duration::from_secs(600);

impl Snapshotter {
    /// Makes layers of all committed snapshots that are only directories yet, parents first. Returns how many. Stopped
    /// at any point, it goes on where it was the next time.
    ///
    /// # Errors
    /// The first that occurs; the snapshot stays as it was.
    pub fn absorb(&self, observer: &dyn Observer) -> Result<u64> {
        let rows = self.store.with_index(|index| index.snapshots(Some(&self.namespace)))?;
        let mut count = 0;
        for row in rows.iter().filter(|row| row.kind == SnapshotKind::Committed.to_u8() && row.layer.is_none()) {
            match self.absorb_row(row.n, observer) {
                // Removed meanwhile.
                Err(e) if e.kind() == crate::ErrorKind::NotFound && !self.has(row.n)? => {}
                Err(e) => return Err(e.subject(format!("snapshot {}", row.key))),
                Ok(_) => count += 1,
            }
        }
        Ok(count)
    }

    fn has(&self, n: u64) -> Result<bool> {
        Ok(self.store.with_index(|index| index.snapshot_numbered(n))?.is_some())
    }

    /// The layer of a committed snapshot, made now if it has none.
    pub(super) fn absorb_row(&self, n: u64, observer: &dyn Observer) -> Result<Digest> {
        let name = format!("absorb-{n}");
        let _lock = Lock::acquire(&self.store.path().join("locks").join(name), PATIENCE, observer)?;
        let row = self.store.with_index(|index| index.snapshot_numbered(n))?;
        let row = row.ok_or_else(|| Error::not_found("the snapshot is gone").actual(n))?;
        if let Some(layer) = row.layer {
            return Ok(layer);
        }
        let set = |change: &Change<'_>, layer: &Digest| match change.set_snapshot_layer(n, layer)? {
            true => Ok(()),
            false => Err(Error::not_found("the snapshot is gone").actual(n)),
        };
        self.directory_to_layer(&row, row.parent, &CommitOptions::default(), observer, &set)
    }

    /// Stores what a snapshot's directory adds to its parent as a layer, and in the same transaction what keeps it.
    pub(super) fn directory_to_layer(
        &self,
        row: &SnapshotRow,
        parent: Option<u64>,
        options: &CommitOptions,
        observer: &dyn Observer,
        keep: Keep<'_>,
    ) -> Result<Digest> {
        let (changes, create) = self.directory_changes(row, parent, options, observer)?;
        Ok(self.store.create_layer_for(&changes, &create, observer, keep)?.0.diff_id)
    }

    /// What a snapshot's directory adds to its parent, and how to make a layer of it.
    pub(super) fn directory_changes(
        &self,
        row: &SnapshotRow,
        parent: Option<u64>,
        options: &CommitOptions,
        observer: &dyn Observer,
    ) -> Result<(Changes, CreateOptions)> {
        let below = self.absorbed_chain(parent, observer)?;
        let (dir, create) =
            (self.fs_path(row.n), CreateOptions::default().epoch(options.epoch).compress(self.compress));
        let upper = |marks| {
            let upper = UpperDir { path: &dir, marks };
            upper_changes(&self.store, &below, upper, &create, observer)
        };
        let changes = match Form::from_u8(row.form)? {
            Form::Upper => upper(Marks::Trusted),
            Form::UserUpper => upper(Marks::User),
            Form::Whole => directory_changes(&self.store, &below, &dir, &create, observer),
        }?;
        Ok((changes, create))
    }
}
