//! Compressed bytes in and out.
//!
//! A layer blob is read by [`blob::BlobReader`] and written by [`writer::BlobWriter`]; [`gzip`] and [`zstd`] hold the
//! two formats, [`input`] the hashing of what comes in, [`media`] the names the formats have in manifests.

pub(crate) mod blob;
pub(crate) mod gzip;
pub(crate) mod input;
pub(crate) mod media;
pub(crate) mod writer;
pub(crate) mod zstd;
