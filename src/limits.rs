//! How much untrusted input may ask for.

/// Limits on untrusted input. Each has a default from `docs/LIMITS.md`; what exceeds one is refused with
/// [`ErrorKind::LimitExceeded`](crate::ErrorKind::LimitExceeded) before memory or disk is spent on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub(crate) extension: u64,
    pub(crate) extension_chain: u32,
    pub(crate) path: usize,
    pub(crate) name: usize,
    pub(crate) depth: usize,
    pub(crate) entries: u64,
    pub(crate) attributes: u64,
    pub(crate) layer_size: u64,
    pub(crate) file_size: u64,
    pub(crate) sparse_ranges: usize,
    pub(crate) zstd_window_log: u32,
}

/// The largest file in whole pages: an offset is at most 2^63 - 1 on Linux.
const FILE_SIZE: u64 = (1 << 63) - 4096;

impl Default for Limits {
    fn default() -> Self {
        Self {
            extension: 1 << 20,
            extension_chain: 16,
            path: 4096,
            name: 255,
            depth: 1024,
            entries: 10_000_000,
            attributes: 64 << 20,
            layer_size: 1 << 40,
            file_size: FILE_SIZE,
            sparse_ranges: 65_536,
            zstd_window_log: 27,
        }
    }
}

impl Limits {
    /// Layers as large in their attributes as one may be, of which a tree may be made.
    pub(crate) const LAYERS: u64 = 8;

    /// Most entries a layer may have. Default 10 million.
    #[must_use]
    pub fn entries(mut self, entries: u64) -> Self {
        self.entries = entries;
        self
    }

    /// Most bytes that paths, link targets, extended attributes (64 each beside name and value) and sparse maps (16 a
    /// range) of all entries of a layer may have, beside 256 that each entry has free. Composed layers may have eight
    /// times the default together. Default 64 MiB.
    #[must_use]
    pub fn attributes(mut self, bytes: u64) -> Self {
        self.attributes = bytes;
        self
    }

    /// Most bytes an uncompressed layer may have. Holes of sparse files are not in its tar and do not count. Default
    /// 1 TiB.
    #[must_use]
    pub fn layer_size(mut self, bytes: u64) -> Self {
        self.layer_size = bytes;
        self
    }

    /// Largest size of one file, its holes included. Default 8 EiB less a page of
    /// 4 KiB, the most whole pages that a file on Linux has.
    #[must_use]
    pub fn file_size(mut self, bytes: u64) -> Self {
        self.file_size = bytes.min(i64::MAX as u64);
        self
    }

    /// Most bytes in one PAX header or GNU long name. Default 1 MiB.
    #[must_use]
    pub fn extension(mut self, bytes: u64) -> Self {
        self.extension = bytes;
        self
    }
}
