//! Directories: extracted layers, each against what its layer says; and whether those of snapshots are there.
//!
//! Nothing sums up a directory, and for an extracted one no sum is needed: the layers' records say every name, attribute
//! and byte of it. Those of chains that no image and no snapshot has any more are gc's. What is in a snapshot's own
//! directory is its user's affair.

use super::{Check, DamageKind, uncancelled};
use crate::digest::Digest;
use crate::error::Result;
use crate::observe::check;
use crate::snapshot::{SnapshotKind, extract, needs_directory};
use crate::store::{Index, SnapshotRow, chain_ids};
use crate::sys::publish::io_error;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Device and inode number of a directory that is there.
pub(super) fn identity(dir: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(dir).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// The directories below the store without which a snapshot cannot be mounted, and that nothing can bring back.
fn own_directories(row: &SnapshotRow) -> impl Iterator<Item = String> + '_ {
    let n = row.n;
    let fs = (needs_directory(row) && (row.kind != SnapshotKind::View.to_u8() || row.lowers.is_empty()))
        .then(|| format!("snapshots/{n}/fs"));
    fs.into_iter().chain(row.lowers.iter().filter(|lower| lower.starts_with("snapshots/")).cloned())
}

impl Check<'_> {
    /// Whether the directories that hold changes of snapshots are there.
    pub(super) fn snapshots(&mut self) {
        for row in self.roots.snapshots.clone() {
            self.report.counts.snapshots += 1;
            for directory in own_directories(&row) {
                let path = self.store.path().join(directory);
                if !path.is_dir() {
                    let what =
                        format!("a directory of snapshot {} (namespace {:?}) is missing", row.key, row.namespace);
                    let number = self.tell(DamageKind::Snapshot, &path, what);
                    self.of_snapshots.insert(number, row.n);
                }
            }
        }
    }

    /// Whether a snapshot still needs a directory that was missing.
    pub(super) fn snapshot_needs(&self, index: &Index, n: u64, path: &Path) -> bool {
        let needs = |row: SnapshotRow| own_directories(&row).any(|directory| self.store.path().join(directory) == path);
        index.snapshot_numbered(n).map_or(true, |row| row.is_some_and(needs))
    }

    /// Compares extracted directories; only in full checks.
    pub(super) fn trees(&mut self) -> Result<()> {
        if !self.options.full {
            return Ok(());
        }
        let mut done: HashSet<Digest> = HashSet::new();
        let mut found: Vec<(Digest, Vec<Digest>)> =
            self.directories().into_iter().filter_map(|chain| Some((chain, self.chains.layers(&chain)?))).collect();
        // Composing the longest chains first composes those they stand on, too.
        found.sort_by_key(|(_, layers)| std::cmp::Reverse(layers.len()));
        let all: HashSet<Digest> = found.iter().map(|(chain, _)| *chain).collect();
        for (_, layers) in &found {
            check(self.observer)?;
            let ids: BTreeMap<usize, Digest> = chain_ids(layers).enumerate().collect();
            let new = ids.into_iter().filter(|(_, id)| all.contains(id) && done.insert(*id));
            let path = |id: &Digest| self.store.path().join("trees").join(id.hex());
            let wanted: Vec<(usize, PathBuf)> = new.map(|(at, id)| (at, path(&id))).collect();
            if wanted.is_empty() {
                continue;
            }
            // Records that cannot be read are told already.
            let Ok(outlines) = uncancelled(extract::outlines(self.store, layers, &wanted, self.observer))? else {
                continue;
            };
            for ((outline, dir), (at, _)) in outlines.iter().zip(&wanted) {
                let Some(id) = identity(dir) else { continue };
                self.report.counts.trees += 1;
                let threads = self.options.threads.get();
                let differences = extract::differences(self.store, outline, dir, threads, self.observer)?;
                let chain = Digest::chain_of(&layers[..=*at]).unwrap_or(layers[*at]);
                self.tell_differences(&chain, dir, id, differences);
            }
        }
        Ok(())
    }

    fn tell_differences(&mut self, chain: &Digest, dir: &Path, id: (u64, u64), differences: Vec<extract::Difference>) {
        for difference in differences {
            let file = dir.join(OsStr::from_bytes(&difference.path));
            let number = self.tell(DamageKind::Tree, &file, difference.what);
            self.of_trees.insert(number, (dir.to_owned(), id));
            let (layers, images) = self.of_chain(chain);
            let finding = &mut self.report.findings[number];
            (finding.layers, finding.images) = (layers, images);
        }
    }

    /// The chain ids of `trees/`.
    fn directories(&mut self) -> Vec<Digest> {
        let dir = self.store.path().join("trees");
        match fs::read_dir(&dir) {
            Ok(found) => {
                found.flatten().filter_map(|found| Digest::from_hex(found.file_name().to_str()?).ok()).collect()
            }
            Err(e) => {
                self.found(DamageKind::Tree, &dir, &io_error("read directory", &dir, e));
                vec![]
            }
        }
    }
}
