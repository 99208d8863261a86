//! What a snapshot stands on.

use super::Snapshotter;
use super::model::Form;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::observe::Observer;
use crate::store::SnapshotRow;

/// No chain is this long; one that seems to be goes in circles.
const CHAIN_MAX: usize = 1 << 16;

/// The committed snapshots below, as what they add.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// Lowest first.
    pub(super) layers: Vec<Digest>,
    /// Above the layers, lowest first: snapshots whose changes are only in their directories yet.
    pub(super) adopted: Vec<SnapshotRow>,
}

impl Snapshotter {
    /// What lies below a snapshot whose parent has the number `top`.
    ///
    /// Directories this snapshotter's driver cannot stack, and those that are below a layer, are absorbed first.
    pub(super) fn chain(&self, top: Option<u64>, observer: &dyn Observer) -> Result<Chain> {
        let mut rows = self.ancestors(top)?;
        let whole = Form::Whole.to_u8();
        let stacks = |row: &SnapshotRow| self.driver.is_some() && row.form != whole;
        let fixed = rows.iter().rposition(|row| row.layer.is_some() || !stacks(row));
        for row in rows.iter_mut().take(fixed.map_or(0, |last| last + 1)) {
            if row.layer.is_none() {
                row.layer = Some(self.absorb_row(row.n, observer)?);
            }
        }
        let layers: Vec<Digest> = rows.iter().map_while(|row| row.layer).collect();
        let adopted = rows.split_off(layers.len());
        Ok(Chain { layers, adopted })
    }

    /// The layers of a chain all of whose snapshots are absorbed by this.
    pub(super) fn absorbed_chain(&self, top: Option<u64>, observer: &dyn Observer) -> Result<Vec<Digest>> {
        let absorb = |row: SnapshotRow| row.layer.map_or_else(|| self.absorb_row(row.n, observer), Ok);
        self.ancestors(top)?.into_iter().map(absorb).collect()
    }

    /// The committed snapshots from the lowest to `top`.
    pub(super) fn ancestors(&self, top: Option<u64>) -> Result<Vec<SnapshotRow>> {
        self.store.with_index(|index| {
            let (mut rows, mut next) = (Vec::new(), top);
            while let Some(n) = next {
                let row = index.snapshot_numbered(n)?;
                let row = row.ok_or_else(|| Error::not_found("a parent snapshot is gone").actual(n))?;
                next = row.parent;
                if rows.len() >= CHAIN_MAX {
                    return Err(Error::corrupt("snapshots are each other's parents").actual(n));
                }
                rows.push(row);
            }
            rows.reverse();
            Ok(rows)
        })
    }
}
