//! What may be asked of an extraction, and what it tells afterwards.

use crate::error::{Error, Result};
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

/// Most losses listed one by one.
const LISTED: usize = 1000;

/// How to extract. Start from `ExtractOptions::default()`.
#[derive(Clone, Debug)]
pub struct ExtractOptions {
    pub(super) threads: usize,
    pub(super) strict: bool,
    pub(super) sync: bool,
    pub(super) uids: Vec<IdMap>,
    pub(super) gids: Vec<IdMap>,
    pub(super) overlay: Overlay,
}

/// A run of user or group ids and what they become, as a line of `/proc/self/uid_map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// The first id in the image.
    pub inside: u32,
    /// What it becomes on disk.
    pub outside: u32,
    /// How many follow one another.
    pub count: u32,
}

/// How a directory that is stacked over others says what it removes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overlay {
    /// Marks are `user.overlay.*`, for mounts with `userxattr`, instead of `trusted.overlay.*`.
    pub(crate) user: bool,
    /// Whiteouts are marked files instead of devices 0:0 (Linux 6.7 or newer reads them).
    pub(crate) marked_whiteouts: bool,
}

impl Default for ExtractOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let overlay = Overlay::default();
        Self { threads, strict: false, sync: true, uids: vec![], gids: vec![], overlay }
    }
}

impl ExtractOptions {
    /// Threads that decode and write. Default: the CPUs this process may use.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads.get();
        self
    }

    /// Whether an owner, device, attribute or time that cannot be set fails the extraction instead of being reported.
    /// Default false.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Whether all is on disk when the extraction returns. Default true.
    #[must_use]
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// What users of the image become; users in none of the runs cannot be set. Default: they stay what they are.
    #[must_use]
    pub fn uid_maps(mut self, maps: impl Into<Vec<IdMap>>) -> Self {
        self.uids = maps.into();
        self
    }

    /// [`uid_maps`](Self::uid_maps) for groups.
    #[must_use]
    pub fn gid_maps(mut self, maps: impl Into<Vec<IdMap>>) -> Self {
        self.gids = maps.into();
        self
    }

    pub(in crate::snapshot) fn thread_count(&self) -> usize {
        self.threads
    }

    /// How layers stacked over others are written.
    pub(crate) fn overlay(mut self, overlay: Overlay) -> Self {
        self.overlay = overlay;
        self
    }
}

/// What an id becomes; `None` if it cannot be set.
pub(super) fn mapped(maps: &[IdMap], id: u32) -> Option<u32> {
    if maps.is_empty() {
        return Some(id);
    }
    let into = |map: &IdMap| {
        let at = id.checked_sub(map.inside).filter(|at| *at < map.count)?;
        map.outside.checked_add(at).filter(|id| *id != u32::MAX)
    };
    maps.iter().find_map(into)
}

/// What an extraction wrote, and what it could not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtractReport {
    /// Directories, the root included.
    pub directories: u64,
    /// Regular files.
    pub files: u64,
    /// Symlinks, devices and FIFOs.
    pub others: u64,
    /// Further names of any of them.
    pub links: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What could not be set, at most 1,000, sorted by path.
    pub losses: Vec<Loss>,
    /// How many there were.
    pub lost: u64,
}

/// Something of the image that the extracted tree does not have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// As [`Entry::path`](crate::Entry::path); empty for the root.
    pub path: Vec<u8>,
    /// What is not as it should be.
    pub what: Lost,
}

/// What was lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Lost {
    /// The owner; it is whoever extracted.
    Owner {
        /// User in the image.
        uid: u32,
        /// Group in the image.
        gid: u32,
    },
    /// The setuid or setgid bit, which would lend the rights of another owner.
    Mode {
        /// Mode in the image.
        mode: u16,
    },
    /// A device; there is nothing at its name, nor at its other names.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An extended attribute.
    Xattr {
        /// Its name.
        name: Vec<u8>,
    },
    /// The modification time; it is the nearest the file system can keep.
    Time,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Owner { uid, gid } => write!(f, "owner {uid}:{gid}"),
            Self::Mode { mode } => write!(f, "mode {mode:04o}"),
            Self::Device { major, minor } => write!(f, "device {major}:{minor}"),
            Self::Xattr { name } => write!(f, "attribute {}", name.escape_ascii()),
            Self::Time => f.write_str("modification time"),
        }
    }
}

/// Gathers losses from all threads.
pub(super) struct Losses {
    strict: bool,
    found: Mutex<(u64, Vec<Loss>)>,
}

impl Losses {
    pub(super) fn new(strict: bool) -> Self {
        Self { strict, found: Mutex::default() }
    }

    /// # Errors
    /// If nothing may be lost.
    pub(super) fn add(&self, path: Vec<u8>, what: Lost) -> Result<()> {
        if self.strict {
            let e = Error::new(crate::ErrorKind::FailedPrecondition, "cannot be made here as the image has it")
                .actual(what);
            return Err(e.subject(String::from_utf8_lossy(&path)));
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.0 += 1;
        if found.1.len() < LISTED {
            found.1.push(Loss { path, what });
        }
        Ok(())
    }

    pub(super) fn into_report(self, report: &mut ExtractReport) {
        let (lost, mut losses) = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        losses.sort();
        (report.lost, report.losses) = (lost, losses);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_as_the_kernel_maps_them() {
        let maps = [
            IdMap { inside: 0, outside: 1000, count: 1 },
            IdMap { inside: 1, outside: 100_000, count: 65_535 },
            IdMap { inside: 70_000, outside: u32::MAX - 1, count: 10 },
        ];
        let cases = [(0, Some(1000)), (1, Some(100_000)), (65_535, Some(165_534)), (65_536, None), (70_001, None)];
        for (id, expected) in cases {
            assert_eq!(mapped(&maps, id), expected);
        }
        assert_eq!(mapped(&[], 7), Some(7));
    }
}
