//! Directories that no snapshot needs any more.

use super::Snapshotter;
use super::model::SnapshotKind;
use crate::error::Result;
use crate::store::{Change, SnapshotRow};
use crate::sys::publish::io_error;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

impl Snapshotter {
    /// Frees the disk space of removed snapshots, and of directories whose changes have become layers and that no
    /// snapshot is mounted over. Returns how many directories went. For all namespaces of the store.
    ///
    /// # Errors
    /// `Io`. What is left then is found again by the next cleanup.
    pub fn cleanup(&self) -> Result<u64> {
        let scratch = self.store.scratch()?;
        // Nobody can add a snapshot while this transaction lasts, so what has no row now has none.
        let moved = self.store.with_index(|index| index.write(|change| self.move_unused(change, scratch.path())))?;
        drop(scratch);
        Ok(moved)
    }

    fn move_unused(&self, change: &Change<'_>, target: &Path) -> Result<u64> {
        let rows = change.snapshots()?;
        let used: HashSet<&String> = rows.iter().flat_map(|row| &row.lowers).collect();
        let needed: HashSet<u64> = rows.iter().filter(|row| needs_directory(row)).map(|row| row.n).collect();
        let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let dir = self.store.path().join("snapshots");
        let mut moved = 0;
        for found in fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?.flatten() {
            let name = found.file_name();
            let Some(n) = name.to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
            let path = found.path();
            // A mount that outlives its snapshot keeps its directories.
            let in_use =
                used.contains(&format!("snapshots/{n}/fs")) || mounted.contains(&format!("{}/", path.display()));
            if needed.contains(&n) || in_use {
                continue;
            }
            fs::rename(&path, target.join(name)).map_err(|e| io_error("move away", &path, e))?;
            moved += 1;
        }
        Ok(moved)
    }
}

/// Committed snapshots whose changes are a layer need no directory of their own.
fn needs_directory(row: &SnapshotRow) -> bool {
    row.kind != SnapshotKind::Committed.to_u8() || row.layer.is_none()
}
