//! Layers extracted once, each to a directory of its own, for overlayfs to stack.
//!
//! What a layer's directory holds depends on the layers below it (hard links to lower files, symlinked parents, implied
//! directories), so it belongs to a chain: `trees/<chain_id>`. Chains with the same lowest layers share those.

use super::{Driver, DriverKind};
use crate::digest::Digest;
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::observe::Observer;
use crate::snapshot::extract::{self, ExtractOptions};
use crate::store::{Store, chain_ids};
use crate::sys::lock::Lock;
use crate::sys::mount::FileSystem;
use crate::sys::publish::{io_error, sync_dir};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for another process that extracts the same chain.
const PATIENCE: Duration = Duration::from_secs(1800);

pub(super) struct Overlay {
    store: Arc<Store>,
    /// Marks are `user.overlay.*`.
    user: bool,
}

impl Overlay {
    /// # Errors
    /// `Unsupported`, with the reason, without the privilege to mount or where the store's file system does not serve.
    pub(super) fn new(store: Arc<Store>) -> Result<Self> {
        let user = probe(&store).map_err(|e| {
            let unsupported = Error::new(ErrorKind::Unsupported, "overlayfs does not work here");
            unsupported.subject(store.path().display()).actual(&e).source(e)
        })?;
        Ok(Self { store, user })
    }
}

/// Mounts a small overlay on the store's file system, nowhere. Whether it needs `userxattr`: in a user namespace nobody
/// may set `trusted.*`.
fn probe(store: &Store) -> Result<bool> {
    let scratch = store.scratch()?;
    let overlay = FileSystem::open("overlay")?;
    for (key, name) in [("lowerdir+", "a"), ("lowerdir+", "b"), ("upperdir", "upper"), ("workdir", "work")] {
        let path = scratch.path().join(name);
        fs::create_dir(&path).map_err(|e| io_error("create directory", &path, e))?;
        overlay.set_path(key, &path)?;
    }
    let user = extract::Overlay::needs_user(&scratch.path().join("a"))?;
    if user {
        overlay.flag("userxattr")?;
    }
    overlay.detached(false)?;
    Ok(user)
}

/// Whether files can be given to other users here: in a user namespace that maps one user they cannot, and layers are
/// extracted in full or not at all.
///
/// # Errors
/// `Unsupported` with the reason.
pub(super) fn sets_owners(store: &Store) -> Result<()> {
    let scratch = store.scratch()?;
    let path = scratch.path().join("owned");
    fs::write(&path, b"").map_err(|e| io_error("create", &path, e))?;
    std::os::unix::fs::chown(&path, Some(1), Some(1)).map_err(|e| {
        let why = match e.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::INVAL) => "this user namespace maps too few users to give layers' files to theirs",
            _ => "layers' files cannot be given to their users here",
        };
        Error::new(ErrorKind::Unsupported, why).source(e)
    })
}

impl Driver for Overlay {
    fn kind(&self) -> DriverKind {
        DriverKind::Overlay
    }

    fn user_marks(&self) -> bool {
        self.user
    }

    fn planned(&self, layers: &[Digest]) -> Result<(Vec<PathBuf>, bool)> {
        let trees = self.store.path().join("trees");
        let paths: Vec<PathBuf> = chain_ids(layers).map(|chain_id| trees.join(chain_id.hex())).collect();
        let there = paths.iter().all(|path| path.exists());
        Ok((paths, there))
    }

    fn lowers(&self, layers: &[Digest], observer: &dyn Observer) -> Result<Vec<PathBuf>> {
        let trees = self.store.path().join("trees");
        let (paths, there) = self.planned(layers)?;
        if there {
            return Ok(paths);
        }
        let missing = |paths: &[PathBuf]| -> Vec<usize> { (0..paths.len()).filter(|&i| !paths[i].exists()).collect() };
        // One lock for the lowest layer is one for all chains that share anything.
        let name = format!("tree-{}", layers[0].hex());
        let _lock = Lock::acquire(&self.store.path().join("locks").join(name), PATIENCE, observer)?;
        let missing = missing(&paths);
        let scratch = self.store.scratch()?;
        let wanted: Vec<(usize, PathBuf)> = missing.iter().map(|&i| (i, scratch.path().join(i.to_string()))).collect();
        // What cannot be set must not be missing silently below every snapshot of the chain.
        let marks = extract::Overlay { user: self.user, ..Default::default() };
        let options = ExtractOptions::default().strict(true).overlay(marks);
        let made = extract::layer_directories(&self.store, layers, &wanted, &options, observer); // and syncs
        made.map_err(|e| match e.kind() {
            ErrorKind::FailedPrecondition | ErrorKind::Unsupported => e.advise(Advice::OtherDriver),
            _ => e,
        })?;
        for (i, from) in &wanted {
            fs::rename(from, &paths[*i]).map_err(|e| io_error("rename into place", &paths[*i], e))?;
        }
        sync_dir(&trees)?;
        Ok(paths)
    }
}
