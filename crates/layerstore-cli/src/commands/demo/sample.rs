//! Which files of the machine the demonstration's image is made of.

use layerstore::{Error, Result};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where the two layers come from by default, and how many bytes each place may give.
const BASE: [(&str, u64); 3] = [("/usr/bin", 30_000_000), ("/usr/lib", 45_000_000), ("/etc", 3_000_000)];
const APP: [(&str, u64); 2] = [("/usr/share", 20_000_000), ("/usr/include", 4_000_000)];
/// Larger files would be all of the sample.
const LARGEST: u64 = 16_000_000;
/// Entries per place.
const MOST: usize = 8_000;

/// Something to put into a layer.
pub(super) struct Item {
    /// Path in the image.
    pub(super) name: PathBuf,
    /// Permissions without setuid and setgid.
    pub(super) mode: u32,
    pub(super) kind: ItemKind,
}

pub(super) enum ItemKind {
    Directory,
    /// A file to copy from here.
    File(PathBuf),
    Symlink(PathBuf),
}

impl Item {
    pub(super) fn is_file(&self) -> bool {
        matches!(self.kind, ItemKind::File(_))
    }
}

/// The files of the two layers.
pub(super) struct Sample {
    pub(super) base: Vec<Item>,
    pub(super) app: Vec<Item>,
}

impl Sample {
    /// Takes from `from`, or from the places where programs usually are.
    pub(super) fn take(from: Option<&Path>) -> Result<Self> {
        let (mut base, mut app) = (Vec::new(), Vec::new());
        match from {
            Some(dir) => {
                walk(dir, dir.parent().unwrap_or(dir), &mut { 100_000_000 }, &mut base)?;
                app = base.split_off(base.len() * 2 / 3);
            }
            None => {
                for (place, budget) in BASE {
                    take(Path::new(place), budget, &mut base)?;
                }
                for (place, budget) in APP {
                    take(Path::new(place), budget, &mut app)?;
                }
            }
        }
        if base.iter().any(Item::is_file) && app.iter().any(Item::is_file) {
            return Ok(Self { base, app });
        }
        Err(Error::not_found("there are too few readable files to make an image of"))
    }
}

/// One place; a machine need not have it.
fn take(place: &Path, mut budget: u64, items: &mut Vec<Item>) -> Result<()> {
    if !place.is_dir() {
        return Ok(());
    }
    let mut found = Vec::new();
    walk(place, Path::new("/"), &mut budget, &mut found)?;
    items.append(&mut found);
    Ok(())
}

/// Below `dir` in the order of names until the budget is used up. What cannot be read, or others may not read, is left
/// out.
fn walk(dir: &Path, root: &Path, budget: &mut u64, items: &mut Vec<Item>) -> Result<()> {
    crate::interrupt::check()?;
    let Ok(list) = fs::read_dir(dir) else { return Ok(()) };
    let Ok(name) = dir.strip_prefix(root) else { return Ok(()) };
    items.push(Item { name: name.into(), mode: 0o755, kind: ItemKind::Directory });
    let mut paths: Vec<PathBuf> = list.flatten().map(|found| found.path()).collect();
    paths.sort();
    for path in paths {
        if *budget == 0 || items.len() >= MOST {
            break;
        }
        let (Ok(meta), Ok(name)) = (path.symlink_metadata(), path.strip_prefix(root)) else { continue };
        // Its name would make it something else in a layer.
        if path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".wh.")) {
            continue;
        }
        let mode = meta.permissions().mode() & 0o777;
        let item = |kind| Item { name: name.into(), mode, kind };
        if meta.is_dir() {
            walk(&path, root, budget, items)?;
        } else if meta.is_symlink() {
            items.extend(fs::read_link(&path).ok().map(|target| item(ItemKind::Symlink(target))));
        } else if meta.is_file() && mode & 0o004 != 0 && meta.len() <= LARGEST && File::open(&path).is_ok() {
            *budget = budget.saturating_sub(meta.len());
            items.push(item(ItemKind::File(path.clone())));
        }
    }
    Ok(())
}
