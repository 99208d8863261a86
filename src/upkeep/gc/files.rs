//! Removing layers, blobs, directories and images.
//!
//! A file gets its final name only inside a transaction that also adds the row which names it (`store/session.rs`).
//! So whoever holds a transaction, and finds a file that nothing names, may take it away. It is renamed into a scratch
//! directory, which takes no time, and removed after the transaction.

use super::live::Live;
use super::plan::{Garbage, GarbageKind, GcPlan, GcReport};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::observe::{Observer, check};
use crate::snapshot::{drop_implied, stale};
use crate::store::{Change, Scratch, Store};
use crate::sys::mount::{is_mount_point, unmount};
use crate::sys::mounts::InUse;
use crate::sys::openers::if_nobody_has;
use crate::sys::publish::{io_error, sync_dir};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files moved away in one transaction, which others wait for.
const BATCH: usize = 256;

pub(super) struct Removal<'s, 'p> {
    store: &'s Store,
    plan: &'p GcPlan,
    scratch: Scratch<'s>,
    mounts: InUse,
}

impl<'s, 'p> Removal<'s, 'p> {
    pub(super) fn begin(store: &'s Store, plan: &'p GcPlan) -> Result<Self> {
        Ok(Self { store, plan, scratch: store.scratch()?, mounts: InUse::of(store.path()) })
    }

    /// Step 1: rows, of what is garbage still.
    pub(super) fn rows(&self) -> Result<()> {
        let dead: Vec<Digest> =
            self.plan.garbage.iter().filter(|g| g.kind == GarbageKind::Layer).flat_map(digest).collect();
        let remove = |change: &Change<'_>| {
            // This also writes over what a commit that failed half-way may have left in the journal.
            change.next_generation()?;
            change.drop_unnamed_configs()?;
            drop_implied(change, &self.plan.implied)?;
            let live = Live::new(&change.roots()?);
            for layer in dead.iter().filter(|layer| !live.layers.contains(layer)) {
                change.drop_layer(layer)?;
            }
            change.drop_blobs_of_no_layer().map(drop)
        };
        self.store.with_index(|index| index.write(remove))
    }

    /// Step 2: files and directories that nothing names. One that cannot be moved keeps none of the others; the first
    /// such failure is returned beside them.
    pub(super) fn files(&self, observer: &dyn Observer, report: &mut GcReport) -> Result<Option<Error>> {
        let mut failed = None;
        for batch in self.plan.garbage.chunks(BATCH) {
            check(observer)?;
            let moved = |change: &Change<'_>| {
                let live = Live::new(&change.roots()?);
                let (mut moved, mut first) = (Vec::new(), None);
                for garbage in batch {
                    match self.remove(change, &live, garbage) {
                        Ok(true) => moved.push(garbage.clone()),
                        Ok(false) => {}
                        // On a full disk nothing can be moved, and the reserve helps.
                        Err(e) if is_full(&e) => return Err(e),
                        Err(e) => drop(first.get_or_insert(e)),
                    }
                }
                Ok((moved, first))
            };
            let (moved, first) = self.store.with_index(|index| index.write(moved))?;
            report.removed.extend(moved);
            failed = failed.or(first);
        }
        // An image whose name came back after a power cut would show places that were given back.
        if report.removed.iter().any(|garbage| garbage.kind == GarbageKind::Image) {
            sync_dir(&self.store.path().join("images"))?;
        }
        Ok(failed)
    }

    /// False if somebody came to need it, or has it open.
    fn remove(&self, change: &Change<'_>, live: &Live, garbage: &Garbage) -> Result<bool> {
        match (garbage.kind, digest(garbage), garbage.name.parse::<u64>()) {
            (GarbageKind::Layer, Some(layer), _) if !change.has_layer(&layer)? => {
                self.take(&self.store.record_path(&layer))
            }
            (GarbageKind::Blob, Some(blob), _) if !live.blobs.contains(&blob) && !change.keeps_blob(&blob)? => {
                self.take(&self.store.blob_path(&blob))
            }
            (GarbageKind::Pack, _, _) => match u64::from_str_radix(&garbage.name, 16) {
                // One that has a row is removed with it, last of all.
                Ok(base) if !change.has_pack(base)? => self.take(&self.store.pack_path(base)),
                _ => Ok(false),
            },
            (GarbageKind::Tree, Some(chain), _) if !live.keeps_chain("trees", &chain) => {
                self.take_unmounted("trees", &chain.hex())
            }
            (GarbageKind::Image, Some(chain), _) if !live.keeps_chain("mounts", &chain) => self.image(&chain),
            (GarbageKind::Snapshot, _, Ok(n)) if !live.keeps_snapshot(n) => {
                self.take_unmounted("snapshots", &garbage.name)
            }
            _ => Ok(false),
        }
    }

    /// A metadata image goes only when no mount has it open, in whatever namespace: an overlay goes on using it after it
    /// was unmounted here.
    fn image(&self, chain: &Digest) -> Result<bool> {
        let root = self.store.path();
        let (mount, image) = (root.join("mounts").join(chain.hex()), root.join("images").join(chain.hex() + ".erofs"));
        if !image.exists() || (is_mount_point(&mount) && unmount(&mount).is_err()) {
            return Ok(false);
        }
        let taken = if_nobody_has(&image, || self.take(&image))?.unwrap_or(false);
        if taken {
            // Only an empty directory, and one that no mount covers, can be removed like this.
            let _ = fs::remove_dir(mount);
        }
        Ok(taken)
    }

    /// Images that only mounts needed which are gone by now.
    pub(super) fn stale(&self, report: &mut GcReport) -> Result<()> {
        let root = self.store.path();
        let images = self.plan.garbage.iter().filter(|g| g.kind == GarbageKind::Image && digest(g).is_none());
        let planned: HashMap<PathBuf, &Garbage> = images.map(|g| (root.join("images").join(&g.name), g)).collect();
        if planned.is_empty() {
            return Ok(());
        }
        let take = |image: &Path| if planned.contains_key(image) { self.take(image) } else { Ok(false) };
        let drop_unused = |change: &Change<'_>| stale::drop_unused(root, change, take);
        let (gone, _) = self.store.with_index(|index| index.write(drop_unused))?;
        report.removed.extend(gone.iter().filter_map(|path| planned.get(path).map(|&g| g.clone())));
        Ok(())
    }

    fn take_unmounted(&self, dir: &str, name: &str) -> Result<bool> {
        if self.mounts.shows(dir, name) { Ok(false) } else { self.take(&self.store.path().join(dir).join(name)) }
    }

    fn take(&self, path: &Path) -> Result<bool> {
        let name = path.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy().into_owned());
        let target: PathBuf = self.scratch.path().join(name.collect::<Vec<_>>().join("-"));
        match fs::rename(path, target) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(io_error("move away", path, e)),
        }
    }
}

fn is_full(error: &Error) -> bool {
    error.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull)
}

fn digest(garbage: &Garbage) -> Option<Digest> {
    Digest::from_hex(&garbage.name).ok()
}
