//! An image with one more layer on top.

use super::export::original_blobs;
use super::manifest::{LayerBlob, manifest_for};
use super::{names, spec};
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
    /// Layers whose blobs were kept stay the blobs they are, so that a registry which has them is sent the new layer
    /// alone. The manifest describes the others as plain tars: how they are compressed is decided at export.
    ///
    /// # Errors
    /// `NotFound` for an unknown layer; `InvalidInput` if the image's configuration is no JSON object with a list of
    /// layers, and for a name in the form of a digest; `Io`.
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
        names::check(name)?;
        let config = appended(&self.image_config(image)?, layer, options)?;
        let layers: Vec<Digest> = image.layers.iter().copied().chain([*layer]).collect();
        let (blobs, described) = self.blobs_with(image, layer)?;
        let config_is = (Digest::of(&config), config.len() as u64);
        let manifest = manifest_for(config_is, &blobs, Some(&described))?;
        names::check_for(name, &[config_is.0.into(), Digest::of(&manifest).into()])?;
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

    /// The blobs of an image's layers and of one more, and a document that has what the image's manifest says of each.
    fn blobs_with(&self, image: &ImageInfo, layer: &Digest) -> Result<(Vec<LayerBlob>, Vec<u8>)> {
        let tar = |diff_id: &Digest| {
            let size = self.layer(diff_id)?.tar_size();
            Ok(LayerBlob { digest: (*diff_id).into(), size, compression: Compression::None })
        };
        let manifest = self.image_manifest(image)?;
        let mut blobs = Vec::with_capacity(image.layers.len() + 1);
        for (diff_id, was) in image.layers.iter().zip(original_blobs(&manifest, image)?) {
            let kept = self.kept_blob(diff_id, &was, &())?.is_some();
            blobs.push(if kept { was } else { tar(diff_id)? });
        }
        blobs.push(tar(layer)?);
        let mut described = spec::parse::<Value>("manifest", &manifest)?["layers"].take();
        match &mut described {
            Value::Array(layers) => layers.push(Value::Null),
            // Without layers there is a null, or nothing.
            none => *none = json!([null]),
        }
        Ok((blobs, json!({ "layers": described }).to_string().into_bytes()))
    }
}

/// The configuration with one more layer.
fn appended(config: &[u8], layer: &Digest, options: &AppendOptions) -> Result<Vec<u8>> {
    let bad = |what: &str| Error::invalid(format!("the image's configuration {what}"));
    let mut config: Value = serde_json::from_slice(config).map_err(|_| bad("is not JSON"))?;
    let layers = config.pointer_mut("/rootfs/diff_ids").and_then(Value::as_array_mut);
    let layers = layers.ok_or_else(|| bad("has no list of layers"))?;
    let below = layers.len();
    layers.push(json!(layer));
    let object = config.as_object_mut().ok_or_else(|| bad("is not a JSON object"))?;
    let history = object.entry("history").or_insert(Value::Null);
    if history.is_null() {
        // As Go writes a list that it does not have.
        *history = json!([]);
    }
    let history = history.as_array_mut().ok_or_else(|| bad("has a history that is no list"))?;
    fill_up(history, below);
    history.push(options.history());
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

/// Gives a history an entry for each layer. Registries refuse an image with entries for some layers only, and match them
/// with layers from the first on: entries that are missing follow, and those that have no layer are empty.
fn fill_up(history: &mut Vec<Value>, layers: usize) {
    let mut described = 0;
    for entry in history.iter_mut() {
        if entry.is_null() {
            *entry = json!({});
        }
        if entry["empty_layer"] == true {
            continue;
        }
        described += 1;
        if described > layers
            && let Some(entry) = entry.as_object_mut()
        {
            entry.insert("empty_layer".into(), json!(true));
        }
    }
    let unknown = json!({ "comment": "the base image has no history of this layer" });
    history.extend(std::iter::repeat_n(unknown, layers.saturating_sub(described)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_keeps_what_it_says() {
        let old = br#"{"architecture":"amd64","x":1,"created":"2020-01-01T00:00:00Z",
            "rootfs":{"type":"layers","diff_ids":["sha256:00"]},"history":[{"empty_layer":true},{}]}"#;
        let layer = Digest::of(b"layer");
        let options = AppendOptions::default().created(Some(0)).created_by("test").comment("c");
        let new: Value = serde_json::from_slice(&appended(old, &layer, &options).unwrap()).unwrap();
        assert_eq!((&new["x"], &new["created"]), (&json!(1), &json!("1970-01-01T00:00:00Z")));
        assert_eq!(new["rootfs"]["diff_ids"], json!(["sha256:00", layer]));
        let entry = json!({ "created": "1970-01-01T00:00:00Z", "created_by": "test", "comment": "c" });
        assert_eq!(new["history"], json!([{ "empty_layer": true }, {}, entry.clone()]));
        let timeless = appended(old, &layer, &AppendOptions::default()).unwrap();
        assert!(serde_json::from_slice::<Value>(&timeless).unwrap()["created"].is_null());
        let none = br#"{"rootfs":{"diff_ids":[]},"history":null}"#;
        let first = appended(none, &layer, &options).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&first).unwrap()["history"], json!([entry]));
        for bad in ["[]", "{}", "nonsense", r#"{"rootfs":{"diff_ids":[]},"history":1}"#] {
            assert!(appended(bad.as_bytes(), &layer, &AppendOptions::default()).is_err(), "{bad}");
        }
    }

    /// nlewo/nix2container#57, containers/buildah#7037: registries answer "manifest invalid".
    #[test]
    fn a_history_has_an_entry_for_each_layer() {
        let made = |history: Value| {
            let old = json!({ "rootfs": { "diff_ids": ["a", "b"] }, "history": history }).to_string();
            let new = appended(old.as_bytes(), &Digest::of(b"c"), &AppendOptions::default()).unwrap();
            let new: Value = serde_json::from_slice(&new).unwrap();
            new["history"].as_array().unwrap().clone()
        };
        let empty = json!({ "empty_layer": true });
        let one = json!({ "created_by": "x" });
        let histories = [
            json!(null),
            json!([]),
            json!([empty]),
            json!([one]),
            json!([one, empty, one]),
            json!([null, { "empty_layer": false }]),
            json!([one, one, one, empty, one]),
        ];
        for old in histories {
            let new = made(old.clone());
            assert_eq!(new.iter().filter(|entry| entry["empty_layer"] != true).count(), 3, "{old}");
            let kept = old.as_array().map_or(0, Vec::len);
            assert!(new.len() > kept && new.iter().all(Value::is_object), "{old}");
        }
        assert_eq!(made(json!([one, one, one]))[2], json!({ "created_by": "x", "empty_layer": true }));
        assert_eq!(made(json!([one, empty]))[..2], [one, empty]);
    }
}
