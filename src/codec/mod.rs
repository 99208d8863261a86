//! Compression: of chunks in packs, and of layer blobs as images carry them.

pub(crate) mod chunk;
