//! Metadata images that show what must not be shown again.
//!
//! An image says at which addresses chunks are. Once a chunk has left its address because it was damaged there, or the
//! image itself was damaged, it must serve no new mount; but those that have it go on reading it, and gc must leave alone
//! what they read. So it loses its name: `images/<chain_id>.erofs` becomes `images/<chain_id>.<n>.stale`, and goes when
//! nobody has it open any more. The next mount of the chain makes a new one.

use crate::digest::Digest;
use crate::error::Result;
use crate::store::Change;
use crate::sys::mount::{is_mount_point, unmount};
use crate::sys::openers::if_nobody_has;
use crate::sys::publish::{io_error, sync_dir};
use std::fs;
use std::path::{Path, PathBuf};

/// Lets no new mount use the image of a chain, if there is one. Called within a transaction, as nobody makes or removes
/// images meanwhile that gc would have to know of.
pub(crate) fn retire(root: &Path, chain: &Digest) -> Result<()> {
    let dir = root.join("images");
    let name = |n: u32| dir.join(format!("{}.{n}.stale", chain.hex()));
    let free = (1..).map(name).find(|path| !path.exists());
    let image = dir.join(chain.hex() + ".erofs");
    if let Some(free) = free {
        match fs::rename(&image, free) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_error("rename", &image, e)),
            _ => {}
        }
    }
    sync_dir(&dir)
}

/// Stale images, and whose they are.
pub(crate) fn images(root: &Path) -> Result<Vec<(PathBuf, Digest)>> {
    let dir = root.join("images");
    let chain = |path: PathBuf| {
        let (digits, _) = path.file_name()?.to_str()?.strip_suffix(".stale")?.split_once('.')?;
        let chain = Digest::from_hex(digits).ok()?;
        Some((path, chain))
    };
    let found = fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?;
    let mut images: Vec<_> = found.flatten().filter_map(|file| chain(file.path())).collect();
    images.sort();
    Ok(images)
}

/// Has `take` move those away that nobody has open. Returns those that went, and those that stay.
pub(crate) fn drop_unused(
    root: &Path,
    change: &Change<'_>,
    take: impl Fn(&Path) -> Result<bool>,
) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut gone, mut used) = (vec![], vec![]);
    for (path, chain) in images(root)? {
        let lower = format!("mounts/{}", chain.hex());
        let mount = root.join(&lower);
        let new = root.join("images").join(chain.hex() + ".erofs").exists();
        // A snapshot was told to mount what is mounted there. With a new image, that is what is mounted.
        if !new && is_mount_point(&mount) && !change.snapshot_lowers()?.contains(&lower) {
            // Where it is busy, it stays.
            let _ = unmount(&mount);
        }
        let taken = if_nobody_has(&path, || take(&path))?.unwrap_or(false);
        (if taken { &mut gone } else { &mut used }).push(path);
    }
    Ok((gone, used))
}
