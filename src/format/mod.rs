//! Bytes to types and back, without I/O: everything `docs/FORMAT.md` describes.

pub(crate) mod base64;
pub(crate) mod bytes;
pub(crate) mod entry;
pub(crate) mod erofs;
pub(crate) mod item;
pub(crate) mod pack;
pub(crate) mod params;
pub(crate) mod record;
