//! Directories into layers.

use super::Snapshotter;
use super::commit::{UpperDir, directory_changes, upper_changes};
use super::lifecycle::CommitOptions;
use super::merge::Marks;
use super::model::{Form, SnapshotKind};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{Changes, CreateOptions, Keep};
use crate::observe::Observer;
use crate::store::{Change, SnapshotRow};
use crate::sys::lock::Lock;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// How long to wait for another process that absorbs the same snapshot.
const PATIENCE: Duration = Duration::from_secs(600);

/// What [`Snapshotter::absorb`] did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Absorbed {
    /// Snapshots whose directories became layers.
    pub layers: u64,
    /// Snapshots that could not become layers. They and their directories stay as they were.
    pub failed: Vec<NotAbsorbed>,
    /// Snapshots that were not tried, because one that they stand on failed or was left alone.
    pub waiting: u64,
}

/// A committed snapshot that could not become a layer.
#[derive(Debug)]
#[non_exhaustive]
pub struct NotAbsorbed {
    /// Its number, which no other snapshot of the store ever gets; a key can be used again.
    pub number: u64,
    /// Why it failed; names the snapshot. `InvalidInput`, `LimitExceeded` and `Unsupported` will not change, since a
    /// committed snapshot does not.
    pub error: Error,
}

impl Snapshotter {
    /// Makes layers of all committed snapshots that are only directories yet, parents first. One that fails is passed
    /// over, with all that stand on it, and told in the result; the others are done. Stopped at any point, it goes on
    /// where it was the next time.
    ///
    /// # Errors
    /// `Cancelled`; those of reading the list of snapshots.
    pub fn absorb(&self, observer: &dyn Observer) -> Result<Absorbed> {
        self.absorb_except(|_| false, observer)
    }

    /// [`absorb`](Self::absorb), but for the snapshots, by their numbers, that `leave` names: those that failed before,
    /// for example. They and all that stand on them are not tried.
    ///
    /// # Errors
    /// As [`absorb`](Self::absorb).
    pub fn absorb_except(&self, leave: impl Fn(u64) -> bool, observer: &dyn Observer) -> Result<Absorbed> {
        let rows = self.store.with_index(|index| index.snapshots(Some(&self.namespace)))?;
        let pending = rows.iter().filter(|row| row.kind == SnapshotKind::Committed.to_u8() && row.layer.is_none());
        let (mut done, mut left) = (Absorbed::default(), HashSet::new());
        for row in parents_first(pending.collect()) {
            let stands_on_it = row.parent.is_some_and(|parent| left.contains(&parent));
            if stands_on_it || leave(row.n) {
                done.waiting += u64::from(stands_on_it);
                left.insert(row.n);
                continue;
            }
            match self.absorb_row(row.n, observer) {
                Ok(_) => done.layers += 1,
                Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
                // Removed meanwhile.
                Err(e) if e.kind() == ErrorKind::NotFound && matches!(self.has(row.n), Ok(false)) => {}
                Err(e) => {
                    let error = e.subject(format!("snapshot {}", row.key));
                    done.failed.push(NotAbsorbed { number: row.n, error });
                    left.insert(row.n);
                }
            }
        }
        Ok(done)
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

/// The same snapshots, each after the one it stands on. Mostly that is their order; a snapshot that was put on another
/// parent when it was committed can have a lower number than its parent.
fn parents_first(rows: Vec<&SnapshotRow>) -> Vec<&SnapshotRow> {
    let by_number: HashMap<u64, &SnapshotRow> = rows.iter().map(|row| (row.n, *row)).collect();
    let (mut ordered, mut placed) = (Vec::with_capacity(rows.len()), HashSet::new());
    for row in rows {
        let mut chain = Vec::new();
        let mut next = Some(row);
        // Each is placed once, so damaged rows that are each other's parents end the walk, too.
        while let Some(row) = next.filter(|row| placed.insert(row.n)) {
            chain.push(row);
            next = row.parent.and_then(|parent| by_number.get(&parent).copied());
        }
        ordered.extend(chain.into_iter().rev());
    }
    ordered
}
