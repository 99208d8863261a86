//! What a scan may find at most, asked while it reads.
//!
//! The limits are those of layers, counted as a layer's entries are: what would be refused as a layer is refused before
//! memory is spent on it.

use crate::error::Error;
use crate::limits::Limits;
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of small files held at most; the rest is opened again when it is wanted.
const KEPT: usize = 64 << 20;
/// Bytes that each name has free.
const FREE: u64 = 256;
/// Bytes that an attribute counts beside its name and value.
const XATTR: u64 = 64;

/// What a scan may find. Exceeding it is `LimitExceeded`.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Names.
    entries: u64,
    /// Bytes of all paths, link targets and attributes, beside what each name has free.
    attributes: u64,
    pub(super) depth: usize,
    path: usize,
    /// Bytes of small files that are held.
    pub(super) kept: usize,
}

impl Bounds {
    /// Of a directory that becomes a layer.
    pub(crate) fn layer(limits: &Limits) -> Self {
        let &Limits { entries, attributes, depth, path, .. } = limits;
        Self { entries, attributes, depth, path, kept: KEPT }
    }

    /// Of a directory that holds a tree as layers give it together.
    pub(crate) fn tree(limits: &Limits) -> Self {
        let layer = Self::layer(limits);
        Self { attributes: layer.attributes.saturating_mul(Limits::LAYERS), ..layer }
    }

    /// Holds at most so many bytes of small files.
    pub(crate) fn kept(self, kept: usize) -> Self {
        Self { kept, ..self }
    }
}

/// Why an inode cannot be read.
pub(super) enum Fault {
    Errno(Errno),
    Limit(Error),
}

impl From<Errno> for Fault {
    fn from(e: Errno) -> Self {
        Self::Errno(e)
    }
}

pub(super) type Attempt<T> = std::result::Result<T, Fault>;

/// What was found so far.
#[derive(Default)]
pub(super) struct Count {
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    /// Counts a name with `depth` components and a path of `len` bytes.
    pub(super) fn name(&self, bounds: &Bounds, depth: usize, len: usize) -> Attempt<()> {
        if depth > bounds.depth {
            return Err(Fault::Limit(Error::limit("directories nested too deep", bounds.depth, depth)));
        }
        if len > bounds.path {
            return Err(Fault::Limit(Error::limit("the path is too long", bounds.path, len)));
        }
        let entries = self.entries.fetch_add(1, Relaxed) + 1;
        self.check(bounds, entries)?;
        self.bytes(bounds, len as u64)
    }

    /// Fails if so many names, of which some may be counted already, are too many.
    pub(super) fn check(&self, bounds: &Bounds, entries: u64) -> Attempt<()> {
        match entries > bounds.entries {
            true => Err(Fault::Limit(Error::limit("too many files in a directory", bounds.entries, entries))),
            false => Ok(()),
        }
    }

    /// Counts bytes of an attribute.
    pub(super) fn xattr(&self, bounds: &Bounds, len: usize) -> Attempt<()> {
        self.bytes(bounds, XATTR + len as u64)
    }

    /// Counts bytes of something else.
    pub(super) fn bytes(&self, bounds: &Bounds, more: u64) -> Attempt<()> {
        let bytes = self.bytes.fetch_add(more, Relaxed) + more;
        let free = FREE.saturating_mul(self.entries.load(Relaxed));
        let most = bounds.attributes.saturating_add(free);
        match bytes > most {
            true => {
                let message = "too many bytes of paths, link targets and extended attributes";
                Err(Fault::Limit(Error::limit(message, most, bytes)))
            }
            false => Ok(()),
        }
    }
}
