//! Looking for what nothing keeps: layers, and files and directories of the store.

use super::live::Live;
use super::plan::{Garbage, GarbageKind, Kept};
use crate::digest::Digest;
use crate::error::Result;
use crate::snapshot::{IMPLIED, Implied, stale};
use crate::store::{Index, LayerInfo, Roots, SnapshotRow, Store, pack_base};
use crate::sys::mount::is_mount_point;
use crate::sys::mounts::InUse;
use crate::sys::openers::if_nobody_has;
use crate::sys::publish::io_error;
use crate::sys::upper::disk_usage_readable;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A store as gc sees it at one moment.
pub(super) struct Found {
    pub(super) live: Live,
    /// All layers that have a row.
    pub(super) layers: Vec<Digest>,
    /// Base and length of every pack.
    pub(super) packs: Vec<(u64, u64)>,
    /// Files and directories to remove.
    pub(super) garbage: Vec<Garbage>,
    /// Metadata images that stay.
    pub(super) kept_images: Vec<PathBuf>,
    /// Numbers of snapshots that were made for images' layers and go.
    pub(super) implied: Vec<u64>,
    /// What only such snapshots keep that wait.
    pub(super) kept: Vec<Kept>,
    /// Directories, as names below the store, that only mounts keep.
    pub(super) mounted: Vec<PathBuf>,
}

/// Everything but chunks and packs that is garbage. With `now` no snapshot of an image's layers waits.
pub(super) fn all(store: &Store, mounts: &InUse, now: bool) -> Result<Found> {
    let read = |index: &Index| {
        let labelled = index.snapshots_labelled(IMPLIED)?;
        Ok((index.roots()?, labelled, index.layers()?, index.packs()?, index.kept_blobs()?))
    };
    let (mut roots, labelled, layers, packs, kept) = store.with_index(|index| index.view(read))?;
    check_roots(store, &roots)?;
    let implied = Implied::of(&roots.snapshots, &labelled, now);
    roots.snapshots.retain(|row| !implied.over.contains(&row.n));
    let live = Live::new(&roots);
    let waiting = waiting(roots, &implied, &labelled, &live, &layers);
    let layers: Vec<Digest> = layers.into_iter().map(|l| l.diff_id).collect();
    let kept = kept.into_iter().filter(|b| live.layers.contains(&b.diff_id)).map(|b| b.digest);
    let kept: HashSet<Digest> = kept.chain(live.blobs.iter().copied()).collect();
    let mut garbage = dead_layers(store, &live, &layers)?;
    garbage.extend(lost_packs(store, &packs)?);
    let why = "no image and no layer that was kept with its blob has it";
    for (path, digest) in named(store, "blobs", "")? {
        if !kept.contains(&digest) {
            garbage.push(file(GarbageKind::Blob, &path, &digest, why));
        }
    }
    let mut mounted = Vec::new();
    for (path, chain) in named(store, "trees", "")? {
        let dead = !live.keeps_chain("trees", &chain);
        if dead && mounts.shows("trees", &chain.hex()) {
            mounted.push(Path::new("trees").join(chain.hex()));
        } else if dead {
            // One that cannot be read goes all the same, and counts nothing.
            let bytes = disk_usage_readable(&path).unwrap_or_default();
            let why = "no image and no snapshot stands on this chain";
            garbage.push(Garbage { kind: GarbageKind::Tree, name: chain.hex(), bytes, why });
        }
    }
    let mut kept_images = Vec::new();
    for (path, chain) in stale::images(store.path())? {
        let lower = format!("mounts/{}", chain.hex());
        // Its own mount goes first, where no snapshot stands on it.
        let own = is_mount_point(&store.path().join(&lower)) && !live.lowers.contains(&lower);
        if own || if_nobody_has(&path, || Ok(()))?.is_some() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let why = "it serves no new mount, and nothing is mounted from it";
            garbage.push(Garbage { kind: GarbageKind::Image, bytes: disk_of(&path), name, why });
        } else {
            kept_images.push(path);
        }
    }
    for (path, chain) in chain_images(store)? {
        if live.keeps_chain("mounts", &chain) {
            kept_images.push(path);
        } else {
            garbage.push(file(GarbageKind::Image, &path, &chain, "no image and no snapshot stands on this chain"));
        }
    }
    for (path, n) in snapshots(store)?.into_iter().filter(|(_, n)| !live.keeps_snapshot(*n)) {
        if mounts.shows("snapshots", &n.to_string()) {
            mounted.push(Path::new("snapshots").join(n.to_string()));
            continue;
        }
        let bytes = disk_usage_readable(&path).unwrap_or_default();
        let why = "its snapshot is gone, or its changes are a layer";
        garbage.push(Garbage { kind: GarbageKind::Snapshot, name: n.to_string(), bytes, why });
    }
    Ok(Found { live, layers, packs, garbage, kept_images, implied: implied.over, kept: waiting, mounted })
}

/// What only snapshots of images' layers keep that wait for the next mount.
fn waiting(
    mut roots: Roots,
    implied: &Implied,
    labelled: &[(u64, i64)],
    live: &Live,
    layers: &[LayerInfo],
) -> Vec<Kept> {
    if implied.waiting.is_empty() {
        return vec![];
    }
    // As it would be if none of them waited: those below go with them.
    let all = Implied::of(&roots.snapshots, labelled, true).over;
    let (rows, kept): (Vec<SnapshotRow>, _) = roots.snapshots.into_iter().partition(|row| all.contains(&row.n));
    roots.snapshots = kept;
    let without = Live::new(&roots);
    let rows: HashMap<u64, &SnapshotRow> = rows.iter().map(|row| (row.n, row)).collect();
    let sizes: HashMap<Digest, u64> = layers.iter().map(|layer| (layer.diff_id, layer.tar_size)).collect();
    let kept = implied.waiting.iter().filter_map(|(n, until)| {
        let top = *rows.get(n)?;
        let chain = std::iter::successors(Some(top), |row| rows.get(&row.parent?).copied()).take(rows.len());
        let only: HashSet<Digest> = chain.filter_map(|row| row.layer).collect();
        let only = only.iter().filter(|layer| live.layers.contains(layer) && !without.layers.contains(layer));
        let (layers, tar) = only.fold((0, 0), |(n, tar), layer| (n + 1, tar + sizes.get(layer).copied().unwrap_or(0)));
        let (namespace, key) = (top.namespace.clone(), top.key.clone());
        (layers > 0).then_some(Kept { namespace, key, until: until / 1_000_000_000, layers, tar })
    });
    kept.collect()
}

/// What a damaged row has lost, a row or a name, would look like garbage.
pub(super) fn check_roots(store: &Store, roots: &Roots) -> Result<()> {
    store.with_index(|index| index.check_roots())?;
    roots.images.iter().try_for_each(|image| store.check_image(image))
}

/// Packs without a row: whoever took that away did not come to removing the file.
fn lost_packs(store: &Store, packs: &[(u64, u64)]) -> Result<Vec<Garbage>> {
    let found = list(&store.path().join("packs"))?.into_iter();
    let found = found.filter_map(|path| Some((pack_base(path.file_name()?)?, path)));
    let lost = found.filter(|(base, _)| packs.binary_search_by_key(base, |pack| pack.0).is_err());
    let garbage = lost.map(|(base, path)| {
        let (name, why) = (format!("{base:011x}"), "its removal did not finish");
        Garbage { kind: GarbageKind::Pack, name, bytes: disk_of(&path), why }
    });
    Ok(garbage.collect())
}

/// Layers with a row that nothing keeps, and records that have no row.
fn dead_layers(store: &Store, live: &Live, layers: &[Digest]) -> Result<Vec<Garbage>> {
    let known: HashSet<&Digest> = layers.iter().collect();
    let mut garbage = Vec::new();
    for layer in layers.iter().filter(|layer| !live.layers.contains(layer)) {
        let why = "it is not held, and no image, snapshot or lease has it";
        garbage.push(file(GarbageKind::Layer, &store.record_path(layer), layer, why));
    }
    for (path, diff_id) in named(store, "layers", ".layer")? {
        if !known.contains(&diff_id) {
            garbage.push(file(GarbageKind::Layer, &path, &diff_id, "its import did not finish"));
        }
    }
    Ok(garbage)
}

/// Metadata images that serve new mounts, and whose they are.
pub(in crate::upkeep) fn chain_images(store: &Store) -> Result<Vec<(PathBuf, Digest)>> {
    named(store, "images", ".erofs")
}

/// All metadata images there are, those included that only mounts have still.
pub(super) fn images(store: &Store) -> Result<Vec<PathBuf>> {
    let images = chain_images(store)?.into_iter().map(|(path, _)| path);
    Ok(images.chain(stale_images(store)?).collect())
}

fn stale_images(store: &Store) -> Result<Vec<PathBuf>> {
    Ok(stale::images(store.path())?.into_iter().map(|(path, _)| path).collect())
}

/// Directories below `snapshots/` with their numbers.
fn snapshots(store: &Store) -> Result<Vec<(PathBuf, u64)>> {
    let number = |path: PathBuf| {
        let n = path.file_name()?.to_str()?.parse().ok()?;
        Some((path, n))
    };
    Ok(list(&store.path().join("snapshots"))?.into_iter().filter_map(number).collect())
}

/// What is in one of the store's directories under 64 hex digits and `suffix`; other names are not gc's business.
fn named(store: &Store, dir: &str, suffix: &str) -> Result<Vec<(PathBuf, Digest)>> {
    let digest = |path: PathBuf| {
        let digits = path.file_name()?.to_str()?.strip_suffix(suffix)?;
        let digest = Digest::from_hex(digits).ok()?;
        Some((path, digest))
    };
    Ok(list(&store.path().join(dir))?.into_iter().filter_map(digest).collect())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let found = fs::read_dir(dir).map_err(|e| io_error("read directory", dir, e))?;
    let mut paths: Vec<PathBuf> = found.flatten().map(|f| f.path()).collect();
    paths.sort();
    Ok(paths)
}

fn file(kind: GarbageKind, path: &Path, digest: &Digest, why: &'static str) -> Garbage {
    Garbage { kind, name: digest.hex(), bytes: disk_of(path), why }
}

/// Blocks allocated to a file; none to one that is not there.
pub(in crate::upkeep) fn disk_of(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |m| m.blocks() * 512)
}
