//! One kernel mount per chain, straight from the packs.

use super::image::{self, Built};
use super::{Driver, DriverKind, probe};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::format::erofs::read::Image;
use crate::observe::{Observer, check};
use crate::store::Store;
use crate::sys::lock::Lock;
use crate::sys::mount::{self, FileSystem};
use crate::sys::publish::{Draft, io_error, make_dir, sync_dir};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for another process that builds or mounts the same chain.
const PATIENCE: Duration = Duration::from_secs(600);

pub(super) struct Erofs {
    store: Arc<Store>,
}

impl Erofs {
    /// # Errors
    /// `Unsupported`, with the reason, where the kernel or the store's file system does not serve.
    pub(super) fn new(store: Arc<Store>) -> Result<Self> {
        probe::check(&store)?;
        Ok(Self { store })
    }

    /// Builds the image of `layers` and publishes it; returns the packs it needs.
    fn build(&self, layers: &[Digest], path: &Path) -> Result<()> {
        // As long as this session lasts, gc frees no space of chunks it finds alive.
        let scratch = self.store.scratch()?;
        let tree = self.store.tree(layers)?;
        let Built { bytes, packs } = image::build(&self.store, &tree)?;
        drop(tree);
        packs.iter().try_for_each(|base| self.store.check_pack(*base))?;
        let mut draft = Draft::create(scratch.path().join("image"))?;
        draft.append(&bytes)?;
        draft.publish(path)?;
        sync_dir(&self.store.path().join("images"))
    }

    /// Mounts an image that is known to be sound.
    fn mount(&self, path: &Path, target: &Path) -> Result<()> {
        let bytes = fs::read(path).map_err(|e| io_error("read", path, e))?;
        let image = Image::new(&bytes).and_then(|image| image.verify().map(|()| image));
        let image = image.map_err(|e| e.subject(path.display()))?;
        let packs = self.store.packs_ending(image.packs())?;
        packs.iter().try_for_each(|base| self.store.check_pack(*base))?;
        let erofs = FileSystem::open("erofs")?;
        erofs.set("source", &path.to_string_lossy())?;
        packs.iter().try_for_each(|base| erofs.set("device", &self.store.pack_path(*base).to_string_lossy()))?;
        make_dir(target)?;
        erofs.mount(true, target).map_err(|e| e.subject(path.display()))
    }
}

impl Driver for Erofs {
    fn kind(&self) -> DriverKind {
        DriverKind::Erofs
    }

    fn lowers(&self, layers: &[Digest], observer: &dyn Observer) -> Result<Vec<PathBuf>> {
        let chain_id = Digest::chain_of(layers).ok_or_else(|| Error::invalid("a chain without layers"))?;
        let target = self.store.path().join("mounts").join(chain_id.hex());
        if mount::is_mount_point(&target) {
            return Ok(vec![target]);
        }
        let name = format!("image-{}", chain_id.hex());
        let _lock = Lock::acquire(&self.store.path().join("locks").join(name), PATIENCE, observer)?;
        if mount::is_mount_point(&target) {
            return Ok(vec![target]);
        }
        let path = self.store.path().join("images").join(format!("{}.erofs", chain_id.hex()));
        if !path.exists() {
            self.build(layers, &path)?;
        }
        check(observer)?;
        match self.mount(&path, &target) {
            // An image is derived: a damaged one, or one whose packs changed, is made anew.
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                fs::remove_file(&path).map_err(|e| io_error("remove", &path, e))?;
                self.build(layers, &path)?;
                self.mount(&path, &target)?;
            }
            other => other?,
        }
        Ok(vec![target])
    }
}
