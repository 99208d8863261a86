//! What the store holds: layers, the blobs they came in, and images by name.

use super::{BlobInfo, Change, ImageInfo, Index, LayerInfo, db_error, digest};
use crate::digest::Digest;
use crate::error::{Error, Result};
use rusqlite::{Row, params};

impl Index {
    pub(crate) fn layer(&self, diff_id: &Digest) -> Result<Option<LayerInfo>> {
        self.one(&format!("{LAYER} WHERE diff_id = ?1"), [diff_id.as_bytes()], layer_row)
    }

    pub(crate) fn layers(&self) -> Result<Vec<LayerInfo>> {
        self.all(&format!("{LAYER} ORDER BY diff_id"), [], layer_row)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        self.one(&format!("{BLOB} WHERE digest = ?1"), [digest.as_bytes()], blob_row)
    }

    /// Blobs whose bytes are kept.
    pub(crate) fn kept_blobs(&self) -> Result<Vec<BlobInfo>> {
        self.all(&format!("{BLOB} WHERE kept"), [], blob_row)
    }

    pub(crate) fn images(&self) -> Result<Vec<ImageInfo>> {
        let sql = "SELECT name, config, manifest FROM images ORDER BY name";
        let rows = self.all(sql, [], |r| Ok((r.get(0)?, digest(r, 1)?, digest(r, 2)?)))?;
        rows.into_iter().map(|row| self.with_layers(row)).collect()
    }

    pub(crate) fn image(&self, name: &str) -> Result<Option<ImageInfo>> {
        let sql = "SELECT name, config, manifest FROM images WHERE name = ?1";
        let row = self.one(sql, [name], |r| Ok((r.get(0)?, digest(r, 1)?, digest(r, 2)?)))?;
        row.map(|row| self.with_layers(row)).transpose()
    }

    fn with_layers(&self, (name, config, manifest): (String, Digest, Digest)) -> Result<ImageInfo> {
        let sql = "SELECT diff_id FROM image_layers WHERE config = ?1 ORDER BY position";
        let layers = self.all(sql, [config.as_bytes()], |r| digest(r, 0))?;
        Ok(ImageInfo { name, config, manifest, layers })
    }
}

const LAYER: &str = "SELECT diff_id, tar_size, entries, held FROM layers";
const BLOB: &str = "SELECT digest, diff_id, size, kept FROM blobs";

pub(super) fn layer_row(r: &Row<'_>) -> rusqlite::Result<LayerInfo> {
    let (tar_size, entries) = (r.get::<_, i64>(1)? as u64, r.get::<_, i64>(2)? as u64);
    Ok(LayerInfo { diff_id: digest(r, 0)?, tar_size, entries, held: r.get(3)? })
}

fn blob_row(r: &Row<'_>) -> rusqlite::Result<BlobInfo> {
    let size = r.get::<_, i64>(2)? as u64;
    Ok(BlobInfo { digest: digest(r, 0)?, diff_id: digest(r, 1)?, size, kept: r.get(3)? })
}

impl Change<'_> {
    pub(crate) fn add_layer(&self, layer: &LayerInfo) -> Result<()> {
        let sql = "INSERT INTO layers (diff_id, tar_size, entries, held) VALUES (?1, ?2, ?3, ?4) \
                   ON CONFLICT DO UPDATE SET held = held OR excluded.held";
        let (size, entries) = (layer.tar_size as i64, layer.entries as i64);
        self.run(sql, params![layer.diff_id.as_bytes(), size, entries, layer.held])?;
        Ok(())
    }

    pub(crate) fn has_layer(&self, diff_id: &Digest) -> Result<bool> {
        let query = || self.tx.prepare_cached("SELECT 1 FROM layers WHERE diff_id = ?1")?.exists([diff_id.as_bytes()]);
        query().map_err(db_error("read"))
    }

    /// Sets whether a layer stays without an image; false if there is no such layer.
    pub(crate) fn hold_layer(&self, diff_id: &Digest, held: bool) -> Result<bool> {
        let sql = "UPDATE layers SET held = ?2 WHERE diff_id = ?1";
        Ok(self.run(sql, params![diff_id.as_bytes(), held])? > 0)
    }

    pub(crate) fn add_blob(&self, blob: &BlobInfo) -> Result<()> {
        let sql = "INSERT INTO blobs (digest, diff_id, size, kept) VALUES (?1, ?2, ?3, ?4) \
                   ON CONFLICT DO UPDATE SET kept = kept OR excluded.kept";
        let (digest, diff_id) = (blob.digest.as_bytes(), blob.diff_id.as_bytes());
        self.run(sql, params![digest, diff_id, blob.size as i64, blob.kept])?;
        Ok(())
    }

    /// Names an image, taking the name from what had it. `NotFound` unless its layers are there.
    pub(crate) fn put_image(&self, image: &ImageInfo) -> Result<()> {
        let (config, manifest) = (image.config.as_bytes(), image.manifest.as_bytes());
        let sql = "INSERT OR REPLACE INTO images (name, config, manifest) VALUES (?1, ?2, ?3)";
        self.run(sql, params![image.name, config, manifest])?;
        for (position, layer) in image.layers.iter().enumerate() {
            if !self.has_layer(layer)? {
                return Err(Error::not_found("a layer of the image is gone").subject(layer));
            }
            let sql = "INSERT OR REPLACE INTO image_layers (config, position, diff_id) VALUES (?1, ?2, ?3)";
            self.run(sql, params![config, position as i64, layer.as_bytes()])?;
        }
        Ok(())
    }

    /// Removes an image's name; false if there is none.
    pub(crate) fn remove_image(&self, name: &str) -> Result<bool> {
        Ok(self.run("DELETE FROM images WHERE name = ?1", [name])? > 0)
    }
}
