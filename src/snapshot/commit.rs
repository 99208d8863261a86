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
use crate::observe::Observer;
use crate::store::Store;
use crate::sys::scan::scan;
use crate::tree::Tree;
use std::path::Path;

/// An overlay's upper directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpperDir<'a> {
    pub(crate) path: &'a Path,
    pub(crate) marks: Marks,
}

/// What a directory has and no layer can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The path it has in the root.
    pub path: Vec<u8>,
    /// What was left out and why.
    pub reason: String,
}

/// The changes that an overlay of `upper` over layers and, above them, `adopted` directories shows, lowest first.
pub(crate) fn upper_changes(
    store: &Store,
    layers: &[Digest],
    adopted: &[UpperDir<'_>],
    upper: UpperDir<'_>,
    options: &CreateOptions,
    observer: &dyn Observer,
) -> Result<(Changes, Vec<Skipped>)> {
    let mut below = store.source_tree(layers)?;
    let mut skipped = Vec::new();
    for dir in adopted {
        below = overlaid(&below, *dir, options, &mut skipped, observer)?;
    }
    skipped.clear();
    let upper = overlaid(&below, upper, options, &mut skipped, observer)?;
    Ok((Changes::between(store, &below, upper, options, observer)?, skipped))
}

fn overlaid(
    below: &SourceTree,
    upper: UpperDir<'_>,
    options: &CreateOptions,
    skipped: &mut Vec<Skipped>,
    observer: &dyn Observer,
) -> Result<SourceTree> {
    let found = scan(upper.path, options.threads, observer)?;
    merge(below, found, upper.marks, skipped)
}

/// What makes the root of `layers` the one in `dir`, which holds all of it.
pub(crate) fn directory_changes(
    store: &Store,
    layers: &[Digest],
    dir: &Path,
    options: &CreateOptions,
    observer: &dyn Observer,
) -> Result<(Changes, Vec<Skipped>)> {
    let mut skipped = Vec::new();
    let found = scan(dir, options.threads, observer)?;
    let whole = merge(&Tree::new(), found, Marks::None, &mut skipped)?;
    Ok((Changes::between(store, &store.source_tree(layers)?, whole, options, observer)?, skipped))
}
