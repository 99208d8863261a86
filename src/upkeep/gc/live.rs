//! What the roots keep.

use crate::digest::Digest;
use crate::snapshot::needs_directory;
use crate::store::{LeaseRef, Roots, SnapshotRow, chain_ids, now};
use std::collections::{HashMap, HashSet};

/// Everything that must stay, by its name.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) layers: HashSet<Digest>,
    /// Configurations, manifests, and what leases keep; not the layers' own blobs.
    pub(super) blobs: HashSet<Digest>,
    /// Chain ids whose extracted directory or metadata image may be wanted.
    pub(super) chains: HashSet<Digest>,
    /// Directories below the store that mounts of snapshots stack.
    pub(super) lowers: HashSet<String>,
    /// Snapshots with a directory of their own.
    pub(super) snapshots: HashSet<u64>,
}

impl Live {
    pub(super) fn new(roots: &Roots) -> Self {
        let mut live = Self::default();
        for image in &roots.images {
            live.layers.extend(&image.layers);
            live.blobs.extend([image.config, image.manifest]);
            live.chains.extend(chain_ids(&image.layers));
        }
        live.layers.extend(&roots.held);
        for snapshot in &roots.snapshots {
            live.layers.extend(snapshot.layer);
            live.lowers.extend(snapshot.lowers.iter().cloned());
            if needs_directory(snapshot) {
                live.snapshots.insert(snapshot.n);
            }
        }
        live.chains.extend(snapshot_chains(&roots.snapshots));
        let now = now();
        for lease in roots.leases.iter().filter(|lease| !lease.is_over(now)) {
            for kept in &lease.refs {
                match kept {
                    LeaseRef::Layer(layer) => live.layers.insert(*layer),
                    LeaseRef::Blob(blob) => live.blobs.insert(*blob),
                    LeaseRef::Chain(chain) => live.chains.insert(*chain),
                };
            }
        }
        live
    }

    /// Whether the extracted directory or the metadata image of a chain must stay; `dir` is `trees` or `mounts`.
    pub(super) fn keeps_chain(&self, dir: &str, chain: &Digest) -> bool {
        self.chains.contains(chain) || self.lowers.contains(&format!("{dir}/{}", chain.hex()))
    }

    /// Whether a snapshot's directory must stay.
    pub(super) fn keeps_snapshot(&self, n: u64) -> bool {
        self.snapshots.contains(&n) || self.lowers.contains(&format!("snapshots/{n}/fs"))
    }
}

/// The chain ids of all snapshots that are layers down to the ground.
fn snapshot_chains(snapshots: &[SnapshotRow]) -> Vec<Digest> {
    let rows: HashMap<u64, &SnapshotRow> = snapshots.iter().map(|row| (row.n, row)).collect();
    let mut known: HashMap<u64, Option<Digest>> = HashMap::new();
    for row in snapshots {
        // Down to the ground or to one whose chain is known, then up again.
        let (mut path, mut next) = (vec![], Some(row.n));
        while let Some(row) = next.filter(|n| !known.contains_key(n)).and_then(|n| rows.get(&n)) {
            if path.len() > snapshots.len() {
                break;
            }
            path.push(*row);
            next = row.parent;
        }
        for row in path.into_iter().rev() {
            let chain = row.layer.and_then(|layer| match row.parent {
                None => Some(Digest::chain(None, layer)),
                Some(parent) => known.get(&parent).copied().flatten().map(|below| Digest::chain(Some(below), layer)),
            });
            known.insert(row.n, chain);
        }
    }
    known.into_values().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u64, parent: Option<u64>, layer: Option<&[u8]>) -> SnapshotRow {
        SnapshotRow {
            n,
            namespace: String::new(),
            key: n.to_string(),
            kind: 3,
            parent,
            layer: layer.map(Digest::of),
            form: 0,
            lowers: vec![],
            bytes: 0,
            inodes: 0,
            created: 0,
            updated: 0,
            labels: Default::default(),
        }
    }

    #[test]
    fn chains_of_snapshots_go_down_to_the_ground() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let snapshots = [
            // A parent may have the higher number.
            row(1, Some(5), Some(b"b")),
            row(5, None, Some(b"a")),
            row(6, Some(1), None),
            row(7, Some(6), Some(b"c")),
            // Damaged: they must not hang anyone.
            row(8, Some(9), Some(b"d")),
            row(9, Some(8), Some(b"e")),
        ];
        let mut chains = snapshot_chains(&snapshots);
        chains.sort();
        let mut expected = vec![a, Digest::chain(Some(a), b)];
        expected.sort();
        assert_eq!(chains, expected);
        let live = Live::new(&Roots { snapshots: snapshots.to_vec(), ..Roots::default() });
        assert!(live.keeps_snapshot(6) && !live.keeps_snapshot(5) && live.layers.contains(&b));
    }
}
