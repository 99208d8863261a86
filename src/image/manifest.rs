//! A manifest for layers that were compressed anew.

use crate::codec::media::Compression;
use crate::digest::OciDigest;
use crate::error::{Error, Result};
use crate::image::spec::{OCI_CONFIG, OCI_MANIFEST};
use serde_json::{Map, Value, json};

/// Annotations that describe the bytes of a blob and are wrong of any other.
const OF_THE_BYTES: [&str; 3] =
    ["containerd.io/snapshot/stargz/", "io.github.containers.zstd-chunked.", "io.containers.estargz."];

/// A layer blob as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// The digest by which the manifest names the blob.
    pub digest: OciDigest,
    /// Its size in bytes.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
}

/// Makes an OCI manifest for a config (digest and size) and layers.
///
/// Annotations and unknown fields of `original` stay, also those of each layer if their number is the same. The result
/// is an OCI manifest even if the original was Docker's, since it goes into an OCI layout. The same input gives the
/// same bytes: keys are sorted.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) if `original` is not a JSON object.
pub fn manifest_for(
    config: (impl Into<OciDigest>, u64),
    layers: &[LayerBlob],
    original: Option<&[u8]>,
) -> Result<Vec<u8>> {
    let mut manifest = original.map_or(Ok(Map::new()), parse_object)?;
    let old_layers = match manifest.remove("layers") {
        Some(Value::Array(old)) if old.len() == layers.len() => old,
        _ => vec![Value::Null; layers.len()],
    };
    let new_layers = old_layers.into_iter().zip(layers).map(|(old, new)| layer_descriptor(old, new)).collect();
    let mut config_descriptor = match manifest.remove("config") {
        Some(Value::Object(old)) => old,
        _ => Map::new(),
    };
    set(&mut config_descriptor, OCI_CONFIG, config.0.into(), config.1);
    manifest.insert("schemaVersion".into(), json!(2));
    manifest.insert("mediaType".into(), json!(OCI_MANIFEST));
    manifest.insert("config".into(), Value::Object(config_descriptor));
    manifest.insert("layers".into(), Value::Array(new_layers));
    Ok(Value::Object(manifest).to_string().into_bytes())
}

fn parse_object(json: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(json) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::invalid("the manifest is not a JSON object")),
        Err(e) => Err(Error::invalid(format!("the manifest is not JSON: {e}"))),
    }
}

fn layer_descriptor(old: Value, new: &LayerBlob) -> Value {
    let mut descriptor = match old {
        Value::Object(old) => old,
        _ => Map::new(),
    };
    if descriptor.get("digest") != Some(&json!(new.digest)) {
        // The URLs lead to other bytes, and so do annotations about the bytes.
        descriptor.remove("urls");
        if let Some(Value::Object(annotations)) = descriptor.get_mut("annotations") {
            annotations.retain(|key, _| !OF_THE_BYTES.iter().any(|prefix| key.starts_with(prefix)));
        }
    }
    set(&mut descriptor, new.compression.media_type(), new.digest, new.size);
    Value::Object(descriptor)
}

/// Points a descriptor at a blob; a copy of the old blob's bytes in `data` would contradict it.
fn set(descriptor: &mut Map<String, Value>, media_type: &str, digest: OciDigest, size: u64) {
    descriptor.remove("data");
    descriptor.insert("mediaType".into(), json!(media_type));
    descriptor.insert("digest".into(), json!(digest));
    descriptor.insert("size".into(), json!(size));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn blob(seed: u8) -> LayerBlob {
        LayerBlob { digest: Digest::of(&[seed]).into(), size: 7, compression: Compression::Zstd }
    }

    #[test]
    fn keeps_what_it_does_not_know() {
        let original = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": { "mediaType": "x", "digest": "sha256:0", "size": 1, "data": "e30=", "extra": 1 },
            "layers": [{
                "mediaType": "y", "digest": "sha256:1", "size": 2, "urls": ["https://example.com"],
                "annotations": { "keep": "1", "containerd.io/snapshot/stargz/toc.digest": "old" },
            }],
            "annotations": { "a": "b" }, "x-unknown": [1, 2.5, null],
        });
        let bytes = manifest_for((Digest::of(b"c"), 3), &[blob(1)], Some(original.to_string().as_bytes())).unwrap();
        let expected = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": Digest::of(b"c"), "size": 3, "extra": 1 },
            "layers": [{
                "mediaType": Compression::Zstd.media_type(), "digest": blob(1).digest, "size": 7,
                "annotations": { "keep": "1" },
            }],
            "annotations": { "a": "b" }, "x-unknown": [1, 2.5, null],
        });
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), expected);
    }

    #[test]
    fn works_without_an_original_and_for_another_number_of_layers() {
        let fresh = manifest_for((Digest::of(b"c"), 3), &[blob(1), blob(2)], None).unwrap();
        let original = br#"{"layers":[{"annotations":{"of":"another layer"}}]}"#;
        assert_eq!(manifest_for((Digest::of(b"c"), 3), &[blob(1), blob(2)], Some(original)).unwrap(), fresh);
        for bad in [&b"[]"[..], b"", b"{"] {
            assert!(manifest_for((Digest::of(b"c"), 3), &[], Some(bad)).is_err());
        }
    }
}
