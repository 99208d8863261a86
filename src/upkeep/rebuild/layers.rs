//! Layers: whatever has a record, or had a row.
//!
//! A layer that is damaged is entered like any other. So gc stops before it takes chunks that the layer may need, fsck
//! tells of it, and repair knows what to look for.

use super::Rebuild;
use crate::digest::Digest;
use crate::error::Result;
use crate::observe::check;
use crate::store::{Change, LayerInfo};
use crate::sys::publish::io_error;
use std::collections::BTreeMap;
use std::fs;

impl Rebuild<'_> {
    pub(super) fn layers(&mut self) -> Result<()> {
        let mut layers: BTreeMap<Digest, LayerInfo> =
            self.salvage.layers.rows.iter().map(|layer| (layer.diff_id, layer.clone())).collect();
        let dir = self.store.path().join("layers");
        for found in fs::read_dir(&dir).map_err(|e| io_error("read directory", &dir, e))?.flatten() {
            check(self.observer)?;
            let name = found.file_name();
            let digits = name.to_str().and_then(|name| name.strip_suffix(".layer"));
            let Some(diff_id) = digits.and_then(|digits| Digest::from_hex(digits).ok()) else { continue };
            match self.store.recorded_layer(&diff_id) {
                Ok(layer) => drop(layers.insert(diff_id, layer)),
                Err(_) => drop(layers.entry(diff_id).or_insert_with(|| unknown(diff_id))),
            }
        }
        self.hold(layers.into_values())
    }

    /// Enters layers, and holds them: what may have kept them is not known for sure.
    pub(super) fn hold(&self, layers: impl IntoIterator<Item = LayerInfo>) -> Result<()> {
        let add = |change: &Change<'_>| {
            layers.into_iter().try_for_each(|layer| change.add_layer(&LayerInfo { held: true, ..layer }))
        };
        self.store.with_index(|index| index.write(add))
    }
}

/// A layer of which only the name is left.
pub(super) fn unknown(diff_id: Digest) -> LayerInfo {
    LayerInfo { diff_id, tar_size: 0, entries: 0, held: true }
}
