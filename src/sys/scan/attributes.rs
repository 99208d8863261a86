//! Extended attributes that a scan finds. Equal sets of them are held once.

use super::bounds::{Attempt, Bounds, Count};
use rustix::io::Errno;
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// The kernel's bound on the names, and on one value, of a file's attributes.
const MAX: usize = 64 << 10;

/// A name and value.
pub(crate) type RawXattr = (Vec<u8>, Vec<u8>);

/// Attributes sorted by name; those of several inodes share memory if they are equal.
#[derive(Clone, Default)]
pub(crate) struct Xattrs(Option<Arc<Vec<RawXattr>>>);

impl std::ops::Deref for Xattrs {
    type Target = [RawXattr];

    fn deref(&self) -> &[RawXattr] {
        self.0.as_deref().map_or(&[], |all| all)
    }
}

impl Xattrs {
    /// Tells sets of one scan apart, as long as it has not been taken apart; `None` for the empty one.
    pub(crate) fn key(&self) -> Option<usize> {
        self.0.as_ref().map(|all| Arc::as_ptr(all) as usize)
    }

    /// Whether others have the same set in memory.
    pub(crate) fn is_shared(&self) -> bool {
        self.0.as_ref().is_some_and(|all| Arc::strong_count(all) > 1)
    }

    /// The attributes, without a copy if nothing else has them.
    pub(crate) fn into_vec(self) -> Vec<RawXattr> {
        self.0.map(Arc::unwrap_or_clone).unwrap_or_default()
    }
}

/// Where a thread reads names and one value to.
pub(super) struct Space {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Space {
    fn default() -> Self {
        Self { names: vec![0; MAX], value: vec![0; MAX] }
    }
}

/// All sets that were found.
#[derive(Default)]
pub(super) struct Sets(Mutex<HashSet<Arc<Vec<RawXattr>>>>);

impl Sets {
    fn intern(&self, set: Vec<RawXattr>) -> Xattrs {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.get(&set) {
            return Xattrs(Some(same.clone()));
        }
        let set = Arc::new(set);
        known.insert(set.clone());
        Xattrs(Some(set))
    }
}

/// Reads attributes into shared sets, and counts them.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) bounds: &'a Bounds,
    pub(super) count: &'a Count,
    pub(super) sets: &'a Sets,
}

impl Reader<'_> {
    pub(super) fn of(self, fd: impl AsFd, space: &mut Space) -> Attempt<Xattrs> {
        let list = rustix::fs::flistxattr(&fd, &mut space.names[..]);
        self.collect(list, space, |name, value| rustix::fs::fgetxattr(&fd, name, value))
    }

    /// Of what must not be opened. There is no `listxattrat` before Linux 6.13, hence the way through `/proc`.
    pub(super) fn at(self, dir: BorrowedFd<'_>, name: &[u8], space: &mut Space) -> Attempt<Xattrs> {
        let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat();
        let list = rustix::fs::llistxattr(&path[..], &mut space.names[..]);
        self.collect(list, space, |name, value| rustix::fs::lgetxattr(&path[..], name, value))
    }

    fn collect(
        self,
        list: rustix::io::Result<usize>,
        space: &mut Space,
        get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
    ) -> Attempt<Xattrs> {
        let names = match list {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Xattrs::default()),
            other => &space.names[..other?],
        };
        let mut all = Vec::new();
        for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
            match get(name, &mut space.value) {
                Ok(len) => {
                    self.count.xattr(self.bounds, name.len() + len)?;
                    all.push((name.to_vec(), space.value[..len].to_vec()));
                }
                // Removed meanwhile, or listed to all and readable to few.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e.into()),
            }
        }
        all.sort_unstable();
        Ok(if all.is_empty() { Xattrs::default() } else { self.sets.intern(all) })
    }
}
