//! Directories that no snapshot needs any more.

use super::Snapshotter;
use super::implied::forget_implied;
use super::model::{Form, Labels, SnapshotKind, now};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Change, SnapshotRow, Store};
use crate::sys::mount;
use crate::sys::mounts::InUse;
use crate::sys::publish::io_error;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

impl Snapshotter {
    /// Frees the disk space of removed snapshots, and of directories whose changes have become layers and that no
    /// snapshot is mounted over, and takes away the shared mounts of chains that no snapshot stands on any more. Returns
    /// how many directories went. For all namespaces of the store.
    ///
    /// # Errors
    /// `Io`, the first that occurs: one directory that cannot be moved keeps none of the others. What is left is found
    /// again by the next cleanup. What is moved away and cannot be removed is no error: it is in
    /// [`Store::leftovers`], and the next cleanup tries again. `Corrupt` if rows of the database are damaged: nothing
    /// is removed until it was rebuilt.
    pub fn cleanup(&self) -> Result<u64> {
        let moved = self.store.with_reserve(|| self.clean_up());
        self.store.refill_reserve();
        moved
    }

    fn clean_up(&self) -> Result<u64> {
        forget_implied(&self.store)?;
        self.store.sweep()?;
        // A row that was lost would leave its directory without one.
        self.store.with_index(|index| index.check_roots())?;
        let scratch = self.store.scratch()?;
        let mounts = InUse::of(self.store.path());
        // Nobody can add a snapshot while this transaction lasts, so what has no row now has none.
        let moved = |change: &Change<'_>| self.move_unused(change, &mounts, scratch.path());
        let (moved, failed) = self.store.with_index(|index| index.write(moved))?;
        drop(scratch);
        let unmounted = unmount_unused(&self.store);
        failed.map_or(unmounted.map(|()| moved), Err)
    }

    /// Ends the use of this snapshotter: takes away the shared mounts of chains that no snapshot of the store stands on,
    /// as [`cleanup`](Self::cleanup) does.
    ///
    /// # Errors
    /// `Io`. Mounts that are in use stay.
    pub fn close(self) -> Result<()> {
        unmount_unused(&self.store)
    }

    fn move_unused(&self, change: &Change<'_>, mounts: &InUse, target: &Path) -> Result<(u64, Option<Error>)> {
        let rows = change.snapshots()?;
        let used: HashSet<&String> = rows.iter().flat_map(|row| &row.lowers).collect();
        let needed: HashSet<u64> = rows.iter().filter(|row| needs_directory(row)).map(|row| row.n).collect();
        let dir = self.store.path().join("snapshots");
        let (mut moved, mut failed) = (0, None);
        for found in fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?.flatten() {
            let name = found.file_name();
            let Some(n) = name.to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
            let path = found.path();
            // A mount that outlives its snapshot keeps its directories.
            let in_use = used.contains(&format!("snapshots/{n}/fs")) || mounts.shows("snapshots", &n.to_string());
            if needed.contains(&n) || in_use {
                continue;
            }
            match fs::rename(&path, target.join(name)) {
                Ok(()) => moved += 1,
                Err(e) => drop(failed.get_or_insert_with(|| io_error("move away", &path, e))),
            }
        }
        Ok((moved, failed))
    }
}

/// Takes away the shared mounts of chains that no snapshot stands on. What is mounted from them elsewhere stays so.
fn unmount_unused(store: &Store) -> Result<()> {
    let dir = store.path().join("mounts");
    for found in fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?.flatten() {
        let path = found.path();
        if !mount::is_mount_point(&path) {
            continue;
        }
        let name = format!("mounts/{}", found.file_name().to_string_lossy());
        // In a transaction: nobody prepares a snapshot on it meanwhile.
        let unmount = |change: &Change<'_>| match change.snapshot_lowers()?.contains(&name) {
            true => Ok(()),
            false => mount::unmount(&path),
        };
        match store.with_index(|index| index.write(unmount)) {
            Err(e) if e.kind() != ErrorKind::Busy && e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// The namespace of snapshots of which only the directories are left.
const LOST: &str = "lost+found";

/// A row that keeps the directory numbered `n`, of which nothing else is known. Without a parent, marks of an overlay
/// mean nothing, and a whole tree is an upper directory like any other.
pub(crate) fn lost_snapshot(n: u64) -> SnapshotRow {
    let form = if rustix::process::geteuid().is_root() { Form::Upper } else { Form::UserUpper };
    let made = now();
    SnapshotRow {
        n,
        namespace: LOST.into(),
        key: n.to_string(),
        kind: SnapshotKind::Active.to_u8(),
        parent: None,
        layer: None,
        form: form.to_u8(),
        lowers: vec![],
        bytes: 0,
        inodes: 0,
        created: made,
        updated: made,
        labels: Labels::new(),
    }
}

/// Committed snapshots whose changes are a layer need no directory of their own.
pub(crate) fn needs_directory(row: &SnapshotRow) -> bool {
    row.kind != SnapshotKind::Committed.to_u8() || row.layer.is_none()
}
