//! Bytes to types and back, without I/O: everything `docs/FORMAT.md` describes.

pub(crate) mod entry;
