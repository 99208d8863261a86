//! The directories of a listing for containers/storage, in a directory that may belong to somebody who wishes harm: no
//! symlink is followed, a directory of another user is refused, and only what a listing has is removed.

use crate::digest::OciDigest;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::dirs::Dir;
use crate::sys::names::Found;
use crate::sys::publish::io_error;
use rustix::fs::FileType;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where a file is written before it gets its name. Names of layers are digests.
const DRAFT: &[u8] = b".new";
/// What may be in the directory of a layer: what is written here, and `use`, by which containers/storage says that it
/// reads the layer.
const IN_A_LAYER: [&[u8]; 5] = [b"diff", b"info", b"blob", b"use", DRAFT];

/// Opens the directory `name`, which is made if nothing has the name. Only its owner may enter it.
pub(super) fn enter(parent: &Dir, name: &str, path: &Path) -> Result<Dir> {
    let failed = |e| io_error("create directory", path, e);
    match parent.make(name.as_bytes()) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(failed(e)),
    }
    let dir = parent.below(name.as_bytes(), true).map_err(|e| match e {
        Errno::NOTDIR | Errno::LOOP => refused("something that is no directory has this name", path),
        e => failed(e),
    })?;
    if !dir.itself().map_err(failed)?.is_own() {
        return Err(refused("the directory belongs to another user", path));
    }
    dir.close_to_others().map_err(failed)?;
    Ok(dir)
}

fn refused(why: &str, path: &Path) -> Error {
    Error::new(ErrorKind::FailedPrecondition, why).subject(path.display()).expected("a directory that a listing made")
}

/// Why a directory could not be removed.
pub(super) fn left(path: &Path, error: Errno) -> Error {
    match error {
        Errno::NOTEMPTY | Errno::EXIST => refused("things that no listing made are in this directory", path),
        Errno::NOTDIR | Errno::LOOP => refused("something that is no directory has this name", path),
        e => io_error("remove", path, e),
    }
}

/// Removes what listings have in the directory of an image, but for the layers to keep. What is of another kind or of
/// another user stays.
pub(super) fn remove_layers(open: &Dir, path: &Path, keep: &[String]) -> Result<()> {
    for name in open.names().map_err(|e| io_error("read directory", path, e))? {
        let Some(digest) = std::str::from_utf8(&name).ok().filter(|name| name.parse::<OciDigest>().is_ok()) else {
            continue;
        };
        if keep.iter().any(|keep| keep == digest) {
            continue;
        }
        let path = path.join(digest);
        let failed = |e| io_error("remove", &path, e);
        let layer = match open.below(&name, true) {
            // A symlink or a file was made by somebody else.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            found => found.map_err(failed)?,
        };
        if !layer.itself().map_err(failed)?.is_own() {
            continue;
        }
        for name in IN_A_LAYER {
            let found = layer.find(name).map_err(failed)?.filter(Found::is_own);
            if found.is_some_and(|found| matches!(found.kind, FileType::RegularFile | FileType::Symlink)) {
                layer.unlink(name).map_err(failed)?;
            }
        }
        match open.remove_empty(&name) {
            // It holds something else, which stays.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => {}
            done => done.map_err(failed)?,
        }
    }
    Ok(())
}

/// The directory of a layer.
pub(super) struct Place<'a> {
    pub(super) dir: &'a Dir,
    pub(super) path: &'a Path,
}

impl Place<'_> {
    pub(super) fn failed(&self, what: &str, name: &[u8], error: Errno) -> Error {
        io_error(what, &self.path.join(OsStr::from_bytes(name)), error)
    }

    pub(super) fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.dir.holds(name.as_bytes(), bytes) {
            return Ok(());
        }
        let mut draft = Draft::create(self)?;
        draft.write_all(bytes).map_err(|e| io_error("write", &self.path.join(name), e))?;
        draft.publish(name.as_bytes())
    }

    /// Makes `name` a link to `target`, whatever it led to before.
    pub(super) fn link(&self, target: &Path, name: &str) -> Result<()> {
        let target = target.as_os_str().as_bytes();
        if self.dir.read_link(name.as_bytes()).is_ok_and(|there| there == target) {
            return Ok(());
        }
        self.remove_draft()?;
        self.dir.symlink(DRAFT, target).map_err(|e| self.failed("link", DRAFT, e))?;
        self.dir.rename(DRAFT, name.as_bytes()).map_err(|e| self.failed("rename into place", name.as_bytes(), e))
    }

    /// What an earlier call left goes.
    fn remove_draft(&self) -> Result<()> {
        match self.dir.unlink(DRAFT) {
            Err(e) if e != Errno::NOENT => Err(self.failed("remove", DRAFT, e)),
            _ => Ok(()),
        }
    }
}

/// A file of a layer's directory that has no name of its own yet; dropped without one it goes.
pub(super) struct Draft<'a> {
    at: &'a Place<'a>,
    file: File,
    published: bool,
}

impl<'a> Draft<'a> {
    pub(super) fn create(at: &'a Place<'a>) -> Result<Self> {
        at.remove_draft()?;
        let file = at.dir.create(DRAFT, 0o600).map_err(|e| at.failed("create", DRAFT, e))?;
        Ok(Self { at, file, published: false })
    }

    pub(super) fn publish(&mut self, name: &[u8]) -> Result<()> {
        self.file.sync_all().map_err(|e| io_error("fsync", self.at.path, e))?;
        self.at.dir.rename(DRAFT, name).map_err(|e| self.at.failed("rename into place", name, e))?;
        self.published = true;
        Ok(())
    }
}

impl Write for Draft<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.published {
            // The next call removes what this cannot.
            let _ = self.at.dir.unlink(DRAFT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn layers_of_either_algorithm_are_removed_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let (kept, narrow) = (Digest::of(b"kept").to_string(), Digest::of(b"gone").to_string());
        let names = [&kept, &narrow, &OciDigest::Sha512([7; 64]).to_string(), "sha384:00"];
        for name in names {
            std::fs::create_dir(scratch.path().join(name)).unwrap();
            std::fs::write(scratch.path().join(name).join("info"), "{}").unwrap();
        }
        let dir = Dir::resolve(scratch.path()).unwrap();
        remove_layers(&dir, scratch.path(), std::slice::from_ref(&kept)).unwrap();
        let mut left = dir.names().unwrap();
        left.sort();
        assert_eq!(left, [kept.as_bytes(), b"sha384:00"]);
    }
}
