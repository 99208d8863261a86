//! How a snapshotter is opened.

use super::driver::{Caching, DirectIo, DriverKind};
use crate::codec::chunk::Compress;

/// How to open a snapshotter. Start from `SnapshotterOptions::default()`.
#[derive(Clone, Debug)]
pub struct SnapshotterOptions {
    pub(super) namespace: String,
    pub(super) driver: DriverKind,
    pub(super) compress: Compress,
    pub(super) caching: Caching,
}

impl Default for SnapshotterOptions {
    fn default() -> Self {
        let (driver, compress) = (DriverKind::Auto, Compress::default());
        Self { namespace: "default".to_owned(), driver, compress, caching: Caching::default() }
    }
}

impl SnapshotterOptions {
    /// Whose snapshots these are: keys of different namespaces do not see each other. Default `default`.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// How the new content of layers is compressed that are made of snapshots' changes.
    #[must_use]
    pub fn compress(mut self, compress: Compress) -> Self {
        self.compress = compress;
        self
    }

    /// How snapshots are realised. Default the best that works here.
    #[must_use]
    pub fn driver(mut self, driver: DriverKind) -> Self {
        self.driver = driver;
        self
    }

    /// Whether mounts of the erofs driver read packs past the page cache. Default where the kernel is known to be safe.
    /// A mount that is there already keeps the way it was mounted.
    #[must_use]
    pub fn direct_io(mut self, direct_io: DirectIo) -> Self {
        self.caching.direct_io = direct_io;
        self
    }

    /// Whether mounts of the erofs driver keep no compressed blocks in memory (`cache_strategy=disabled`): a tenth to a
    /// fifth less memory for up to twice the reads from disk. Only for images whose content is stored with zstd; mounting
    /// another is refused with `FailedPrecondition`. Default false. A mount that is there already keeps its way.
    #[must_use]
    pub fn drop_compressed(mut self, drop: bool) -> Self {
        self.caching.drop_compressed = drop;
        self
    }
}
