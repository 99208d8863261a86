//! A directory for the length of a command, with content that others wrote.

use layerstore::{Error, remove_tree};
use std::path::{Path, PathBuf};

/// Removed when it is dropped, with all that is in it however deep that is, but nothing that is mounted there.
pub(crate) struct WorkDir(PathBuf);

impl WorkDir {
    /// Makes a directory in `parent` whose name starts with `prefix` and that only this user may enter.
    pub(crate) fn new(prefix: &str, parent: &Path) -> Result<Self, Error> {
        let made = tempfile::Builder::new().prefix(prefix).tempdir_in(parent);
        let dir = made.map_err(|e| Error::io("cannot make a directory", e).subject(parent.display()))?;
        Ok(Self(dir.keep()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The directory, which stays.
    pub(crate) fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        if let Err(e) = remove_tree(&self.0) {
            eprintln!("left behind: {e}");
        }
    }
}
