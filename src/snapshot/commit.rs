//! Directories that were written to become layers.
//!
//! Whatever wrote the changes, the layer is made the same way: the tree below is known, the tree with the changes is
//! read, and what differs is the layer. So an overlay's upper directory and a whole copy of the same root give the same
//! bytes. What is copied up and not changed is no change; a renamed directory, of which an overlay has only a note, is
//! there in full, with contents that the store has.

use super::merge::{Marks, merge};
use crate::digest::Digest;
use crate::error::Result;
use crate::layer::{Changes, CreateOptions, SourceTree};
use crate::limits::Limits;
use crate::observe::Observer;
use crate::store::Store;
use crate::sys::scan::{Bounds, scan};
use crate::tree::Tree;
use std::path::Path;

/// An overlay's upper directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpperDir<'a> {
    pub(crate) path: &'a Path,
    pub(crate) marks: Marks,
}

/// The changes that an overlay of `upper` over layers, lowest first, shows.
pub(crate) fn upper_changes(
    store: &Store,
    layers: &[Digest],
    upper: UpperDir<'_>,
    options: &CreateOptions,
    observer: &dyn Observer,
) -> Result<Changes> {
    let below = store.source_tree(layers, observer)?;
    let found = scan(upper.path, options.threads, &Bounds::layer(&options.limits), observer)?;
    let upper = merge(&below, found, upper.marks, observer)?;
    Changes::for_layer(store, below, upper, options, observer)
}

/// The tree that a directory holds.
pub(super) fn whole_tree(dir: &Path, threads: usize, observer: &dyn Observer) -> Result<SourceTree> {
    let bounds = Bounds::tree(&Limits::default()).kept(0);
    merge(&Tree::new(), scan(dir, threads, &bounds, observer)?, Marks::None, observer)
}

/// What makes the root of `layers` the one in `dir`, which holds all of it.
pub(crate) fn directory_changes(
    store: &Store,
    layers: &[Digest],
    dir: &Path,
    options: &CreateOptions,
    observer: &dyn Observer,
) -> Result<Changes> {
    let found = scan(dir, options.threads, &Bounds::tree(&options.limits), observer)?;
    let whole = merge(&Tree::new(), found, Marks::None, observer)?;
    Changes::for_layer(store, store.source_tree(layers, observer)?, whole, options, observer)
}
