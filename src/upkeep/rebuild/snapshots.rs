//! Snapshots as the old database has them, and directories that it does not explain.
//!
//! What is in the directory of an active snapshot is nowhere else, and a cleanup removes directories without a row. So
//! each gets one: an active snapshot without a parent, in a namespace of its own, keyed by the number of its directory.
//! It can be listed, mounted, committed and removed like any other.

use super::Rebuild;
use crate::error::Result;
use crate::snapshot::{lost_snapshot, needs_directory};
use crate::store::{Change, SnapshotRow};
use crate::sys::publish::io_error;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

impl Rebuild<'_> {
    pub(super) fn snapshots(&mut self) -> Result<()> {
        let directories = self.snapshot_directories()?;
        let rows = self.explained(&directories);
        let explained: BTreeSet<u64> = rows.iter().map(|row| row.n).collect();
        let lost: Vec<u64> = directories.difference(&explained).copied().collect();
        let last = self.salvage.snapshots.rows.iter().map(|row| row.n).chain(directories.iter().copied()).max();
        let enter = |change: &Change<'_>| {
            for row in &rows {
                if let Some(layer) = row.layer.filter(|_| !needs_directory(row))
                    && !change.has_layer(&layer)?
                {
                    change.add_layer(&super::layers::unknown(layer))?;
                }
                change.put_snapshot(row)?;
            }
            lost.iter().try_for_each(|n| change.put_snapshot(&lost_snapshot(*n)).map(drop))?;
            // Numbers are not used twice.
            change.raise_snapshots(last.unwrap_or_default())
        };
        self.store.with_index(|index| index.write(enter))?;
        self.report.snapshots = rows.len() as u64;
        let path = |n: u64| self.store.path().join("snapshots").join(n.to_string());
        self.report.lost = lost.into_iter().map(path).collect();
        Ok(())
    }

    /// Numbers of the directories below `snapshots/`.
    fn snapshot_directories(&self) -> Result<BTreeSet<u64>> {
        let dir = self.store.path().join("snapshots");
        let found = fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?;
        let number =
            |name: std::ffi::OsString| name.to_str()?.parse().ok().filter(|n| (1..i64::MAX as u64).contains(n));
        Ok(found.flatten().filter_map(|f| number(f.file_name())).collect())
    }

    /// Rows that make sense: they have the directory they need, a key of their own, and so have those they stand on.
    fn explained(&self, directories: &BTreeSet<u64>) -> Vec<SnapshotRow> {
        let sane = |row: &&SnapshotRow| {
            let known = (1..=3).contains(&row.kind) && row.form <= 2 && row.n > 0 && !row.key.is_empty();
            known && (!needs_directory(row) || directories.contains(&row.n))
        };
        let mut keys = BTreeSet::new();
        let mut rows: BTreeMap<u64, &SnapshotRow> = BTreeMap::new();
        for row in self.salvage.snapshots.rows.iter().filter(sane) {
            if keys.insert((&row.namespace, &row.key)) {
                rows.entry(row.n).or_insert(row);
            }
        }
        loop {
            let before = rows.len();
            let numbers: BTreeSet<u64> = rows.keys().copied().collect();
            rows.retain(|_, row| row.parent.is_none_or(|parent| numbers.contains(&parent)));
            if rows.len() == before {
                return rows.into_values().cloned().collect();
            }
        }
    }
}
