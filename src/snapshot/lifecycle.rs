//! What happens to snapshots after they were prepared: commit, remove, labels; and looking at them.

use super::Snapshotter;
use super::implied::{IMPLIED, RENEW};
use super::model::{Form, Labels, SnapshotInfo, SnapshotKind, SnapshotUsage, info, not_found, now, taken};
use super::mount::Mount;
use super::names::{check_key, check_labels};
use super::snapshotter::committed;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::observe::Observer;
use crate::store::{Change, ImageInfo, SnapshotRow, chain_ids};
use crate::sys::upper;
use std::collections::HashMap;
use std::path::Path;

/// How to commit. Start from `CommitOptions::default()`.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    parent: Option<String>,
    labels: Labels,
    deferred: bool,
    mounted: bool,
    pub(super) epoch: Option<i64>,
}

impl CommitOptions {
    /// The committed snapshot to put the changes on, for a snapshot that was prepared without a parent ("rebase").
    #[must_use]
    pub fn parent(mut self, parent: impl Into<String>) -> Self {
        self.parent = Some(parent.into());
        self
    }

    /// Labels of the committed snapshot. The active one's are gone with it.
    #[must_use]
    pub fn labels(mut self, labels: Labels) -> Self {
        self.labels = labels;
        self
    }

    /// Takes the directory as it is, durably, and leaves making a layer of it to [`Snapshotter::absorb`]. Default false.
    #[must_use]
    pub fn deferred(mut self, deferred: bool) -> Self {
        self.deferred = deferred;
        self
    }

    /// Commits a snapshot that is mounted, too, as containerd's clients do. What is written to such a mount while or after
    /// that may be in the layer, in later mounts, or lost: the caller knows that nobody writes. Default false.
    #[must_use]
    pub fn mounted(mut self, mounted: bool) -> Self {
        self.mounted = mounted;
        self
    }

    /// Seconds since 1970 that no modification time in the layer may exceed, as `SOURCE_DATE_EPOCH`. Not for deferred
    /// commits.
    #[must_use]
    pub fn epoch(mut self, epoch: Option<i64>) -> Self {
        self.epoch = epoch;
        self
    }
}

/// How to remove a snapshot. Start from `RemoveOptions::default()`.
#[derive(Clone, Debug, Default)]
pub struct RemoveOptions {
    mounted: bool,
}

impl RemoveOptions {
    /// Removes a snapshot that is mounted, too. What is mounted stays usable; its directory, with all that was written to
    /// it, goes with the first cleanup or gc after it was unmounted. Default false.
    #[must_use]
    pub fn mounted(mut self, mounted: bool) -> Self {
        self.mounted = mounted;
        self
    }
}

impl Snapshotter {
    /// Makes the active snapshot `key` a committed one called `name`. When this returns `Ok`, its changes are durable.
    /// Returns the layer they became, `None` for a deferred commit.
    ///
    /// # Errors
    /// `NotFound`; `AlreadyExists` if the name is taken; `FailedPrecondition` if `key` is not active, or has another
    /// parent than the options name; `Busy` if it is [mounted](Self::mount_points), unless the options allow that;
    /// `InvalidInput` if the parent is not committed; `Corrupt`, `Io`.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        options: &CommitOptions,
        observer: &dyn Observer,
    ) -> Result<Option<Digest>> {
        check_key(name)?;
        check_labels(&options.labels)?;
        let active = self.active(key)?;
        let parent = self.commit_parent(&active, options)?;
        if self.store.with_index(|index| index.snapshot((&self.namespace, name)))?.is_some() {
            return Err(taken(name));
        }
        if !options.mounted {
            self.check_unmounted(&active)?;
        }
        let dir = self.fs_path(active.n);
        let (bytes, inodes) = match &active.layer {
            Some(layer) => self.store.layer(layer).map(|layer| (layer.content_size(), layer.len()))?,
            None => upper::disk_usage(&dir)?,
        };
        // A whole tree tells its changes only against the parent it was prepared on; an upper directory may have marks
        // that mean the parent it goes on.
        let (whole, on) = (active.form == Form::Whole.to_u8(), parent.as_ref().map(|p| p.n));
        let created = now();
        let committed = |layer: Option<Digest>| SnapshotRow {
            key: name.to_owned(),
            kind: SnapshotKind::Committed.to_u8(),
            parent: on,
            layer,
            lowers: vec![],
            bytes,
            inodes,
            created,
            updated: created,
            labels: options.labels.clone(),
            ..active.clone()
        };
        let replace = |change: &Change<'_>, layer| self.replace(change, &active, &committed(layer), parent.as_ref());
        if active.layer.is_none() && !(options.deferred && (!whole || on == active.parent)) {
            let below = if whole { active.parent } else { on };
            let keep = |change: &Change<'_>, layer: &Digest| replace(change, Some(*layer));
            return self.directory_to_layer(&active, below, options, observer, &keep).map(Some);
        }
        if active.layer.is_none() {
            upper::sync_file_system(&dir)?;
        }
        self.store.with_index(|index| index.write_together(|change| replace(change, active.layer)))?;
        Ok(active.layer)
    }

    /// Brings to disk what was written to snapshots until now. Committing does so anyway, and has less to wait for then.
    ///
    /// # Errors
    /// `Io`.
    pub fn flush(&self) -> Result<()> {
        upper::sync_file_system(self.store.path())
    }

    pub(super) fn active(&self, key: &str) -> Result<SnapshotRow> {
        let row = self.row(key)?;
        if SnapshotKind::from_u8(row.kind)? == SnapshotKind::Active {
            return Ok(row);
        }
        let e = Error::new(ErrorKind::FailedPrecondition, "the snapshot is not active");
        Err(e.subject(format!("snapshot {key}")))
    }

    fn commit_parent(&self, active: &SnapshotRow, options: &CommitOptions) -> Result<Option<SnapshotRow>> {
        let asked = options.parent.as_deref().map(|p| self.parent_row(p)).transpose()?;
        let Some(own) = active.parent else { return Ok(asked) };
        if let Some(other) = asked.filter(|asked| asked.n != own) {
            let e = Error::new(ErrorKind::FailedPrecondition, "the snapshot was prepared on another parent");
            return Err(e.subject(format!("snapshot {}", active.key)).actual(other.key));
        }
        let own = self.store.with_index(|index| index.snapshot_numbered(own))?;
        own.map(Some).ok_or_else(|| not_found("of the parent"))
    }

    /// Writes the committed row over the active one, if all is still as it was seen.
    fn replace(
        &self,
        change: &Change<'_>,
        active: &SnapshotRow,
        committed: &SnapshotRow,
        parent: Option<&SnapshotRow>,
    ) -> Result<()> {
        let seen = change.snapshot((&active.namespace, &active.key))?;
        if seen.is_none_or(|seen| (seen.n, seen.kind) != (active.n, active.kind)) {
            return Err(not_found(&active.key));
        }
        if change.snapshot((&committed.namespace, &committed.key))?.is_some() {
            return Err(taken(&committed.key));
        }
        parent.map(|p| self.still_there(change, p)).transpose()?;
        change.put_snapshot(committed).map(drop)
    }

    /// Makes a committed snapshot of a layer the store has, on `parent`, without any directory.
    ///
    /// # Errors
    /// `NotFound` for an unknown layer or parent, `AlreadyExists`, `InvalidInput` for a parent that is not committed.
    pub fn commit_layer(&self, name: &str, parent: Option<&str>, layer: &Digest, labels: &Labels) -> Result<()> {
        let parent = parent.map(|p| self.parent_row(p)).transpose()?;
        let row = self.layer_row(name, layer, labels)?;
        let insert = |change: &Change<'_>| {
            parent.as_ref().map(|p| self.still_there(change, p)).transpose()?;
            match self.put_layer(change, &row, parent.as_ref().map(|p| p.n))? {
                Some(_) => Ok(()),
                None => Err(taken(name)),
            }
        };
        self.store.with_index(|index| index.write_together(insert))
    }

    /// A committed snapshot of a layer, without its parent yet.
    fn layer_row(&self, name: &str, layer: &Digest, labels: &Labels) -> Result<SnapshotRow> {
        check_key(name)?;
        check_labels(labels)?;
        let size = self.store.layer(layer)?;
        let created = now();
        Ok(SnapshotRow {
            n: 0,
            namespace: self.namespace.clone(),
            key: name.to_owned(),
            kind: SnapshotKind::Committed.to_u8(),
            parent: None,
            layer: Some(*layer),
            form: 0,
            lowers: vec![],
            bytes: size.content_size(),
            inodes: size.len(),
            created,
            updated: created,
            labels: labels.clone(),
        })
    }

    /// Adds such a snapshot on `parent` and returns its number; `None` if the name is taken.
    fn put_layer(&self, change: &Change<'_>, row: &SnapshotRow, parent: Option<u64>) -> Result<Option<u64>> {
        if change.snapshot((&row.namespace, &row.key))?.is_some() {
            return Ok(None);
        }
        if let Some(layer) = &row.layer
            && !change.has_layer(layer)?
        {
            return Err(Error::not_found("no such layer").subject(layer));
        }
        change.put_snapshot(&SnapshotRow { parent, ..row.clone() }).map(Some)
    }

    /// Makes committed snapshots of an image's layers, named by their chain_ids, as far as they are not there, in one
    /// transaction. Returns the name of the topmost, to prepare on; `None` for an image without layers. They go again,
    /// five minutes after the last such call, when no other snapshot stands on them and somebody cleans up or collects
    /// garbage; at once with [`GcOptions::now`](crate::GcOptions::now).
    ///
    /// # Errors
    /// As [`commit_layer`](Self::commit_layer), but for `AlreadyExists`.
    pub fn commit_image(&self, image: &ImageInfo, observer: &dyn Observer) -> Result<Option<String>> {
        let names: Vec<String> = chain_ids(&image.layers).map(|id| id.to_string()).collect();
        let Some(top) = names.last().cloned() else { return Ok(None) };
        // Whoever has the topmost has those it stands on.
        if self.renew(&top)? {
            return Ok(Some(top));
        }
        let implied = Labels::from([(IMPLIED.to_owned(), String::new())]);
        let row = |(name, layer): (&String, &Digest)| {
            crate::observe::check(observer)?;
            self.layer_row(name, layer, &implied)
        };
        let rows = names.iter().zip(&image.layers).map(row).collect::<Result<Vec<_>>>()?;
        let insert = |change: &Change<'_>| {
            let mut parent = None;
            for row in &rows {
                parent = match change.snapshot((&row.namespace, &row.key))? {
                    Some(there) => committed(&there).map(|()| Some(there.n))?,
                    None => self.put_layer(change, row, parent)?,
                };
            }
            Ok(())
        };
        self.store.with_index(|index| index.write_together(insert))?;
        Ok(Some(top))
    }

    /// Whether this snapshot is there. If it is an image's layer, its time begins anew: somebody is about to stand on it.
    fn renew(&self, name: &str) -> Result<bool> {
        let Some(row) = self.store.with_index(|index| index.snapshot((&self.namespace, name)))? else {
            return Ok(false);
        };
        if !row.labels.contains_key(IMPLIED) || (0..RENEW).contains(&(now() - row.updated)) {
            return Ok(true);
        }
        let renew = |change: &Change<'_>| match change.snapshot((&self.namespace, name))? {
            Some(row) => change.put_snapshot(&SnapshotRow { updated: now(), ..row }).map(|_| true),
            None => Ok(false),
        };
        self.store.with_index(|index| index.write(renew))
    }

    /// Says that the changes of an active snapshot are this layer of the store, whatever is in its directory: committing
    /// it then takes no time.
    ///
    /// # Errors
    /// `NotFound` for an unknown snapshot or layer; `FailedPrecondition` if the snapshot is not active.
    pub fn bind(&self, key: &str, layer: &Digest) -> Result<()> {
        let active = self.active(key)?;
        let bind = |change: &Change<'_>| {
            if !change.has_layer(layer)? {
                return Err(Error::not_found("no such layer").subject(layer));
            }
            match change.set_snapshot_layer(active.n, layer)? {
                true => Ok(()),
                false => Err(not_found(key)),
            }
        };
        self.store.with_index(|index| index.write_together(bind))
    }

    /// Removes a snapshot. Its key is free at once; its disk space comes back with [`cleanup`](Self::cleanup).
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if it is the parent of another; `Busy` if it is [mounted](Self::mount_points).
    pub fn remove(&self, key: &str) -> Result<()> {
        self.remove_with(key, &RemoveOptions::default())
    }

    /// [`remove`](Self::remove) with options.
    ///
    /// # Errors
    /// As [`remove`](Self::remove); no `Busy` if the options allow that it is mounted.
    pub fn remove_with(&self, key: &str, options: &RemoveOptions) -> Result<()> {
        if !options.mounted {
            self.check_unmounted(&self.row(key)?)?;
        }
        let remove = |change: &Change<'_>| {
            let row = change.snapshot((&self.namespace, key))?.ok_or_else(|| not_found(key))?;
            if change.snapshot_has_children(row.n)? {
                let e = Error::new(ErrorKind::FailedPrecondition, "the parent of other snapshots cannot be removed");
                return Err(e.subject(format!("snapshot {key}")));
            }
            change.remove_snapshot(row.n)
        };
        self.store.with_reserve(|| self.store.with_index(|index| index.write_together(remove)))
    }

    /// Looks at a snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn stat(&self, key: &str) -> Result<SnapshotInfo> {
        let row = self.row(key)?;
        let parent = match row.parent {
            Some(n) => self.store.with_index(|index| index.snapshot_numbered(n))?.map(|p| p.key),
            None => None,
        };
        info(row, parent)
    }

    /// Changes labels. `fields` says what: `labels` for all, `labels.NAME` for one (an empty value removes it); no field
    /// is all that can change. Returns the snapshot as it is then.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for a field that cannot change.
    pub fn update(&self, key: &str, labels: &Labels, fields: &[&str]) -> Result<SnapshotInfo> {
        let put = |change: &Change<'_>| {
            let mut row = change.snapshot((&self.namespace, key))?.ok_or_else(|| not_found(key))?;
            update_labels(&mut row.labels, labels, fields)?;
            check_labels(&row.labels)?;
            row.updated = now();
            change.put_snapshot(&row).map(drop)
        };
        self.store.with_index(|index| index.write_together(put))?;
        self.stat(key)
    }

    /// What a snapshot adds to its parents; for one that is not committed, now.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn usage(&self, key: &str) -> Result<SnapshotUsage> {
        let row = self.row(key)?;
        match SnapshotKind::from_u8(row.kind)? {
            SnapshotKind::Committed => Ok(SnapshotUsage { bytes: row.bytes, inodes: row.inodes }),
            SnapshotKind::View => Ok(SnapshotUsage::default()),
            SnapshotKind::Active => {
                let (bytes, inodes) = upper::disk_usage(&self.fs_path(row.n))?;
                Ok(SnapshotUsage { bytes, inodes })
            }
        }
    }

    /// Calls `each` for all snapshots, in the order they were made.
    ///
    /// # Errors
    /// What `each` returns; `Corrupt`, `Io`.
    pub fn walk(&self, mut each: impl FnMut(SnapshotInfo) -> Result<()>) -> Result<()> {
        let rows = self.store.with_index(|index| index.snapshots(Some(&self.namespace)))?;
        let keys: HashMap<u64, String> = rows.iter().map(|row| (row.n, row.key.clone())).collect();
        for row in rows {
            let parent = row.parent.and_then(|n| keys.get(&n).cloned());
            each(info(row, parent)?)?;
        }
        Ok(())
    }

    /// The active snapshot that these mounts, as [`prepare`](Self::prepare) returned them, are for.
    ///
    /// # Errors
    /// `NotFound` if they are not mounts of an active snapshot of this namespace.
    pub fn key_of(&self, mounts: &[Mount]) -> Result<String> {
        let active = self.active_of(mounts)?;
        active.map(|row| row.key).ok_or_else(|| Error::not_found("these mounts are not of a snapshot"))
    }

    /// The active snapshot of this namespace whose own directory these mounts make writable.
    pub(super) fn active_of(&self, mounts: &[Mount]) -> Result<Option<SnapshotRow>> {
        let Some(n) = self.number_of(mounts) else { return Ok(None) };
        let row = self.store.with_index(|index| index.snapshot_numbered(n))?;
        let active = SnapshotKind::Active.to_u8();
        Ok(row.filter(|row| row.namespace == self.namespace && row.kind == active))
    }

    /// The number in the path of the directory that these mounts write to.
    fn number_of(&self, mounts: &[Mount]) -> Option<u64> {
        let [mount] = mounts else { return None };
        let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
        let writable = mount.options.iter().any(|option| option == "rw");
        let source = (mount.kind == "bind" && writable).then_some(&mount.source[..]);
        let path = Path::new(upper.or(source)?);
        let below = path.strip_prefix(self.store.path().join("snapshots")).ok()?;
        let n = below.iter().next()?.to_str()?.parse().ok()?;
        (self.fs_path(n) == path).then_some(n)
    }

    /// The layers that a committed snapshot is made of, lowest first; what is only in directories yet is absorbed.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if it is not committed; those of absorbing.
    pub fn layers(&self, key: &str, observer: &dyn Observer) -> Result<Vec<Digest>> {
        let row = self.row(key)?;
        committed(&row)?;
        self.absorbed_chain(Some(row.n), observer)
    }
}

/// Changes `labels` to what `wanted` has for these fields, as [`Snapshotter::update`] describes them.
fn update_labels(labels: &mut Labels, wanted: &Labels, fields: &[&str]) -> Result<()> {
    if fields.is_empty() {
        labels.clone_from(wanted);
    }
    for field in fields {
        match (*field, field.strip_prefix("labels.")) {
            ("labels", _) => labels.clone_from(wanted),
            (_, Some(name)) => match wanted.get(name).filter(|value| !value.is_empty()) {
                Some(value) => drop(labels.insert(name.to_owned(), value.clone())),
                None => drop(labels.remove(name)),
            },
            _ => return Err(Error::invalid("this field of a snapshot cannot be changed").subject(field)),
        }
    }
    Ok(())
}
