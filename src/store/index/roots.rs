//! All that keeps something in the store, in one view.

use super::leases::{LeaseRow, leases};
use super::snapshots::{SnapshotRow, snapshots};
use super::{Change, ImageInfo, Index, all, digest};
use crate::digest::Digest;
use crate::error::Result;
use rusqlite::types::Type;
use rusqlite::{Connection, Row};

/// What gc starts from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roots {
    pub(crate) images: Vec<ImageInfo>,
    /// Layers that stay without an image.
    pub(crate) held: Vec<Digest>,
    /// Labels left out.
    pub(crate) snapshots: Vec<SnapshotRow>,
    pub(crate) leases: Vec<LeaseRow>,
}

fn roots(db: &Connection) -> Result<Roots> {
    Ok(Roots {
        images: images(db)?,
        held: all(db, "SELECT diff_id FROM layers WHERE held", [], |r| digest(r, 0))?,
        snapshots: snapshots(db)?,
        leases: leases(db)?,
    })
}

fn images(db: &Connection) -> Result<Vec<ImageInfo>> {
    let sql = "SELECT i.name, i.config, i.manifest, l.diff_id FROM images i \
               LEFT JOIN image_layers l ON l.config = i.config ORDER BY i.name, l.position";
    let row = |r: &Row<'_>| {
        let layer = match r.get_ref(3)?.data_type() {
            Type::Null => None,
            _ => Some(digest(r, 3)?),
        };
        Ok((r.get::<_, String>(0)?, digest(r, 1)?, digest(r, 2)?, layer))
    };
    let mut images: Vec<ImageInfo> = Vec::new();
    for (name, config, manifest, layer) in all(db, sql, [], row)? {
        if images.last().is_none_or(|last| last.name != name) {
            images.push(ImageInfo { name, config, manifest, layers: vec![] });
        }
        if let Some(image) = images.last_mut() {
            image.layers.extend(layer);
        }
    }
    Ok(images)
}

impl Index {
    /// All roots. Begin reading first, so that they are of one moment.
    pub(crate) fn roots(&self) -> Result<Roots> {
        roots(&self.db)
    }
}

impl Change<'_> {
    /// All roots as they are in this transaction.
    pub(crate) fn roots(&self) -> Result<Roots> {
        roots(self.tx)
    }
}
