//! Content to chunks: large files are cut by their content, small ones gathered into bundles.

pub(crate) mod bundle;
pub(crate) mod cutter;
