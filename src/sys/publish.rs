//! Immutable files appear whole or not at all: write, fsync, rename, fsync of the directory (`docs/ORDERING.md`).

use super::dirs::Dir;
use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Names the path and the operation in an I/O error.
pub(crate) fn io_error(operation: &str, path: &Path, error: impl Into<std::io::Error>) -> Error {
    let error = error.into();
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => crate::ErrorKind::NotFound,
        _ => crate::ErrorKind::Io,
    };
    Error::new(kind, format!("cannot {operation}: {error}")).subject(path.display()).source(error)
}

/// Makes a directory that only its owner may enter and that inherits nothing, and makes its name durable; one that is
/// there already is fine.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    match Dir::make_fresh(path) {
        Ok(_) => sync_parent(path),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(io_error("create directory", path, e)),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let dir = File::open(path).map_err(|e| io_error("open directory", path, e))?;
    dir.sync_all().map_err(|e| io_error("fsync directory", path, e))
}

fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// A file being written under a temporary name; dropped without [`publish`](Self::publish) it is removed.
pub(crate) struct Draft {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Draft {
    /// Creates `path`, which must not exist, with mode 0600 for reading and writing.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = opened.map_err(|e| io_error("create", &path, e))?;
        Ok(Self { file, path, published: false })
    }

    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| io_error("write", &self.path, e))
    }

    /// Appends all of `bytes` at the file's position.
    pub(crate) fn append(&self, bytes: &[u8]) -> Result<()> {
        (&self.file).write_all(bytes).map_err(|e| io_error("write", &self.path, e))
    }

    /// Reads back exactly `bytes.len()` bytes from `offset`.
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|e| io_error("read back", &self.path, e))
    }

    /// Another handle to the same file.
    pub(crate) fn handle(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| io_error("duplicate the handle of", &self.path, e))
    }

    /// Makes the bytes durable. A failure is final: what the kernel dropped cannot be synced by trying again.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| io_error("fsync", &self.path, e))
    }

    /// Lets go of the page cache's copy of what was synced; nobody is going to read it soon.
    pub(crate) fn let_go(&self) {
        super::cache::let_go_of(&self.file);
    }

    /// Gives the synced file its final name, replacing what was there.
    /// The caller must still [`sync_dir`] the target's directory, which lets several files share that.
    pub(crate) fn publish(&mut self, target: &Path) -> Result<()> {
        self.sync()?;
        self.rename(target)
    }

    /// Moves the draft, which stays one.
    pub(crate) fn move_to(&mut self, path: PathBuf) -> Result<()> {
        fs::rename(&self.path, &path).map_err(|e| io_error("move", &path, e))?;
        self.path = path;
        Ok(())
    }

    /// The second half of [`publish`](Self::publish): the bytes are on disk, now the name.
    pub(crate) fn rename(&mut self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(|e| io_error("rename into place", target, e))?;
        self.published = true;
        Ok(())
    }
}

impl Write for Draft {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // The name is temporary and crashed work is swept at the next open, so a failure here loses nothing.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Publishes `bytes` as `dir/name` by way of `draft`, and makes it durable.
pub(crate) fn publish_bytes(bytes: &[u8], draft: PathBuf, dir: &Path, name: &str) -> Result<()> {
    let mut file = Draft::create(draft)?;
    file.append(bytes)?;
    file.publish(&dir.join(name))?;
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_draft_leaves_nothing_and_a_published_one_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let draft = dir.path().join("draft");
        drop(Draft::create(draft.clone()).unwrap());
        assert!(!draft.exists());
        publish_bytes(b"x", draft.clone(), dir.path(), "final").unwrap();
        assert!(!draft.exists());
        assert_eq!(fs::read(dir.path().join("final")).unwrap(), b"x");
    }

    #[test]
    fn errors_name_path_and_operation() {
        let e = Draft::create("/nonexistent-dir/x".into()).err().unwrap();
        assert_eq!(e.kind(), crate::ErrorKind::NotFound);
        assert!(e.to_string().starts_with("/nonexistent-dir/x: cannot create"), "{e}");
    }
}
