//! Putting a rebuilt database in the place of the one there is (`docs/ORDERING.md`, "Rebuilding the database").
//!
//! A database is up to three files, and SQLite would take a log that lies beside a database for its own. No single
//! rename can change that, so the new database first gets the name `index.db.rebuilt-<n>`: from that moment on it is the
//! store's database, and whoever opens the store gives it its place before anything else. The old one becomes
//! `index.db.damaged-<n>`; nothing is removed.

use crate::error::{Error, Result};
use crate::sys::publish::{io_error, sync_dir};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The database's file in the store's directory.
pub(super) const DATABASE: &str = "index.db";
const REBUILT: &str = "index.db.rebuilt-";
const DAMAGED: &str = "index.db.damaged-";
/// What SQLite appends for the log and its index. The database itself goes last: as long as it is there, what lies
/// beside it is its own.
const PARTS: [&str; 3] = ["-shm", "-wal", ""];

/// The number of a rebuilt database that has not got its place yet.
pub(super) fn pending(root: &Path) -> Result<Option<u32>> {
    let names = names(root)?;
    Ok(names.iter().filter_map(|name| name.to_str()?.strip_prefix(REBUILT)?.parse().ok()).min())
}

fn names(root: &Path) -> Result<Vec<OsString>> {
    let found = fs::read_dir(root).map_err(|e| io_error("read directory", root, e))?;
    Ok(found.flatten().map(|f| f.file_name()).collect())
}

/// Makes `database`, complete and closed, the store's. The caller has the store's directory alone. Returns where the one
/// before is now, if there was any.
pub(crate) fn put(root: &Path, database: &Path) -> Result<Option<PathBuf>> {
    let names = names(root)?;
    let taken = |n: u32| names.iter().any(|name| name.to_string_lossy().starts_with(&format!("{DAMAGED}{n}")));
    let n = (1..=u32::MAX).find(|n| !taken(*n)).ok_or_else(|| Error::invalid("too many damaged databases"))?;
    let file = File::open(database).map_err(|e| io_error("open", database, e))?;
    file.sync_all().map_err(|e| io_error("fsync", database, e))?; // 1. the bytes
    let rebuilt = root.join(format!("{REBUILT}{n}"));
    fs::rename(database, &rebuilt).map_err(|e| io_error("rename into place", &rebuilt, e))?;
    sync_dir(root)?; // 2. from here on the store has this database
    finish(root)?;
    Ok(Some(root.join(format!("{DAMAGED}{n}"))).filter(|path| path.exists()))
}

/// Gives a rebuilt database its place. The caller has the store's directory alone.
pub(super) fn finish(root: &Path) -> Result<()> {
    let Some(n) = pending(root)? else { return Ok(()) };
    for part in PARTS {
        let (from, to) = (root.join(format!("{DATABASE}{part}")), root.join(format!("{DAMAGED}{n}{part}")));
        match fs::rename(&from, to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_error("set aside", &from, e)),
            _ => {}
        }
    }
    sync_dir(root)?; // 3. no log of the old one must be found beside the new one
    let place = root.join(DATABASE);
    let rebuilt = root.join(format!("{REBUILT}{n}"));
    fs::rename(rebuilt, &place).map_err(|e| io_error("rename into place", &place, e))?;
    sync_dir(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(root: &Path) -> Vec<(String, String)> {
        let names = names(root).unwrap();
        let mut all: Vec<_> = names
            .iter()
            .map(|name| (name.to_string_lossy().into_owned(), fs::read_to_string(root.join(name)).unwrap()))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn the_old_files_keep_together_wherever_it_was_cut_short() {
        let whole = [("index.db", "new"), ("index.db.damaged-1", "old"), ("index.db.damaged-1-wal", "log")];
        // After the new database got its name, that many of the old files were moved.
        for moved in 0..=3 {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            for (name, text) in [("index.db", "old"), ("index.db-wal", "log"), ("index.db.rebuilt-1", "new")] {
                fs::write(root.join(name), text).unwrap();
            }
            for part in &PARTS[..moved] {
                let to = root.join(format!("{DAMAGED}1{part}"));
                let _ = fs::rename(root.join(format!("{DATABASE}{part}")), to);
            }
            finish(root).unwrap();
            let whole: Vec<_> = whole.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect();
            assert_eq!(contents(root), whole, "{moved} moved");
            finish(root).unwrap();
            assert_eq!(contents(root), whole);
        }
    }

    #[test]
    fn nothing_set_aside_is_ever_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for (n, left) in [(1, "a"), (2, "b"), (3, "c")] {
            fs::write(root.join("index.db"), left).unwrap();
            fs::create_dir_all(root.join("tmp")).unwrap();
            fs::write(root.join("tmp/new"), "new").unwrap();
            let aside = put(root, &root.join("tmp/new")).unwrap();
            assert_eq!(aside, Some(root.join(format!("index.db.damaged-{n}"))));
        }
        fs::remove_dir(root.join("tmp")).unwrap();
        let texts: Vec<_> = contents(root).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["new", "a", "b", "c"]);
    }
}
