//! Between snapshots and layer blobs: a blob as what a snapshot adds, and what it adds as a blob.

use super::Snapshotter;
use super::lifecycle::CommitOptions;
use super::model::{SnapshotKind, not_found};
use super::mount::Mount;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{ImportOptions, ImportStats, LayerImport};
use crate::observe::Observer;
use crate::store::{Change, SnapshotRow};
use std::io::{Read, Write};
use std::num::NonZeroUsize;

impl Snapshotter {
    /// Imports a layer and says that it is what the active snapshot `key` adds, in one step: the layer is never in the
    /// store without the snapshot that keeps it. Nothing is unpacked; committing takes no time then.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind) and [`Store::import_layer`](crate::Store::import_layer).
    pub fn apply(
        &self,
        key: &str,
        blob: impl Read + Send,
        options: &ImportOptions,
        observer: &dyn Observer,
    ) -> Result<(LayerImport, ImportStats)> {
        let active = self.active(key)?;
        let bind = |change: &Change<'_>, layer: &Digest| match change.set_snapshot_layer(active.n, layer)? {
            true => Ok(()),
            false => Err(not_found(key)),
        };
        self.store.import_layer_for(blob, options, observer, &bind)
    }

    /// [`apply`](Self::apply) without reading anything, if the layer of this blob is in the store; else `None`.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    pub fn apply_known(&self, key: &str, blob: &Digest) -> Result<Option<LayerImport>> {
        let Some(blob) = self.store.with_index(|index| index.blob(blob))? else { return Ok(None) };
        let Some(layer) = self.store.known_layer(&blob.diff_id)? else { return Ok(None) };
        match self.bind(key, &blob.diff_id) {
            // It went away meanwhile.
            Err(e) if e.kind() == ErrorKind::NotFound && self.store.known_layer(&blob.diff_id)?.is_none() => Ok(None),
            bound => bound.map(|()| Some(layer)),
        }
    }

    /// The layers that a committed snapshot is made of, lowest first; `None` while some of them are only directories.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if it is not committed.
    pub fn known_layers(&self, key: &str) -> Result<Option<Vec<Digest>>> {
        let row = self.parent_row(key)?;
        Ok(self.ancestors(Some(row.n))?.into_iter().map(|row| row.layer).collect())
    }

    /// Writes the tar of the layer that takes the tree of `left` to that of `right` to `out`; returns its diff_id. Both
    /// are mounts as this snapshotter returned them: `right` an active snapshot's and `left` a view's of the same parent,
    /// or `right` a view's and `left` a view's of the parent's parent. `epoch` is [`CommitOptions::epoch`].
    ///
    /// # Errors
    /// `NotFound` for other mounts; those of committing; `Io` from `out`.
    pub fn difference(
        &self,
        left: &[Mount],
        right: &[Mount],
        epoch: Option<i64>,
        out: &mut (dyn Write + Send),
        observer: &dyn Observer,
    ) -> Result<Digest> {
        let unrelated = || Error::not_found("the mounts are not a snapshot's and its parent's");
        let left = self.row_of(left)?.filter(|row| row.kind != SnapshotKind::Active.to_u8()).ok_or_else(unrelated)?;
        let right = self.row_of(right)?.ok_or_else(unrelated)?;
        let layer = if right.kind == SnapshotKind::Active.to_u8() {
            if right.parent != left.parent {
                return Err(unrelated());
            }
            right.layer
        } else {
            let top = self.ancestors(right.parent)?.pop().ok_or_else(unrelated)?;
            if top.parent != left.parent {
                return Err(unrelated());
            }
            Some(self.absorb_row(top.n, observer)?)
        };
        if let Some(layer) = layer {
            self.store.layer(&layer)?.export(out, NonZeroUsize::MIN, observer)?;
            return Ok(layer);
        }
        let options = CommitOptions::default().epoch(epoch);
        let (changes, create) = self.directory_changes(&right, right.parent, &options, observer)?;
        Ok(self.store.write_layer(&changes, out, &create, observer)?.0)
    }

    /// The key of the active snapshot or view that has these mounts, as far as they are told apart: of views of one
    /// parent any. Options that clients add do not matter.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn mounted(&self, mounts: &[Mount]) -> Result<Option<String>> {
        Ok(self.row_of(mounts)?.map(|row| row.key))
    }

    /// The active snapshot or view that has these mounts; of views with the same, any.
    fn row_of(&self, mounts: &[Mount]) -> Result<Option<SnapshotRow>> {
        if let Some(row) = self.active_of(mounts)?
            && same(&self.mounts_of(&row)?, mounts)
        {
            return Ok(Some(row));
        }
        for row in self.store.with_index(|index| index.snapshots(Some(&self.namespace)))? {
            if row.kind != SnapshotKind::Committed.to_u8() && same(&self.mounts_of(&row)?, mounts) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }
}

/// Clients add options and make active snapshots read-only; what matters is which directories are mounted.
fn same(ours: &[Mount], theirs: &[Mount]) -> bool {
    let directories = |mount: &Mount| -> Vec<String> {
        let wanted = ["lowerdir=", "upperdir=", "workdir="];
        let options = mount.options.iter().filter(|o| wanted.iter().any(|w| o.starts_with(w)));
        let mut all: Vec<String> = options.cloned().collect();
        all.sort();
        if mount.kind == "bind" {
            all.push(mount.source.clone());
        }
        all
    };
    let key = |mounts: &[Mount]| -> Vec<_> { mounts.iter().map(|m| (m.kind.clone(), directories(m))).collect() };
    key(ours) == key(theirs)
}
