//! Whether anybody has a file open: another process, or the kernel for a mount that no name leads to any more.

use super::publish::io_error;
use super::raw;
use crate::error::Result;
use std::fs::File;
use std::path::Path;

/// Runs `work` if nobody has the file at `path` open, and while it runs nobody can open it; `None` if somebody has, or
/// if the file system does not tell.
///
/// A write lease is granted only for a file that nobody else has open, whatever the namespace, and mounts count: the
/// kernel opens the image of a file-backed mount like anybody (`fs/locks.c`, `check_conflicting_open`).
pub(crate) fn if_nobody_has<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    let file = File::open(path).map_err(|e| io_error("open", path, e))?;
    if !raw::lease_alone(&file) {
        return Ok(None);
    }
    let out = work();
    drop(file);
    out.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        assert_eq!(if_nobody_has(&path, || Ok(1)).unwrap(), Some(1));
        let open = File::open(&path).unwrap();
        assert_eq!(if_nobody_has(&path, || Ok(1)).unwrap(), None);
        drop(open);
        assert_eq!(if_nobody_has(&path, || Ok(1)).unwrap(), Some(1));
        assert!(if_nobody_has(&dir.path().join("none"), || Ok(1)).is_err());
    }
}
