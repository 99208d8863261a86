//! What keeps something from gc.

use crate::digest::Digest;
use crate::error::Result;
use crate::store::{Index, LeaseRef, Roots, SnapshotRow, Store, chain_ids, now};
use crate::sys::mount::is_mount_point;
use crate::sys::mounts::InUse;
use crate::upkeep::chains::Chains;
use std::fmt;

/// Something that keeps a layer, a blob, or what was made of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Keeper {
    /// An image of this name has it.
    Image(String),
    /// The layer is held: it was imported or made by itself, and not released.
    Held,
    /// A snapshot's changes are this layer, or it stands on this chain.
    Snapshot {
        /// Whose snapshots they are.
        namespace: String,
        /// Its key or name.
        key: String,
    },
    /// The blob was kept with this layer, which is kept itself.
    Layer(Digest),
    /// A lease, by its owner's process id as written in the store and, if it has an end of its own, that in seconds since
    /// 1970.
    Lease(String, Option<i64>),
    /// It is mounted.
    Mount,
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(name) => write!(f, "image {name}"),
            Self::Held => f.write_str("it is held as a layer of its own"),
            Self::Snapshot { namespace, key } if namespace.is_empty() => write!(f, "snapshot {key}"),
            Self::Snapshot { namespace, key } => write!(f, "snapshot {key} in {namespace}"),
            Self::Layer(layer) => write!(f, "layer {layer}"),
            Self::Lease(owner, None) => write!(f, "a lease of process {owner}"),
            Self::Lease(owner, Some(until)) => write!(f, "a lease of process {owner} until {until}"),
            Self::Mount => f.write_str("a mount"),
        }
    }
}

impl Store {
    /// What keeps a layer (by diff_id), a configuration, a manifest, a kept blob, or the extracted directories and the
    /// metadata image of a chain (by chain_id) from gc. Sorted; empty if nothing does, or if the store has no such thing.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn keepers(&self, of: &Digest) -> Result<Vec<Keeper>> {
        let read = |index: &Index| Ok((index.roots()?, index.kept_blobs()?));
        let (roots, blobs) = self.with_index(|index| index.view(read))?;
        let mut found = of_layer(&roots, of);
        for image in &roots.images {
            if [image.config, image.manifest].contains(of) || chain_ids(&image.layers).any(|id| id == *of) {
                found.push(Keeper::Image(image.name.clone()));
            }
        }
        for blob in blobs.iter().filter(|blob| blob.digest == *of && !of_layer(&roots, &blob.diff_id).is_empty()) {
            found.push(Keeper::Layer(blob.diff_id));
        }
        let chains = Chains::new(&roots);
        found.extend(roots.snapshots.iter().filter(|row| chains.of_snapshot(row) == Some(*of)).map(snapshot));
        found.extend(leases(&roots, &[LeaseRef::Blob(*of), LeaseRef::Chain(*of)]));
        let (mount, tree) = (self.path().join("mounts").join(of.hex()), self.path().join("trees").join(of.hex()));
        if is_mount_point(&mount) || tree.exists() && InUse::of(self.path()).shows("trees", &of.hex()) {
            found.push(Keeper::Mount);
        }
        found.sort();
        found.dedup();
        Ok(found)
    }
}

fn of_layer(roots: &Roots, layer: &Digest) -> Vec<Keeper> {
    let images = roots.images.iter().filter(|image| image.layers.contains(layer));
    let mut found: Vec<Keeper> = images.map(|image| Keeper::Image(image.name.clone())).collect();
    found.extend(roots.held.contains(layer).then_some(Keeper::Held));
    found.extend(roots.snapshots.iter().filter(|row| row.layer.as_ref() == Some(layer)).map(snapshot));
    found.extend(leases(roots, &[LeaseRef::Layer(*layer)]));
    found
}

fn leases<'r>(roots: &'r Roots, wanted: &'r [LeaseRef]) -> impl Iterator<Item = Keeper> + 'r {
    let now = now();
    let living = roots.leases.iter().filter(move |lease| !lease.is_over(now));
    let keeping = living.filter(|lease| lease.refs.iter().any(|kept| wanted.contains(kept)));
    keeping.map(|lease| Keeper::Lease(lease.owner.clone(), lease.expires))
}

fn snapshot(row: &SnapshotRow) -> Keeper {
    Keeper::Snapshot { namespace: row.namespace.clone(), key: row.key.clone() }
}
