//! What is mounted from a store: the one reader of mount tables.
//!
//! | file | what |
//! | --- | --- |
//! | `table.rs` | lines of a table |
//! | `namespaces.rs` | the tables that count |
//! | `home.rs` | what of a store a line shows |
//!
//! Tables are read line by line and kept nowhere: what is remembered are names of the store's own
//! directories.
//!
//! What it does not see: mounts that are attached nowhere, mount namespaces in which no process is
//! that `/proc` shows, and overlays over a mount that was taken away since.

mod home;
mod namespaces;
mod table;

pub(crate) use home::NAMELESS;

use crate::error::Result;
use crate::sys::publish::io_error;
use home::Home;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::BufReader;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use table::{Line, Next, Table};

/// How often tables are read again because they told of further names of the store.
const PASSES: u32 = 4;

/// The content of a store that is mounted, in all mount namespaces that count.
#[derive(Debug, Default)]
pub(crate) struct InUse {
    /// As `snapshots/3`.
    names: HashSet<PathBuf>,
    /// It is not known what is mounted.
    any: bool,
}

impl InUse {
    /// Looks what is mounted from the store at `store`, an absolute path without symlinks. What
    /// cannot be read or understood might be anything: then all is in use.
    pub(crate) fn of(store: &Path) -> Self {
        let mut found = Self::default();
        if found.look(store).is_err() {
            found.any = true;
        }
        found
    }

    fn look(&mut self, store: &Path) -> std::io::Result<()> {
        let mut home = find(store)?;
        for _ in 0..PASSES {
            let mut learned = false;
            namespaces::each(|table| {
                let read = for_each_line(table, |line| {
                    learned |= home.learn(line);
                    self.add(&home, line);
                });
                self.any |= !read.unwrap_or(false);
            })?;
            if !learned {
                break;
            }
        }
        Ok(())
    }

    fn add(&mut self, home: &Home, line: &Line) {
        let shows = home.shows(line);
        self.any |= shows.any;
        for name in shows.names {
            self.names.insert(name.iter().take(2).collect());
        }
    }

    /// Whether a mount may show a directory of the store, such as `snapshots/3`, or something in
    /// it.
    pub(crate) fn shows(&self, dir: &str, name: &str) -> bool {
        self.any || self.certainly_shows(dir, name)
    }

    /// Whether a mount is known to show it.
    pub(crate) fn certainly_shows(&self, dir: &str, name: &str) -> bool {
        self.names.contains(&Path::new(dir).join(name))
    }
}

/// A mount in this process's mount namespace that shows something of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) id: u64,
    /// Where.
    pub(crate) dir: PathBuf,
    /// Names below the store, such as `snapshots/3/fs`.
    pub(crate) names: Vec<PathBuf>,
    /// The one that is written to, if it is one that can be.
    pub(crate) writes: Option<PathBuf>,
    /// Another mount is on top of it, at the same place.
    pub(crate) covered: bool,
}

/// The mounts of the store at `store` that this process sees, in the order in which the kernel
/// lists them.
///
/// # Errors
/// `Io` if the table cannot be read.
pub(crate) fn shown(store: &Path) -> Result<Vec<Shown>> {
    let failed = |e| io_error("read", Path::new("/proc/self/mountinfo"), e);
    let mut home = find(store).map_err(failed)?;
    let mut read = |visit: &mut dyn FnMut(&mut Home, &Line)| {
        let own = namespaces::own().and_then(|own| for_each_line(own, |line| visit(&mut home, line)));
        own.map(drop).map_err(failed)
    };
    read(&mut |home, line| {
        home.learn(line);
    })?;
    let mut found: Vec<Shown> = Vec::new();
    read(&mut |home, line| {
        let shows = home.shows(line);
        if !shows.nothing() {
            let (dir, names, writes) = (line.point.clone(), shows.names, shows.writes);
            found.push(Shown { id: line.id, dir, names, writes, covered: false });
        }
    })?;
    // One on the root of another covers it, wherever it stands in the table.
    read(&mut |_, line| {
        let below = found.iter_mut().filter(|below| below.id == line.parent && below.dir == line.point);
        below.for_each(|below| below.covered = true);
    })?;
    Ok(found)
}

/// The id that tables give to the mount a path is on, if the kernel tells (Linux 5.8).
pub(crate) fn mount_id(path: &Path) -> Option<u64> {
    mount_id_in(CWD, path.as_os_str())
}

/// The same for a path from an open directory.
pub(crate) fn mount_id_in(dir: BorrowedFd<'_>, path: &OsStr) -> Option<u64> {
    let stat = statx(dir, path, AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).ok()?;
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
    told.then_some(stat.stx_mnt_id)
}

fn find(store: &Path) -> std::io::Result<Home> {
    Home::find(store, mount_id(store), &mut Table::new(namespaces::own()?))
}

/// False if a line was not understood.
fn for_each_line(table: BufReader<File>, mut visit: impl FnMut(&Line)) -> std::io::Result<bool> {
    let (mut table, mut all) = (Table::new(table), true);
    while let Some(next) = table.next()? {
        match next {
            Next::Line(line) => visit(&line),
            Next::Unknown => all = false,
        }
    }
    Ok(all)
}
