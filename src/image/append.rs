//! An image with one more layer on top.

use super::manifest::{LayerBlob, manifest_for};
use super::spec;
use crate::codec::chunk::Compress;
use crate::codec::media::Compression;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::format::entry::Time;
use crate::store::{Change, ImageInfo, Ingest, Outcome, Store};
use serde_json::{Value, json};

/// What an image's configuration is to say of a layer that is put on top. Start from `AppendOptions::default()`.
#[derive(Clone, Debug, Default)]
pub struct AppendOptions {
    created: Option<i64>,
    created_by: Option<String>,
    author: Option<String>,
    comment: Option<String>,
}

impl AppendOptions {
    /// Seconds since 1970 at which the layer, and so the image, was made. Default: left out, so that the same layers give
    /// the same image.
    #[must_use]
    pub fn created(mut self, created: Option<i64>) -> Self {
        self.created = created;
        self
    }

    /// The command that made the layer.
    #[must_use]
    pub fn created_by(mut self, created_by: impl Into<String>) -> Self {
        self.created_by = Some(created_by.into());
        self
    }

    /// Who made it.
    #[must_use]
    pub fn author(mut self, author: impl Into<String>) -> Self {
        self.author = Some(author.into());
        self
    }

    /// Anything else about it.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    fn history(&self) -> Value {
        let fields = [
            ("created", self.created.map(|secs| Time { secs, nanos: 0 }.to_rfc3339())),
            ("created_by", self.created_by.clone()),
            ("author", self.author.clone()),
            ("comment", self.comment.clone()),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Value::String(value?)))).collect()
    }
}

impl Store {
    /// Makes an image of `image` and one more layer, which the store has, and names it `name`. The configuration keeps
    /// what it says; its list of layers and its history grow by one (image-spec `config.md`). When this returns `Ok`, the
    /// image is durable.
    ///
    /// The manifest describes the layers as plain tars: how they are compressed is decided at export.
    ///
    /// # Errors
    /// `NotFound` for an unknown layer; `InvalidInput` if the image's configuration is no JSON object with a list of
    /// layers; `Io`.
    pub fn append_layer(
        &self,
        image: &ImageInfo,
        name: &str,
        layer: &Digest,
        options: &AppendOptions,
    ) -> Result<ImageInfo> {
        self.append(image, name, layer, options).map_err(|e| e.subject(format!("image {}", image.name)))
    }

    fn append(&self, image: &ImageInfo, name: &str, layer: &Digest, options: &AppendOptions) -> Result<ImageInfo> {
        let config = appended(&self.image_config(image)?, layer, options)?;
        let layers: Vec<Digest> = image.layers.iter().copied().chain([*layer]).collect();
        let blob = |diff_id: &Digest| {
            let size = self.layer(diff_id)?.tar_size();
            Ok(LayerBlob { digest: *diff_id, size, compression: Compression::None })
        };
        let blobs: Vec<LayerBlob> = layers.iter().map(blob).collect::<Result<_>>()?;
        let manifest = manifest_for((Digest::of(&config), config.len() as u64), &blobs, None)?;
        let ingest = Ingest::begin(self, Compress::default(), 1)?;
        let mut outcome = Outcome::default();
        for bytes in [&config, &manifest] {
            let draft = ingest.draft()?;
            draft.append(bytes)?;
            outcome.files.push((draft, self.blob_path(&Digest::of(bytes))));
        }
        let image =
            ImageInfo { name: name.to_owned(), config: Digest::of(&config), manifest: Digest::of(&manifest), layers };
        ingest.commit(outcome, |change: &Change<'_>| {
            for diff_id in &image.layers {
                if !change.has_layer(diff_id)? {
                    return Err(Error::not_found("no such layer").subject(diff_id));
                }
            }
            change.put_image(&image)
        })?;
        Ok(image)
    }
}

/// The configuration with one more layer.
fn appended(config: &[u8], layer: &Digest, options: &AppendOptions) -> Result<Vec<u8>> {
    let bad = |what: &str| Error::invalid(format!("the image's configuration {what}"));
    let mut config: Value = serde_json::from_slice(config).map_err(|_| bad("is not JSON"))?;
    let layers = config.pointer_mut("/rootfs/diff_ids").and_then(Value::as_array_mut);
    layers.ok_or_else(|| bad("has no list of layers"))?.push(json!(layer));
    let object = config.as_object_mut().ok_or_else(|| bad("is not a JSON object"))?;
    match object.entry("history").or_insert(Value::Null) {
        Value::Array(history) => history.push(options.history()),
        // As Go writes a list that it does not have.
        none @ Value::Null => *none = json!([options.history()]),
        _ => return Err(bad("has a history that is no list")),
    }
    match options.created {
        Some(secs) => drop(object.insert("created".to_owned(), json!(Time { secs, nanos: 0 }.to_rfc3339()))),
        // The old one would be older than the layer.
        None => drop(object.remove("created")),
    }
    let bytes = config.to_string().into_bytes();
    if bytes.len() as u64 > spec::JSON_LIMIT {
        return Err(Error::limit("the configuration", spec::JSON_LIMIT, bytes.len()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_keeps_what_it_says() {
        let old = br#"{"architecture":"amd64","x":1,"created":"2020-01-01T00:00:00Z",
            "rootfs":{"type":"layers","diff_ids":["sha256:00"]},"history":[{"empty_layer":true}]}"#;
        let layer = Digest::of(b"layer");
        let options = AppendOptions::default().created(Some(0)).created_by("test").comment("c");
        let new: Value = serde_json::from_slice(&appended(old, &layer, &options).unwrap()).unwrap();
        assert_eq!((&new["x"], &new["created"]), (&json!(1), &json!("1970-01-01T00:00:00Z")));
        assert_eq!(new["rootfs"]["diff_ids"], json!(["sha256:00", layer]));
        let entry = json!({ "created": "1970-01-01T00:00:00Z", "created_by": "test", "comment": "c" });
        assert_eq!(new["history"], json!([{ "empty_layer": true }, entry.clone()]));
        let timeless = appended(old, &layer, &AppendOptions::default()).unwrap();
        assert!(serde_json::from_slice::<Value>(&timeless).unwrap()["created"].is_null());
        let none = br#"{"rootfs":{"diff_ids":[]},"history":null}"#;
        let first = appended(none, &layer, &options).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&first).unwrap()["history"], json!([entry]));
        for bad in ["[]", "{}", "nonsense", r#"{"rootfs":{"diff_ids":[]},"history":1}"#] {
            assert!(appended(bad.as_bytes(), &layer, &AppendOptions::default()).is_err(), "{bad}");
        }
    }
}
