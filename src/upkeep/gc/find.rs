//! Looking for what nothing keeps: layers, and files and directories of the store.

use super::live::Live;
use super::plan::{Garbage, GarbageKind};
use crate::digest::Digest;
use crate::error::Result;
use crate::snapshot::stale;
use crate::store::{Index, Roots, Store, pack_base};
use crate::sys::mounts::MountTables;
use crate::sys::publish::io_error;
use crate::sys::upper::disk_usage_readable;
use std::collections::HashSet;
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
}

/// Everything but chunks and packs that is garbage.
pub(super) fn all(store: &Store, mounts: &MountTables) -> Result<Found> {
    let read = |index: &Index| Ok((index.roots()?, index.layers()?, index.packs()?, index.kept_blobs()?));
    let (roots, layers, packs, kept) = store.with_index(|index| index.view(read))?;
    check_roots(store, &roots)?;
    let live = Live::new(&roots);
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
    for (path, chain) in named(store, "trees", "")? {
        if !live.keeps_chain("trees", &chain) && !mounts.mention(&path) {
            let bytes = disk_usage_readable(&path)?;
            let why = "no image and no snapshot stands on this chain";
            garbage.push(Garbage { kind: GarbageKind::Tree, name: chain.hex(), bytes, why });
        }
    }
    let mut kept_images = stale_images(store)?;
    for (path, chain) in chain_images(store)? {
        if live.keeps_chain("mounts", &chain) {
            kept_images.push(path);
        } else {
            garbage.push(file(GarbageKind::Image, &path, &chain, "no image and no snapshot stands on this chain"));
        }
    }
    for (path, n) in snapshots(store)? {
        if !live.keeps_snapshot(n) && !mounts.mention(&path) {
            let bytes = disk_usage_readable(&path)?;
            let why = "its snapshot is gone, or its changes are a layer";
            garbage.push(Garbage { kind: GarbageKind::Snapshot, name: n.to_string(), bytes, why });
        }
    }
    Ok(Found { live, layers, packs, garbage, kept_images })
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
