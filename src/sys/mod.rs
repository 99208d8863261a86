//! The calls that change the file system, in one place so that their order can be read and tested.
//!
//! Not here: reading, which any floor may do, and the database, which SQLite does itself.

pub(crate) mod cache;
pub(crate) mod dirs;
pub(crate) mod lock;
pub(crate) mod mount;
pub(crate) mod mounts;
pub(crate) mod names;
pub(crate) mod openers;
pub(crate) mod process;
pub(crate) mod publish;
pub(crate) mod raw;
pub(crate) mod remove;
pub(crate) mod scan;
pub(crate) mod space;
pub(crate) mod sparse;
pub(crate) mod upper;
pub(crate) mod walk;
#[cfg(test)]
mod walk_tests;
