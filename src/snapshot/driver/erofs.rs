//! One kernel mount per chain, straight from the packs.

use super::{Caching, DirectIo, Driver, DriverKind, direct, image, probe};
use crate::digest::Digest;
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::format::erofs::{Check, Pack};
use crate::observe::{Observer, check};
use crate::snapshot::stale;
use crate::store::{Change, Store};
use crate::sys::cache::let_go_of;
use crate::sys::lock::Lock;
use crate::sys::mount::{self, FileSystem};
use crate::sys::publish::{Draft, io_error, make_dir, sync_dir};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for another process that builds or mounts the same chain.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often an image is made before giving up on a store whose chunks do not come to rest.
const TRIES: u32 = 50;

/// Bytes of an image read at a time.
const PIECE: usize = 256 << 10;

pub(super) struct Erofs {
    store: Arc<Store>,
    caching: Caching,
}

impl Erofs {
    /// # Errors
    /// `Unsupported`, with the reason, where the kernel or the store's file system does not serve.
    pub(super) fn new(store: Arc<Store>, caching: Caching) -> Result<Self> {
        probe::check(&store)?;
        Ok(Self { store, caching })
    }

    /// The id of a chain, and where it is mounted.
    fn target(&self, layers: &[Digest]) -> Result<(Digest, PathBuf)> {
        let chain_id = Digest::chain_of(layers).ok_or_else(|| Error::invalid("a chain without layers"))?;
        Ok((chain_id, self.store.path().join("mounts").join(chain_id.hex())))
    }

    /// Builds the image of `layers` and publishes it.
    fn build(&self, layers: &[Digest], path: &Path, observer: &dyn Observer) -> Result<()> {
        // From here on gc leaves alone what the image will refer to, and from its rename on because it does.
        let scratch = self.store.scratch()?;
        for _ in 0..TRIES {
            let before = self.store.with_index(|index| index.generation())?;
            let tree = self.store.tree(layers, observer)?;
            let bytes = image::build(&self.store, &tree, observer).map_err(|e| match e.kind() {
                // Others have other limits.
                ErrorKind::Unsupported => e.advise(Advice::OtherDriver),
                _ => e,
            })?;
            let mut draft = Draft::create(scratch.path().join("image"))?;
            draft.append(&bytes)?;
            draft.sync()?;
            // Who moves chunks looks for images that show the old places once they are moved: it finds this one, or this
            // finds that they were.
            let publish = |change: &Change<'_>| {
                if change.generation()? != before {
                    return Ok(false);
                }
                draft.rename(path)?;
                sync_dir(&self.store.path().join("images")).map(|()| true)
            };
            if self.store.with_index(|index| index.write(publish))? {
                return Ok(());
            }
        }
        let e = Error::new(ErrorKind::Busy, "chunks were moved or found dead each time that an image was made of them");
        Err(e.subject(path.display()))
    }

    /// Mounts an image if it is intact, and each of its packs is as its table says.
    fn mount(&self, path: &Path, target: &Path) -> Result<()> {
        let packs = checked(path).map_err(|e| e.subject(path.display()))?;
        packs.iter().try_for_each(|pack| self.store.check_pack(pack.base, pack.end))?;
        if self.caching.drop_compressed {
            direct::check_droppable(&self.store, &packs).map_err(|e| e.subject(path.display()))?;
        }
        make_dir(target)?;
        let direct = self.caching.direct_io;
        let used = direct.decide().used;
        match self.mount_as(path, &packs, used, target) {
            // Kernels between know no such option.
            Err(e) if used && direct == DirectIo::Auto && e.kind() != ErrorKind::Busy => {
                self.mount_as(path, &packs, false, target).map_err(|_| e)
            }
            done => done,
        }
        .map_err(|e| e.subject(path.display()))?;
        // What was read to check them, and what an import left. Where the kernel reads packs through the cache, what
        // other mounts are reading goes too, and comes back when it is wanted.
        let files = packs.iter().filter_map(|pack| File::open(self.store.pack_path(pack.base)).ok());
        files.for_each(let_go_of);
        Ok(())
    }

    fn mount_as(&self, path: &Path, packs: &[Pack], direct_io: bool, target: &Path) -> Result<()> {
        let erofs = FileSystem::open("erofs")?;
        erofs.set_path("source", path)?;
        packs.iter().try_for_each(|pack| erofs.set_path("device", &self.store.pack_path(pack.base)))?;
        if direct_io {
            erofs.flag("directio")?;
        }
        if self.caching.drop_compressed {
            erofs.set("cache_strategy", "disabled")?;
        }
        erofs.mount(true, target)
    }
}

/// The packs of an image, every byte of which is as it was when it was made. What is read goes through one small buffer:
/// clearing memory for a whole image would take longer than hashing it.
fn checked(path: &Path) -> Result<Vec<Pack>> {
    let failed = |e| io_error("read", path, e);
    let mut file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let mut buffer = vec![0; len.min(PIECE as u64) as usize];
    file.read_exact(&mut buffer).map_err(failed)?;
    let read = buffer.len();
    let first = (Check::first_len(&buffer) as u64).min(len) as usize;
    if first > read {
        buffer.resize(first, 0);
        file.read_exact(&mut buffer[read..]).map_err(failed)?;
    }
    let mut check = Check::begin(&buffer, len)?;
    let mut left = len - buffer.len() as u64;
    while left > 0 {
        let piece = left.min(buffer.len() as u64);
        file.read_exact(&mut buffer[..piece as usize]).map_err(failed)?;
        check.more(&buffer[..piece as usize]);
        left -= piece;
    }
    check.end()
}

impl Driver for Erofs {
    fn kind(&self) -> DriverKind {
        DriverKind::Erofs
    }

    fn planned(&self, layers: &[Digest]) -> Result<(Vec<PathBuf>, bool)> {
        let target = self.target(layers)?.1;
        let there = mount::is_mount_point(&target);
        Ok((vec![target], there))
    }

    fn lowers(&self, layers: &[Digest], observer: &dyn Observer) -> Result<Vec<PathBuf>> {
        let (chain_id, target) = self.target(layers)?;
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
            self.build(layers, &path, observer)?;
        }
        check(observer)?;
        match self.mount(&path, &target) {
            // An image is derived: a damaged one, or one whose packs changed, is made anew.
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                self.store.with_index(|index| index.write(|_| stale::retire(self.store.path(), &chain_id)))?;
                self.build(layers, &path, observer)?;
                self.mount(&path, &target)?;
            }
            other => other?,
        }
        Ok(vec![target])
    }
}
