//! The chains of layers that images and snapshots stand on: whose an extracted directory or a metadata image is.

use crate::digest::Digest;
use crate::store::{Roots, SnapshotRow};
use std::collections::HashMap;

/// Every chain of the roots, those below other ones included.
#[derive(Debug, Default)]
pub(super) struct Chains {
    /// By chain id, the layer on top and the chain below.
    steps: HashMap<Digest, (Digest, Option<Digest>)>,
    /// By number, the chains of snapshots that are layers down to the ground.
    snapshots: HashMap<u64, Digest>,
}

impl Chains {
    pub(super) fn new(roots: &Roots) -> Self {
        let mut chains = Self::default();
        for image in &roots.images {
            let step = |below, layer: &Digest| Some(chains.add(below, *layer));
            image.layers.iter().fold(None, step);
        }
        chains.add_snapshots(&roots.snapshots);
        chains
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = Digest> + '_ {
        self.steps.keys().copied()
    }

    /// The chain that a snapshot is, or for one that has no layer the one it stands on; `None` if that is not all layers.
    pub(super) fn of_snapshot(&self, row: &SnapshotRow) -> Option<Digest> {
        let n = if row.layer.is_some() { Some(row.n) } else { row.parent };
        self.snapshots.get(&n?).copied()
    }

    /// The layers of a chain, lowest first; `None` for one that no root has.
    pub(super) fn layers(&self, chain: &Digest) -> Option<Vec<Digest>> {
        let (mut layers, mut next) = (vec![], Some(*chain));
        while let Some(id) = next {
            let (layer, below) = self.steps.get(&id)?;
            layers.push(*layer);
            next = *below;
        }
        layers.reverse();
        Some(layers)
    }

    fn add(&mut self, below: Option<Digest>, layer: Digest) -> Digest {
        let id = Digest::chain(below, layer);
        self.steps.insert(id, (layer, below));
        id
    }

    /// Those of snapshots that are layers down to the ground.
    fn add_snapshots(&mut self, snapshots: &[SnapshotRow]) {
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
                    None => Some(self.add(None, layer)),
                    Some(parent) => known.get(&parent).copied().flatten().map(|below| self.add(Some(below), layer)),
                });
                known.insert(row.n, chain);
            }
        }
        self.snapshots.extend(known.into_iter().filter_map(|(n, chain)| Some((n, chain?))));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::upkeep) fn row(n: u64, parent: Option<u64>, layer: Option<&[u8]>) -> SnapshotRow {
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
        let snapshots = vec![
            // A parent may have the higher number.
            row(1, Some(5), Some(b"b")),
            row(5, None, Some(b"a")),
            row(6, Some(1), None),
            row(7, Some(6), Some(b"c")),
            // Damaged: they must not hang anyone.
            row(8, Some(9), Some(b"d")),
            row(9, Some(8), Some(b"e")),
        ];
        let chains = Chains::new(&Roots { snapshots: snapshots.clone(), ..Roots::default() });
        let mut ids: Vec<_> = chains.ids().collect();
        ids.sort();
        let (low, high) = (Digest::chain(None, a), Digest::chain(Some(a), b));
        let mut expected = vec![low, high];
        expected.sort();
        assert_eq!(ids, expected);
        assert_eq!((chains.layers(&high), chains.layers(&low)), (Some(vec![a, b]), Some(vec![a])));
        assert_eq!(chains.layers(&Digest::of(b"c")), None);
        let of: Vec<_> = snapshots.iter().map(|row| chains.of_snapshot(row)).collect();
        assert_eq!(of, [Some(high), Some(low), Some(high), None, None, None]);
    }
}
