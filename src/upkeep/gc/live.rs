//! What the roots keep.

use crate::digest::Digest;
use crate::snapshot::needs_directory;
use crate::store::{LeaseRef, Roots, now};
use crate::upkeep::chains::Chains;
use std::collections::HashSet;

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
        }
        live.layers.extend(&roots.held);
        for snapshot in &roots.snapshots {
            live.layers.extend(snapshot.layer);
            live.lowers.extend(snapshot.lowers.iter().cloned());
            if needs_directory(snapshot) {
                live.snapshots.insert(snapshot.n);
            }
        }
        live.chains.extend(Chains::new(roots).ids());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upkeep::chains::tests::row;

    #[test]
    fn a_directory_stays_while_only_it_has_the_changes() {
        let snapshots = vec![row(1, None, Some(b"a")), row(6, Some(1), None)];
        let live = Live::new(&Roots { snapshots, ..Roots::default() });
        assert!(live.keeps_snapshot(6) && !live.keeps_snapshot(1) && live.layers.contains(&Digest::of(b"a")));
    }
}
