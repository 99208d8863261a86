//! containerd's remote-snapshot protocol: layers that are here need neither be fetched nor applied.
//!
//! Before it fetches a layer, containerd prepares a snapshot with the label `containerd.io/snapshot.ref`, the chain_id
//! that the layer would complete. Whoever has it commits a snapshot with that label on exactly the given parent, and
//! answers AlreadyExists; containerd then finds it by label and parent.
//!
//! Source: containerd `core/metadata/snapshot.go` (`createSnapshot`) and `core/unpack/unpacker.go`.

use layerstore::{Digest, ErrorKind, Labels, Result, SnapshotFilter, SnapshotKind, Snapshotter};

/// The chain_id.
pub(crate) const REF: &str = "containerd.io/snapshot.ref";
/// The diff_id of the layer to unpack; containerd 2.4.
pub(crate) const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// The chain_id below, also where layers are prepared without parents; containerd 2.4.
pub(crate) const PARENT_CHAIN: &str = "containerd.io/snapshot/parent-chain-id";

/// The name of a committed snapshot for the chain_id in `labels`, made now if need be; `None` if its layer is not here.
pub(crate) fn known(snapshots: &Snapshotter, parent: Option<&str>, labels: &Labels) -> Result<Option<String>> {
    let Some(chain_id) = labels.get(REF) else { return Ok(None) };
    // Another namespace of containerd may have unpacked it.
    if let Some(name) = find(snapshots, chain_id, parent)? {
        return Ok(Some(name));
    }
    let Some(layer) = layer(snapshots, chain_id, parent, labels)? else { return Ok(None) };
    // Names must be the same for the same question, so that of two who ask at once one finds the other's.
    let name = format!("layerstore/{chain_id}/{}", Digest::of(parent.unwrap_or_default().as_bytes()).hex());
    match snapshots.commit_layer(&name, parent, &layer, labels) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => find(snapshots, chain_id, parent),
        // A parent that is no snapshot is for Prepare to complain about.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
        Ok(()) => Ok(Some(name)),
    }
}

fn find(snapshots: &Snapshotter, chain_id: &str, parent: Option<&str>) -> Result<Option<String>> {
    let filter = SnapshotFilter::parse([format!("labels.{REF:?}=={chain_id:?}")])?;
    let mut found = None;
    snapshots.walk(|info| {
        let same = info.kind == SnapshotKind::Committed && info.parent.as_deref() == parent && filter.matches(&info);
        if same && found.is_none() {
            found = Some(info.key);
        }
        Ok(())
    })?;
    Ok(found)
}

/// The layer of the store that completes `chain_id` on the layers of `parent`.
///
/// Mostly nobody says which that is. Chain_ids are hashes over diff_ids, so it is quickly found among all layers.
fn layer(snapshots: &Snapshotter, chain_id: &str, parent: Option<&str>, labels: &Labels) -> Result<Option<Digest>> {
    let Ok(wanted) = chain_id.parse::<Digest>() else { return Ok(None) };
    let below = match parent.map(|p| snapshots.known_layers(p)) {
        None => vec![],
        Some(Ok(Some(layers))) => layers,
        // A parent whose changes are no layers, or that is not there.
        Some(Ok(None)) => return Ok(None),
        Some(Err(e)) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Some(Err(e)) => return Err(e),
    };
    let below = Digest::chain_of(&below);
    let completes = |layer: &Digest| Digest::chain(below, *layer) == wanted;
    let named = labels.get(DIFF_ID).and_then(|id| id.parse().ok()).filter(|id| completes(id));
    let store = snapshots.store();
    if let Some(named) = named {
        return Ok(store.layer(&named).is_ok().then_some(named));
    }
    Ok(store.layers()?.into_iter().map(|info| info.diff_id).find(completes))
}

/// Where layers are unpacked side by side (`rebase`), each is prepared without a parent. One that is here is then bound
/// to its snapshot, and read-only mounts say that there is nothing to apply ("staged"; containerd 2.4).
pub(crate) fn staged(snapshots: &Snapshotter, labels: &Labels) -> Option<Digest> {
    let digest = |name| labels.get(name)?.parse::<Digest>().ok();
    let (chain_id, below, layer) = (digest(REF)?, digest(PARENT_CHAIN)?, digest(DIFF_ID)?);
    let fits = Digest::chain(Some(below), layer) == chain_id;
    (fits && snapshots.store().layer(&layer).is_ok()).then_some(layer)
}
